"""Depthwise convolution: each channel with a kernel of its own, a vector of channels at a time.

A tile is `high` rows by `wide` columns of outputs, whose sums stay in registers; each input is read once a tile. The
k·k weights of the channels stay in registers too while a row goes by, if a row of them fits in L1.
"""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..common.frozen import frozen
from . import ending
from .kernel import Kernel, Words, pad
from .targets import Target

if TYPE_CHECKING:
    from .ir import Code, Index, Pointer, Value

    _Rows = tuple[list[Pointer], list[Pointer]]  # of inputs, and of outputs, that a tile is made from and makes

_LINE, _SETS, _WAYS = 64, 64, 12  # of an L1 cache: bytes of a line, lines that do not displace each other, and of each


@frozen
class Depthwise(Kernel):
    """Is the kernel; called with rows begin..end of the output, at least `high`; `extra` is a row of zeros.

    Attributes:
        numbers: that inputs and outputs are; weights are floats. Sums of bytes are exact: less than 2^24.
        height, width: of the input.
        ring: rows of the input that are kept, row r at r mod ring.
        channels: stored, whole vectors.
        vectors: of channels that are computed.
        kernel, stride: the kernel's side and the stride.
        top, left: rows and columns of zeros before the input.
        out_width: of the output.
        ending: as `ending` says.
        zero: what a missing input counts for.
        large: whether the bias of whole numbers may be too large to be added as a float.
        by_columns: whether a tile's columns are computed for all rows and channels before the next, so that weights are
            read for each tile and what the next rows share may stay in L1; else its channels for a whole row.
        high, wide: outputs in a tile.
    """

    numbers: str
    height: int
    width: int
    ring: int
    channels: int
    vectors: int
    kernel: int
    stride: int
    top: int
    left: int
    out_width: int
    ending: str
    zero: int
    large: bool
    by_columns: bool
    high: int
    wide: int

    @property
    def parameters(self) -> int:
        """Words of 32 bits that it reads of its parameters."""
        return self.rows * self.channels

    @property
    def rows(self) -> int:
        """Rows of parameters: bias, weights, and the ending's."""
        return 1 + self.kernel**2 + len(ending.rows(self.ending))

    def emit(self, code: "Code") -> None:
        """Writes the kernel."""
        taps = self.kernel**2
        source = code.source.shaped(self.width * self.channels, self.channels, 1, numbers=self.numbers)
        zeros = code.extra.shaped(self.channels, 1, numbers=self.numbers)
        out = code.out.shaped(self.out_width * self.channels, self.channels, 1, numbers=self.numbers)
        parameters = code.parameters.shaped(self.rows * code.lanes, code.lanes)
        names = ending.rows(self.ending)
        deep = (self.high - 1) * self.stride + self.kernel

        def rows(y: "Index") -> "_Rows":
            first = code.sum(code.product(y, self.stride), -self.top)
            inputs = [code.row(source, code.sum(first, i), self.height, self.ring, zeros) for i in range(deep)]
            return inputs, [out.at(code.sum(y, i)) for i in range(self.high)]

        def tile(x: "Index", rows: "_Rows", c: "Index", constants: "Sequence[Value]") -> None:
            inputs, outputs = rows
            bias, *weights = constants
            channel = code.product(c, code.lanes)

            def last(name: str, numbers: str) -> "Value":
                row = 1 + taps + names.index(name)
                return parameters.shaped(*parameters.strides, numbers=numbers).at(c, row).load()

            sums = self._sums(code, inputs, x, channel, code.constant(0) if self.large else bias, weights)
            for place, values in zip(outputs, sums, strict=True):
                for i, value in enumerate(values):
                    if self.large:
                        value = code.plus(code.rounded(value), code.bits(bias))
                    exact = self.numbers == "u8" and not self.large
                    value = ending.finish(code, value, self.ending, last, exact=exact)
                    place.at(code.sum(x, i), channel).store(value)

        def for_rows(body: "Callable[[_Rows], None]") -> None:
            code.tiles(code.begin, code.end, self.high, lambda y: body(rows(y)))

        def for_vectors(body: "Callable[[Index, list[Value]], None]") -> None:
            code.loop(0, self.vectors, 1, lambda c: body(c, [parameters.at(c, i).load() for i in range(1 + taps)]))

        def for_columns(body: "Callable[[Index], None]") -> None:
            self._across(code, body)

        if self.by_columns:
            for_columns(lambda x: for_rows(lambda r: for_vectors(lambda c, constants: tile(x, r, c, constants))))
        else:
            for_rows(lambda r: for_vectors(lambda c, constants: for_columns(lambda x: tile(x, r, c, constants))))

    def _sums(
        self,
        code: "Code",
        inputs: "Sequence[Pointer]",
        x: "Index",
        channel: "Index",
        bias: "Value",
        weights: "Sequence[Value]",
    ) -> "list[list[Value]]":
        """Returns the sums of a tile at output column x; a column beyond the input adds nothing."""
        sums = [[bias] * self.wide for _ in range(self.high)]
        first = code.sum(code.product(x, self.stride), -self.left)
        for row, source in enumerate(inputs):
            for column in range((self.wide - 1) * self.stride + self.kernel):
                place = code.sum(first, column)
                if not isinstance(place, int) or 0 <= place < self.width:
                    value = source.at(place, channel).load()
                elif self.zero:
                    value = code.constant(self.zero)
                else:
                    continue
                for i in range(self.high):
                    for j in range(self.wide):
                        ky, kx = row - i * self.stride, column - j * self.stride
                        if 0 <= ky < self.kernel and 0 <= kx < self.kernel:
                            sums[i][j] = code.fma(value, weights[ky * self.kernel + kx], sums[i][j])
        return sums

    def _across(self, code: "Code", columns: "Callable[[Index], None]") -> None:
        """Calls `columns` for tiles that cover a row: with constants at both ends, where inputs are missing."""
        last = self.out_width - self.wide
        inner = range(self.wide, last, self.wide)
        if len(inner) > 2 and self.wide >= self.kernel // 2:
            columns(0)
            code.tiles(self.wide, last, self.wide, columns)
            columns(last)
        else:
            for x in dict.fromkeys((0, *inner, last)):
                columns(x)


def tile_shape(target: Target, kernel: int, width: int, rows: int) -> tuple[int, int]:
    """Returns the (rows, columns) of outputs in a tile; `rows` is the least number that a call has."""
    room = target.registers - min(kernel**2, target.registers // 3) - 2
    high = min(2, rows) if target.registers > 16 else 1
    best = min(
        range(1, min(width, room // high) + 1), key=lambda wide: (-(-width // wide) * (wide * kernel + 4), -wide)
    )
    return high, best


def by_columns(pixel: int, width: int, deep: int, out_width: int, high: int) -> bool:
    """Whether rows of one vector of channels, a cache line of each pixel, are more than their places in L1.

    Pixels whose size is a multiple of a large power of two share few of its sets, and what is read of a vector's line
    is gone before the next vector's turn. Measured: 0.5 to 0.9 of the time where this is so, 1 to 1.15 elsewhere.

    Args:
        pixel: bytes of all channels of one.
        width, deep: of the inputs that are read: columns, and rows for a tile.
        out_width, high: of the outputs, likewise.
    """
    sets = _SETS // math.gcd(_SETS, max(pixel // _LINE, 1))
    return deep * width + high * out_width > sets * _WAYS


def pack(rows: Sequence[NDArray[Any]], stored: int, lanes: int) -> Words:
    """Returns rows [..., channels] of words, bias, weights and the ending's, as [channels / lanes][row][lanes]."""
    table = np.vstack([pad(row.reshape(-1, row.shape[-1]), 1, stored).view(np.int32) for row in rows])
    return np.ascontiguousarray(table.reshape(len(table), -1, lanes).transpose(1, 0, 2)).ravel()
