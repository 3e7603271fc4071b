"""The classifier: one pixel times a matrix, its panels of output channels the unit of work."""

from typing import TYPE_CHECKING

from ..common.frozen import frozen
from . import ending, matrix
from .kernel import Kernel

if TYPE_CHECKING:
    from .ir import Code, Index, Value


@frozen
class Dense(Kernel):
    """Is the kernel; called with panels begin..end. Outputs are stored as whole panels, the weights padded with zeros.

    Attributes:
        numbers: that inputs are; outputs are floats.
        inputs: words of inputs of each sum.
        ending: as `ending` says.
        nine: whether weights have nine bits, as `matrix.completed` says.
        outputs: that are stored: whole panels.
        wide: vectors in a panel.
    """

    numbers: str
    inputs: int
    ending: str
    nine: bool
    outputs: int
    wide: int

    @property
    def parameters(self) -> int:
        """Words of 32 bits that it reads of its parameters."""
        return self.rows * self.outputs

    @property
    def rows(self) -> int:
        """Rows of parameters: bias, inputs, the ending's, and what nine bits need."""
        return 1 + self.inputs + len(ending.rows(self.ending)) + self.nine

    def emit(self, code: "Code") -> None:
        """Writes the kernel."""
        step = self.wide * code.lanes
        parameters = code.parameters.shaped(self.rows * step)
        source = code.source.shaped(0, 1, numbers=self.numbers)
        names = ending.rows(self.ending)

        def panel(number: "Index") -> None:
            piece = parameters.at(number).shaped(step, 1)
            found = matrix.tile(code, 1, self.wide, [source], self.inputs, piece)
            if self.nine:
                found = matrix.completed(code, found, [[source]], 4 * self.inputs, piece.at(self.rows - 1))
            for v, value in enumerate(found[0]):
                channel = v * code.lanes

                def row(name: str, numbers: str, channel: int = channel) -> "Value":
                    last = piece.shaped(*piece.strides, numbers=numbers)
                    return last.at(1 + self.inputs + names.index(name), channel).load()

                value = ending.finish(code, value, self.ending, row)
                code.out.at(code.sum(code.product(number, step), channel)).store(value)

        code.loop(code.begin, code.end, 1, panel)


def panel_width(outputs: int, lanes: int) -> int:
    """Returns the vectors of a panel: of 4 to 8, enough sums to keep the machine busy, the one that pads least."""
    return min(range(8, 3, -1), key=lambda wide: -(-outputs // (wide * lanes)) * wide)
