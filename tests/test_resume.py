"""Whatever stops a training, it goes on to the weights that it would have come to undisturbed."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.numpy import load_file

from mobilenet.data.cache import Cache
from mobilenet.errors import DatasetError, MobileNetError, ModelError, UsageError
from mobilenet.storage import folder
from mobilenet.training import checkpoint
from mobilenet.training.distributed import Lost
from mobilenet.training.run_folder import RunFolder
from mobilenet.training.settings import Settings
from mobilenet.training.tally import Sums
from mobilenet.training.train import train
from mobilenet.training.worker import Worker
from toy_training import (
    TINY,
    assert_same,
    checkpoints,
    log_of,
    make_photos,
    metrics_of,
    start,
    tiny,
    wait_for,
    warm_up,
)

DEEP = bool(os.environ.get("MOBILENET_DEEP"))
LONG = tiny(epochs=4, checkpoint_seconds=0.0)  # a checkpoint after every step


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_photos(tmp_path_factory.mktemp("data") / "photos")


@pytest.fixture(scope="module")
def undisturbed(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """Returns a training that nothing disturbed, and the seconds that it took."""
    warm_up()
    return undisturbed_training(photos, tmp_path_factory.mktemp("undisturbed") / "out", LONG)


def undisturbed_training(photos: Path, output: Path, settings: Settings) -> tuple[Path, float]:
    began = time.monotonic()
    process = start(photos, output, settings)
    process.join()
    assert process.exitcode == 0
    return output, time.monotonic() - began


def finish(photos: Path, output: Path, settings: Settings = LONG) -> None:
    process = start(photos, output, settings, resume=True)
    process.join()
    assert process.exitcode == 0, log_of(output).read_text()
    assert "is damaged" not in log_of(output).read_text()


def test_killed_at_random_moments(photos: Path, undisturbed: tuple[Path, float], tmp_path: Path) -> None:
    settings, wanted, part = (tiny(epochs=30, checkpoint_seconds=0.0), 20, 12) if DEEP else (LONG, 5, 2)
    whole, seconds = undisturbed_training(photos, tmp_path / "whole", settings) if DEEP else undisturbed
    rng, outputs, kills = random.Random(0), [], 0
    output = tmp_path / "out0"
    while kills < wanted:
        process = start(photos, output, settings, resume=True)
        process.join(rng.uniform(0, seconds / part))
        process.kill()
        process.join()
        if process.exitcode == 0:  # it was faster: the next kills are of another training
            outputs.append(output)
            output = tmp_path / f"out{len(outputs)}"
            continue
        kills += 1
        if (output / folder.CONFIG).exists():
            folder.load(output)  # from the first epoch on there is a whole model at any moment
    finish(photos, output, settings)
    for each in (*outputs, output):
        assert_same(whole, each)


def test_killed_while_writing(photos: Path, undisturbed: tuple[Path, float], tmp_path: Path) -> None:
    """Dies at the 3rd, 9th, 15th, … rename, removal or flush of a file, each time one step further."""
    output, change = tmp_path / "out", 3
    for _ in range(100 if DEEP else 6):
        process = start(photos, output, LONG, resume=True, die_at=change)
        process.join()
        change = change + 6 if change < 40 else 5
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        if (output / folder.CONFIG).exists():
            folder.load(output)
    finish(photos, output)
    assert_same(undisturbed[0], output)
    left = {path.name for path in (output / "training").iterdir()} - {"checkpoints", "lock"}
    assert left == {"run.json", "result.json", "split.jsonl", "metrics.jsonl", "bad_photos.jsonl"}
    assert {path.name for path in output.iterdir()} == {"config.json", "model.safetensors", "README.md", "training"}
    assert [path.name[:13] for path in checkpoints(output)] == ["step-00000015", "step-00000016"]


def test_a_damaged_checkpoint_is_said_and_the_one_before_is_used(
    photos: Path, undisturbed: tuple[Path, float], tmp_path: Path
) -> None:
    output = tmp_path / "out"
    process = start(photos, output, LONG, hold_at=10)
    wait_for(output, "step=10")
    process.kill()
    process.join()
    before, last = checkpoints(output)[-2:]
    data = bytearray(last.read_bytes())
    data[len(data) // 2] ^= 1
    last.write_bytes(data)
    with open(output / "training" / "metrics.jsonl", "ab") as metrics:
        metrics.write(b'{"epoch": 9, "st')
    process = start(photos, output, LONG, resume=True)
    process.join()
    said = log_of(output).read_text()
    assert f"{last.name}: is damaged" in said
    assert f"going on from the checkpoint before, step {int(before.name[5:13])} of" in said
    assert_same(undisturbed[0], output)


def test_without_any_whole_checkpoint_it_begins_anew(
    photos: Path, undisturbed: tuple[Path, float], tmp_path: Path
) -> None:
    output = tmp_path / "out"
    process = start(photos, output, LONG, hold_at=6)
    wait_for(output, "step=6")
    process.kill()
    process.join()
    for path in checkpoints(output):
        path.write_bytes(b"")
    process = start(photos, output, LONG, resume=True)
    process.join()
    assert "no checkpoint to go on from: beginning anew" in log_of(output).read_text()
    assert_same(undisturbed[0], output)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_writes_a_checkpoint(
    photos: Path, undisturbed: tuple[Path, float], tmp_path: Path, number: signal.Signals, code: int
) -> None:
    output = tmp_path / "out"
    rare = tiny(epochs=4, checkpoint_seconds=1e6)
    process = start(photos, output, rare, hold_at=6)
    wait_for(output, "step=6")
    os.kill(process.pid or 0, number)
    process.join()
    assert process.exitcode == code
    last = log_of(output).read_text().splitlines()[-1]
    step = int(checkpoints(output)[-1].name[5:13])
    assert step == 7  # the one that was begun next
    assert last == f"Interrupted: interrupted by {number.name}; go on with --resume from step {step} of 16"
    finish(photos, output, rare)
    assert_same(undisturbed[0], output)


def test_a_signal_before_the_first_step_stops_at_once(photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    process = start(photos, output, LONG, hold_at=1)
    while not (output / "training" / "cache").exists():
        time.sleep(0.001)
    os.kill(process.pid or 0, signal.SIGTERM)
    process.join()
    assert process.exitcode == 143


def test_the_command_stops_and_goes_on(photos: Path, undisturbed: tuple[Path, float], tmp_path: Path) -> None:
    output = tmp_path / "out"
    options = [f"--{name.replace('_', '-')}={value}" for name, value in TINY.items()]
    code = "import sys, toy_training as t; t.hold_after(6); from mobilenet.cli import process; sys.exit(process())"
    command = [sys.executable, "-c", code, "train", str(photos), "-o", str(output), "--epochs=4", *options]
    unmeasured = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    unmeasured["PYTHONPATH"] = os.pathsep.join(sys.path)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=unmeasured)
    while not (output / folder.CONFIG).exists():
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    said = process.communicate()[1]
    assert process.returncode == 130
    assert said.splitlines()[-1].startswith("mobilenet train: interrupted by SIGINT; go on with --resume from step")
    finish(photos, output)
    assert_same(undisturbed[0], output)


def test_a_second_training_on_a_folder_is_refused(photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    process = start(photos, output, LONG, hold_at=1)
    wait_for(output, "step=1,")
    for resume in (False, True):
        with pytest.raises(MobileNetError, match="out: another process trains there") as caught:
            train(photos, output, LONG, resume=resume)
        assert caught.value.exit_code == 1
    process.kill()
    process.join()
    finish(photos, output)  # the lock went with the process


def test_an_ended_training_says_so(undisturbed: tuple[Path, float], tmp_path: Path) -> None:
    told: list[object] = []
    result = train(tmp_path / "not needed", undisturbed[0], resume=True, report=told.append)
    assert (result.output, result.epochs) == (undisturbed[0], 4)
    assert str(told[0]).endswith("this training has ended, there is nothing to go on with")
    with pytest.raises(UsageError, match="epochs: the training was begun with 4, not 5"):
        train(tmp_path / "not needed", undisturbed[0], tiny(epochs=5), resume=True)


@pytest.fixture
def stopped(photos: Path, tmp_path: Path) -> Path:
    """Returns a training that was killed in its second epoch."""
    output = tmp_path / "out"
    process = start(photos, output, LONG, hold_at=6)
    wait_for(output, "step=6")
    process.kill()
    process.join()
    assert len(metrics_of(output)) == 1
    return output


def test_other_settings_are_refused_by_name(photos: Path, stopped: Path) -> None:
    others = {
        "alpha": (0.25, "alpha: the training was begun with 0.1, not 0.25"),
        "resolution": (48, r"resolution: the training was begun with \(32, 32\), not 48"),
        "source": ("keras", "source: the training was begun with other conventions, not keras"),
        "seed": (1, "seed: the training was begun with 0, not 1"),
        "learning_rate": (0.5, "learning_rate: the training was begun with 0.0125, not 0.5"),
        "minutes": (1.0, "minutes: the training was begun with None, not 1.0"),
    }
    for name, (value, message) in others.items():
        with pytest.raises(UsageError, match=message):
            train(photos, stopped, Settings(**{name: value}), resume=True, report=lambda _: None)
    with pytest.raises(UsageError, match="--from: the training was begun from random weights, not "):
        train(photos, stopped, start_from=stopped, resume=True, report=lambda _: None)
    same = Settings(alpha=0.1, resolution=(32, 32), source="paper", checkpoint_seconds=9.0, max_bad=0.5)
    assert train(photos, stopped, same, resume=True, report=lambda _: None).epochs == 4


def test_without_resume_nothing_is_touched(photos: Path, stopped: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in stopped.rglob("*")}
    with pytest.raises(UsageError, match=r"out: holds a training already; go on with it \(--resume\)"):
        train(photos, stopped, LONG)
    assert {path: path.stat().st_mtime_ns for path in stopped.rglob("*")} == before


def test_other_data_is_refused(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", each=12)
    output = tmp_path / "out"
    process = start(photos, output, LONG, hold_at=3)
    wait_for(output, "step=3")
    process.kill()
    process.join()
    first = photos / "colour0" / "000.png"
    moved = first.rename(photos / "colour0" / "new.png")
    with pytest.raises(DatasetError, match=r"photos: is not the data that the training in .*out began with"):
        train(photos, output, resume=True)
    moved.rename(first)
    whole = first.read_bytes()
    first.write_bytes(b"no photo")
    with pytest.raises(DatasetError, match="other photos are unreadable than when the training began"):
        train(photos, output, Settings(max_bad=0.5), resume=True, report=lambda _: None)
    first.write_bytes(whole)
    finish(photos, output)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "run.json: "),
        (b"[]", r"run.json: is \[\], an object is needed"),
        (b'{"format": 1}', "not those of this version"),
    ],
)
def test_a_damaged_run_is_refused(photos: Path, stopped: Path, content: bytes, message: str) -> None:
    (stopped / "training" / "run.json").write_bytes(content)
    with pytest.raises(ModelError, match=message):
        train(photos, stopped, resume=True)


def test_a_damaged_plan_is_refused(photos: Path, stopped: Path) -> None:
    run = stopped / "training" / "run.json"
    run.write_text(run.read_text().replace('"epochs": 4', '"epochs": 0'))
    with pytest.raises(ModelError, match=r"run.json: epochs: got 0, needed a whole number from 1"):
        train(photos, stopped, resume=True)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("result.json", b'{"epochs": 4}', r"result.json: result: the key 'output' is missing"),
        ("result.json", b"{", r"result.json: "),
        ("metrics.jsonl", None, r"metrics.jsonl: is a folder, a regular file is needed"),
    ],
)
def test_other_damaged_files_are_refused(
    photos: Path, stopped: Path, name: str, content: bytes | None, message: str
) -> None:
    path = stopped / "training" / name
    path.unlink(missing_ok=True)
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    with pytest.raises(ModelError, match=message):
        train(photos, stopped, resume=True, report=lambda _: None)


def test_a_checkpoint_with_other_facts_is_refused(photos: Path, stopped: Path) -> None:
    found = checkpoint.Checkpoint(10, load_file(checkpoints(stopped)[-1]), {"loss": 0.0, "lose": 1.0})
    checkpoint.save(stopped / "training" / "checkpoints", found)
    with pytest.raises(ModelError, match="checkpoint: unknown key 'lose'; did you mean 'loss'"):
        train(photos, stopped, resume=True, report=lambda _: None)


def test_an_epoch_that_was_not_validated_is_when_going_on(
    photos: Path, undisturbed: tuple[Path, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when another process is lost in a validation: the step was done, the epoch did not end."""
    output, validate = tmp_path / "out", Worker.validate

    def lost(self: Worker, cache: Cache) -> Sums:
        if self.state.step == 8:
            raise Lost("process 0 of 2: another process of the training has stopped")
        return validate(self, cache)

    with monkeypatch.context() as patch:
        patch.setattr(Worker, "validate", lost)
        with pytest.raises(Lost):
            train(photos, output, tiny(epochs=4), report=lambda _: None)
    assert checkpoints(output)[-1].name.startswith("step-00000008")
    assert len(metrics_of(output)) == 1
    train(photos, output, resume=True, report=lambda _: None)
    assert_same(undisturbed[0], output)


def test_resume_begins_where_there_is_nothing(photos: Path, tmp_path: Path) -> None:
    assert train(photos, tmp_path / "out", tiny(epochs=1), resume=True, report=lambda _: None).epochs == 1


def test_interrupted_before_the_first_step_it_begins_as_it_was_asked_for(photos: Path, tmp_path: Path) -> None:
    """The settings are kept from before the photos are decoded."""
    output, asked, told = tmp_path / "out", tiny(epochs=1, seed=5, resolution=(32, 40)), []
    run_folder = RunFolder(output)
    with run_folder.claim(False):
        assert run_folder.asked_for(asked, None, False, told.append) == (asked, None)
    assert not told
    train(photos, output, resume=True, report=told.append)
    assert "beginning as it was asked for" in told[0]
    plan = json.loads((output / "training" / "run.json").read_text())["plan"]
    assert (plan["seed"], plan["epochs"], plan["network"]["width"]) == (5, 1, 40)
    assert not (output / "training" / "asked.json").exists()


def test_the_number_of_threads_is_that_of_the_beginning(photos: Path, stopped: Path) -> None:
    """Another number would add in another order and end with other weights."""
    run_file = stopped / "training" / "run.json"
    run_file.write_text(run_file.read_text().replace('"threads": 1', '"threads": 3'))
    before = torch.get_num_threads()
    try:
        train(photos, stopped, resume=True)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
