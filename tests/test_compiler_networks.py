"""Whole networks as machine code: the reference's logits on every instruction set, bit by bit the same in any batch."""

import os
import subprocess
import sys
import threading
from functools import cache
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

import mobilenet
from compiler_tools import EPSILON, UNICORN, Machine, guarded_copy, guarded_floats, machines, tape
from members import DEEP, endless_members
from mobilenet import reference
from mobilenet.arch import SCALINGS, Network, v1, v2
from mobilenet.compiler import build, native, pack, schedule, store
from mobilenet.compiler.lower import lower
from mobilenet.compiler.native import NativeEngine
from mobilenet.compiler.targets import TARGETS, runnable
from mobilenet.cost import cost
from mobilenet.errors import UsageError
from mobilenet.model import Model, create
from mobilenet.weights import fold


@pytest.fixture(autouse=True)
def _guarded(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (native, pack):
        monkeypatch.setattr(module, "aligned", guarded_floats)


@pytest.fixture(params=machines(), ids=str)
def machine(request: pytest.FixtureRequest) -> Machine:
    return request.param


def members(count: int) -> list[Network]:
    """Returns random members that one core computes in a moment with numpy in float64."""
    found = (
        m
        for m in endless_members(31)
        if cost(m).macs < 3e7
        and max(m.height, m.width) < 200
        and len(SCALINGS[m.conventions.scaling][0]) in (1, m.channels)
    )
    return list(islice(found, count))


# Networks of each machine, and weights of each network: those need no new code, whose making takes the time.
NETWORKS, WEIGHTS = (10, 5) if DEEP else (2, 1)
MEMBERS = members(NETWORKS * len(machines()))
built = cache(build.build)


def trained(network: Network, seed: int) -> Model:
    """Returns a model whose batch norm is no identity, as after training."""
    model = create(network, seed=seed)
    generator = np.random.default_rng(seed)
    for name, tensor in model.tensors.items():
        part = name.rpartition(".")[2]
        if part in ("beta", "mean", "bias"):
            tensor += generator.normal(0, 0.3, tensor.shape).astype(np.float32)
        elif part in ("gamma", "variance"):
            tensor *= generator.uniform(0.5, 1.5, tensor.shape).astype(np.float32)
    for layer in network.layers:  # random blocks as strong as their shortcuts double an error every few layers
        if layer.batch_norm and layer.activation == "linear":
            model.tensors[f"{layer.name}.gamma"] *= np.float32(0.3)
    return model


def run(model: Model, pixels: np.ndarray, machine: Machine, fuse: bool, threads: int = 1) -> np.ndarray:
    """Returns logits; emulated if need be, where the engine itself can't be used."""
    if machine.target in runnable():
        return NativeEngine(model, threads, precision=machine.precision, target=machine.target.name, fuse=fuse)(pixels)
    plan = lower(model.network, machine.target, precision=machine.precision, fuse=fuse, threads=threads)
    scaling = model.preprocessing.mean, model.preprocessing.std
    weights = pack.pack(plan, fold(model.network, model.tensors), *scaling)
    played = tape(plan, *built(plan.kernels, machine.target), weights)
    top = model.network.layers[-1]
    shape = top.output if top.kind in ("conv", "pointwise") else top.output[2:]
    out = np.full((len(pixels), *shape), np.nan, np.float32)
    for image, row in zip(pixels, out, strict=True):
        played.play(image, row)
    return out


def images(network: Network, count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *network.input), dtype=np.uint8)


@pytest.mark.parametrize("number", range(NETWORKS))
def test_random_members_give_the_references_logits(machine: Machine, number: int) -> None:
    place = number * len(machines()) + machines().index(machine)
    network = MEMBERS[place]
    for draw in range(WEIGHTS):
        model = trained(network, 100 * place + draw)
        pixels = guarded_copy(images(network, 1 + (number + draw) % 2, draw))
        check(model, pixels, machine, fuse=number % 2 == 0)


def check(model: Model, pixels: np.ndarray, machine: Machine, fuse: bool) -> None:
    """Compares a compiled model with the reference, within what rounding explains."""
    expected = reference.forward(model.network, model.tensors, pixels)
    allowed = reference.tolerance(model.network, model.tensors, pixels, EPSILON, storage=machine.storage)
    allowed += max(EPSILON, machine.storage) * np.abs(expected)
    found = run(model, pixels, machine, fuse)
    assert found.dtype == np.float32
    assert found.shape == expected.shape
    assert (np.abs(found - expected) <= allowed).all()


def test_a_large_batch_gives_the_references_logits(machine: Machine) -> None:
    if machine.target not in runnable():
        pytest.skip("emulated, where each image is a run of its own")
    make = (v1, v2)[(list(TARGETS).index(machine.target.name) + (machine.precision == "bf16")) % 2]
    model = trained(make(0.1, (33, 35), 5), 1)
    check(model, guarded_copy(images(model.network, 33)), machine, fuse=True)


def test_what_is_allowed_in_bfloat16_is_less_than_what_outputs_tell() -> None:
    """Otherwise any result would pass, as it would with V2's random projections as `create` makes them."""
    for seed, network in enumerate((v2(0.35, (64, 65), 50), v2(0.5, 64, 50, separable=False), v1(0.5, (70, 64), 50))):
        model, pixels = trained(network, seed), images(network, 2)
        allowed = reference.tolerance(network, model.tensors, pixels, EPSILON, storage=2**-7)
        assert np.sqrt(np.mean(allowed**2)) < 0.2 * reference.forward(network, model.tensors, pixels).std()


PRECISIONS = ("f32", "bf16")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_results_are_the_same_however_they_are_computed(precision: str) -> None:
    """Bit by bit: for any batch, thread count, type of pixels, memory layout, and with or without strips."""
    model = trained(v2(0.35, (65, 97), 7), 0)
    pixels = images(model.network, 5)
    whole = NativeEngine(model, 1, precision=precision)(pixels)
    plain = NativeEngine(model, 1, precision=precision, fuse=False)
    threaded = NativeEngine(model, 3, precision=precision)
    assert np.array_equal(plain(pixels), whole)
    assert np.array_equal(threaded(pixels), whole)
    assert np.array_equal(threaded(pixels.astype(np.float32)), whole)
    assert np.array_equal(np.concatenate([plain(pixels[:1]), plain(pixels[1:3]), plain(pixels[3:])]), whole)
    assert np.array_equal(plain(np.asfortranarray(pixels)), whole)
    assert plain(pixels[:0]).shape == (0, 7)


@pytest.mark.parametrize(("threads", "precision"), [(2, "f32"), (3, "bf16"), (5, "f32")])
def test_one_image_over_threads_is_the_same(threads: int, precision: str) -> None:
    """Bit by bit: V2 with strips and with layers split by channels, also where the last vector is half empty, and V1,
    whose last layers are a few pixels."""  # fmt: skip
    networks = v2(0.5, (160, 129), 70), v2(0.75, 96, 5), v1(0.5, (128, 150), 9), v2(0.35, 64, 5, separable=False)
    for network in networks:
        engine = NativeEngine(trained(network, threads), threads, precision=precision)
        pixels = images(network, 2, threads)
        apart = engine(pixels)  # each on one thread
        assert np.array_equal(engine(pixels[:1]), apart[:1])
        assert np.array_equal(engine(pixels[1:]), apart[1:])


def test_of_channels_that_threads_share_the_last_ones_alone_are_a_half_empty_vector() -> None:
    parts = lower(v2(0.75, 96, 5), TARGETS["avx512"], threads=2).parts
    kernels = [{step.layer: step.kernel for step in part if step} for part in parts]
    assert [part["block13.project"].vectors for part in kernels] == [3, 5]
    assert [part["block13.project"].paired for part in kernels] == [False, True]


@pytest.mark.skipif(not UNICORN, reason="needs unicorn")
@pytest.mark.parametrize("precision", PRECISIONS)
def test_one_image_over_threads_on_neon_is_the_same(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "CACHE", 1 << 14)  # so that small blocks are done in strips
    model = trained(v1(0.1, (64, 70), 70), 0)
    pixels = images(model.network, 1)
    neon = Machine(TARGETS["neon"], precision)
    assert len(lower(model.network, neon.target, threads=3).parts[2]) > 2 * len(model.network.layers) + 9
    assert np.array_equal(run(model, pixels, neon, True, 3), run(model, pixels, neon, True, 1))


def test_an_engine_goes_on_in_a_fork() -> None:
    code = (
        "import os, sys, numpy, mobilenet\n"
        "from mobilenet.compiler.native import NativeEngine\n"
        "engine = NativeEngine(mobilenet.create(mobilenet.v1(0.1, 32, 3)), 2)\n"
        "pixels = numpy.arange(3072, dtype=numpy.uint8).reshape(1, 32, 32, 3)\n"
        "before = engine(pixels)\n"
        "if not (child := os.fork()):\n"
        "    os._exit(0 if numpy.array_equal(engine(pixels), before) else 9)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))"
    )
    paths = os.pathsep.join(str(path.parent) for path in map(Path, mobilenet.__path__))
    subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": paths}, check=True)


def test_one_engine_in_several_threads() -> None:
    model = create(v1(0.25, 64, 5), seed=1)
    engine = NativeEngine(model, 2)
    batches = [images(model.network, 3, seed) for seed in range(6)]
    expected = [engine(batch) for batch in batches]
    wrong = []

    def run(first: int) -> None:
        for n in range(30):
            index = (first + n) % len(batches)
            if not np.array_equal(engine(batches[index]), expected[index]):
                wrong.append(index)

    threads = [threading.Thread(target=run, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_wrong_pixels_are_refused() -> None:
    engine = NativeEngine(create(v1(0.1, 32, 3)), 1)
    for pixels in (np.zeros((1, 32, 31, 3), np.uint8), np.zeros((1, 32, 32, 3)), [[0]]):
        with pytest.raises(UsageError, match=r"needed uint8 or float32 \[N, 32, 32, 3\]"):
            engine(pixels)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="pixels\\[None\\]"):
        engine(np.zeros((32, 32, 3), np.uint8))
    with pytest.raises(UsageError, match="threads: got 0"):
        NativeEngine(create(v1(0.1, 32, 3)), 0)


def test_a_warm_start_needs_neither_llvm_nor_torch(tmp_path: Path) -> None:
    code = (
        "import sys, numpy, mobilenet\n"
        "from mobilenet.compiler.native import NativeEngine\n"
        "engine = NativeEngine(mobilenet.create(mobilenet.v1(0.1, 32, 3)), 1)\n"
        "engine(numpy.zeros((1, 32, 32, 3), numpy.uint8))\n"
        "print('llvmlite' in sys.modules, 'torch' in sys.modules)"
    )
    paths = os.pathsep.join(str(path.parent) for path in map(Path, mobilenet.__path__))
    environment = os.environ | {store.ENVIRONMENT: str(tmp_path), "PYTHONPATH": paths}
    command = [sys.executable, "-W", "error", "-c", code]
    outs = [subprocess.run(command, env=environment, capture_output=True, text=True, check=True) for _ in range(2)]
    assert [out.stdout.split() for out in outs] == [["True", "False"], ["False", "False"]]
