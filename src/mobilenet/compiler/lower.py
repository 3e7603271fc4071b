"""From a network to a plan: which kernel computes which rows when, and where everything lies. No LLVM, no weights."""

from collections import Counter

from ..arch import Layer, Network, Shape
from ..errors import UsageError
from . import dense, depthwise, depthwise_bytes, matrix, tiled
from .conv import Conv
from .dense import Dense
from .depthwise import Depthwise
from .kernel import SIZES, Kernel, in_word, multiplies_matrices, takes_pairs, whole
from .memory import ALIGNMENT, Buffer, place
from .plan import Fill, Integers, Place, Plan, Step, for_floats
from .pointwise import Pointwise
from .pool import Pool
from .scale import Scale
from .schedule import Call, Group, groups
from .shares import split
from .shortcut import Shortcut
from .softmax import Softmax
from .stages import STORED, Stage, alignment, input_channels, stages
from .targets import Target
from .tiled import Tiled, TiledConv


def lower(
    network: Network,
    target: Target,
    *,
    precision: str = "f32",
    integers: Integers | None = None,
    fuse: bool = True,
    threads: int = 1,
    cache: int | None = None,
    softmax: bool = False,
) -> Plan:
    """Returns the plan of a network for one image on so many threads; `fuse` False computes stage by stage.

    Args:
        precision: "f32", "bf16" (activations and the weights of products of matrices), or "int8".
        integers: with int8, what the code depends on.
        cache: bytes that may be kept between the layers of a fused block, None for what suits a server.
        softmax: whether the plan ends with probabilities, not logits.

    Raises:
        UsageError: a softmax is asked for, and the network has no classifier.
    """
    if softmax and network.layers[-1].kind != "dense":
        raise UsageError(f"softmax: {network} has no classifier, whose logits it needs; leave it out")
    return _Lowering(network, target, precision, integers or Integers(), fuse, threads, cache, softmax).plan()


class _Lowering:
    def __init__(
        self,
        network: Network,
        target: Target,
        precision: str,
        integers: Integers,
        fuse: bool,
        threads: int,
        cache: int | None,
        softmax: bool,
    ) -> None:
        self.network, self.target, self.lanes, self.threads = network, target, target.lanes, threads
        self.precision, self.integers, self.softmax = precision, integers, softmax
        self.unit = alignment(target, precision)
        self.stages = stages(network, target, precision)
        self.by_name = {stage.name: stage for stage in self.stages}
        self.groups = groups(self.stages, fuse, threads, cache)
        self.kernels = {stage.name: kernel for group in self.groups for stage, kernel in self._kernels(group)}
        self.packed: dict[str, tuple[Kernel, int]] = {}
        self.weights = 0
        for name, kernel in self.kernels.items():
            if kernel.parameters:
                self.packed[name] = kernel, self.weights
                self.weights += -(-4 * kernel.parameters // ALIGNMENT) * ALIGNMENT
        self.zeros: dict[tuple[int, ...], int] = {}  # for each pattern, the bytes of the longest row of it
        for stage in self.stages:
            size = stage.bytes if stage.scales else stage.layer.input.width * self._input_bytes(stage.layer)
            self.zeros[self._zero(stage)] = max(self.zeros.get(self._zero(stage), 0), size)
        self.buffers = self._buffers()
        self.offsets, self.arena = place(self.buffers)

    def _input_bytes(self, layer: Layer) -> int:
        return SIZES[STORED[self.precision]] * whole(layer.input.channels, self.unit)

    def _zero(self, stage: Stage) -> tuple[int, ...]:
        """Returns what zero is in a stage's input; channels that only fill vectors up are 0 everywhere."""
        layer, zero = stage.layer, self.integers.zeros.get(stage.layer.name, (0,))
        more = input_channels(layer, self.unit) - layer.input.channels
        return zero * layer.input.channels + (0,) * more if layer.kind == "conv" and more and zero[0] else zero

    def plan(self) -> Plan:
        parts: list[list[Step | None]] = [[] for _ in range(self.threads)]
        before: Stage | None = None
        by_channels = False
        for group in self.groups:
            found = self._steps(group, before, by_channels=by_channels)
            for part, steps in zip(parts, found, strict=True):
                part += steps
                part += [None] * (self.threads > 1)
            before = group.stages[-1]
            kernels = [step.kernel for steps in found for step in steps if step.layer == before.name]
            by_channels = any(isinstance(each, Pointwise) and each != self.kernels[before.name] for each in kernels)
        if self.softmax:
            parts[0].append(self._probabilities())
            parts = [[*part, *[None] * (self.threads > 1)] for part in parts]
        used = {step.kernel.name: step.kernel for part in parts for step in part if step}
        distinct = {kernel.name: kernel for k in used.values() for kernel in (k, for_floats(k))}
        last = self.network.layers[-1].output
        padded = {stage.name: self._zero(stage) for stage in self.stages if stage.scales}
        patterns = {**padded, **{_zeros(pattern): pattern for pattern in self.zeros}}
        fills = [
            Fill(self.offsets[buffer.name], buffer.bytes, patterns[name])
            for buffer in self.buffers
            if any(patterns.get(name := buffer.name.partition("@")[0], ()))
        ]
        return Plan(
            self.network,
            self.target,
            self.precision,
            tuple(map(tuple, parts)),
            tuple(distinct.values()),
            self.packed,
            self.weights,
            self.arena,
            tuple(fills),
            tuple((self.offsets[b.name], b.bytes) for b in self.buffers if (b.first, b.last) == (0, len(self.groups))),
            self.offsets[_SOFTMAX if self.softmax else self.stages[-1].name],
            Shape(last.height, last.width, whole(last.channels, self.unit)),
            self.stages[-1].numbers,
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
        layer, lanes, numbers = stage.layer, self.lanes, STORED[self.precision]
        stored, inputs = whole(layer.output.channels, self.unit), input_channels(layer, self.unit)
        vectors, words = stored // lanes, -(-layer.input.channels // in_word(numbers, self.target))
        ending = self.integers.endings.get(layer.name, layer.activation)
        nine = layer.name in self.integers.nine and in_word(numbers, self.target) == 4
        (top, _), (left, right) = layer.padding
        if stage.scales:
            first = layer.name == self.network.layers[0].name
            scaled = first and self.precision != "int8"
            return Scale(layer.input.width * inputs, stage.pitch, "u8" if first else numbers, stage.numbers, scaled)
        if layer.kind == "conv":
            width = layer.output.width
            reads = "u8" if self.precision == "int8" else "f32"
            words = -(-layer.kernel * inputs // in_word(reads, self.target))
            tiles = multiplies_matrices(reads, self.target)
            sizes = width, (width,), vectors, layer.kernel * words
            high, wide = matrix.tile_shape(self.target, reads, *sizes, overlap=True)
            if tiles:
                high, wide, _, _, depth = tiled.shape((width,), min(vectors, 4), words, words, tall=1)
            if layer.adds:  # to what is there, which is gone once a tile is done
                high = next(least for least in range(high, 0, -1) if width % least == 0)
            row = (left + layer.input.width + right) * inputs
            shape = layer.input.height, ring, row, inputs, layer.kernel, layer.stride, top, width, stored
            facts = reads, numbers, *shape, ending, layer.adds is not None, high, wide, words, nine
            return TiledConv(*facts, depth) if tiles else Conv(*facts)
        if layer.kind == "depthwise":
            high, wide = depthwise.tile_shape(self.target, layer.kernel, layer.output.width, min(counts))
            rows = layer.input.width, (high - 1) * layer.stride + layer.kernel, layer.output.width, high
            by_columns = depthwise.by_columns(stored * SIZES[numbers], *rows)
            across = layer.output.width, ending, self._zero(stage)[0], layer.name in self.integers.large, by_columns
            down = layer.input.height, layer.input.width, ring, stored, vectors, layer.kernel, layer.stride, top, left
            found = Depthwise(numbers, *down, *across, high, wide)
            if numbers == "u8" and depthwise_bytes.fits(found, self.target):
                return depthwise_bytes.of(found, self.target, min(counts), nine=nine)
            return found
        if layer.kind == "pointwise":
            pixels = tuple(count * layer.output.width for count in counts)
            whole_map = layer.output.height * layer.output.width
            adds = layer.adds is not None
            if multiplies_matrices(numbers, self.target):
                room = inputs * SIZES[numbers] // 4
                high, wide, tall, words, depth = tiled.shape(pixels, vectors, words, room)
                ahead = tiled.lines_ahead(-(-pixels[0] // high), depth, wide) if counts == (stage.rows,) else 0
                tile = high, wide, ahead, tall, depth
                return Tiled(numbers, words, inputs, stored, vectors, ending, adds, nine, False, *tile)
            paired = takes_pairs(numbers, self.target, words, layer.output.channels)
            high, wide = matrix.tile_shape(self.target, numbers, whole_map, pixels, vectors, words, paired=paired)
            # In strips the weights are in cache after the first; in one go every panel comes from the cache behind L2.
            ahead = matrix.lines_ahead(pixels[0] // high, wide, lanes) if counts == (stage.rows,) else 0
            return Pointwise(numbers, words, inputs, stored, vectors, ending, adds, nine, paired, high, wide, ahead)
        if layer.kind == "dense":
            wide = dense.panel_width(layer.output.channels, lanes)
            return Dense(numbers, words, ending, nine, whole(layer.output.channels, wide * lanes), wide)
        return Pool(numbers, layer.kind, ending, layer.input.height * layer.input.width, stored)

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
        buffers = [Buffer(_zeros(pattern), size + ALIGNMENT, 0, end) for pattern, size in self.zeros.items()]
        for number, group in enumerate(self.groups):
            for stage, ring in zip(group.stages, group.rings, strict=True):
                kernel = self.kernels[stage.name]
                size = 4 * kernel.outputs if isinstance(kernel, Dense) else ring * stage.bytes
                size += ALIGNMENT * (stage.numbers == "u8")  # words of bytes may be read beyond the last
                lifetime = (0, end) if stage.scales else (number, last_use[stage.name])  # its zeros are never rewritten
                for part in range(len(group.parts) if stage is not group.stages[-1] else 1):
                    buffers.append(Buffer(_buffer(stage, part), size, *lifetime))
        if self.softmax:
            buffers.append(Buffer(_SOFTMAX, self.stages[-1].bytes, end, end))
        return buffers

    def _row(self, stage: Stage, ring: int, row: int, part: int = 0) -> Place:
        return Place("arena", self.offsets[_buffer(stage, part)] + (row % ring) * stage.bytes)

    # -------------------------------------------------------------------------------------------------------- steps

    def _steps(self, group: Group, before: Stage | None, *, by_channels: bool) -> list[list[Step]]:
        """Returns the steps of a group for each thread; `before` is the stage that its first one reads, `by_channels`
        whether that was split over the threads by channels."""  # fmt: skip
        parts = [
            [
                step
                for call in calls
                for step in self._with_shortcut(group.stages[call.stage], self._step(group, before, call, n))
            ]
            for n, calls in enumerate(group.parts)
        ]
        if self.threads == 1 or len(parts) > 1:
            return parts
        shares = [split(step, self.threads, self.lanes, by_channels=by_channels) for step in parts[0]]
        return [[step for share in column for step in share] for column in zip(*shares, strict=True)]

    def _with_shortcut(self, stage: Stage, step: Step) -> list[Step]:
        """Returns the step, and before a standard convolution that of its shortcut."""
        if not isinstance(step.kernel, Conv) or not stage.layer.adds:
            return [step]
        shortcut = self.by_name[stage.layer.adds]
        kernel = Shortcut(stage.numbers, stage.pitch)
        return [step._replace(kernel=kernel, extra=self._row(shortcut, shortcut.rows, 0)), step]

    def _step(self, group: Group, before: Stage | None, call: Call, part: int) -> Step:
        stage, kernel = group.stages[call.stage], self.kernels[group.stages[call.stage].name]
        layer, begin, end = stage.layer, call.begin, call.end
        last = call.stage == len(group.stages) - 1
        kept = before.rows if before else 0
        if call.stage:
            before, kept = group.stages[call.stage - 1], group.rings[call.stage - 1]
        out = self._row(stage, group.rings[call.stage], begin, 0 if last else part)
        source = self._row(before, kept, 0, part if call.stage else 0) if before else Place("pixels", 0)
        extra = Place("arena", self.offsets[_zeros(self._zero(stage))])
        if isinstance(kernel, Scale):
            left = layer.padding[1][0] * input_channels(layer, self.unit)
            out = Place("arena", out.offset + SIZES[stage.numbers] * left)
            mine = part if call.stage else 0
            source = self._row(before, kept, begin, mine) if before else Place("pixels", begin * kernel.length)
            begin, end = 0, end - begin
        elif isinstance(kernel, Pointwise):
            assert before is not None
            source = self._row(before, kept, begin, part if call.stage else 0)
            if layer.adds:
                shortcut = self.by_name[layer.adds]
                extra = self._row(shortcut, shortcut.rows, begin)
            begin, end = 0, (end - begin) * layer.output.width
        elif isinstance(kernel, Pool):
            begin, end = 0, kernel.channels // self.lanes
        elif isinstance(kernel, Dense):
            begin, end = 0, kernel.outputs // (kernel.wide * self.lanes)
        else:  # row 0 would be here, were all rows kept
            out = Place("arena", out.offset - begin * stage.bytes)
        parameters = Place("weights", self.packed[stage.name][1] if stage.name in self.packed else 0)
        return Step(layer.name, kernel, out, source, parameters, extra, begin, end)

    def _probabilities(self) -> Step:
        """Returns the step that comes last where probabilities are asked for."""
        layer, unused = self.network.layers[-1], Place("weights", 0)
        logits, out = (Place("arena", self.offsets[name]) for name in (layer.name, _SOFTMAX))
        return Step(layer.name, Softmax(layer.output.channels), out, logits, unused, unused, 0, 1)


_SOFTMAX = ":softmax"  # a buffer's name that no layer has


def _zeros(pattern: tuple[int, ...]) -> str:
    return f"zeros {pattern}"


def _buffer(stage: Stage, part: int) -> str:
    return f"{stage.name}@{part}" if part else stage.name
