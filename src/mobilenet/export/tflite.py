"""Models as TFLite files: batch norm folded, with labels and preprocessing packed as metadata.

The input is float32 [1, height, width, channels], pixels scaled as the metadata says, or of an int8 model the uint8
pixels; the output the logits, or with `softmax` the probabilities.

Of an int8 model all is int8; with the rescale "full" the logits too, which a last DEQUANTIZE makes float32. With the
rescale "float" their range is not known. There the classifier runs in float32, on whole numbers: its sums are exact
below 2^24, in any order, and its multipliers are a MUL of their own. (FULLY_CONNECTED on a float32 input and int8
weights, "hybrid", would make the input int8 again with a scale found as it comes.)
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arch import Layer, Network
from ..formats import tflite_schema as schema
from ..formats.flatbuffer import Fields, Scalar, Value, encode
from ..formats.tflite_schema import Activation, Op, Options, Padding, Type
from ..model import Model
from ..quantized import EXACT
from ..storage.tensors_file import Tensors
from ..weights import fold
from . import tflite_metadata as metadata
from .int8 import NO_PADS, Affine, Part, quantised

_ACTIVATIONS = {"linear": Activation.LINEAR, "relu": Activation.RELU, "relu6": Activation.RELU6}
_TYPES = {"float32": Type.FLOAT32, "int32": Type.INT32, "int8": Type.INT8}
_MIDDLE = 128  # uint8 less this is int8

# Version of an operator that takes int8, as lite/tools/versioning/op_version.cc has it; 1 of those not here.
_INT8_VERSIONS = {
    Op.ADD: 2,
    Op.CONCATENATION: 2,
    Op.CONV_2D: 3,
    Op.DEPTHWISE_CONV_2D: 3,
    Op.DEQUANTIZE: 2,
    Op.MEAN: 2,
    Op.PAD: 2,
    Op.QUANTIZE: 2,
    Op.REDUCE_MAX: 2,
}


def tflite(model: Model, *, softmax: bool = False) -> bytes:
    """Returns the TFLite file of a model.

    Args:
        softmax: the file ends with probabilities, not logits; without a classifier it changes nothing.
    """
    network = model.network
    if model.precision == "int8":
        # 12 is the one with a scale a channel.
        graph = _Graph(_INT8_VERSIONS | ({Op.FULLY_CONNECTED: 12} if model.rescale == "full" else {}))
        source = target = _quantised(graph, model)
    else:
        graph = _Graph({})
        source = target = _floats(graph, network, fold(network, model.tensors))
    softmax = softmax and network.include_top
    if softmax:
        target = graph.tensor("probabilities", (1, network.classes))
        graph.add(Op.SOFTMAX, [source], target, Options.SOFTMAX, {schema.Softmax.BETA: Scalar("f", 1)})
    name = "probabilities" if softmax else "logits" if network.include_top else "features"
    return metadata.pack(graph.encoded(network, target, metadata.encoded(model, name)), model)


def _floats(graph: "_Graph", network: Network, folded: Tensors) -> int:
    """Appends all of a float32 model; returns the tensor of the last layer's output."""
    source = graph.tensor("image", (1, *network.input))
    outputs: dict[str, int] = {}
    for layer in network.layers:
        constants: list[int] = []
        if layer.weight_shape is not None:
            weight, bias = (folded[f"{layer.name}.{part}"] for part in ("weight", "bias"))
            constants = [graph.constant(f"{layer.name}.weight", _weight(layer, weight))]
            constants.append(graph.constant(f"{layer.name}.bias", bias))
        source = _layer(graph, layer, source, constants, _ACTIVATIONS[layer.activation], None)
        if layer.adds is not None:
            target = graph.tensor(f"{layer.name}.sum", (1, *layer.output))
            source = graph.add(Op.ADD, [source, outputs[layer.adds]], target, Options.ADD, {})
        outputs[layer.name] = source
    return source


def _quantised(graph: "_Graph", model: Model) -> int:
    """Appends all of an int8 model; returns the tensor of the last layer's output, in float32."""
    parts, border, _ = quantised(model, told=True)
    source = _image(graph, model.network, parts[0].source)
    if border is not None:
        source = _bordered(graph, model.network.layers[0], source, border)
    outputs: dict[str, int] = {}
    for part in parts:
        layer, affine = part.layer, part.sums or part.output
        if part.output is None:
            return _whole_numbers(graph, part, source)
        constants = _constants(graph, part) if layer.weight_shape is not None else []
        source = _layer(graph, layer, source, constants, _clamps(part), affine)
        if layer.adds is not None:
            target = graph.tensor(f"{layer.name}.sum", (1, *layer.output), part.output)
            source = graph.add(Op.ADD, [source, outputs[layer.adds]], target, Options.ADD, {})
        outputs[layer.name] = source
    return graph.dequantised(source, "output")


def exact(model: Model) -> bool:
    """Returns whether XNNPACK's outputs for the file are an int8 model's to the last bit."""
    if model.precision != "int8":
        return False
    parts = quantised(model, told=True).parts
    return all(part.exact and (part.output is not None or _largest(part) < EXACT) for part in parts)


def _largest(part: Part) -> int:
    """Returns a bound on the sums of `_whole_numbers`, in whatever order they are added."""
    inputs = np.full(part.layer.input.channels, _MIDDLE)
    return int((inputs @ np.abs(part.weight.astype(np.int64)) + np.abs(_moved_bias(part))).max())


def _moved_bias(part: Part) -> NDArray[np.int64]:
    """Returns the bias of sums over int8 with their zero point left in."""
    zero = part.source.zero - _MIDDLE
    return np.asarray(part.bias - zero * part.weight.astype(np.int64).sum(0))


def _whole_numbers(graph: "_Graph", part: Part, source: int) -> int:
    """Appends a classifier with logits in float32; returns their tensor."""
    name, count = part.layer.name, (1, part.layer.output.channels)
    numbers = graph.add(Op.CAST, [source], graph.tensor(f"{name}.input", graph.shapes[source]), Options.NONE, {})
    stored = graph.constant(f"{name}.weight.int8", _weight(part.layer, part.weight), np.ones(1, np.float32))
    weight = graph.dequantised(stored, f"{name}.weight")
    bias = graph.constant(f"{name}.bias", _moved_bias(part).astype(np.float32))
    sums = graph.tensor(f"{name}.sums", count)
    graph.add(Op.FULLY_CONNECTED, [numbers, weight, bias], sums, Options.FULLY_CONNECTED, {})
    multiplier = graph.constant(f"{name}.multiplier", part.multiplier)
    return graph.add(Op.MUL, [sums, multiplier], graph.tensor(name, count), Options.MUL, {})


def _image(graph: "_Graph", network: Network, affine: Affine) -> int:
    """Appends the uint8 input and what makes int8 of it; returns the latter's tensor."""
    source = graph.tensor("image", (1, *network.input), affine, Type.UINT8)
    target = graph.tensor("image.int8", (1, *network.input), affine)
    return graph.add(Op.QUANTIZE, [source], target, Options.NONE, {})


def _constants(graph: "_Graph", part: Part) -> list[int]:
    """Adds weight and bias of an int8 model's layer; returns their tensors."""
    layer, unit = part.layer, part.scales.astype(np.float64) * part.source.scale
    axis = {"depthwise": 3}.get(layer.kind, 0)
    weight = graph.constant(f"{layer.name}.weight", _weight(layer, part.weight), part.scales, axis)
    return [weight, graph.constant(f"{layer.name}.bias", part.bias, unit.astype(np.float32))]


def _clamps(part: Part) -> Activation:
    """Returns the layer's activation, or that of two whose clamps are the layer's: RELU has no upper one."""
    if part.layer.activation == "linear" or part.output is None:
        return Activation.LINEAR
    six = part.output.zero + round(6 / part.output.scale)
    return Activation.RELU6 if part.layer.activation == "relu6" and six >= part.high else Activation.RELU


def _bordered(graph: "_Graph", stem: Layer, image: int, border: NDArray[np.uint8]) -> int:
    """Appends what pads each channel of the image with its own value: PAD has one for all."""
    value = (border.astype(np.int16) - _MIDDLE).astype(np.int8)
    shape = [1, *stem.input]
    affine = graph.affine[image]
    for axis, pads in enumerate(stem.padding, 1):
        sides = []
        for count, name in zip(pads, "ab", strict=True):
            side = np.broadcast_to(value, (1, *shape[1:axis], count, *shape[axis + 1 :]))
            sides.append(graph.constant(f"border.{axis}{name}", side, affine=affine) if count else None)
        before, after = sides
        inputs = [tensor for tensor in (before, image, after) if tensor is not None]
        shape[axis] += sum(pads)
        target = graph.tensor(f"image.padded.{axis}", tuple(shape), affine)
        along: Fields = {schema.Concatenation.AXIS: Scalar("i", axis)}
        image = graph.add(Op.CONCATENATION, inputs, target, Options.CONCATENATION, along)
    return image


def _layer(
    graph: "_Graph",
    layer: Layer,
    source: int,
    constants: Sequence[int],
    activation: Activation,
    affine: Affine | None,
) -> int:
    """Appends a layer without its shortcut; returns the tensor of its output, int8 if its scale is given."""
    flat = layer.kind in ("average_pool", "max_pool", "dense")
    target = graph.tensor(layer.name, (1, layer.output.channels) if flat else (1, *layer.output), affine)
    if layer.kind in ("average_pool", "max_pool"):
        op = Op.MEAN if layer.kind == "average_pool" else Op.REDUCE_MAX
        axes = graph.constant(f"{layer.name}.axes", np.array([1, 2], np.int32))
        return graph.add(op, [source, axes], target, Options.REDUCER, {schema.Reducer.KEEP_DIMS: Scalar("b", 0)})
    if layer.kind == "dense":
        options: dict[int, Scalar] = {schema.FullyConnected.ACTIVATION: Scalar("b", activation)}
        return graph.add(Op.FULLY_CONNECTED, [source, *constants], target, Options.FULLY_CONNECTED, options)
    source, padding = _padded(graph, layer, source)
    places = (Scalar("b", padding), Scalar("i", layer.stride), Scalar("i", layer.stride))
    options = dict(enumerate(places))  # the same places in both tables
    if layer.kind == "depthwise":
        options |= {schema.DepthwiseConv2D.DEPTH_MULTIPLIER: Scalar("i", 1)}
        options |= {schema.DepthwiseConv2D.ACTIVATION: Scalar("b", activation)}
        return graph.add(Op.DEPTHWISE_CONV_2D, [source, *constants], target, Options.DEPTHWISE_CONV_2D, options)
    options |= {schema.Conv2D.ACTIVATION: Scalar("b", activation)}
    return graph.add(Op.CONV_2D, [source, *constants], target, Options.CONV_2D, options)


def _weight(layer: Layer, weight: NDArray[Any]) -> NDArray[Any]:
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
    if layer.padding == NO_PADS:
        return source, Padding.VALID
    if layer.padding == tuple(_same(size, layer) for size in layer.input[:2]):
        return source, Padding.SAME
    (top, bottom), (left, right) = layer.padding
    height, width, channels = layer.input
    pads = graph.constant(f"{layer.name}.pads", np.array([(0, 0), *layer.padding, (0, 0)], np.int32))
    shape = (1, top + height + bottom, left + width + right, channels)
    padded = graph.tensor(f"{layer.name}.padded", shape, graph.affine.get(source))
    return graph.add(Op.PAD, [source, pads], padded, Options.PAD, {}), Padding.VALID


def _same(size: int, layer: Layer) -> tuple[int, int]:
    total = max((-(-size // layer.stride) - 1) * layer.stride + layer.kernel - size, 0)
    return total // 2, total - total // 2


class _Graph:
    """Collects tensors, their data and operators as the schema's tables."""

    def __init__(self, versions: Mapping[Op, int]) -> None:
        """Begins a graph whose operators have the given versions, 1 where none is given."""
        self.tensors: list[Fields] = []
        self.shapes: list[tuple[int, ...]] = []
        self.buffers: list[Fields] = [{}]  # by convention the first is empty, of all tensors that are computed
        self.operators: list[Fields] = []
        self.codes: list[Op] = []
        self.versions = versions
        self.affine: dict[int, Affine] = {}

    def tensor(self, name: str, shape: tuple[int, ...], affine: Affine | None = None, kind: Type | None = None) -> int:
        """Adds a tensor that is computed, or given: int8 or `kind` if it has a scale; returns its index."""
        if affine is None:
            return self._tensor(name, shape, Type.FLOAT32)
        kind = kind or Type.INT8
        zero = affine.zero - (_MIDDLE if kind == Type.INT8 else 0)
        place = self._tensor(name, shape, kind, 0, _quantization(np.array([affine.scale]), np.array([zero])))
        self.affine[place] = affine
        return place

    def constant(
        self,
        name: str,
        data: NDArray[Any],
        scales: NDArray[np.float32] | None = None,
        axis: int = 0,
        affine: Affine | None = None,
    ) -> int:
        """Adds a tensor with data, with the scales of an axis if there are any, or one; returns its index."""
        described = None
        if scales is not None:
            described = _quantization(scales, np.zeros(len(scales)), axis)
        elif affine is not None:
            described = _quantization(np.array([affine.scale]), np.array([affine.zero - _MIDDLE]))
        buffer = self.buffer(data.astype(data.dtype.newbyteorder("<")).tobytes())
        return self._tensor(name, data.shape, _TYPES[data.dtype.name], buffer, described)

    def dequantised(self, source: int, name: str) -> int:
        """Adds an operator that gives float32; returns its tensor."""
        return self.add(Op.DEQUANTIZE, [source], self.tensor(name, self.shapes[source]), Options.NONE, {})

    def _tensor(
        self, name: str, shape: tuple[int, ...], kind: Type, buffer: int = 0, quantization: Fields | None = None
    ) -> int:
        fields: dict[int, Value] = {
            schema.Tensor.SHAPE: np.array(shape, np.int32),
            schema.Tensor.TYPE: Scalar("b", kind),
            schema.Tensor.BUFFER: Scalar("I", buffer),
            schema.Tensor.NAME: name,
        }
        if quantization is not None:
            fields[schema.Tensor.QUANTIZATION] = quantization
        self.tensors.append(fields)
        self.shapes.append(shape)
        return len(self.tensors) - 1

    def buffer(self, data: bytes) -> int:
        """Adds a buffer; returns its index."""
        self.buffers.append({schema.Buffer.DATA: data})
        return len(self.buffers) - 1

    def add(self, op: Op, inputs: Sequence[int], output: int, kind: Options, options: Fields) -> int:
        """Adds an operator; returns its output."""
        if op not in self.codes:
            self.codes.append(op)
        fields: dict[int, Value] = {
            schema.Operator.OPCODE_INDEX: Scalar("I", self.codes.index(op)),
            schema.Operator.INPUTS: np.array(inputs, np.int32),
            schema.Operator.OUTPUTS: np.array([output], np.int32),
        }
        if kind != Options.NONE:
            fields |= {schema.Operator.OPTIONS_TYPE: Scalar("B", kind), schema.Operator.OPTIONS: options}
        self.operators.append(fields)
        return output

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
            schema.Model.OPERATOR_CODES: [_code(op, self.versions.get(op, 1)) for op in self.codes],
            schema.Model.SUBGRAPHS: [subgraph],
            schema.Model.DESCRIPTION: str(network),
            schema.Model.BUFFERS: self.buffers,
            schema.Model.METADATA: [entry],
        }
        return encode(model, schema.IDENTIFIER)


def _code(op: Op, version: int) -> Fields:
    # The first field is for readers older than TensorFlow 2.4; no operator here is beyond its 127.
    return {
        schema.OperatorCode.DEPRECATED_BUILTIN_CODE: Scalar("b", op),
        schema.OperatorCode.VERSION: Scalar("i", version),
        schema.OperatorCode.BUILTIN_CODE: Scalar("i", op),
    }


def _quantization(scale: NDArray[Any], zero: NDArray[Any], axis: int = 0) -> Fields:
    return {
        schema.Quantization.SCALE: scale.astype(np.float32),
        schema.Quantization.ZERO_POINT: zero.astype(np.int64),
        schema.Quantization.DIMENSION: Scalar("i", axis),
    }
