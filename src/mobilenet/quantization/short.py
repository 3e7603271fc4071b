"""Multipliers and scales that are short binary fractions, with which no runtime's arithmetic rounds.

A sum times a multiplier is exact in float32 where the product has at most 24 bits. Then it is the same whether the
bias is added before (ONNX Runtime, XNNPACK, ours) or after the product (OpenVINO), with two roundings or with one. A
product of up to 512 in steps of 2^-15 has 24 bits. So multipliers are multiples of about 2^-15, and the weights' scales
follow: they get coarser by 1% or so, as multipliers are mostly above 1/1000 (V1 0.25 224, ImageNet).

That does not help where a runtime leaves a rounding out: OpenVINO adds shortcuts to sums that it has not rounded, which
makes a difference where a product ends in a half. Ahead of a shortcut multipliers have odd denominators: products are
no halves then, nor so near one that float32's roundings, wherever they are, could make them one.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
_BITS = 24  # of a float32 number
_LOGITS = 4  # bits of a multiplier without steps to count in: sums below 2^20 then have exact products
_SCALE = 12  # bits of a scale: with a multiplier's they are less than 24
_RATIO = 16  # a pooling's input has a scale of so many parts of its output's


def multipliers(least: Array, bias: Array, most: int) -> Array:
    """Returns multipliers, from `least` up, whose products are exact with all sums that are not clamped.

    They are odd multiples, so that next to no sum has a product that ends in a half: to which side that is rounded may
    depend on what else is added.

    Args:
        least: with which all weights are within int8, [out].
        bias: in steps of the output, [out]; it may yet become a quarter and 16 steps more.
        most: steps that the output may be from its zero point.
    """
    places = (_BITS - np.ceil(np.log2(_largest(bias, most)))).astype(np.int64)
    odd = 2 * np.ceil((np.ldexp(least, places) - 1) / 2) + 1
    return np.asarray(np.ldexp(np.maximum(odd, 1.0), -places), np.float32)


def multipliers_without_halves(least: Array, bias: Array, most: int) -> Array:
    """Returns multipliers, from `least` up, whose products round to the same number with any shortcut added first.

    They are fractions whose denominator is odd, so that a product is at least 1 / (2 · denominator) from a half. All
    that float32 may be off is 8 · 2^-24 of the largest value: 1 for the multiplier itself and 1 for the product, 2 for
    the bias's, 1 for their sum and 3 for that with the shortcut, which is up to 255 larger. Arguments as `multipliers`.
    """
    finest = 2.0 ** (_BITS - 4) / _largest(bias, most)
    parts = np.maximum(np.floor(least * finest), 1)
    denominator = 2 * np.floor((np.minimum(parts / least, finest) - 1) / 2) + 1
    whole = denominator <= 1  # of biases that leave no room for a fraction
    return np.asarray(np.where(whole, np.ceil(least), parts / np.maximum(denominator, 1)), np.float32)


def _largest(bias: Array, most: int) -> Array:
    """Returns what sums without bias may reach, in steps of the output, if they are not clamped."""
    return np.asarray(most + 17 + 1.25 * np.abs(bias))


def shorter(least: Array, bits: int) -> Array:
    """Returns numbers from `least` up that have so many bits."""
    fraction, exponent = np.frexp(np.asarray(least, np.float64))
    return np.asarray(np.ldexp(np.ceil(np.ldexp(fraction, bits)), exponent - bits), np.float32)


def logit_multipliers(least: Array) -> Array:
    """Returns the multipliers of logits that are float32, from `least` up."""
    return shorter(least, _LOGITS)


def scale(least: float) -> np.float32:
    """Returns a tensor's scale, from `least` up."""
    return np.float32(shorter(np.array(least), _SCALE))


def pooling_ratio(most: float, pixels: int) -> float:
    """Returns the scale of an average pooling's input over that of its output, up to `most`.

    The sum of pixels may be divided, or multiplied with a rounded 1 / pixels, before or after its scale is changed:
    with this ratio all of these round every sum to the same number. Nor is it another one if it comes, as OpenVINO's
    does, from 1 or the largest byte over what that is in the other scale: 7/4, 15/8 and 63/16 would be. Some numbers of
    pixels have no such ratio; then it is one whose factor ONNX Runtime and XNNPACK compute alike.
    """
    sums = np.arange(255 * pixels + 1, dtype=np.float32)
    count, tops = np.float32(pixels), (np.float32(1), np.float32(255))
    ratios = (np.float32(parts / _RATIO) for parts in range(int(most * _RATIO), 0, -1))
    alike = [ratio for ratio in ratios if ratio / count == ratio * (1 / count)]
    for ratio in alike:
        if all(top / (top / ratio) == ratio for top in tops):
            ways = (sums * (ratio / count), sums / count * ratio, sums * (1 / count) * ratio)
            first, *others = (np.minimum(np.rint(way), 256) for way in ways)
            if all((other == first).all() for other in others):
                return float(ratio)
    return float(alike[0]) if alike else most
