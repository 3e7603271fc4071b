"""The cache of decoded photos: the same pixels, never stale ones, whatever interrupts it; bad photos listed exactly."""

import dataclasses
import errno
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mobilenet.common import parallel
from mobilenet.data import cache as module
from mobilenet.data import row_store
from mobilenet.data.cache import Cache, build
from mobilenet.data.dataset import Photo, read
from mobilenet.errors import DatasetError, MobileNetError, UsageError
from mobilenet.photos import pixels
from mobilenet.photos.preprocessing import Preprocessing

DEEP = os.environ.get("MOBILENET_DEEP") == "1"
SMALL = Preprocessing(height=8, width=12)


def photo(path: Path, seed: int, width: int = 20, height: int = 16) -> None:
    """Saves a smooth photo in the format of its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC).save(path)


def folder_of(root: Path, count: int) -> tuple[Path, tuple[Photo, ...]]:
    """Makes `count` photos in two classes and reads them."""
    for number in range(count):
        photo(root / "ab"[number % 2] / f"{number:04}.{('png', 'jpg')[number // 2 % 2]}", number)
    return root, read(root, validation=0).photos


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(module, "_CHUNK_ROWS", 2)
    monkeypatch.setattr(row_store, "_FLUSH_SECONDS", 0.0)


@pytest.fixture
def decoded(monkeypatch):
    """Lists the paths that are read from now on."""
    paths: list[str] = []
    lock = threading.Lock()

    def counting(path, original=module.open_bytes):
        with lock:
            paths.append(str(path))
        return original(path)

    monkeypatch.setattr(module, "open_bytes", counting)
    return paths


def same(one: Cache, other: Cache) -> None:
    np.testing.assert_array_equal(one.pixels, other.pixels)
    np.testing.assert_array_equal(one.aspect, other.aspect)
    np.testing.assert_array_equal(one.labels, other.labels)
    np.testing.assert_array_equal(one.index, other.index)
    assert one.bad == other.bad


# Pixels


@pytest.mark.parametrize("channels", [1, 3])
def test_eval_keeps_exactly_what_prediction_sees(tmp_path, channels):
    root, photos = folder_of(tmp_path / "photos", 9)
    how = Preprocessing(height=10, width=7, channels=channels, interpolation="bicubic")
    made = build(photos, root, tmp_path / "cache", how, "eval", threads=2)
    assert made.pixels.shape == (9, 10, 7, channels)
    assert made.pixels.dtype == np.uint8
    for row, item in enumerate(photos):
        np.testing.assert_array_equal(made.pixels[row], pixels(root / item.path, how))
    assert made.labels.tolist() == [item.label for item in photos]
    assert made.labels.dtype == made.index.dtype == np.int64
    assert made.index.tolist() == list(range(9))
    assert np.isnan(made.aspect).all()
    assert made.bad == ()
    assert not made.pixels.flags.writeable


@pytest.mark.parametrize("channels", [1, 3])
def test_train_keeps_the_whole_photo_and_its_aspect(tmp_path, channels):
    sizes = [(20, 16), (12, 8), (8, 12), (301, 50), (50, 301), (640, 479)]
    for number, (width, height) in enumerate(sizes):
        photo(tmp_path / "photos/a" / f"{number}.png", number, width, height)
        photo(tmp_path / "photos/a" / f"{number}.jpg", number, width, height)
    photos = read(tmp_path / "photos", validation=0, classes=["a"]).photos
    how = Preprocessing(height=8, width=12, channels=channels)
    made = build(photos, tmp_path / "photos", tmp_path / "cache", how, "train")
    squash = dataclasses.replace(how, resize="squash", crop=1.0)
    for row, item in enumerate(photos):
        width, height = sizes[int(Path(item.path).stem)]
        # A scaled decode keeps 1.5 times the rows and columns asked for and rounds each up to a whole one.
        assert made.aspect[row] == pytest.approx(width / height, rel=1 / (1.5 * 8))
        expected = pixels(tmp_path / "photos" / item.path, squash).astype(int)
        if item.path.endswith("png"):
            assert made.aspect[row] == np.float32(width / height)
            np.testing.assert_array_equal(made.pixels[row], expected)
        else:
            # These photos are smooth, so that decoding at another scale moves a pixel by a few levels at most.
            assert np.abs(made.pixels[row] - expected).mean() < 3


def test_one_photo_a_chunk_where_rows_are_large(tmp_path):
    root, photos = folder_of(tmp_path / "photos", 3)
    made = build(photos, root, tmp_path / "cache", Preprocessing(height=1300, width=1300), "eval", threads=1)
    log = (tmp_path / "cache/done.log").read_text().splitlines()
    assert len(log) == 3
    np.testing.assert_array_equal(made.pixels[2], pixels(root / photos[2].path, Preprocessing(1300, 1300)))


# Decoding happens once


def test_a_finished_cache_decodes_nothing(tmp_path, decoded):
    root, photos = folder_of(tmp_path / "photos", 10)
    one = build(photos, root, tmp_path / "cache", SMALL, "train")
    assert sorted(decoded) == sorted(str(root / item.path) for item in photos)
    decoded.clear()
    same(build(photos, root, tmp_path / "cache", SMALL, "train"), one)
    # Scaling happens later, and the folder may move.
    other = dataclasses.replace(SMALL, mean=(1.0,), std=(2.0,), crop=0.5)
    same(build(photos, root, tmp_path / "cache", other, "train"), one)
    shutil.move(root, tmp_path / "moved")
    same(build(photos, tmp_path / "moved", tmp_path / "cache", SMALL, "train"), one)
    relabelled = [dataclasses.replace(item, label=item.label + 5) for item in photos]
    assert set(build(relabelled, tmp_path / "moved", tmp_path / "cache", SMALL, "train").labels) == {5, 6}
    assert decoded == []


def touch(path: Path) -> None:
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))


def replace_photo(path: Path) -> None:
    time = path.stat().st_mtime_ns
    photo(path, 99, 21, 16)
    os.utime(path, ns=(time, time))


@pytest.mark.parametrize("change", [touch, replace_photo, lambda path: path.chmod(0o600), Path.unlink])
def test_a_changed_file_is_never_served_from_before(tmp_path, decoded, change):
    root, photos = folder_of(tmp_path / "photos", 12)
    before = build(photos, root, tmp_path / "cache", SMALL, "train")
    kept = before.pixels.copy()
    decoded.clear()
    change(root / photos[3].path)
    after = build(photos, root, tmp_path / "cache", SMALL, "train")
    assert len(decoded) == 12
    np.testing.assert_array_equal(before.pixels, kept)  # whoever maps the old rows keeps them
    assert bool(after.bad) == (change is Path.unlink)
    if change is replace_photo:
        assert not np.array_equal(after.pixels[3], kept[3])


@pytest.mark.parametrize(
    ("how", "mode"),
    [
        (Preprocessing(12, 8), "eval"),
        (Preprocessing(8, 12, channels=1), "eval"),
        (Preprocessing(8, 12, crop=1.0), "eval"),
        (Preprocessing(8, 12, resize="squash"), "eval"),
        (Preprocessing(8, 12, interpolation="bicubic"), "eval"),
        (Preprocessing(8, 12), "train"),
    ],
)
def test_another_shape_resize_or_mode_is_made_anew(tmp_path, how, mode):
    root, photos = folder_of(tmp_path / "photos", 4)
    build(photos, root, tmp_path / "cache", SMALL, "eval")
    same(
        build(photos, root, tmp_path / "cache", how, mode),
        build(photos, root, tmp_path / "fresh", how, mode),
    )


def test_the_mode_counts_even_where_the_pixels_are_the_same(tmp_path):
    root, photos = folder_of(tmp_path / "photos", 4)
    whole = Preprocessing(8, 12, resize="squash", crop=1.0)
    assert np.isnan(build(photos, root, tmp_path / "cache", whole, "eval").aspect).all()
    assert not np.isnan(build(photos, root, tmp_path / "cache", whole, "train").aspect).any()


def test_other_photos_or_another_order_are_made_anew(tmp_path):
    root, photos = folder_of(tmp_path / "photos", 6)
    for chosen in (photos, photos[::-1], photos[:4], photos[2:], (*photos, photos[0])):
        made = build(chosen, root, tmp_path / "cache", SMALL, "eval")
        expected = [pixels(root / item.path, SMALL) for item in chosen]
        np.testing.assert_array_equal(made.pixels, expected)


def test_a_new_version_of_a_decoder_makes_it_anew(tmp_path, decoded, monkeypatch):
    root, photos = folder_of(tmp_path / "photos", 4)
    build(photos, root, tmp_path / "cache", SMALL, "train")
    monkeypatch.setattr(module.importlib.metadata, "version", lambda _name: "99")
    build(photos, root, tmp_path / "cache", SMALL, "train")
    assert len(decoded) == 8


# Bad photos


def test_five_per_cent_broken_are_set_aside_and_listed_exactly(tmp_path, decoded):
    root, photos = folder_of(tmp_path / "photos", 100)
    fine = build(photos, root, tmp_path / "fine", SMALL, "train")
    rows = [3, 50, 51, 77, 99]
    broken = [root / photos[row].path for row in rows]
    broken[0].write_bytes(b"")
    broken[1].write_bytes(b"not a photo at all")
    broken[2].write_bytes(broken[2].read_bytes()[:60])
    broken[3].unlink()
    broken[3].mkdir()
    broken[4].unlink()
    os.mkfifo(broken[4])
    made = build(photos, root, tmp_path / "cache", SMALL, "train")
    assert [item.path for item in made.bad] == [photos[row].path for row in rows]
    assert all(item.reason and str(root) not in item.reason for item in made.bad)
    assert [made.bad[3].reason, made.bad[4].reason] == [
        "is a folder, a regular file is needed",
        "is a FIFO, a regular file is needed",
    ]
    good = [row for row in range(100) if row not in rows]
    assert made.index.tolist() == good
    np.testing.assert_array_equal(made.pixels[good], fine.pixels[good])
    assert (made.labels[rows] == -1).all()
    assert np.isnan(made.aspect[rows]).all()
    assert not np.isnan(made.aspect[good]).any()
    lines = (tmp_path / "cache/bad.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [item._asdict() for item in made.bad]
    decoded.clear()
    same(build(photos, root, tmp_path / "cache", SMALL, "train"), made)
    assert decoded == []


def test_too_many_broken_photos_stop_with_the_exact_count(tmp_path):
    root, photos = folder_of(tmp_path / "photos", 40)
    rows = [1, 5, 6, 20, 21, 38, 39]
    for row in rows:
        (root / photos[row].path).write_bytes(b"broken")
    for _ in range(2):
        with pytest.raises(DatasetError) as caught:
            build(photos, root, tmp_path / "cache", SMALL, "eval")
        assert caught.value.exit_code == 3
        text = str(caught.value)
        assert text.startswith(f"7 of 40 photos can't be decoded, more than 10%: {photos[1].path}: ")
        assert "and 2 more" in text
    lines = (tmp_path / "cache/bad.jsonl").read_text().splitlines()
    assert [json.loads(line)["path"] for line in lines] == [photos[row].path for row in rows]
    assert len(build(photos, root, tmp_path / "cache", SMALL, "eval", max_bad=7 / 40).bad) == 7
    for row in rows:
        photo(root / photos[row].path, row)
    assert build(photos, root, tmp_path / "cache", SMALL, "eval").bad == ()
    assert not (tmp_path / "cache/bad.jsonl").exists()


def test_a_photo_that_vanishes_meanwhile_is_set_aside(tmp_path, monkeypatch):
    root, photos = folder_of(tmp_path / "photos", 20)

    def vanishing(path, original=module.open_bytes):
        if path.endswith(photos[7].path):
            os.unlink(path)
        return original(path)

    monkeypatch.setattr(module, "open_bytes", vanishing)
    made = build(photos, root, tmp_path / "cache", SMALL, "train")
    assert [item.path for item in made.bad] == [photos[7].path]
    assert "No such file" in made.bad[0].reason


def test_a_class_of_which_nothing_is_left_stops_training(tmp_path):
    root, photos = folder_of(tmp_path / "photos", 30)
    photo(root / "c/only.png", 1)
    (root / "c/only.png").write_bytes(b"broken")
    photos = (*photos, Photo("c/only.png", 2, "train"))
    with pytest.raises(DatasetError, match=r"no photo of one class can be decoded: c/only\.png"):
        build(photos, root, tmp_path / "cache", SMALL, "train")
    assert len(build(photos, root, tmp_path / "cache", SMALL, "eval").bad) == 1


def test_arguments_outside_their_rule(tmp_path):
    root, photos = folder_of(tmp_path / "photos", 2)
    for name, value in {"threads": 0, "max_bad": -1, "mode": "both"}.items():
        with pytest.raises(UsageError, match=name):
            build(photos, root, tmp_path / "cache", SMALL, **({"mode": "eval"} | {name: value}))
    with pytest.raises(DatasetError, match="no photos to decode"):
        build((), root, tmp_path / "cache", SMALL, "eval")


# Interruptions


def test_whatever_is_left_of_the_log_the_rows_are_right(tmp_path, small_chunks):
    """Cuts the log at every byte, as a power cut may, with rubbish for the rows that no line speaks of."""
    root, photos = folder_of(tmp_path / "photos", 7)
    folder = tmp_path / "cache"
    whole = build(photos, root, tmp_path / "whole", SMALL, "train", threads=1)
    build(photos, root, folder, SMALL, "train", threads=1)
    log, rows = (folder / "done.log").read_bytes(), (folder / "pixels.u8").read_bytes()
    ends = np.cumsum([len(line) for line in log.splitlines(keepends=True)])
    assert len(ends) == 4
    for cut in range(len(log)):
        lines = int(np.searchsorted(ends, cut, side="right"))
        (folder / "done.log").write_bytes(log[:cut])
        (folder / "pixels.u8").write_bytes(rows[: lines * 2 * 8 * 12 * 3].ljust(len(rows), b"\xaa"))
        same(build(photos, root, folder, SMALL, "train", threads=1), whole)


def test_every_byte_of_the_log_and_rows_counts_while_it_is_unfinished(tmp_path, small_chunks):
    root, photos = folder_of(tmp_path / "photos", 5)
    folder = tmp_path / "cache"
    whole = build(photos, root, tmp_path / "whole", SMALL, "train", threads=1)
    build(photos, root, folder, SMALL, "train", threads=1)
    parts = {name: (folder / name).read_bytes() for name in ("done.log", "pixels.u8", "aspect.f32")}
    unfinished = b"".join(parts["done.log"].splitlines(keepends=True)[:2])
    flips = random.Random(0)
    for name in parts:
        for _ in range(15):
            for other, data in parts.items():
                (folder / other).write_bytes(data)
            damaged = bytearray(unfinished if name == "done.log" else parts[name])
            damaged[flips.randrange(len(damaged))] ^= 1 << flips.randrange(8)
            (folder / "done.log").write_bytes(unfinished)
            (folder / name).write_bytes(damaged)
            same(build(photos, root, folder, SMALL, "train", threads=1), whole)


@pytest.mark.parametrize("name", ["key.json", "pixels.u8", "aspect.f32", "done.log"])
def test_a_file_that_is_missing_or_cut_makes_it_anew(tmp_path, name):
    root, photos = folder_of(tmp_path / "photos", 4)
    whole = build(photos, root, tmp_path / "whole", SMALL, "train")
    build(photos, root, tmp_path / "cache", SMALL, "train")
    for damage in ("cut", "missing", "link"):
        path = tmp_path / "cache" / name
        if damage == "cut":
            path.write_bytes(path.read_bytes()[:-1])
        else:
            path.unlink()
        if damage == "link" and name == "key.json":
            path.symlink_to(tmp_path / "elsewhere")
        same(build(photos, root, tmp_path / "cache", SMALL, "train"), whole)
    assert not (tmp_path / "elsewhere").exists()


def test_an_interrupt_keeps_what_is_done(tmp_path, small_chunks, decoded):
    root, photos = folder_of(tmp_path / "photos", 60)
    seen: list[tuple[int, int]] = []

    def interrupting(done: int, total: int) -> None:
        seen.append((done, total))
        if done >= 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(photos, root, tmp_path / "cache", SMALL, "train", threads=2, progress=interrupting)
    assert seen[0] == (0, 60)
    assert threading.active_count() == 1
    # At most two chunks a thread were in hand.
    assert 20 <= len(decoded) <= 20 + 2 * 2 * 2
    decoded.clear()
    seen.clear()
    made = build(
        photos, root, tmp_path / "cache", SMALL, "train", progress=lambda done, total: seen.append((done, total))
    )
    assert seen[0] == (20, 60)
    assert seen[-1] == (60, 60)
    assert len(decoded) == 40
    same(made, build(photos, root, tmp_path / "fresh", SMALL, "train"))


CHILD = """
import sys
from pathlib import Path
from mobilenet.data import cache, row_store
from mobilenet.data.dataset import read
from mobilenet.photos.preprocessing import Preprocessing
cache._CHUNK_ROWS, row_store._FLUSH_SECONDS = 2, 0.0
root, folder = map(Path, sys.argv[1:3])
photos = read(root, validation=0).photos
progress = lambda done, total: print(done, flush=True)
made = cache.build(photos, root, folder, Preprocessing(8, 12), "train", threads=2, progress=progress)
print(hash(made.pixels.tobytes()))
"""


def child(*arguments: Path) -> "subprocess.Popen[str]":
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": "0"}
    command = [sys.executable, "-c", CHILD, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def test_kill_at_random_moments(tmp_path):
    """Kills a building process 3 times (50 with MOBILENET_DEEP=1) within its work; the rows come out the same."""
    root, photos = folder_of(tmp_path / "photos", 120)
    moments = random.Random(1)
    chunks = []
    for _ in range(50 if DEEP else 3):
        with child(root, tmp_path / "cache") as process:
            assert process.stdout
            for _ in range(moments.randrange(2, 30)):
                process.stdout.readline()
            process.kill()
        chunks.append((tmp_path / "cache/done.log").read_bytes().count(b"\n"))
        if chunks[-1] == 60:
            shutil.rmtree(tmp_path / "cache")
    assert any(0 < count < 60 for count in chunks)
    made = build(photos, root, tmp_path / "cache", SMALL, "train")
    same(made, build(photos, root, tmp_path / "fresh", SMALL, "train"))


def test_two_processes_build_one_cache_and_share_its_rows(tmp_path):
    root, photos = folder_of(tmp_path / "photos", 60)
    processes = [child(root, tmp_path / "cache") for _ in range(2)]
    printed = [process.communicate()[0].splitlines() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert printed[0][-1] == printed[1][-1]
    # One of them did all the work, the other none.
    assert sorted(len(lines) for lines in printed) == [1, 1 + 1 + 30]
    made = build(photos, root, tmp_path / "cache", SMALL, "train")
    same(made, build(photos, root, tmp_path / "fresh", SMALL, "train"))


def test_two_threads_build_one_cache(tmp_path, decoded):
    root, photos = folder_of(tmp_path / "photos", 30)
    made: list[Cache] = []
    threads = [
        threading.Thread(target=lambda: made.append(build(photos, root, tmp_path / "cache", SMALL, "train")))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(decoded) == 30
    same(made[0], made[1])
    same(made[0], made[2])


# The disk


def test_a_disk_without_room_is_said_before_anything_is_decoded(tmp_path, monkeypatch, decoded):
    root, photos = folder_of(tmp_path / "photos", 10)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(row_store.shutil, "disk_usage", lambda _path: usage._replace(free=1000))
    with pytest.raises(MobileNetError) as caught:
        build(photos, root, tmp_path / "cache", SMALL, "train")
    assert f"10 photos need {10 * (8 * 12 * 3 + 4):,} bytes, 1,000 are free there" in str(caught.value)
    assert caught.value.exit_code == 1
    assert decoded == []
    monkeypatch.undo()
    assert len(build(photos, root, tmp_path / "cache", SMALL, "train").index) == 10


@pytest.mark.parametrize("name", ["pwrite", "posix_fallocate", "fsync"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
def test_a_disk_that_fails_is_named_and_the_cache_goes_on_afterwards(tmp_path, monkeypatch, small_chunks, name, code):
    root, photos = folder_of(tmp_path / "photos", 10)
    original, calls = getattr(os, name), []

    def failing(*arguments):
        calls.append(1)
        if len(calls) > {"pwrite": 5, "posix_fallocate": 1, "fsync": 8}[name]:
            raise OSError(code, os.strerror(code))
        return original(*arguments)

    monkeypatch.setattr(os, name, failing)
    with pytest.raises(MobileNetError, match=os.strerror(code)) as caught:
        build(photos, root, tmp_path / "cache", SMALL, "train", threads=1)
    assert str(tmp_path / "cache") in str(caught.value)
    assert "2,920 bytes" in str(caught.value)
    monkeypatch.undo()
    same(
        build(photos, root, tmp_path / "cache", SMALL, "train"),
        build(photos, root, tmp_path / "fresh", SMALL, "train"),
    )


def test_a_write_that_takes_a_part_is_continued(tmp_path, monkeypatch):
    root, photos = folder_of(tmp_path / "photos", 5)
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, offset: pwrite(file, data[:100], offset))
    made = build(photos, root, tmp_path / "cache", SMALL, "eval")
    np.testing.assert_array_equal(made.pixels, [pixels(root / item.path, SMALL) for item in photos])


def test_a_folder_that_is_a_file_is_named(tmp_path):
    root, photos = folder_of(tmp_path / "photos", 2)
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(MobileNetError, match="cache: the cache of 584 bytes can't be kept there"):
        build(photos, root, tmp_path / "cache", SMALL, "eval")


# Threads


def test_for_each_is_done_once_by_the_caller_and_by_others():
    meeting = threading.Barrier(3, timeout=60)
    done: dict[int, int] = {}

    def work(number: int) -> None:
        if number < 3:
            meeting.wait()  # three threads are at work at the same time
        done[number] = threading.get_ident()

    parallel.for_each(work, 20, 3)
    assert sorted(done) == list(range(20))
    assert len(set(done.values())) == 3
    assert threading.get_ident() in done.values()
    parallel.for_each(work, 0, 3)
    assert threading.active_count() == 1


@pytest.mark.parametrize("in_caller", [True, False])
def test_for_each_stops_at_the_first_that_fails(in_caller: bool):
    caller, tried = threading.get_ident(), []
    meeting = threading.Barrier(2, timeout=60)

    def work(number: int) -> None:
        tried.append(number)
        if number < 2:
            meeting.wait()
        if (threading.get_ident() == caller) == in_caller:
            raise KeyboardInterrupt if in_caller else ValueError
        time.sleep(0.01)

    with pytest.raises(KeyboardInterrupt if in_caller else ValueError):
        parallel.for_each(work, 1000, 2)
    assert len(tried) < 1000
    assert threading.active_count() == 1


def test_in_threads_keeps_little_in_hand_and_stops():
    stop = threading.Event()
    taken: list[int] = []

    def items():
        for number in range(1000):
            taken.append(number)
            yield number

    results = parallel.in_threads(lambda number: number * 2, items(), 3, stop)
    first = [next(results) for _ in range(10)]
    assert set(first) <= set(range(0, 2 * len(taken), 2))
    assert len(taken) <= 10 + 2 * 3
    results.close()
    assert stop.is_set()
    assert threading.active_count() == 1
    assert sorted(parallel.in_threads(lambda number: number, range(7), 2, threading.Event())) == list(range(7))
    assert parallel.processors() >= 1


def test_in_threads_raises_what_the_work_raises():
    with pytest.raises(ZeroDivisionError):
        list(parallel.in_threads(lambda number: 1 // number, range(5), 2, threading.Event()))
    assert threading.active_count() == 1
