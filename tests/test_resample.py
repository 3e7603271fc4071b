"""Photos resized by compiled code are bit by bit what Pillow makes of them, on every instruction set."""

import random
from functools import partial
from typing import Any

import numpy as np
import pytest
from PIL import Image

import photo_makers as make
from compiler_tools import UNICORN, guarded, guarded_copy
from mobilenet import photos
from mobilenet.arch import v1
from mobilenet.compiler import resample, targets
from mobilenet.compiler.build import build
from mobilenet.compiler.driver import DRIVE
from mobilenet.compiler.emulator import Emulator
from mobilenet.compiler.loader import Code
from mobilenet.compiler.native import NativeEngine
from mobilenet.compiler.resample import LEAST, Across, Down, Resampler
from mobilenet.compiler.targets import Target, runnable
from mobilenet.engine import Engine
from mobilenet.errors import UsageError
from mobilenet.model import create
from mobilenet.photos.preprocessing import Preprocessing
from mobilenet.photos.resampling import factors
from mobilenet.runner import Runner

FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
TARGETS = [target for target in runnable() if not target.words]


def made(target: Target, height: int, width: int) -> Resampler:
    across = Across(width)
    return Resampler(Code(*build((across, Down()), target, workers=1)), across, height, target.lanes)


def by_pillow(photo: np.ndarray, size: tuple[int, int], box: resample.Box, interpolation: str) -> np.ndarray:
    return np.asarray(Image.fromarray(photo[:, :, :3].copy()).resize(size[::-1], FILTERS[interpolation], box))


def noise(height: int, width: int, seed: int) -> np.ndarray:
    """Returns random bytes, many of them at the ends of their range, so that bicubic sums go beyond it."""
    values = np.random.default_rng(seed).integers(-255, 511, (height, width, 4))
    return np.clip(values, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
@pytest.mark.parametrize("size", [(224, 224), (32, 33), (96, 57)])
def test_a_photo_is_resized_as_pillow_does(target: Target, size: tuple[int, int], monkeypatch) -> None:
    resampler = made(target, *size)
    monkeypatch.setattr(resample, "_bytes", guarded)
    draw = random.Random(str((target.name, size)))
    clipped, down_first = 0, 0
    for seed in range(30):
        height, width = (draw.choice([LEAST, LEAST + 1, draw.randint(LEAST, 90), draw.randint(200, 700)]) for _ in "hw")
        photo = noise(height, width, seed)
        left, right = sorted((draw.uniform(0, width - 1), draw.uniform(0, width - 1)))
        top, bottom = sorted((draw.uniform(0, height - 1), draw.uniform(0, height - 1)))
        box = draw.choice([(0, 0, width, height), (left, top, right + 1, bottom + 1)])
        down_first += height - size[0] > max(0, 2 * (width - size[1]))
        for interpolation in FILTERS:
            assert resampler.takes(height, width)
            found = resampler(guarded_copy(photo), box, interpolation)
            wanted = by_pillow(photo, size, box, interpolation)
            assert np.array_equal(found, wanted), (photo.shape, box, interpolation)
            clipped += int(((wanted == 0) | (wanted == 255)).sum())
    assert clipped > 1000
    assert 0 < down_first < 30  # Pillow has two orders of the passes


class EmulatedResampler(Resampler):
    """Its passes are made by an emulated processor, to which the arrays that they use are copied, and back."""

    def __init__(self, target: Target, height: int, width: int) -> None:
        across = Across(width)
        image, functions = build((across, Down()), target, workers=1)
        self.machine = Emulator(target)
        code = self.machine.map(image, "rx")
        self.drive = code + functions[DRIVE]
        self.size, self._group, self._idle = (height, width), target.lanes // resample._STORED, []
        self._across, self._down = (partial(self._pass, code + functions[repr(k)]) for k in (across, Down()))
        self.arrays: list[np.ndarray] = []

    def known(self, array: np.ndarray) -> np.ndarray:
        self.arrays.append(array)
        return array

    def _pass(self, function: int, *arguments: int) -> None:
        places = {}
        for place in arguments[:4]:
            (array,) = (a for a in self.arrays if a.ctypes.data <= place < a.ctypes.data + a.nbytes)
            access = "rw" if place == arguments[0] else "r"
            places[place] = self.machine.map(array.tobytes(), access) + place - array.ctypes.data, array
        row = np.array([function, *(places[place][0] for place in arguments[:4]), *arguments[4:]], np.int64)
        self.machine.call(self.drive, self.machine.map(row.tobytes(), "r"), 1)
        begin, out = places[arguments[0]]
        out[...] = np.frombuffer(self.machine.read(begin, out.nbytes), np.uint8).reshape(out.shape)


@pytest.mark.skipif(not UNICORN, reason="needs unicorn")
@pytest.mark.parametrize("size", [(32, 33), (40, 57)])
def test_a_photo_is_resized_on_neon_as_pillow_does(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    resampler = EmulatedResampler(targets.TARGETS["neon"], *size)
    table = resample._table

    def known_table(*asked: Any) -> Any:
        found = table(*asked)
        resampler.arrays += found.arrays
        return found

    monkeypatch.setattr(resample, "_bytes", lambda size: resampler.known(np.zeros(size, np.uint8)))
    monkeypatch.setattr(resample, "_table", known_table)
    shapes = [(90, 70, (0, 0, 70, 90)), (300, 50, (3.5, 10.2, 47.1, 280)), (LEAST, 200, (0, 0, 200, LEAST)),
              (33, 500, (20, 1, 333, 30.5))]  # fmt: skip
    for seed, (height, width, box) in enumerate(shapes):
        photo = noise(height, width, seed)
        for interpolation in FILTERS:
            resampler.arrays, resampler._idle = [photo], []
            assert np.array_equal(resampler(photo, box, interpolation), by_pillow(photo, size, box, interpolation))


def test_an_area_of_the_right_size_is_untouched() -> None:
    photo = noise(60, 70, 1)
    resampler = made(TARGETS[0], 32, 48)
    for interpolation in FILTERS:
        assert np.array_equal(resampler(photo, (5, 7, 53, 39), interpolation), photo[7:39, 5:53, :3])


def test_photos_of_a_few_pixels_are_left_to_pillow() -> None:
    resampler = made(TARGETS[0], 32, 32)
    assert resampler.takes(LEAST, LEAST)
    assert not resampler.takes(LEAST - 1, 100)
    assert not resampler.takes(100, LEAST - 1)


def jpegs() -> dict[str, bytes]:
    """Returns JPEG files that are decoded for the resampler, and some that are not."""
    image = Image.fromarray(make.scene(150, 131))
    colour = make.saved(image, "JPEG", quality=90)
    turned = {f"turned {n}": make.after_soi(colour, make.jpeg_segment(0xE1, make.exif(n))) for n in (1, 3, 6, 8)}
    return turned | {
        "progressive": make.saved(image, "JPEG", progressive=True, subsampling=0),
        "scaled": make.saved(make.scene(900, 1203), "JPEG"),
        "no EOI": colour[:-2],
        "grey": make.saved(image.convert("L"), "JPEG"),
        "CMYK": make.saved(image.convert("CMYK"), "JPEG"),
        "few pixels": make.saved(make.scene(20, 200), "JPEG"),
        "PNG": make.saved(image, "PNG"),
    }


@pytest.mark.parametrize("kind", jpegs())
def test_a_photo_has_the_same_pixels_with_and_without_a_resampler(kind: str) -> None:
    other, data = jpegs()["turned 1"], jpegs()[kind]
    for size, channels in (((40, 40), 3), ((40, 60), 3), ((40, 40), 1)):
        resampler = Counting(made(TARGETS[0], *size))
        for interpolation in FILTERS:
            how = Preprocessing(*size, channels, interpolation=interpolation)
            wanted = photos.pixels(data, how)
            resampler.calls = 0
            found = photos.pixels(data, how, resampler=resampler)
            turned = kind in ("turned 6", "turned 8") and size[0] != size[1]
            expected = kind not in ("grey", "CMYK", "few pixels", "PNG") and not turned and channels == 3
            assert resampler.calls == expected
            photos.pixels(other, how, resampler=resampler)
            assert np.array_equal(found, wanted)  # which is not the memory that photos are decoded to
            assert found.flags.c_contiguous
            assert found.flags.writeable


class Counting:
    """Counts how often a resampler is called."""

    def __init__(self, resampler: Resampler) -> None:
        self.size, self.takes, self.resampler, self.calls = resampler.size, resampler.takes, resampler, 0

    def __call__(self, photo: np.ndarray, box: resample.Box, interpolation: str) -> np.ndarray:
        self.calls += 1
        return self.resampler(photo, box, interpolation)


def test_a_large_photo_leaves_no_large_memory_behind() -> None:
    resampler = made(TARGETS[0], 40, 40)
    how = Preprocessing(40, 40)
    photos.pixels(make.saved(make.scene(100, 100), "JPEG"), how, resampler=resampler)
    kept = len(photos._memory.room)
    assert kept >= 4 * 100 * 100
    photos.pixels(make.saved(np.zeros((50, 60000, 3), np.uint8), "JPEG"), how, resampler=resampler)
    assert len(photos._memory.room) == kept


@pytest.mark.parametrize("kind", [NativeEngine, Engine])
def test_one_image_has_the_logits_of_a_batch(kind: type[Runner]) -> None:
    model = create(v1(0.25, 32, 5))
    engine = kind(model, threads=2)
    assert (engine.resampler is None) == (kind is Engine)
    images = np.random.default_rng(1).integers(0, 256, (3, 32, 32, 3), np.uint8)
    together = engine(images)
    assert np.array_equal([engine.one(image) for image in images], together)
    assert np.array_equal(engine.one(images[0, ::-1][::-1].astype(np.float32)), together[0])
    with pytest.raises(UsageError, match="pixels: got uint8"):
        engine.one(images)


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize("multiple", [1, 2, 4])
def test_factors_are_of_pixels_within_the_side_and_add_up_to_one(interpolation: str, multiple: int) -> None:
    draw = random.Random(interpolation)
    for _ in range(200):
        side, count = draw.randint(LEAST, 500), draw.randint(LEAST, 300)
        begin, end = sorted((draw.uniform(0, side - 1), draw.uniform(0, side - 1)))
        firsts, given = factors(side, begin, end + 1, count, interpolation, multiple)
        assert given.shape[1] % multiple == 0
        assert firsts.min() >= 0
        assert int(firsts.max()) + given.shape[1] <= side
        assert (np.diff(firsts) >= 0).all()
        assert np.abs(given.sum(axis=1) - (1 << 22)).max() <= given.shape[1] / 2  # each is rounded
