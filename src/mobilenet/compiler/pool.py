"""Pooling over the whole feature map: the mean or the largest of each channel."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import ending
from .kernel import Kernel

if TYPE_CHECKING:
    from .ir import Code, Index, Value


@dataclass(frozen=True)
class Pool(Kernel):
    """Is the kernel; called with vectors of channels begin..end.

    Attributes:
        numbers: that inputs and outputs are. Sums of bytes are exact: less than 2^24.
        kind: "average_pool" or "max_pool".
        ending: of a mean; of bytes it rescales the sum, with the bias before it among the parameters.
        pixels: of the map.
        channels: stored, whole vectors.
    """

    numbers: str
    kind: str
    ending: str
    pixels: int
    channels: int

    @property
    def parameters(self) -> int:
        """Words of 32 bits that it reads of its parameters."""
        return self.rows * self.channels

    @property
    def rows(self) -> int:
        """Rows of parameters: where bytes are added, a bias, and the ending's."""
        names = ending.rows(self.ending)
        return len(names) + bool(names)

    def emit(self, code: "Code") -> None:
        """Writes the kernel."""
        source = code.source.shaped(self.channels, code.lanes, numbers=self.numbers)
        out = code.out.shaped(code.lanes, numbers=self.numbers)
        parameters = code.parameters.shaped(self.rows * code.lanes, code.lanes)
        names = ending.rows(self.ending)

        def vector(c: "Index") -> None:
            def row(name: str, numbers: str) -> "Value":
                return parameters.shaped(*parameters.strides, numbers=numbers).at(c, 1 + names.index(name)).load()

            def join(pixel: "Index", found: "Value") -> "list[Value]":
                x = source.at(pixel, c).load()
                return [code.add(found, x) if self.kind == "average_pool" else code.maximum(x, found)]

            (found,) = code.unrolled(self.pixels - 1, 4, lambda i, x: join(code.sum(i, 1), x), [source.at(0, c).load()])
            if names:
                found = ending.finish(code, code.add(found, parameters.at(c, 0).load()), self.ending, row, exact=True)
            elif self.numbers == "u8":
                found = code.rounded(found)
            elif self.kind == "average_pool":
                found = code.multiply(found, code.constant(1 / self.pixels))
            out.at(c).store(found)

        code.loop(code.begin, code.end, 1, vector)
