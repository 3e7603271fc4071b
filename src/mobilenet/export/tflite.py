"""Models as TFLite files: float32, batch norm folded, with labels and preprocessing packed as metadata.

The input is float32 [1, height, width, channels], pixels scaled as the metadata says; the output the logits, or with
`softmax` the probabilities.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..arch import Layer, Network, Pads
from ..formats import tflite_schema as schema
from ..formats.flatbuffer import Fields, Scalar, encode
from ..formats.tflite_schema import Activation, Op, Options, Padding, Type
from ..model import Model
from ..weights import fold
from . import tflite_metadata as metadata

_ACTIVATIONS = {"linear": Activation.LINEAR, "relu": Activation.RELU, "relu6": Activation.RELU6}
_NO_PADS: Pads = ((0, 0), (0, 0))


def tflite(model: Model, *, softmax: bool = False) -> bytes:
    """Returns the TFLite file of a model.

    Args:
        softmax: the file ends with probabilities, not logits; without a classifier it changes nothing.
    """
    network, folded = model.network, fold(model.network, model.tensors)
    graph = _Graph()
    source = graph.tensor("image", (1, *network.input))
    outputs = {}
    for layer in network.layers:
        parts = [folded[name] for part in ("weight", "bias") if (name := f"{layer.name}.{part}") in folded]
        outputs[layer.name] = target = _layer(graph, layer, source, parts)
        if layer.adds is not None:
            sum_ = graph.tensor(f"{layer.name}.sum", (1, *layer.output))
            graph.add(Op.ADD, [target, outputs[layer.adds]], sum_, Options.ADD, {})
            outputs[layer.name] = target = sum_
        source = target
    softmax = softmax and network.include_top
    if softmax:
        target = graph.tensor("probabilities", (1, network.classes))
        graph.add(Op.SOFTMAX, [source], target, Options.SOFTMAX, {schema.Softmax.BETA: Scalar("f", 1)})
    name = "probabilities" if softmax else "logits" if network.include_top else "features"
    return metadata.pack(graph.encoded(network, target, metadata.encoded(model, name)), model)


def _layer(graph: "_Graph", layer: Layer, source: int, parts: Sequence[NDArray[np.float32]]) -> int:
    """Appends a layer without its shortcut; returns the tensor of its output."""
    if layer.kind in ("average_pool", "max_pool"):
        op = Op.MEAN if layer.kind == "average_pool" else Op.REDUCE_MAX
        axes = graph.constant(f"{layer.name}.axes", np.array([1, 2], np.int32))
        target = graph.tensor(layer.name, (1, layer.output.channels))
        graph.add(op, [source, axes], target, Options.REDUCER, {schema.Reducer.KEEP_DIMS: Scalar("b", 0)})
        return target
    weight = graph.constant(f"{layer.name}.weight", _weight(layer, parts[0]))
    bias = graph.constant(f"{layer.name}.bias", parts[1])
    if layer.kind == "dense":
        target = graph.tensor(layer.name, (1, layer.output.channels))
        graph.add(Op.FULLY_CONNECTED, [source, weight, bias], target, Options.FULLY_CONNECTED, {})
        return target
    source, padding = _padded(graph, layer, source)
    target = graph.tensor(layer.name, (1, *layer.output))
    activation = Scalar("b", _ACTIVATIONS[layer.activation])
    places = (Scalar("b", padding), Scalar("i", layer.stride), Scalar("i", layer.stride))
    options: dict[int, Scalar] = dict(enumerate(places))  # the same places in both tables
    if layer.kind == "depthwise":
        options |= {schema.DepthwiseConv2D.DEPTH_MULTIPLIER: Scalar("i", 1)}
        options |= {schema.DepthwiseConv2D.ACTIVATION: activation}
        graph.add(Op.DEPTHWISE_CONV_2D, [source, weight, bias], target, Options.DEPTHWISE_CONV_2D, options)
    else:
        options |= {schema.Conv2D.ACTIVATION: activation}
        graph.add(Op.CONV_2D, [source, weight, bias], target, Options.CONV_2D, options)
    return target


def _weight(layer: Layer, weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns the weight as TFLite lays it out: [out, k, k, in], depthwise [1, k, k, channels], dense [out, in]."""
    match layer.kind:
        case "depthwise":
            return weight[None]
        case "pointwise":
            return weight.T[:, None, None]
        case "dense":
            return weight.T
        case _:
            return weight.transpose(3, 0, 1, 2)


def _padded(graph: "_Graph", layer: Layer, source: int) -> tuple[int, Padding]:
    """Returns what the convolution reads and the padding it applies: explicit pads where it has no name for them."""
    if layer.padding == _NO_PADS:
        return source, Padding.VALID
    if layer.padding == tuple(_same(size, layer) for size in layer.input[:2]):
        return source, Padding.SAME
    (top, bottom), (left, right) = layer.padding
    height, width, channels = layer.input
    pads = graph.constant(f"{layer.name}.pads", np.array([(0, 0), *layer.padding, (0, 0)], np.int32))
    padded = graph.tensor(f"{layer.name}.padded", (1, top + height + bottom, left + width + right, channels))
    graph.add(Op.PAD, [source, pads], padded, Options.PAD, {})
    return padded, Padding.VALID


def _same(size: int, layer: Layer) -> tuple[int, int]:
    total = max((-(-size // layer.stride) - 1) * layer.stride + layer.kernel - size, 0)
    return total // 2, total - total // 2


class _Graph:
    """Collects tensors, their data and operators as the schema's tables."""

    def __init__(self) -> None:
        self.tensors: list[Fields] = []
        self.buffers: list[Fields] = [{}]  # by convention the first is empty, of all tensors that are computed
        self.operators: list[Fields] = []
        self.codes: list[Op] = []

    def tensor(self, name: str, shape: tuple[int, ...], kind: Type = Type.FLOAT32, buffer: int = 0) -> int:
        """Adds a tensor; returns its index."""
        fields: Fields = {
            schema.Tensor.SHAPE: np.array(shape, np.int32),
            schema.Tensor.TYPE: Scalar("b", kind),
            schema.Tensor.BUFFER: Scalar("I", buffer),
            schema.Tensor.NAME: name,
        }
        self.tensors.append(fields)
        return len(self.tensors) - 1

    def constant(self, name: str, data: NDArray[np.float32] | NDArray[np.int32]) -> int:
        """Adds a tensor with data; returns its index."""
        kind = Type.FLOAT32 if data.dtype == np.float32 else Type.INT32
        return self.tensor(name, data.shape, kind, self.buffer(data.astype(data.dtype.newbyteorder("<")).tobytes()))

    def buffer(self, data: bytes) -> int:
        """Adds a buffer; returns its index."""
        self.buffers.append({schema.Buffer.DATA: data})
        return len(self.buffers) - 1

    def add(self, op: Op, inputs: Sequence[int], output: int, kind: Options, options: Fields) -> None:
        """Adds an operator."""
        if op not in self.codes:
            self.codes.append(op)
        fields: Fields = {
            schema.Operator.OPCODE_INDEX: Scalar("I", self.codes.index(op)),
            schema.Operator.INPUTS: np.array(inputs, np.int32),
            schema.Operator.OUTPUTS: np.array([output], np.int32),
            schema.Operator.OPTIONS_TYPE: Scalar("B", kind),
            schema.Operator.OPTIONS: options,
        }
        self.operators.append(fields)

    def encoded(self, network: Network, output: int, described: bytes) -> bytes:
        """Returns the file; its input is tensor 0."""
        subgraph: Fields = {
            schema.Subgraph.TENSORS: self.tensors,
            schema.Subgraph.INPUTS: np.array([0], np.int32),
            schema.Subgraph.OUTPUTS: np.array([output], np.int32),
            schema.Subgraph.OPERATORS: self.operators,
            schema.Subgraph.NAME: "main",
        }
        entry: Fields = {
            schema.Metadata.NAME: schema.METADATA_NAME,
            schema.Metadata.BUFFER: Scalar("I", self.buffer(described)),
        }
        model: Fields = {
            schema.Model.VERSION: Scalar("I", schema.VERSION),
            schema.Model.OPERATOR_CODES: [_code(op) for op in self.codes],
            schema.Model.SUBGRAPHS: [subgraph],
            schema.Model.DESCRIPTION: str(network),
            schema.Model.BUFFERS: self.buffers,
            schema.Model.METADATA: [entry],
        }
        return encode(model, schema.IDENTIFIER)


def _code(op: Op) -> Fields:
    # The first field is for readers older than TensorFlow 2.4; no operator here is beyond its 127.
    return {
        schema.OperatorCode.DEPRECATED_BUILTIN_CODE: Scalar("b", op),
        schema.OperatorCode.VERSION: Scalar("i", 1),
        schema.OperatorCode.BUILTIN_CODE: Scalar("i", op),
    }
