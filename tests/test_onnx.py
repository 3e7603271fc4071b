"""ONNX files: valid by the ONNX project's own checker, and ONNX Runtime computes what they mean."""

import json
from typing import Any

import numpy as np
import pytest

from mobilenet.arch import Network, v1, v2
from mobilenet.export.onnx import onnx
from mobilenet.model import Model
from mobilenet.photos.preprocessing import Preprocessing
from mobilenet.reference import forward, softmax, tolerance
from model_makers import random_model
from small_members import random_pixels, small_members

EPSILON = float(np.finfo(np.float32).eps)
MEMBERS = small_members()


def made(network: Network, **parts: Any) -> Model:
    mean, std = ((100.0, 110.0, 120.0), (50.0, 60.0, 55.5)) if network.channels == 3 else ((100.0,), (50.0,))
    preprocessing = Preprocessing(network.height, network.width, network.channels, mean=mean, std=std)
    return random_model(network, 1, preprocessing=preprocessing, **parts)


def session(data: bytes) -> Any:
    runtime = pytest.importorskip("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    return runtime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def run(data: bytes, inputs: np.ndarray) -> np.ndarray:
    """Returns ONNX Runtime's outputs, feature maps as [N, height, width, channels]."""
    opened = session(data)
    found = np.asarray(opened.run(None, {opened.get_inputs()[0].name: inputs})[0])
    return found.transpose(0, 2, 3, 1) if found.ndim == 4 else found


def scaled(model: Model, pixels: np.ndarray) -> np.ndarray:
    mean, std = (np.array(part, np.float32) for part in (model.preprocessing.mean, model.preprocessing.std))
    return ((pixels - mean) / std).astype(np.float32).transpose(0, 3, 1, 2)


@pytest.mark.parametrize("index", range(0, len(MEMBERS), 3))
def test_onnx_runtime_computes_the_model(index: int) -> None:
    """The batch is free, and pixels may be scaled in the graph."""
    model = made(MEMBERS[index])
    pixels = random_pixels(model.network, 2).astype(np.uint8)
    scaling = model.preprocessing.mean, model.preprocessing.std
    expected = forward(model.network, model.tensors, pixels, scaling=scaling)
    allowed = tolerance(model.network, model.tensors, pixels, EPSILON, scaling=scaling)
    in_graph = index % 2 == 0
    found = run(onnx(model, pixels=in_graph), pixels if in_graph else scaled(model, pixels))
    assert found.shape == expected.shape
    assert (np.abs(found - expected) <= allowed).all(), float((np.abs(found - expected) - allowed).max())


def test_softmax_is_in_the_graph_where_it_is_asked_for() -> None:
    model = made(v2(0.1, 32, 5))
    pixels = random_pixels(model.network, 2).astype(np.uint8)
    scaling = model.preprocessing.mean, model.preprocessing.std
    expected = softmax(forward(model.network, model.tensors, pixels, scaling=scaling))
    assert np.abs(run(onnx(model, softmax=True), scaled(model, pixels)) - expected).max() < 1e-4
    assert session(onnx(model, softmax=True)).get_outputs()[0].name == "probabilities"
    headless = made(v2(0.1, 32, 5, include_top=False))
    assert session(onnx(headless, softmax=True)).get_outputs()[0].name == "features"


@pytest.mark.parametrize("network", [v1(0.1, (33, 45), 3), v2(0.1, 32, 3), v2(0.1, 32, 3, include_top=False)])
@pytest.mark.parametrize("pixels", [False, True])
def test_the_file_is_valid_by_onnx_own_checker(network: Network, pixels: bool) -> None:
    checker = pytest.importorskip("onnx")
    loaded = checker.load_from_string(onnx(made(network), pixels=pixels, softmax=True))
    checker.checker.check_model(loaded, full_check=True)
    shape = [side.dim_param or side.dim_value for side in loaded.graph.input[0].type.tensor_type.shape.dim]
    height, width, channels = network.input
    assert shape == (["N", height, width, channels] if pixels else ["N", channels, height, width])
    assert [opset.version for opset in loaded.opset_import] == [13]
    assert loaded.ir_version == 7


def test_labels_and_preprocessing_travel() -> None:
    model = made(v1(0.1, 32, 2), labels=("Fuß", "a b"))
    facts = session(onnx(model)).get_modelmeta().custom_metadata_map
    assert json.loads(facts["labels"]) == ["Fuß", "a b"]
    assert Preprocessing.from_dict(json.loads(facts["preprocessing"])) == model.preprocessing
    assert facts["network"] == str(model.network)


def test_the_same_model_gives_the_same_bytes() -> None:
    assert onnx(made(v1(0.1, 32, 3))) == onnx(made(v1(0.1, 32, 3)))
