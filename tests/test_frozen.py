"""`frozen` against `dataclasses.dataclass(frozen=True)`: the same values, text, equality, hash and refusals."""

import copy
import dataclasses
import pickle
from functools import cached_property

import pytest

from mobilenet.arch import v2
from mobilenet.common.frozen import frozen


@frozen
class Tile:
    """Is a class with and without defaults, a rule, and something computed once."""

    high: int
    wide: int = 2

    def __post_init__(self) -> None:
        if self.high < 1:
            raise ValueError(f"high: {self.high}")

    @cached_property
    def size(self) -> int:
        """Of the tile."""
        return self.high * self.wide


@frozen
class Deep(Tile):
    """Is a class that has its base's fields first."""

    wide: int = 3
    depth: str = "x"


def test_values_come_by_place_by_name_and_by_default() -> None:
    assert [(t.high, t.wide) for t in (Tile(1), Tile(1, 5), Tile(wide=5, high=1))] == [(1, 2), (1, 5), (1, 5)]
    deep = Deep(1, depth="y")
    assert dataclasses.astuple(deep) == (1, 3, "y")
    assert dataclasses.asdict(dataclasses.replace(deep, high=4)) == {"high": 4, "wide": 3, "depth": "y"}


def test_wrong_values_are_refused() -> None:
    for values, named in (((), {}), ((1, 2, 3), {}), ((1,), {"high": 2}), ((1,), {"tall": 2}), ((), {"tall": 2})):
        with pytest.raises(TypeError, match=r"^Tile: got .* needed are \('high', 'wide'\)$"):
            Tile(*values, **named)
    with pytest.raises(ValueError, match="high: 0"):
        Tile(0)


def test_text_equality_and_hash_are_those_of_a_dataclass() -> None:
    plain = dataclasses.make_dataclass("Deep", [("high", int), ("wide", int), ("depth", str)], frozen=True)
    for values in ((1, 2, "x"), (3, 4, "y")):
        assert (repr(Deep(*values)), hash(Deep(*values))) == (repr(plain(*values)), hash(plain(*values)))
    computed = Tile(2, 3)
    assert computed.size == 6
    assert computed == Tile(2, 3) != Tile(2, 4)
    assert len({computed, Tile(2, 3), Deep(2, 3), Deep(2, 3, "x")}) == 2, "another class is another value"


def test_nothing_can_be_changed() -> None:
    tile = Tile(1)
    for name in ("high", "tall"):
        with pytest.raises(dataclasses.FrozenInstanceError, match=name):
            setattr(tile, name, 2)
        with pytest.raises(dataclasses.FrozenInstanceError, match=name):
            delattr(tile, name)


def test_copies_and_pickles_are_equal() -> None:
    network = v2(0.5, 96)
    assert network == copy.deepcopy(network) == pickle.loads(pickle.dumps(network))
    assert network.layers == copy.deepcopy(network).layers
