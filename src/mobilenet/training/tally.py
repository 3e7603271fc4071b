"""The figures of a training: those it keeps as it goes, and those it ends with."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..common.files import shown


class Sums(NamedTuple):
    """Holds sums over the photos of a step or a validation: of the loss and of right answers, and their number."""

    loss: float
    correct: int
    photos: int


@dataclass
class Tally:
    """Counts what is not in the weights: of the epoch at hand, and of the best one. Goes into each checkpoint."""

    loss: float = 0.0  # sum over the epoch's photos
    correct: int = 0
    photos: int = 0
    seconds: float = 0.0  # of the epoch's steps
    total_seconds: float = 0.0
    best_epoch: int = 0
    best_correct: int = -1
    best_loss: float = 0.0
    done: bool = False

    def add(self, sums: Sums, seconds: float) -> None:
        """Counts a step."""
        self.loss += sums.loss
        self.correct += sums.correct
        self.photos += sums.photos
        self.seconds += seconds
        self.total_seconds += seconds

    def end_epoch(self, epoch: int, found: Sums | None, seconds: float) -> bool:
        """Counts a validation, begins the next epoch, and tells whether this one was the best."""
        self.loss, self.correct, self.photos, self.seconds = 0.0, 0, 0, 0.0
        self.total_seconds += seconds
        # Of equal accuracies, frequent with few photos, the one with less loss is better.
        best = found is None or (found.correct, -found.loss) > (self.best_correct, -self.best_loss)
        if best:
            self.best_epoch = epoch
            self.best_correct, self.best_loss = (found.correct, found.loss) if found else (0, 0.0)
        return best


@dataclass(frozen=True)
class Result:
    """Is what a training came to.

    Attributes:
        output: the model folder.
        epochs: done.
        best_epoch: whose weights are the model, from 1.
        val_top1, val_loss: of the model; None without photos to validate on.
        train, validation, bad: numbers of photos trained on, validated on, and unreadable.
        seconds: spent in steps and validations, over all interruptions.
    """

    output: Path
    epochs: int
    best_epoch: int
    val_top1: float | None
    val_loss: float | None
    train: int
    validation: int
    bad: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as plain data."""
        return dataclasses.asdict(self) | {"output": str(self.output)}

    def __str__(self) -> str:
        quality = "" if self.val_top1 is None else f", top-1 {self.val_top1:.1%} on {self.validation} validation photos"
        bad = f"; {self.bad} unreadable photo(s) left out" if self.bad else ""
        return f"{shown(self.output)}: the model of epoch {self.best_epoch} of {self.epochs}{quality}{bad}"
