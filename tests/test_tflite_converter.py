"""Files as TensorFlow's converter writes them: float16, and int8 with other numbers at both ends, shapes computed.

Three stand in tests/converted with the outputs of TFLite's reference kernels, made by make_tflite_files.py.
"""

import dataclasses
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mobilenet
from integer_tflite import Maker, Options8
from mobilenet import reference
from mobilenet.arch import v1, v2
from mobilenet.convert.tflite import model_of
from mobilenet.convert.tflite_core import core
from mobilenet.errors import ModelError, UsageError
from mobilenet.export.tflite import tflite
from mobilenet.fixed_point import softmax
from mobilenet.formats import tflite_graph
from mobilenet.formats.tflite_graph import Graph, Operator, Quantization
from mobilenet.formats.tflite_schema import Activation, Op, Type
from mobilenet.integer import outputs
from model_makers import random_model, same_tensors
from torch_rule import ruled_pixels

FOLDER = Path(__file__).with_name("converted")
NOTED = json.loads((FOLDER / "outputs.json").read_text())


def converted(name: str) -> bytes:
    return gzip.decompress((FOLDER / f"{name}.tflite.gz").read_bytes())


@pytest.mark.parametrize("ends", ["float32", "uint8"])
def test_an_int8_network_with_other_ends_gives_the_reference_kernels_bytes(ends: str) -> None:
    model = model_of(converted(f"int8_{ends}_ends"))
    assert (model.precision, model.rescale, model.network.alpha) == ("int8", "fixed", 0.1)
    last = model.network.layers[-1].name
    logits = outputs(model.network, model.tensors, ruled_pixels(64, 64))[last].reshape(2, -1)
    found = softmax(logits, float(model.tensors[f"{last}.scale"][0]))
    noted = np.array(NOTED[f"int8_{ends}_ends"])
    assert (found == (noted * 256 if ends == "float32" else noted)).all()


def test_float16_weights_give_the_reference_kernels_outputs() -> None:
    model = model_of(converted("float16"))
    pixels = ruled_pixels(64, 64)
    scaling = model.preprocessing.mean, model.preprocessing.std
    logits = reference.forward(model.network, model.tensors, pixels, scaling=scaling)
    tolerance = reference.tolerance(
        model.network, model.tensors, pixels, float(np.finfo(np.float32).eps), scaling=scaling
    )
    # A probability is off by at most that share which its logit and the largest are off by, and by its own rounding.
    allowed = 2 * tolerance.max() + 8 * float(np.finfo(np.float32).eps)
    expected = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    assert (np.abs(np.array(NOTED["float16"]) - expected) <= allowed).all()


def test_another_resolution_is_taken_or_refused_never_passed_over(tmp_path: Path) -> None:
    (tmp_path / "half.tflite").write_bytes(converted("float16"))
    model = mobilenet.convert(tmp_path / "half.tflite", resolution=(96, 48))
    assert model.network.input == (96, 48, 3)
    assert (model.preprocessing.height, model.preprocessing.width) == (96, 48)
    (tmp_path / "whole.tflite").write_bytes(converted("int8_uint8_ends"))
    assert mobilenet.convert(tmp_path / "whole.tflite", resolution=64).network.input == (64, 64, 3)
    with pytest.raises(UsageError, match="resolution: got 32, but this network of whole numbers is one for 64x64"):
        mobilenet.convert(tmp_path / "whole.tflite", resolution=32)


# -------------------------------------------------------------------------------------------- what does not fit


def with_ends(first: Type, last: Type, kind: Type = Type.INT8, *, scale: float = 1 / 255, zero: int = 0) -> Graph:
    """Returns a graph of whole numbers between a first QUANTIZE and a last QUANTIZE or DEQUANTIZE."""
    graph = tflite_graph.read(Maker(v1(0.25, 32, 5), Options8(kind)).data)
    source, target = graph.inputs[0], graph.outputs[0]
    less = {Type.INT8: 128}
    inner = Quantization(np.array([scale], np.float32), np.array([zero - less.get(kind, 0)]), 0)
    tensors = [dataclasses.replace(t, quantization=None) if t.name == "stem.bias" else t for t in graph.tensors]
    tensors[source] = dataclasses.replace(tensors[source], quantization=inner)
    for inside, outside in ((source, first), (target, last)):
        own = tensors[inside].quantization
        assert own is not None
        moved = Quantization(own.scale, own.zero_point + less.get(kind, 0) - less.get(outside, 0), 0)
        whole = None if outside == Type.FLOAT32 else moved
        tensors.append(dataclasses.replace(tensors[inside], type=outside, quantization=whole))
    count = len(tensors)
    op = Op.DEQUANTIZE if last == Type.FLOAT32 else Op.QUANTIZE
    ends = Operator(0, Op.QUANTIZE, (count - 2,), (source,)), Operator(99, op, (target,), (count - 1,))
    operators = (ends[0], *graph.operators, ends[1])
    return Graph(tuple(tensors), operators, (count - 2,), (count - 1,))


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Callable[[Graph], Any]:
    """Reads a graph that no file has."""

    def found(graph: Graph) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(tflite_graph, "read", lambda _: graph)
            return model_of(b"")

    return found


@pytest.mark.parametrize("first", [Type.FLOAT32, Type.UINT8, Type.INT8])
@pytest.mark.parametrize("kind", [Type.INT8, Type.UINT8])
def test_ends_change_nothing(first: Type, kind: Type, read: Callable[[Graph], Any]) -> None:
    graph = with_ends(first, first, kind)
    bare = core(graph)
    model = read(graph)
    assert len(bare.operators) == len(graph.operators) - 2
    assert (model.preprocessing.mean, model.preprocessing.std) == ((0.0,), (255.0,))


def test_floats_that_are_no_usual_pixels_are_refused(read: Callable[[Graph], Any]) -> None:
    plain, other = (
        with_ends(Type.FLOAT32, Type.FLOAT32, scale=scale, zero=zero) for scale, zero in ((1, 0), (0.02, 100))
    )
    assert read(plain).preprocessing.std == (1.0,)
    with pytest.raises(
        ModelError, match=r"tensor 'image' has scale 0.02 and zero point 100 as a byte, which no pixel "
    ):
        read(other)


def put(graph: Graph, tensor: int, **changes: Any) -> Graph:
    tensors = list(graph.tensors)
    tensors[tensor] = dataclasses.replace(tensors[tensor], **changes)
    return dataclasses.replace(graph, tensors=tuple(tensors))


def test_ends_that_change_bytes_are_refused() -> None:
    graph = with_ends(Type.UINT8, Type.UINT8)
    given, shape = graph.inputs[0], (1, 32, 32, 3)
    other = Quantization(np.array([0.5], np.float32), np.array([0]), 0)
    for changes in ({"quantization": other}, {"quantization": None}):
        with pytest.raises(ModelError, match="operator 0, QUANTIZE, changes the scale: its input and output are other"):
            core(put(graph, given, **changes))
    with pytest.raises(ModelError, match=r"operator 0, QUANTIZE, makes \(1, 32, 32, 3\) of \(1, 32, 32, 4\)"):
        core(put(graph, given, shape=(1, 32, 32, 4)))
    with pytest.raises(ModelError, match="operator 0, QUANTIZE, makes"):
        core(put(graph, given, data=np.zeros(shape, np.uint8)))
    absent = dataclasses.replace(graph.operators[-1], inputs=(-1,))
    with pytest.raises(ModelError, match="operator 99, QUANTIZE, has no input"):
        core(dataclasses.replace(graph, operators=(*graph.operators[:-1], absent)))


def test_a_conversion_in_the_middle_is_refused(read: Callable[[Graph], Any]) -> None:
    graph = with_ends(Type.UINT8, Type.UINT8)
    first, *others = graph.operators
    again = Operator(1, Op.QUANTIZE, first.outputs, first.outputs)
    with pytest.raises(ModelError, match=r"operator 1, QUANTIZE .*no MobileNet has that operator"):
        read(dataclasses.replace(graph, operators=(first, again, *others)))


def test_float16_constants_are_made_float32_of_the_same_shape() -> None:
    graph = tflite_graph.read(converted("float16"))
    assert {operator.op for operator in graph.operators} >= {Op.DEQUANTIZE, Op.SHAPE, Op.STRIDED_SLICE, Op.PACK}
    assert not {operator.op for operator in core(graph).operators} & {Op.DEQUANTIZE, Op.SHAPE, Op.PACK}
    target = graph.operators[0].outputs[0]
    assert core(graph).tensors[target].data is not None
    for changes in ({"shape": (1,)}, {"type": Type.INT8}):
        with pytest.raises(ModelError, match=r"operator 0, DEQUANTIZE, makes .* of FLOAT16"):
            core(put(graph, target, **changes))


def without_pooling(graph: Graph) -> Graph:
    """Returns a graph whose classifier is a convolution of what was pooled, as of one pixel the converter has it."""
    place = next(n for n, operator in enumerate(graph.operators) if operator.op in (Op.AVERAGE_POOL_2D, Op.MEAN))
    pooling, classifier = graph.operators[place : place + 2]
    assert classifier.op == Op.CONV_2D
    classifier = dataclasses.replace(classifier, inputs=(pooling.inputs[0], *classifier.inputs[1:]))
    return dataclasses.replace(graph, operators=(*graph.operators[:place], classifier, *graph.operators[place + 2 :]))


def as_convolution(graph: Graph) -> Graph:
    """Returns a graph that ends with a fully connected layer with that as a convolution, and a RESHAPE."""
    *others, dense = graph.operators
    classes, channels = graph.tensors[dense.inputs[1]].shape
    weight = graph.tensors[dense.inputs[1]].data
    assert weight is not None
    shaped = put(graph, dense.inputs[1], shape=(classes, 1, 1, channels), data=weight.reshape(classes, 1, 1, channels))
    shaped = put(put(shaped, dense.inputs[0], shape=(1, 1, 1, channels)), dense.outputs[0], shape=(1, 1, 1, classes))
    flat = len(graph.tensors)
    tensors = (*shaped.tensors, graph.tensors[dense.outputs[0]])
    top = (
        Operator(dense.place, Op.CONV_2D, dense.inputs, dense.outputs),
        Operator(dense.place + 1, Op.RESHAPE, dense.outputs, (flat,)),
    )
    return dataclasses.replace(shaped, tensors=tensors, operators=(*others, *top), outputs=(flat,), metadata=b"")


@pytest.mark.parametrize("family", [v1, v2])
def test_a_pooling_of_one_pixel_may_be_missing(family: Any, read: Callable[[Graph], Any]) -> None:
    network = family(0.25, 32, 5)
    for kind in (Type.UINT8, Type.INT8):
        graph = tflite_graph.read(Maker(network, Options8(kind)).data)
        assert same_tensors(read(without_pooling(graph)).tensors, read(graph).tensors)
    graph = as_convolution(tflite_graph.read(tflite(random_model(network))))
    bare = without_pooling(graph)
    assert len(bare.operators) == len(graph.operators) - 1
    assert same_tensors(read(bare).tensors, read(graph).tensors)


def test_a_feature_map_of_one_pixel_is_not_pooled(read: Callable[[Graph], Any]) -> None:
    graph = tflite_graph.read(tflite(random_model(v1(0.25, 32, include_top=False))))
    channels = graph.tensors[graph.outputs[0]].shape[-1]
    flat = dataclasses.replace(graph.tensors[graph.outputs[0]], shape=(1, channels))
    reshape = Operator(99, Op.RESHAPE, graph.outputs, (len(graph.tensors),))
    flattened = Graph((*graph.tensors, flat), (*graph.operators, reshape), graph.inputs, reshape.outputs)
    assert read(flattened).network == read(dataclasses.replace(graph, metadata=b"")).network


def test_only_the_pooling_of_one_pixel_may_be_missing(read: Callable[[Graph], Any]) -> None:
    graph = tflite_graph.read(Maker(v1(0.25, 64, 5), Options8(Type.INT8)).data)
    with pytest.raises(ModelError, match="CONV_2D 'classifier': its result has shape"):
        read(without_pooling(graph))
    *others, last, squeeze, softmax = without_pooling(
        tflite_graph.read(Maker(v1(0.25, 32, 5), Options8()).data)
    ).operators
    for changes in ({"activation": Activation.RELU}, {"op": Op.DEPTHWISE_CONV_2D}, {"inputs": (-1,)}, {"inputs": ()}):
        broken = (*others, dataclasses.replace(last, **changes), squeeze, softmax)
        with pytest.raises(ModelError, match="not a MobileNet"):
            read(dataclasses.replace(graph, operators=broken))


def test_weights_alone_in_int8_are_refused_with_the_reason() -> None:
    """Their outputs depend on how a runtime rounds activations while it runs."""
    graph = tflite_graph.read(Maker(v2(0.35, 32, 5), Options8(Type.INT8)).data)
    kinds = [dataclasses.replace(t, type=Type.FLOAT32) if t.data is None else t for t in graph.tensors]
    from mobilenet.convert.tflite import _Chain

    with pytest.raises(ModelError, match="its weight is int8, needed is float32: only its weights are quantised"):
        _Chain(dataclasses.replace(graph, tensors=tuple(kinds)))
