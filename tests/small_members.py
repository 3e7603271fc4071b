"""Small random members of both families with random tensors, for tests that compute their outputs."""

import itertools
import random

import numpy as np
from numpy.typing import NDArray

from mobilenet.arch import Network, conventions, sources, v1, v2

Tensors = dict[str, NDArray[np.float32]]
COUNT = 64
SEED = 3


def small_members() -> list[Network]:
    """Returns members that between them have every source's conventions, every padding, kind of top, and so on."""
    generator = random.Random(SEED)
    families = itertools.cycle([(v1, s) for s in sources("v1")] + [(v2, s) for s in sources("v2")])
    changes = itertools.cycle(({}, {"padding": "same"}, {"padding": "symmetric"}, {"padding": "bottom_right"},
                               {"conv_bias": True}))  # fmt: skip
    tops = itertools.cycle((True, None, True, "avg", True, "max", True, True))
    channels = itertools.cycle((3, 1, 3, 4))
    members = []
    for (make, source), change, top in itertools.islice(zip(families, changes, tops, strict=False), COUNT):
        known = conventions(make.__name__, source, **change)
        count = 3 if known.scaling == "imagenet" else next(channels)  # that scaling has three values
        downsampling = generator.choice((32, 32, 32, 16, 8, 4))
        side = 70 if downsampling == 32 else 44
        members.append(
            make(
                generator.choice((0.2, 0.25, 0.35, 0.5)),
                (generator.randint(32, side), generator.randint(32, side)),
                generator.randint(2, 40),
                channels=count,
                include_top=top is True,
                pooling=None if top is True else top,
                downsampling=downsampling,
                separable=generator.random() > 0.2,
                conventions=known,
            )
        )
    return members


def random_tensors(network: Network, seed: int = 0) -> Tensors:
    """Returns tensors that keep activations of about the same size from layer to layer, and reach relu6's clamps.

    Weights have variance 1 / fan-in; the statistics that batch norm subtracts and divides by are far from 0 and 1.
    """
    generator = np.random.default_rng(seed)
    made: Tensors = {}
    for name, shape in network.tensors.items():
        match name.rpartition(".")[2]:
            case "weight":
                values = generator.normal(0, np.prod(shape[:-1]) ** -0.5, shape)
            case "gamma":
                values = generator.uniform(1.5, 3, shape) * np.where(generator.random(shape) < 0.1, -1, 1)
            case "variance":
                values = generator.uniform(1, 5, shape)
            case "beta":
                values = generator.normal(1, 1, shape)
            case _:
                values = generator.normal(0, 1, shape)
        made[name] = values.astype(np.float32)
    return made


def random_pixels(network: Network, count: int = 2, seed: int = 0) -> NDArray[np.float64]:
    """Returns [count, height, width, channels] on the 0..255 scale: noise on smooth waves, as photos have both."""
    generator = np.random.default_rng(seed)
    rows, columns = np.mgrid[: network.height, : network.width]
    phases = generator.uniform(0, 6, (count, 1, 1, network.channels))
    waves = np.sin(phases + (rows[..., None] + 2 * columns[..., None]) / 9)
    return np.clip(127 + 80 * waves + generator.normal(0, 40, (count, *network.input)), 0, 255)
