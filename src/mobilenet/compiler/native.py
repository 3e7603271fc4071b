"""Runs a model as machine code made for it."""

import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from ctypes import addressof, c_char
from functools import partial
from itertools import chain, pairwise, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..arch import Layer, Network
from ..common.checks import choice
from ..common.frozen import frozen
from ..common.parallel import for_each
from ..common.progress import counter
from ..errors import MobileNetError, UsageError
from ..quantized import EXACT, centred_weight, largest_sums, lower_clamp, rescale_of
from ..runner import Runner
from ..weights import Folded
from . import store
from .crew import Crew, system_function
from .driver import DRIVE, MARK, STEP_WORDS, TOGETHER
from .kernel import SIZES, Floats, Kernel, Words
from .loader import Code
from .pack import aligned, pack
from .plan import Integers, Plan, Step, for_floats
from .resample import LEAST, Across, Down, Resampler
from .targets import Target, choose

if TYPE_CHECKING:
    from ..model import Model
    from .profile import Profile

PRECISIONS = ("f32", "bf16", "int8")


@frozen
class Made:
    """Is what a compiled engine consists of, and how it came about.

    Attributes:
        precision: of weights and activations.
        target: the instruction set.
        kernels: distinct pieces of code.
        code: bytes of machine code.
        weights: bytes, packed.
        arena: bytes of activations that one image needs.
        kept: the code's file in the cache; None if it could not be kept.
        seconds: to make the engine, with or without compiling.
    """

    precision: str
    target: str
    kernels: int
    code: int
    weights: int
    arena: int
    kept: Path | None
    seconds: float


class NativeEngine(Runner):
    """Is the compiled engine, as `Model.compile` makes it.

    Attributes:
        plan: what is computed when, for one image on one thread.
        made: what it took to make it.
    """

    def __init__(
        self,
        model: "Model",
        threads: int | None = None,
        *,
        precision: str | None = None,
        target: str | None = None,
        fuse: bool = True,
    ) -> None:
        """Compiles a model, or takes its code from the cache; later changes of the model do not reach this engine.

        Args:
            model: what to run.
            threads: over which the images of a batch, or the rows and channels of a single one, are split, from 1 to
                1024; None for one a processor.
            precision: "f32", "bf16", or "int8"; None for what the model's weights are.
            target: a name of `targets.TARGETS`; None for `MOBILENET_TARGET` or the best that runs here.
            fuse: whether blocks are computed in strips that stay in cache, where that is faster.

        Raises:
            UsageError: names `threads`, `precision` or `target`, its value and the rule.
            MobileNetError: the code is not in the cache and llvmlite is not installed; says how to install it.
        """
        super().__init__(model.network, threads)
        precision = precision or model.precision
        choice("precision", precision, PRECISIONS)
        if (precision == "int8") != (model.precision == "int8"):
            other = "is not quantised; Model.quantize or `mobilenet quantize` makes one that is"
            fact = other if precision == "int8" else "is quantised; needed is 'int8', or the model it was made from"
            raise UsageError(f"precision: got {precision!r}, but the model {fact}")
        start = time.perf_counter()
        chosen = choose(target)
        whole = model.precision == "int8"
        facts = integers(model.network, model.tensors) if whole else Integers()
        code, plans, kept = _load(model.network, chosen, precision, facts, fuse, self.threads)
        self.plan = Plan.restored(plans[0], model.network, chosen)
        # One packing serves both plans: it does not depend on who computes which rows.
        scaling = model.preprocessing.mean, model.preprocessing.std
        weights = pack(self.plan, model.tensors if whole else Folded(model.network, model.tensors), *scaling)
        decode = _decoder(self.plan.numbers, last_scale(model))
        self._tapes = partial(_Tapes, code=code, weights=weights, decode=decode)
        self._alone = self._tapes(self.plan)
        self._kept = plans[-1]
        self._made_together: _Tapes | None = None
        across = _across(model.network)
        self.resampler = Resampler(code, across, model.network.height, chosen.lanes) if across else None
        kernels = sum("(" in name for name in code.address)  # the driver's functions have names without
        arena = max(plan["arena"] for plan in plans)
        self.made = Made(precision, chosen.name, kernels, code.size, weights.nbytes, arena, kept,
                         time.perf_counter() - start)  # fmt: skip

    @property
    def _together(self) -> "_Tapes":
        """The plan of one image on all threads, made when asked for: photos labelled one a thread do not need it."""
        found = self._made_together
        if found is None:
            found = self._made_together = self._tapes(Plan.restored(self._kept, self.network, self.plan.target))
        return found

    def profile(self, pixels: NDArray[np.uint8] | Floats | None = None, seconds: float = 2.0) -> "Profile":
        """Measures each layer, the whole, and what the machine can do at its best.

        Args:
            pixels: one image, [1, height, width, channels] as `__call__` takes it; None for noise.
            seconds: to measure for, from 0.01 to 3600; more makes for figures that vary less.

        Raises:
            UsageError: names the argument, its value and the rule.
        """
        from .profile import profile

        return profile(self, pixels, seconds)

    def marked(self) -> tuple[Plan, "_Tape"]:
        """Returns the plan of one image on this engine's threads, and a tape of it that tells the time of each step."""
        return self._together.plan, self._together.marked()

    def _one(self, image: NDArray[Any], logits: Floats) -> None:
        self._alone.play(image, logits)

    def _run(self, images: NDArray[Any], logits: Floats) -> None:
        if self.threads > 1 and len(images) > 1:
            for_each(lambda n: self._alone.play(images[n], logits[n]), len(images), self.threads)
        else:
            for n in range(len(images)):  # the end of an iteration over an array takes as long as a small layer
                self._together.play(images[n], logits[n])


class _Tapes:
    """Is a plan with as much memory as there are threads that run it at a time."""

    def __init__(self, plan: Plan, code: Code, weights: Words, decode: "Decode" = np.asarray) -> None:
        self.plan = plan
        self._make = partial(_Tape, plan, code, weights, decode)
        self._idle: list[_Tape] = []  # list's append and pop are atomic

    def marked(self) -> "_Tape":
        """Returns a tape for measurements."""
        return self._make(marked=True)

    def play(self, image: NDArray[Any], out: Floats) -> None:
        """Runs one image."""
        try:
            tape = self._idle.pop()
        except IndexError:
            tape = self._make()
        tape.play(image, out)
        self._idle.append(tape)


class _Tape:
    """Is a plan with memory of its own, as tables of calls that the driver makes.

    Attributes:
        marks: if asked for, the clock's ticks before each step of each part and after the last, of the last image.
    """

    def __init__(
        self, plan: Plan, code: Code, weights: Words, decode: "Decode" = np.asarray, *, marked: bool = False
    ) -> None:
        self._arena = arena(plan)
        self._weights, self._code = weights, code  # must live as long as their addresses are here
        bases = {"arena": self._arena.ctypes.data, "weights": weights.ctypes.data, "pixels": 0}
        self.marks = [np.zeros(len(part) + 1, np.int64) for part in plan.parts] if marked else []
        self._tables = [_Table(part, code, bases, marks) for part, marks in zip_longest(plan.parts, self.marks)]
        self._drive = code.function(DRIVE)
        self._flags = np.zeros((len(plan.parts) + 1) * (len(self._tables[0].edges) - 1), np.int64)
        self._jobs = {bytes_: self._job(bytes_) for bytes_ in (True, False)} if len(plan.parts) > 1 else {}
        self._alone = {bytes_: (rows.ctypes.data, len(rows)) for bytes_, rows in self._tables[0].rows.items()}
        size = plan.stored.size * SIZES[plan.numbers]
        stored = self._arena[plan.result : plan.result + size].view(_KINDS[plan.numbers]).reshape(plan.stored)
        self._result = stored[..., : plan.network.layers[-1].output.channels]
        self._decode = decode
        self._read = {True: 0, False: 0}  # the address of the pixels, bytes or floats, that the tables have
        self._crew: Crew | None = None

    def _job(self, bytes_: bool) -> NDArray[np.int64]:
        """Returns what `driver.TOGETHER` takes, for pixels that are bytes or floats."""
        stretches = [pairwise(table.edges) for table in self._tables]
        parts = [
            (table.rows[bytes_].ctypes.data + begin * table.rows[bytes_].strides[0], end - begin)
            for column in zip(*stretches, strict=True)
            for table, (begin, end) in zip(self._tables, column, strict=True)
        ]
        count = len(self._tables)
        return np.array(
            [len(parts) // count, count, self._flags.ctypes.data, system_function("sched_yield"), *chain(*parts)],
            np.int64,
        )

    def play(self, image: NDArray[Any], out: Floats) -> None:
        """Runs one image [height, width, channels] and writes the last layer's output."""
        bytes_ = image.itemsize == 1
        try:
            address = addressof(c_char.from_buffer(image))  # type: ignore[arg-type]  # quickest: a network may take 0.1 ms
        except TypeError:  # read-only, or not contiguous
            image = np.ascontiguousarray(image)
            address = image.__array_interface__["data"][0]
        if self._read[bytes_] != address:
            for table in self._tables:
                table.read(address, bytes_)
            self._read[bytes_] = address
        if self._jobs:
            job = self._jobs[bytes_].ctypes.data
            self._flags[:] = 0
            if self._crew is None or self._crew.process != os.getpid():  # a process that was forked has no threads
                self._crew = Crew(self._code, TOGETHER, len(self._tables) - 1)
            self._crew.do(job)
        else:
            self._drive(*self._alone[bytes_])
        out[...] = self._decode(self._result)


def arena(plan: Plan) -> NDArray[np.uint8]:
    """Returns a plan's memory as it must be before the first image."""
    memory = aligned(plan.arena).view(np.uint8)
    for fill in plan.fills:
        memory[fill.offset : fill.offset + fill.bytes] = np.resize(np.array(fill.pattern, np.uint8), fill.bytes)
    return memory


class _Table:
    """Is one part's calls; those that read pixels get their address when it is known.

    Attributes:
        rows: a row for each call, for pixels that are bytes (True) or floats.
        edges: where each stretch begins, at whose end all parts must be done, and where the last one ends.
    """

    def __init__(
        self, steps: Sequence[Step | None], code: Code, bases: dict[str, int], marks: NDArray[np.int64] | None
    ) -> None:
        rows: list[list[int]] = []
        readers: list[tuple[int, Step]] = []
        self.edges = [0]
        for number, step in enumerate(steps):
            if marks is not None:
                rows.append(_mark(code, marks, number))
            if step is None:
                self.edges.append(len(rows))
                continue
            if step.source.region == "pixels":
                readers.append((len(rows), step))
            rows.append(_call(step, code.address[step.kernel.name], bases))
        if marks is not None:
            rows.append(_mark(code, marks, len(steps)))
        if self.edges[-1] < len(rows) or len(self.edges) == 1:
            self.edges.append(len(rows))
        self._readers = np.array([n for n, _ in readers], np.int64)
        self._offsets = np.array([step.source.offset for _, step in readers], np.int64)
        self.rows = {bytes_: np.array(rows, np.int64).reshape(-1, STEP_WORDS) for bytes_ in (True, False)}
        self.rows[False][self._readers, 0] = [code.address[for_floats(step.kernel).name] for _, step in readers]

    def read(self, address: int, bytes_: bool) -> None:
        """Makes the image at an address the one whose pixels are read."""
        self.rows[bytes_][self._readers, 2] = self._offsets * (1 if bytes_ else 4) + address


_KINDS: dict[str, Any] = {"f32": np.float32, "bf16": np.uint16, "u8": np.uint8}
Decode = Callable[[NDArray[Any]], Floats]


def last_scale(model: "Model") -> tuple[float, float]:
    """Returns scale and zero point of what the last layer stores, where those are bytes."""
    last = model.network.layers[-1]
    if model.precision != "int8" or last.kind == "dense":
        return 1.0, 0.0
    return float(model.tensors[f"{last.name}.scale"][0]), float(model.tensors[f"{last.name}.zero"][0])


def _decoder(numbers: str, last: tuple[float, float]) -> Decode:
    """Returns what makes floats of what a plan's last layer has stored."""
    scale, zero = map(np.float32, last)
    decoders: dict[str, Decode] = {
        "f32": np.asarray,
        "bf16": lambda stored: (stored.astype(np.uint32) << 16).view(np.float32),
        "u8": lambda stored: (stored.astype(np.float32) - zero) * scale,
    }
    return decoders[numbers]


def integers(network: Network, tensors: Mapping[str, NDArray[Any]]) -> Integers:
    """Returns what the code for a quantised model depends on."""
    endings: dict[str, str] = {}
    zeros: dict[str, tuple[int, ...]] = {}
    zero = tuple(int(value) for value in tensors["pixels.zero"])
    for layer in network.layers:
        zeros[layer.name] = zero
        if layer.kind != "max_pool":
            fixed = rescale_of(layer, tensors) == "fixed"
            endings[layer.name] = (_fixed if fixed else _rescaled)(layer, tensors)
            zero = tuple(int(value) for value in tensors.get(f"{layer.name}.zero", [0]))
    large = (x.name for x in network.layers if x.kind == "depthwise" and largest_sums(x, tensors).max() >= EXACT)
    nine = (x.name for x in network.layers if x.weight_shape and _nine_bits(centred_weight(x, tensors)))
    return Integers(endings, zeros, frozenset(large), frozenset(nine))


def _nine_bits(weight: NDArray[np.int16]) -> bool:
    return bool(weight.min() < -128 or weight.max() > 127)


def _rescaled(layer: Layer, tensors: Mapping[str, NDArray[Any]]) -> str:
    """Returns the ending of a layer with the rescale "float" or "full"."""
    full = rescale_of(layer, tensors) == "full"
    if layer.kind == "dense":
        return "full+logits" if full else "logits"
    if layer.adds and full:
        shift, multipliers = (tensors[f"{layer.name}.sum_{part}"] for part in ("shift", "multiplier"))
        same = not shift[0] and (multipliers == 1).all()
        return "summed+limits" if _limits(layer, tensors) else "summed+same" if same else "summed"
    if _limits(layer, tensors):
        return "rescaled+limits"
    return "rescaled+zero" if tensors[f"{layer.name}.zero"][0] else "rescaled"


def _fixed(layer: Layer, tensors: Mapping[str, NDArray[Any]]) -> str:
    """Returns the ending of a layer with the rescale "fixed"."""
    zero, shift = tensors[f"{layer.name}.zero"][0], tensors[f"{layer.name}.shift"]
    if layer.kind == "dense":
        return "fixed+logits once" if tensors[f"{layer.name}.roundings"][0] == 1 else "fixed+logits"
    if layer.kind == "average_pool" and not tensors[f"{layer.name}.multiplier"][0]:
        return "fixed+mean"
    if layer.adds or shift.max() > 0 or lower_clamp(layer, tensors) < zero:
        return "fixed"
    return "fixed+relu+limits" if _limits(layer, tensors) else "fixed+relu"


def _limits(layer: Layer, tensors: Mapping[str, NDArray[Any]]) -> bool:
    """Whether a layer's outputs have other limits than bytes."""
    return lower_clamp(layer, tensors) > 0 or bool(tensors[f"{layer.name}.high"][0] < 255)


def _mark(code: Code, marks: NDArray[np.int64], number: int) -> list[int]:
    return [code.address[MARK], marks.ctypes.data + number * marks.itemsize, 0, 0, 0, 0, 0]


def _call(step: Step, function: int, bases: dict[str, int]) -> list[int]:
    places = (bases[place.region] + place.offset for place in (step.out, step.source, step.parameters, step.extra))
    return [function, *places, step.begin, step.end]


def _across(network: Network) -> Across | None:
    """Returns the kernel that begins to resize photos to a network's input, None where no photo is."""
    height, width, channels = network.input
    return Across(width) if channels == 3 and min(height, width) >= LEAST else None


def _load(
    network: Network, target: Target, precision: str, facts: Integers, fuse: bool, threads: int
) -> tuple[Code, list[dict[str, Any]], Path | None]:
    """Returns a network's code and its plans, for one thread and, if there are more, for all; and their file."""

    def make() -> tuple[Sequence[Kernel], list[dict[str, Any]]]:
        from .lower import lower

        make_plan = partial(lower, network, target, precision=precision, integers=facts, fuse=fuse)
        plans = [make_plan(threads=count) for count in dict.fromkeys((1, threads))]
        across = _across(network)
        resize = (across, Down()) if across else ()
        return (*chain.from_iterable(plan.kernels for plan in plans), *resize), [plan.kept() for plan in plans]

    large, nine = sorted(facts.large), sorted(facts.nine)  # whose order in a set is another in each process
    asked = network.layers, precision, facts.endings, facts.zeros, large, nine, fuse, threads
    return _kept_or_made(store.key(map(repr, asked), target), target, make)


def load_code(kernels: Sequence[Kernel], target: Target) -> tuple[Code, Path | None]:
    """Returns the kernels' code from the cache, or compiled now and kept, and the file it is kept in."""
    code, _, path = _kept_or_made(
        store.key(sorted(kernel.name for kernel in kernels), target), target, lambda: (kernels, None)
    )
    return code, path


def _kept_or_made(
    name: str, target: Target, make: Callable[[], tuple[Sequence[Kernel], Any]]
) -> tuple[Code, Any, Path | None]:
    """Returns code and facts that are kept under a name, and their file; else those that are made now: `make` returns
    kernels and facts."""  # fmt: skip
    image = store.read(name)
    if image is not None:
        return Code(image.code, image.functions), image.facts, store.folder() / name
    try:
        from .build import build  # only here is LLVM needed
    except ImportError as error:
        raise MobileNetError(
            f"compiling a network for the first time needs llvmlite, which can't be imported ({error}): pip "
            "install llvmlite, or set MOBILENET_TARGET=numpy to run without compiled code"
        ) from error
    kernels, facts = make()
    image = store.Image(*build(tuple(dict.fromkeys(kernels)), target, progress=counter("compiling")), facts)
    code = Code(image.code, image.functions)
    try:
        return code, facts, store.write(name, image)
    except MobileNetError as error:
        warnings.warn(f"compiled code can't be kept for the next start: {error}", stacklevel=2)
        return code, facts, None
