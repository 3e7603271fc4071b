"""Progress: silent for short work, one rewritten line on a terminal, plain lines elsewhere."""

import io

import pytest

from mobilenet.common import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_terminal_line_is_rewritten_and_ended(clock: list[float]) -> None:
    out = Terminal()
    show = progress.counter("checking", out)
    for done in (1, 2, 3, 4):
        clock[0] += 1.0
        show(done, 4)
    assert out.getvalue().split("\r")[1:] == [
        "checking 1/4 25% 1/s 0:03 left",
        "checking 2/4 50% 1/s 0:02 left",
        "checking 3/4 75% 1/s 0:01 left",
        "checking 4/4 100% 1/s 0:00 left\n",
    ]


def test_a_shorter_text_wipes_the_longer_one(clock: list[float]) -> None:
    out = Terminal()
    line = progress.Line(out)
    for text in ("long text", "short"):
        clock[0] += 1.0
        line.update(text)
    line.print("done")
    assert out.getvalue() == "\rlong text\rshort    \rdone \n"


def test_short_work_shows_nothing(clock: list[float]) -> None:
    out = Terminal()
    show = progress.counter("checking", out)
    clock[0] += 0.01
    show(4, 4)
    assert out.getvalue() == ""


def test_elsewhere_a_plain_line_every_ten_seconds(clock: list[float]) -> None:
    out = io.StringIO()
    show = progress.counter("checking", out)
    for done in range(1, 26):
        clock[0] += 1.0
        show(done, 26)
    assert out.getvalue().splitlines() == ["checking 10/26 38% 1/s 0:16 left", "checking 20/26 76% 1/s 0:06 left"]
    progress.Line(out).print("done")
    assert out.getvalue().endswith("left\ndone\n")


def test_empty_work(clock: list[float]) -> None:
    out = Terminal()
    show = progress.counter("checking", out)
    clock[0] += 1.0
    show(0, 0)
    assert out.getvalue() == "\rchecking 0/0 100% 0/s 0:00 left\n"


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (65.2, "1:05"), (7389, "2:03:09")])
def test_clock(seconds: float, text: str) -> None:
    assert progress.clock(seconds) == text
