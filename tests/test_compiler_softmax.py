"""The softmax kernel against float64, on every kind of machine, and as the last step of plans."""

import ctypes
import json
from dataclasses import replace
from math import log2
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import mobilenet
from compiler_tools import EMULATED, EPSILON, SCALING, UNICORN, chain, conv, guarded_copy, random_tensors, tape
from int8_makers import random_bytes, random_int8_model
from mobilenet import integer, reference
from mobilenet.arch import Layer, Shape, v1
from mobilenet.common.frozen import frozen
from mobilenet.compiler import build
from mobilenet.compiler.emulator import Emulator
from mobilenet.compiler.kernel import Kernel
from mobilenet.compiler.link import link
from mobilenet.compiler.loader import Code as Loaded
from mobilenet.compiler.lower import lower
from mobilenet.compiler.native import integers
from mobilenet.compiler.pack import pack
from mobilenet.compiler.plan import Plan, Step
from mobilenet.compiler.softmax import Softmax, exp
from mobilenet.compiler.targets import DEVICES, TARGETS, Target, runnable
from mobilenet.errors import UsageError
from mobilenet.export.checked import through_softmax
from mobilenet.quantized import Rescale
from mobilenet.weights import fold

Floats = NDArray[np.float32]
DEVICES_HERE = tuple(DEVICES[name] for name in ("armv7", "cortex-m", "riscv64")) if UNICORN else ()
TESTED = (*runnable(), *(target for target in EMULATED if "usdot" not in target.words), *DEVICES_HERE)
TINY = float(np.finfo(np.float32).tiny)
UNIT = EPSILON / 2


@pytest.fixture(params=TESTED, ids=lambda target: target.name)
def target(request: pytest.FixtureRequest) -> Target:
    return request.param


def called(kernel: Kernel, target: Target, rows: Floats) -> Floats:
    """Returns what a kernel that is called once makes of each row: whole vectors, between pages not to be touched."""
    image, (begin,) = link([("kernel", build.compile_kernel(kernel, target))])
    found = np.full_like(rows, np.nan)
    if target in runnable():
        loaded = Loaded(image, {"kernel": begin})
        function = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 4)(loaded.address["kernel"])
        for row, out in zip(map(guarded_copy, rows), found, strict=True):
            place = guarded_copy(out)
            function(place.ctypes.data, row.ctypes.data, None, None)
            out[:] = place
        return found
    machine = Emulator(target)
    start, source, place = machine.map(image, "rx") + begin, *(machine.map(rows[0].tobytes(), "rw") for _ in range(2))
    for row, out in zip(rows, found, strict=True):
        machine.write(source, row.tobytes())
        machine.call(start, place, source, 0, 0)
        out[:] = np.frombuffer(machine.read(place, row.nbytes), np.float32)
    return found


def probabilities(logits: NDArray[Any], target: Target) -> Floats:
    """Returns what the kernel makes of rows of logits; whatever is stored beyond them must not matter."""
    classes = logits.shape[-1]
    beyond = np.resize(np.array([3e38, np.nan, np.inf]), (len(logits), -classes % target.lanes))
    rows = np.concatenate([logits, beyond], -1).astype(np.float32)
    return called(Softmax(classes), target, rows)[:, :classes]


@frozen
class Exponentials(Kernel):
    """Is exp of so many vectors."""

    vectors: int

    @property
    def parameters(self) -> int:
        """None."""
        return 0

    def emit(self, code: Any) -> None:
        """Writes the kernel."""
        source, out = code.source.shaped(code.lanes), code.out.shaped(code.lanes)
        code.loop(0, self.vectors, 1, lambda i: out.at(i).store(exp(code, source.at(i).load())))


def test_exp_is_off_by_less_than_it_says(target: Target) -> None:
    halves = -(np.arange(127) + 0.5) * np.log(2)  # where the power of two changes
    near = (np.nextafter(np.float32(half), np.float32(side)) for half in halves for side in (-1e9, 1e9))
    dense = np.concatenate([-np.geomspace(1e-30, 90, 5000), np.linspace(-88, 0, 8000)])
    x = np.concatenate([dense, [*near], [0, -0.0, -1e4, -3e38, -np.inf, np.nan]]).astype(np.float32)
    x = np.resize(x, -(-x.size // 16) * 16)
    found = called(Exponentials(x.size // target.lanes), target, x[None])[0]
    expected = np.exp(x.astype(np.float64))
    np.testing.assert_array_equal(np.isnan(found), np.isnan(x))
    error = np.abs(found - expected)[~np.isnan(x)]
    assert (error <= np.maximum(2.0**-22 * expected, 2.0**-126)[~np.isnan(x)]).all(), error.max()
    assert (found[x < -88] == 0).all()
    assert (found[x == 0] == 1).all()


def allowed(logits: NDArray[np.float64], expected: NDArray[np.float64], lanes: int) -> NDArray[np.float64]:
    """Returns how far each probability may be off: by the roundings of exp and its argument, of the sum, the quotient.

    The sum has a lane's terms, then the lanes'. Of equal terms all roundings may go the same way.
    """
    distance = np.minimum(logits.max(-1, keepdims=True) - logits, 200)  # beyond, exp is 0 on both sides
    power = distance * UNIT + 2.0**-22
    additions = logits.shape[-1] / lanes + log2(lanes)
    total = (expected * power).sum(-1, keepdims=True) + additions * UNIT
    return expected * (power + total + UNIT) + TINY


@pytest.mark.parametrize("classes", [1, 2, 15, 16, 17, 65, 1000, 1001])
def test_softmax_of_any_length(target: Target, classes: int) -> None:
    generator = np.random.default_rng(classes)
    normal = generator.standard_normal((4, classes))
    logits = np.stack([*normal[:2] * 3, normal[2] * 1e-3, np.full(classes, -7.5), np.linspace(-1e4, 1e4, classes),
                       np.where(np.arange(classes) % 5, -1e4, 1e4), np.linspace(0, -100, classes),
                       np.where(np.arange(classes) == classes // 2, 3e38, normal[3])])  # fmt: skip
    if classes > 1:
        logits = np.concatenate([logits, np.where(np.arange(classes) == classes // 3, -np.inf, normal[3:])])
    logits = logits.astype(np.float32).astype(np.float64)
    expected = reference.softmax(logits)
    found = probabilities(logits, target).astype(np.float64)
    room = allowed(logits, expected, target.lanes)
    assert room.max() < 2e-4, "a tolerance that would let anything pass"
    assert (np.abs(found - expected) <= room).all(), np.max(np.abs(found - expected) / room)
    assert (np.abs(found.sum(-1) - 1) <= room.sum(-1)).all()
    assert (found[np.isneginf(logits)] == 0).all()
    if classes & (classes - 1) == 0:
        assert (found[3] == 1 / classes).all()


def test_ten_thousand_equal_logits(target: Target) -> None:
    """All roundings of their sum may go the same way."""
    logits = np.full((1, 10_000), 2.5)
    expected = reference.softmax(logits)
    room = allowed(logits, expected, target.lanes)
    assert room.max() < 1e-3 * expected.min()
    assert (np.abs(probabilities(logits, target) - expected) <= room).all()


@pytest.mark.parametrize("classes", [1, 5, 40])
def test_what_is_not_finite_gives_nan(target: Target, classes: int) -> None:
    places = range(classes)
    logits = np.tile(np.linspace(-1, 1, classes, dtype=np.float32), (2 * classes + 1, 1))
    logits[places, places], logits[[classes + n for n in places], places] = np.nan, np.inf
    logits[-1] = -np.inf
    with np.errstate(invalid="ignore"):
        assert np.isnan(reference.softmax(logits)).all()
    assert np.isnan(probabilities(logits, target)).all()


# ------------------------------------------------------------------------------------------------------------ plans


def classifier(classes: int, kind: str = "dense") -> Any:
    """Returns a chain of a stem, a pooling and a classifier."""
    stem = conv("stem", "conv", Shape(33, 34, 3), 9, 3, 2, "same", activation="relu6")
    pool = Layer("pool", "average_pool", None, stem.output, Shape(1, 1, 9))
    return chain([stem, pool, Layer("classifier", kind, None, pool.output, Shape(1, 1, classes), bias=True)])  # type: ignore[arg-type]


def played(plan: Plan, weights: NDArray[np.int32], pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Returns a plan's outputs for images."""
    image, functions = build.build(plan.kernels, plan.target, workers=1)
    made, found = tape(plan, image, functions, weights), []
    for photo in pixels:
        out = np.full(plan.network.layers[-1].output, np.nan, np.float32)
        made.play(guarded_copy(photo), out)
        found.append(out.ravel())
    return np.array(found, np.float64)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_a_plan_ends_with_it(threads: int, precision: str) -> None:
    target, network = (runnable() or EMULATED)[0], classifier(37)
    tensors = random_tensors(network, 1, 3.0)
    pixels = np.random.default_rng(2).integers(0, 256, (2, *network.input), np.uint8)
    plan, plain = (lower(network, target, precision=precision, threads=threads, softmax=soft) for soft in (True, False))
    assert plan.probabilities
    assert not plain.probabilities
    weights = pack(plan, fold(network, tensors), *SCALING)
    logits = played(plain, weights, pixels)
    expected, room = through_softmax(logits, np.zeros(1))
    assert room.max() < 1e-5
    found = played(plan, weights, pixels)
    assert (np.abs(found - expected) <= room).all()
    assert found.min() < 0.01 < 0.1 < found.max()


@pytest.mark.parametrize("rescale", ["fixed", "full"])
def test_an_int8_plan_ends_with_it(rescale: Rescale) -> None:
    model, target = random_int8_model(v1(0.1, 32, 21), 5, rescale), (runnable() or EMULATED)[0]
    facts = integers(model.network, model.tensors)
    plan = lower(model.network, target, precision="int8", integers=facts, softmax=True)
    pixels = random_bytes(model.network, 2)
    found = played(plan, pack(plan, model.tensors, *SCALING), pixels)
    expected, room = through_softmax(integer.forward(model.network, model.tensors, pixels), np.zeros(1))
    assert (np.abs(found - expected) <= room).all()
    assert expected.max() < 0.999


@pytest.mark.parametrize("target", ["amx", "sse", "neondot"])
@pytest.mark.parametrize("threads", [1, 2])
def test_the_rest_of_the_plan_stays(target: str, threads: int) -> None:
    network = v1(0.25, 64, 1001)
    plain, soft = (lower(network, TARGETS[target], threads=threads, softmax=soft) for soft in (False, True))
    steps = [[step for step in part if step] for part in soft.parts]
    last = steps[0].pop()
    assert isinstance(last, Step)
    assert last.kernel == Softmax(1001)
    assert last.kernel.parameters == 0
    assert [list(map(_what, part)) for part in steps] == [
        [_what(step) for step in part if step] for part in plain.parts
    ]
    assert replace(plain, parts=(), kernels=(), arena=0, fills=(), zeroed=(), result=0) == replace(
        soft, parts=(), kernels=(), arena=0, fills=(), zeroed=(), result=0
    )
    if threads > 1:
        assert [part[-1] for part in soft.parts] == [None] * threads
        assert len({part.count(None) for part in soft.parts}) == 1
    assert Plan.restored(json.loads(json.dumps(soft.kept())), network, TARGETS[target]) == soft


def _what(step: Step) -> tuple[Any, ...]:
    """Returns a step but for the places in memory, which the probabilities' may move."""
    return step.layer, step.kernel, step.parameters, step.begin, step.end


def test_without_a_classifier_there_is_none() -> None:
    for network in (v1(0.25, 64, include_top=False), v1(0.25, 64, include_top=False, pooling="avg")):
        with pytest.raises(UsageError, match=r"softmax: .* has no classifier, whose logits it needs; leave it out"):
            lower(network, TARGETS["sse"], softmax=True)
        model = mobilenet.model.create(network, 0)
        with pytest.raises(UsageError, match=r"softmax: .* has no classifier"):
            mobilenet.export(model, "never-written.o", target="sse", softmax=True)
