"""Signals become exceptions, at once or where it is good to stop."""

import signal
import threading

import pytest

from mobilenet.training import signals
from mobilenet.training.signals import Interrupted, Signals


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_raises_at_once(number: signal.Signals, code: int) -> None:
    before = signal.getsignal(number)
    with Signals(), pytest.raises(Interrupted, match=f"interrupted by {number.name}") as caught:
        signal.raise_signal(number)
    assert caught.value.exit_code == code
    assert signal.getsignal(number) is before


def test_a_deferred_signal_is_noted() -> None:
    with Signals() as found:
        found.deferred = True
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):  # torchrun passes them on again
            signal.raise_signal(number)
            assert found.pending == signal.SIGTERM


def test_a_later_ctrl_c_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "PATIENCE", -1.0)
    with Signals() as found:
        found.deferred = True
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Interrupted):
            signal.raise_signal(signal.SIGINT)


def test_in_another_thread_nothing_is_changed() -> None:
    seen: list[object] = []

    def work() -> None:
        with Signals():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGINT)]
