"""Weights with every part of batch norm at work, and model folders, for the tests."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mobilenet.arch import Network, v1
from mobilenet.model import Model
from mobilenet.weights import initial

SMALL = v1(0.1, 32, 3)


def random_tensors(network: Network, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Returns tensors with which activations stay near 1 in size, reach both ends of ReLU6, and no part is trivial."""
    rng = np.random.default_rng(seed)
    tensors = initial(network, seed)
    draw = {
        "bias": lambda shape: rng.normal(0, 0.5, shape),
        "gamma": lambda shape: rng.uniform(0.5, 1.5, shape) * rng.choice((-1, 1), shape),
        "beta": lambda shape: rng.normal(1, 2, shape),
        "mean": lambda shape: rng.normal(0, 0.5, shape),
        "variance": lambda shape: rng.uniform(0.2, 2, shape),
    }
    for name, tensor in tensors.items():
        part = name.rpartition(".")[2]
        if part in draw:
            tensors[name] = draw[part](tensor.shape).astype(np.float32)
    if "classifier.weight" in tensors:
        tensors["classifier.weight"] *= 50
    return tensors


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
