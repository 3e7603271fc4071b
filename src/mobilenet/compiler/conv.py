"""Standard convolution: for each row of the kernel a product of matrices, of pixels that overlap in memory.

The k columns of a kernel and their channels lie behind one another in a row of the input, so a pixel of the output is a
sum over k runs of k·channels values; at stride s its neighbour's runs begin s·channels later.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ..common.frozen import frozen
from . import ending, matrix
from .kernel import Kernel

if TYPE_CHECKING:
    from .ir import Code, Index, Pointer, Value


@frozen
class Conv(Kernel):
    """Is the kernel; called with rows begin..end of the output; `extra` is a row of zeros.

    The input's rows have their zeros on both sides, made by `Scale`.

    Attributes:
        numbers: that inputs are.
        stores: numbers that outputs are.
        height: rows of the input.
        ring: rows of the input that are kept, row r at r mod ring.
        row: values in a row of the input, the zeros on both sides included.
        channels: of the input.
        kernel, stride, top: the kernel's side, the stride, rows of zeros above the input.
        width, outputs: of the output.
        ending: as `ending` says.
        adds: whether what the output holds is added after the activation; `high` then divides `width`.
        high, wide: the register tile: pixels, at most `width`, and vectors.
        words: of inputs in a row of the kernel; the last may reach beyond it, where weights are zeros.
        nine: whether weights have nine bits, as `matrix.completed` says.
    """

    numbers: str
    stores: str
    height: int
    ring: int
    row: int
    channels: int
    kernel: int
    stride: int
    top: int
    width: int
    outputs: int
    ending: str
    adds: bool
    high: int
    wide: int
    words: int
    nine: bool

    @property
    def rows(self) -> int:
        """Rows of parameters: bias, inputs, the ending's, and what nine bits need."""
        return 1 + self.kernel * self.words + len(ending.rows(self.ending, self.adds)) + self.nine

    @property
    def parameters(self) -> int:
        """Words of 32 bits that it reads of its parameters."""
        return self.rows * self.outputs

    def emit(self, code: "Code") -> None:
        """Writes the kernel."""
        step = self.stride * self.channels
        source = code.source.shaped(self.row, 1, numbers=self.numbers)
        zeros = code.extra.shaped(1, numbers=self.numbers)
        out = code.out.shaped(self.width * self.outputs, self.outputs, 1, numbers=self.stores)

        def row(y: "Index") -> None:
            first = code.sum(code.product(y, self.stride), -self.top)
            rows = [code.row(source, code.sum(first, i), self.height, self.ring, zeros) for i in range(self.kernel)]

            def panel(channel: "Index", parameters: "Pointer", wide: int) -> None:
                last = parameters.at(1 + self.kernel * self.words).shaped(wide * code.lanes, 1)

                def tile(x: "Index") -> None:
                    def store(pixel: "Index", sums: "Sequence[Sequence[Value]]") -> None:
                        place = out.at(y, code.sum(x, pixel), channel).shaped(self.outputs, 1)
                        if self.nine:
                            seen = [code.sum(code.sum(x, pixel), n) for n in range(len(sums))]
                            pixels = [[r.shaped(step).at(n) for r in rows] for n in seen]
                            size = self.kernel * self.channels
                            sums = matrix.completed(code, sums, pixels, size, parameters.at(self.rows - 1))
                        matrix.store(code, sums, self.ending, last, place, place if self.adds else None)

                    self.products(code, [r.shaped(step).at(x) for r in rows], parameters, wide, store)

                code.tiles(0, self.width, self.high, tile)

            matrix.for_panels(code, self.outputs // code.lanes, self.wide, self.rows, panel)

        code.loop(code.begin, code.end, 1, row)

    def products(
        self,
        code: "Code",
        pieces: "Sequence[Pointer]",
        panel: "Pointer",
        wide: int,
        store: "Callable[[Index, Sequence[Sequence[Value]]], None]",
    ) -> None:
        """Calls `store` with the sums [pixel][vector] of a tile, or of a few pixels at a time with the first's number.

        Args:
            pieces: where the inputs of the tile's first pixel begin in each row of the kernel.
            panel: parameters, shaped [row][channel].
        """
        places = [piece.shaped(self.stride * self.channels, 1) for piece in pieces]
        store(0, matrix.tile(code, self.high, wide, places, self.words, panel))
