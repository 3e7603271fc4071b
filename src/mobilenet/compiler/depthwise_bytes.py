"""Depthwise convolution of bytes: sums of products of a column's rows, interleaved, some 64 channels at a time.

Four rows of one column side by side in a word make three products of a 3x3 kernel, or those of two rows of outputs, one
instruction. Interleaving leaves channels in the order in which bytes are packed again, so it costs nothing to undo. A
column is interleaved once: its words stay in registers while the outputs that need it go by.
"""

from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..common.frozen import frozen
from . import ending
from .depthwise import Depthwise
from .kernel import Words, four_order, in_word, multiplies_bytes_together, pad
from .targets import Target

if TYPE_CHECKING:
    from .ir import Code, Index, Pointer, Value

_ROWS = 4  # of inputs that are interleaved


@frozen
class DepthwiseBytes(Depthwise):
    """Is the kernel, for k = 3; `high` is 1 or, at stride 1, 2; `wide` is 1; `vectors` are all.

    Attributes:
        chunk: channels at a time, four vectors; the last chunk ends with the last channel.
        words: of the rows that are interleaved, 1 or 2.
        halved: whether weights have nine bits, one too many: they are packed as their last bits and their halves.
    """

    chunk: int
    words: int
    halved: bool

    @property
    def rows(self) -> int:
        """Rows of parameters: bias, weights for each row of outputs of a tile, and the ending's.

        They are the same for tiles of one row as of two, so that one packing serves every schedule.
        """
        return 1 + _highest(self.stride) * self.weights + len(ending.rows(self.ending))

    @property
    def weights(self) -> int:
        """Rows of weights for a row of outputs."""
        return self.kernel * self.words * (1 + self.halved)

    @property
    def parameters(self) -> int:
        """Words of 32 bits that it reads of its parameters."""
        return self.rows * self.chunk * -(-self.channels // self.chunk)

    def emit(self, code: "Code") -> None:
        """Writes the kernel."""
        code = code.narrow(self.chunk // 4)
        source = code.source.shaped(self.width * self.channels, self.channels, 1, numbers="u8")
        zeros = code.extra.shaped(self.channels, 1, numbers="u8")
        out = code.out.shaped(self.out_width * self.channels, self.channels, 1, numbers="u8")
        parameters = code.parameters.shaped(self.rows * self.chunk, self.chunk, code.lanes, numbers="i32")

        def tile(y: "Index") -> None:
            first = code.sum(code.product(y, self.stride), -self.top)
            deep = (self.high - 1) * self.stride + self.kernel
            inputs = [code.row(source, code.sum(first, i), self.height, self.ring, zeros) for i in range(deep)]
            outputs = [out.at(code.sum(y, i)) for i in range(self.high)]

            def chunk(c: "Index") -> None:
                channel = code.least(code.product(c, self.chunk), self.channels - self.chunk)
                _Chunk(self, code, parameters.at(c), inputs, outputs, channel).across()

            code.loop(0, -(-self.channels // self.chunk), 1, chunk)

        code.tiles(code.begin, code.end, self.high, tile)


class _Chunk:
    """Is a few channels of a few rows of outputs."""

    def __init__(
        self,
        kernel: DepthwiseBytes,
        code: "Code",
        parameters: "Pointer",
        inputs: "Sequence[Pointer]",
        outputs: "Sequence[Pointer]",
        channel: "Index",
    ) -> None:
        self.kernel, self.code, self.parameters = kernel, code, parameters
        self.inputs, self.outputs, self.channel = inputs, outputs, channel

    def across(self) -> None:
        """Goes through a row of outputs; of a kernel's columns those that the next output needs too are carried."""
        k, code = self.kernel, self.code
        kept = k.kernel - k.stride
        carried = [word for place in range(-k.left, kept - k.left) for word in self.column(place)]
        inner = min(k.out_width, (k.width + k.left - k.kernel) // k.stride + 1)

        def output(x: "Index", *carried: "Value") -> "list[Value]":
            first = code.sum(code.product(x, k.stride), kept - k.left)
            columns = list(carried)
            for i in range(k.stride):
                columns += self.column(code.sum(first, i))
            self.output(x, columns)
            return columns[len(columns) - len(carried) :]

        if inner > 0:
            carried = code.loop(0, inner, 1, output, carried)
        for x in range(max(inner, 0), k.out_width):
            carried = output(x, *carried)

    def column(self, place: "Index") -> "list[Value]":
        """Returns the words of a column, of each four vectors; a column beyond the input is what zero is."""
        k, code = self.kernel, self.code
        if isinstance(place, int) and not 0 <= place < k.width:
            four = k.words == 1
            word = code.whole_numbers(k.zero * (0x01010101 if four else 0x00010001))
            return [code.fours(word) if four else word] * (4 * k.words)
        rows: list[Pointer | None] = [row.at(place, self.channel) for row in self.inputs]
        return code.interleaved(rows + [None] * (_ROWS - len(rows)), _ROWS // k.words)

    def output(self, x: "Index", columns: "Sequence[Value]") -> None:
        """Stores one column of outputs."""
        k, code = self.kernel, self.code
        names, each = ending.rows(k.ending), 4 * k.words
        for i, place in enumerate(self.outputs):
            values = []
            for v in range(4):

                def row(name: str, numbers: str, v: int = v) -> "Value":
                    at = k.rows - len(names) + names.index(name)
                    return self.parameters.shaped(*self.parameters.strides, numbers=numbers).at(at, v).load()

                def products(total: "Value", first: int, v: int = v) -> "Value":
                    for n in range(k.kernel * k.words):
                        column, word = divmod(n, k.words)
                        weight = self.parameters.at(first + n, v).load()
                        total = code.dot("u8", columns[column * each + word * 4 + v], weight, total)
                    return total

                total, first = self.parameters.at(0, v).load(), 1 + i * k.weights
                if k.halved:
                    halves = products(code.whole_numbers(0), first + k.kernel * k.words)
                    total = code.plus(total, code.plus(halves, halves))
                total = products(total, first)
                values.append(ending.finish(code, total, k.ending, row))
            place.at(x, self.channel).store_four(values)


def _highest(stride: int) -> int:
    """Returns the rows of outputs that four rows of inputs are enough for."""
    return 2 if stride == 1 else 1


def fits(kernel: Depthwise, target: Target) -> bool:
    """Whether a layer can be done this way; there is no use in it where bytes are multiplied one by one."""
    near = kernel.kernel == 3 and kernel.left <= kernel.kernel - kernel.stride
    return near and multiplies_bytes_together(target)


def of(kernel: Depthwise, target: Target, rows: int, *, nine: bool) -> DepthwiseBytes:
    """Returns the kernel that does what `kernel` does; `rows` is the least number of them that a call has, `nine`
    whether weights have nine bits."""  # fmt: skip
    facts = {name: getattr(kernel, name) for name in kernel.__dataclass_fields__}
    chunk = max(size for size in (64, 32, 16, 4) if size <= min(kernel.channels, 4 * target.lanes))
    high = min(_highest(kernel.stride), rows)
    words = _ROWS // in_word("u8", target)
    return DepthwiseBytes(
        **facts | {"by_columns": False, "high": high, "wide": 1}, chunk=chunk, words=words, halved=nine
    )


def pack(
    kernel: DepthwiseBytes, target: Target, bias: NDArray[Any], weight: NDArray[Any], last: Sequence[NDArray[Any]]
) -> Words:
    """Returns bias [channels], weights [3, 3, channels] and the ending's rows chunk by chunk: [chunk][row][channel]."""
    size = _ROWS // kernel.words
    rows = [bias]
    halves = np.floor(weight / 2)
    parts = [weight - 2 * halves, halves] if kernel.halved else [weight]
    for i, part in product(range(_highest(kernel.stride)), parts):
        placed = np.zeros((_ROWS, *weight.shape[1:]), np.int8 if size == 4 else np.int16)
        placed[i : i + kernel.kernel] = part
        words = placed.reshape(kernel.words, size, *weight.shape[1:]).transpose(2, 0, 3, 1)  # column, word, channel
        rows += list(np.ascontiguousarray(words).view(np.int32)[..., 0].reshape(-1, weight.shape[-1]))
    table = np.vstack([pad(row.reshape(1, -1), 1, kernel.channels).view(np.int32) for row in (*rows, *last)])
    order = np.array(four_order(target, kernel.chunk // 4))
    starts = range(0, kernel.channels, kernel.chunk)
    return np.concatenate([table[:, min(s, kernel.channels - kernel.chunk) + order].ravel() for s in starts])
