"""Checkpoints: whatever happens to a file is found, the one before is used, and that is said."""

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save as save_tensors

from mobilenet.errors import MobileNetError, ModelError
from mobilenet.training import checkpoint
from mobilenet.training.checkpoint import Checkpoint

SIZES = {"parameters": 40, "statistics": 6}


def made(step: int, **facts: Any) -> Checkpoint:
    rng = np.random.default_rng(step)
    return Checkpoint(step, {name: rng.standard_normal(n, np.float32) for name, n in SIZES.items()}, facts)


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """Returns the paths of checkpoints of the steps 10 and 20."""
    first, second = (checkpoint.save(tmp_path, made(step, best=0.5)) for step in (10, 20))
    return first, second


def found(folder: Path) -> tuple[int | None, list[str]]:
    newest, troubles = checkpoint.newest(folder, SIZES)
    if newest is not None:
        assert all(np.array_equal(newest.vectors[name], made(newest.step).vectors[name]) for name in SIZES)
    return newest.step if newest else None, troubles


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path: Path) -> None:
    vectors = {"parameters": np.array([np.pi, -0.0, np.inf, 1e-45], np.float32)}
    facts = {"loss": 0.1 + 0.2, "done": False, "name": "é"}
    checkpoint.save(tmp_path, Checkpoint(7, vectors, facts))
    newest, troubles = checkpoint.newest(tmp_path, {"parameters": 4})
    assert newest is not None
    assert troubles == []
    assert (newest.step, newest.facts) == (7, facts)
    assert newest.vectors["parameters"].tobytes() == vectors["parameters"].tobytes()


def test_no_checkpoint_is_no_trouble(tmp_path: Path) -> None:
    assert found(tmp_path) == (None, [])
    assert found(tmp_path / "missing") == (None, [])


def test_the_two_newest_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3, 30):
        checkpoint.save(tmp_path, made(step))
    assert sorted(path.name[:13] for path in tmp_path.iterdir()) == ["step-00000003", "step-00000030"]


def test_a_byte_flipped_anywhere_is_found(two: tuple[Path, Path]) -> None:
    path = two[1]
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for place in rng.integers(0, len(whole), 1000):
        damaged = bytearray(whole)
        damaged[place] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        step, (trouble,) = found(path.parent)
        assert step == 10
        assert path.name in trouble
        assert "is damaged" in trouble


def test_a_file_of_another_length_is_found(two: tuple[Path, Path]) -> None:
    path = two[1]
    whole = path.read_bytes()
    for changed in (b"", whole[:1], whole[:8], whole[:-1], whole + b"\0", whole[: len(whole) // 2], whole * 2):
        path.write_bytes(changed)
        step, (trouble,) = found(path.parent)
        assert (step, "is damaged" in trouble) == (10, True)


def test_all_damaged_gives_none_and_names_each(two: tuple[Path, Path]) -> None:
    for path in two:
        path.write_bytes(b"x")
    step, troubles = found(two[0].parent)
    assert step is None
    assert [path.name in trouble for path, trouble in zip(reversed(two), troubles, strict=True)] == [True, True]


def test_what_is_no_file_is_not_waited_for(two: tuple[Path, Path]) -> None:
    folder, name = two[0].parent, "step-{:08}-" + "0" * 64 + ".safetensors"
    os.mkfifo(folder / name.format(50))
    (folder / name.format(40)).mkdir()
    (folder / name.format(30)).symlink_to(two[1])
    step, troubles = found(folder)
    assert step == 20
    assert len(troubles) == 3
    checkpoint.save(folder, made(60))  # and cleaning up stops at nothing
    assert found(folder) == (60, [])


def test_a_larger_file_is_not_read(two: tuple[Path, Path]) -> None:
    with open(two[1], "r+b") as file:
        file.truncate(1 << 40)
    step, (trouble,) = found(two[0].parent)
    assert step == 10
    assert "at most" in trouble


def test_other_names_are_left_alone(two: tuple[Path, Path]) -> None:
    folder = two[0].parent
    names = ["step-1.safetensors", "step-00000099-abc.safetensors", "notes.txt", two[1].name + ".bak", "step-00000099-"]
    for name in names:
        (folder / name).write_bytes(b"mine")
    assert found(folder) == (20, [])
    checkpoint.save(folder, made(30))
    assert all((folder / name).read_bytes() == b"mine" for name in names)


def test_going_back_removes_what_was_ahead(two: tuple[Path, Path]) -> None:
    two[1].write_bytes(b"x")
    checkpoint.save(two[0].parent, made(15))
    assert found(two[0].parent) == (15, [])
    two[0].parent.joinpath(next(p.name for p in two[0].parent.iterdir() if "00000015" in p.name)).write_bytes(b"x")
    assert found(two[0].parent)[0] == 10


def test_a_save_that_fails_leaves_the_ones_before(two: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MobileNetError, match=r"step-00000030-.*No space left"):
        checkpoint.save(two[0].parent, made(30))
    assert sorted(two[0].parent.iterdir()) == sorted(two)


def test_leftovers_of_killed_writers_are_removed(two: tuple[Path, Path]) -> None:
    (two[0].parent / ".0123456789abcdef.tmp").write_bytes(b"half")
    checkpoint.remove_leftovers(two[0].parent)
    assert sorted(two[0].parent.iterdir()) == sorted(two)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (SIZES | {"parameters": 41}, r"holds float32 \[40\] as 'parameters', the training needs float32 \[41\]"),
        (SIZES | {"momentum": 40}, r"holds nothing as 'momentum', the training needs float32 \[40\]"),
        ({"parameters": 40}, r"holds float32 \[6\] as 'statistics', the training needs nothing"),
    ],
)
def test_a_checkpoint_of_another_training_is_refused(
    two: tuple[Path, Path], sizes: dict[str, int], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        checkpoint.newest(two[0].parent, sizes)


GOOD = {"format": "mobilenet-checkpoint", "version": "1", "step": "5", "facts": "{}"}
VECTORS = {name: np.zeros(n, np.float32) for name, n in SIZES.items()}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff" * 40,
        (2).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        save_tensors(VECTORS),
        save_tensors(VECTORS, GOOD | {"version": "2"}),
        save_tensors(VECTORS, GOOD | {"step": "6"}),
        save_tensors(VECTORS, GOOD | {"facts": "[]"}),
        save_tensors(VECTORS, GOOD | {"facts": "{"}),
        save_tensors({n: v.astype(np.float64) for n, v in VECTORS.items()}, GOOD),
        save_tensors({n: v[None] for n, v in VECTORS.items()}, GOOD),
    ],
)
def test_a_hash_makes_no_checkpoint_of_something_else(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / f"step-00000005-{hashlib.sha256(data).hexdigest()}.safetensors"
    path.write_bytes(data)
    with pytest.raises(ModelError, match="step-00000005"):
        checkpoint.newest(tmp_path, SIZES)
