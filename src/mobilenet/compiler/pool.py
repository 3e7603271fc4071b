"""Pooling over the whole feature map: the mean or the largest of each channel."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .kernel import Kernel

if TYPE_CHECKING:
    from .ir import Code, Index, Value


@dataclass(frozen=True)
class Pool(Kernel):
    """Is the kernel; called with vectors of channels begin..end.

    Attributes:
        kind: "average_pool" or "max_pool".
        pixels: of the map.
        channels: stored, whole vectors.
    """

    kind: str
    pixels: int
    channels: int

    @property
    def parameters(self) -> int:
        """Floats that it reads of its parameters."""
        return 0

    def emit(self, code: "Code") -> None:
        """Writes the kernel."""
        source, out = code.source.shaped(self.channels, code.lanes), code.out.shaped(code.lanes)

        def vector(c: "Index") -> None:
            def join(pixel: "Index", found: "Value") -> "list[Value]":
                x = source.at(pixel, c).load()
                return [code.add(found, x) if self.kind == "average_pool" else code.maximum(x, found)]

            (found,) = code.unrolled(self.pixels - 1, 4, lambda i, x: join(code.sum(i, 1), x), [source.at(0, c).load()])
            if self.kind == "average_pool":
                found = code.multiply(found, code.constant(1 / self.pixels))
            out.at(c).store(found)

        code.loop(code.begin, code.end, 1, vector)
