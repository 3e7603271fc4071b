"""How Pillow resizes, as numbers: which pixels of a side an output pixel is made of, and how much of each.

Source: `precompute_coeffs` and `normalize_coeffs_8bpc` in Pillow's src/libImaging/Resample.c.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Box = tuple[float, float, float, float]
"""Left, top, right and bottom in pixels."""

ONE_BITS = 22
"""A factor of 1 is 2 to the power of this."""


def _bilinear(x: NDArray[np.float64]) -> NDArray[Any]:
    return np.maximum(1 - x, 0)


def _bicubic(x: NDArray[np.float64]) -> NDArray[Any]:
    near = (1.5 * x - 2.5) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * -0.5
    return np.where(x < 1, near, np.where(x < 2, far, 0))


_FILTERS: dict[str, tuple[float, Callable[[NDArray[np.float64]], NDArray[Any]]]] = {
    "bilinear": (1, _bilinear),
    "bicubic": (2, _bicubic),
}


def factors(
    side: int, begin: float, end: float, count: int, interpolation: str, multiple: int = 1
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Returns what each of `count` output pixels from begin..end of a side is made of.

    Returns:
        the first pixel of each, [count], and the factors of it and those behind it, [count, n], where n is a multiple
        of `multiple` and none is beyond the side, which must have that many pixels.
    """
    reach, weigh = _FILTERS[interpolation]
    low, high = np.float32(begin), np.float32(end)  # as Pillow takes them
    scale = float(high - low) / count
    wide = max(scale, 1.0)
    centres = float(low) + (np.arange(count) + 0.5) * scale
    firsts = np.maximum(np.trunc(centres - reach * wide + 0.5), 0).astype(np.int32)
    ends = np.minimum(np.trunc(centres + reach * wide + 0.5), side).astype(np.int32)
    pixels = firsts[:, None] + np.arange(-(-int((ends - firsts).max()) // multiple) * multiple)
    weights = weigh(np.abs((pixels - centres[:, None] + 0.5) * (1 / wide)))
    weights[pixels >= ends[:, None]] = 0
    weights /= np.cumsum(weights, axis=1)[:, -1:]  # added up one after the other
    given = np.trunc(weights * (1 << ONE_BITS) + np.copysign(0.5, weights)).astype(np.int32)
    # What begins too near to the end gets factors of 0 in front, not behind.
    moved = np.minimum(firsts, side - given.shape[1])
    places = np.arange(given.shape[1]) - (firsts - moved)[:, None]
    return moved, np.where(places < 0, 0, np.take_along_axis(given, np.maximum(places, 0), axis=1)).astype(np.int32)
