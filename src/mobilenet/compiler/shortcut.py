"""A shortcut, copied to where a standard convolution then adds to it: only the twin of such convolutions has one.

These have no address to spare: `extra`, where pointwise convolutions find theirs, is their row of zeros.
"""

from typing import TYPE_CHECKING

from ..common.frozen import frozen
from .kernel import Kernel

if TYPE_CHECKING:
    from .ir import Code, Index


@frozen
class Shortcut(Kernel):
    """Is the kernel; called with rows begin..end, copies those of `extra` to those of the output.

    Attributes:
        numbers: that they are.
        length: values in a row, whole vectors.
    """

    numbers: str
    length: int

    @property
    def parameters(self) -> int:
        """Words of 32 bits that it reads of its parameters."""
        return 0

    def emit(self, code: "Code") -> None:
        """Writes the kernel."""
        out, extra = (part.shaped(self.length, 1, numbers=self.numbers) for part in (code.out, code.extra))

        def row(y: "Index") -> None:
            code.loop(0, self.length, code.lanes, lambda x: out.at(y, x).store(extra.at(y, x).load(whole=True)))

        code.loop(code.begin, code.end, 1, row)
