"""Small trainings for the tests: photos by script, settings that take a second, and processes that start at once."""

import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import coverage
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import load_file

from mobilenet.training.settings import Settings

# V2 of 90,000 parameters: a step of 16 photos takes 0.05 s on one core.
TINY: dict[str, Any] = {
    "alpha": 0.1, "resolution": 32, "downsampling": 32, "batch": 16, "precision": "f32", "patience": 0, "threads": 1
}  # fmt: skip

_processes = multiprocessing.get_context("forkserver")  # importing torch takes 3 s: once, not for each process
_processes.set_forkserver_preload(["mobilenet.training.train"])


def tiny(**changes: Any) -> Settings:
    """Returns settings for a training of a few seconds."""
    return Settings(**TINY | {"epochs": 2} | changes)


def make_photos(folder: Path, each: int = 20, classes: int = 3, side: int = 32, seed: int = 0) -> Path:
    """Writes noise with one strong colour a class, which any network learns, as folder/colour/000.png."""
    rng = np.random.default_rng(seed)
    for label in range(classes):
        (folder / f"colour{label}").mkdir(parents=True)
        for index in range(each):
            pixels = rng.integers(0, 100, (side, side, 3), dtype=np.uint8)
            pixels[:, :, label % 3] += 120
            Image.fromarray(pixels).save(folder / f"colour{label}" / f"{index:03}.png")
    return folder


def start(
    photos: Path,
    output: Path,
    settings: Settings,
    *,
    environment: Mapping[str, str] | None = None,
    die_at: int = 0,
    hold_at: int = 0,
    **more: Any,
) -> ForkServerProcess:
    """Starts `train` in a process that ends with its exit code; what it reports is added to `log_of(output)`.

    Args:
        photos, output, settings: of the training.
        environment: variables of the process.
        die_at: kill -9 itself before so many-th change of a file (rename, removal or flush), counted from 1.
        hold_at: wait after so many-th step until a signal has come.
        more: further arguments of `train`.
    """
    arguments = (photos, output, settings.given(), dict(environment or {}), die_at, hold_at, more)
    process = _processes.Process(target=_child, args=arguments, daemon=True)
    process.start()
    return process


def warm_up() -> None:
    """Imports torch once for all processes that `start` starts, so that their time can be taken."""
    process = _processes.Process(target=time.sleep, args=(0,))
    process.start()
    process.join()


def log_of(output: Path) -> Path:
    """Returns the file of what a started training has reported."""
    return output.with_suffix(".log")


def _child(
    photos: Path,
    output: Path,
    settings: dict[str, Any],
    environment: dict[str, str],
    die_at: int,
    hold_at: int,
    more: dict[str, Any],
) -> None:
    from mobilenet.errors import MobileNetError
    from mobilenet.training.train import train

    # Not measured: a signal's exception amid the measuring would leave its lock held, and the process waiting for ever.
    if measured := coverage.Coverage.current():
        measured.stop()
    os.environ.update(environment)
    if die_at:
        _die_at_change(die_at)
    if hold_at:
        hold_after(hold_at)
    with open(log_of(output), "a", buffering=1) as log:
        try:
            train(photos, output, Settings(**settings), report=lambda event: log.write(f"{event!r}\n"), **more)
        except MobileNetError as error:
            log.write(f"{type(error).__name__}: {error}\n")
            sys.exit(error.exit_code)


def _die_at_change(number: int) -> None:
    changes = 0

    def counted(change: Callable[..., Any]) -> Callable[..., Any]:
        def count_and_do(*args: Any, **kwargs: Any) -> Any:
            nonlocal changes
            changes += 1
            if changes == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return change(*args, **kwargs)

        return count_and_do

    for name in ("replace", "unlink", "fsync", "mkdir"):
        setattr(os, name, counted(getattr(os, name)))


def hold_after(step: int) -> None:
    """Makes a training of this process wait after a step until a signal has come, however late that is."""
    from mobilenet.training.train import Training

    tell = Training._tell_step

    def tell_and_hold(training: Training, *args: Any) -> None:
        tell(training, *args)
        while training.state.step == step and not training.signals.pending:
            time.sleep(0.001)

    setattr(Training, "_tell_step", tell_and_hold)  # noqa: B010


def wait_for(output: Path, text: str, seconds: float = 600) -> None:
    """Waits until a started training has reported `text`."""
    end = time.monotonic() + seconds
    while not (log_of(output).exists() and text in log_of(output).read_text()):
        assert time.monotonic() < end, f"{text!r} did not come: {log_of(output).read_text()[-2000:]}"
        time.sleep(0.01)


def checkpoints(output: Path) -> list[Path]:
    """Returns a training's checkpoints, oldest first."""
    return sorted((output / "training" / "checkpoints").iterdir())


def state_of(output: Path) -> dict[str, NDArray[Any]]:
    """Returns the vectors of the newest checkpoint."""
    return load_file(checkpoints(output)[-1])


def metrics_of(output: Path) -> list[dict[str, Any]]:
    """Returns the rows of metrics without what time decides."""
    rows = [json.loads(line) for line in (output / "training" / "metrics.jsonl").read_text().splitlines()]
    return [{key: row[key] for key in row if key not in ("seconds", "images_per_second")} for row in rows]


def assert_same(one: Path, other: Path) -> None:
    """Asserts that two trainings came to the same, bit for bit: model, last state and metrics."""
    assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
    states = [state_of(output) for output in (one, other)]
    assert all(np.array_equal(states[0][n].view(np.int32), states[1][n].view(np.int32)) for n in states[0])
    assert metrics_of(one) == metrics_of(other)
