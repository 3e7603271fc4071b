"""TFLite's arithmetic in whole numbers, to the last bit of its reference kernels: rescaling, the mean, softmax.

A real factor is `multiplier` · 2^`shift` / 2^31, the multiplier from 2^30 to 2^31 - 1, or 0 for what is too small. A
product with it is rounded twice (`rescaled`): first to a multiple of 2^shift, halves upwards, then to a whole number,
halves away from zero. gemmlowp calls the two SaturatingRoundingDoublingHighMul and RoundingDivideByPOT; the first's
saturation, of -2^31 · -2^31, can't happen as multipliers are not negative. LiteRT's FULLY_CONNECTED rounds once
(`rescaled_once`), with and without its reference kernels: found by comparing outputs with those of version 2.3.

Fixed-point numbers are whole numbers that stand for so many 2^-fraction; all arrays are int64, which has room for every
product of two int32.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Whole = NDArray[np.int64]

ADD_SHIFT = 20
"""Bits that the operands of TFLite's ADD are shifted left by, to be rounded finely before they are added."""
_ONE = (1 << 31) - 1  # what stands for 1 in fixed point with 31 bits of fraction


class Factors(NamedTuple):
    """Is what stands for real factors: `multiplier` · 2^`shift` / 2^31, int32 each."""

    multiplier: NDArray[np.int32]
    shift: NDArray[np.int32]


def factors(values: Any) -> Factors:
    """Returns the nearest factors of real numbers, 0 for those below 2^-32 (TFLite's QuantizeMultiplier)."""
    fraction, shift = np.frexp(np.atleast_1d(np.asarray(values, np.float64)))
    multiplier = np.floor(fraction * 2.0**31 + 0.5).astype(np.int64)
    full = multiplier == 1 << 31
    multiplier, shift = np.where(full, 1 << 30, multiplier), shift + full
    small = shift < -31
    return Factors(np.where(small, 0, multiplier).astype(np.int32), np.where(small, 0, shift).astype(np.int32))


def rescaled(values: Whole, multiplier: Whole, shift: Whole) -> Whole:
    """Returns `values` times a factor; they must stay below 2^31 when they are shifted left."""
    return divided(high_product(values << np.maximum(shift, 0), multiplier), np.maximum(-shift, 0))


def rescaled_once(values: Whole, multiplier: Whole, shift: Whole) -> Whole:
    """Returns `values` times a factor, rounded once, halves upwards."""
    places = 31 - shift
    return np.asarray((values * multiplier + (np.int64(1) << (places - 1))) >> places)


def high_product(a: Whole, b: Any) -> Whole:
    """Returns a · b / 2^31, rounded to the nearest, halves upwards."""
    return np.asarray((a * b + (1 << 30)) >> 31)


def divided(values: Whole, exponent: Any) -> Whole:
    """Returns values / 2^exponent, rounded to the nearest, halves away from zero."""
    half = np.left_shift(np.int64(1), exponent) >> 1
    return np.asarray(np.sign(values) * ((np.abs(values) + half) >> exponent))


def mean(totals: Whole, count: int) -> Whole:
    """Returns totals / count, rounded to the nearest, halves away from zero."""
    return np.asarray(np.sign(totals) * ((np.abs(totals) + count // 2) // count))


def softmax(logits: NDArray[np.uint8], scale: float, beta: float = 1.0) -> NDArray[np.uint8]:
    """Returns the probabilities of logits [..., classes] in units of 1/256, as TFLite's reference kernel gives them.

    Of int8 logits and probabilities too: both are then 128 less.

    Args:
        logits: that stand for `scale` · (logits - any zero point).
        scale: above 0; with `beta` at least 2^-26.
        beta: a factor of the logits.
    """
    # A difference of logits, times its factor, has 5 bits before the point and 26 behind.
    multiplier, shift = factors(min(beta * scale * float(1 << 26), float(_ONE)))
    # What is further from the largest is beyond the 5 bits, and 0.
    lowest = -int(31.0 * float(1 << 26) / float(1 << int(shift[0])))
    difference = logits.astype(np.int64) - logits.max(-1, keepdims=True)
    near = difference >= lowest
    powers = _exp(high_product(np.where(near, difference, 0) << int(shift[0]), int(multiplier[0])))
    total = np.where(near, divided(powers, 12), 0).sum(-1, keepdims=True)  # 12 bits before the point
    before = 12 - (32 - np.frexp(total.astype(np.float64))[1])  # bits of the sum before its point
    inverse = _inverse((total << (12 - before)) - (1 << 31))
    probabilities = divided(high_product(powers, inverse), before + 23)
    return np.where(near, np.clip(probabilities, 0, 255), 0).astype(np.uint8)


_POWERS = (1672461947, 1302514674, 790015084, 290630308, 39332535, 720401, 242)  # exp of -1/4, -1/2, -1, … -16


def _exp(x: Whole) -> Whole:
    """Returns exp(x / 2^26) · 2^31 of x from -2^31 to 0 (gemmlowp's exp_on_negative_values)."""
    quarter = 1 << 24
    part = (x & (quarter - 1)) - quarter  # from -1/4 up
    found = _exp_of_quarter(part << 5)
    rest = part - x
    for place, power in enumerate(_POWERS):
        found = np.where(rest & (quarter << place), high_product(found, power), found)
    return np.where(x == 0, _ONE, found)


def _exp_of_quarter(x: Whole) -> Whole:
    """Returns exp(x / 2^31) · 2^31 of x from -1/4 to 0: a Taylor series around -1/8."""
    middle = 1895147668  # exp(-1/8)
    x = x + (1 << 28)
    square = high_product(x, x)
    fourth = divided(high_product(square, square), 2)
    cubes = high_product(fourth + high_product(square, x), 715827883)  # 1/3
    return np.asarray(middle + high_product(x + divided(cubes + square, 1), middle))


def _inverse(x: Whole) -> Whole:
    """Returns 2^31 / (1 + x / 2^31) of x from 0 to 2^31: three steps of Newton's (gemmlowp's one_over_one_plus_x)."""
    half = (x + _ONE + 1) >> 1
    # 2 bits before the point: 48/17 - 32/17 · half is the best line to begin with.
    found = 1515870810 + high_product(half, -1010580540)
    for _ in range(3):
        error = (1 << 29) - high_product(half, found)
        found = found + np.clip(high_product(found, error) << 2, -(1 << 31), _ONE)
    return np.asarray(np.clip(found << 1, -(1 << 31), _ONE))
