"""TFLite graphs as other converters write them, and such as no MobileNet has: each made by changing one of ours."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mobilenet.arch import v1, v2
from mobilenet.convert.tflite import model_of
from mobilenet.errors import ModelError
from mobilenet.export import tflite as writer
from mobilenet.export import tflite_metadata
from mobilenet.formats import tflite_graph
from mobilenet.formats import tflite_schema as schema
from mobilenet.formats.flatbuffer import Scalar, encode
from mobilenet.formats.tflite_schema import Op, Operator, Options, Tensor, Type
from mobilenet.model import Model
from mobilenet.weights import fold
from model_makers import random_model, same_tensors

Change = Callable[[Any], None]
V1, V2 = v1(0.1, 32, 3, conventions="slim"), v2(0.5, 32, 3, conventions="slim")
LAST = 28  # V1's operators: stem, 13 pairs, pooling, and then the classifier


def changed(model: Model, change: Change, metadata: bytes = b"") -> bytes:
    """Returns the model's file, without metadata unless it is given, after `change` was applied to its tables."""
    with pytest.MonkeyPatch.context() as patch:
        encoded = writer._Graph.encoded

        def edited(graph: Any, *arguments: Any) -> bytes:
            graph.operators = [dict(operator) for operator in graph.operators]
            change(graph)
            return encoded(graph, *arguments)

        patch.setattr(writer._Graph, "encoded", edited)
        patch.setattr(tflite_metadata, "encoded", lambda *_: metadata)
        patch.setattr(tflite_metadata, "pack", lambda data, _: data)
        return writer.tflite(model)


def option(index: int, **options: Any) -> Change:
    """Returns the change of an operator's options, by their fields' names with the kind in front: Conv2D__STRIDE_W."""

    def change(graph: Any) -> None:
        table = dict(graph.operators[index].get(Operator.OPTIONS, {}))
        for name, value in options.items():
            kind, _, field = name.partition("__")
            table[getattr(schema, kind)[field]] = value
        graph.operators[index][Operator.OPTIONS] = table

    return change


def inputs(index: int, *tensors: int | None) -> Change:
    """Returns the change of an operator's inputs; None keeps one."""

    def change(graph: Any) -> None:
        old = graph.operators[index][Operator.INPUTS].tolist()
        new = [had if tensor is None else tensor for had, tensor in zip(old, tensors, strict=False)]
        graph.operators[index][Operator.INPUTS] = np.array(new + list(tensors[len(old) :]), np.int32)

    return change


def operation(index: int, op: Op | int, options: Options | None = None) -> Change:
    """Returns the change of which operator it is; without options it has none."""

    def change(graph: Any) -> None:
        graph.codes.append(op)
        graph.operators[index][Operator.OPCODE_INDEX] = Scalar("I", len(graph.codes) - 1)
        if options is None:
            graph.operators[index].pop(Operator.OPTIONS, None)
        else:
            graph.operators[index][Operator.OPTIONS_TYPE] = Scalar("B", options)

    return change


def tensor(name: str, **fields: Any) -> Change:
    """Returns the change of fields of a tensor; `data` is that of its buffer."""

    def change(graph: Any) -> None:
        index = [found[Tensor.NAME] for found in graph.tensors].index(name)
        found = graph.tensors[index] = dict(graph.tensors[index])
        if "data" in fields:
            found[Tensor.BUFFER] = Scalar("I", graph.buffer(fields.pop("data")))
        for field, value in fields.items():
            found[Tensor[field]] = value

    return change


def both(*changes: Change) -> Change:
    def change(graph: Any) -> None:
        for each in changes:
            each(graph)

    return change


def as_slim_has_it(graph: Any) -> None:
    """Average pooling by a filter of the whole map, and the classifier a 1x1 convolution, then squeezed."""
    pool, dense = graph.operators[-2:]
    maps = graph.tensors[pool[Operator.INPUTS][0]][Tensor.SHAPE]
    pool[Operator.INPUTS] = pool[Operator.INPUTS][:1]
    one = Scalar("i", 1)
    size = {"Pool2D__FILTER_H": Scalar("i", maps[1]), "Pool2D__FILTER_W": Scalar("i", maps[2])}
    graph.operators[-2][Operator.OPTIONS] = {}
    option(-2, Pool2D__PADDING=Scalar("b", 1), Pool2D__STRIDE_W=one, Pool2D__STRIDE_H=one, **size)(graph)
    operation(-2, Op.AVERAGE_POOL_2D, Options.POOL_2D)(graph)
    for index in (int(pool[Operator.OUTPUTS][0]), int(dense[Operator.INPUTS][1]), int(dense[Operator.OUTPUTS][0])):
        shape = graph.tensors[index][Tensor.SHAPE]
        ones = np.array([shape[0], 1, 1, shape[1]], np.int32)
        graph.tensors[index] = {**graph.tensors[index], Tensor.SHAPE: ones}
    option(-1, Conv2D__PADDING=Scalar("b", 0), Conv2D__STRIDE_W=one, Conv2D__STRIDE_H=one)(graph)
    operation(-1, Op.CONV_2D, Options.CONV_2D)(graph)
    flat = graph.tensor("flat", (1, 3))
    graph.add(Op.SQUEEZE, [int(dense[Operator.OUTPUTS][0])], flat, Options.SQUEEZE, {})
    probabilities = graph.tensor("p", (1, 3))
    graph.add(Op.SOFTMAX, [flat], probabilities, Options.SOFTMAX, {schema.Softmax.BETA: Scalar("f", 1)})


def test_slim_s_top_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model(V1)
    encoded = writer._Graph.encoded
    # The file's output is the last tensor, not the writer's.
    monkeypatch.setattr(writer._Graph, "encoded", lambda g, n, _, m: encoded(g, n, len(g.tensors) - 1, m))
    back = model_of(changed(model, as_slim_has_it))
    assert same_tensors(fold(back.network, back.tensors), fold(model.network, model.tensors))
    assert "assumed" in back.notes["imported"]["pixel scaling"]


def test_a_layer_without_bias_has_none() -> None:
    back = model_of(changed(random_model(V1), inputs(0, None, None, -1)))
    assert (fold(back.network, back.tensors)["stem.bias"] == 0).all()


def test_negative_axes_are_counted_from_the_end() -> None:
    assert model_of(changed(random_model(V1), tensor("pool.axes", data=np.array([-2, 1], np.int32).tobytes())))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (operation(3, 99), r"operator 3, operator code 99 'block1.depthwise': no MobileNet has that operator"),
        (inputs(4, 0), "operator 4, CONV_2D.*does not take the result of the operator before"),
        (inputs(4, None, 0), "operator 4, CONV_2D.*its weight is not a constant of 4 dimensions"),
        (inputs(4, None, None, 0), "operator 4, CONV_2D.*its bias is not a constant of 1 dimension"),
        (tensor("stem.weight", TYPE=Scalar("b", Type.INT32)), "operator 0, CONV_2D 'stem': its weight is int32"),
        (tensor("stem.bias", SHAPE=np.array([4], np.int32), data=bytes(16)), "its bias has 4 values for 8 channels"),
        (tensor("stem.bias", data=bytes(16)), "tensor 'stem.bias' has 16 bytes of data, its shape .8,. needs 32"),
        (tensor("stem.weight", SHAPE=np.array([3, 3, 8, 3], np.int32)), "its weight has shape"),
        (
            tensor("stem", SHAPE=np.array([1, 16, 16, 9], np.int32)),
            "its result has shape .1, 16, 16, 9., by its",
        ),
        (tensor("stem", SHAPE=np.array([1, 16, 16, -8], np.int32)), "tensor 'stem' has shape .1, 16, 16, -8."),
        (tensor("stem", SHAPE=np.array([1] * 9, np.int32)), "tensor 'stem' has shape"),
        (tensor("stem", TYPE=Scalar("b", 7)), "tensor 'stem' has type 7, a MobileNet's are 0 .FLOAT32., 1 ."),
        (tensor("stem", BUFFER=Scalar("I", 999)), "tensor 'stem' has buffer 999, there are"),
        (tensor("stem", SPARSITY={}), "tensor 'stem' is sparse"),
        (tensor("stem", data=bytes(4 * 16 * 16 * 8)), "operator 0, CONV_2D 'stem': its result was there before"),
        (tensor("image", TYPE=Scalar("b", Type.INT64)), "the input 'image' is INT64, needed is FLOAT32, UINT8 or INT8"),
        (
            tensor("image", TYPE=Scalar("b", Type.UINT8)),
            "tensor 'image' has no scale, as every tensor of whole numbers",
        ),
        (tensor("image", SHAPE=np.array([2, 32, 32, 3], np.int32)), "the input 'image' has shape .2, 32, 32, 3."),
        (tensor("image", SHAPE=np.array([1, 2, 2, 3], np.int32)), "its result has shape"),
        (
            tensor("pool.axes", data=np.array([1, 3], np.int32).tobytes()),
            "it reduces axes .1, 3., not height",
        ),
        (operation(4, Op.RESHAPE), "operator 4, RESHAPE .*: it gives .8, 8, 8. the shape"),
        (operation(LAST - 1, Op.SOFTMAX), "operator 27, SOFTMAX 'pool': it does not follow the classifier"),
        (operation(LAST, Op.SOFTMAX), "operator 28, SOFTMAX 'classifier': it does not follow the classifier"),
        (operation(0, Op.MEAN), "operator 0, MEAN 'stem': its axes is not a constant of 1 dimension"),
        (operation(1, Op.FULLY_CONNECTED), "operator 1, FULLY_CONNECTED.*its weight is not a constant of 2"),
        (operation(1, Op.ADD), "operator 1, ADD.*does not add the result of an earlier layer"),
        (operation(LAST, Op.AVERAGE_POOL_2D), "operator 28, AVERAGE_POOL_2D .*its result has shape"),
        (option(LAST, FullyConnected__ACTIVATION=Scalar("b", 1)), "it takes 102 channels of 102, or has an activation"),
        (lambda graph: graph.operators[3].update({Operator.OUTPUTS: np.array([1, 2], np.int32)}), "it has 2 outputs"),
        (lambda graph: graph.operators.pop(), "its output is not what the last operator gives"),
        (operation(LAST, Op.SQUEEZE), "its output is|it gives"),
        (option(0, Conv2D__DILATION_W=Scalar("i", 2)), "its dilation is .1, 2., its stride .2, 2."),
        (option(1, DepthwiseConv2D__PADDING=Scalar("b", 5)), "5 is not a valid Padding"),
    ],
)
def test_what_does_not_fit_is_named(change: Change, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        model_of(changed(random_model(V1), change))


def test_additions_take_final_results_of_the_same_shape() -> None:
    adds = next(n for n, layer in enumerate(V2.layers) if layer.adds)  # no operator but ADD has been inserted before it
    model = random_model(V2)
    assert model_of(changed(model, lambda graph: None)).network.family == "v2"
    graph = tflite_graph.read(changed(model, lambda graph: None))
    add = graph.operators[adds + 1]
    assert add.op == Op.ADD
    for other, message in (
        (add.inputs[0], "earlier layer"),
        (0, "earlier layer"),
        (graph.operators[0].outputs[0], "adds"),
    ):
        with pytest.raises(ModelError, match=rf"operator {adds + 1}, ADD .*{message}"):
            model_of(changed(model, inputs(adds + 1, None, other)))
    later = next(found for found in graph.operators[adds + 2 :] if found.op == Op.ADD)
    with pytest.raises(ModelError, match=rf"operator {later.place}, ADD .*earlier layer"):  # the result before the sum
        model_of(changed(model, inputs(later.place, None, add.inputs[0])))


@pytest.mark.parametrize("symmetric", [np.array([[0, 0], [1, 0], [1, 0], [0, 0]]), np.zeros((4, 2))])
def test_explicit_padding_is_read_where_it_is_a_few_rows(symmetric: np.ndarray) -> None:
    model = random_model(v1(0.1, 32, 3, conventions="timm"))
    assert model_of(changed(model, lambda graph: None)).network.conventions.padding == "symmetric"
    for bad in (np.array([[0, 0], [1, 1], [-1, 0], [0, 0]]), np.array([[0, 0], [1, 1], [17, 0], [0, 0]]),
                np.array([[0, 1], [1, 0], [1, 0], [0, 0]])):  # fmt: skip
        with pytest.raises(ModelError, match=r"operator 0, PAD 'stem.padded': it pads otherwise"):
            model_of(changed(model, tensor("stem.pads", data=bad.astype(np.int32).tobytes())))
    with pytest.raises(ModelError, match=r"its result has shape|not a MobileNet: layer"):
        model_of(changed(model, tensor("stem.pads", data=(symmetric * 2).astype(np.int32).tobytes())))
    with pytest.raises(ModelError, match=r"operator 1, ADD .*: it follows a padding, as only a convolution may"):
        model_of(changed(model, operation(1, Op.ADD)))


def quantized(**fields: Any) -> Change:
    return tensor("stem.weight", QUANTIZATION={schema.Quantization[name]: value for name, value in fields.items()})


def test_quantisation_is_read_by_channel() -> None:
    scale = np.arange(1, 9, dtype=np.float32)
    data = changed(random_model(V1), quantized(SCALE=scale, DIMENSION=Scalar("i", 0)))
    found = tflite_graph.read(data).tensors
    weight = next(tensor for tensor in found if tensor.name == "stem.weight")
    assert weight.quantization is not None
    assert weight.quantization.scale.tolist() == scale.tolist()
    assert weight.quantization.zero_point.tolist() == [0] * 8
    assert weight.quantization.axis == 0
    one = quantized(SCALE=scale, ZERO_POINT=np.array([3], np.int64), DIMENSION=Scalar("i", 0))
    weight = next(t for t in tflite_graph.read(changed(random_model(V1), one)).tensors if t.name == "stem.weight")
    assert weight.quantization is not None
    assert weight.quantization.zero_point.tolist() == [3] * 8


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"SCALE": np.ones(7, np.float32)}, "has 7 scales for its axis 0"),
        ({"SCALE": np.ones(8, np.float32), "DIMENSION": Scalar("i", 9)}, "has 8 scales for its axis 9"),
        ({"SCALE": np.zeros(1, np.float32)}, "a scale that is not above 0"),
        ({"SCALE": np.full(1, np.nan, np.float32)}, "a scale that is not above 0"),
        ({"SCALE": np.ones(8, np.float32), "ZERO_POINT": np.zeros(2, np.int64)}, "not a zero point for each"),
    ],
)
def test_quantisation_that_no_tensor_has_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        model_of(changed(random_model(V1), quantized(**fields)))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (schema.Model.VERSION, Scalar("I", 4), "schema version 4, needed is 3"),
        (schema.Model.SUBGRAPHS, [], "0 subgraphs, a MobileNet has one"),
        (schema.Model.OPERATOR_CODES, [], "operator 0 has code 0, there are 0"),
        (schema.Model.BUFFERS, [{schema.Buffer.OFFSET: Scalar("Q", 99)}], "a buffer lies outside the tables"),
    ],
)
def test_tables_of_another_kind_are_refused(field: int, value: Any, message: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "encode", lambda fields, identifier: encode({**fields, field: value}, identifier))
        data = changed(random_model(V1), lambda graph: None)
    with pytest.raises(ModelError, match=message):
        model_of(data)


def test_a_convolution_larger_than_its_input_and_a_pooled_image_are_named() -> None:
    """Kernels that "valid" padding leaves nothing of; a classifier of the image itself."""
    small = both(tensor("image", SHAPE=np.array([1, 2, 2, 3], np.int32)), option(0, Conv2D__PADDING=Scalar("b", 1)))
    with pytest.raises(ModelError, match=r"its kernel of 3 is larger than its input \(2, 2, 3\)"):
        model_of(changed(random_model(V1), small))
    pooled = both(operation(0, Op.MEAN), lambda graph: inputs(0, None, len(graph.tensors))(graph),
                  lambda graph: graph.constant("axes", np.array([1, 2], np.int32)))  # fmt: skip
    with pytest.raises(ModelError, match="operator 0, MEAN 'stem': it pools the input"):
        model_of(changed(random_model(V1), pooled))
    dense = both(operation(0, Op.FULLY_CONNECTED), tensor("stem.weight", SHAPE=np.array([8, 27], np.int32)))
    with pytest.raises(ModelError, match="operator 0, FULLY_CONNECTED 'stem': it does not follow the pooling"):
        model_of(changed(random_model(V1), dense))


def test_two_outputs_or_something_after_the_softmax_are_no_mobilenet() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "_Graph", type("Two", (writer._Graph,), {"encoded": _two_outputs}))
        with pytest.raises(ModelError, match="1 inputs and 2 outputs"):
            model_of(writer.tflite(random_model(V1)))
    both_tops = both(as_slim_has_it, lambda graph: graph.operators.append(graph.operators[-2]))
    with pytest.raises(ModelError, match=r"does not take the result|follows a softmax"):
        model_of(changed(random_model(V1), both_tops))


def _two_outputs(graph: Any, network: Any, output: int, described: bytes) -> bytes:
    tables: dict[int, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "encode", lambda fields, identifier: tables.update(fields) or b"")
        _ENCODED(graph, network, output, described)
    subgraph = {**tables[schema.Model.SUBGRAPHS][0], schema.Subgraph.OUTPUTS: np.array([output, 1], np.int32)}
    return encode({**tables, schema.Model.SUBGRAPHS: [subgraph]}, schema.IDENTIFIER)


_ENCODED = writer._Graph.encoded


@pytest.mark.parametrize("indices", [[0] * 17, [-1], [9999]])
def test_indices_without_a_tensor_are_refused(indices: list[int]) -> None:
    def change(graph: Any) -> None:
        graph.operators[0][Operator.OUTPUTS] = np.array(indices, np.int32)

    with pytest.raises(ModelError, match=re.escape(f"inputs or outputs ({indices[0]},")):
        model_of(changed(random_model(V1), change))


# -------------------------------------------------------------------------------------------------------- metadata


def described(mean: list[float], std: list[float]) -> bytes:
    """Returns metadata with a normalisation alone, as other tools write it."""
    numbers = {
        schema.Normalization.MEAN: np.array(mean, np.float32),
        schema.Normalization.STD: np.array(std, np.float32),
    }
    unit = {schema.ProcessUnit.OPTIONS_TYPE: Scalar("B", 1), schema.ProcessUnit.OPTIONS: numbers}
    image = {schema.TensorMetadata.PROCESS_UNITS: [unit]}
    subgraph = {schema.SubgraphMetadata.INPUTS: [image], schema.SubgraphMetadata.OUTPUTS: [{}]}
    return encode({schema.ModelMetadata.SUBGRAPHS: [subgraph]}, schema.METADATA_IDENTIFIER)


def test_another_tool_s_normalisation_is_read() -> None:
    torch = described([123.675, 116.28, 103.53], [58.395, 57.12, 57.375])
    back = model_of(changed(random_model(V1), lambda graph: None, torch))
    assert back.preprocessing.mean == (123.675, 116.28, 103.53)
    assert back.network.conventions.scaling == "imagenet"
    assert back.notes["imported"]["pixel scaling"] == "in the file"


@pytest.mark.parametrize(("mean", "std"), [([0, 0], [1]), ([0], [0]), ([np.nan], [1]), ([], [1])])
def test_a_normalisation_that_does_not_fit_is_refused(mean: list[float], std: list[float]) -> None:
    with pytest.raises(ModelError, match=r"TFLite metadata: preprocessing\.(mean|std)"):
        model_of(changed(random_model(V1), lambda graph: None, described(mean, std)))


def test_preprocessing_for_another_input_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model(V1)
    other = random_model(v1(0.1, 40, 3))
    pack = tflite_metadata.pack
    monkeypatch.setattr(tflite_metadata, "pack", lambda data, _: pack(data, other))
    with pytest.raises(ModelError, match=r"preprocessing.json is for another input than \(32, 32, 3\)"):
        model_of(writer.tflite(model))


def test_labels_of_a_file_without_a_classifier_are_not_used() -> None:
    headless = random_model(V1.replace(include_top=False))
    metadata = tflite_metadata.encoded(random_model(V1), "x")
    back = model_of(tflite_metadata.pack(changed(headless, lambda graph: None, metadata), random_model(V1)))
    assert back.labels == ()
