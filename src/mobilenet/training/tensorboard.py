"""TensorBoard's files of a training, where they are asked for."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import UsageError
from .distributed import Group

SCALARS = ("train_loss", "train_top1", "val_loss", "val_top1", "images_per_second")


class Log:
    """Is told what there is to draw; without a writer, does nothing."""

    def __init__(self, writer: Any = None) -> None:
        self._writer = writer

    def step(self, step: int, loss: float) -> None:
        """Draws the loss of one step."""
        if self._writer is not None:
            self._writer.add_scalar("step_loss", loss, step)

    def epoch(self, row: Mapping[str, float | None]) -> None:
        """Draws a row of the metrics."""
        for name in SCALARS:
            if self._writer is not None and row[name] is not None:
                self._writer.add_scalar(name, row[name], row["step"])


@contextlib.contextmanager
def open_log(folder: Path, step: int, wanted: bool, group: Group) -> Iterator[Log]:
    """Opens a log that continues after `step`; in process 0 and if `wanted`, else one that does nothing.

    Raises:
        UsageError: the package is missing.
    """
    if not (wanted and group.is_first):
        yield Log()
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UsageError("tensorboard: needs a package: pip install 'mobilenet[tensorboard]'") from error
    with SummaryWriter(str(folder), purge_step=step + 1) as writer:
        yield Log(writer)
