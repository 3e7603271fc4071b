"""Photos resized by compiled code are bit by bit what Pillow makes of them, on every instruction set."""

import random

import numpy as np
import pytest
from PIL import Image

from compiler_tools import guarded, guarded_copy
from mobilenet.compiler import resample
from mobilenet.compiler.build import build
from mobilenet.compiler.loader import Code
from mobilenet.compiler.resample import LEAST, Across, Down, Resampler
from mobilenet.compiler.targets import Target, runnable
from mobilenet.photos.resampling import factors

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
