"""Pointwise convolution where the machine multiplies whole matrices: 16 pixels by 16 words of inputs by 16 outputs.

A block is up to four such products, whose sums stay in the machine's matrix registers while the inputs go by. Then they
go through a scratch in L1 to bias and ending. (Sums that start from the bias take four times as long: loading them is
quick, multiplying onto what was just loaded is not.)
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ..common.frozen import frozen
from . import matrix
from .conv import Conv
from .kernel import SIZES
from .pointwise import Pointwise

if TYPE_CHECKING:
    from .ir import Code, Index, Pointer, Value

_SIDE = 16  # rows, and words of a row, of a matrix register


@frozen
class Tiled(Pointwise):
    """Is the kernel; `high` is the pixels of a block, `wide` its vectors of outputs, at most 4.

    Attributes:
        tall: matrices of pixels in a block, of `wide` vectors each: 4 products at most.
        depth: words of inputs in a matrix.
    """

    tall: int
    depth: int

    def emit(self, code: "Code") -> None:
        """Writes the kernel."""
        side = self.high // self.tall
        code.matrices.set_up(side, self.depth)
        scratch = code.scratch(self.high * self.wide * code.lanes)
        words = 4 // SIZES[self.numbers]
        source = code.source.shaped(self.stride, words, numbers=self.numbers)

        def panel(channel: "Index", parameters: "Pointer", wide: int) -> None:
            def block(pixel: "Index") -> None:
                ahead = None
                if self.ahead:
                    size, rounds = self.rows * wide * code.lanes, self.inputs // self.depth
                    ahead = matrix.ahead_of(parameters, size, rounds, pixel, self.high, self.ahead)
                pieces = [[source.at(code.sum(pixel, t * side)).shaped(self.stride, words)] for t in range(self.tall)]
                multiply(code, pieces, self.inputs, self.depth, parameters, wide, scratch, side, ahead)

                def pixels(p: "Index", sums: "list[list[Value]]") -> None:
                    self.store(code, sums, code.sum(pixel, p), channel, parameters)

                for_pixels(code, scratch, self.numbers, self.high, wide, parameters, pixels)

            code.tiles(code.begin, code.end, self.high, block)

        matrix.for_panels(code, self.vectors, self.wide, self.rows, panel)
        code.matrices.give_up()


@frozen
class TiledConv(Conv):
    """Is the kernel for a standard convolution of bytes; `high` and `wide` as of `Tiled`.

    Attributes:
        depth: words of inputs in a matrix.
    """

    depth: int

    def emit(self, code: "Code") -> None:
        """Writes the kernel."""
        code.matrices.set_up(self.high, self.depth)
        super().emit(code)
        code.matrices.give_up()

    def products(
        self,
        code: "Code",
        pieces: "Sequence[Pointer]",
        panel: "Pointer",
        wide: int,
        store: "Callable[[Index, Sequence[Sequence[Value]]], None]",
    ) -> None:
        """Calls `store` with the sums, some pixels at a time; arguments as `Conv.products`."""
        scratch = code.scratch(self.high * self.wide * code.lanes)
        places = [piece.shaped(self.stride * self.channels, 4) for piece in pieces]
        multiply(code, [places], self.words, self.depth, panel, wide, scratch, self.high)
        for_pixels(code, scratch, self.numbers, self.high, wide, panel, store)


def multiply(
    code: "Code",
    pieces: "Sequence[Sequence[Pointer]]",
    inputs: int,
    depth: int,
    panel: "Pointer",
    wide: int,
    scratch: "Pointer",
    side: int,
    ahead: "tuple[Pointer, int] | None" = None,
) -> None:
    """Leaves the sums of a block, without bias, in the scratch, shaped [pixel][vector of outputs].

    Args:
        pieces: for each matrix of pixels, where each piece of its inputs begins, shaped [pixel][word].
        inputs: words of inputs in each piece.
        depth: words of inputs in a matrix.
        panel: parameters, shaped [bias, then inputs][channel].
        side: pixels of a matrix.
    """
    step, tall = wide * code.lanes, len(pieces)
    numbers = pieces[0][0].numbers
    sums = [(t, v) for t in range(tall) for v in range(wide)]
    for t, v in sums:
        code.matrices.clear(t * wide + v)
    for piece, first in enumerate(range(1, 1 + inputs * len(pieces[0]), inputs)):

        def products(block: "Index", piece: int = piece, first: int = first) -> None:
            word = code.product(block, depth)
            if ahead:
                matrix.ask(ahead, block)
            for t in range(tall):
                place = pieces[t][piece]
                code.matrices.load(4 + t, place.at(0, word), place.strides[0])
            for v in range(wide):
                code.matrices.load(6 + v % 2, panel.at(code.sum(word, first), v * code.lanes), step)
                for t in range(tall):
                    code.matrices.dot(numbers, t * wide + v, 4 + t, 6 + v % 2)

        if inputs == depth:
            products(0)
        else:
            code.loop(0, inputs // depth, 1, products)
    for t, v in sums:
        code.matrices.store(t * wide + v, scratch.shaped(step, 1).at(t * side, v * code.lanes), step)


def for_pixels(
    code: "Code",
    scratch: "Pointer",
    numbers: str,
    high: int,
    wide: int,
    panel: "Pointer",
    body: "Callable[[Index, list[list[Value]]], None]",
) -> None:
    """Calls the body for a few pixels of a block at a time, with the first one's number and the sums, bias included."""
    kind, join = ("i32", code.plus) if numbers == "u8" else ("f32", code.add)
    found, bias = (place.shaped(wide * code.lanes, 1, numbers=kind) for place in (scratch, panel))
    channels = [v * code.lanes for v in range(wide)]
    unroll = next(count for count in (4, 3, 2, 1) if high % count == 0)

    def some(first: "Index") -> None:
        pixels = range(unroll)
        sums = [[join(found.at(code.sum(first, n), c).load(), bias.at(0, c).load()) for c in channels] for n in pixels]
        body(first, sums)

    code.loop(0, high, unroll, some)


def shape(
    counts: Sequence[int], vectors: int, inputs: int, stored: int, tall: int = 2
) -> tuple[int, int, int, int, int]:
    """Returns (high, wide, tall, words of inputs with those that fill matrices, depth) of the block.

    Args:
        counts: of pixels that calls have; the block's pixels are those that waste the fewest.
        vectors: of outputs.
        inputs: words of inputs of each sum.
        stored: words of inputs that are stored of each pixel.
        tall: matrices of pixels that a block may have.
    """
    number = next(n for n in range(-(-inputs // _SIDE), inputs + 1) if -(-inputs // n) * n <= stored)
    depth = -(-inputs // number)
    wide = min(vectors, 4)
    most = tall if wide <= 2 else 1
    sides = [(tall, side) for tall in range(1, most + 1) for side in range(1, _SIDE + 1) if tall * side <= min(counts)]

    def cost(tall: int, side: int) -> int:  # in pixels; a block's start takes as long as some
        return sum(-(-count // (tall * side)) for count in counts) * (tall * side + 6)

    tall, side = min(sides, key=lambda pair: cost(*pair))
    return tall * side, wide, tall, number * depth, depth


def lines_ahead(blocks: int, depth: int, wide: int) -> int:
    """Returns the cache lines to ask for at each matrix of inputs so that a panel's blocks ask for the next panel."""
    return -(-depth * wide // blocks)
