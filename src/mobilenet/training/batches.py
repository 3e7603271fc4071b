"""Which photos each step sees, and reading them ahead of time.

Every random choice comes from a generator seeded with where in the training it is made, so nothing about randomness
has to be saved, and any step can be computed alone: after an interruption, or by another process.
"""

import contextlib
import queue
import threading
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data.cache import Cache
from . import augment
from .recipe import Plan, steps_per_epoch

Item = TypeVar("Item")
Rows = NDArray[np.int64]

_ORDER, _VARIATION, _DROPOUT = range(3)  # what a generator is for


def generator(seed: int, purpose: int, *place: int) -> np.random.Generator:
    """Returns the generator of random numbers for one purpose at one place of a training."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, purpose, *place])))


def dropout_seed(plan: Plan, step: int, part: int) -> int:
    """Returns torch's seed for the dropout of one micro-batch."""
    return int(generator(plan.seed, _DROPOUT, step, part).integers(2**63))


class MicroBatch(NamedTuple):
    """Is a part of a step's batch: photos, labels and how the photos are varied.

    Attributes:
        step: of the whole training, from 0.
        part: number of the part in the step's batch.
        share: of the batch's photos.
        photos: uint8 [n, stored height, stored width, channels].
        labels: int64 [n].
        variation: float32 [n, …], `augment.Draw.packed`.
    """

    step: int
    part: int
    share: float
    photos: Tensor
    labels: Tensor
    variation: Tensor

    def to(self, device: torch.device) -> "MicroBatch":
        """Returns the micro-batch on a device."""
        moved = (tensor.to(device, non_blocking=True) for tensor in self[3:])
        return MicroBatch(self.step, self.part, self.share, *moved)


@dataclass(frozen=True)
class Batches:
    """Divides every epoch's photos into nearly equal batches, and these into nearly equal micro-batches.

    Each photo is in exactly one batch of each epoch, and there is no tiny batch at the end, whose statistics would
    disturb batch norm.
    """

    plan: Plan
    cache: Cache

    @property
    def per_epoch(self) -> int:
        """Steps in an epoch."""
        return steps_per_epoch(len(self.cache.index), self.plan.batch)

    def epoch(self, number: int) -> list[list[Rows]]:
        """Returns, for each step of an epoch, the rows of the cache that each of its micro-batches takes."""
        order = generator(self.plan.seed, _ORDER, number).permutation(self.cache.index)
        return [np.array_split(batch, self.plan.micro_batches) for batch in np.array_split(order, self.per_epoch)]

    def read(self, first: int, last: int, rank: int, size: int, pin: bool = False) -> Iterator[MicroBatch]:
        """Yields, for the steps from `first` to before `last`, the micro-batches that process `rank` of `size` does."""
        for step in range(first, last):
            number, place = divmod(step, self.per_epoch)
            if step == first or place == 0:
                epoch = self.epoch(number)
            rows = epoch[place]
            count = sum(map(len, rows))
            for part in range(rank, len(rows), size):
                yield self._micro_batch(step, part, rows[part], len(rows[part]) / count, pin)

    def _micro_batch(self, step: int, part: int, rows: Rows, share: float, pin: bool) -> MicroBatch:
        plan, cache = self.plan, self.cache
        rng = generator(plan.seed, _VARIATION, step, part)
        variation = augment.draw(rng, cache.aspect[rows], plan.preprocessing, plan.augment)
        tensors = (torch.from_numpy(array) for array in (cache.pixels[rows], cache.labels[rows], variation.packed))
        return MicroBatch(step, part, share, *(tensor.pin_memory() if pin else tensor for tensor in tensors))


class _Failure(NamedTuple):
    error: BaseException


def ahead(items: Iterator[Item], depth: int = 2) -> Generator[Item]:
    """Yields the items, computed up to `depth` ahead in one thread; close it (`contextlib.closing`) to end the thread.

    What `items` raises is raised here, in its place.
    """
    ready: queue.Queue[Item | _Failure | None] = queue.Queue(depth)
    stop = threading.Event()

    def put(item: Item | _Failure | None) -> None:
        while not stop.is_set():
            with contextlib.suppress(queue.Full):
                ready.put(item, timeout=0.1)
                break

    def work() -> None:
        try:
            for item in items:
                put(item)
                if stop.is_set():
                    return
            put(None)
        except BaseException as error:
            put(_Failure(error))

    thread = threading.Thread(target=work, daemon=True, name="photos ahead")
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, _Failure):
                raise item.error
            yield item
    finally:
        stop.set()
        thread.join()
