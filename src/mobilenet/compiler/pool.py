"""Pooling over the whole feature map: the mean or the largest of each channel."""

from typing import TYPE_CHECKING

from ..common.frozen import frozen
from . import ending
from .kernel import Kernel

if TYPE_CHECKING:
    from .ir import Code, Index, Value


@frozen
class Pool(Kernel):
    """Is the kernel; called with vectors of channels begin..end.

    Attributes:
        numbers: that inputs and outputs are.
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
            def constants(place: int, numbers: str) -> "Value":
                return parameters.shaped(*parameters.strides, numbers=numbers).at(c, place).load()

            def row(name: str, numbers: str) -> "Value":
                return constants(1 + names.index(name), numbers)

            def join(pixel: "Index", found: "Value") -> "list[Value]":
                x = source.at(pixel, c).load(whole=bool(names))
                if self.kind == "max_pool":
                    return [code.maximum(x, found)]
                return [code.plus(found, x) if names else code.add(found, x)]

            first = source.at(0, c).load(whole=bool(names))
            (found,) = code.unrolled(self.pixels - 1, 4, lambda i, x: join(code.sum(i, 1), x), [first])
            if names:
                found = code.plus(found, constants(0, "i32"))
                if self.ending == "fixed+mean":
                    found = code.fixed.mean(found, self.pixels)
                found = ending.finish(code, found, self.ending, row)
            elif self.numbers == "u8":
                found = code.rounded(found)
            elif self.kind == "average_pool":
                found = code.multiply(found, code.constant(1 / self.pixels))
            out.at(c).store(found)

        code.loop(code.begin, code.end, 1, vector)
