"""Two processes compute what one does that accumulates their micro-batches, and stop when one of them is lost."""

import os
import signal
import socket
import subprocess
import sys
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import numpy as np
import pytest
import torch

from mobilenet.errors import UsageError
from mobilenet.training.distributed import Group, Lost
from mobilenet.training.settings import Settings
from mobilenet.training.train import train
from toy_training import TINY, checkpoints, log_of, make_photos, metrics_of, start, state_of, tiny, wait_for

TWO_PARTS = tiny(epochs=2, micro_batches=2)
LONG = tiny(epochs=500, micro_batches=2, checkpoint_seconds=0.0)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_photos(tmp_path_factory.mktemp("data") / "photos")


def environment(size: int) -> list[dict[str, str]]:
    """Returns what torchrun sets, for each process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(size)]


def start_two(photos: Path, output: Path, settings: Settings, hold_at: int = 0) -> list[ForkServerProcess]:
    """Starts both processes; the second one, which may be held after a step, has its log beside the first one's."""
    other = output.with_name(output.name + "-rank1")
    if not other.is_symlink():
        other.symlink_to(output)
    where = (output, other)
    return [
        start(photos, where[n], settings, environment=env, resume=True, hold_at=n * hold_at)
        for n, env in enumerate(environment(2))
    ]


def assert_nearly_same(one: Path, other: Path) -> None:
    for mine, theirs in zip(metrics_of(one), metrics_of(other), strict=True):
        assert mine.keys() == theirs.keys()
        assert mine["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-5)
        assert mine["val_loss"] == pytest.approx(theirs["val_loss"], rel=1e-4)
    states = state_of(one), state_of(other)
    for name, mine in states[0].items():
        # Both add the same two float32 parts; only fused against separate rounding can differ, in some 16 steps, and
        # is carried on by the network from step to step.
        scale = np.abs(mine).max()
        tolerance = float(64 * 16 * np.finfo(np.float32).eps * scale)
        np.testing.assert_allclose(mine, states[1][name], rtol=0, atol=tolerance)


def test_two_processes_do_what_one_does(photos: Path, tmp_path: Path) -> None:
    train(photos, tmp_path / "one", TWO_PARTS, report=lambda _: None)
    two = start_two(photos, tmp_path / "two", TWO_PARTS)
    for process in two:
        process.join()
        assert process.exitcode == 0
    assert_nearly_same(tmp_path / "one", tmp_path / "two")
    assert log_of(tmp_path / "two-rank1").read_text() == ""  # the first alone reports


def test_torchrun(photos: Path, tmp_path: Path) -> None:
    train(photos, tmp_path / "one", TWO_PARTS, report=lambda _: None)
    options = [f"--{name.replace('_', '-')}={value}" for name, value in TINY.items()]
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "-m",
        "mobilenet",
        "train",
    ]
    command += [str(photos), "-o", str(tmp_path / "two"), "--epochs=2", *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("epoch 2/2") == 1
    assert_nearly_same(tmp_path / "one", tmp_path / "two")


@pytest.mark.parametrize("victim", [0, 1])
def test_when_one_is_killed_the_other_stops_and_one_process_goes_on(photos: Path, tmp_path: Path, victim: int) -> None:
    output = tmp_path / "out"
    two = start_two(photos, output, LONG)
    wait_for(output, "step=6")
    two[victim].kill()
    for process in two:
        process.join()
    assert two[victim].exitcode == -signal.SIGKILL
    assert two[1 - victim].exitcode == 1
    said = log_of((output, output.with_name("out-rank1"))[1 - victim]).read_text().splitlines()[-1]
    assert said.startswith(f"Lost: process {1 - victim} of 2: another process of the training has stopped")
    step = int(checkpoints(output)[-1].name[5:13])
    assert step >= 5
    process = start(photos, output, LONG, resume=True)
    wait_for(output, f"going on from the checkpoint, step {step} of")
    wait_for(output, f"step={step + 3}")
    process.kill()
    process.join()


def test_a_signal_to_one_stops_both_with_a_checkpoint_and_two_go_on(photos: Path, tmp_path: Path) -> None:
    output, settings = tmp_path / "out", tiny(epochs=6, micro_batches=2, checkpoint_seconds=1e6)
    train(photos, tmp_path / "one", settings, report=lambda _: None)
    two = start_two(photos, output, settings, hold_at=6)
    wait_for(output, "step=6")
    os.kill(two[1].pid or 0, signal.SIGTERM)
    for process in two:
        process.join()
        assert process.exitcode == 143
    step = int(checkpoints(output)[-1].name[5:13])
    assert f"go on with --resume from step {step} of 24" in log_of(output).read_text()
    for process in start_two(photos, output, settings):
        process.join()
        assert process.exitcode == 0
    assert_nearly_same(tmp_path / "one", output)


def test_more_processes_than_micro_batches_are_refused(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Group, "from_environment", lambda: Group(0, 3))
    monkeypatch.setattr(Group, "meet", lambda self: None)
    monkeypatch.setattr(Group, "tell", lambda self, document=None: document)
    with pytest.raises(UsageError, match="micro_batches: 2 are fewer than the 3 processes; start at most 2"):
        train(photos, tmp_path / "out", TWO_PARTS)


def test_the_group_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    group = Group.from_environment()
    tensor = torch.ones(2)
    group.meet()
    group.copy([tensor])
    group.hurry()
    assert (group.rank, group.size, group.is_first) == (0, 1, True)
    assert group.add(tensor).tolist() == [1, 1]
    assert group.tell({"a": [1, None]}) == {"a": [1, None]}
    group.leave()


def test_the_environment_says_who_this_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    group = Group.from_environment()
    assert (group.rank, group.size, group.is_first) == (3, 4, False)
    with pytest.raises(Lost, match="process 3 of 4: another process of the training has stopped"):
        group.add(torch.ones(1))  # nobody has met


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
