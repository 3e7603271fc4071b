"""Quantised networks as machine code: bit by bit what `integer` says, with every rescale on every instruction set."""

import re
from functools import cache
from itertools import islice
from typing import get_args

import numpy as np
import pytest

from compiler_tools import EMULATED, chain, conv, guarded_copy, guarded_floats, tape
from int8_makers import random_bytes, random_int8, random_int8_model
from members import DEEP, endless_members
from mobilenet import integer
from mobilenet.arch import SCALINGS, Network, Pooling, Shape, v1, v2
from mobilenet.compiler import native, pack, store
from mobilenet.compiler.build import assembly, build
from mobilenet.compiler.conv import Conv
from mobilenet.compiler.dense import Dense
from mobilenet.compiler.depthwise import Depthwise
from mobilenet.compiler.depthwise_bytes import DepthwiseBytes
from mobilenet.compiler.ending import ROWS
from mobilenet.compiler.lower import lower
from mobilenet.compiler.native import NativeEngine
from mobilenet.compiler.pointwise import Pointwise
from mobilenet.compiler.pool import Pool
from mobilenet.compiler.scale import Scale
from mobilenet.compiler.targets import TARGETS, Target, runnable
from mobilenet.cost import cost
from mobilenet.errors import UsageError
from mobilenet.model import Model, create
from mobilenet.quantized import Rescale


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(store.ENVIRONMENT, str(tmp_path_factory.getbasetemp() / "code"))
    for module in (native, pack):
        monkeypatch.setattr(module, "aligned", guarded_floats)


RESCALES = get_args(Rescale)
TESTED = (*runnable(), *EMULATED)


@pytest.fixture(params=TESTED, ids=lambda target: target.name)
def target(request: pytest.FixtureRequest) -> Target:
    return request.param


def members(count: int) -> list[Network]:
    """Returns random members that are quick to compute, without V2 of standard convolutions: its kernels take long."""
    found = (
        m
        for m in endless_members(47)
        if cost(m).macs < 1e7
        and max(m.height, m.width) < 200
        and (m.separable or m.family == "v1")
        and len(SCALINGS[m.conventions.scaling][0]) in (1, m.channels)
    )
    return list(islice(found, count))


# Networks of each instruction set, and weights of each network: those need no new code, whose making takes the time.
NETWORKS, WEIGHTS = (12, 12) if DEEP else (2, 2)
MEMBERS = members(NETWORKS * len(TARGETS))
WITH_ALL_BYTES = [v2(0.14, (35, 33), 21), v1(0.1, 32, 5), *(members(7)[3:] if DEEP else ())]
CASES: list[tuple[Rescale, int]] = [("float", number) for number in range(NETWORKS)]
CASES += [(rescale, number) for rescale in ("fixed", "full") for number in range(len(WITH_ALL_BYTES))]
built = cache(build)


def drawn(rescale: Rescale, target: Target, number: int, draw: int) -> Model:
    """Returns a quantised network, with the rescale "float" a target's own."""
    if rescale != "float":
        ranges = number + (rescale == "full")
        return random_int8_model(WITH_ALL_BYTES[number], ranges + 100 * draw, rescale, ranges)
    place = number * len(TARGETS) + list(TARGETS).index(target.name)
    return random_int8_model(MEMBERS[place], 100 * place + draw, ranges=place)


def check(model: Model, images: int, target: Target, seed: int, *, threads: int = 1, fuse: bool = True) -> None:
    """Compares a compiled model with `integer`, on this machine or an emulated one."""
    pixels = random_bytes(model.network, images, seed)
    expected = integer.forward(model.network, model.tensors, pixels)
    if target in runnable():
        given = guarded_copy(pixels.astype(np.float32 if seed % 2 else np.uint8))
        found = NativeEngine(model, threads, target=target.name, fuse=fuse)(given)
    else:
        facts = native.integers(model.network, model.tensors)
        plan = lower(model.network, target, precision="int8", integers=facts, fuse=fuse, threads=threads)
        weights = pack.pack(plan, model.tensors, model.preprocessing.mean, model.preprocessing.std)
        emulated, found = tape(plan, *built(plan.kernels, target), weights, native.last_scale(model)), expected + 1
        for image, out in zip(pixels, found, strict=True):
            emulated.play(image, out)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("rescale", "number"), CASES)
def test_random_members_give_the_references_bits(target: Target, rescale: Rescale, number: int) -> None:
    if rescale != "float" and number == 1 and target not in (TESTED[0], TESTED[-1]) and not DEEP:
        pytest.skip("the first member has every ending that this one has")
    for draw in range(WEIGHTS if rescale == "float" or DEEP else 1):
        model = drawn(rescale, target, number, draw)
        images = 1 + (draw + number) % 3 if target in runnable() else 1
        check(model, images, target, draw, threads=1 + (rescale != "float" and number % 2), fuse=number % 2 == 0)


@pytest.mark.parametrize("rescale", ["fixed", "full"])
def test_random_members_have_every_ending_and_reach_every_limit(rescale: Rescale) -> None:
    endings: set[str] = set()
    nine: set[bool] = set()
    for number in range(2):
        model = drawn(rescale, TESTED[0], number, 0)
        network, tensors = model.network, model.tensors
        facts = native.integers(network, tensors)
        endings |= set(facts.endings.values())
        nine |= {layer.name in facts.nine for layer in network.layers if layer.weight_shape}
        found = integer.outputs(network, tensors, random_bytes(network, 1 + number, number))
        limits = [(found[layer.name] == tensors[f"{layer.name}.{part}"]).any()
                  for layer in network.layers for part in ("low", "high") if layer.weight_shape]  # fmt: skip
        assert sum(limits) > 0.8 * len(limits)
        assert len(np.unique(found["classifier"])) > 2  # nothing is told by logits that are all clamped
        if rescale == "fixed":
            shifts = np.concatenate([tensors[name] for name in tensors if name.endswith(".shift")])
            assert (shifts.min(), shifts.max() > 0) == (-31, True)
    assert nine == {True, False}
    fixed = {ending for ending in ROWS if ending.startswith("fixed")}
    assert endings == (fixed if rescale == "fixed" else set(ROWS) - fixed - {"logits"})


@pytest.mark.parametrize(("rescale", "network"), [("full", v2(0.35, (67, 45), 7)), ("fixed", WITH_ALL_BYTES[0])])
def test_bits_are_the_same_however_they_are_computed(rescale: Rescale, network: Network) -> None:
    model = random_int8_model(network, 5, rescale)
    pixels = random_bytes(model.network, 5, 5)
    expected = integer.forward(model.network, model.tensors, pixels)
    for threads in (1, 2, 3):
        engine = NativeEngine(model, threads)
        np.testing.assert_array_equal(engine(pixels), expected)
        np.testing.assert_array_equal(engine(pixels[:1]), expected[:1])
        np.testing.assert_array_equal(engine(pixels.astype(np.float32) + np.float32(0.25)), expected)


def test_depthwise_layers_whose_rows_do_not_fit_in_a_word(target: Target) -> None:
    """Of 5x5, which no member has: bytes are multiplied as floats."""
    if target.machine == "aarch64" and target.words and not DEEP:
        pytest.skip("as on neon")
    number = list(TARGETS).index(target.name)
    layers = [conv("stem", "conv", Shape(33, 38, 3), 21, 3, 2, "same", activation="relu6")]
    for stride in (1, 2):
        layers.append(conv(f"{stride}", "depthwise", layers[-1].output, 21, 5, stride, "same", activation="relu6"))
    network = chain(layers)
    tensors = random_int8(network, number, rescale=RESCALES[number % len(RESCALES)])
    plan = lower(network, target, precision="int8", integers=native.integers(network, tensors))
    kinds = {type(kernel) for kernel in plan.kernels}
    assert Depthwise in kinds
    assert DepthwiseBytes not in kinds
    scale, zero = (float(tensors[f"2.{part}"][0]) for part in ("scale", "zero"))
    packed = pack.pack(plan, tensors, (0.0,), (1.0,))
    run = tape(plan, *built(plan.kernels, target), packed, (scale, zero))
    pixels = random_bytes(network, 2, number)
    expected = integer.forward(network, tensors, pixels)
    for image, wanted in zip(pixels, expected, strict=True):
        out = np.full(wanted.shape, np.nan, np.float32)
        run.play(guarded_copy(image), out)
        np.testing.assert_array_equal(out, wanted)


def test_one_packing_serves_every_schedule() -> None:
    """The weights of one image on one thread are those of one image on several."""
    for network in (v1(1.0, 224), v2(1.0, 224), v1(0.5, (97, 160)), *MEMBERS[:3]):
        for precision in ("f32", "bf16", "int8"):
            for target in TARGETS.values():
                plans = [lower(network, target, precision=precision, threads=n, fuse=n < 4) for n in (1, 2, 3, 4)]
                layouts = [{name: (k.parameters, at) for name, (k, at) in plan.packed.items()} for plan in plans]
                assert layouts.count(layouts[0]) == len(layouts), f"{network} {precision} {target.name}"


def test_two_threads_give_the_bits_where_strips_are_lower_than_on_one() -> None:
    model = random_int8_model(v1(1.0, 224, classes=5), 0)
    pixels = random_bytes(model.network, 1, 0)
    np.testing.assert_array_equal(NativeEngine(model, 2)(pixels), NativeEngine(model, 1)(pixels))


def test_a_depthwise_bias_beyond_the_whole_numbers_of_floats(target: Target) -> None:
    network = v1(0.25, 32, classes=3)
    tensors = random_int8(network, 1)
    name = "block2.depthwise"
    tensors[f"{name}.bias"][:3] = (2**24 + 1, -(2**24) - 3, 2**30 + 1)
    tensors[f"{name}.multiplier"][:3] = (100 / 2**24, -100 / -(2**24), 100 / 2**30)
    check(Model(network, tensors, precision="int8"), 2, target, 1)


@pytest.mark.parametrize(
    ("name", "word"), [("avxvnni", "vpdpbusd"), ("avx512vnni", "vpdpbusd"), ("neondot", "sdot"), ("neoni8mm", "usdot")]
)
def test_bytes_are_multiplied_four_at_a_time(name: str, word: str) -> None:
    model, target = random_int8_model(v1(0.25, 32, classes=3)), TARGETS[name]
    plan = lower(model.network, target, precision="int8", integers=native.integers(model.network, model.tensors))
    kernels = {type(kernel): kernel for kernel in plan.kernels if not isinstance(kernel, Scale | Pool)}
    assert set(kernels) == {Conv, DepthwiseBytes, Pointwise, Dense}
    for kernel in kernels.values():
        assert re.search(rf"\b{word}\b", assembly(kernel, target))


@pytest.mark.parametrize("rescale", RESCALES)
@pytest.mark.parametrize("pooling", [None, "avg", "max"])
def test_feature_maps_come_back_as_floats(pooling: Pooling | None, rescale: Rescale) -> None:
    network = v1(0.1, 32, 5, include_top=False, pooling=pooling)
    check(random_int8_model(network, 1, rescale), 2, TESTED[0], 2)


@pytest.mark.parametrize("name", [target.name for target in runnable()])
def test_pixels_beyond_the_bytes_are_the_nearest_byte(name: str) -> None:
    """Of floats; what is no number is 0. A feature map, as all of its outputs depend on the pixels."""
    model = random_int8_model(v1(0.25, 32, 3, include_top=False, downsampling=2), 1, "full")
    pixels = random_bytes(model.network, 1)
    expected = integer.forward(model.network, model.tensors, pixels)
    pixels[0, ::2, ::4] = [[0], [0], [0], [0], [255], [255], [255], [255]]
    given = pixels.astype(np.float32)
    given[0, ::2, ::4] = np.array([-np.inf, -3e9, -7, np.nan, 300, 4e6, 3e9, np.inf])[:, None]
    nearest = integer.forward(model.network, model.tensors, pixels)
    assert (nearest != expected).mean() > 0.5
    np.testing.assert_array_equal(NativeEngine(model, 1, target=name)(given), nearest)


def test_the_twin_of_v2_adds_its_shortcuts(target: Target) -> None:
    """Its convolutions have weights of nine bits and inputs with channels that only fill vectors up."""
    if target not in (TESTED[0], TARGETS["avx2"], TESTED[-1]) and not DEEP:
        pytest.skip("each takes seconds")
    for rescale in RESCALES if target == TESTED[0] or DEEP else ("fixed",):
        model = random_int8_model(v2(0.05, (32, 40), 3, separable=False), 1, rescale)
        assert rescale == "float" or native.integers(model.network, model.tensors).nine
        check(model, 2, target, 2)


def test_a_precision_the_model_does_not_have_is_refused() -> None:
    model = create(v1(0.25, 32, classes=3), seed=0)
    with pytest.raises(UsageError, match="precision: got 'int8', but the model is not quantised"):
        model.compile("int8")
    with pytest.raises(UsageError, match="precision: got 'bf16', but the model is quantised"):
        random_int8_model(model.network).compile("bf16")
