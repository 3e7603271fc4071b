"""The rule by which the reference outputs of torch's libraries were made: weights and pixels from a seed and a name."""

import hashlib
import zlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

CLASSES = 5


def ruled(key: str, shape: tuple[int, ...], seed: int = 0) -> NDArray[np.float32]:
    """Returns the values of one entry of a state dict; batch norm's statistics are far from 0 and 1."""
    generator = np.random.default_rng([seed, zlib.crc32(key.encode())])
    if key.endswith("running_var"):
        values = generator.uniform(1, 5, shape)
    elif len(shape) > 1:
        values = generator.normal(0, np.prod(shape[1:]) ** -0.5, shape)
    elif key.endswith(".weight"):
        values = generator.uniform(1.5, 3, shape) * np.where(generator.random(shape) < 0.1, -1, 1)
    else:
        values = generator.normal(1 if key.endswith(".bias") else 0, 1, shape)
    return values.astype(np.float32)


def ruled_pixels(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Returns two images of noise."""
    return np.random.default_rng([seed, height, width]).integers(0, 256, (2, height, width, 3), dtype=np.uint8)


def listing_hash(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Returns what tells one state dict's names and shapes from any other's; torch's counters do not count."""
    lines = sorted(f"{key} {list(shape)}" for key, shape in shapes.items() if not key.endswith("num_batches_tracked"))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
