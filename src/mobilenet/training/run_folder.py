"""The folder of a training: the model as soon as there is one, and beside it in `training/` all that resuming needs.

OUT/                config.json, model.safetensors, README.md: the best model so far
OUT/training/       asked.json         what was asked for, until run.json is there
                    run.json           the plan, the data, versions and machine
                    result.json        what it came to, once it has ended
                    split.jsonl        which photo is in which split
                    metrics.jsonl      a line an epoch
                    bad_photos.jsonl   photos that can't be read, with the reason
                    checkpoints/       the last two states
                    cache/             decoded photos, until the training has ended
                    tensorboard/       if asked for
                    lock               held while a process trains
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, ExitStack, suppress
from pathlib import Path
from typing import Any

from ..common import strict_json
from ..common.checks import exact_fields, short
from ..common.files import read_regular, shown, write_atomic
from ..data.layouts import SetAside
from ..errors import DataError, MobileNetError, ModelError, UsageError
from ..storage.folder import CONFIG
from .checkpoint import remove_leftovers
from .monitor import Report
from .settings import Settings
from .tally import Result

FORMAT = {"format": "mobilenet-training", "version": 1}
RUN_KEYS = ("plan", "data", "start_from", "begun")

_METRICS_LIMIT = 1 << 26


class RunFolder:
    """Knows where the parts of a training's folder lie, and reads and writes the small ones."""

    def __init__(self, output: Path | str) -> None:
        self.output = Path(os.path.abspath(output))
        self.training = self.output / "training"
        self.run = self.training / "run.json"
        self.asked = self.training / "asked.json"
        self.result = self.training / "result.json"
        self.split = self.training / "split.jsonl"
        self.metrics = self.training / "metrics.jsonl"
        self.bad_photos = self.training / "bad_photos.jsonl"
        self.checkpoints = self.training / "checkpoints"
        self.cache = self.training / "cache"
        self.tensorboard = self.training / "tensorboard"

    def claim(self, resume: bool) -> AbstractContextManager[object]:
        """Makes the folder this process's own until the returned context ends, or the process does.

        Raises:
            MobileNetError: another process trains there, or the folder can't be made.
            UsageError: it holds a training and `resume` is false, or something that is no training.
        """
        self._refuse_foreign()
        new = not os.path.lexists(self.output)
        with ExitStack() as stack:
            try:
                self.checkpoints.mkdir(parents=True, exist_ok=True)
                lock = stack.enter_context(open(self.training / "lock", "a+"))
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise MobileNetError(
                    f"{shown(self.output)}: another process trains there; wait for it, or choose another folder"
                ) from None
            except OSError as error:
                raise MobileNetError(f"{shown(self.output)}: can't be trained in: {error.strerror}") from error
            if self.run.exists() and not resume:
                raise UsageError(
                    f"{shown(self.output)}: holds a training already; go on with it (--resume), "
                    "or choose another folder"
                )
            for folder in (self.output, self.training, self.checkpoints):
                remove_leftovers(folder)
            if new:
                stack.push(self._unmake)
            return stack.pop_all()

    def _unmake(self, kind: type[BaseException] | None, *_: object) -> None:
        """Removes the folder after photos or settings that can't be used, unless something of use is in it."""
        if kind is not None and issubclass(kind, DataError | UsageError):
            held = {self.asked.name, "lock", self.checkpoints.name}
            with suppress(OSError):  # somebody removed it, or put a file beside it
                if held >= set(os.listdir(self.training)) and not os.listdir(self.checkpoints):
                    shutil.rmtree(self.training)
                    self.output.rmdir()

    def _refuse_foreign(self) -> None:
        """Raises a UsageError where a model that no training here made, or a user's own files, would be mixed with."""
        if self.run.exists() or not os.path.lexists(self.output):
            return
        if not self.output.is_dir():
            raise UsageError(f"{shown(self.output)}: is a file; name a folder, to be made")
        others = sorted(set(os.listdir(self.output)) - {self.training.name})
        if CONFIG in others:
            raise UsageError(
                f"{shown(self.output)}: holds a model; choose another folder (--from {shown(self.output)} begins with "
                "its weights)"
            )
        if others:
            raise UsageError(
                f"{shown(self.output)}: holds {shown(others[0])} and is no training; choose another folder, to be made"
            )

    def read_run(self) -> dict[str, Any] | None:
        """Returns what `write_run` wrote, None where it did not come that far.

        Raises:
            ModelError: names what in the file is wrong.
        """
        run = _read(self.run)
        if run is not None and (set(run) != {*FORMAT, *RUN_KEYS} or {key: run[key] for key in FORMAT} != FORMAT):
            raise ModelError(f"{shown(self.run)}: has the keys {short(sorted(run))}, not those of this version")
        return run

    def asked_for(
        self, settings: Settings, start_from: Path | None, resume: bool, report: Report
    ) -> tuple[Settings, Path | None]:
        """Returns what is asked for, and keeps it until `write_run`, for a training that is interrupted before.

        On resume of such a training what it was asked for holds where nothing else is asked for now.
        """
        if self.run.exists():
            return settings, start_from
        given = settings.given()
        if resume:
            before = _read(self.asked) or {}
            how = "no step was done yet; beginning as it was asked for" if before else "no training yet; beginning one"
            report(f"{shown(self.output)}: {how}")
            kept = before.get("settings", {})
            if isinstance(kept.get("resolution"), list):
                kept["resolution"] = tuple(kept["resolution"])
            given = kept | given
            start_from = start_from or (Path(before["start_from"]) if before.get("start_from") else None)
        source = None if start_from is None else os.path.abspath(start_from)
        write_atomic(self.asked, json.dumps({"settings": given, "start_from": source}, indent=1).encode())
        return Settings(**given), start_from

    def read_result(self) -> Result | None:
        """Returns what the training came to, None where it has not ended; raises `ModelError` as `read_run` does."""
        found = _read(self.result)
        try:
            return None if found is None else Result(**exact_fields("result", found, Result) | {"output": self.output})
        except UsageError as error:
            raise ModelError(f"{shown(self.result)}: {error}") from error

    def write_run(self, run: Mapping[str, Any]) -> None:
        """Writes what a resumed training has to know: the keys of `RUN_KEYS`."""
        write_atomic(self.run, json.dumps(FORMAT | dict(run), indent=1).encode())
        self.asked.unlink(missing_ok=True)

    def write_bad_photos(self, photos: Iterable[SetAside]) -> None:
        """Writes the photos that were set aside, with the reasons."""
        write_atomic(self.bad_photos, b"".join(_line(photo._asdict()) for photo in photos))

    def add_metrics(self, row: Mapping[str, Any]) -> None:
        """Adds a line to the metrics."""
        with open(self.metrics, "ab") as file:
            file.write(_line(row))
            file.flush()
            os.fsync(file.fileno())

    def cut_metrics(self, step: int) -> None:
        """Removes the lines after `step`, which the training does again, and a torn last one."""
        rows: list[Mapping[str, Any]] = []
        try:
            for line in read_regular(self.metrics, _METRICS_LIMIT).splitlines():
                row = strict_json.parse(line)
                if isinstance(row, dict) and isinstance(row.get("step"), int) and row["step"] <= step:
                    rows.append(row)
        except DataError as error:
            if os.path.lexists(self.metrics):
                raise ModelError(str(error)) from error
        except ValueError:  # the torn line
            pass
        write_atomic(self.metrics, b"".join(map(_line, rows)))

    def end(self, result: Result) -> None:
        """Writes what the training came to, and removes what only a running one needs: the decoded photos."""
        write_atomic(self.result, json.dumps(result.to_dict(), indent=1).encode())
        shutil.rmtree(self.cache, ignore_errors=True)


def _read(path: Path) -> dict[str, Any] | None:
    return strict_json.read_object(path) if path.exists() else None


def _line(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row, allow_nan=False).encode("utf-8", "surrogateescape") + b"\n"
