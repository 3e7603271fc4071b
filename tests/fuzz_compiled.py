"""Compiled networks at random, until the time is up: `python tests/fuzz_compiled.py SECONDS SEED`.

Networks, instruction sets, numbers, rescales, threads, strips, batches and types of pixels are drawn; memory lies
between pages that can't be touched. Float networks are compared with the reference, int8 ones bit by bit, and every
network with itself: images one by one, over threads, with the batch, whose images get a thread each.
"""

import os
import random
import sys
import tempfile
import time
from collections import Counter
from typing import get_args

import numpy as np

from compiler_tools import EPSILON, guarded_copy, guarded_floats
from int8_makers import random_int8_model
from members import endless_members
from mobilenet import integer, reference
from mobilenet.arch import SCALINGS, Network
from mobilenet.compiler import native, pack, schedule, store
from mobilenet.compiler.native import NativeEngine
from mobilenet.compiler.targets import runnable
from mobilenet.cost import cost
from mobilenet.quantized import Rescale
from test_compiler_networks import trained

WEIGHTS = 4


def check(network: Network, seed: int) -> str:
    """Compiles a network and compares it with several weights, which need no new code; returns what was drawn."""
    pick = random.Random(seed)
    target, threads, fuse = pick.choice(runnable()), pick.randint(1, 3), pick.random() < 0.7
    precision, cache = pick.choice(("int8", "int8", "f32", "bf16")), pick.choice((1 << 19, 1 << 16, 1 << 13))
    schedule.CACHE = cache
    rescale = pick.choice(get_args(Rescale)) if precision == "int8" else ""
    where = f"seed {seed}: {network} {precision} {rescale} {target.name} threads {threads} fuse {fuse} cache {cache}"
    for draw in range(1 if rescale == "fixed" else WEIGHTS):  # of which code depends on the weights' factors
        model = random_int8_model(network, draw, rescale, seed) if rescale else trained(network, draw)
        pixels = np.random.default_rng(draw).integers(0, 256, (pick.randint(2, 4), *network.input))
        pixels = guarded_copy(pixels.astype(pick.choice((np.uint8, np.float32))))
        engine = NativeEngine(model, threads, precision=precision, target=target.name, fuse=fuse)
        found = engine(pixels)
        for n, alone in enumerate(found):
            assert np.array_equal(engine(pixels[n : n + 1])[0], alone), f"image {n} alone differs: {where}"
        if precision == "int8":
            assert np.array_equal(found, integer.forward(network, model.tensors, pixels)), f"bits differ: {where}"
            continue
        storage = 2.0**-7 if precision == "bf16" else 0.0
        expected = reference.forward(network, model.tensors, pixels)
        allowed = reference.tolerance(network, model.tensors, pixels, EPSILON, storage=storage)
        allowed += max(EPSILON, storage) * np.abs(expected)
        assert (np.abs(found - expected) <= allowed).all(), f"logits differ: {where}"
    return f"{precision} {rescale} {target.name}"


def main(seconds: float, seed: int) -> None:
    """Prints how many networks were compared, of each kind; ends with an error at the first that differs."""
    for module in (native, pack):
        module.aligned = guarded_floats  # type: ignore[attr-defined]
    end, counts = time.monotonic() + seconds, Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        os.environ[store.ENVIRONMENT] = folder
        for number, network in enumerate(endless_members(seed)):
            scaling = SCALINGS[network.conventions.scaling][0]
            if cost(network).macs > 2e7 or len(scaling) not in (1, network.channels):
                continue
            counts[check(network, seed * 1_000_003 + number)] += 1
            if time.monotonic() > end:
                break
    print(
        f"{sum(counts.values())} networks, {WEIGHTS} weights each (fixed: 1)",
        *sorted(f"{count} {name}" for name, count in counts.items()),
        sep="\n",
    )


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]))
