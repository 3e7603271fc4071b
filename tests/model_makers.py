"""Models with random tensors, and edits of their folders, for the tests."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mobilenet.arch import Network, v1
from mobilenet.model import Model
from small_members import random_tensors

__all__ = ["SMALL", "edit_config", "random_model", "random_pixels", "random_tensors", "same_tensors"]

SMALL = v1(0.1, 32, 3)


def random_model(network: Network = SMALL, seed: int = 0, **parts: Any) -> Model:
    """Returns a model with `random_tensors`."""
    return Model(network, random_tensors(network, seed), **parts)


def random_pixels(network: Network, count: int, seed: int = 0) -> NDArray[np.uint8]:
    """Returns a batch of noise."""
    return np.random.default_rng(seed).integers(0, 256, (count, *network.input), dtype=np.uint8)


def same_tensors(one: Mapping[str, NDArray[Any]], other: Mapping[str, NDArray[Any]]) -> bool:
    """Tells whether names and all bits are equal."""
    return one.keys() == other.keys() and all(one[name].tobytes() == other[name].tobytes() for name in one)


def edit_config(folder: Path, **changes: Any) -> None:
    """Changes values of the config, by the path of their keys joined with two underscores."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for keys, value in changes.items():
        *outer, last = keys.split("__")
        target = config
        for key in outer:
            target = target[key]
        target[last] = value
    path.write_text(json.dumps(config))
