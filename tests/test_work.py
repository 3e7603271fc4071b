"""What counts work leaves a profiler, a caller's or its own, as it was."""

import sys
from types import FrameType
from typing import Any

from work import counted


def test_the_profiler_of_before_goes_on() -> None:
    seen = []

    def profiler(frame: FrameType, event: str, _: Any) -> None:
        seen.append(event)

    before = sys.getprofile()
    sys.setprofile(profiler)
    try:
        with counted():
            pass
        assert sys.getprofile() is profiler
    finally:
        sys.setprofile(before)
    assert seen
