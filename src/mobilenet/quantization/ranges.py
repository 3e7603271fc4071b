"""Ranges: which numbers the 256 values of a layer's output stand for, chosen from what it gave for some photos."""

from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from ..arch import Layer

Method = Literal["minmax", "percentile", "mse"]
METHODS: tuple[Method, ...] = get_args(Method)

PERCENT = 99.99  # of the values lie within the range by percentiles
SAMPLE = 1 << 16  # values that the squared error is measured on
HEADROOM = 0.1  # of the range of logits, for photos that are surer than those seen
SHRINKS = np.linspace(1.0, 0.3, 36)  # of the whole range, tried for the least squared error


class Range(NamedTuple):
    """Is the affine map of a tensor: number = scale · (uint8 - zero)."""

    scale: np.float32
    zero: int


def choose(layer: Layer, y: NDArray[np.float32], method: Method) -> Range:
    """Returns the range of a layer's output `y`.

    After a ReLU the zero point is 0. A ReLU6's range is [0, 6] where any value reaches 6, whatever the method.
    """
    low, high = min(float(y.min()), 0.0), max(float(y.max()), 0.0)
    if layer.activation == "relu6" and layer.adds is None and high >= 6:
        return _range(0.0, 6.0)
    values = sample(y)
    if method == "percentile":
        tail = (100 - PERCENT) / (2 if low < 0 else 1)
        low, high = min(float(np.percentile(values, tail)), 0.0), max(float(np.percentile(values, 100 - tail)), 0.0)
    elif method == "mse":
        low, high = _least_error(values, low, high)
    return _range(low, high)


def of_logits(y: NDArray[np.float32]) -> Range:
    """Returns the range of logits: all that was seen and `HEADROOM` above, as the largest must stay the largest.

    The zero point is 2 at the least: of logits that are hardly ever negative OpenVINO gets the scale wrong by the last
    bit.
    """
    low, high = min(float(y.min()), 0.0), max(float(y.max()), 0.0)
    scale, zero = _range(low, high + HEADROOM * (high - low))
    return Range(scale, max(zero, 2))


def sample(y: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns at most `SAMPLE` of the values, and the least and the largest."""
    values = y.reshape(-1)
    if values.size <= SAMPLE:
        return values
    # At random: with even steps some channels would not be seen.
    values = values[np.random.default_rng(0).integers(0, values.size, SAMPLE - 2)]
    return np.append(values, (y.min(), y.max())).astype(np.float32)


def _least_error(values: NDArray[np.float32], low: float, high: float) -> tuple[float, float]:
    """Returns the part of [low, high] with the least squared error: both ends moved together, then each alone."""
    both = min(SHRINKS, key=lambda part: _error(values, part * low, part * high))
    low, high = both * low, both * high
    above = min(SHRINKS / both, key=lambda part: _error(values, low, part * high))
    high = above * high
    if low < 0:
        low *= min(SHRINKS / both, key=lambda part: _error(values, part * low, high))
    return float(low), float(high)


def _error(values: NDArray[np.float32], low: float, high: float) -> float:
    scale, zero = _range(low, high)
    steps = np.clip(np.rint(values / scale) + zero, 0, 255)
    return float(np.square(values - scale * (steps - zero)).mean())


def _range(low: float, high: float) -> Range:
    width = high - low
    if width < 1e-6:  # a layer that gives zeros alone
        return Range(np.float32(1 / 255), 0)
    scale = np.float32(width / 255)
    # Even, so that halves are rounded to the same number before and after it is added.
    return Range(scale, 2 * int(np.clip(np.rint(-low / float(scale) / 2), 0, 127)))
