"""Rows of pixels as the first convolution reads them: scaled, with zeros on the left and on the right.

The zeros are zeros after scaling, as the networks were trained; they are written once, when the memory is set aside.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .kernel import Kernel

if TYPE_CHECKING:
    from .ir import Code, Index


@dataclass(frozen=True)
class Scale(Kernel):
    """Is the kernel, x·scale + shift; called with rows begin..end. Parameters: scale [length], then shift [length].

    Attributes:
        length: values in a row, at least a vector's.
        stride: values from one row of the output to the next; the caller points behind the zeros on the left.
        bytes: whether the source is uint8; float32 if not.
    """

    length: int
    stride: int
    bytes: bool

    @property
    def parameters(self) -> int:
        """Floats that it reads of its parameters."""
        return 2 * self.length

    def emit(self, code: "Code") -> None:
        """Writes the kernel."""
        source, out = code.source.shaped(self.length, 1), code.out.shaped(self.stride, 1)

        def row(y: "Index") -> None:
            def vector(x: "Index") -> None:
                place = code.sum(code.product(y, self.length), x)
                pixels = source.load_bytes(place) if self.bytes else source.at(y, x).load(aligned=False)
                scale = code.parameters.at(x).load(aligned=False)
                shift = code.parameters.at(code.sum(x, self.length)).load(aligned=False)
                out.at(y, x).store(code.fma(pixels, scale, shift), aligned=False)

            code.tiles(0, self.length, code.lanes, vector)

        code.loop(code.begin, code.end, 1, row)
