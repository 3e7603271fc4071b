"""Runs a model as machine code made for it: the engine of `engine.Engine`, with the same call, compiled."""

import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..checks import integer
from ..errors import UsageError
from ..weights import fold
from . import store
from .kernel import Floats
from .loader import Code
from .lower import Plan, Step, for_floats, lower
from .pack import aligned, pack
from .targets import choose

if TYPE_CHECKING:
    from ..model import Model

_DRIVER = "drive"


class NativeEngine:
    """Computes logits from pixels; may be called from several threads at once.

    An image's logits do not depend on the batch it comes in, nor on `threads`, bit by bit.

    Attributes:
        plan: what is computed when.
    """

    def __init__(
        self, model: "Model", threads: int | None = None, *, target: str | None = None, fuse: bool = True
    ) -> None:
        """Compiles a model, or takes its code from the cache; later changes of the model do not reach this engine.

        Args:
            model: what to run.
            threads: over which the images of a batch are split, from 1 to 1024; None for one a processor.
            target: "avx512", "avx2", "sse" or "neon"; None for `MOBILENET_TARGET` or the best that runs here.
            fuse: whether blocks are computed in strips that stay in cache, where that is faster.

        Raises:
            UsageError: names `threads` or `target`, its value and the rule.
            MobileNetError: the code is not in the cache and llvmlite is not installed; says how to install it.
        """
        if threads is None:
            threads = len(os.sched_getaffinity(0))
        integer("threads", threads, 1, 1024)
        self.threads = threads
        self.network = model.network
        self.plan = lower(model.network, choose(target), fuse=fuse)
        self._code = _code(self.plan)
        self._weights = pack(
            self.plan, fold(model.network, model.tensors), model.preprocessing.mean, model.preprocessing.std
        )
        last = model.network.layers[-1]
        pooled = last.kind in ("dense", "average_pool", "max_pool")
        self._shape = last.output[2:] if pooled else tuple(last.output)
        self._idle: list[_Tape] = []  # list's append and pop are atomic

    def __call__(self, pixels: NDArray[np.uint8] | Floats) -> Floats:
        """Returns the logits of a batch, float32 [N, classes]; without the top [N, height, width, channels] or, pooled,
        [N, channels].

        Args:
            pixels: uint8 or float32 [N, height, width, channels], values 0..255; N may be 0.

        Raises:
            UsageError: says which type and shape was given and which is needed.
        """  # fmt: skip
        self._check(pixels)
        logits = np.empty((len(pixels), *self._shape), np.float32)
        images: NDArray[Any] = np.ascontiguousarray(pixels)
        workers = min(self.threads, len(images))
        if workers > 1:
            with ThreadPoolExecutor(workers) as pool:
                list(pool.map(self._run, images, logits))
        else:
            for image, out in zip(images, logits, strict=True):
                self._run(image, out)
        return logits

    def _check(self, pixels: object) -> None:
        needed = f"needed uint8 or float32 [N, {', '.join(map(str, self.network.input))}], values 0..255"
        if not isinstance(pixels, np.ndarray):
            raise UsageError(f"pixels: got {type(pixels).__name__}, {needed}")
        if pixels.dtype not in (np.uint8, np.float32) or pixels.shape[1:] != self.network.input:
            one = "; one image alone is pixels[None]" if pixels.shape == self.network.input else ""
            raise UsageError(f"pixels: got {pixels.dtype} {list(pixels.shape)}, {needed}{one}")

    def _run(self, image: NDArray[Any], out: Floats) -> None:
        try:
            tape = self._idle.pop()
        except IndexError:
            tape = _Tape(self.plan, self._code, self._weights)
        tape.play(image, out)
        self._idle.append(tape)


class _Tape:
    """Is a plan with memory of its own, as the table of calls that the driver makes."""

    def __init__(self, plan: Plan, code: Code, weights: Floats) -> None:
        self._arena = aligned(plan.arena)
        self._weights, self._code = weights, code  # must live as long as their addresses are here
        self._drive = code.function(_DRIVER)
        bases = {"arena": self._arena.ctypes.data, "weights": weights.ctypes.data, "pixels": 0}
        self._readers = np.array([n for n, step in enumerate(plan.steps) if step.source.region == "pixels"])
        self._offsets = np.array([plan.steps[n].source.offset for n in self._readers])
        self._bytes = np.array([_call(step, code.address[repr(step.kernel)], bases) for step in plan.steps])
        self._floats = self._bytes.copy()
        self._floats[self._readers, 0] = [code.address[repr(for_floats(plan.steps[n].kernel))] for n in self._readers]
        stored = self._arena[plan.result // 4 :][: plan.stored.size].reshape(plan.stored)
        self._result = stored[..., : plan.network.layers[-1].output.channels]

    def play(self, image: NDArray[Any], out: Floats) -> None:
        """Runs one image [height, width, channels] and writes the last layer's output."""
        table = self._bytes if image.dtype == np.uint8 else self._floats
        table[self._readers, 2] = self._offsets * image.itemsize + image.ctypes.data
        self._drive(table.ctypes.data, len(table))
        out[...] = self._result.reshape(out.shape)


def _call(step: Step, function: int, bases: dict[str, int]) -> list[int]:
    places = (bases[place.region] + place.offset for place in (step.out, step.source, step.parameters, step.extra))
    return [function, *places, step.begin, step.end]


def _code(plan: Plan) -> Code:
    """Returns a plan's code from the cache, or compiled now and kept."""
    name = store.key(plan.kernels, plan.target)
    image = store.read(name)
    if image is None:
        from .build import build  # only here is LLVM needed

        image = build(plan.kernels, plan.target)
        store.write(name, image)
    return Code(*image)
