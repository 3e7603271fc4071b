"""Each kernel against the reference, at shapes around every vector width, between pages that can't be touched."""

import numpy as np
import pytest

from compiler_tools import Machine, chain, check_chain, conv, guarded_floats, machines, pick, random_tensors, run_chain
from members import DEEP
from mobilenet.arch import Layer, Shape
from mobilenet.compiler import depthwise, native, pack, schedule
from mobilenet.compiler.lower import lower

CHANNELS = (1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 48, 65)
SIZES = (1, 2, 3, 5, 7, 8, 13, 15, 16, 17, 29, 33)


@pytest.fixture(autouse=True)
def _guards(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (native, pack):
        monkeypatch.setattr(module, "aligned", guarded_floats)


@pytest.fixture(params=machines(), ids=str)
def machine(request: pytest.FixtureRequest) -> Machine:
    return request.param


def rounds(count: int) -> range:
    return range(count * (20 if DEEP else 1))


def stem(seed: int, channels: int, height: int, width: int, activation: str = "relu6") -> Layer:
    """Returns a stem whose output has this shape, with a kernel, stride and padding that the seed chooses."""
    choose = pick(seed).choice
    stride, inputs = choose((1, 2)), choose((1, 3, 4))
    width = max(width, -(-32 // stride))
    source = Shape(height * stride - choose((0, stride - 1)), width * stride - choose((0, stride - 1)), inputs)
    return conv("stem", "conv", source, channels, 3, stride, choose(("same", "symmetric")), activation=activation)


@pytest.mark.parametrize("padding", ["same", "symmetric"])
@pytest.mark.parametrize("stride", [1, 2])
def test_stem_pads_with_zeros_after_scaling(machine: Machine, stride: int, padding: str) -> None:
    layer = conv("stem", "conv", Shape(35, 38, 3), 17, 3, stride, padding, activation="relu6")
    for pixels in ("uint8", "float32"):
        found = check_chain([layer], machine, False, stride, pixels)
        assert (found == 0).any()
        assert (found == 6).any()


def test_stem_of_any_shape(machine: Machine) -> None:
    for seed in rounds(3):
        choose = pick(seed).choice
        check_chain([stem(seed, choose(CHANNELS), choose(SIZES), choose(SIZES))], machine, False, seed)


def test_pointwise(machine: Machine) -> None:
    for seed in rounds(6):
        choose = pick(seed).choice
        first = stem(seed, choose(CHANNELS), choose(SIZES), choose(SIZES))
        kind = choose(("relu", "relu6", "linear"))
        layer = conv("next", "pointwise", first.output, choose(CHANNELS), 1, 1, "same", activation=kind)
        found = check_chain([first, layer], machine, False, seed)
        if kind != "linear" and found.size > 300:
            assert (found == 0).any()
        if kind == "relu6" and found.size > 300:
            assert (found == 6).any()


@pytest.mark.parametrize(("inputs", "outputs"), [(2, 1), (4, 8), (16, 24), (48, 4), (34, 33), (6, 52), (5, 8)])
def test_pointwise_whose_last_vector_is_half_empty(machine: Machine, inputs: int, outputs: int) -> None:
    """Which takes inputs in pairs, where there are: with a panel of its own, or in one with others, and a shortcut."""
    first = stem(outputs, outputs, 5, 9)
    wide = conv("expand", "pointwise", first.output, inputs, 1, 1, "same", activation="relu6")
    back = conv("project", "pointwise", wide.output, outputs, 1, 1, "same", adds="stem")
    check_chain([first, wide, back], machine, False, inputs)
    network = chain([first, wide, back])
    kernel, _ = lower(network, machine.target, precision=machine.precision).packed["project"]
    pairs = machine.precision == "f32" and machine.target.lanes == 16 and inputs % 2 == 0
    assert kernel.paired == pairs


def test_shortcut_of_a_standard_convolution(machine: Machine) -> None:
    first = stem(3, 17, 13, 33)
    back = conv("next", "conv", first.output, 17, 3, 1, "same", adds="stem")
    check_chain([first, back], machine, False, 3)


def test_shortcut(machine: Machine) -> None:
    for seed in rounds(2):
        choose = pick(seed).choice
        first = stem(seed, choose(CHANNELS), choose(SIZES), choose(SIZES))
        wide = conv("expand", "pointwise", first.output, choose(CHANNELS), 1, 1, "same", activation="relu6")
        back = conv("project", "pointwise", wide.output, first.output.channels, 1, 1, "same", adds="stem")
        check_chain([first, wide, back], machine, False, seed)


@pytest.mark.parametrize("by_columns", [False, True])
@pytest.mark.parametrize("kernel", [3, 5])
def test_depthwise(machine: Machine, kernel: int, by_columns: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(depthwise, "by_columns", lambda *_: by_columns)
    for seed in rounds(6):
        choose = pick(100 * kernel + seed).choice
        first = stem(seed, choose(CHANNELS), choose(SIZES), choose(SIZES))
        stride, padding = (seed % 2) + 1, ("same", "symmetric")[seed // 2 % 2]
        outs = first.output.channels
        layer = conv("next", "depthwise", first.output, outs, kernel, stride, padding, activation="relu6")
        found = check_chain([first, layer], machine, False, seed)
        if found.size > 300:
            assert (found == 0).any()
            assert (found == 6).any()


def test_standard_convolution_of_channels(machine: Machine) -> None:
    for seed in rounds(2):
        choose = pick(seed).choice
        first = stem(seed, choose(CHANNELS), choose(SIZES), choose(SIZES))
        layer = conv("next", "conv", first.output, choose(CHANNELS), 3, choose((1, 2)), "same", activation="relu")
        check_chain([first, layer], machine, False, seed)


@pytest.mark.parametrize("kind", ["average_pool", "max_pool"])
def test_pool_and_dense(machine: Machine, kind: str) -> None:
    for seed in rounds(3):
        choose = pick(seed).choice
        first = stem(seed, choose(CHANNELS), choose(SIZES), choose(SIZES), choose(("relu6", "linear")))
        pooled = Shape(1, 1, first.output.channels)
        pool = Layer("pool", kind, None, first.output, pooled)
        check_chain([first, pool], machine, False, seed)
        last = Layer("last", "dense", None, pooled, Shape(1, 1, choose((1, 5, 63, 64, 65, 129, 200))), bias=True)
        check_chain([first, pool, last], machine, False, seed)


@pytest.mark.parametrize("by_columns", [False, True])
def test_strips_of_every_height_give_the_same(
    machine: Machine, by_columns: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A block in strips of 1, 2, … rows, with rings that begin anew in the middle of a call."""
    monkeypatch.setattr(depthwise, "by_columns", lambda *_: by_columns)
    first = stem(1, 17, 13, 33)
    wide = conv("expand", "pointwise", first.output, 33, 1, 1, "same", activation="relu6")
    for seed, stride in enumerate((1, 2)):
        deep = conv("depthwise", "depthwise", wide.output, 33, 3, stride, "same", activation="relu6")
        back = conv("project", "pointwise", deep.output, 17, 1, 1, "same")
        for strip in (1, 2, 3, 5):
            monkeypatch.setattr(schedule, "_strip", lambda run, *_, strip=strip: min(strip, run[-1].rows))
            check_chain([first, wide, deep, back], machine, True, seed)


def test_not_a_number_comes_through(machine: Machine) -> None:
    layers = [stem(2, 5, 8, 33)]
    layers.append(conv("next", "pointwise", layers[0].output, 9, 1, 1, "same", activation="relu6"))
    network = chain(layers)
    tensors = random_tensors(network, 0)
    pixels = np.zeros((1, *network.input), np.float32)
    pixels[0, 5, 5, 0] = np.nan
    found = run_chain(network, tensors, pixels, machine, False)
    assert np.isnan(found).any()
    assert np.isfinite(found).any()
