"""Pointwise convolution: the product of [pixels, inputs] and [inputs, outputs], with bias, activation and shortcut."""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from ..common.frozen import frozen
from . import ending, matrix
from .kernel import Kernel

if TYPE_CHECKING:
    from .ir import Code, Index, Pointer, Value


@frozen
class Pointwise(Kernel):
    """Is the kernel; called with pixels begin..end, at least `high` of them.

    Attributes:
        numbers: that inputs and outputs are.
        inputs: words of inputs that are read of each pixel.
        stride: channels that are stored of each pixel of the input, from one to the next.
        outputs: channels that are stored of the output: whole vectors.
        vectors: of output channels that are computed.
        ending: as `ending` says.
        adds: whether `extra`, laid out as the output, is added after the activation.
        high, wide: the register tile: pixels and vectors.
        nine: whether weights have nine bits, as `matrix.completed` says.
        paired: whether the last vector of outputs takes two inputs at a time, as `matrix.tile` says.
        ahead: cache lines of the next panel's weights to ask for with each `matrix.UNROLL` inputs; 0 for none.
    """

    numbers: str
    inputs: int
    stride: int
    outputs: int
    vectors: int
    ending: str
    adds: bool
    nine: bool
    paired: bool
    high: int
    wide: int
    ahead: int

    @property
    def rows(self) -> int:
        """Rows of parameters: bias, inputs, the ending's, and what nine bits need."""
        return 1 + self.inputs + len(ending.rows(self.ending, self.adds)) + self.nine

    @property
    def parameters(self) -> int:
        """Words of 32 bits that it reads of its parameters."""
        return self.rows * self.outputs

    def emit(self, code: "Code") -> None:
        """Writes the kernel."""
        source = code.source.shaped(self.stride, 1, numbers=self.numbers)

        def panel(channel: "Index", parameters: "Pointer", wide: int, *, paired: bool = False) -> None:
            def tile(pixel: "Index") -> None:
                piece = source.at(pixel).shaped(self.stride, 1)
                ahead = None
                if self.ahead:
                    size = self.rows * wide * code.lanes
                    in_round = matrix.PAIR if paired else matrix.UNROLL
                    lines = -(-self.ahead * in_round // matrix.UNROLL)
                    ahead = matrix.ahead_of(parameters, size, self.inputs // in_round, pixel, self.high, lines)
                sums = matrix.tile(code, self.high, wide, [piece], self.inputs, parameters, ahead, paired=paired)
                self.store(code, sums, pixel, channel, parameters)

            code.tiles(code.begin, code.end, self.high, tile)

        last = partial(panel, paired=True) if self.paired else None
        matrix.for_panels(code, self.vectors, self.wide, self.rows, panel, last)

    def store(
        self,
        code: "Code",
        sums: "Sequence[Sequence[Value]]",
        pixel: "Index",
        channel: "Index",
        panel: "Pointer",
    ) -> None:
        """Stores the sums [pixel][vector] from a pixel and a channel on; `panel` is parameters, [row][channel]."""
        out, shortcut = (part.shaped(self.outputs, 1, numbers=self.numbers) for part in (code.out, code.extra))
        if self.nine:
            source = code.source.shaped(self.stride, 1, numbers=self.numbers)
            pixels = [[source.at(code.sum(pixel, n))] for n in range(len(sums))]
            sums = matrix.completed(code, sums, pixels, 4 * self.inputs, panel.at(self.rows - 1))
        last = panel.at(1 + self.inputs).shaped(*panel.strides)
        added = shortcut.at(pixel, channel).shaped(self.outputs, 1) if self.adds else None
        matrix.store(code, sums, self.ending, last, out.at(pixel, channel).shaped(self.outputs, 1), added)
