"""Hostile photos are read or refused, within the stated time and memory, and nothing else happens.

What each must get is the list in the project's notes on hostile inputs; MOBILENET_DEEP=1 runs a million mutations.
"""

import contextlib
import json
import os
import random
import re
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import photo_makers as make
import photo_mutations
from mobilenet.errors import PhotoError
from mobilenet.photos import Preprocessing, decode, open_bytes, pixels
from mobilenet.photos.headers import read_header
from mobilenet.photos.limits import MAX_ANCILLARY, MAX_BYTES, MAX_FRAMES, MAX_PARTS, MAX_SCANS, MAX_SUB_BLOCKS
from work import counted

HOW = Preprocessing(32, 32)
MEMORY = 512 << 20
DEEP = os.environ.get("MOBILENET_DEEP") == "1"


def in_a_child(*arguments: str) -> dict[str, Any]:
    """Runs photo_mutations.py; a crash there fails here."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    child = subprocess.run(
        [sys.executable, photo_mutations.__file__, *arguments],
        capture_output=True,
        text=True,
        env=environment | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert child.returncode == 0, f"exit {child.returncode} of {arguments}: {child.stderr[-2000:]}"
    document: dict[str, Any] = json.loads(child.stdout)
    return document


@pytest.mark.parametrize("seed", [0, 1])
def test_mutations_get_pixels_or_a_refusal(tmp_path: Path, seed: int) -> None:
    count = 500_000 if DEEP else 10_000
    document = in_a_child("mutations", str(seed), str(count), str(tmp_path / "state"))
    result = document["result"]
    print(f"{count:,} mutations: {result['counts']}, slowest {result['slowest']}, peak {document['peak'] >> 20} MiB")
    assert result["wrong"] == []
    assert sum(result["counts"].values()) == count
    assert min(result["counts"]["pixels"], result["counts"]["refused"]) > count / 20
    assert document["peak"] < MEMORY


def test_a_mutation_is_the_same_each_time() -> None:
    good = [data for _, data in make.small_photos()]
    some = [photo_mutations.mutated(good, 7, number) for number in range(50)]
    assert some == [photo_mutations.mutated(good, 7, number) for number in range(50)]
    assert len(set(some)) > 45


# Bombs


def _png(width: int, height: int, *extra: bytes) -> bytes:
    ihdr = make.chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    idat = make.chunk(b"IDAT", zlib.compress(bytes(200_000)))
    return b"\x89PNG\r\n\x1a\n" + ihdr + b"".join(extra) + idat + make.chunk(b"IEND", b"")


def _jpeg(**options: Any) -> bytes:
    return make.saved(make.scene(40, 40), "JPEG", **options)


def _jpeg_of_scans(count: int) -> bytes:
    parts = make.jpeg_parts(_jpeg(progressive=True))
    last = max(i for i, part in enumerate(parts) if part[1] == 0xDA)
    return b"".join([*parts[:last], *[parts[last]] * count, parts[-1]])


def _inflated(megabytes: int) -> bytes:
    return zlib.compress(bytes(megabytes << 20), 9)


def _webp_frames(count: int) -> bytes:
    frame = bytes(16) + make.saved(make.scene(1, 1), "WEBP", lossless=True)[12:]
    return make.riff(make.vp8x(1, 1, 2), (b"ANIM", bytes(6)), *[(b"ANMF", frame)] * count)


def _gif_with(*blocks: bytes) -> bytes:
    data = make.gif(4, 4)
    return data[:25] + b"".join(blocks) + data[25:]


def _comment(size: int, block: int = 255) -> bytes:
    full = bytes([block]) + bytes(block)
    return b"!\xfe" + full * (size // block) + b"\0"


def _circular_exif() -> bytes:
    entry = struct.pack("<HHII", 0x8769, 4, 1, 8)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, 1) + entry + struct.pack("<I", 8)


TOO_LARGE = "pixels, (a|at most)"
BOMBS: dict[str, tuple[Callable[[], bytes], str]] = {
    # name: the file, and what the refusal says ("pixels" where the photo is read and the bomb left alone)
    "png of 50,000 x 50,000": (lambda: _png(50_000, 50_000), TOO_LARGE),
    "png of 2^31 x 1": (lambda: _png(2**31 - 1, 1), TOO_LARGE),
    "gif of 50,000 x 50,000": (lambda: make.gif(50_000, 50_000), TOO_LARGE),
    "gif frame of 50,000 x 50,000": (lambda: make.gif(4, 4, frame=(0, 0, 50_000, 50_000)), TOO_LARGE),
    "gif frame far outside": (lambda: make.gif(4, 4, frame=(50_000, 50_000, 1, 1)), TOO_LARGE),
    "webp of 50,000 x 50,000": (lambda: make.riff(make.vp8x(50_000, 50_000), (b"VP8L", b"")), TOO_LARGE),
    "webp lossless of 16,384 x 16,384": (lambda: make.riff((b"VP8L", b"\x2f\xff\xff\xff\x0f")), TOO_LARGE),
    "webp lossy of 16,383 x 16,383": (lambda: make.riff((b"VP8 ", b"\0\0\0\x9d\x01\x2a\xff\x3f\xff\x3f")), TOO_LARGE),
    "bmp of 50,000 x 50,000": (lambda: make.bmp(50_000, 50_000), TOO_LARGE),
    "bmp of 2^31 rows from the top": (lambda: make.bmp(1, -(2**31)), TOO_LARGE),
    "bmp rle": (lambda: make.bmp(5_000, 5_000, 8, 1, b"\xff\0" * 99), "BMP with compression 1"),
    "jpeg of 65,500 x 65,500": (lambda: make.with_frame(_jpeg(), size=(65_500, 65_500)), TOO_LARGE),
    "jpeg of 65,535 x 1": (lambda: make.with_frame(_jpeg(), size=(65_535, 1)), TOO_LARGE),
    "progressive of 10,000 x 10,000": (
        lambda: make.with_frame(_jpeg(progressive=True), size=(10**4, 10**4)),
        TOO_LARGE,
    ),
    "cmyk of 5,000 x 5,000": (
        lambda: make.with_frame(make.saved(Image.new("CMYK", (8, 8)), "JPEG"), size=(5_000, 5_000)),
        TOO_LARGE,
    ),
    "jpeg of 1,000 scans": (lambda: _jpeg_of_scans(1_000), f"more than {MAX_SCANS} JPEG scans"),
    "progressive of 5,000 x 5,000 in 60 scans": (
        lambda: make.with_frame(_jpeg_of_scans(50), size=(5_000, 5_000)),
        "pixels in all JPEG scans together",
    ),
    "jpeg of 10^6 segments": (
        lambda: make.after_soi(_jpeg(), make.jpeg_segment(0xFE, b"") * 10**6),
        f"more than {MAX_PARTS:,} JPEG segments",
    ),
    "gif of 10^6 frames": (lambda: make.gif(4, 4, 10**6), f"more than {MAX_FRAMES:,} frames"),
    "apng of 10^6 frames": (
        lambda: _png(9, 9, make.chunk(b"acTL", struct.pack(">II", 10**6, 0))),
        f"more than {MAX_FRAMES:,} frames",
    ),
    "apng of 10^6 frame chunks": (
        lambda: _png(9, 9, make.chunk(b"fcTL", bytes(26)) * 10**6),
        f"more than {MAX_PARTS:,} PNG chunks",
    ),
    "webp of 10^5 frames": (lambda: _webp_frames(10**5), f"more than {MAX_FRAMES:,} frames"),
    "gif of 10^7 blocks": (lambda: _gif_with(_comment(10**7, 1)), f"more than {MAX_SUB_BLOCKS:,} GIF blocks"),
    "png of 100 MB of text": (lambda: _png(9, 9, make.chunk(b"tEXt", bytes(100 << 20))), f"at most {MAX_BYTES:,}"),
    "png of 20 MB of text": (lambda: _png(9, 9, make.chunk(b"tEXt", bytes(20 << 20))), f"more than {MAX_ANCILLARY:,}"),
    "png of 100 MB of text, compressed": (lambda: _png(9, 9, make.chunk(b"zTXt", b"a\0\0" + _inflated(100))), "pixels"),
    "png of 100 MB of profile": (lambda: _png(9, 9, make.chunk(b"iCCP", b"a\0\0" + _inflated(100))), "pixels"),
    "png of 30 MB of exif": (lambda: _png(9, 9, make.chunk(b"eXIf", bytes(30 << 20))), f"more than {MAX_ANCILLARY:,}"),
    "jpeg of 100 MB of text": (
        lambda: make.after_soi(_jpeg(), make.jpeg_segment(0xFE, bytes(65_533)) * 1_600),
        f"at most {MAX_BYTES:,}",
    ),
    "jpeg of 30 MB of profile": (
        lambda: make.after_soi(_jpeg(), make.jpeg_segment(0xE2, b"ICC_PROFILE\0" + bytes(65_000)) * 500),
        f"more than {MAX_ANCILLARY:,}",
    ),
    "jpeg of 30 MB of exif": (
        lambda: make.after_soi(_jpeg(), make.jpeg_segment(0xE1, make.exif(6) + bytes(65_000)) * 500),
        f"more than {MAX_ANCILLARY:,}",
    ),
    "jpeg of circular exif": (lambda: make.after_soi(_jpeg(), make.jpeg_segment(0xE1, _circular_exif())), "pixels"),
    "webp of 20 MB of profile": (
        lambda: make.riff(make.vp8x(1, 1, 0x20), (b"ICCP", bytes(20 << 20))),
        f"more than {MAX_ANCILLARY:,}",
    ),
    "webp of 40 MB": (lambda: make.riff(make.vp8x(1, 1), (b"EXIF", bytes(40 << 20))), "which a WebP may have"),
    "gif of 20 MB of comments": (lambda: _gif_with(_comment(20 << 20)), f"more than {MAX_ANCILLARY:,}"),
}


def test_bombs_are_refused_with_little_work_and_memory(tmp_path: Path) -> None:
    headers = {}
    for name, (build, _) in BOMBS.items():
        data = build()
        (tmp_path / name).write_bytes(data)
        with contextlib.suppress(PhotoError), counted() as work:
            read_header(data)
        headers[name] = work.total()
    results = in_a_child("files", str(tmp_path))["result"]
    assert len(results) == len(BOMBS)
    for result in results:
        name, outcome = result["name"], result["outcome"]
        print(f"{name}: {headers[name]:,} calls, file {result['seconds'] * 1e3:.1f} ms +{result['grown'] >> 20} MiB")
        wanted = BOMBS[name][1]
        assert re.match(wanted if wanted == "pixels" else f"refused: .*{re.escape(name)}: .*{wanted}", outcome), outcome
        assert headers[name] < 2 * MAX_SUB_BLOCKS, name
        assert result["grown"] <= 64 << 20, name


def test_the_largest_photos_that_are_read_stay_within_the_memory(tmp_path: Path) -> None:
    ihdr = make.chunk(b"IHDR", struct.pack(">IIBBBBB", 5_792, 5_792, 8, 6, 0, 0, 0))
    idat = make.chunk(b"IDAT", zlib.compress(bytes(5_792 * (1 + 4 * 5_792)), 1))
    (tmp_path / "png").write_bytes(b"\x89PNG\r\n\x1a\n" + ihdr + idat + make.chunk(b"IEND", b""))
    grey = Image.new("RGB", (5_792, 5_792), (90, 90, 90))
    (tmp_path / "jpeg").write_bytes(make.saved(grey, "JPEG", progressive=True, subsampling=0))
    clear = Image.new("RGBA", (4_096, 4_096), (90, 90, 90, 90))
    (tmp_path / "webp").write_bytes(make.saved(clear, "WEBP", lossless=True, quality=0, method=0))
    for result in in_a_child("files", str(tmp_path))["result"]:
        print(f"{result['name']}: {result['seconds']:.2f} s +{result['grown'] >> 20} MiB")
        assert result["outcome"] == "pixels"
        assert result["grown"] < MEMORY


# JPEGs of other kinds


def _odd_jpegs() -> Iterator[tuple[str, bytes, str]]:
    good = _jpeg()
    for marker in (0xC3, 0xC7, 0xCB, 0xCF):
        yield f"SOF{marker - 0xC0}", make.with_frame(good, marker), "is a lossless JPEG"
    for marker in (0xC9, 0xCA, 0xCD, 0xCE):
        yield f"SOF{marker - 0xC0}", make.with_frame(good, marker), "is a JPEG with arithmetic coding"
    for marker in (0xC5, 0xC6):
        yield f"SOF{marker - 0xC0}", make.with_frame(good, marker), "is a hierarchical JPEG"
    yield "DHP", make.after_soi(good, make.jpeg_segment(0xDE, bytes(15))), "is a hierarchical JPEG"
    yield "DAC", make.after_soi(good, make.jpeg_segment(0xCC, bytes(2))), "is a JPEG with arithmetic coding"
    yield "DNL", good[:-2] + make.jpeg_segment(0xDC, bytes(2)) + good[-2:], "height comes after the picture"
    yield "12 bits", make.with_frame(good, bits=12), "is a JPEG with 12 bits a sample"
    yield "16 bits, lossless", make.with_frame(good, 0xC3, bits=16), "is a lossless JPEG"
    two = b"\x08\0\x08\0\x08\x02\x01\x11\0\x02\x11\0"
    yield "2 components", b"\xff\xd8" + make.jpeg_segment(0xC0, two), "is a JPEG with 2 components"
    same = b"\x08\0\x08\0\x08\x03\x01\x11\0\x01\x11\0\x02\x11\0"
    yield "twice the same component", b"\xff\xd8" + make.jpeg_segment(0xC0, same), "have the same name"
    parts = make.jpeg_parts(good)
    frame = next(i for i, part in enumerate(parts) if part[1] == 0xC0)
    lossless = b"\xff\xc3" + parts[frame][2:]
    yield "SOF3 after SOF0", b"".join([*parts[:-2], lossless, *parts[-2:]]), "is a lossless JPEG"
    yield "SOF3 after the scan", b"".join([*parts[:-1], lossless, *parts[-2:]]), "is a lossless JPEG"
    yield "SOF3 in place of EOI", b"".join([*parts[:-1], lossless]), "is a lossless JPEG"
    yield "SOF3 after fill bytes", b"".join([*parts[:frame], b"\xff\xff", lossless, *parts[frame + 1 :]]), "lossless"
    yield "SOF0 twice", b"".join([*parts[:frame], parts[frame], *parts[frame:]]), "has two frame headers"
    yield "no frame", b"".join([*parts[:frame], *parts[frame + 1 :]]), "a scan before its frame header"
    scan = parts[-2]
    yield "unknown component", b"".join([*parts[:-2], scan[:5] + b"\x63" + scan[6:], parts[-1]]), "does not have"
    yield "scan of 5", b"".join([*parts[:-2], scan[:4] + b"\x05" + scan[5:], parts[-1]]), "scan header"


@pytest.mark.parametrize(
    ("data", "reason"), [pytest.param(data, reason, id=name) for name, data, reason in _odd_jpegs()]
)
def test_other_jpegs_are_refused_before_any_decoder(monkeypatch: pytest.MonkeyPatch, data: bytes, reason: str) -> None:
    def reached(*_: Any, **__: Any) -> None:
        pytest.fail("the decoder was reached")

    monkeypatch.setattr("mobilenet.photos.simplejpeg.decode_jpeg", reached)
    for minimum in (None, (1, 1)):
        with pytest.raises(PhotoError, match=f"^odd.jpg: .*{reason}"):
            decode(data, "odd.jpg", minimum)
    with pytest.raises(PhotoError, match=f"^odd.jpg: .*{reason}"):
        pixels(data, HOW, name="odd.jpg")


def test_the_most_scans_that_are_allowed_are_read() -> None:
    data = _jpeg_of_scans(1)
    scans = sum(part[1] == 0xDA for part in make.jpeg_parts(data))
    more = _jpeg_of_scans(1 + MAX_SCANS - scans)
    assert read_header(more).format == "progressive JPEG"
    with pytest.raises(PhotoError, match="JPEG scans"):
        read_header(_jpeg_of_scans(2 + MAX_SCANS - scans))


def test_a_jpeg_in_several_scans_counts_as_progressive() -> None:
    # A baseline JPEG whose scans hold one component each is kept in memory as a whole by libjpeg.
    parts = make.jpeg_parts(_jpeg(subsampling=0))
    scans = b"".join(make.jpeg_segment(0xDA, bytes([1, c, 0x11 * (c > 1), 0, 63, 0])) + bytes(9) for c in (1, 2, 3))
    data = b"".join([*parts[:-2], scans, parts[-1]])
    assert read_header(data).format == "progressive JPEG"
    with pytest.raises(PhotoError, match=TOO_LARGE):
        read_header(make.with_frame(data, size=(10_000, 10_000)))


# Names


def _not_photos() -> Iterator[tuple[str, bytes, str]]:
    yield "PSD", b"8BPS\0\1" + bytes(99), "Photoshop"
    yield "EPS", b"%!PS-Adobe-3.0 EPSF-3.0\n", "PostScript"
    yield "FITS", b"SIMPLE  =                    T" + bytes(99), "FITS"
    yield "TIFF", make.saved(make.scene(20, 24), "TIFF"), "TIFF"
    yield "TIFF, big end first", b"MM\0*\0\0\0\x08", "TIFF"
    yield "PDF", b"%PDF-1.7\n", "PDF"
    yield "HTML", b"<!DOCTYPE html><html></html>", "HTML"
    yield "HEIC", b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC"
    yield "JPEG 2000", b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"
    yield "PPM", b"P6 1 1 255 abc", "is not a JPEG, PNG, WebP, GIF or BMP photo$"
    yield "empty", b"", "is empty"
    yield "text", b"hello", "is not a JPEG"


@pytest.mark.parametrize(
    ("data", "reason"), [pytest.param(data, reason, id=name) for name, data, reason in _not_photos()]
)
def test_files_named_like_photos_are_refused(tmp_path: Path, data: bytes, reason: str) -> None:
    path = tmp_path / "cat.jpg"
    path.write_bytes(data)
    with pytest.raises(PhotoError, match=f"cat.jpg: .*{reason}"):
        pixels(path, HOW)


def test_the_name_does_not_matter_to_a_photo(tmp_path: Path) -> None:
    (tmp_path / "cat.pdf").write_bytes(make.saved(make.scene(20, 24), "PNG"))
    (tmp_path / "link.jpg").symlink_to("cat.pdf")
    assert np.array_equal(pixels(tmp_path / "link.jpg", HOW), pixels(make.scene(20, 24), HOW))


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (Path.mkdir, "is a folder"),
        (os.mkfifo, "is a FIFO"),
        (lambda path: path.symlink_to(path.name), "symbolic links"),
        (lambda path: path.symlink_to("/dev/zero"), "is a device"),
        (lambda _: None, "No such file"),
    ],
)
def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path, build: Callable[[Path], None], reason: str) -> None:
    build(tmp_path / "cat.jpg")
    for read in (open_bytes, lambda path: pixels(path, HOW), lambda path: pixels(str(path), HOW)):
        with pytest.raises(PhotoError, match=f"cat.jpg: .*{reason}"):
            read(tmp_path / "cat.jpg")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_photo_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cat.jpg").touch(mode=0)
    with pytest.raises(PhotoError, match=r"cat\.jpg: can't be read: Permission denied"):
        pixels(tmp_path / "cat.jpg", HOW)


@pytest.mark.parametrize("name", ["n" * 300 + ".jpg", os.fsdecode(b"\xff\xfe.jpg"), "a\0b.jpg", "\x1b[31m.jpg"])
def test_strange_names_are_refused_in_printable_text(tmp_path: Path, name: str) -> None:
    with pytest.raises(PhotoError) as refusal:
        pixels(tmp_path / name, HOW)
    assert str(refusal.value).isprintable()
    with pytest.raises(PhotoError) as refusal:
        decode(b"", str(tmp_path / name))
    assert str(refusal.value).isprintable()


def test_a_message_of_a_decoder_is_printable(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ValueError("\x1b[31m" + "x" * 10_000)

    monkeypatch.setattr("mobilenet.photos.simplejpeg.decode_jpeg", fail)
    with pytest.raises(PhotoError) as refusal:
        decode(_jpeg(), "a")
    assert str(refusal.value).isprintable()
    assert len(str(refusal.value)) < 500


def test_random_bytes_after_each_magic_are_refused() -> None:
    choose = random.Random(0)
    for magic in (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF\xff\0\0\0WEBP", b"GIF89a", b"BM"):
        for size in range(0, 300, 3):
            with pytest.raises(PhotoError):
                pixels(magic + choose.randbytes(size), HOW)
