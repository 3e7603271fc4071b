"""Standard convolution: for each row of the kernel a product of matrices, of pixels that overlap in memory.

The k columns of a kernel and their channels lie behind one another in a row of the input, so a pixel of the output is a
sum over k runs of k·channels values; at stride s its neighbour's runs begin s·channels later.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import matrix
from .kernel import Kernel

if TYPE_CHECKING:
    from .ir import Code, Index, Pointer


@dataclass(frozen=True)
class Conv(Kernel):
    """Is the kernel; called with rows begin..end of the output; `extra` is a row of zeros.

    The input's rows have their zeros on both sides, made by `Scale`.

    Attributes:
        height: rows of the input.
        ring: rows of the input that are kept, row r at r mod ring.
        row: values in a row of the input, the zeros on both sides included.
        channels: of the input.
        kernel, stride, top: the kernel's side, the stride, rows of zeros above the input.
        width, outputs: of the output.
        activation: as of a `Layer`.
        high, wide: the register tile: pixels, at most `width`, and vectors.
    """

    height: int
    ring: int
    row: int
    channels: int
    kernel: int
    stride: int
    top: int
    width: int
    outputs: int
    activation: str
    high: int
    wide: int

    @property
    def parameters(self) -> int:
        """Floats that it reads of its parameters."""
        return (1 + self.kernel**2 * self.channels) * self.outputs

    def emit(self, code: "Code") -> None:
        """Writes the kernel."""
        step, length = self.stride * self.channels, self.kernel * self.channels
        source = code.source.shaped(self.row, 1)

        def row(y: "Index") -> None:
            first = code.sum(code.product(y, self.stride), -self.top)
            rows = [
                code.row(source, code.sum(first, i), self.height, self.ring, code.extra) for i in range(self.kernel)
            ]
            out = code.out.shaped(self.width * self.outputs, self.outputs, 1).at(y)

            def panel(channel: "Index", parameters: "Pointer", wide: int) -> None:
                def tile(x: "Index") -> None:
                    pieces = [r.shaped(step).at(x).shaped(step, 1) for r in rows]
                    for p, sums in enumerate(matrix.tile(code, self.high, wide, pieces, length, parameters)):
                        for v, value in enumerate(sums):
                            place = out.at(code.sum(x, p), code.sum(channel, v * code.lanes))
                            place.store(code.activate(value, self.activation))

                code.tiles(0, self.width, self.high, tile)

            matrix.for_panels(code, self.outputs // code.lanes, self.wide, self.kernel * length, panel)

        code.loop(code.begin, code.end, 1, row)
