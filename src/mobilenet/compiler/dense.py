"""The classifier: one pixel times a matrix, its panels of output channels the unit of work."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import matrix
from .kernel import Kernel

if TYPE_CHECKING:
    from .ir import Code, Index


@dataclass(frozen=True)
class Dense(Kernel):
    """Is the kernel; called with panels begin..end. Outputs are stored as whole panels, the weights padded with zeros.

    Attributes:
        numbers: that inputs are; outputs are floats.
        inputs: words of inputs of each sum.
        outputs: that are stored: whole panels.
        wide: vectors in a panel.
    """

    numbers: str
    inputs: int
    outputs: int
    wide: int

    @property
    def parameters(self) -> int:
        """Words of 32 bits that it reads of its parameters."""
        return self.rows * self.outputs

    @property
    def rows(self) -> int:
        """Rows of parameters: bias, inputs, and, where bytes are multiplied, what makes floats of the sums."""
        return 1 + self.inputs + (self.numbers == "u8")

    def emit(self, code: "Code") -> None:
        """Writes the kernel."""
        step = self.wide * code.lanes
        parameters = code.parameters.shaped(self.rows * step)
        source = code.source.shaped(0, 1, numbers=self.numbers)

        def panel(number: "Index") -> None:
            piece = parameters.at(number).shaped(step, 1)
            (sums,) = matrix.tile(code, 1, self.wide, [source], self.inputs, piece)
            for v, value in enumerate(sums):
                channel = v * code.lanes
                if self.numbers == "u8":
                    value = code.multiply(code.to_floats(value), piece.at(1 + self.inputs, channel).load())
                code.out.at(code.sum(code.product(number, step), channel)).store(value)

        code.loop(code.begin, code.end, 1, panel)


def panel_width(outputs: int, lanes: int) -> int:
    """Returns the vectors of a panel: of 4 to 8, enough sums to keep the machine busy, the one that pads least."""
    return min(range(8, 3, -1), key=lambda wide: -(-outputs // (wide * lanes)) * wide)
