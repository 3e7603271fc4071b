"""Models as ONNX files: float32, batch norm folded, labels and preprocessing in the metadata.

Opset 13, IR version 7: the first with quantisation by channel, and what ONNX Runtime has run since 1.6 and OpenVINO
since 2021. The batch is free. Field numbers are those of onnx/onnx.proto.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..arch import Layer, Network
from ..formats.protobuf import Fields, Value, encode
from ..model import Model
from ..weights import fold

OPSET, IR_VERSION = 13, 7
_FLOAT, _UINT8 = 1, 2  # TensorProto.DataType
_NHWC_TO_NCHW = (0, 3, 1, 2)


def onnx(model: Model, *, pixels: bool = False, softmax: bool = False) -> bytes:
    """Returns the ONNX file of a model.

    Args:
        pixels: the input "pixels" is uint8 [N, height, width, channels] as a photo's, and scaled in the graph; else the
            input "image" is float32 [N, channels, height, width], scaled as the metadata's preprocessing says.
        softmax: the output is "probabilities", not "logits" [N, classes]; without a classifier it changes nothing.

    Without the top the output "features" is [N, channels, height, width], or [N, channels] with a pooling.

    Raises:
        MobileNetError: the file would have more than 2 GiB, the format's limit.
    """
    network, folded = model.network, fold(model.network, model.tensors)
    graph = _Graph()
    source = _scaled(graph, model) if pixels else "image"
    outputs: dict[str, str] = {}
    for layer in network.layers:
        parts = [folded[name] for part in ("weight", "bias") if (name := f"{layer.name}.{part}") in folded]
        source = _layer(graph, layer, source, parts)
        if layer.adds is not None:
            source = graph.add("Add", [source, outputs[layer.adds]], f"{layer.name}.sum")
        outputs[layer.name] = source
    name = "logits" if network.include_top else "features"
    if softmax and network.include_top:
        source, name = graph.add("Softmax", [source], "softmax", axis=-1), "probabilities"
    graph.add("Identity", [source], name)
    image = _described("image", _FLOAT, ["N", network.channels, network.height, network.width])
    given = _described("pixels", _UINT8, ["N", *network.input]) if pixels else image
    return encode(_model(model, graph, given, _described(name, _FLOAT, ["N", *_output(network)])))


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


def _layer(graph: "_Graph", layer: Layer, source: str, parts: Sequence[NDArray[np.float32]]) -> str:
    """Appends a layer without its shortcut; returns the name of its output."""
    if layer.kind in ("average_pool", "max_pool"):
        op = "GlobalAveragePool" if layer.kind == "average_pool" else "GlobalMaxPool"
        return graph.add("Flatten", [graph.add(op, [source], layer.name)], f"{layer.name}.flat", axis=1)
    weight = graph.constant(f"{layer.name}.weight", _weight(layer, parts[0]))
    bias = graph.constant(f"{layer.name}.bias", parts[1])
    if layer.kind == "dense":
        return graph.add("Gemm", [source, weight, bias], layer.name, transB=1)
    (top, bottom), (left, right) = layer.padding
    values = graph.add(
        "Conv",
        [source, weight, bias],
        layer.name,
        group=layer.input.channels if layer.kind == "depthwise" else 1,
        kernel_shape=[layer.kernel] * 2,
        pads=[top, left, bottom, right],
        strides=[layer.stride] * 2,
    )
    if layer.activation == "linear":
        return values
    if layer.activation == "relu":
        return graph.add("Relu", [values], f"{layer.name}.relu")
    clamps = [graph.constant(name, np.array(value, np.float32)) for name, value in (("zero", 0), ("six", 6))]
    return graph.add("Clip", [values, *clamps], f"{layer.name}.relu6")


def _weight(layer: Layer, weight: NDArray[np.float32]) -> NDArray[np.float32]:
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
        "preprocessing": json.dumps(model.preprocessing.to_dict()),
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
        given = [_attribute(name, value) for name, value in attributes.items()]
        self.nodes.append({1: inputs, 2: [output], 3: output, 4: op, 5: given})
        return output

    def constant(self, name: str, data: NDArray[np.float32]) -> str:
        """Adds a TensorProto; returns its name."""
        raw = data.astype(data.dtype.newbyteorder("<")).tobytes()
        self.constants[name] = {1: list(data.shape), 2: _FLOAT, 8: name, 9: raw}
        return name


def _attribute(name: str, value: int | Sequence[int]) -> Fields:
    values: dict[int, Value] = {3: value, 20: 2} if isinstance(value, int) else {8: list(value), 20: 7}
    return {1: name} | values
