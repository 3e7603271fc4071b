"""Rows of pixels as the first convolution reads them: scaled, with zeros on the left and on the right.

The zeros are zeros after scaling, as the networks were trained; they are written once, when the memory is set aside.
"""

from typing import TYPE_CHECKING

from ..common.frozen import frozen
from .kernel import Kernel

if TYPE_CHECKING:
    from .ir import Code, Index


@frozen
class Scale(Kernel):
    """Is the kernel; called with rows begin..end.

    Attributes:
        length: values in a row, at least a vector's.
        stride: values from one row of the output to the next; the caller points behind the zeros on the left.
        reads, writes: numbers of the source and of the output.
        scaled: whether values are x·scale + shift, with parameters scale [length], then shift [length]; as they are if
            not. Floats written as bytes are rounded.
    """

    length: int
    stride: int
    reads: str
    writes: str
    scaled: bool

    @property
    def parameters(self) -> int:
        """Words of 32 bits that it reads of its parameters."""
        return 2 * self.length * self.scaled

    def emit(self, code: "Code") -> None:
        """Writes the kernel."""
        source = code.source.shaped(self.length, 1, numbers=self.reads)
        out = code.out.shaped(self.stride, 1, numbers=self.writes)

        def row(y: "Index") -> None:
            def vector(x: "Index") -> None:
                value = source.at(y, x).load(aligned=False)
                if self.scaled:
                    scale = code.parameters.at(x).load(aligned=False)
                    shift = code.parameters.at(code.sum(x, self.length)).load(aligned=False)
                    value = code.fma(value, scale, shift)
                if self.writes == "u8":  # infinity too is the largest byte
                    value = code.rounded(code.minimum(value, code.constant(255)))
                out.at(y, x).store(value, aligned=False)

            code.tiles(0, self.length, code.lanes, vector)

        code.loop(code.begin, code.end, 1, row)
