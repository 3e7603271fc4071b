"""From a network to a plan: which kernel computes which rows when, and where everything lies. No LLVM, no weights."""

from collections import Counter
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

from ..arch import Network, Shape
from . import dense, depthwise, matrix
from .add import Add
from .conv import Conv
from .dense import Dense
from .depthwise import Depthwise
from .kernel import Kernel, whole
from .memory import ALIGNMENT, Buffer, place
from .pointwise import Pointwise
from .pool import Pool
from .scale import Scale
from .schedule import Call, Group, groups
from .stages import Stage, input_channels, stages
from .targets import Target

Region = Literal["arena", "weights", "pixels"]


@dataclass(frozen=True)
class Place:
    """Is an address: bytes from the beginning of a region; in "pixels" the number of values before it."""

    region: Region
    offset: int


@dataclass(frozen=True)
class Step:
    """Is one call of a kernel, for the layer `layer`."""

    layer: str
    kernel: Kernel
    out: Place
    source: Place
    parameters: Place
    extra: Place
    begin: int
    end: int


@dataclass(frozen=True)
class Plan:
    """Is a network laid out for a target.

    Attributes:
        network, target: what it is for.
        parts: for each thread the calls for one image in their order; the first ones read pixels, as uint8. None is
            where it waits for the others.
        kernels: each distinct one, those for float32 pixels included.
        packed: for each stage with parameters its kernel and their offset in bytes.
        weights, arena: bytes of the parameters and of all activations; the arena is zeros at first.
        zeroed: the parts of the arena, offset and bytes, of which that must be so; nothing but zeros is read there
            where no kernel writes.
        result: where in the arena the last layer's output is.
        stored: its shape there, channels in whole vectors.
    """

    network: Network
    target: Target
    parts: tuple[tuple[Step | None, ...], ...]
    kernels: tuple[Kernel, ...]
    packed: dict[str, tuple[Kernel, int]]
    weights: int
    arena: int
    zeroed: tuple[tuple[int, int], ...]
    result: int
    stored: Shape


def lower(network: Network, target: Target, *, fuse: bool = True, threads: int = 1, cache: int | None = None) -> Plan:
    """Returns the plan of a network for one image on so many threads; `fuse` False computes stage by stage.

    `cache` is the bytes that may be kept between the layers of a fused block, None for what suits a server.
    """
    return _Lowering(network, target, fuse, threads, cache).plan()


def for_floats(kernel: Kernel) -> Kernel:
    """Returns the kernel that reads float32 pixels where `kernel` reads bytes."""
    return replace(kernel, bytes=False) if isinstance(kernel, Scale) else kernel


class _Lowering:
    def __init__(self, network: Network, target: Target, fuse: bool, threads: int, cache: int | None) -> None:
        self.network, self.target, self.lanes, self.threads = network, target, target.lanes, threads
        self.stages = stages(network, target.lanes)
        self.groups = groups(self.stages, fuse, threads, cache)
        self.kernels = {stage.name: kernel for group in self.groups for stage, kernel in self._kernels(group)}
        self.packed: dict[str, tuple[Kernel, int]] = {}
        self.weights = 0
        for name, kernel in self.kernels.items():
            if kernel.parameters:
                self.packed[name] = kernel, self.weights
                self.weights += -(-4 * kernel.parameters // ALIGNMENT) * ALIGNMENT
        self.zeros = max(4 * stage.layer.input.width * whole(stage.layer.input.channels, self.lanes)
                         for stage in self.stages)  # fmt: skip
        self.zeros = max(self.zeros, *(4 * stage.pitch for stage in self.stages if stage.scales))
        self.buffers = self._buffers()
        self.offsets, self.arena = place(self.buffers)

    def plan(self) -> Plan:
        parts: list[list[Step | None]] = [[] for _ in range(self.threads)]
        for group in self.groups:
            for part, steps in zip(parts, self._steps(group), strict=True):
                part += steps
                part += [None] * (self.threads > 1)
        used = dict.fromkeys(step.kernel for part in parts for step in part if step)
        distinct = dict.fromkeys(kernel for k in used for kernel in (k, for_floats(k)))
        last = self.network.layers[-1].output
        return Plan(
            self.network,
            self.target,
            tuple(map(tuple, parts)),
            tuple(distinct),
            self.packed,
            self.weights,
            self.arena,
            tuple((self.offsets[b.name], b.bytes) for b in self.buffers if (b.first, b.last) == (0, len(self.groups))),
            self.offsets[self.stages[-1].name],
            Shape(last.height, last.width, whole(last.channels, self.lanes)),
        )

    # ------------------------------------------------------------------------------------------------------ kernels

    def _kernels(self, group: Group) -> list[tuple[Stage, Kernel]]:
        found: list[tuple[Stage, Kernel]] = []
        for index, stage in enumerate(group.stages):
            ring = group.rings[index - 1] if index else stage.layer.input.height
            calls = [call for part in group.parts for call in part if call.stage == index]
            counts = tuple(sorted({call.end - call.begin for call in calls}))
            found.append((stage, self._kernel(stage, ring, counts)))
        return found

    def _kernel(self, stage: Stage, ring: int, counts: tuple[int, ...]) -> Kernel:
        layer, lanes = stage.layer, self.lanes
        stored, inputs = whole(layer.output.channels, lanes), input_channels(layer, lanes)
        (top, _), (left, right) = layer.padding
        if stage.scales:
            return Scale(layer.input.width * inputs, stage.pitch, layer.name == self.network.layers[0].name)
        if layer.kind == "conv":
            terms, width = layer.kernel**2 * inputs, layer.output.width
            high, wide = matrix.tile_shape(self.target, width, (width,), stored // lanes, terms)
            row = (left + layer.input.width + right) * inputs
            out = width, stored, layer.activation
            return Conv(layer.input.height, ring, row, inputs, layer.kernel, layer.stride, top, *out, high, wide)
        if layer.kind == "depthwise":
            high, wide = depthwise.tile_shape(self.target, layer.kernel, layer.output.width, min(counts))
            return Depthwise(layer.input.height, layer.input.width, ring, stored, layer.kernel, layer.stride, top, left,
                             layer.output.width, layer.activation, high, wide)  # fmt: skip
        if layer.kind == "pointwise":
            pixels = tuple(count * layer.output.width for count in counts)
            whole_map = layer.output.height * layer.output.width
            high, wide = matrix.tile_shape(self.target, whole_map, pixels, stored // lanes, layer.input.channels)
            # In strips the weights are in cache after the first; in one go every panel comes from the cache behind L2.
            ahead = matrix.lines_ahead(pixels[0] // high, wide, lanes) if counts == (stage.rows,) else 0
            return Pointwise(
                layer.input.channels,
                inputs,
                stored,
                stored // lanes,
                layer.activation,
                layer.adds is not None,
                high,
                wide,
                ahead,
            )
        if layer.kind == "dense":
            wide = dense.panel_width(layer.output.channels, lanes)
            return Dense(layer.input.channels, whole(layer.output.channels, wide * lanes), wide)
        return Pool(layer.kind, layer.input.height * layer.input.width, stored)

    # ------------------------------------------------------------------------------------------------------- memory

    def _buffers(self) -> list[Buffer]:
        """Returns every buffer with the groups in which it is in use."""
        when = {stage.name: number for number, group in enumerate(self.groups) for stage in group.stages}
        end = len(self.groups)
        last_use = Counter(when)
        for before, stage in zip(self.stages, self.stages[1:], strict=False):
            last_use[before.name] = max(last_use[before.name], when[stage.name])
            if stage.layer.adds and not stage.scales:
                last_use[stage.layer.adds] = max(last_use[stage.layer.adds], when[stage.name])
        last_use[self.stages[-1].name] = end
        buffers = [Buffer("zeros", self.zeros, 0, end)]
        for number, group in enumerate(self.groups):
            for stage, ring in zip(group.stages, group.rings, strict=True):
                kernel = self.kernels[stage.name]
                floats = kernel.outputs if isinstance(kernel, Dense) else ring * stage.pitch
                lifetime = (0, end) if stage.scales else (number, last_use[stage.name])  # its zeros are never rewritten
                for part in range(len(group.parts) if stage is not group.stages[-1] else 1):
                    buffers.append(Buffer(_buffer(stage, part), 4 * floats, *lifetime))
        return buffers

    def _row(self, stage: Stage, ring: int, row: int, part: int = 0) -> Place:
        return Place("arena", self.offsets[_buffer(stage, part)] + 4 * (row % ring) * stage.pitch)

    # -------------------------------------------------------------------------------------------------------- steps

    def _steps(self, group: Group) -> list[list[Step]]:
        """Returns the steps of a group for each thread."""
        parts = [
            [
                step
                for call in calls
                for step in self._with_shortcut(group.stages[call.stage], self._step(group, call, n))
            ]
            for n, calls in enumerate(group.parts)
        ]
        if self.threads == 1 or len(parts) > 1:
            return parts
        shares = [split(step, self.threads, self.lanes) for step in parts[0]]
        return [[mine for mine in column if mine] for column in zip(*shares, strict=True)]

    def _with_shortcut(self, stage: Stage, step: Step) -> list[Step]:
        """Returns the step, and after a standard convolution that of its shortcut."""
        if not isinstance(step.kernel, Conv) or not stage.layer.adds:
            return [step]
        shortcut = self._stage(stage.layer.adds)
        return [step, replace(step, kernel=Add(stage.pitch), extra=self._row(shortcut, shortcut.rows, 0))]

    def _step(self, group: Group, call: Call, part: int) -> Step:
        stage, kernel = group.stages[call.stage], self.kernels[group.stages[call.stage].name]
        layer, begin, end = stage.layer, call.begin, call.end
        last = call.stage == len(group.stages) - 1
        before, kept = self._before(group, call.stage)
        out = self._row(stage, group.rings[call.stage], begin, 0 if last else part)
        source = self._row(before, kept, 0, part if call.stage else 0) if before else Place("pixels", 0)
        extra = Place("arena", self.offsets["zeros"])
        if isinstance(kernel, Scale):
            out = Place("arena", out.offset + 4 * layer.padding[1][0] * input_channels(layer, self.lanes))
            mine = part if call.stage else 0
            source = self._row(before, kept, begin, mine) if before else Place("pixels", begin * kernel.length)
            begin, end = 0, end - begin
        elif isinstance(kernel, Pointwise):
            assert before is not None
            source = self._row(before, kept, begin, part if call.stage else 0)
            if layer.adds:
                shortcut = self._stage(layer.adds)
                extra = self._row(shortcut, shortcut.rows, begin)
            begin, end = 0, (end - begin) * layer.output.width
        elif isinstance(kernel, Pool):
            begin, end = 0, kernel.channels // self.lanes
        elif isinstance(kernel, Dense):
            begin, end = 0, kernel.outputs // (kernel.wide * self.lanes)
        else:  # row 0 would be here, were all rows kept
            out = Place("arena", out.offset - 4 * begin * stage.pitch)
        parameters = Place("weights", self.packed[stage.name][1] if stage.name in self.packed else 0)
        return Step(layer.name, kernel, out, source, parameters, extra, begin, end)

    def _before(self, group: Group, index: int) -> tuple[Stage | None, int]:
        """Returns the stage whose output a stage reads, and how many of its rows are kept."""
        if index:
            return group.stages[index - 1], group.rings[index - 1]
        position = self.stages.index(group.stages[0])
        before = self.stages[position - 1] if position else None
        return before, before.rows if before else 0

    def _stage(self, name: str) -> Stage:
        return next(stage for stage in self.stages if stage.name == name)


def _buffer(stage: Stage, part: int) -> str:
    return f"{stage.name}@{part}" if part else stage.name


def split(step: Step, threads: int, lanes: int) -> list[Step | None]:
    """Returns a step's work for each of several threads, None for one that has nothing to do.

    Pixels or rows are split at whole tiles. A pointwise layer's output channels are split instead where that is as
    even: every thread needs only its own part of the weights then, most of what it reads in the late layers.
    """
    kernel = step.kernel
    grain = kernel.high if isinstance(kernel, Pointwise | Depthwise) else 1
    tiles = (step.end - step.begin) // grain
    edges = [step.begin + grain * min(-(-tiles * n // threads), tiles - 1) for n in range(threads)] + [step.end]
    if isinstance(kernel, Pointwise):
        panels = -(-kernel.vectors // kernel.wide)
        if -(-panels // threads) / panels <= -(-tiles // threads) / tiles:
            return _split_channels(step, kernel, [panels * n // threads for n in range(threads + 1)], lanes)
    return [replace(step, begin=begin, end=end) if begin < end else None for begin, end in pairwise(edges)]


def _split_channels(step: Step, kernel: Pointwise, edges: list[int], lanes: int) -> list[Step | None]:
    """Returns a step cut into panels edges[0]..edges[1], edges[1]..edges[2], …"""
    found: list[Step | None] = []
    for first, after in pairwise(edges):
        vectors = min(after * kernel.wide, kernel.vectors) - first * kernel.wide
        skipped = 4 * first * kernel.wide * lanes
        mine = replace(
            step,
            kernel=replace(kernel, vectors=vectors),
            out=_moved(step.out, skipped),
            parameters=_moved(step.parameters, (1 + kernel.inputs) * skipped),
            extra=_moved(step.extra, skipped) if kernel.adds else step.extra,
        )
        found.append(mine if vectors > 0 else None)
    return found


def _moved(place: Place, offset: int) -> Place:
    return replace(place, offset=place.offset + offset)
