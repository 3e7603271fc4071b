"""TFLite's whole-number arithmetic against its definitions, with Python's own whole numbers and fractions."""

import math
from fractions import Fraction

import numpy as np
import pytest

from mobilenet.fixed_point import divided, factors, high_product, mean, rescaled, rescaled_once, softmax

NUMBERS = np.concatenate([
    np.random.default_rng(0).integers(-(1 << 31), 1 << 31, 500),
    np.array([0, 1, -1, 2, -2, 3, -3, 5, -5, (1 << 31) - 1, 1 - (1 << 31), 1 << 30, -(1 << 30), 1 << 29, -(1 << 29)]),
])  # fmt: skip


def away(value: Fraction) -> int:
    """Returns the nearest whole number, of two the one further from zero."""
    return (1 if value >= 0 else -1) * math.floor(abs(value) + Fraction(1, 2))


def up(value: Fraction) -> int:
    return math.floor(value + Fraction(1, 2))


def test_factors_are_the_nearest_and_tiny_ones_zero() -> None:
    for value in (1.0, 0.5, 0.75, 1 / 3, 0.0078125, 1e-9, 123.456, 1 - 2.0**-40, 2.0**-32):
        multiplier, shift = factors(value)
        assert 1 << 30 <= multiplier[0] < 1 << 31
        assert abs(Fraction(int(multiplier[0])) * Fraction(2) ** (int(shift[0]) - 31) / Fraction(value) - 1) <= 2.0**-31
    assert [part.tolist() for part in factors([1 - 2.0**-40, 2.0**-33, 0.0])] == [[1 << 30, 0, 0], [1, 0, 0]]


def test_roundings_are_those_of_their_definitions() -> None:
    for other in (1 << 30, (1 << 31) - 1, 1234567891, 0, -1010580540):
        assert high_product(NUMBERS, other).tolist() == [up(Fraction(int(n) * other, 1 << 31)) for n in NUMBERS]
    for exponent in (0, 1, 2, 7, 30):
        assert divided(NUMBERS, exponent).tolist() == [away(Fraction(int(n), 1 << exponent)) for n in NUMBERS]
    for count in (1, 2, 9, 49):
        assert mean(NUMBERS, count).tolist() == [away(Fraction(int(n), count)) for n in NUMBERS]


@pytest.mark.parametrize("shift", [-31, -8, -1, 0, 3])
def test_a_product_with_a_factor_is_rounded_twice_or_once(shift: int) -> None:
    values = NUMBERS >> max(shift, 0)
    multiplier, power = np.array([1387987883], np.int64), np.array([shift], np.int64)
    product = [Fraction(int(value) * 1387987883, 1 << 31) for value in values]
    twice = [away(Fraction(up(one * 2 ** max(shift, 0)), 2 ** max(-shift, 0))) for one in product]
    assert rescaled(values, multiplier, power).tolist() == twice
    once = [up(one * Fraction(2) ** shift) for one in product]
    assert rescaled_once(values, multiplier, power).tolist() == once


@pytest.mark.parametrize(("scale", "beta"), [(0.1, 1.0), (0.01, 1.0), (2.0, 1.0), (0.05, 3.0), (1e-7, 1.0)])
def test_softmax_is_near_the_real_one(scale: float, beta: float) -> None:
    """Fixed point of 31 bits is far finer than the bytes: what is left is the rounding to them."""
    logits = np.random.default_rng(1).integers(0, 256, (20, 10)).astype(np.uint8)
    powers = np.exp((logits - logits.max(-1, keepdims=True).astype(np.float64)) * scale * beta)
    expected = 256 * powers / powers.sum(-1, keepdims=True)
    assert (np.abs(softmax(logits, scale, beta) - np.minimum(expected, 255)) <= 0.5 + 1e-3).all()


def test_softmax_of_one_class_is_the_largest_byte() -> None:
    assert softmax(np.array([[7]], np.uint8), 0.1).tolist() == [[255]]
