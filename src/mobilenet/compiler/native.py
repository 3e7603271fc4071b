"""Runs a model as machine code made for it: the engine of `engine.Engine`, with the same call, compiled."""

import ctypes
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..arch import Network
from ..common.checks import integer
from ..errors import UsageError
from ..weights import fold
from . import store
from .driver import DRIVE, WAIT
from .kernel import SIZES, Floats, Kernel, Words
from .loader import Code
from .lower import Integers, Plan, Step, for_floats, lower
from .memory import ALIGNMENT
from .pack import aligned, pack
from .targets import Target, choose

if TYPE_CHECKING:
    from ..model import Model

_SPINS = 500  # of some 50 ns


class NativeEngine:
    """Computes logits from pixels; may be called from several threads at once.

    An image's logits do not depend on the batch it comes in, nor on `threads`, bit by bit.

    Attributes:
        plan: what is computed when.
    """

    def __init__(
        self,
        model: "Model",
        threads: int | None = None,
        *,
        precision: str = "f32",
        target: str | None = None,
        fuse: bool = True,
    ) -> None:
        """Compiles a model, or takes its code from the cache; later changes of the model do not reach this engine.

        Args:
            model: what to run.
            threads: over which the images of a batch, or the rows and channels of a single one, are split, from 1 to
                1024; None for one a processor.
            precision: "f32", "bf16", or "int8" for a quantised model.
            target: a name of `targets.TARGETS`; None for `MOBILENET_TARGET` or the best that runs here.
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
        chosen = choose(target)
        facts = integers(model.network, model.tensors) if precision == "int8" else None
        make = partial(lower, model.network, chosen, precision=precision, integers=facts, fuse=fuse)
        self.plan = make()
        together = make(threads=threads) if threads > 1 else self.plan
        code = _code(dict.fromkeys((*self.plan.kernels, *together.kernels)), chosen)
        # One packing serves both plans: it does not depend on who computes which rows.
        scaling = model.preprocessing.mean, model.preprocessing.std
        tensors = model.tensors if precision == "int8" else fold(model.network, model.tensors)
        weights = pack(self.plan, tensors, *scaling)
        last_scale = last_zero = 0.0
        if precision == "int8" and self.plan.numbers == "u8":
            name = model.network.layers[-1].name
            last_scale, last_zero = (float(model.tensors[f"{name}.{fact}"][0]) for fact in ("scale", "zero"))
        decode = partial(_floats, self.plan.numbers, last_scale, last_zero)
        self._alone = _Tapes(self.plan, code, weights, decode)
        self._together = _Tapes(together, code, weights, decode)
        last = model.network.layers[-1]
        pooled = last.kind in ("dense", "average_pool", "max_pool")
        self._shape = last.output[2:] if pooled else tuple(last.output)

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
                list(pool.map(self._alone.play, images, logits))
        else:
            for image, out in zip(images, logits, strict=True):
                self._together.play(image, out)
        return logits

    def _check(self, pixels: object) -> None:
        needed = f"needed uint8 or float32 [N, {', '.join(map(str, self.network.input))}], values 0..255"
        if not isinstance(pixels, np.ndarray):
            raise UsageError(f"pixels: got {type(pixels).__name__}, {needed}")
        if pixels.dtype not in (np.uint8, np.float32) or pixels.shape[1:] != self.network.input:
            one = "; one image alone is pixels[None]" if pixels.shape == self.network.input else ""
            raise UsageError(f"pixels: got {pixels.dtype} {list(pixels.shape)}, {needed}{one}")


class _Tapes:
    """Is a plan with as much memory as there are threads that run it at a time."""

    def __init__(self, plan: Plan, code: Code, weights: Words, decode: "Decode" = lambda x: x) -> None:
        self._make = partial(_Tape, plan, code, weights, decode)
        self._idle: list[_Tape] = []  # list's append and pop are atomic

    def play(self, image: NDArray[Any], out: Floats) -> None:
        """Runs one image."""
        try:
            tape = self._idle.pop()
        except IndexError:
            tape = self._make()
        tape.play(image, out)
        self._idle.append(tape)


class _Tape:
    """Is a plan with memory of its own, as tables of calls that the driver makes, one for each thread."""

    def __init__(self, plan: Plan, code: Code, weights: Words, decode: "Decode" = lambda x: x) -> None:
        self._arena = aligned(plan.arena).view(np.uint8)
        for fill in plan.fills:
            self._arena[fill.offset : fill.offset + fill.bytes] = np.resize(
                np.array(fill.pattern, np.uint8), fill.bytes
            )
        self._weights, self._code = weights, code  # must live as long as their addresses are here
        self._drive = code.function(DRIVE)
        self._counter = aligned(ALIGNMENT).view(np.int64)
        bases = {"arena": self._arena.ctypes.data, "weights": weights.ctypes.data, "pixels": 0}
        self._tables = [_Table(part, code, bases, self._counter, len(plan.parts)) for part in plan.parts]
        size = plan.stored.size * SIZES[plan.numbers]
        stored = self._arena[plan.result : plan.result + size].view(_KINDS[plan.numbers]).reshape(plan.stored)
        self._result = stored[..., : plan.network.layers[-1].output.channels]
        self._decode = decode
        self._helpers: ThreadPoolExecutor | None = None
        self._process = 0

    def play(self, image: NDArray[Any], out: Floats) -> None:
        """Runs one image [height, width, channels] and writes the last layer's output."""
        first, *others = (table.of(image) for table in self._tables)
        self._counter[0] = 0
        helping = [self._pool(len(others)).submit(self._drive, *other) for other in others]
        self._drive(*first)
        for help in helping:
            help.result()
        out[...] = self._decode(self._result).reshape(out.shape)

    def _pool(self, helpers: int) -> ThreadPoolExecutor:
        """Returns threads that sleep between images; new ones in a process that was forked, which has none."""
        if self._helpers is None or self._process != os.getpid():
            self._helpers, self._process = ThreadPoolExecutor(helpers), os.getpid()
        return self._helpers


class _Table:
    """Is one thread's calls; those that read pixels get their address when it is known."""

    def __init__(
        self, steps: Sequence[Step | None], code: Code, bases: dict[str, int], counter: NDArray[np.int64], threads: int
    ) -> None:
        waits = 0
        rows = []
        for step in steps:
            if step is None:
                waits += threads
                rows.append([code.address[WAIT], counter.ctypes.data, _yield_address(), 0, 0, waits, _SPINS])
            else:
                rows.append(_call(step, code.address[repr(step.kernel)], bases))
        readers = [(n, step) for n, step in enumerate(steps) if step and step.source.region == "pixels"]
        self._readers = np.array([n for n, _ in readers], np.int64)
        self._offsets = np.array([step.source.offset for _, step in readers], np.int64)
        self._bytes = np.array(rows, np.int64)
        self._floats = self._bytes.copy()
        self._floats[self._readers, 0] = [code.address[repr(for_floats(step.kernel))] for _, step in readers]

    def of(self, image: NDArray[Any]) -> tuple[int, int]:
        """Returns the address and the length of the table of an image's calls."""
        table = self._bytes if image.dtype == np.uint8 else self._floats
        table[self._readers, 2] = self._offsets * image.itemsize + image.ctypes.data
        return table.ctypes.data, len(table)


_KINDS: dict[str, Any] = {"f32": np.float32, "bf16": np.uint16, "u8": np.uint8}
Decode = Callable[[NDArray[Any]], Floats]


def _floats(numbers: str, scale: float, zero: float, stored: NDArray[Any]) -> Floats:
    """Returns as floats what a plan's last layer has stored."""
    if numbers == "bf16":
        return (stored.astype(np.uint32) << 16).view(np.float32)
    if numbers == "u8":
        return (stored.astype(np.float32) - np.float32(zero)) * np.float32(scale)
    return stored


def integers(network: Network, tensors: Mapping[str, NDArray[Any]]) -> Integers:
    """Returns what the code for a quantised model depends on."""
    endings: dict[str, str] = {}
    zeros: dict[str, tuple[int, ...]] = {}
    zero = tuple(int(value) for value in tensors["pixels.zero"])
    for layer in network.layers:
        zeros[layer.name] = zero
        if layer.kind in ("dense", "max_pool"):
            continue
        zero = (int(tensors[f"{layer.name}.zero"][0]),)
        limits = int(tensors[f"{layer.name}.high"][0]) < 255 or (layer.activation != "linear" and zero != (0,))
        endings[layer.name] = "rescaled+limits" if limits else "rescaled+zero" if zero != (0,) else "rescaled"
    return Integers(endings, zeros)


def _call(step: Step, function: int, bases: dict[str, int]) -> list[int]:
    places = (bases[place.region] + place.offset for place in (step.out, step.source, step.parameters, step.extra))
    return [function, *places, step.begin, step.end]


def _yield_address() -> int:
    """Returns the address of the C library's sched_yield."""
    return ctypes.cast(ctypes.CDLL(None).sched_yield, ctypes.c_void_p).value or 0


def _code(kernels: Iterable[Kernel], target: Target) -> Code:
    """Returns the kernels' code from the cache, or compiled now and kept."""
    wanted = tuple(kernels)
    name = store.key(wanted, target)
    image = store.read(name)
    if image is None:
        from .build import build  # only here is LLVM needed

        image = build(wanted, target)
        store.write(name, image)
    return Code(*image)
