"""Every photo once an epoch, the same order for every number of processes, and threads that end."""

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mobilenet.data.cache import Cache
from mobilenet.training import augment
from mobilenet.training.batches import Batches, MicroBatch, ahead, dropout_seed, generator
from mobilenet.training.recipe import Photos, decide
from mobilenet.training.settings import Settings

PLAN = decide(Settings(batch=16, micro_batches=3, seed=5), Photos(100, 0, 3, 32))
BAD = 7


def cache(count: int = 101) -> Cache:
    """Returns photos that hold their own row's number; row 7 is bad."""
    pixels = np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, 32, 32, 3))
    labels, aspect = np.arange(count) % 3, np.ones(count, np.float32)
    labels[BAD], aspect[BAD] = -1, np.nan
    index = np.flatnonzero(labels >= 0)
    return Cache(Path(), (), pixels, labels, aspect, index, ())  # type: ignore[arg-type]


BATCHES = Batches(PLAN, cache())


def test_every_photo_is_in_one_batch_of_each_epoch() -> None:
    orders = []
    for epoch in range(3):
        steps = BATCHES.epoch(epoch)
        assert len(steps) == BATCHES.per_epoch == 7
        order = np.concatenate([rows for parts in steps for rows in parts])
        assert sorted(order) == [row for row in range(101) if row != BAD]
        orders.append(order.tolist())
    assert orders[0] != orders[1] != orders[2]
    again = np.concatenate([rows for parts in BATCHES.epoch(1) for rows in parts])
    assert again.tolist() == orders[1]
    other = Batches(replace(PLAN, seed=6), cache()).epoch(1)
    assert np.concatenate([rows for parts in other for rows in parts]).tolist() != orders[1]


def test_batches_and_their_parts_are_nearly_equal() -> None:
    for count in (17, 33, 100, 101):
        for parts in Batches(PLAN, cache(count)).epoch(0):
            sizes = [len(rows) for rows in parts]
            assert len(sizes) == 3
            assert max(sizes) - min(sizes) <= 1
        totals = [sum(map(len, parts)) for parts in Batches(PLAN, cache(count)).epoch(0)]
        assert max(totals) - min(totals) <= 1
        assert max(totals) <= 16


def test_micro_batches_hold_the_rows_and_their_labels() -> None:
    found = list(BATCHES.read(6, 8, 0, 1))
    assert [(part.step, part.part) for part in found] == [(6, 0), (6, 1), (6, 2), (7, 0), (7, 1), (7, 2)]
    rows = [*BATCHES.epoch(0)[6], *BATCHES.epoch(1)[0]]
    for part, needed in zip(found, rows, strict=True):
        assert part.photos[:, 0, 0, 0].tolist() == needed.tolist()
        assert part.labels.tolist() == (needed % 3).tolist()
        assert part.photos.dtype == torch.uint8
    assert sum(part.share for part in found[:3]) == pytest.approx(1)
    assert found[0].share == len(rows[0]) / sum(map(len, rows[:3]))


def same(one: MicroBatch, other: MicroBatch) -> bool:
    tensors = zip(one[3:], other[3:], strict=True)
    return one[:3] == other[:3] and all(torch.equal(mine, theirs) for mine, theirs in tensors)


def test_processes_share_what_one_does() -> None:
    alone = list(BATCHES.read(3, 9, 0, 1))
    for size in (2, 3):
        parts = [list(BATCHES.read(3, 9, rank, size)) for rank in range(size)]
        together = sorted((part for each in parts for part in each), key=lambda part: part[:2])
        assert all(map(same, alone, together))
        assert len(alone) == len(together)


def test_a_step_can_be_read_alone() -> None:
    """So a resumed training sees the same photos, varied in the same way."""
    all_of_it = [part for part in BATCHES.read(0, 20, 0, 1) if part.step >= 12]
    assert all(map(same, all_of_it, BATCHES.read(12, 20, 0, 1)))
    first, second = all_of_it[0], all_of_it[3]
    assert not torch.equal(first.variation[:4], second.variation[:4])
    aspect = np.ones(len(first.labels), np.float32)
    needed = augment.draw(generator(5, 1, 12, 0), aspect, PLAN.preprocessing, "standard")
    assert torch.equal(first.variation, torch.from_numpy(needed.packed))


def test_each_place_has_its_own_random_numbers() -> None:
    kinds = [(0, 0), (0, 1), (1, 0, 0), (1, 0, 1), (1, 1, 0), (2, 0, 0), (2, 0, 1)]
    places = [(seed, *place) for seed in (0, 1) for place in kinds]
    first = [generator(*place).random() for place in places]
    assert len(set(first)) == len(places)
    assert first == [generator(*place).random() for place in places]
    seeds = {dropout_seed(PLAN, step, part) for step in range(20) for part in range(3)}
    assert len(seeds) == 60


def test_ahead_keeps_order_and_its_distance() -> None:
    made: list[int] = []

    def numbers() -> Iterator[int]:
        for number in range(10):
            made.append(number)
            yield number

    reading = ahead(numbers(), depth=2)
    assert next(reading) == 0
    while len(made) < 4:
        time.sleep(0.001)
    time.sleep(0.05)  # in which it would make more
    assert made == [0, 1, 2, 3]  # one given, two waiting, one in hand
    assert list(reading) == list(range(1, 10))


def test_what_goes_wrong_ahead_is_raised_in_its_place() -> None:
    def failing() -> Iterator[int]:
        yield 1
        raise OSError("the disk is gone")

    reading = ahead(failing())
    assert next(reading) == 1
    with pytest.raises(OSError, match="the disk is gone"):
        next(reading)


def test_closing_ends_the_thread() -> None:
    def endless() -> Iterator[int]:
        while True:
            yield 1

    before = set(threading.enumerate())
    reading = ahead(endless())
    assert next(reading) == 1
    (thread,) = set(threading.enumerate()) - before
    reading.close()
    assert not thread.is_alive()
