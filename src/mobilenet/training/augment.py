"""Augmentation of a batch at once: each photo gets a window, perhaps mirrored, and a change of colours.

The random numbers are drawn by numpy on the processor, from a generator that the caller seeds by the step, so that a
training can be resumed anywhere. The pixels are computed by torch on whatever device the batch lies. There is one
geometry for every strength and size of photo, a window in fractions of the squashed photo:

    none      the window that prediction sees
    light     a shift by up to 1/8 of the side where prediction sees the whole photo squashed (small photos), else a
              crop of 70 to 100% of the area: for digits, text and signs, whose mirror images mean something else
    standard  light's shift, or a crop of 35 to 100% with an aspect ratio of 3/4 to 4/3; mirrored half of the time;
              brightness, contrast and saturation changed by up to 20%
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..photos.preprocessing import Preprocessing

Strength = Literal["none", "light", "standard"]
STRENGTHS: tuple[Strength, ...] = get_args(Strength)

SHIFT = 1 / 8
MARGIN = 8 / 7  # photos to crop from are stored by this much larger than the network's input: its side over 0.875
SMALLEST_AREA = {"light": 0.7, "standard": 0.35}
ASPECT_JITTER = {"light": 1.0, "standard": 4 / 3}
COLOUR_JITTER = 0.2
LUMA = (0.299, 0.587, 0.114)  # ITU-R 601


def stored(preprocessing: Preprocessing) -> tuple[int, int]:
    """Returns the height and width at which whole photos are kept for training a network with this input."""
    margin = 1.0 if _is_shifted(preprocessing) else MARGIN
    return math.ceil(preprocessing.height * margin), math.ceil(preprocessing.width * margin)


def _is_shifted(preprocessing: Preprocessing) -> bool:
    return preprocessing.resize == "squash" and preprocessing.crop == 1.0


@dataclass(frozen=True)
class Draw:
    """Holds what was decided for each of n photos.

    Attributes:
        windows: [n, 4] centre x and y, width and height, in fractions of the photo; a negative width mirrors.
        colours: [n, 3] factors of brightness, contrast and saturation; [n, 0] where they stay.
    """

    windows: NDArray[np.float32]
    colours: NDArray[np.float32]

    @property
    def packed(self) -> NDArray[np.float32]:
        """[n, 7] or [n, 4]: both, for one copy to the device."""
        return np.concatenate([self.windows, self.colours], 1)


def draw(
    rng: np.random.Generator, aspect: NDArray[np.float32], preprocessing: Preprocessing, strength: Strength
) -> Draw:
    """Draws windows and colours for photos with these aspect ratios (true width / height, before squashing)."""
    count = len(aspect)
    colours = np.empty((count, 0))
    if strength == "none":
        windows = central(aspect, preprocessing)
    elif _is_shifted(preprocessing):
        windows = _random_shifts(rng, count, preprocessing)
    else:
        windows = _random_crops(rng, aspect, preprocessing.width / preprocessing.height, strength)
    if strength == "standard":
        windows[:, 2] *= rng.choice([-1.0, 1.0], count)
        colours = rng.uniform(1 - COLOUR_JITTER, 1 + COLOUR_JITTER, (count, 3))
    return Draw(windows.astype(np.float32), colours.astype(np.float32))


def central(aspect: NDArray[np.float32], preprocessing: Preprocessing) -> NDArray[np.float64]:
    """Returns the windows [n, 4] that prediction sees, by the preprocessing's `resize` and `crop`."""
    windows = np.full((len(aspect), 4), 0.5)
    sides = np.ones((len(aspect), 2))
    if preprocessing.resize == "crop":
        sides = _fitting(np.ones(len(aspect)), aspect, preprocessing.width / preprocessing.height)
        sides /= sides.max(1, keepdims=True)
    windows[:, 2:] = sides * preprocessing.crop
    return windows


def _random_shifts(rng: np.random.Generator, count: int, preprocessing: Preprocessing) -> NDArray[np.float64]:
    """Returns windows [n, 4] moved by whole pixels: a part of one would blur what prediction sees sharp."""
    windows = np.ones((count, 4))
    for axis, side in enumerate((preprocessing.width, preprocessing.height)):
        most = round(side * SHIFT)
        windows[:, axis] = 0.5 + rng.integers(-most, most, count, endpoint=True) / side
    return windows


def _random_crops(
    rng: np.random.Generator, aspect: NDArray[np.float32], target: float, strength: str
) -> NDArray[np.float64]:
    """Returns windows [n, 4] of random area, aspect ratio and place (Inception's crops, arXiv 1409.4842, section 6).

    Deviation: a crop that is too long for the photo is made smaller with its ratio kept, not drawn again.
    """
    count = len(aspect)
    area = rng.uniform(SMALLEST_AREA[strength], 1, count)
    limit = math.log(ASPECT_JITTER[strength])
    sides = _fitting(area, aspect, target * np.exp(rng.uniform(-limit, limit, count)))
    sides /= np.maximum(sides.max(1, keepdims=True), 1)
    centres = sides / 2 + (1 - sides) * rng.uniform(0, 1, (count, 2))
    return np.concatenate([centres, sides], 1)


def _fitting(
    area: NDArray[np.float64], aspect: NDArray[np.float32], ratio: float | NDArray[np.float64]
) -> NDArray[np.float64]:
    """Returns width and height [n, 2], in fractions of the photo, of rectangles with this area and true ratio."""
    stretch = np.sqrt(ratio / aspect.astype(np.float64))
    return np.stack([np.sqrt(area) * stretch, np.sqrt(area) / stretch], 1)


def apply(photos: Tensor, packed: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Returns the scaled pixels of the windows, [n, channels, height, width] float32 in channels_last memory.

    Args:
        photos: uint8 [n, stored height, stored width, channels].
        packed: `Draw.packed`, on the same device.
    """
    windows, colours = packed[:, :4], packed[:, 4:]
    x = F.grid_sample(
        photos.permute(0, 3, 1, 2).to(torch.float32),
        _grid(windows, preprocessing.height, preprocessing.width),
        padding_mode="reflection",
        align_corners=False,
    )
    return _scale(_recolour(x, colours) if colours.shape[1] else x, preprocessing)


def scaled(photos: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Returns pixels as the network takes them: uint8 [n, height, width, channels] -> float32 [n, channels, …]."""
    return _scale(photos.permute(0, 3, 1, 2).to(torch.float32), preprocessing)


def _grid(windows: Tensor, height: int, width: int) -> Tensor:
    """Returns sampling points [n, height, width, 2] in -1..1. No rotation, so two rows of numbers say it all."""
    x, y = (
        (2 * windows[:, axis, None] - 1) + windows[:, 2 + axis, None] * _pixel_centres(size, windows.device)
        for axis, size in ((0, width), (1, height))
    )
    grid = windows.new_empty(len(windows), height, width, 2)
    grid[..., 0] = x[:, None, :]
    grid[..., 1] = y[:, :, None]
    return grid


def _pixel_centres(size: int, device: torch.device) -> Tensor:
    """Returns the centres of `size` pixels over -1..1."""
    return (2 * torch.arange(size, device=device, dtype=torch.float32) + 1) / size - 1


def _recolour(x: Tensor, colours: Tensor) -> Tensor:
    """Changes brightness, contrast (around the photo's mean luma) and saturation: one affine map of pixel and luma."""
    brightness, contrast, saturation = (column[:, None, None, None] for column in colours.unbind(1))
    gain = brightness * contrast
    luma = (x * x.new_tensor(LUMA)[:, None, None]).sum(1, keepdim=True) if x.shape[1] == 3 else x
    level = luma.mean((1, 2, 3), keepdim=True)
    x = x * (gain * saturation)
    return x.add_(luma * (gain * (1 - saturation))).add_(brightness * (1 - contrast) * level)


def _scale(x: Tensor, preprocessing: Preprocessing) -> Tensor:
    mean, std = (x.new_tensor(values)[:, None, None] for values in (preprocessing.mean, preprocessing.std))
    return x.sub_(mean).div_(std).contiguous(memory_format=torch.channels_last)
