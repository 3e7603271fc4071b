"""Counts work, for tests of what must be quick: it is the same however busy the machine is, as time is not."""

import contextlib
import sys
from collections import Counter
from collections.abc import Iterator
from types import FrameType
from typing import Any


@contextlib.contextmanager
def counted() -> Iterator[Counter[str]]:
    """Gives how often this thread called each function, Python's by its qualified name, C's with its module."""
    calls: Counter[str] = Counter()
    before = calls.get
    profile = sys.getprofile()

    def count(frame: FrameType, event: str, function: Any) -> None:
        if event == "call":
            name = frame.f_code.co_qualname
        elif event == "c_call":
            name = f"{function.__module__}.{function.__qualname__}"
        else:
            return
        calls[name] = before(name, 0) + 1

    sys.setprofile(count)
    try:
        yield calls
    finally:
        sys.setprofile(profile)


class Compared(str):
    """Is text whose comparisons `counted` sees: they are calls of Python's. So is what is put in front of it."""

    __slots__ = ()

    def __radd__(self, before: str) -> "Compared":
        return Compared(before.__add__(self))

    def __eq__(self, other: object) -> bool:
        return str.__eq__(self, other)

    def __lt__(self, other: str) -> bool:
        return str.__lt__(self, other)

    __hash__ = str.__hash__
