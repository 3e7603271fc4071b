"""Augmentation: geometry and colours are what was drawn, and photos that are not varied are what prediction sees."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mobilenet import photos
from mobilenet.photos.preprocessing import Preprocessing
from mobilenet.training import augment
from mobilenet.training.augment import STRENGTHS, Draw, Strength

SMALL = Preprocessing(32, 32, crop=1.0, resize="squash", mean=(0.0,), std=(1.0,))
LARGE = Preprocessing(80, 80, mean=(0.0,), std=(1.0,))
EPS = float(np.finfo(np.float32).eps)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def random_photos(count: int, how: Preprocessing) -> torch.Tensor:
    shape = (count, *augment.stored(how), how.channels)
    return torch.from_numpy(rng().integers(0, 256, shape, dtype=np.uint8))


def applied(pixels: torch.Tensor, draw: Draw, how: Preprocessing) -> np.ndarray:
    """Returns [n, height, width, channels]."""
    return augment.apply(pixels, torch.from_numpy(draw.packed), how).permute(0, 2, 3, 1).numpy()


def window(x: float, y: float, width: float, height: float) -> Draw:
    return Draw(np.array([[x, y, width, height]], np.float32), np.empty((1, 0), np.float32))


def colour(brightness: float, contrast: float, saturation: float) -> Draw:
    return Draw(np.array([[0.5, 0.5, 1, 1]], np.float32), np.array([[brightness, contrast, saturation]], np.float32))


# A sampling point is computed in -1..1 and scaled to up to 92 pixels with about 8 roundings, so it is off by at most
# 8 * 92 * eps pixels, where neighbours differ by at most 255; the interpolation itself rounds 8 times values up to 255.
TOLERANCE = 255 * (8 * 92 + 8) * EPS


def test_a_whole_window_is_the_photo_itself() -> None:
    pixels = random_photos(3, SMALL)
    draw = augment.draw(rng(), np.ones(3, np.float32), SMALL, "none")
    np.testing.assert_allclose(applied(pixels, draw, SMALL), pixels.numpy(), rtol=0, atol=TOLERANCE)


def test_pixels_are_scaled_as_prediction_scales_them() -> None:
    how = replace(SMALL, mean=(120.0, 110.0, 100.0), std=(60.0, 50.0, 40.0))
    pixels = random_photos(2, how)
    needed = (pixels.numpy() - np.array(how.mean)) / np.array(how.std)
    scaled = augment.scaled(pixels, how)
    assert scaled.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(scaled.permute(0, 2, 3, 1).numpy(), needed, rtol=0, atol=4 * 255 / 40 * EPS)
    draw = augment.draw(rng(), np.ones(2, np.float32), how, "none")
    np.testing.assert_allclose(applied(pixels, draw, how), needed, rtol=0, atol=TOLERANCE / 40)
    assert augment.apply(pixels, torch.from_numpy(draw.packed), how).is_contiguous(memory_format=torch.channels_last)


def test_a_negative_width_mirrors() -> None:
    pixels = random_photos(1, SMALL)
    mirrored = applied(pixels, window(0.5, 0.5, -1, 1), SMALL)
    np.testing.assert_allclose(mirrored, pixels.numpy()[:, :, ::-1], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(("right", "down"), [(0, 0), (4, 0), (0, -4), (-3, 2)])
def test_a_shift_moves_whole_pixels_and_reflects_the_border(right: int, down: int) -> None:
    pixels = random_photos(1, SMALL)
    padded = np.pad(pixels.numpy(), ((0, 0), (4, 4), (4, 4), (0, 0)), mode="symmetric")
    needed = padded[:, 4 + down : 36 + down, 4 + right : 36 + right]
    found = applied(pixels, window(0.5 + right / 32, 0.5 + down / 32, 1, 1), SMALL)
    np.testing.assert_allclose(found, needed, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("strength", ["light", "standard"])
def test_small_photos_are_shifted_by_every_number_of_pixels(strength: Strength) -> None:
    windows = augment.draw(rng(), np.ones(2000, np.float32), replace(SMALL, width=48), strength).windows
    shifts = (windows[:, :2] - 0.5) * [48, 32]
    np.testing.assert_allclose(shifts, np.round(shifts), rtol=0, atol=48 * EPS)
    assert [set(np.round(column)) for column in shifts.T] == [set(range(-6, 7)), set(range(-4, 5))]
    assert set(windows[:, 3]) == {1.0}


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("how", [SMALL, LARGE])
def test_only_standard_mirrors_and_colours(strength: Strength, how: Preprocessing) -> None:
    draw = augment.draw(rng(), np.ones(4000, np.float32), how, strength)
    mirrored = float((draw.windows[:, 2] < 0).mean())
    if strength == "standard":
        assert abs(mirrored - 0.5) < 5 * 0.5 / 4000**0.5  # five standard deviations
        assert 0.8 <= draw.colours.min() < 0.801
        assert 1.199 < draw.colours.max() <= 1.2
    else:
        assert mirrored == 0
        assert draw.colours.shape == (4000, 0)


@pytest.mark.parametrize(("strength", "least", "jitter"), [("light", 0.7, 1.0), ("standard", 0.35, 4 / 3)])
@pytest.mark.parametrize("how", [LARGE, replace(LARGE, height=96, width=160)])
def test_crops_keep_to_area_and_true_aspect_ratio(
    strength: Strength, least: float, jitter: float, how: Preprocessing
) -> None:
    aspect = np.exp(rng(1).uniform(-1.1, 1.1, 4000)).astype(np.float32)
    windows = augment.draw(rng(), aspect, how, strength).windows.astype(np.float64)
    centres, sides = windows[:, :2], np.abs(windows[:, 2:])
    assert (centres - sides / 2).min() >= -4 * EPS
    assert (centres + sides / 2).max() <= 1 + 4 * EPS
    ratio = sides[:, 0] / sides[:, 1] * aspect / (how.width / how.height)
    assert ratio.max() <= jitter * (1 + 8 * EPS)
    assert ratio.min() >= (1 - 8 * EPS) / jitter
    area = sides.prod(1)
    whole = sides.max(1) > 1 - 4 * EPS  # too long for the photo, so made smaller
    assert area[~whole].min() >= least * (1 - 8 * EPS)
    assert area[~whole].min() < least + 0.02
    assert 0.1 < whole.mean() < 0.9


def test_a_crop_shows_the_part_of_the_photo_that_its_window_names() -> None:
    height, width = augment.stored(LARGE)
    assert (height, width) == (92, 92)
    y, x = np.mgrid[0:height, 0:width]
    pixels = torch.from_numpy(np.stack([x, y, 0 * x], -1)[None].astype(np.uint8))  # a pixel holds its own place
    found = applied(pixels, window(0.4, 0.6, 0.5, 0.25), LARGE)[0]
    centres = (np.arange(80) + 0.5) / 80 - 0.5
    np.testing.assert_allclose(found[0, :, 0], 92 * (0.4 + 0.5 * centres) - 0.5, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(found[:, 0, 1], 92 * (0.6 + 0.25 * centres) - 0.5, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("shape", [(300, 200), (200, 300), (120, 120)])
def test_none_takes_the_same_part_as_prediction(shape: tuple[int, int]) -> None:
    y, x = np.mgrid[0 : shape[0], 0 : shape[1]]
    photo = np.stack([x * 255 / shape[1], y * 255 / shape[0], 0 * x], -1).astype(np.uint8)
    height, width = augment.stored(LARGE)
    whole = replace(LARGE, height=height, width=width, crop=1.0, resize="squash")
    stored = torch.from_numpy(photos.pixels(photo, whole)[None])
    draw = augment.draw(rng(), np.array([shape[1] / shape[0]], np.float32), LARGE, "none")
    # Both resample a linear ramp: rounding to whole values three times, and the photo's own steps of up to 255 / 120.
    difference = applied(stored, draw, LARGE)[0] - photos.pixels(photo, LARGE)
    assert np.abs(difference).max() < 1.5 + 255 / 120


def test_brightness_multiplies() -> None:
    pixels = random_photos(1, SMALL)
    found = applied(pixels, colour(1.2, 1, 1), SMALL)
    np.testing.assert_allclose(found, 1.2 * pixels.numpy(), rtol=0, atol=2 * TOLERANCE)


def test_contrast_stretches_around_the_mean_luma() -> None:
    pixels = random_photos(1, SMALL)
    mean = (pixels.numpy() @ np.array(augment.LUMA)).mean()
    found = applied(pixels, colour(1, 0.8, 1), SMALL)
    np.testing.assert_allclose(found, mean + 0.8 * (pixels.numpy() - mean), rtol=0, atol=2 * TOLERANCE)


def test_saturation_mixes_with_grey() -> None:
    pixels = random_photos(1, SMALL)
    grey = (pixels.numpy() @ np.array(augment.LUMA))[..., None]
    found = applied(pixels, colour(1, 1, 0.8), SMALL)
    np.testing.assert_allclose(found, 0.8 * pixels.numpy() + 0.2 * grey, rtol=0, atol=2 * TOLERANCE)


def test_grey_photos_have_no_saturation() -> None:
    how = replace(SMALL, channels=1)
    pixels = random_photos(1, how)
    mean = pixels.numpy().mean()
    found = applied(pixels, colour(1.1, 0.9, 0.8), how)
    needed = 1.1 * (0.9 * pixels.numpy() + 0.1 * mean)
    np.testing.assert_allclose(found, needed, rtol=0, atol=2 * TOLERANCE)


def test_each_photo_gets_its_own_window_and_colours() -> None:
    pixels = random_photos(1, SMALL).expand(2, -1, -1, -1)
    draw = augment.draw(rng(), np.ones(2, np.float32), SMALL, "standard")
    both = applied(pixels, draw, SMALL)
    for index in range(2):
        alone = Draw(draw.windows[index : index + 1], draw.colours[index : index + 1])
        np.testing.assert_allclose(both[index], applied(pixels[:1], alone, SMALL)[0], rtol=0, atol=TOLERANCE)
    assert np.abs(both[0] - both[1]).max() > 10


@pytest.mark.parametrize("how", [SMALL, LARGE])
def test_the_same_generator_draws_the_same(how: Preprocessing) -> None:
    aspect = np.linspace(0.5, 2, 9, dtype=np.float32)
    one, same, other = (augment.draw(rng(seed), aspect, how, "standard").packed for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
    assert one.dtype == np.float32
