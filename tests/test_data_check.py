"""What `mobilenet data check` finds: each fault is made by script, found, and nothing else is."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mobilenet.data import check as data_check
from mobilenet.data.check import Report, check, dhash
from mobilenet.data.dataset import Dataset, read
from mobilenet.errors import UsageError


def picture(seed: int, width: int = 64, height: int = 48) -> Image.Image:
    """Makes a smooth photo with structure at every scale that a dHash sees."""
    noise = np.random.default_rng(seed).integers(0, 256, (8, 9, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def save(path: Path, image: Image.Image, **options: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


@pytest.fixture
def good(tmp_path):
    """Two classes, three splits, 24 photos without a fault."""
    for number in range(24):
        split = ("train", "train", "val", "test")[number % 4]
        save(tmp_path / split / "ab"[number // 4 % 2] / f"{number:02}.png", picture(number))
    return tmp_path


def report_of(root: Path, **arguments: int) -> Report:
    return check(read(root), **arguments)


def test_a_good_data_set_is_ok(good):
    seen: list[tuple[int, int]] = []
    report = check(read(good), threads=2, progress=lambda done, total: seen.append((done, total)))
    assert report.ok
    assert (report.unreadable, report.duplicates, report.near, report.tiny) == ((), (), (), ())
    assert report.imbalance == 1
    assert seen[-1] == (24, 24)
    text = str(report)
    assert text.endswith("\nok")
    assert "24 photos, 2 classes" in text
    assert ["a", "6", "3", "3"] in [line.split() for line in text.splitlines()]
    assert ["all", "12", "6", "6"] in [line.split() for line in text.splitlines()]


def test_unreadable_photos_are_named_with_their_reason(good):
    for name, data in {"empty.jpg": b"", "text.png": b"<html>", "cut.png": None}.items():
        path = good / "train/a" / name
        path.write_bytes((good / "train/a/00.png").read_bytes()[:200] if data is None else data)
    os.mkfifo(good / "val/b/later.jpg")
    (good / "val/b/later.jpg").rename(good / "val/b/fifo.jpg")
    report = report_of(good)
    assert [item.path for item in report.unreadable] == ["train/a/cut.png", "train/a/empty.jpg", "train/a/text.png"]
    assert all(item.reason and str(good) not in item.reason for item in report.unreadable)
    assert not report.ok
    assert "unreadable photos: 3\n  train/a/cut.png: " in str(report)
    assert "val/b/fifo.jpg: not a regular file" in str(report)


def test_a_photo_that_vanishes_is_unreadable(good):
    dataset = read(good)
    dataset.path(dataset.photos[5]).unlink()
    assert [item.path for item in check(dataset).unreadable] == [dataset.photos[5].path]


def test_the_same_photo_in_train_and_test_is_a_leak(good):
    data = (good / "train/a/00.png").read_bytes()
    (good / "test/a/copy.png").write_bytes(data)
    (good / "train/a/again.png").write_bytes(data)
    report = report_of(good)
    assert not report.ok
    assert [[photo.path for photo in group] for group in report.leaks] == [
        ["test/a/copy.png", "train/a/00.png", "train/a/again.png"]
    ]
    assert report.conflicts == ()
    assert report.near == ()
    assert "duplicates across splits: 1\n  test/a/copy.png (a, test) = train/a/00.png (a, train)" in str(report)


def test_duplicates_within_a_split_are_told_but_no_failure(good):
    (good / "train/a/copy.png").write_bytes((good / "train/a/00.png").read_bytes())
    report = report_of(good)
    assert report.ok
    assert len(report.duplicates) == 1
    assert report.leaks == report.conflicts == ()
    assert "duplicates within a split: 1" in str(report)


def test_the_same_photo_with_two_labels_is_a_conflict(good):
    (good / "train/b/copy.png").write_bytes((good / "train/a/00.png").read_bytes())
    report = report_of(good)
    assert not report.ok
    assert len(report.conflicts) == 1
    assert report.leaks == ()
    assert "train/a/00.png (a, train) = train/b/copy.png (b, train)" in str(report)


def test_near_duplicates_across_splits(good):
    save(good / "train/a/large.png", picture(100, 320, 240))
    save(good / "test/a/quality.jpg", picture(100, 320, 240), quality=60)
    save(good / "val/b/half.png", picture(100, 320, 240).resize((160, 120), Image.Resampling.BICUBIC))
    save(good / "test/a/mirrored.png", picture(100, 320, 240).transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    report = report_of(good)
    pairs = {(photo.path, other.path) for photo, other in report.near}
    assert {photo for photo, _ in pairs} == {"test/a/quality.jpg", "val/b/half.png"}
    assert {other for _, other in pairs} <= {"train/a/large.png", "val/b/half.png"}
    assert report.ok
    assert "near duplicates across splits: 2" in str(report)


def test_near_duplicates_are_all_those_within_two_bits():
    """Compares the look-ups with all pairs of 300 hashes, most of them at a small distance from another."""
    random = np.random.default_rng(0)
    hashes = [int(value) for value in random.integers(0, 2**63, 30, dtype=np.int64)]
    for _ in range(270):
        bits = random.choice(64, random.integers(0, 5), replace=False)
        hashes.append(hashes[random.integers(30)] ^ sum(1 << int(bit) for bit in bits))
    splits = [("train", "val", "test")[number] for number in random.integers(0, 3, 300)]
    photos = tuple(data_check.Photo(str(row), 0, split) for row, split in enumerate(splits))
    looks = {row: data_check._Look(b"%d" % row, value, 99) for row, value in enumerate(hashes)}
    near = {photo.path: other.path for photo, other in data_check._near(photos, looks)}
    rank = {"train": 0, "val": 1, "test": 2}
    distances = set()
    for row, split in enumerate(splits):
        close = {
            other: (hashes[row] ^ hashes[other]).bit_count()
            for other in range(300)
            if rank[splits[other]] < rank[split]
        }
        close = {str(other): distance for other, distance in close.items() if distance <= 2}
        assert (str(row) in near) == bool(close)
        if close:
            assert near[str(row)] in close
            distances.add(close[near[str(row)]])
    assert distances == {0, 1, 2}


def test_photos_without_structure_are_not_near_duplicates(good):
    for split, shade in (("train", 10), ("val", 11), ("test", 200)):
        save(good / split / "a/flat.png", Image.new("RGB", (64, 64), (shade, shade, shade)))
    assert report_of(good).near == ()


def test_dhash_is_each_pixel_brighter_than_its_left_neighbour():
    ramp = np.repeat(np.linspace(0, 255, 90).astype(np.uint8)[None, :, None], 80, axis=0).repeat(3, axis=2)
    assert dhash(ramp) == 2**64 - 1
    assert dhash(ramp[:, ::-1].copy()) == 0
    half = ramp.copy()
    half[40:] = half[40:, ::-1]
    assert dhash(half) == (2**32 - 1) << 32


def test_tiny_photos(good):
    save(good / "train/a/narrow.png", picture(50, 31, 200))
    save(good / "train/a/enough.jpg", picture(51, 32, 32))
    save(good / "train/a/flat.jpg", picture(52, 3000, 31))
    save(good / "train/a/large.jpg", picture(53, 1500, 1000))
    report = report_of(good)
    assert {photo.path for photo in report.tiny} == {"train/a/narrow.png", "train/a/flat.jpg"}
    assert "photos with a side below 32 pixels: 2" in str(report)


def test_imbalance(tmp_path):
    for number in range(12):
        save(tmp_path / ("big" if number < 9 else "small") / f"{number}.png", picture(number))
    assert check(read(tmp_path, validation=0)).imbalance == 3
    alone = check(read(tmp_path, classes=("big", "none", "small"), validation=0))
    assert alone.imbalance == float("inf")
    assert alone.to_dict()["imbalance"] is None
    tests_only = tmp_path / "only"
    for number in range(6):
        save(tests_only / "test" / ("x" if number < 4 else "y") / f"{number}.png", picture(number))
    assert check(read(tests_only)).imbalance == 2


def test_to_dict_holds_everything_as_json(good):
    (good / "test/a/copy.png").write_bytes((good / "train/b/05.png").read_bytes())
    (good / "train/a/bad.jpg").write_bytes(b"bad")
    (good / "train/notes.txt").touch()
    (good / "train/a" / os.fsdecode(b"caf\xe9.png")).write_bytes((good / "train/a/00.png").read_bytes())
    report = report_of(good)
    values = json.loads(json.dumps(report.to_dict()))
    assert values["ok"] is False
    assert values["root"] == str(good)
    assert values["photos"] == {"train": 14, "val": 6, "test": 7}
    assert values["classes"][0] == {"name": "a", "train": 8, "val": 3, "test": 4}
    assert values["unreadable"][0]["path"] == "train/a/bad.jpg"
    assert [len(group) for group in values["duplicates"]] == [2, 2]
    assert values["duplicates"][0][0] == {"path": "test/a/copy.png", "label": "a", "split": "test"}
    assert (values["duplicates_across_splits"], values["duplicates_with_two_labels"]) == (1, 1)
    assert values["ignored"] == [{"path": "train/notes.txt", "reason": "not a photo by its name"}]
    assert str(report).encode("utf-8")
    assert r"caf\xe9.png" in str(report)


def test_long_findings_are_cut_in_the_text_only(tmp_path):
    for number in range(60):
        for copy in range(4):
            save(tmp_path / f"class{number:02}" / f"{copy}.png", picture(1))
    report = check(read(tmp_path, validation=0))
    text = str(report)
    assert "the 25 smallest and largest classes:" in text
    assert "and 237 more" in text
    assert len(text.splitlines()) < 80
    assert len(report.to_dict()["classes"]) == 60
    assert len(report.to_dict()["duplicates"][0]) == 240
    for number in range(60):
        (tmp_path / f"class{number:02}/0.png").write_bytes(b"bad")
    assert "unreadable photos: 60" in str(check(read(tmp_path, validation=0)))
    assert "  and 50 more" in str(check(read(tmp_path, validation=0)))


def test_threads_outside_their_rule(good):
    with pytest.raises(UsageError, match="threads"):
        report_of(good, threads=0)


def test_an_interrupt_stops_the_threads(good):
    dataset: Dataset = read(good)

    def interrupting(_done: int, _total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check(dataset, progress=interrupting)
