"""What a training tells while it runs, and how it looks on a terminal or in a log."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TextIO

from ..common.progress import Line, clock


@dataclass(frozen=True)
class Step:
    """Is told after every step.

    Attributes:
        epoch, epochs: from 1.
        step, steps: of the whole training, from 1.
        loss: of this batch.
        images_per_second: of all processes together, since the training was begun or resumed.
        seconds_left: at that speed.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    images_per_second: float
    seconds_left: float

    def __str__(self) -> str:
        return (
            f"epoch {self.epoch}/{self.epochs} step {self.step}/{self.steps} loss {self.loss:.3f} "
            f"{self.images_per_second:.0f} images/s {clock(self.seconds_left)} left"
        )


@dataclass(frozen=True)
class Epoch:
    """Is told after every epoch.

    Attributes:
        epoch, epochs: from 1.
        train_loss, train_top1: means over the epoch's batches as they were seen, augmented.
        val_loss, val_top1: of the averaged weights; None without photos to validate on.
        images_per_second: of all processes together, in this epoch's steps.
        is_best: whether it is the best so far, which is now the model.
    """

    epoch: int
    epochs: int
    train_loss: float
    train_top1: float
    val_loss: float | None
    val_top1: float | None
    images_per_second: float
    is_best: bool

    def __str__(self) -> str:
        val = "" if self.val_top1 is None else f" val loss {self.val_loss:.3f} top-1 {self.val_top1:.1%}"
        return (
            f"epoch {self.epoch}/{self.epochs} train loss {self.train_loss:.3f} top-1 {self.train_top1:.1%}{val} "
            f"{self.images_per_second:.0f} images/s{' best' if self.is_best else ''}"
        )


Event = str | Step | Epoch  # a str is a note for the user
Report = Callable[[Event], None]


def on_stderr(stream: TextIO | None = None) -> Report:
    """Returns a report that keeps a line of progress on a terminal; elsewhere a plain line now and then."""
    line = Line(stream)

    def report(event: Event) -> None:
        if isinstance(event, Step):
            line.update(str(event), last=event.step == event.steps)
        else:
            line.print(str(event))

    return report


def silent(event: Event) -> None:
    """Is the report of processes that do not print."""
