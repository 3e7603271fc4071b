"""Places in one block of memory for buffers that live for a while: those never alive together may share bytes."""

from bisect import insort
from collections.abc import Sequence
from operator import itemgetter
from typing import NamedTuple

ALIGNMENT = 64  # bytes: of the widest vector, and a cache line


class Buffer(NamedTuple):
    """Is a buffer that is in use from the `first` to the `last` point in time, both included.

    Attributes:
        name: unique.
        bytes: its size.
        first, last: when it is in use.
    """

    name: str
    bytes: int
    first: int
    last: int


def place(buffers: Sequence[Buffer]) -> tuple[dict[str, int], int]:
    """Returns the offset in bytes of each buffer, and the size of all: the largest first, each as low as it fits."""
    placed: list[tuple[int, int, Buffer]] = []  # sorted by their offsets
    for buffer in sorted(buffers, key=lambda b: (-b.bytes, b.name)):
        start = 0
        for low, high, other in placed:
            if other.first <= buffer.last and buffer.first <= other.last:
                if start + buffer.bytes <= low:
                    break
                start = max(start, high)
        insort(placed, (start, _aligned(start + buffer.bytes), buffer), key=itemgetter(0))
    return {b.name: low for low, _, b in placed}, max((high for _, high, _ in placed), default=0)


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
