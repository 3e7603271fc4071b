"""int8 models in other runtimes: ONNX Runtime and LiteRT compute what `integer` says, mostly to the last bit."""

import importlib
import importlib.util
import json
import os
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import pytest
from PIL import Image

import mobilenet
from int8_makers import random_bytes, random_int8_model
from mobilenet import integer, quantized
from mobilenet.arch import Network, conventions, v1, v2
from mobilenet.cli import main
from mobilenet.errors import GateError, ModelError
from mobilenet.export import int8
from mobilenet.export.onnx import onnx
from mobilenet.export.tflite import tflite
from mobilenet.formats import tflite_graph
from mobilenet.formats.tflite_schema import Op, Type
from mobilenet.model import Model
from mobilenet.photos import pixels
from mobilenet.photos.preprocessing import Preprocessing
from mobilenet.quantization.quantize import quantize
from mobilenet.quantization.sweep import Choices
from mobilenet.quantized import Rescale
from model_makers import random_model, random_pixels

RUNTIMES = {"onnx": "onnxruntime", "tflite": "ai_edge_litert"}
FORMATS = pytest.mark.parametrize(
    "format",
    [
        pytest.param(name, marks=pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=package))
        for name, package in RUNTIMES.items()
    ],
)
NETWORKS = (
    v1(0.1, (33, 40), 3),
    v1(0.25, 32, 5, channels=1, conventions="mlperf_tiny"),
    v1(0.15, (37, 34), 4, conventions="notes"),
    v1(0.25, 32, include_top=False, pooling="max"),
    v1(0.1, (34, 40), 6, separable=False, downsampling=8),
    v2(0.25, 33, 10),
    v2(0.1, (45, 32), 7, conventions="torchvision"),
    v2(0.35, (40, 33), include_top=False, downsampling=16, conventions="keras"),
    v2(0.2, 32, 3, channels=4, conventions=conventions("v2", "paper", padding="bottom_right")),
    v2(0.2, 32, include_top=False, pooling="avg"),
)


def quantised(network: Network, seed: int = 1, rescale: Rescale = "full") -> Model:
    """Returns random float weights, quantised on random photos; three channels have three zero points."""
    mean, std = ((100.0, 110.0, 120.0), (50.0, 60.0, 55.5)) if network.channels == 3 else ((100.0,), (50.0,))
    preprocessing = Preprocessing(network.height, network.width, network.channels, mean=mean, std=std)
    model = random_model(network, seed, preprocessing=preprocessing)
    return quantize(model, random_pixels(network, 4), Choices("minmax", compensate=False, rescale=rescale)).model


def run(model: Model, format: str, photos: np.ndarray, **options: Any) -> np.ndarray:
    """Returns the runtime's outputs, feature maps as [N, height, width, channels]; one thread."""
    if format == "onnx":
        import onnxruntime

        choices = onnxruntime.SessionOptions()
        choices.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(onnx(model, **options), choices, providers=["CPUExecutionProvider"])
        source = photos if options.get("pixels") else photos.transpose(0, 3, 1, 2)
        found = np.asarray(session.run(None, {session.get_inputs()[0].name: source})[0])
        return found.transpose(0, 2, 3, 1) if found.ndim == 4 else found
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=tflite(model, **options), num_threads=1)
    interpreter.allocate_tensors()
    outputs = []
    for photo in photos:
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], photo[None])
        interpreter.invoke()
        outputs.append(interpreter.get_tensor(interpreter.get_output_details()[0]["index"])[0].copy())
    return np.stack(outputs)


def consistent(model: Model) -> Model:
    """Returns a random int8 model with the scale that its multiplier says where its outputs are those of a pooling."""
    last = int8.quantised(model).parts[-1]
    if last.output:
        model.tensors[f"{last.layer.name}.scale"] = np.array([last.output.scale], np.float32)
    return model


@FORMATS
@pytest.mark.parametrize("network", NETWORKS, ids=str)
@pytest.mark.parametrize("make", [partial(quantised, rescale="float"), random_int8_model], ids=["quantised", "random"])
def test_the_runtime_computes_the_model(format: str, network: Network, make: Any) -> None:
    """Random int8 models have zero points and clamps anywhere, quantised ones as they come; both round otherwise."""
    model = consistent(make(network))
    photos = random_bytes(network, 2)
    expected, allowed = integer.forward(network, model.tensors, photos), int8.tolerance(model, photos)
    found = run(model, format, photos)
    assert found.shape == expected.shape
    assert (np.abs(found - expected) <= allowed).all(), float((np.abs(found - expected) / allowed).max())


@FORMATS
@pytest.mark.parametrize("network", NETWORKS, ids=str)
@pytest.mark.parametrize("rescale", ["float", "full"])
def test_the_runtime_gives_the_same_bits(format: str, network: Network, rescale: Rescale) -> None:
    """With "float" shortcuts are added to sums that are not rounded."""
    model = quantised(network, rescale=rescale)
    module = importlib.import_module(f"mobilenet.export.{format}")
    assert module.exact(model) == (rescale == "full" or not any(layer.adds for layer in network.layers))
    if module.exact(model):
        photos = np.concatenate([random_bytes(network, 3), random_pixels(network, 2)])
        expected = integer.forward(network, model.tensors, photos)
        assert (run(model, format, photos) == expected).all()
        assert len(np.unique(expected)) > 3


@FORMATS
@pytest.mark.parametrize("size", [(128, 224), (192, 320)], ids=str)
def test_a_pooling_of_any_size_gives_the_same_bits(format: str, size: tuple[int, int]) -> None:
    """Of 28 and 60 pixels: no scales make all ways to divide by these the same, but those of two runtimes are."""
    model = quantised(v1(0.1, size, 10), rescale="full")
    photos = random_bytes(model.network, 2)
    assert importlib.import_module(f"mobilenet.export.{format}").exact(model)
    assert (run(model, format, photos) == integer.forward(model.network, model.tensors, photos)).all()


@FORMATS
def test_a_v2_quantised_without_options_is_exported_bit_for_bit(
    format: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = v2(0.35, (40, 48), 10)
    assert any(layer.adds for layer in network.layers)
    (tmp_path / "photos").mkdir()
    for index, photo in enumerate(random_pixels(network, 6)):
        Image.fromarray(photo).save(tmp_path / "photos" / f"{index}.png")
    random_model(network).save(tmp_path / "float")
    model, file = tmp_path / "int8", tmp_path / f"x.{format}"
    assert main(["quantize", str(tmp_path / "float"), "--photos", str(tmp_path / "photos"), "-o", str(model)]) == 0
    capsys.readouterr()
    assert main(["export", str(model), "-o", str(file)]) == 0
    told = capsys.readouterr().out
    assert "the model's outputs, to the last bit" in told
    assert "not bit for bit" not in told
    photos = np.concatenate([random_bytes(network, 3), random_pixels(network, 2)])
    for made in (mobilenet.load(model), random_model(network).quantize(random_pixels(network, 4))):
        assert (run(made, format, photos) == integer.forward(network, made.tensors, photos)).all()


@FORMATS
def test_the_command_says_what_is_not_bit_for_bit_and_what_would_be(
    format: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quantised(NETWORKS[5], rescale="float").save(tmp_path / "float")
    odd = quantised(v2(0.25, 32, 10))
    odd.tensors["block3.expand.high"][:] = 201
    odd.save(tmp_path / "odd")
    quantised(NETWORKS[0], rescale="float").save(tmp_path / "v1")
    for name, reason in {"float": "before they add a shortcut", "odd": "no scales of this format", "v1": ""}.items():
        for check in ([], ["--no-check"]):
            assert main(["export", str(tmp_path / name), "-o", str(tmp_path / f"x.{format}"), *check]) == 0
            told = capsys.readouterr().out
            assert reason in told
            assert ("not bit for bit" in told) == bool(reason)
            assert ("makes with 'full', its default" in told) == (name == "float")


@pytest.mark.parametrize("rescale", ["float", "full"])
@pytest.mark.parametrize("network", [network for network in NETWORKS if network.include_top], ids=str)
def test_the_tolerance_is_small_beside_what_tells_classes_apart(network: Network, rescale: Rescale) -> None:
    model = quantised(network, rescale=rescale)
    photos = random_bytes(network, 1)
    expected = integer.forward(network, model.tensors, photos)
    assert 0 < int8.tolerance(model, photos).max() < 0.5 * expected.std()


def test_scales_give_the_multipliers_and_sums_ahead_of_a_shortcut_have_room() -> None:
    model = quantised(v2(0.25, 33, 10), rescale="float")
    parts, border, true = int8.quantised(model)
    assert border is not None
    assert true is None
    for part in parts:
        name = part.layer.name
        if part.layer.kind != "average_pool":
            multiplier = (
                np.float32(part.source.scale) * part.scales / np.float32(part.output.scale if part.output else 1)
            )
            expected = model.tensors[f"{name}.multiplier"]
            dead = quantized.largest_sums(part.layer, model.tensors) * expected < 0.5
            assert np.allclose(multiplier[~dead], expected[~dead], rtol=0 if part.exact else 1e-6, atol=0)
        if part.output:
            assert 0.5 < part.output.scale / float(model.tensors[f"{name}.scale"][0]) < 2
        if part.sums and part.added and part.output:
            held = [part.sums.scale * (end - part.sums.zero) for end in (0, 255)]
            ends = [part.output.scale * (end - part.output.zero) for end in (0, 255)]
            added = [part.added.scale * (end - part.added.zero) for end in (0, 255)]
            assert held[0] - part.sums.scale <= ends[0] - added[1]
            assert held[1] + part.sums.scale >= ends[1] - added[0]
    assert [part.sums is not None for part in parts] == [layer.adds is not None for layer in model.network.layers]


def test_channels_that_give_zero_have_scales_that_runtimes_take() -> None:
    model = random_model(v1(0.25, 32, 3))
    model.tensors["block2.pointwise.gamma"][:5] = 0
    model.tensors["block2.pointwise.beta"][:5] = 0
    made = quantize(model, random_pixels(model.network, 2), Choices("minmax", compensate=False)).model
    part = next(part for part in int8.quantised(made)[0] if part.layer.name == "block2.pointwise")
    assert part.output
    assert (part.source.scale * part.scales / part.output.scale > 2.0**-32).all(), "XNNPACK's least"
    assert not part.weight[:, :5].any()


def test_onnx_runtime_makes_integer_layers_of_all(tmp_path: Path) -> None:
    """Named as ONNX Runtime writes its optimised graph; a layer left in float32 would be slow and not be told."""
    runtime, checker = pytest.importorskip("onnxruntime"), pytest.importorskip("onnx")
    cases: list[tuple[Network, Rescale]] = [
        (v2(0.25, 64, 10, conventions="keras"), "float"),
        (v2(0.35, 64, 10, conventions="keras"), "full"),
        (v1(0.25, 32, 3), "full"),
    ]
    for network, rescale in cases:
        data = onnx(quantised(network, rescale=rescale), pixels=True)
        checker.checker.check_model(checker.load_from_string(data), full_check=True)
        options = runtime.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
        options.log_severity_level = 3
        runtime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        kinds = Counter(node.op_type for node in checker.load(options.optimized_model_filepath).graph.node)
        assert {"QLinearConv", "QGemm"} < kinds.keys()
        assert not kinds.keys() & {"Conv", "FusedConv", "Gemm", "Clip", "Add", "GlobalAveragePool"}
        assert kinds["DequantizeLinear"] == (rescale == "full"), "of the logits"


@pytest.mark.parametrize("rescale", ["float", "full"])
def test_tflite_is_int8_but_for_logits_that_are_not(rescale: Rescale) -> None:
    model = quantised(v2(0.25, 33, 10), rescale=rescale)
    graph = tflite_graph.read(tflite(model))
    for operator in graph.operators:
        kinds = [graph.tensors[index].type for index in (*operator.inputs[:2], *operator.outputs)]
        if operator.op in (Op.CONV_2D, Op.DEPTHWISE_CONV_2D, Op.ADD):
            assert kinds == [Type.INT8] * 3
    dense = next(operator for operator in graph.operators if operator.op == Op.FULLY_CONNECTED)
    kinds = [Type.INT8, Type.INT8, Type.INT32, Type.INT8] if rescale == "full" else [Type.FLOAT32] * 4
    assert [graph.tensors[index].type for index in (*dense.inputs, *dense.outputs)] == kinds
    stored = next(tensor for tensor in graph.tensors if tensor.shape == (10, model.network.layers[-1].input.channels))
    assert stored.type == Type.INT8
    source = graph.tensors[graph.inputs[0]]
    assert (source.type, source.quantization.scale, source.quantization.zero_point) == (Type.UINT8, 1, 100)  # type: ignore[union-attr]


@FORMATS
def test_pixels_and_softmax(format: str) -> None:
    model = quantised(v2(0.1, 32, 5))
    photos = random_bytes(model.network, 2)
    plain = run(model, format, photos)
    powers = np.exp(plain - plain.max(-1, keepdims=True))
    found = run(model, format, photos, softmax=True)
    assert np.allclose(found, powers / powers.sum(-1, keepdims=True), atol=1e-5)
    if format == "onnx":
        assert (run(model, format, photos, pixels=True) == plain).all()


@FORMATS
def test_the_command_writes_what_its_runtime_agrees_with(
    format: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quantised(NETWORKS[0]).save(tmp_path / "model")
    path = tmp_path / f"x.{format}"
    assert main(["export", str(tmp_path / "model"), "-o", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["files"] == {str(path): path.stat().st_size}


@FORMATS
@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("block12.pointwise.multiplier", lambda tensor: tensor * np.float32(2)),
        ("block9.depthwise.bias", lambda tensor: tensor[::-1]),
        ("pool.multiplier", lambda tensor: tensor * np.float32(1.5)),
        ("stem.weight", lambda tensor: tensor ^ (np.arange(tensor.size) == 7).reshape(tensor.shape)),
        ("classifier.multiplier", lambda tensor: np.nextafter(tensor, np.float32(1))),
    ],
)
@pytest.mark.parametrize("rescale", ["float", "full"])
def test_a_file_of_other_numbers_is_not_written(
    format: str, part: str, change: Any, rescale: Rescale, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits in 8 bits do not show the last bit of their multiplier."""
    if part == "classifier.multiplier" and rescale == "full":
        change = lambda tensor: tensor * np.float32(1.1)  # noqa: E731
    model = quantised(NETWORKS[1], rescale=rescale)
    module = importlib.import_module(f"mobilenet.export.{format}")

    def wrong(given: Model, **options: bool) -> int8.Quantised:
        changed = given.tensors | {part: change(given.tensors[part]).astype(given.tensors[part].dtype)}
        other = Model(given.network, changed, None, given.preprocessing, precision="int8", rescale=rescale)
        return int8.quantised(other, **options)

    monkeypatch.setattr(module, "exact", lambda model: True)
    monkeypatch.setattr(module, "quantised", wrong)
    with pytest.raises(GateError, match="the same bits; nothing was written"):
        mobilenet.export(model, tmp_path / f"x.{format}")
    assert not list(tmp_path.iterdir())


@FORMATS
def test_a_multiplier_that_no_scale_gives_is_not_promised(format: str) -> None:
    """A clamp of 6 below 255 says what the scale is, so that it is no power of two."""
    model = quantised(v2(0.25, 32, 10), rescale="full")
    module = importlib.import_module(f"mobilenet.export.{format}")
    assert module.exact(model)
    model.tensors["block3.expand.high"][:] = 201
    assert not module.exact(model)


def test_weights_of_nine_bits_are_not_exported(tmp_path: Path) -> None:
    model = random_int8_model(NETWORKS[0], rescale="full")
    with pytest.raises(ModelError, match=r"layer '\S+': weights reach \d+ once their zero point"):
        mobilenet.export(model, tmp_path / "x.onnx")


def test_a_file_of_int8_logits_is_read_back_as_the_same_model(tmp_path: Path) -> None:
    model = quantised(v2(0.25, 33, 10, channels=1), rescale="full")
    (tmp_path / "x.tflite").write_bytes(tflite(model))
    back = mobilenet.convert(tmp_path / "x.tflite", rescale="full")
    photos = random_bytes(model.network, 3)
    found = integer.forward(back.network, back.tensors, photos)
    assert (found == integer.forward(model.network, model.tensors, photos)).all()


@pytest.mark.parametrize(
    ("network", "rescale"),
    [
        (v1(0.25, (64, 48), 10), "float"),
        (v1(0.25, (64, 48), 10), "full"),
        (v1(0.1, (33, 40), 3), "full"),
        (v1(0.1, (34, 40), 6, separable=False, downsampling=8), "full"),
        (v2(0.35, (96, 64), 10), "full"),
        (v2(0.5, 48, 5, downsampling=16, conventions="torchvision"), "full"),
    ],
    ids=str,
)
def test_openvino_gives_the_same_bits(network: Network, rescale: Rescale, tmp_path: Path) -> None:
    """It multiplies before it adds the bias, in float32, and adds a shortcut to sums that it has not rounded.

    The third has logits that are never negative, the fourth a mean of 25 pixels that would get the ratio 7/4.
    """
    openvino = pytest.importorskip("openvino")
    model = quantised(network, rescale=rescale)
    (tmp_path / "x.onnx").write_bytes(onnx(model))
    compiled = openvino.Core().compile_model(tmp_path / "x.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    photos = np.concatenate([random_bytes(network, 4), random_pixels(network, 4)])
    found = np.concatenate([compiled([photo[None].transpose(0, 3, 1, 2)])[0] for photo in photos])
    assert (found == integer.forward(network, model.tensors, photos)).all()


@pytest.mark.skipif("MOBILENET_DATA" not in os.environ, reason="MOBILENET_DATA")
@FORMATS
@pytest.mark.parametrize("rescale", ["float", "full"])
def test_real_photos_give_the_same_bits(format: str, rescale: Rescale, tmp_path: Path) -> None:
    """A real model, all 250 photos; benchmarks/runtimes.py has more models and OpenVINO."""
    data = Path(os.environ["MOBILENET_DATA"])
    with ZipFile(data / "photos.zip") as archive:
        archive.extractall(tmp_path)
    source = mobilenet.convert(data / "models/vww_96_float.tflite")
    photos = np.stack([pixels(path, source.preprocessing) for path in sorted(tmp_path.glob("photos/*"))])
    model = source.quantize(photos[:32], rescale=rescale)
    assert (run(model, format, photos) == integer.forward(model.network, model.tensors, photos)).all()


def test_machine_code_of_bytes_throughout_is_exported(tmp_path: Path) -> None:
    made = mobilenet.export(quantised(v2(0.1, (33, 40), 3), rescale="full"), tmp_path / "x", "native")
    assert "bit by bit" in made.checked
