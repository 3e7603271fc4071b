"""The integer network computes what its definition says, to the last bit; its tensors are checked before."""

import itertools
import math
from fractions import Fraction
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from numpy.typing import NDArray

from int8_makers import random_bytes, random_int8, random_int8_model
from mobilenet import integer, quantized
from mobilenet.arch import Layer, Network, Shape, v1, v2
from mobilenet.engine import Engine
from mobilenet.errors import ModelError, UsageError
from mobilenet.model import Model, load
from mobilenet.quantized import Rescale
from mobilenet.storage import tensors_file
from model_makers import edit_config, random_model, same_tensors
from small_members import small_members

MEMBERS = small_members()
SMALL = v2(0.1, 32, 5)
Tensors = dict[str, NDArray[Any]]


# ------------------------------------------------------------------------------- the definition, one number at a time


def by_definition(layer: Layer, tensors: Tensors, x: Any, zero_in: Any, shortcut: Any) -> NDArray[Any]:
    """Returns a layer's output [height, width, channels] for one image, in Python's whole numbers."""
    height, width, channels = layer.output
    full = f"{layer.name}.low" in tensors
    last = layer.kind == "dense" and not full
    found = np.zeros(layer.output, np.float32 if last else np.uint8)
    part = {name: tensors.get(f"{layer.name}.{name}") for name in ("weight", "bias", "multiplier", "shortcut", "zero")}
    zeros = [int(zero_in[c % len(zero_in)]) for c in range(layer.input.channels)]
    for row, column, channel in itertools.product(range(height), range(width), range(channels)):
        total = 0 if part["bias"] is None else int(part["bias"][channel])
        if layer.kind in ("average_pool", "max_pool"):
            values = [int(value) for value in x[:, :, channel].flat]
            if layer.kind == "max_pool":
                found[row, column, channel] = max(values)
                continue
            total = sum(value - zeros[channel] for value in values)
        for i, j in itertools.product(range(layer.kernel), range(layer.kernel)):
            y, z = row * layer.stride + i - layer.padding[0][0], column * layer.stride + j - layer.padding[1][0]
            if layer.weight_shape is None or not (0 <= y < layer.input.height and 0 <= z < layer.input.width):
                continue
            weight = part["weight"].reshape(layer.kernel, layer.kernel, -1, channels)[i, j, :, channel]
            middle = int(tensors[f"{layer.name}.weight_zero"][0]) if full else 0
            inputs = [channel] if layer.kind == "depthwise" else range(layer.input.channels)
            total += sum((int(x[y, z, c]) - zeros[c]) * (int(w) - middle) for c, w in zip(inputs, weight, strict=True))
        t = np.float32(total) * part["multiplier"][channel % len(part["multiplier"])]
        if last:
            found[row, column, channel] = t
            continue
        added = int(shortcut[row, column, channel]) - int(tensors[f"{layer.adds}.zero"][0]) if layer.adds else 0
        if layer.adds and not full:
            t = np.float32(t + np.float32(np.float32(added) * part["shortcut"][0]))
        low = quantized.lower_clamp(layer, tensors)
        y = round(float(t))  # Python rounds to the nearest even
        if layer.adds and full:
            middle, shift = (int(tensors[f"{layer.name}.sum_{name}"][0]) for name in ("zero", "shift"))
            own = min(max(y + middle, 0), 255) - middle
            mine, others = tensors[f"{layer.name}.sum_multiplier"].tolist()
            y = math.floor(Fraction(own * mine + added * others, 2**shift) + (Fraction(1, 2) if shift else 0))
        y += int(part["zero"][0])
        found[row, column, channel] = min(max(y, low), int(tensors[f"{layer.name}.high"][0]))
    return found


@pytest.mark.parametrize("rescale", ["float", "full"])
@pytest.mark.parametrize(
    "network",
    [
        v2(0.05, (32, 35), 3),
        v1(0.05, (33, 32), 3, channels=2, conventions="notes"),
        v2(0.05, 32, include_top=False, pooling="max", separable=False),
        v1(0.05, 32, include_top=False, conventions="timm"),
    ],
    ids=str,
)
def test_every_layer_is_what_its_definition_says(network: Network, rescale: Rescale) -> None:
    tensors = random_int8(network, 1, rescale=rescale)
    pixels = random_bytes(network, 1, 2)
    found = integer.outputs(network, tensors, pixels)
    x, zero_in = pixels[0], tensors["pixels.zero"]
    for layer in network.layers:
        shortcut = found[layer.adds][0] if layer.adds else None
        expected = by_definition(layer, tensors, x, zero_in, shortcut)
        x = found[layer.name][0].reshape(layer.output)
        assert x.dtype == expected.dtype
        np.testing.assert_array_equal(x, expected, err_msg=layer.name)
        zero_in = tensors.get(f"{layer.name}.zero", zero_in)


def test_a_shortcuts_product_is_rounded_before_it_is_added() -> None:
    """0.1 and 0.4 are no float32 numbers, and many sums are halves: roundings decide to which side these go."""
    layer = Layer("last", "pointwise", None, Shape(1, 1, 1), Shape(1, 1, 1), adds="first")
    tensors = {
        "last.weight": np.ones((1, 1), np.int8),
        "last.bias": np.zeros(1, np.int32),
        "last.multiplier": np.array([0.1], np.float32),
        "last.shortcut": np.array([0.4], np.float32),
        "last.zero": np.array([7], np.int32),
        "first.zero": np.array([3], np.int32),
    }
    x, added = (part.reshape(-1, 1, 1, 1).astype(np.uint8) for part in np.mgrid[:256, :256])
    found = integer.output(integer.prepare(layer, tensors, np.zeros(1, np.int32)), x, added).ravel()
    first = x.ravel().astype(np.float32) * np.float32(0.1)
    product = (added.ravel().astype(np.float32) - 3) * np.float32(0.4)
    expected = np.clip(np.rint(first + product) + 7, 0, 255)
    fused = np.clip(np.rint(first + (added.ravel() - 3.0) * float(np.float32(0.4))) + 7, 0, 255)
    assert (expected != fused).any()
    np.testing.assert_array_equal(found, expected)


def test_bytes_are_added_in_whole_numbers_whose_halves_go_up() -> None:
    layer = Layer("last", "pointwise", None, Shape(1, 1, 1), Shape(1, 1, 1), adds="first")
    numbers = {"weight_zero": 0, "bias": -150, "zero": 20, "low": 0, "high": 255, "sum_zero": 128, "sum_shift": 1}
    tensors = {f"last.{name}": np.array([value], np.int32) for name, value in numbers.items()}
    tensors |= {"last.weight": np.full((1, 1), 2, np.uint8), "last.multiplier": np.ones(1, np.float32)}
    tensors |= {"last.sum_multiplier": np.array([1, 3], np.int32), "first.zero": np.array([3], np.int32)}
    x, added = (part.reshape(-1, 1, 1, 1).astype(np.uint8) for part in np.mgrid[:256, :256])
    found = integer.output(integer.prepare(layer, tensors, np.zeros(1, np.int32)), x, added)
    own = np.clip(2 * x.astype(int) - 150, -128, 127)
    np.testing.assert_array_equal(found, np.clip((own + (added.astype(int) - 3) * 3 + 1) // 2 + 20, 0, 255))


@pytest.mark.parametrize("rescale", ["float", "full"])
def test_random_tensors_reach_both_clamps(rescale: Rescale) -> None:
    for index, network in enumerate(MEMBERS[:12]):
        tensors = random_int8(network, index, rescale=rescale)
        found = integer.outputs(network, tensors, random_bytes(network, 4, index))
        for layer in network.layers:
            clipped_before = rescale == "full" and layer.adds  # which what is added may push to one side
            if layer.weight_shape is not None and layer.kind != "dense" and not clipped_before:
                y = found[layer.name]
                assert 0.02 < (y == quantized.lower_clamp(layer, tensors)).mean() < 0.6, layer
                assert 0.02 < (y == tensors[f"{layer.name}.high"][0]).mean() < 0.6, layer


def test_sums_beyond_float32s_whole_numbers_are_exact() -> None:
    """255 · 127 · 1024 terms are 33 million; the odd ones above 2^24 are no float32 numbers."""
    network = v1(1.0, 32, 1)
    tensors = random_int8(network, 0)
    dense = network.layers[-1]
    tensors |= {
        f"{dense.name}.weight": np.full((1024, 1), 127, np.int8),
        f"{dense.name}.bias": np.array([1], np.int32),
    }
    found = integer.outputs(network, tensors, random_bytes(network, 1))
    pooled = found[network.layers[-2].name].astype(int) - int(tensors[f"{network.layers[-2].name}.zero"][0])
    total = int(127 * pooled.sum()) + 1
    step = integer.prepare(dense, tensors, np.array([0], np.int32))
    assert step.weight.dtype == np.float64
    assert integer.sums(step, np.full((1, 1024), 255, np.uint8))[0, 0] == 255 * 127 * 1024
    multiplier = tensors[f"{dense.name}.multiplier"][0]
    assert found[dense.name][0, 0] == np.float32(total) * multiplier


@pytest.mark.parametrize("rescale", get_args(Rescale))
@pytest.mark.parametrize("network", MEMBERS[:8], ids=str)
def test_the_engine_runs_an_int8_model_whatever_batch_and_threads(network: Network, rescale: Rescale) -> None:
    model = random_int8_model(network, 3, rescale)
    pixels = random_bytes(network, 5, 4)
    expected = integer.forward(network, model.tensors, pixels)
    for threads in (1, 3):
        found = Engine(model, threads)(pixels)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(Engine(model)(pixels[:0]), expected[:0])


def test_float_pixels_are_rounded_to_bytes() -> None:
    given = np.array([-7.0, 0.5, 1.5, 254.6, 300, np.nan, np.inf, -np.inf], np.float32)
    assert integer.as_bytes(given).tolist() == [0, 0, 2, 255, 255, 0, 255, 0]
    model = random_int8_model(SMALL)
    pixels = random_bytes(SMALL, 2)
    np.testing.assert_array_equal(Engine(model)(pixels), Engine(model)(pixels.astype(np.float32) + np.float32(0.4)))


def test_pixels_of_another_shape_are_refused() -> None:
    with pytest.raises(UsageError, match=r"pixels: got shape \(1, 9, 9, 3\)"):
        integer.forward(SMALL, random_int8(SMALL), np.zeros((1, 9, 9, 3), np.uint8))


# ------------------------------------------------------------------------------------------------- tensors and folder


@pytest.mark.parametrize("rescale", get_args(Rescale))
def test_the_file_holds_a_byte_a_weight(tmp_path: Path, rescale: Rescale) -> None:
    network = v1(0.5, 32, 7)
    model = random_int8_model(network, 0, rescale, labels=[*"abcdefg"], notes={"Quantisation": {"photos": 3}})
    model.save(tmp_path / "m")
    size = (tmp_path / "m" / "model.safetensors").stat().st_size
    assert size < 1.3 * sum(np.prod(shape) for name, shape in network.tensors.items() if name.endswith("weight"))
    assert ", int8" in (tmp_path / "m" / "README.md").read_text()
    again = load(tmp_path / "m")
    assert (again.precision, again.rescale) == ("int8", rescale)
    assert repr(again).endswith("int8>")
    assert same_tensors(again.tensors, model.tensors)
    assert (again.labels, again.notes) == (model.labels, model.notes)


def test_the_safetensors_library_reads_the_file(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    model = random_int8_model(SMALL)
    model.save(tmp_path)
    assert same_tensors(safetensors.load_file(tmp_path / "model.safetensors"), model.tensors)


def test_an_int8_model_predicts_and_keeps_its_features(tmp_path: Path) -> None:
    model = random_int8_model(SMALL)
    pixels = random_bytes(SMALL, 3)
    logits = integer.forward(SMALL, model.tensors, pixels)
    assert [int(p.label) for p in model.predict(pixels)] == logits.argmax(1).tolist()
    features = Engine(model.without_top())(pixels)
    head = SMALL.layers[-3]
    bytes_ = integer.outputs(SMALL, model.tensors, pixels)[head.name]
    zero, scale = int(model.tensors[f"{head.name}.zero"][0]), model.tensors[f"{head.name}.scale"]
    np.testing.assert_array_equal(features, (bytes_.astype(np.float32) - zero) * scale)


def test_what_needs_float_weights_says_so(tmp_path: Path) -> None:
    model = random_int8_model(SMALL)
    model.save(tmp_path / "int8")
    with pytest.raises(UsageError, match=r"load_weights: <Model .* int8> is quantised; needed is the float32 model"):
        model.load_weights(tmp_path / "int8")
    with pytest.raises(ModelError, match="is an int8 model; needed is the float32 model that it was made from"):
        random_model(SMALL).load_weights(tmp_path / "int8")
    with pytest.raises(UsageError, match="precision: got 'int4', needed one of 'f32', 'int8'"):
        Model(SMALL, model.tensors, precision="int4")  # type: ignore[arg-type]


def _broken(name: str, value: Any) -> Any:
    return lambda tensors: tensors[name].__setitem__(0, value)


BLOCK = "block2.project"  # adds block1's
FAULTS: dict[str, tuple[Any, str]] = {
    "a weight of -128": (_broken("stem.weight", -128), "'stem.weight' holds -128, needed is -127 to 127"),
    "zero point": (_broken("stem.zero", 256), "'stem.zero' holds 256, needed is 0 to 255"),
    "pixels' zero point": (_broken("pixels.zero", -1), "'pixels.zero' holds -1, needed is 0 to 255"),
    "clamp below the other": (_broken("stem.high", -1), "'stem.high' holds -1, needed is [0-9]+ to 255"),
    "clamp of a linear layer": (_broken(f"{BLOCK}.high", 254), f"'{BLOCK}.high' holds 254, needed is 255"),
    "no number": (_broken("stem.multiplier", np.nan), "'stem.multiplier' holds nan, needed is a finite number"),
    "infinity": (_broken("stem.scale", np.inf), "'stem.scale' holds inf, needed is a finite number"),
    "negative": (_broken(f"{BLOCK}.shortcut", -1.0), f"'{BLOCK}.shortcut' holds -1, needed is a finite number"),
    "denormal": (
        _broken("stem.multiplier", 1e-40),
        "'stem.multiplier' holds 9.99995e-41, needed is .* from 1.17549e-38",
    ),
    "sum": (_broken("stem.bias", 2**31 - 1), "layer 'stem': channel 0: the sum may reach 2,147,[0-9,]* and must stay"),
    "least bias": (_broken("stem.bias", -(2**31)), "layer 'stem': channel 0: the sum may reach 2,147,[0-9,]* and must"),
    "rescaled": (_broken("stem.multiplier", 1e9), "layer 'stem': channel 0: the rescaled sum may reach .*1.07374e"),
    "shortcut": (_broken(f"{BLOCK}.shortcut", 1e9), f"layer '{BLOCK}': channel .: the rescaled sum may reach 2.55"),
    "missing": (lambda tensors: tensors.pop("stem.zero"), "'stem.zero' of shape .* is missing for MobileNetV2"),
    "too much": (lambda tensors: tensors.update(x=np.zeros(1)), "'x' does not belong to MobileNetV2"),
    "shape": (lambda t: t.update({"stem.bias": t["stem.bias"][1:]}), r"'stem.bias' has shape \(7,\), needed is \(8,\)"),
    "type": (lambda t: t.update({"stem.bias": t["stem.bias"].astype(int)}), "type int64, needed is int32"),
}


FULL_FAULTS: dict[str, tuple[Any, str]] = {
    **{name: FAULTS[name] for name in ("zero point", "infinity", "sum", "rescaled", "missing", "shape", "type")},
    "weights' zero point": (_broken("stem.weight_zero", 256), "'stem.weight_zero' holds 256, needed is 0 to 255"),
    "lower clamp": (_broken("classifier.low", -1), "'classifier.low' holds -1, needed is 0 to 255"),
    "clamps": (_broken("stem.high", -1), "'stem.high' holds -1, needed is [0-9]+ to 255"),
    "no factor": (_broken("pool.multiplier", 0), "'pool.multiplier' holds 0, needed is a finite number"),
    "logits' scale": (_broken("classifier.scale", np.nan), "'classifier.scale' holds nan, needed is a finite number"),
    "sum's zero point": (_broken(f"{BLOCK}.sum_zero", 300), f"'{BLOCK}.sum_zero' holds 300, needed is 0 to 255"),
    "sum's shift": (_broken(f"{BLOCK}.sum_shift", 31), f"'{BLOCK}.sum_shift' holds 31, needed is 0 to 30"),
    "sum's factor": (_broken(f"{BLOCK}.sum_multiplier", 2**21 + 1), "'.*sum_multiplier' holds 2097153, needed is 0 to"),
    "negative sum": (_broken(f"{BLOCK}.sum_multiplier", -1), "'.*sum_multiplier' holds -1, needed is 0 to 2097152"),
    "another rescale's": (lambda t: t.update({f"{BLOCK}.shortcut": np.ones(1)}), f"'{BLOCK}.shortcut' does not belong"),
}
EVERY_FAULT = [("float", name) for name in FAULTS] + [("full", name) for name in FULL_FAULTS]


@pytest.mark.parametrize(("rescale", "fault"), EVERY_FAULT)
def test_tensors_that_do_not_fit_are_refused(tmp_path: Path, rescale: Rescale, fault: str) -> None:
    change, message = (FAULTS if rescale == "float" else FULL_FAULTS)[fault]
    tensors = random_int8(SMALL, rescale=rescale)
    change(tensors)
    with pytest.raises(ModelError, match=message):
        Model(SMALL, tensors, precision="int8", rescale=rescale)
    model = random_int8_model(SMALL, rescale=rescale)
    model.save(tmp_path)
    if fault not in ("too much", "type", "another rescale's"):  # what the file can hold
        _write(tmp_path, tensors)
        with pytest.raises(ModelError, match=f"model.safetensors: .*{message}"):
            load(tmp_path)


def test_a_max_pools_output_is_in_its_inputs_units() -> None:
    network = v1(0.1, 32, include_top=False, pooling="max")
    tensors = random_int8(network)
    tensors["pool.zero"][0] ^= 1
    with pytest.raises(ModelError, match=r"'pool.zero' holds .*, needed is .* as in 'block12.pointwise.zero'"):
        quantized.check(network, tensors)


def test_a_pool_too_large_for_its_sums_is_refused() -> None:
    network = v1(0.01, 8192, include_top=False, pooling="avg", downsampling=1)
    pool = network.layers[-1]
    with pytest.raises(ModelError, match=r"layer 'pool': .* the sum may reach 17,1"):
        quantized._check_sums(pool, {"pool.multiplier": np.ones(1, np.float32)})


def test_a_float_file_is_not_taken_for_int8_nor_the_other_way(tmp_path: Path) -> None:
    random_int8_model(SMALL).save(tmp_path / "int8")
    random_model(SMALL).save(tmp_path / "float")
    edit_config(tmp_path / "float", precision="int8")
    with pytest.raises(ModelError, match=r"tensor 'stem.weight' has dtype 'F32', needed is 'I8'"):
        load(tmp_path / "float")
    edit_config(tmp_path / "float", precision="int4")
    with pytest.raises(ModelError, match=r"config.json: precision: got 'int4', needed 'int8'"):
        load(tmp_path / "float")
    _write(tmp_path / "float", random_int8(SMALL))
    with pytest.raises(ModelError, match="precision: got 'int4'"):
        load(tmp_path / "float")


def test_unknown_types_in_the_file_are_refused(tmp_path: Path) -> None:
    random_int8_model(SMALL).save(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes().replace(b'"I32"', b'"U32"', 1))
    edit_config(tmp_path, sha256=None)
    with pytest.raises(ModelError, match="has dtype 'U32', needed is 'I32'"):
        load(tmp_path)


def _write(path: Path, tensors: Tensors) -> None:
    (path / "model.safetensors").write_bytes(tensors_file.encode(tensors))
    edit_config(path, sha256=None)
