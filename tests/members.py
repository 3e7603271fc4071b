"""Random members of both families, the same for a seed, for the tests that hold for every member."""

import os
import random
from collections.abc import Iterator
from itertools import islice

from mobilenet.arch import Network, conventions, sources, v1, v2
from mobilenet.errors import UsageError

DEEP = os.environ.get("MOBILENET_DEEP") == "1"


def random_members(seed: int, count: int = 40) -> list[Network]:
    """Returns members over all conventions, alphas, odd and non-square sizes, tops, downsamplings and twins."""
    return list(islice(endless_members(seed), count * (25 if DEEP else 1)))


def endless_members(seed: int) -> Iterator[Network]:
    """Yields members as `random_members` returns."""
    generator = random.Random(seed)
    while True:
        try:
            yield _random_member(generator)
        except UsageError as error:  # Keras' padding needs 2 rows where a strided layer may have 1
            if "leaves layer" not in str(error):
                raise


def _random_member(generator: random.Random) -> Network:
    make = generator.choice((v1, v2))
    pick = generator.choice
    source = pick(sources(make.__name__))
    changes = pick(
        (
            {},
            {"padding": pick(("same", "symmetric", "bottom_right"))},
            {"last_stride": 2, "conv_bias": True},
            {"scale_head": pick(("always", "never")), "round_expansion": True, "expand_first": True},
            {"divisor": pick((1, 3, 16)), "min_width": pick((1, 7, 32)), "fixed_stem": True},
        )
    )
    include_top = pick((True, True, False))
    return make(
        pick((0.05, 0.1, 0.14, 0.25, 0.35, 0.5, 0.56, 0.75, 1, 1.4, generator.uniform(0.03, 2.5))),
        (generator.randint(32, 260), generator.randint(32, 260)),
        generator.randint(1, 2000),
        channels=pick((1, 3, 3, 7)),
        include_top=include_top,
        pooling=None if include_top else pick((None, "avg", "max")),
        downsampling=pick((32, 32, 16, 8, 4, 2, 1)),
        separable=pick((True, True, False)),
        conventions=conventions(make.__name__, source, **changes),
    )
