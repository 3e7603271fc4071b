"""A photo's area resized to the network's input, bit by bit what Pillow makes of it: along rows, and along columns.

Each pixel of a pass is a sum of some pixels times whole numbers, of which 2²² is one, rounded to a byte. The whole
numbers come from `photos.resampling`, and depend on the photo's size.
"""

import contextlib
import ctypes
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..common.frozen import frozen
from ..photos.resampling import ONE_BITS, Box, factors
from .kernel import Kernel
from .loader import Code

if TYPE_CHECKING:
    from .ir import Code as Writer
    from .ir import Index, Value

LEAST = 32
"""Pixels that each side of a photo and of what is made of it must have: so a row has more pixels than an output pixel's
factors take in whole vectors, and more bytes than are summed at a time."""
LEAST_BYTES = 96  # three bytes each of so many pixels; 6 vectors of AVX-512
_STORED = 4  # bytes of a photo's pixel; the fourth is of no use, but makes a pixel a word
_KEPT = 1 << 22  # bytes of memory between the passes that are kept for the next photo
_TABLES = 256  # of the sides seen last: 5 kB each for a photo of 500 pixels to 224


@frozen
class Across(Kernel):
    """Is the pass along rows; called with rows begin..end.

    `extra` has the number of pixels that an output pixel is made of, whole vectors of them, the photo's bytes in a row,
    and for each output pixel the place of the first one it is made of, in bytes.

    Attributes:
        width: pixels in a row of the output.
    """

    width: int

    @property
    def parameters(self) -> int:
        """None of the network's: they are the photo's."""
        return 0

    def emit(self, code: "Writer") -> None:
        """Writes the kernel."""
        group = code.lanes // _STORED
        out = code.narrow(3 * group).out.shaped(3 * self.width, 3, numbers="u8")
        table, given = (part.shaped(1, numbers="i32") for part in (code.narrow(group).parameters, code.extra))
        count, stride = given.at(0).index(), given.at(1).index()
        fourfold = [lane // _STORED for lane in range(code.lanes)]
        colours = [lane for lane in range(code.lanes) if lane % _STORED < 3]

        def row(y: "Index") -> None:
            source = code.source.shaped(1, numbers="u8").at(code.product(y, stride))

            def pixels(x: "Index") -> None:
                each = [code.sum(x, n) for n in range(group)]
                made_of = [source.at(given.at(code.sum(n, 2)).index()).shaped(_STORED) for n in each]
                factors = [table.at(code.product(n, count)) for n in each]

                def add(n: "Index", *sums: "Value") -> "list[Value]":
                    products = []
                    for source, own in zip(made_of, factors, strict=True):
                        factor = own.at(n).load(aligned=False)
                        products.append(code.times(source.at(n).load_bytes(), code.shuffled(factor, factor, fourfold)))
                    return [code.plus(*pair) for pair in zip(sums, products, strict=True)]

                sums = _folded(code, code.loop(0, count, group, add, [code.whole_numbers(0)] * group))
                total = code.without_bits(code.plus(sums, code.whole_numbers(1 << ONE_BITS - 1)), ONE_BITS)
                out.at(y, x).store(code.shuffled(total, total, colours), aligned=False)

            code.tiles(0, self.width, group, pixels)

        code.loop(code.begin, code.end, 1, row)


def _folded(code: "Writer", vectors: "list[Value]") -> "Value":
    """Returns for each vector of whole numbers the sum of its parts, as many as there are vectors, side by side."""
    part = code.lanes // len(vectors)
    even = [lane for lane in range(2 * code.lanes) if lane // part % 2 == 0]
    odd = [lane + part for lane in even]
    while len(vectors) > 1:  # of two vectors at a time, each part is added to the one before it
        pairs = zip(vectors[::2], vectors[1::2], strict=True)
        vectors = [code.plus(code.shuffled(x, y, even), code.shuffled(x, y, odd)) for x, y in pairs]
    return vectors[0]


@frozen
class Down(Kernel):
    """Is the pass along columns; called with rows begin..end of the output.

    `extra` has the number of rows that an output row is made of, the bytes in a row, at least `LEAST_BYTES`, and for
    each output row the first one it is made of.
    """

    @property
    def parameters(self) -> int:
        """None of the network's: they are the photo's."""
        return 0

    def emit(self, code: "Writer") -> None:
        """Writes the kernel."""
        source, out = (part.shaped(1, numbers="u8") for part in (code.source, code.out))
        table, given = (part.shaped(1, numbers="i32") for part in (code.parameters, code.extra))
        count, length = given.at(0).index(), given.at(1).index()
        half = code.whole_numbers(1 << ONE_BITS - 1)
        places = range(0, LEAST_BYTES, code.lanes)

        def row(y: "Index") -> None:
            own, target = table.at(code.product(y, count)), out.at(code.product(y, length))
            first = given.at(code.sum(y, 2)).index()

            def tile(x: "Index") -> None:
                def add(n: "Index", *sums: "Value") -> "list[Value]":
                    factor, above = own.at(n).word(), source.at(code.product(code.sum(first, n), length)).at(x)
                    products = [code.times(above.at(place).load_bytes(), factor) for place in places]
                    return [code.plus(*pair) for pair in zip(sums, products, strict=True)]

                for place, total in zip(places, code.loop(0, count, 1, add, [half] * len(places)), strict=True):
                    target.at(code.sum(x, place)).store(code.without_bits(total, ONE_BITS), aligned=False)

            code.tiles(0, length, LEAST_BYTES, tile)

        code.loop(code.begin, code.end, 1, row)


class _Table(NamedTuple):
    """Is what a pass needs to know of one side of a photo: its arrays, which must live on, with their addresses.

    Attributes:
        begin, end: the photo's pixels that are of use.
    """

    begin: int
    end: int
    addresses: tuple[int, int]
    arrays: tuple[NDArray[np.int32], NDArray[np.int32]]


@lru_cache(_TABLES)
def _table(
    side: int, begin: float, end: float, count: int, interpolation: str, multiple: int, row: int, unit: int
) -> _Table:
    """Returns the table of a side's pixels begin..end for `count` of the output, with the bytes in a row, and the first
    pixels in a unit."""  # fmt: skip
    firsts, table = factors(side, begin, end, count, interpolation, multiple)
    low, high = int(firsts[0]), int(firsts[-1]) + table.shape[1]
    extra = np.array([table.shape[1], row, *(unit * (firsts - low))], np.int32)
    return _Table(low, high, (table.ctypes.data, extra.ctypes.data), (table, extra))


def _bytes(count: int) -> NDArray[np.uint8]:
    return np.empty(count, np.uint8)


class Resampler:
    """Resizes photos to one size; may be called from several threads at once.

    Attributes:
        size: height and width of what it returns.
    """

    def __init__(self, code: Code, across: Across, height: int, lanes: int) -> None:
        """Takes the kernels' code."""
        self.size = height, across.width
        self._group = lanes // _STORED
        self._code = code  # must live as long as its functions do
        kind = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 4, *[ctypes.c_int64] * 2)
        self._across, self._down = (kind(code.address[repr(kernel)]) for kernel in (across, Down()))
        self._idle: list[NDArray[np.uint8]] = []  # list's append and pop are atomic

    def takes(self, height: int, width: int) -> bool:
        """Whether a photo of this size can be resized here: one of a few pixels can't."""
        return min(height, width) >= LEAST

    def __call__(self, photo: NDArray[np.uint8], box: Box, interpolation: str) -> NDArray[np.uint8]:
        """Returns the box (left, top, right, bottom) of a photo, uint8 [H,W,4], as uint8 [height,width,3]."""
        (height, width), (rows, columns) = self.size, photo.shape[:2]
        left, top, right, bottom = box
        down_first = rows - height > max(0, 2 * (columns - width))  # as Pillow decides
        across = _table(columns, left, right, width, interpolation, self._group, _STORED * columns, _STORED)
        down = _table(rows, top, bottom, height, interpolation, 1, _STORED * columns if down_first else 3 * width, 1)
        out = _bytes(3 * height * width).reshape(height, width, 3)
        source = photo.ctypes.data + _STORED * columns * down.begin
        if down_first:
            with self._memory(_STORED * columns * height) as between:
                self._down(between, source, *down.addresses, 0, height)
                self._across(out.ctypes.data, between + _STORED * across.begin, *across.addresses, 0, height)
        else:
            with self._memory(3 * width * (down.end - down.begin)) as between:
                self._across(between, source + _STORED * across.begin, *across.addresses, 0, down.end - down.begin)
                self._down(out.ctypes.data, between, *down.addresses, 0, height)
        return out

    @contextlib.contextmanager
    def _memory(self, size: int) -> Iterator[int]:
        """Gives the address of memory for what is between the passes."""
        try:
            memory = self._idle.pop()
        except IndexError:
            memory = _bytes(size)
        if memory.size < size:
            memory = _bytes(size)
        yield memory.ctypes.data
        if size <= _KEPT:
            self._idle.append(memory)
