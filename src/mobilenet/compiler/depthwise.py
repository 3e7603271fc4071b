"""Depthwise convolution: each channel with a kernel of its own, a vector of channels at a time.

The k·k weights of the channels stay in registers while a row goes by. A tile is `high` rows by `wide` columns of
outputs, whose sums stay in registers too; each input is read once a tile.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .kernel import Floats, Kernel, pad, whole
from .targets import Target

if TYPE_CHECKING:
    from .ir import Code, Index, Pointer, Value


@dataclass(frozen=True)
class Depthwise(Kernel):
    """Is the kernel; called with rows begin..end of the output, at least `high`; `extra` is a row of zeros.

    Attributes:
        height, width: of the input.
        ring: rows of the input that are kept, row r at r mod ring.
        channels: stored, whole vectors.
        kernel, stride: the kernel's side and the stride.
        top, left: rows and columns of zeros before the input.
        out_width: of the output.
        activation: as of a `Layer`.
        high, wide: outputs in a tile.
    """

    height: int
    width: int
    ring: int
    channels: int
    kernel: int
    stride: int
    top: int
    left: int
    out_width: int
    activation: str
    high: int
    wide: int

    @property
    def parameters(self) -> int:
        """Floats that it reads of its parameters."""
        return (1 + self.kernel**2) * self.channels

    def emit(self, code: "Code") -> None:
        """Writes the kernel."""
        taps = self.kernel**2
        source = code.source.shaped(self.width * self.channels, self.channels, 1)
        out = code.out.shaped(self.out_width * self.channels, self.channels, 1)
        parameters = code.parameters.shaped((1 + taps) * code.lanes, code.lanes)
        deep = (self.high - 1) * self.stride + self.kernel

        def rows(y: "Index") -> None:
            first = code.sum(code.product(y, self.stride), -self.top)
            inputs = [code.row(source, code.sum(first, i), self.height, self.ring, code.extra) for i in range(deep)]
            outputs = [out.at(code.sum(y, i)) for i in range(self.high)]

            def vector(c: "Index") -> None:
                bias, *weights = (parameters.at(c, i).load() for i in range(1 + taps))
                channel = code.product(c, code.lanes)

                def columns(x: "Index") -> None:
                    sums = self._sums(code, inputs, x, channel, bias, weights)
                    for place, row in zip(outputs, sums, strict=True):
                        for i, value in enumerate(row):
                            place.at(code.sum(x, i), channel).store(code.activate(value, self.activation))

                self._across(code, columns)

            code.loop(0, self.channels // code.lanes, 1, vector)

        code.tiles(code.begin, code.end, self.high, rows)

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
                if isinstance(place, int) and not 0 <= place < self.width:
                    continue
                value = source.at(place, channel).load()
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


def pack(weight: Floats, bias: Floats, lanes: int) -> Floats:
    """Returns weights [k, k, channels] and bias [channels] as [channels / lanes][bias, then taps][lanes]."""
    taps = weight.reshape(-1, bias.size)
    table = pad(np.vstack([bias[None], taps]), 1, whole(bias.size, lanes))
    return np.ascontiguousarray(table.reshape(len(table), -1, lanes).transpose(1, 0, 2)).ravel()
