"""Ctrl-C and SIGTERM as an exception, at once or at the end of a step."""

import signal
import time
from types import FrameType, TracebackType
from typing import Any

from ..errors import MobileNetError

PATIENCE = 1.0  # seconds


class Interrupted(MobileNetError):
    """The work was stopped by Ctrl-C (exit code 130) or SIGTERM (exit code 143)."""

    def __init__(self, number: int, text: str = "") -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}{text}")
        self.number = number
        self.exit_code = 128 + number


class Signals:
    """Turns SIGINT and SIGTERM into `Interrupted` while it is entered.

    With `deferred` set, a signal is only noted in `pending`, for a place where it is good to stop. Another Ctrl-C after
    a second raises at once; within it, it is the same one that torchrun has passed on. Does nothing outside of the main
    thread, where Python delivers no signals.
    """

    def __init__(self) -> None:
        self.deferred = False
        self.pending = 0
        self._since = 0.0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Signals":
        try:
            self._before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not the main thread
            self._before = {}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self.deferred:
            raise Interrupted(number)
        if not self.pending:
            self.pending, self._since = number, time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self._since > PATIENCE:
            raise Interrupted(number)
