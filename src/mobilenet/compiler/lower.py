"""From a network to a plan: which kernel computes which rows when, and where everything lies. No LLVM, no weights."""

from collections import Counter
from dataclasses import dataclass, replace
from typing import Literal

from ..arch import Network, Shape
from . import dense, depthwise, matrix
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
        steps: all calls for one image in their order; the first ones read pixels, as uint8.
        kernels: each distinct one, those for float32 pixels included.
        packed: for each stage with parameters its kernel and their offset in bytes.
        weights, arena: bytes of the parameters and of all activations; the arena is zeros at first.
        result: where in the arena the last layer's output is.
        stored: its shape there, channels in whole vectors.
    """

    network: Network
    target: Target
    steps: tuple[Step, ...]
    kernels: tuple[Kernel, ...]
    packed: dict[str, tuple[Kernel, int]]
    weights: int
    arena: int
    result: int
    stored: Shape


def lower(network: Network, target: Target, *, fuse: bool = True) -> Plan:
    """Returns the plan of a network; `fuse` False computes stage by stage."""
    return _Lowering(network, target, fuse).plan()


def for_floats(kernel: Kernel) -> Kernel:
    """Returns the kernel that reads float32 pixels where `kernel` reads bytes."""
    return replace(kernel, bytes=False) if isinstance(kernel, Scale) else kernel


class _Lowering:
    def __init__(self, network: Network, target: Target, fuse: bool) -> None:
        self.network, self.target, self.lanes = network, target, target.lanes
        self.stages = stages(network, target.lanes)
        self.groups = groups(self.stages, fuse)
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
        self.offsets, self.arena = place(self._buffers())

    def plan(self) -> Plan:
        steps = tuple(step for group in self.groups for step in self._steps(group))
        distinct = dict.fromkeys(kernel for k in self.kernels.values() for kernel in (k, for_floats(k)))
        last = self.network.layers[-1].output
        return Plan(
            self.network,
            self.target,
            steps,
            tuple(distinct),
            self.packed,
            self.weights,
            self.arena,
            self.offsets[self.stages[-1].name],
            Shape(last.height, last.width, whole(last.channels, self.lanes)),
        )

    # ------------------------------------------------------------------------------------------------------ kernels

    def _kernels(self, group: Group) -> list[tuple[Stage, Kernel]]:
        found: list[tuple[Stage, Kernel]] = []
        for index, stage in enumerate(group.stages):
            ring = group.rings[index - 1] if index else stage.layer.input.height
            counts = tuple(sorted({call.end - call.begin for call in group.calls if call.stage == index}))
            found.append((stage, self._kernel(stage, ring, counts)))
        return found

    def _kernel(self, stage: Stage, ring: int, counts: tuple[int, ...]) -> Kernel:
        layer, lanes = stage.layer, self.lanes
        stored, inputs = whole(layer.output.channels, lanes), input_channels(layer, lanes)
        (top, _), (left, right) = layer.padding
        if stage.scales:
            return Scale(layer.input.width * inputs, stage.pitch, layer.name == self.network.layers[0].name)
        if layer.kind == "conv":
            terms = layer.kernel**2 * inputs
            high, wide = matrix.tile_shape(self.target, (layer.output.width,), stored // lanes, terms)
            row = (left + layer.input.width + right) * inputs
            out = layer.output.width, stored, layer.activation
            return Conv(layer.input.height, ring, row, inputs, layer.kernel, layer.stride, top, *out, high, wide)
        if layer.kind == "depthwise":
            high, wide = depthwise.tile_shape(self.target, layer.kernel, layer.output.width, min(counts))
            return Depthwise(layer.input.height, layer.input.width, ring, stored, layer.kernel, layer.stride, top, left,
                             layer.output.width, layer.activation, high, wide)  # fmt: skip
        if layer.kind == "pointwise":
            pixels = tuple(count * layer.output.width for count in counts)
            high, wide = matrix.tile_shape(self.target, pixels, stored // lanes, layer.input.channels)
            # In strips the weights are in cache after the first; in one go every panel comes from the cache behind L2.
            ahead = matrix.lines_ahead(pixels[0] // high, wide, lanes) if counts == (stage.rows,) else 0
            return Pointwise(
                layer.input.channels, inputs, stored, layer.activation, layer.adds is not None, high, wide, ahead
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
                buffers.append(Buffer(stage.name, 4 * floats, *lifetime))
        return buffers

    def _row(self, stage: Stage, ring: int, row: int) -> Place:
        return Place("arena", self.offsets[stage.name] + 4 * (row % ring) * stage.pitch)

    # -------------------------------------------------------------------------------------------------------- steps

    def _steps(self, group: Group) -> list[Step]:
        return [self._step(group, call) for call in group.calls]

    def _step(self, group: Group, call: Call) -> Step:
        stage, kernel = group.stages[call.stage], self.kernels[group.stages[call.stage].name]
        layer, ring = stage.layer, group.rings[call.stage]
        before, kept = self._before(group, call.stage)
        out = self._row(stage, ring, call.begin)
        source = self._row(before, kept, 0) if before else Place("pixels", 0)
        extra = Place("arena", self.offsets["zeros"])
        begin, end = call.begin, call.end
        if isinstance(kernel, Scale):
            out = Place("arena", out.offset + 4 * layer.padding[1][0] * input_channels(layer, self.lanes))
            source = self._row(before, kept, begin) if before else Place("pixels", begin * kernel.length)
            begin, end = 0, end - begin
        elif isinstance(kernel, Pointwise):
            assert before is not None
            source = self._row(before, kept, begin)
            if layer.adds:
                shortcut = self._stage(layer.adds)
                extra = self._row(shortcut, shortcut.rows, begin)
            begin, end = 0, (end - begin) * layer.output.width
        elif isinstance(kernel, Pool):
            begin, end = 0, kernel.channels // self.lanes
        elif isinstance(kernel, Dense):
            begin, end = 0, kernel.outputs // (kernel.wide * self.lanes)
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
