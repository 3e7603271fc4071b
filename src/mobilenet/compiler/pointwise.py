"""Pointwise convolution: the product of [pixels, inputs] and [inputs, outputs], with bias, activation and shortcut."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import matrix
from .kernel import Kernel

if TYPE_CHECKING:
    from .ir import Code, Index, Pointer


@dataclass(frozen=True)
class Pointwise(Kernel):
    """Is the kernel; called with pixels begin..end, at least `high` of them.

    Attributes:
        inputs: channels that are read of each pixel.
        stride: channels that are stored of each pixel of the input, from one to the next.
        outputs: channels that are stored of the output: whole vectors.
        vectors: of output channels that are computed.
        activation: as of a `Layer`.
        adds: whether `extra`, laid out as the output, is added after the activation.
        high, wide: the register tile: pixels and vectors.
        ahead: cache lines of the next panel's weights to ask for in each round of the loop over inputs; 0 for none.
    """

    inputs: int
    stride: int
    outputs: int
    vectors: int
    activation: str
    adds: bool
    high: int
    wide: int
    ahead: int

    @property
    def parameters(self) -> int:
        """Floats that it reads of its parameters."""
        return (1 + self.inputs) * self.outputs

    def emit(self, code: "Code") -> None:
        """Writes the kernel."""
        source = code.source.shaped(self.stride, 1)
        out, shortcut = code.out.shaped(self.outputs, 1), code.extra.shaped(self.outputs, 1)

        def panel(channel: "Index", parameters: "Pointer", wide: int) -> None:
            def tile(pixel: "Index") -> None:
                piece = source.at(pixel).shaped(self.stride, 1)
                ahead = None
                if self.ahead:
                    size = (1 + self.inputs) * wide * code.lanes
                    ahead = matrix.ahead_of(parameters, size, self.inputs, pixel, self.high, self.ahead)
                sums = matrix.tile(code, self.high, wide, [piece], self.inputs, parameters, ahead)
                for p, row in enumerate(sums):
                    for v, value in enumerate(row):
                        place = (code.sum(pixel, p), code.sum(channel, v * code.lanes))
                        value = code.activate(value, self.activation)
                        if self.adds:
                            value = code.add(value, shortcut.at(*place).load())
                        out.at(*place).store(value)

            code.tiles(code.begin, code.end, self.high, tile)

        matrix.for_panels(code, self.vectors, self.wide, self.inputs, panel)
