"""Models as ONNX files: batch norm folded, labels and preprocessing in the metadata.

An int8 model's layers stand between QuantizeLinear and DequantizeLinear ("QDQ"), from which ONNX Runtime and OpenVINO
make integer ones: uint8 activations, int8 weights with a scale a channel, int32 biases.

Opset 13, IR version 7: the first with quantisation by channel, and what ONNX Runtime has run since 1.6 and OpenVINO
since 2021. The batch is free. Field numbers are those of onnx/onnx.proto.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arch import Layer, Network
from ..formats.protobuf import Fields, Value, encode
from ..model import Model
from ..storage.tensors_file import Tensors
from ..weights import fold
from .int8 import Affine, Part, preprocessing, quantised

OPSET, IR_VERSION = 13, 7
_FLOAT, _UINT8 = 1, 2  # TensorProto.DataType
_TYPES = {"float32": _FLOAT, "uint8": _UINT8, "int8": 3, "int32": 6, "int64": 7}
_NHWC_TO_NCHW = (0, 3, 1, 2)


def onnx(model: Model, *, pixels: bool = False, softmax: bool = False) -> bytes:
    """Returns the ONNX file of a model.

    Args:
        pixels: the input "pixels" is uint8 [N, height, width, channels] as a photo's, and scaled in the graph; else the
            input "image" is float32 [N, channels, height, width], scaled as the metadata's preprocessing says. An int8
            model scales nothing: its "image" is uint8 as well.
        softmax: the output is "probabilities", not "logits" [N, classes]; without a classifier it changes nothing.

    Without the top the output "features" is [N, channels, height, width], or [N, channels] with a pooling.

    Raises:
        MobileNetError: the file would have more than 2 GiB, the format's limit.
    """
    network, graph = model.network, _Graph()
    if model.precision == "int8":
        kind = _UINT8
        source = graph.add("Transpose", ["pixels"], "image", perm=_NHWC_TO_NCHW) if pixels else "image"
        source = _quantised(graph, model, source)
    else:
        kind = _FLOAT
        source = _floats(graph, network, fold(network, model.tensors), _scaled(graph, model) if pixels else "image")
    name = "logits" if network.include_top else "features"
    if softmax and network.include_top:
        source, name = graph.add("Softmax", [source], "softmax", axis=-1), "probabilities"
    graph.add("Identity", [source], name)
    image = _described("image", kind, ["N", network.channels, network.height, network.width])
    given = _described("pixels", _UINT8, ["N", *network.input]) if pixels else image
    return encode(_model(model, graph, given, _described(name, _FLOAT, ["N", *_output(network)])))


def exact(model: Model) -> bool:
    """Returns whether ONNX Runtime's outputs for the file are an int8 model's to the last bit."""
    return model.precision == "int8" and quantised(model).exact


def _output(network: Network) -> Sequence[int]:
    height, width, channels = network.output
    return (channels,) if network.include_top or network.pooling else (channels, height, width)


def _scaled(graph: "_Graph", model: Model) -> str:
    """Appends what makes the image of pixels."""
    values = graph.add("Cast", ["pixels"], "pixels.float", to=_FLOAT)
    for op, part in (("Sub", "mean"), ("Div", "std")):
        constant = graph.constant(f"pixels.{part}", np.array(getattr(model.preprocessing, part), np.float32))
        values = graph.add(op, [values, constant], f"pixels.less_{part}" if op == "Sub" else "pixels.scaled")
    return graph.add("Transpose", [values], "image", perm=_NHWC_TO_NCHW)


def _floats(graph: "_Graph", network: Network, folded: Tensors, source: str) -> str:
    """Appends all layers of a float32 model; returns the name of the last one's output."""
    outputs: dict[str, str] = {}
    for layer in network.layers:
        names: list[str] = []
        if layer.weight_shape is not None:
            weight, bias = (folded[f"{layer.name}.{part}"] for part in ("weight", "bias"))
            names = [graph.constant(f"{layer.name}.weight", _weight(layer, weight))]
            names.append(graph.constant(f"{layer.name}.bias", bias))
        source = _layer(graph, layer, [source, *names])
        if layer.kind in ("average_pool", "max_pool"):
            source = graph.add("Flatten", [source], f"{layer.name}.flat", axis=1)
        if layer.activation == "relu":
            source = graph.add("Relu", [source], f"{layer.name}.relu")
        elif layer.activation == "relu6":
            source = graph.clip(source, f"{layer.name}.relu6", 0, 6)
        if layer.adds is not None:
            source = graph.add("Add", [source, outputs[layer.adds]], f"{layer.name}.sum")
        outputs[layer.name] = source
    return source


def _quantised(graph: "_Graph", model: Model, image: str) -> str:
    """Appends all layers of an int8 model; returns the name of the last one's output, in float32.

    Every layer reads what DequantizeLinear gives and writes to QuantizeLinear: runtimes look for just that.
    """
    parts, border, true = quantised(model)
    source = image if border is None else _bordered(graph, model.network.layers[0], image, border)
    outputs: dict[str, str] = {}
    for part in parts:
        layer, name = part.layer, part.layer.name
        values = _layer(graph, layer, [graph.dequantised(source, f"{name}.input", part.source), *_weights(graph, part)])
        if part.output is None:
            return values
        if layer.adds and part.sums and part.added:
            rounded = graph.quantised(values, f"{name}.rounded", part.sums)
            values = graph.dequantised(rounded, f"{name}.first", part.sums)
            added = graph.dequantised(outputs[layer.adds], f"{name}.second", part.added)
            values = graph.add("Add", [values, added], f"{name}.sum")
        if part.clamps:
            limits = ((limit - part.output.zero) * part.output.scale for limit in (part.low, part.high))
            values = graph.clip(values, f"{name}.clamped", *limits)
        outputs[name] = source = graph.quantised(values, f"{name}.output", part.output)
        if layer.kind in ("average_pool", "max_pool"):
            source = graph.add("Flatten", [source], f"{name}.flat", axis=1)
    return graph.dequantised(source, "output", true) if true else source


def _weights(graph: "_Graph", part: Part) -> list[str]:
    """Appends what makes weight and bias of a layer, if it has them; returns their names."""
    if part.layer.weight_shape is None:
        return []
    name, count = part.layer.name, len(part.bias)
    weight = graph.constant(f"{name}.weight.int8", _weight(part.layer, part.weight))
    bias = graph.constant(f"{name}.bias.int32", part.bias)
    unit = (part.scales.astype(np.float64) * part.source.scale).astype(np.float32)
    return [
        graph.scaled("DequantizeLinear", weight, f"{name}.weight", part.scales, np.zeros(count, np.int8)),
        graph.scaled("DequantizeLinear", bias, f"{name}.bias", unit, np.zeros(count, np.int32)),
    ]


def _layer(graph: "_Graph", layer: Layer, inputs: Sequence[str]) -> str:
    """Appends a layer without activation and shortcut; returns the name of its output."""
    if layer.kind in ("average_pool", "max_pool"):
        return graph.add("GlobalAveragePool" if layer.kind == "average_pool" else "GlobalMaxPool", inputs, layer.name)
    if layer.kind == "dense":
        return graph.add("Gemm", inputs, layer.name, transB=1)
    (top, bottom), (left, right) = layer.padding
    return graph.add(
        "Conv",
        inputs,
        layer.name,
        group=layer.input.channels if layer.kind == "depthwise" else 1,
        kernel_shape=[layer.kernel] * 2,
        pads=[top, left, bottom, right],
        strides=[layer.stride] * 2,
    )


def _bordered(graph: "_Graph", stem: Layer, image: str, border: NDArray[np.uint8]) -> str:
    """Appends what pads each channel of the image with its own value: Pad has one for all."""
    (top, bottom), (left, right) = stem.padding
    pads = graph.constant("pixels.pads", np.array([0, 0, top, left, 0, 0, bottom, right], np.int64))
    channels = [f"pixels.{n}" for n in range(len(border))]
    graph.split(image, channels)
    padded = [
        graph.add("Pad", [name, pads, graph.constant(f"{name}.zero", value)], f"{name}.padded")
        for name, value in zip(channels, border, strict=True)
    ]
    return graph.add("Concat", padded, "pixels.padded", axis=1)


def _weight(layer: Layer, weight: NDArray[Any]) -> NDArray[Any]:
    """Returns the weight as ONNX lays it out: [out, in, k, k], depthwise [channels, 1, k, k], dense [out, in]."""
    match layer.kind:
        case "depthwise":
            return weight.transpose(2, 0, 1)[:, None]
        case "pointwise":
            return weight.T[:, :, None, None]
        case "dense":
            return weight.T
        case _:
            return weight.transpose(3, 2, 0, 1)


def _model(model: Model, graph: "_Graph", given: Fields, output: Fields) -> Fields:
    """Returns the ModelProto."""
    facts = {
        "network": str(model.network),
        "labels": json.dumps(model.labels, ensure_ascii=False),
        "preprocessing": json.dumps(preprocessing(model, centred=False).to_dict()),
    }
    contents: Fields = {
        1: graph.nodes,
        2: f"MobileNet {model.network.family.upper()}",
        5: list(graph.constants.values()),
        11: [given],
        12: [output],
    }
    return {
        1: IR_VERSION,
        2: "mobilenet",
        7: contents,
        8: [{1: "", 2: OPSET}],
        14: [{1: key, 2: value} for key, value in facts.items()],
    }


def _described(name: str, kind: int, shape: Iterable[int | str]) -> Fields:
    """Returns the ValueInfoProto of an input or output; a side given as a name is free."""
    dimensions: list[Fields] = [{2: side} if isinstance(side, str) else {1: side} for side in shape]
    return {1: name, 2: {1: {1: kind, 2: {1: dimensions}}}}


@dataclass(frozen=True)
class _Graph:
    """Collects nodes and constants."""

    nodes: list[Fields] = field(default_factory=list)
    constants: dict[str, Fields] = field(default_factory=dict)

    def add(self, op: str, inputs: Sequence[str], output: str, **attributes: int | Sequence[int]) -> str:
        """Adds a NodeProto; returns the name of its output, which is the node's too."""
        self._node(op, inputs, [output], attributes)
        return output

    def split(self, source: str, outputs: Sequence[str]) -> None:
        """Adds a node that gives each channel alone."""
        self._node("Split", [source], outputs, {"axis": 1})

    def clip(self, source: str, output: str, low: float, high: float) -> str:
        """Adds a Clip to two numbers."""
        limits = [self.constant(f"limit {limit:.9g}", np.array(limit, np.float32)) for limit in (low, high)]
        return self.add("Clip", [source, *limits], output)

    def quantised(self, source: str, output: str, affine: Affine) -> str:
        """Adds a QuantizeLinear, which rounds to the nearest even and clips to uint8."""
        return self.scaled("QuantizeLinear", source, output, *_arrays(affine))

    def dequantised(self, source: str, output: str, affine: Affine) -> str:
        """Adds a DequantizeLinear of uint8."""
        return self.scaled("DequantizeLinear", source, output, *_arrays(affine))

    def scaled(self, op: str, source: str, output: str, scale: NDArray[Any], zero: NDArray[Any]) -> str:
        """Adds a QuantizeLinear or DequantizeLinear with one scale, or one for each index of the first axis."""
        constants = self.constant(f"{output}.scale", scale), self.constant(f"{output}.zero", zero)
        return self.add(op, [source, *constants], output, **({"axis": 0} if scale.ndim else {}))

    def constant(self, name: str, data: NDArray[Any]) -> str:
        """Adds a TensorProto; returns its name."""
        raw = data.astype(data.dtype.newbyteorder("<")).tobytes()
        self.constants[name] = {1: list(data.shape), 2: _TYPES[data.dtype.name], 8: name, 9: raw}
        return name

    def _node(
        self, op: str, inputs: Sequence[str], outputs: Sequence[str], attributes: Mapping[str, int | Sequence[int]]
    ) -> None:
        given = [_attribute(name, value) for name, value in attributes.items()]
        self.nodes.append({1: inputs, 2: outputs, 3: outputs[0], 4: op, 5: given})


def _arrays(affine: Affine) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    return np.array(affine.scale, np.float32), np.array(affine.zero, np.uint8)


def _attribute(name: str, value: int | Sequence[int]) -> Fields:
    values: dict[int, Value] = {3: value, 20: 2} if isinstance(value, int) else {8: list(value), 20: 7}
    return {1: name} | values
