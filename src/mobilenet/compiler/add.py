"""A shortcut added to a standard convolution's output in place: only the twin of standard convolutions has it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .kernel import Kernel

if TYPE_CHECKING:
    from .ir import Code, Index


@dataclass(frozen=True)
class Add(Kernel):
    """Is the kernel; called with rows begin..end, adds those of `extra` to those of the output.

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
            def vector(x: "Index") -> None:
                out.at(y, x).store(code.add(out.at(y, x).load(), extra.at(y, x).load()))

            code.loop(0, self.length, code.lanes, vector)

        code.loop(code.begin, code.end, 1, row)
