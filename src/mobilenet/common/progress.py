"""Progress of long work on stderr: one line that rewrites itself on a terminal, a plain line now and then elsewhere."""

import sys
import time
from collections.abc import Callable
from typing import TextIO

Progress = Callable[[int, int], None]

TERMINAL_SECONDS = 0.1  # between updates: smooth to the eye, nothing to the processor
PLAIN_SECONDS = 10.0  # in a log file


def counter(what: str, stream: TextIO | None = None) -> Progress:
    """Returns a function of (done, total) that shows how far the work `what` is, its speed and the time left.

    Nothing is shown for work that ends within the first interval; the last call (done == total) ends the line.
    """
    line = Line(stream)
    start = time.monotonic()

    def show(done: int, total: int) -> None:
        elapsed = max(time.monotonic() - start, 1e-9)
        left = elapsed * (total - done) / done if done else 0.0
        share = 100 * done // total if total else 100
        line.update(f"{what} {done}/{total} {share}% {done / elapsed:.0f}/s {clock(left)} left", last=done >= total)

    return show


def clock(seconds: float) -> str:
    """Returns a duration as 1:05 or 2:03:09."""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


class Line:
    """Is a line of progress that `update` replaces; `print` writes a lasting line above it."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr
        self.terminal = self.stream.isatty()
        self.interval = TERMINAL_SECONDS if self.terminal else PLAIN_SECONDS
        self.shown_at = time.monotonic()
        self.width = 0  # of the line that stands on the terminal now

    def update(self, text: str, *, last: bool = False) -> None:
        """Shows `text` if it is time to, or if it is the last of a line that has been shown."""
        now = time.monotonic()
        if now - self.shown_at < self.interval and not (last and self.width):
            return
        self.shown_at = now
        if self.terminal:
            self.stream.write("\r" + text.ljust(self.width) + ("\n" if last else ""))
            self.width = 0 if last else len(text)
        else:
            self.stream.write(text + "\n")
        self.stream.flush()

    def print(self, text: str) -> None:
        """Writes a line that stays."""
        self.stream.write(("\r" + text.ljust(self.width) if self.terminal else text) + "\n")
        self.width = 0
        self.stream.flush()
