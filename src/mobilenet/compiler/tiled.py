"""Pointwise convolution where the machine multiplies whole matrices: 16 pixels by 16 words of inputs by 16 outputs.

A block is two by two such products, whose sums start from the bias and stay in the machine's matrix registers while the
inputs go by. Then they go through a scratch in L1 to the ending. Multiplying takes so little time that the order is
chosen for memory: weights that fit L1 stay there while the pixels go by, panel by panel where they do not.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import matrix
from .pointwise import Pointwise

if TYPE_CHECKING:
    from .ir import Code, Index, Pointer

_SIDE = 16  # rows, and words of a row, of a matrix register
_L1 = 24 << 10  # bytes of weights that stay in L1 beside the rest


@dataclass(frozen=True)
class Tiled(Pointwise):
    """Is the kernel; `high` is the pixels of a block, `wide` the vectors of outputs, at most 2.

    Attributes:
        tall: matrices of pixels in a block, 1 or 2.
        depth: words of inputs in a matrix.
    """

    tall: int
    depth: int

    def emit(self, code: "Code") -> None:
        """Writes the kernel."""
        code.matrices(self.high // self.tall, self.depth)
        scratch = code.scratch(self.high * self.wide * code.lanes)
        source = code.source.shaped(self.stride, 1, numbers=self.numbers)

        def panels(pixel: "Index") -> None:
            def panel(channel: "Index", parameters: "Pointer", wide: int) -> None:
                self._block(code, source.at(pixel), pixel, channel, parameters, wide, scratch)

            matrix.for_panels(code, self.vectors, self.wide, self.rows, panel)

        def pixels(channel: "Index", parameters: "Pointer", wide: int) -> None:
            def block(pixel: "Index") -> None:
                self._block(code, source.at(pixel), pixel, channel, parameters, wide, scratch)

            code.tiles(code.begin, code.end, self.high, block)

        if 4 * self.parameters <= _L1:
            code.tiles(code.begin, code.end, self.high, panels)
        else:
            matrix.for_panels(code, self.vectors, self.wide, self.rows, pixels)
        code.matrices_done()

    def _block(
        self,
        code: "Code",
        source: "Pointer",
        pixel: "Index",
        channel: "Index",
        panel: "Pointer",
        wide: int,
        scratch: "Pointer",
    ) -> None:
        step, side = wide * code.lanes, self.high // self.tall
        sums = [(t, v) for t in range(self.tall) for v in range(wide)]
        for t, v in sums:  # a stride of 0: every row is the bias
            code.load_matrix(2 * t + v, panel.at(0, v * code.lanes), 0)

        rounds, ahead = self.inputs // self.depth, None
        if self.ahead:
            ahead = matrix.ahead_of(panel, self.rows * step, rounds, pixel, self.high, self.ahead)

        def multiply(block: "Index") -> None:
            word = code.product(block, self.depth)
            if ahead:
                matrix.ask(ahead, block)
            for v in range(wide):
                code.load_matrix(6 + v, panel.at(code.sum(word, 1), v * code.lanes), step)
            for t in range(self.tall):
                inputs = source.shaped(self.stride, 4 // code.size(self.numbers)).at(t * side, word)
                code.load_matrix(4 + t, inputs, self.stride)
                for v in range(wide):
                    code.dot_matrices(self.numbers, 2 * t + v, 4 + t, 6 + v)

        if rounds == 1:
            multiply(0)
        else:
            code.loop(0, rounds, 1, multiply)
        for t, v in sums:
            code.store_matrix(2 * t + v, scratch.shaped(step, 1).at(t * side, v * code.lanes), step)
        self._finish(code, pixel, channel, panel.at(1 + self.inputs).shaped(step, 1), wide, scratch)

    def _finish(
        self, code: "Code", pixel: "Index", channel: "Index", last: "Pointer", wide: int, scratch: "Pointer"
    ) -> None:
        out = code.out.shaped(self.outputs, 1, numbers=self.numbers)
        shortcut = code.extra.shaped(self.outputs, 1, numbers=self.numbers)
        kind = "i32" if self.numbers == "u8" else "f32"
        found = scratch.shaped(wide * code.lanes, 1, numbers=kind)
        unroll = next(count for count in (4, 3, 2, 1) if self.high % count == 0)

        def pixels(first: "Index") -> None:
            for p in range(unroll):
                row = code.sum(first, p)
                values = [found.at(row, v * code.lanes).load() for v in range(wide)]
                place = code.sum(pixel, row), channel
                added = shortcut.at(*place) if self.adds else None
                matrix.store(code, values, self.ending, last, out.at(*place), added)

        code.loop(0, self.high, unroll, pixels)


def shape(counts: Sequence[int], inputs: int, stored: int) -> tuple[int, int, int, int]:
    """Returns (high, tall, words of inputs with those that fill matrices, depth) of the block that takes least time.

    Args:
        counts: of pixels that calls have.
        inputs: words of inputs of each sum.
        stored: words of inputs that are stored of each pixel.
    """
    number = next(n for n in range(-(-inputs // _SIDE), inputs + 1) if -(-inputs // n) * n <= stored)
    depth = -(-inputs // number)

    def cycles(tall: int, side: int) -> float:
        block = tall * (side * 8 + number * 32) + 64
        return sum(-(-count // (tall * side)) for count in counts) * block

    sides = [(tall, side) for tall in (1, 2) for side in range(1, _SIDE + 1) if tall * side <= min(counts)]
    tall, side = min(sides, key=lambda pair: (cycles(*pair), -pair[0] * pair[1]))
    return tall * side, tall, number * depth, depth


def lines_ahead(blocks: int, depth: int, wide: int) -> int:
    """Returns the cache lines to ask for at each matrix of inputs so that a panel's blocks ask for the next panel."""
    return -(-depth * wide // blocks)
