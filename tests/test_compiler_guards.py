"""Every buffer of the activations between pages that can't be touched: no kernel steps out of those that it was given.

Elsewhere such pages lie around the whole arena, in which one buffer's neighbour is another.
"""

import mmap
from collections.abc import Sequence
from functools import partial
from itertools import islice, product

import numpy as np
import pytest

from compiler_tools import guarded_copy, guarded_floats, protect, tape
from int8_makers import random_bytes, random_int8_model
from members import DEEP, endless_members
from mobilenet.arch import SCALINGS, Network
from mobilenet.compiler import lower, native, pack
from mobilenet.compiler.build import build
from mobilenet.compiler.kernel import Floats
from mobilenet.compiler.memory import ALIGNMENT, Buffer
from mobilenet.compiler.plan import Integers, Plan
from mobilenet.compiler.targets import TARGETS, runnable
from mobilenet.cost import cost
from mobilenet.model import Model
from mobilenet.quantized import Rescale
from mobilenet.weights import fold
from test_compiler_networks import trained

NETWORKS = 20 if DEEP else 2
RESCALES: tuple[Rescale, ...] = ("full", "fixed", "float")
_CACHE = 1 << 13  # bytes that strips may keep
_PAGE = mmap.PAGESIZE


class Apart:
    """Stands for `memory.place` and for what makes an arena: each buffer has pages of its own, at whose end or
    beginning it lies, and before and after them is one that can't be touched."""  # fmt: skip

    def __init__(self, at_end: bool) -> None:
        self.at_end, self.gaps = at_end, [0]

    def place(self, buffers: Sequence[Buffer]) -> tuple[dict[str, int], int]:
        found = {}
        for buffer in buffers:
            size = -(-buffer.bytes // ALIGNMENT) * ALIGNMENT
            begin = self.gaps[-1] + _PAGE
            end = begin + -(-size // _PAGE) * _PAGE
            found[buffer.name] = end - size if self.at_end else begin
            self.gaps.append(end)
        return found, self.gaps[-1] + _PAGE

    def aligned(self, size: int) -> Floats:
        memory = mmap.mmap(-1, size)
        for place in self.gaps:
            protect(memory, place)
        return np.frombuffer(memory, np.float32)


def members(count: int) -> list[Network]:
    """Returns random members whose kernels are few and small, with blocks that are done in strips."""

    def steps(network: Network, fuse: bool) -> int:
        return len(lower.lower(network, TARGETS["sse"], fuse=fuse, cache=_CACHE).parts[0])

    found = (
        m
        for m in endless_members(72)
        if cost(m).macs < 3e6
        and (m.separable or m.family == "v1")
        and len(SCALINGS[m.conventions.scaling][0]) in (1, m.channels)
        and steps(m, True) > steps(m, False)
    )
    return list(islice(found, count))


PRECISIONS = ("f32", "bf16", "int8")
MEMBERS = members(NETWORKS * len(PRECISIONS))


def model_of(network: Network, precision: str, seed: int) -> tuple[Model, Integers]:
    if precision != "int8":
        return trained(network, seed), Integers()
    model = random_int8_model(network, seed, RESCALES[seed % len(RESCALES)])
    return model, native.integers(network, model.tensors)


def played(plan: Plan, code: tuple[bytes, dict[str, int]], model: Model, pixels: np.ndarray) -> np.ndarray:
    """Returns what a plan makes of images, one after the other in the same memory."""
    tensors = model.tensors if plan.precision == "int8" else fold(model.network, model.tensors)
    weights = pack.pack(plan, tensors, model.preprocessing.mean, model.preprocessing.std)
    run = tape(plan, *code, weights, native.last_scale(model))
    stored = plan.stored
    out = np.full((len(pixels), stored.height, stored.width, model.network.layers[-1].output.channels), np.nan)
    for image, row in zip(pixels, out, strict=True):
        run.play(guarded_copy(image), row)
    return out


@pytest.mark.skipif(not runnable(), reason="nothing is compiled for this machine")
@pytest.mark.parametrize("number", range(NETWORKS))
@pytest.mark.parametrize("precision", PRECISIONS)
def test_no_kernel_leaves_its_buffers(precision: str, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seed = PRECISIONS.index(precision) + len(PRECISIONS) * number
    network = MEMBERS[seed]
    (model, integers), here = model_of(network, precision, seed), runnable()
    target = here[-number % len(here)]  # the best, then the one that needs least, then all others
    pixels = random_bytes(network, 2, seed)
    monkeypatch.setattr(pack, "aligned", guarded_floats)

    planned = partial(lower.lower, network, target, precision=precision, integers=integers, cache=_CACHE)
    plain, plans = planned(fuse=False), []
    for at_end, fuse, threads in product((True, False), (True, False), (1, 3)):
        apart = Apart(at_end)
        with monkeypatch.context() as changed:
            changed.setattr(lower, "place", apart.place)
            plans.append((planned(fuse=fuse, threads=threads), apart))
    kernels = {kernel.name: kernel for plan in (plain, *(plan for plan, _ in plans)) for kernel in plan.kernels}
    code = build(tuple(kernels.values()), target, workers=1)
    expected = played(plain, code, model, pixels)
    assert np.isfinite(expected).all()
    for plan, apart in plans:
        with monkeypatch.context() as changed:
            changed.setattr(native, "aligned", apart.aligned)
            np.testing.assert_array_equal(played(plan, code, model, pixels), expected)
