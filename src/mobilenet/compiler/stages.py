"""A network as stages: what one kernel computes, with the rows of its input that rows of its output are made from."""

import math
from typing import NamedTuple

from ..arch import Layer, Network
from .kernel import SIZES, whole
from .targets import Target

STORED = {"f32": "f32", "bf16": "bf16", "int8": "u8"}  # by precision, what activations are in memory


class Stage(NamedTuple):
    """Is a layer, or the scaling of rows that comes before a standard convolution.

    Attributes:
        name: unique, the layer's, with a mark for the scaling.
        layer: the layer.
        scales: whether this is the scaling of the layer's input.
        rows: of the output.
        pitch: numbers in a row of the output as it is stored: whole vectors of channels.
        numbers: that its output is.
    """

    name: str
    layer: Layer
    scales: bool
    rows: int
    pitch: int
    numbers: str

    @property
    def by_rows(self) -> bool:
        """Whether it can be done a few rows at a time."""
        return self.layer.kind in ("conv", "depthwise", "pointwise")

    @property
    def reads_through(self) -> bool:
        """Whether rows of the input are read as one piece of memory, not each by its own address."""
        return self.scales or self.layer.kind == "pointwise"

    @property
    def bytes(self) -> int:
        """Bytes of a row of the output."""
        return self.pitch * SIZES[self.numbers]

    @property
    def size(self) -> int:
        """Bytes of the whole output."""
        return self.rows * self.bytes

    @property
    def macs(self) -> int:
        """Multiply-adds of a row of the output."""
        return 0 if self.scales else math.prod(self.layer.weight_shape or (0,)) * self.layer.output.width

    def needs(self, begin: int, end: int) -> tuple[int, int]:
        """Returns the rows of the input, first and after the last, that rows begin..end of the output are made from."""
        if self.reads_through:
            return begin, end
        if not self.by_rows:
            return 0, self.layer.input.height
        layer, top = self.layer, self.layer.padding[0][0]
        return max(begin * layer.stride - top, 0), min(
            (end - 1) * layer.stride - top + layer.kernel, layer.input.height
        )


def stages(network: Network, target: Target, precision: str) -> list[Stage]:
    """Returns the stages of a network in the order of computation."""
    found: list[Stage] = []
    numbers, unit = STORED[precision], alignment(target, precision)
    for layer in network.layers:
        if layer.kind == "conv":
            width = sum(layer.padding[1]) + layer.input.width
            rows = "u8" if precision == "int8" else "f32"
            pitch = width * input_channels(layer, unit)
            found.append(Stage(f"{layer.name}:rows", layer, True, layer.input.height, pitch, rows))
        pitch = layer.output.width * whole(layer.output.channels, unit)
        stores = "f32" if layer.kind == "dense" else numbers
        found.append(Stage(layer.name, layer, False, layer.output.height, pitch, stores))
    return found


def alignment(target: Target, precision: str) -> int:
    """Returns the channels that are stored together: a vector, and at least a word of 4 bytes of each pixel."""
    return target.lanes if precision != "int8" else min(4 * target.lanes, 16)


def input_channels(layer: Layer, unit: int) -> int:
    """Returns the stored channels of a layer's input; an image's pixels are stored as they come."""
    return layer.input.channels if layer.name == "stem" else whole(layer.input.channels, unit)
