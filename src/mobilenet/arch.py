"""MobileNet V1 and V2 as the papers' tables, and the flat list of layers that a table, an alpha and a resolution give.

Read in this order: the two tables, `Layer`, `Network`, and the functions `v1` and `v2` that users call; `Conventions`
(every point in which published MobileNets differ) stands in `presets`. Shapes are (height, width, channels) throughout.
Standard library only: no shape, channel count or layer name of a network is written anywhere but here.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import zip_longest
from typing import Any, Literal, NamedTuple, TypeVar

from .common.checks import boolean, choice, exact_fields, fields, integer, number, refuse_unknown, short
from .common.frozen import frozen
from .errors import UsageError
from .presets import NOT_STORED, Padding, nearest_multiple
from .presets import SCALINGS as SCALINGS
from .presets import Conventions as Conventions
from .presets import Family as Family
from .presets import conventions as conventions
from .presets import scale_channels as scale_channels
from .presets import sources as sources

Kind = Literal["conv", "depthwise", "pointwise", "average_pool", "max_pool", "dense"]
Activation = Literal["relu", "relu6", "linear"]
Pooling = Literal["avg", "max"]
Pads = tuple[tuple[int, int], tuple[int, int]]


# ---------------------------------------------------------------------------------------------- the papers' tables


class Separable(NamedTuple):
    """Is a line of V1's Table 1: `repeats` depthwise separable convolutions to `channels`, the first with `stride`."""

    channels: int
    repeats: int
    stride: int


class Bottleneck(NamedTuple):
    """Is a line of V2's Table 2: `repeats` inverted residuals, expansion t, to `channels`, the first with `stride`."""

    expansion: int
    channels: int
    repeats: int
    stride: int


STEM_CHANNELS = 32  # both papers: a 3x3 convolution with stride 2
V1_HEAD_CHANNELS = 1024  # of timm's 100h
V2_HEAD_CHANNELS = 1280

# arXiv 1704.04861, Table 1. The print gives the last depthwise layer stride 2 with a 7x7 input and a 7x7 output; only
# stride 1 gives the paper's own 569M multiply-adds (`Conventions.last_stride`).
V1_TABLE = (
    Separable(64, 1, 1),
    Separable(128, 2, 2),
    Separable(256, 2, 2),
    Separable(512, 6, 2),
    Separable(1024, 2, 2),
)

# arXiv 1801.04381, Table 2 (the first version of the preprint had the strides of the 64 and 96 lines swapped).
V2_TABLE = (
    Bottleneck(1, 16, 1, 1),
    Bottleneck(6, 24, 2, 2),
    Bottleneck(6, 32, 3, 2),
    Bottleneck(6, 64, 4, 2),
    Bottleneck(6, 96, 3, 1),
    Bottleneck(6, 160, 3, 2),
    Bottleneck(6, 320, 1, 1),
)

Line = TypeVar("Line", Separable, Bottleneck)

STRIDED_LAYERS = 5  # both tables halve the resolution five times: 224 -> 7


# ---------------------------------------------------------------------------------------------- layers and networks


class Shape(NamedTuple):
    """Is the shape of one image's activations: height, width, channels."""

    height: int
    width: int
    channels: int

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.height * self.width * self.channels


@frozen
class Layer:
    """Is one layer with every shape: a convolution with its batch norm and activation, a pooling, or the classifier.

    Attributes:
        name: unique, the prefix of its tensors: "stem", "block3.expand", "block3.depthwise", "classifier", …
        kind: "conv" (standard), "depthwise", "pointwise" (1x1), "average_pool", "max_pool" or "dense".
        block: index of the block the layer belongs to; None for stem, head, pool and classifier.
        input, output: shapes of one image before and after.
        kernel: side of the square kernel.
        stride: in both directions.
        padding: ((top, bottom), (left, right)) rows and columns of zeros that the outputs do read.
        activation: "relu", "relu6" or "linear", after batch norm.
        batch_norm: whether batch norm follows.
        bias: whether the layer has a bias of its own.
        adds: name of the layer whose output is added to this one's (V2's shortcut between bottlenecks), or None.
    """

    name: str
    kind: Kind
    block: int | None
    input: Shape
    output: Shape
    kernel: int = 1
    stride: int = 1
    padding: Pads = ((0, 0), (0, 0))
    activation: Activation = "linear"
    batch_norm: bool = False
    bias: bool = False
    adds: str | None = None

    @property
    def group(self) -> str:
        """Name of the layer's block, or of the layer where it belongs to none."""
        return self.name.partition(".")[0]

    @cached_property
    def weight_shape(self) -> tuple[int, ...] | None:
        """Shape of the weight: conv [k, k, in, out], depthwise [k, k, channels], pointwise and dense [in, out]."""
        ins, outs = self.input.channels, self.output.channels
        match self.kind:
            case "conv":
                return (self.kernel, self.kernel, ins, outs)
            case "depthwise":
                return (self.kernel, self.kernel, outs)
            case "pointwise" | "dense":
                return (ins, outs)
            case _:
                return None

    @cached_property
    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of each tensor of the layer, in the order of the file."""
        if self.weight_shape is None:
            return {}
        channels = (self.output.channels,)
        found = {f"{self.name}.weight": self.weight_shape}
        if self.bias:
            found[f"{self.name}.bias"] = channels
        if self.batch_norm:
            found |= {f"{self.name}.{part}": channels for part in BATCH_NORM}
        return found


BATCH_NORM = ("gamma", "beta", "mean", "variance")
STATISTICS = ("mean", "variance")  # the tensors that training does not learn


@frozen
class Network:
    """Is one member of the families: what was asked for, and from it every layer with every shape. Holds no weights.

    Attributes:
        family: "v1" or "v2".
        alpha: the width multiplier, > 0.
        height, width: of the input in pixels, from 32 up, odd and non-square allowed.
        channels: of the input, 3 for colour photos.
        classes: outputs of the classifier.
        include_top: with average pooling and classifier; without, the output is the last feature map.
        pooling: without the top: None keeps the feature map, "avg" or "max" reduces it to a vector.
        downsampling: input side over last feature map's side: 32 as in the papers; 16, 8, 4, 2 or 1 make the first
            strided layers keep the resolution, which suits small photos (8 for 32x32).
        separable: False gives the twin in which one standard convolution stands for each depthwise layer and the
            pointwise layer after it (the V1 paper's "Conv MobileNet", Table 4).
        conventions: see `Conventions`.
    """

    family: Family
    alpha: float
    height: int
    width: int
    channels: int
    classes: int
    include_top: bool
    pooling: Pooling | None
    downsampling: int
    separable: bool
    conventions: Conventions

    def __post_init__(self) -> None:
        choice("family", self.family, ("v1", "v2"))
        number("alpha", self.alpha, 0.0, 1e6, open_low=True)
        integer("height", self.height, MIN_RESOLUTION, MAX_RESOLUTION)
        integer("width", self.width, MIN_RESOLUTION, MAX_RESOLUTION)
        integer("channels", self.channels, 1, 1024)
        integer("classes", self.classes, 1, MAX_CLASSES)
        boolean("include_top", self.include_top)
        choice("pooling", self.pooling, (None, "avg", "max"))
        if self.include_top and self.pooling is not None:
            raise UsageError(
                f"pooling: {self.pooling!r} only applies without the top (include_top=False); leave it out, "
                "the classifier always follows average pooling"
            )
        choice("downsampling", self.downsampling, tuple(2**n for n in range(STRIDED_LAYERS, -1, -1)))
        boolean("separable", self.separable)
        if not isinstance(self.conventions, Conventions):
            raise UsageError(
                f"conventions: got {self.conventions!r}, needed a Conventions; see mobilenet.conventions()"
            )
        for layer in self.layers:
            if layer.kind != "dense" and layer.output.channels > MAX_WIDTH:
                raise UsageError(
                    f"alpha: {self.alpha} makes layer {layer.name!r} {layer.output.channels} channels wide; "
                    f"the limit is {MAX_WIDTH}"
                )

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """The layers in the order of computation."""
        return tuple(_Builder(self).layers())

    @cached_property
    def by_name(self) -> dict[str, Layer]:
        """The layers by name."""
        return {layer.name: layer for layer in self.layers}

    @cached_property
    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor, in the order of the layers: what a file of weights must hold, exactly."""
        return {name: shape for layer in self.layers for name, shape in layer.tensors.items()}

    @property
    def input(self) -> Shape:
        """Shape of one input image."""
        return Shape(self.height, self.width, self.channels)

    @property
    def output(self) -> Shape:
        """Shape of one image's output: (1, 1, classes) with the top."""
        return self.layers[-1].output

    @cached_property
    def taps(self) -> dict[int, str]:
        """For each stride (input side over feature map side) the last block output, or stem, at that resolution.

        V2's tap at the last stride is the output of the last bottleneck (320 channels), not of the 1x1 head.
        """
        found: dict[int, str] = {}
        stride = 1
        for layer, after in zip_longest(self.layers, self.layers[1:]):
            stride *= layer.stride
            ends_block = layer.block is not None and (after is None or after.block != layer.block)
            if ends_block or layer.name == "stem":
                found[stride] = layer.name
        return found

    def replace(self, **changes: Any) -> "Network":
        """Returns the same network with some fields changed, checked and derived anew."""
        refuse_unknown("network", changes, fields(Network))
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as plain data, the inverse of `from_dict`, but for `NOT_STORED`."""
        rules = dataclasses.asdict(self.conventions)
        stored = {name: value for name, value in rules.items() if (name, value) not in NOT_STORED.items()}
        return dataclasses.asdict(self) | {"conventions": stored}

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> "Network":
        """Builds a network from `to_dict`'s data: all fields given but for `NOT_STORED`, none unknown.

        Raises:
            UsageError: names the field that is missing, unknown (with the nearest known one) or outside its rule.
        """
        given = exact_fields("network", data, Network)
        conv = Conventions(**exact_fields("conventions", given["conventions"], Conventions, NOT_STORED))
        return Network(**given | {"conventions": conv})

    def __str__(self) -> str:
        top = f"{self.classes} classes" if self.include_top else "no top"
        kind = "" if self.separable else " of standard convolutions"
        depth = "" if self.conventions.depth == 1 else f" depth {self.conventions.depth:g}"
        size = f"{self.height}x{self.width}x{self.channels}"
        return f"MobileNet{self.family.upper()}{kind} alpha {self.alpha:g}{depth} {size} {top}"


MIN_RESOLUTION = 32
MAX_RESOLUTION = 8192
MAX_CLASSES = 1_000_000
MAX_WIDTH = 1 << 16


def v1(
    alpha: float = 1.0,
    resolution: int | tuple[int, int] = 224,
    classes: int | None = None,
    *,
    channels: int = 3,
    include_top: bool = True,
    pooling: Pooling | None = None,
    downsampling: int = 32,
    separable: bool = True,
    conventions: str | Conventions = "paper",
) -> Network:
    """Describes a MobileNet V1 (arXiv 1704.04861, Table 1).

    Args:
        alpha: the width multiplier; the paper's are 1, 0.75, 0.5, 0.25.
        resolution: of the input, one side or (height, width), from 32 up; the paper's are 224, 192, 160, 128.
        classes: outputs of the classifier; None for ImageNet's 1000, or 1001 where the source has a background class.
        conventions: the name of a source (`sources("v1")`) or a `Conventions`.
        channels, include_top, pooling, downsampling, separable: see `Network`.

    Raises:
        UsageError: names the argument, its value and the rule.
    """
    return _network(
        "v1", alpha, resolution, classes, channels, include_top, pooling, downsampling, separable, conventions
    )


def v2(
    alpha: float = 1.0,
    resolution: int | tuple[int, int] = 224,
    classes: int | None = None,
    *,
    channels: int = 3,
    include_top: bool = True,
    pooling: Pooling | None = None,
    downsampling: int = 32,
    separable: bool = True,
    conventions: str | Conventions = "paper",
) -> Network:
    """Describes a MobileNet V2 (arXiv 1801.04381, Table 2).

    Args:
        alpha: the width multiplier; published are 1.4, 1.3, 1, 0.75, 0.5, 0.35.
        resolution: of the input, one side or (height, width), from 32 up; published are 224, 192, 160, 128, 96.
        classes: outputs of the classifier; None for ImageNet's 1000, or 1001 where the source has a background class.
        conventions: the name of a source (`sources("v2")`) or a `Conventions`.
        channels, include_top, pooling, downsampling, separable: see `Network`.

    Raises:
        UsageError: names the argument, its value and the rule.
    """
    return _network(
        "v2", alpha, resolution, classes, channels, include_top, pooling, downsampling, separable, conventions
    )


def _network(
    family: Family,
    alpha: float,
    resolution: int | tuple[int, int],
    classes: int | None,
    channels: int,
    include_top: bool,
    pooling: Pooling | None,
    downsampling: int,
    separable: bool,
    conv: str | Conventions,
) -> Network:
    if isinstance(resolution, int):
        integer("resolution", resolution, MIN_RESOLUTION, MAX_RESOLUTION)
        resolution = (resolution, resolution)
    if not (isinstance(resolution, tuple | list) and len(resolution) == 2):
        raise UsageError(f"resolution: got {resolution!r}, needed one side or (height, width) in pixels")
    chosen = conventions(family, conv) if isinstance(conv, str) else conv
    if classes is None:
        classes = 1001 if isinstance(chosen, Conventions) and chosen.background else 1000
    return Network(
        family=family,
        alpha=alpha,
        height=resolution[0],
        width=resolution[1],
        channels=channels,
        classes=classes,
        include_top=include_top,
        pooling=pooling,
        downsampling=downsampling,
        separable=separable,
        conventions=chosen,
    )


def blocks(table: Sequence[Line], conv: Conventions) -> list[tuple[int, int, Line]]:
    """Returns for each block the number of its line of the table, its place in the line, and the line."""
    found = []
    for place, line in enumerate(table):
        deeper = conv.depth if 0 < place < len(table) - 1 else 1
        found += [(place, repeat, line) for repeat in range(math.ceil(line.repeats * deeper))]
    return found


class _Builder:
    """Lays the table's rows out as layers, carrying the shape from each to the next."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.conv = network.conventions
        self.shape = network.input
        self.built: list[Layer] = []
        self.kept_strides = STRIDED_LAYERS - int(math.log2(network.downsampling))  # strided layers still to flatten

    def layers(self) -> list[Layer]:
        stem = STEM_CHANNELS if self.conv.fixed_stem else self._width(STEM_CHANNELS, in_block=False)
        self._convolve("stem", "conv", None, stem, 3, self._stride(2))
        if self.network.family == "v1":
            self._v1_blocks()
        else:
            self._v2_blocks()
        if self.network.family == "v2" or self.conv.head_conv:
            self._convolve("head", "pointwise", None, self._head_width())
        self._top()
        return self.built

    def _v1_blocks(self) -> None:
        rows = blocks(V1_TABLE, self.conv)
        for index, (_, repeat, row) in enumerate(rows):
            stride = self._stride(1 if repeat else row.stride) if index < len(rows) - 1 else self.conv.last_stride
            self._separable(index, "pointwise", self._width(row.channels), stride, self.conv.activation)

    def _v2_blocks(self) -> None:
        for index, (_, repeat, row) in enumerate(blocks(V2_TABLE, self.conv)):
            stride = self._stride(1 if repeat else row.stride)
            keeps_width = self.conv.fixed_stem and not self.conv.scaled_first and index == 0
            channels = row.channels if keeps_width else self._width(row.channels)
            adds = stride == 1 and self.shape.channels == channels and (index > 0 or self.conv.first_shortcut)
            shortcut = self.built[-1].name if adds else None
            expanded = row.expansion * self.shape.channels
            if self.conv.round_expansion and row.expansion > 1:
                expanded = nearest_multiple(expanded, self.conv)
            if row.expansion > 1 or self.conv.expand_first:
                self._convolve(f"block{index}.expand", "pointwise", index, expanded)
            self._separable(index, "project", channels, stride, "linear", shortcut)

    def _separable(
        self, block: int, second: str, channels: int, stride: int, activation: Activation, adds: str | None = None
    ) -> None:
        """Appends depthwise and pointwise, or the standard convolution that stands for both in the twin."""
        if self.network.separable:
            self._convolve(f"block{block}.depthwise", "depthwise", block, self.shape.channels, 3, stride)
            self._convolve(f"block{block}.{second}", "pointwise", block, channels, activation=activation, adds=adds)
        else:
            self._convolve(f"block{block}.conv", "conv", block, channels, 3, stride, activation, adds)

    def _convolve(
        self,
        name: str,
        kind: Kind,
        block: int | None,
        channels: int,
        kernel: int = 1,
        stride: int = 1,
        activation: Activation | None = None,
        adds: str | None = None,
    ) -> None:
        corner = self.conv.padding == "bottom_right" and kind == "depthwise" and stride == 2
        height, vertical = _convolved(self.shape.height, kernel, stride, self.conv.padding, corner)
        width, horizontal = _convolved(self.shape.width, kernel, stride, self.conv.padding, corner)
        if height < 1 or width < 1:
            raise UsageError(
                f"height, width: {self.network.height}x{self.network.width} leaves layer {name!r} no output; "
                "take a larger resolution or a smaller downsampling"
            )
        self._append(
            Layer(
                name,
                kind,
                block,
                self.shape,
                Shape(height, width, channels),
                kernel,
                stride,
                (vertical, horizontal),
                activation or self.conv.activation,
                batch_norm=True,
                bias=self.conv.conv_bias,
                adds=adds,
            )
        )

    def _top(self) -> None:
        pooled = Shape(1, 1, self.shape.channels)
        if self.network.include_top:
            self._append(Layer("pool", "average_pool", None, self.shape, pooled))
            self._append(Layer("classifier", "dense", None, pooled, Shape(1, 1, self.network.classes), bias=True))
        elif self.network.pooling is not None:
            kind: Kind = "average_pool" if self.network.pooling == "avg" else "max_pool"
            self._append(Layer("pool", kind, None, self.shape, pooled))

    def _append(self, layer: Layer) -> None:
        self.built.append(layer)
        self.shape = layer.output

    def _width(self, channels: int, *, in_block: bool = True) -> int:
        return scale_channels(channels, self.network.alpha, self.conv, in_block=in_block)

    def _head_width(self) -> int:
        rule = self.conv.scale_head
        scaled = rule == "always" or (rule == "above_one" and self.network.alpha > 1)
        channels = V1_HEAD_CHANNELS if self.network.family == "v1" else V2_HEAD_CHANNELS
        return self._width(channels, in_block=False) if scaled else channels

    def _stride(self, stride: int) -> int:
        """Returns the table's stride, or 1 for as many of the first strided layers as `downsampling` flattens."""
        if stride == 2 and self.kept_strides > 0:
            self.kept_strides -= 1
            return 1
        return stride


def need_network(network: object) -> None:
    """Raises a UsageError unless this is a network."""
    if not isinstance(network, Network):
        raise UsageError(f"network: got {short(network)}, needed a Network, as v1(...) and v2(...) return")


def _convolved(size: int, kernel: int, stride: int, padding: Padding, corner: bool) -> tuple[int, tuple[int, int]]:
    """Returns the output size in one direction and the (before, after) zeros that the outputs do read."""
    if padding == "symmetric":
        before = (kernel - 1) // 2
        out = (size + 2 * before - kernel) // stride + 1
    elif corner:
        before = 0
        out = (size + 1 - kernel) // stride + 1
    else:
        out = -(-size // stride)
        before = max((out - 1) * stride + kernel - size, 0) // 2
    return out, (before, max((out - 1) * stride + kernel - size - before, 0))
