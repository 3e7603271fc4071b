"""TFLite files: read back they are the model that was written, and LiteRT computes what it means."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mobilenet
from mobilenet import photos
from mobilenet.arch import Network, v1, v2
from mobilenet.convert.tflite import model_of, read
from mobilenet.errors import ModelError
from mobilenet.export.tflite import tflite
from mobilenet.formats import tflite_schema
from mobilenet.formats.flatbuffer import decode
from mobilenet.model import Model
from mobilenet.photos.preprocessing import Preprocessing
from mobilenet.reference import UNSCALED, forward, softmax, tolerance
from mobilenet.weights import fold
from model_makers import random_model, same_tensors
from small_members import random_pixels, small_members

EPSILON = float(np.finfo(np.float32).eps)
MEMBERS = small_members()
DATA = os.environ.get("MOBILENET_DATA")
real = pytest.mark.skipif(DATA is None, reason="MOBILENET_DATA is not set")


def made(network: Network, **parts: Any) -> Model:
    preprocessing = Preprocessing(network.height, network.width, network.channels, mean=(100.0,), std=(50.0,))
    return random_model(network, 1, preprocessing=preprocessing, **parts)


def litert(data: bytes, inputs: np.ndarray) -> np.ndarray:
    """Returns LiteRT's outputs of a batch, one by one, on one thread."""
    interpreter = pytest.importorskip("ai_edge_litert.interpreter").Interpreter(model_content=data, num_threads=1)
    interpreter.allocate_tensors()
    source, target = (
        found[0]["index"] for found in (interpreter.get_input_details(), interpreter.get_output_details())
    )
    outputs = []
    for image in inputs:
        interpreter.set_tensor(source, image[None])
        interpreter.invoke()
        outputs.append(interpreter.get_tensor(target)[0].copy())
    return np.stack(outputs)


def scaled(model: Model, pixels: np.ndarray) -> np.ndarray:
    mean, std = (np.array(part) for part in (model.preprocessing.mean, model.preprocessing.std))
    return np.asarray((pixels - mean) / std, np.float32)


@pytest.mark.parametrize("network", MEMBERS, ids=range(len(MEMBERS)))
def test_what_is_written_is_read_back(network: Network) -> None:
    """Layer by layer the same network, and weights that fold to the very numbers that were written."""
    model = made(network)
    back = model_of(tflite(model, softmax=network.classes % 2 == 0))
    assert back.network.layers == tuple(
        layer if layer.kind in ("average_pool", "max_pool", "dense") else changed(layer) for layer in network.layers
    )
    assert same_tensors(fold(back.network, back.tensors), fold(network, model.tensors))
    assert back.preprocessing == model.preprocessing
    assert back.labels == model.labels


def changed(layer: Any) -> Any:
    """Returns the layer as a file without the bias before batch norm has it."""
    return type(layer)(**{**{name: getattr(layer, name) for name in layer.__dataclass_fields__}, "bias": False})


@pytest.mark.parametrize("network", MEMBERS[::3], ids=range(0, len(MEMBERS), 3))
def test_litert_computes_the_model(network: Network) -> None:
    model = made(network)
    inputs = scaled(model, random_pixels(network, 1))
    found = litert(tflite(model), inputs)
    expected = forward(network, model.tensors, inputs, scaling=UNSCALED)
    assert found.shape == expected.shape
    assert (np.abs(found - expected) <= tolerance(network, model.tensors, inputs, EPSILON, scaling=UNSCALED)).all()


def test_softmax_is_in_the_graph_where_it_is_asked_for() -> None:
    model = made(v2(0.1, 32, 5))
    inputs = scaled(model, random_pixels(model.network, 2))
    expected = softmax(forward(model.network, model.tensors, inputs, scaling=UNSCALED))
    found = litert(tflite(model, softmax=True), inputs)
    assert np.abs(found - expected).max() < 1e-4
    assert np.abs(found.sum(-1) - 1).max() < 1e-5


def test_the_same_model_gives_the_same_bytes() -> None:
    assert tflite(made(v1(0.1, 32, 3))) == tflite(made(v1(0.1, 32, 3)))


def test_labels_and_all_of_the_preprocessing_travel() -> None:
    network = v1(0.1, (32, 40), 2)
    preprocessing = Preprocessing(32, 40, 3, 0.5, "squash", "bicubic", (123.675, 116.28, 103.53), (58.395, 57.12, 57.4))
    back = model_of(tflite(random_model(network, labels=("Fuß", "a b"), preprocessing=preprocessing)))
    assert back.labels == ("Fuß", "a b")
    assert back.preprocessing == preprocessing
    assert "in the file" in back.notes["imported"]["pixel scaling"]


def test_a_file_is_a_source_with_the_users_options(tmp_path: Path) -> None:
    model, path = random_model(v2(0.1, 32, 2), labels=("cat", "dog")), tmp_path / "any.name"
    path.write_bytes(tflite(model))
    found = mobilenet.convert(path)
    assert found.network.layers == model.network.layers
    assert (found.labels, found.preprocessing) == (model.labels, model.preprocessing)
    assert same_tensors(fold(found.network, found.tensors), fold(model.network, model.tensors))
    assert found.notes["imported"] == {
        "from": "TFLite", "file": "any.name", "format": "tflite", "pixel scaling": "in the file"
    }  # fmt: skip
    found.save(tmp_path / "model")
    changed = mobilenet.convert(path, scaling="unit", labels=["a", "b"])
    assert changed.labels == ("a", "b")
    assert (changed.network.conventions.scaling, changed.preprocessing.std) == ("unit", (255.0,))
    assert changed.notes["imported"]["pixel scaling"] == "unit, as asked for"
    below = mobilenet.convert(path, include_top=False).network
    assert below.layers == model.network.replace(include_top=False).layers
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ModelError, match=r"any\.name: "):
        mobilenet.convert(path)


@pytest.mark.parametrize(
    ("network", "said"),
    [
        (v1(0.75, 64, 1001, conventions="slim"), {"family": "v1", "alpha": 0.75, "classes": 1001}),
        (v1(0.25, 96, 2, conventions="mlperf_tiny"), {"alpha": 0.25, "classes": 2}),
        (v2(1.4, 32, 7, conventions="torchvision"), {"family": "v2", "alpha": 1.4}),
        (v2(0.35, 40, 7, conventions="keras"), {"alpha": 0.35, "downsampling": 32}),
        (v1(0.3333, 32, 7), {"family": "v1"}),
        (v1(0.25, 32, 7, conventions="timm_100h"), {"family": "v1"}),
        (v2(1.1, 32, 7, conventions="timm_110d"), {"alpha": 1.1}),
        (v2(1.2, 32, 7, conventions="timm_120d"), {"alpha": 1.2}),
        (v2(0.25, 32, 7, conventions="huggingface"), {"alpha": 0.25}),
        (v2(0.5, 32, 3, downsampling=8, include_top=False, pooling="max"), {"downsampling": 8, "pooling": "max"}),
    ],
)  # fmt: skip
def test_the_network_is_told_by_the_file_alone(network: Network, said: dict[str, Any]) -> None:
    back = model_of(tflite(mobilenet.create(network))).network
    assert {name: getattr(back, name) for name in said} == said
    conv = network.conventions
    assert back.conventions.activation == conv.activation
    assert back.conventions.padding == conv.padding
    assert (back.conventions.depth, back.conventions.head_conv) == (conv.depth, conv.head_conv)
    assert [layer.adds for layer in back.layers] == [layer.adds for layer in network.layers]
    assert back.conventions.scaling == conv.scaling
    assert back.conventions.background == (network.classes == 1001)


# ---------------------------------------------------------------------------------------------------- what is refused


def edited(model: Model, **edit: Any) -> bytes:
    """Returns a model's file with a word of the options of an operator changed: `operator`, `field`, `value`."""
    data = bytearray(tflite(model))
    root = decode(bytes(data), tflite_schema.IDENTIFIER)
    subgraph = root.tables(tflite_schema.Model.SUBGRAPHS, 1)[0]
    operator = subgraph.tables(tflite_schema.Subgraph.OPERATORS, 999)[edit["operator"]]
    table = operator if edit.get("outer") else operator.table(tflite_schema.Operator.OPTIONS)
    assert table is not None
    place = table._place(edit["field"])
    assert place is not None
    data[place] = edit["value"]
    return bytes(data)


DEEP, CONV = tflite_schema.DepthwiseConv2D, tflite_schema.Conv2D


@pytest.mark.parametrize(
    ("operator", "field", "value", "message"),
    [
        (1, DEEP.STRIDE_W, 2, "operator 1, DEPTHWISE_CONV_2D 'block0.depthwise': its dilation"),
        (1, DEEP.STRIDE_W, 0, r"operator 1 \(DEPTHWISE_CONV_2D\): \(1, 0\) is not a valid stride"),
        (1, DEEP.DEPTH_MULTIPLIER, 2, "'block0.depthwise': its depth multiplier is 2"),
        (1, DEEP.PADDING, 1, "'block0.depthwise': its result has shape"),
        (4, CONV.ACTIVATION, 0, r"not a MobileNet: layer 'block1.pointwise' has activation linear, needed is relu6"),
        (2, CONV.ACTIVATION, 9, r"operator 2 \(CONV_2D\): 9 is not a valid Activation"),
        (2, CONV.ACTIVATION, 2, r"operator 2 \(CONV_2D\): 2 is not a valid Activation"),
        (27, tflite_schema.Reducer.KEEP_DIMS, 1, None),  # the shapes say what the rest takes
    ],
)
def test_an_operator_that_does_not_fit_is_named(operator: int, field: int, value: int, message: str | None) -> None:
    data = edited(made(v1(0.25, 32, 3, conventions="slim")), operator=operator, field=field, value=value)
    if message is None:
        assert model_of(data).network.classes == 3
        return
    with pytest.raises(ModelError, match=message):
        model_of(data)


def test_other_graphs_are_not_mobilenets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Files of networks that `arch` would not lay out: made by changing the tables while the file is written."""
    from mobilenet import arch

    table = arch.V1_TABLE
    monkeypatch.setattr(arch, "V1_TABLE", (*table[:2], arch.Separable(256, 3, 2), *table[3:]))
    deeper = tflite(made(v1(0.25, 32, 3)))
    monkeypatch.setattr(arch, "V1_TABLE", (arch.Separable(96, 1, 1), *table[1:]))
    wider = tflite(made(v1(1.0, 32, 3)))
    monkeypatch.undo()
    (tmp_path / "deeper.tflite").write_bytes(deeper)
    with pytest.raises(
        ModelError,
        match=r"deeper.tflite: not a MobileNet: layer 'block\d+.depthwise' is a depthwise convolution; .* has average",
    ):
        read(tmp_path / "deeper.tflite")
    with pytest.raises(
        ModelError, match=r"layer 'block0.pointwise' has output \(16, 16, 96\), needed is \(16, 16, 64\)"
    ):
        model_of(wider)


def test_weights_that_are_not_finite_are_refused() -> None:
    model = made(v1(0.1, 32, 3))
    model.tensors["stem.beta"][0] = np.nan
    with pytest.raises(ModelError, match=r"tensor 'stem.beta' holds NaN"):
        model_of(tflite(model))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no TFL3 file"),
        (b"\x08\0\0\0TFL3", "byte"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "no TFL3 file"),
    ],
)
def test_files_of_something_else_are_refused_by_name(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "x.tflite").write_bytes(data)
    with pytest.raises(ModelError, match=f"x.tflite: .*{message}"):
        read(tmp_path / "x.tflite")
    with pytest.raises(ModelError, match="a folder"):
        read(tmp_path)


def test_a_damaged_archive_behind_the_model_is_refused() -> None:
    data = tflite(made(v1(0.1, 32, 3)))
    with pytest.raises(ModelError, match="the archive behind the model can't be read"):
        model_of(data.replace(b"0\n1\n2\n", b"0\n1\n3\n"))  # its checksum is another now
    with pytest.raises(ModelError, match="2 labels for 3 classes"):
        model_of(tflite(made(v1(0.1, 32, 2)))[:0] + with_labels(made(v1(0.1, 32, 3)), ("a", "b")))


def with_labels(model: Model, labels: tuple[str, ...]) -> bytes:
    model.__dict__["labels"] = labels
    return tflite(model)


# ------------------------------------------------------------------------------------------------------ real files


@real
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mobilenet_v1_0.25_224_float", {"family": "v1", "alpha": 0.25, "height": 224, "classes": 1001}),
        ("vww_96_float", {"family": "v1", "alpha": 0.25, "height": 96, "classes": 2}),
    ],
)
def test_real_files_give_litert_s_predictions(name: str, said: dict[str, Any]) -> None:
    path = Path(str(DATA)) / "models" / f"{name}.tflite"
    model = read(path)
    assert {field: getattr(model.network, field) for field in said} == said
    sources = [Path(str(DATA)) / photo for photo in ("cat.bmp", "sunflower.bmp", "grace_hopper.bmp")]
    pixels = np.stack([photos.pixels(source, model.preprocessing) for source in sources])
    theirs = litert(path.read_bytes(), scaled(model, pixels))
    scaling = model.preprocessing.mean, model.preprocessing.std
    logits = forward(model.network, model.tensors, pixels, scaling=scaling)
    allowed = tolerance(model.network, model.tensors, pixels, EPSILON, scaling=scaling).max(-1, keepdims=True)
    ours = softmax(logits)
    assert (np.abs(theirs - ours) <= ours * np.expm1(2 * allowed) + 4 * EPSILON).all()
    assert (theirs.argmax(-1) == ours.argmax(-1)).all()
