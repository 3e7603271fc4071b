"""The model as the rivals' files: ONNX, LiteRT's flatbuffer, ncnn's text and weights; batch norm folded, float32.

All three take [N, C, H, W] scaled pixels ([N, H, W, C] for LiteRT) named "pixels" and give "logits" [N, classes], for
networks with a classifier.
"""

import struct
from typing import Any

import flatbuffers  # type: ignore[import-untyped]
import numpy as np
import onnx
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from mobilenet import weights
from mobilenet.arch import Layer
from mobilenet.model import Model

Array = NDArray[Any]


def out_in_rows_columns(layer: Layer, weight: Array) -> Array:
    """Returns a convolution's folded weight as [out, in of one group, kernel, kernel]."""
    if layer.kind == "depthwise":
        return np.ascontiguousarray(weight.transpose(2, 0, 1)[:, None])
    shape = (layer.kernel, layer.kernel, *weight.shape[-2:])
    return np.ascontiguousarray(weight.reshape(shape).transpose(3, 2, 0, 1))


def onnx_file(model: Model, batch: int) -> bytes:
    """Returns the model as ONNX for a fixed number of images."""
    network, folded = model.network, weights.fold(model.network, model.tensors)
    nodes: list[Any] = []
    constants: list[Any] = []

    def constant(label: str, array: Array) -> str:
        constants.append(numpy_helper.from_array(np.ascontiguousarray(array), label))
        return label

    def node(kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    clips = any(layer.activation == "relu6" for layer in network.layers)
    limits = [constant(f"limit{n}", np.asarray(n, np.float32)) for n in (0, 6)] if clips else []
    name, last = "pixels", network.layers[-1].name
    for layer in network.layers:
        out = "logits" if layer.name == last else layer.name
        if layer.kind == "average_pool":
            name = node("Flatten", [node("GlobalAveragePool", [name], f"{out}:map")], out)
            continue
        weight, bias = folded[f"{layer.name}.weight"], constant(f"{out}.bias", folded[f"{layer.name}.bias"])
        if layer.kind == "dense":
            name = node("Gemm", [name, constant(f"{out}.weight", weight), bias], out)
            continue
        (top, bottom), (left, right) = layer.padding
        inputs = [name, constant(f"{out}.weight", out_in_rows_columns(layer, weight)), bias]
        group = layer.output.channels if layer.kind == "depthwise" else 1
        plain = layer.activation == "linear" and not layer.adds
        name = node(
            "Conv",
            inputs,
            out if plain else f"{out}:sum",
            group=group,
            strides=[layer.stride] * 2,
            pads=[top, left, bottom, right],
            kernel_shape=[layer.kernel] * 2,
        )
        active = f"{out}:active" if layer.adds else out
        if layer.activation == "relu6":
            name = node("Clip", [name, *limits], active)
        elif layer.activation == "relu":
            name = node("Relu", [name], active)
        if layer.adds:
            name = node("Add", [name, layer.adds], out)
    shape = [batch, network.channels, network.height, network.width]
    pixels = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, shape)
    logits = helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, network.classes])
    graph = helper.make_graph(nodes, "mobilenet", [pixels], [logits], constants)
    built = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(built)
    return bytes(built.SerializeToString())


def tflite_file(model: Model, batch: int) -> bytes:
    """Returns the model as LiteRT reads it, for a fixed number of images; the network's padding must be TensorFlow's.

    Its names and numbers are those of the schema that LiteRT brings.
    """
    network, folded = model.network, weights.fold(model.network, model.tensors)
    whole, graph = schema.ModelT(), schema.SubGraphT()
    whole.version, whole.subgraphs, whole.buffers, whole.operatorCodes = 3, [graph], [schema.BufferT()], []
    graph.tensors, graph.operators = [], []
    activations = schema.ActivationFunctionType
    activation = {"linear": activations.NONE, "relu": activations.RELU, "relu6": activations.RELU6}

    def tensor(name: str, shape: tuple[int, ...], data: Array | None = None) -> int:
        made = schema.TensorT()
        made.name, made.shape = name.encode(), list(shape)
        made.type = schema.TensorType.FLOAT32 if data is None or data.dtype == np.float32 else schema.TensorType.INT32
        if data is not None:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(np.ascontiguousarray(data).tobytes(), np.uint8)
            made.buffer = len(whole.buffers)
            whole.buffers.append(buffer)
        graph.tensors.append(made)
        return len(graph.tensors) - 1

    def constant(name: str, data: Array) -> int:
        return tensor(name, data.shape, data)

    def operator(kind: str, inputs: list[int], output: int, options_kind: str, **options: Any) -> int:
        code = schema.OperatorCodeT()
        code.builtinCode = getattr(schema.BuiltinOperator, kind)
        code.deprecatedBuiltinCode = code.builtinCode
        made, chosen = schema.OperatorT(), getattr(schema, f"{options_kind}T")()
        for key, value in options.items():
            if not hasattr(chosen, key):
                raise AttributeError(f"{options_kind} has no {key}")
            setattr(chosen, key, value)
        made.opcodeIndex, made.inputs, made.outputs = len(whole.operatorCodes), inputs, [output]
        made.builtinOptionsType, made.builtinOptions = getattr(schema.BuiltinOptions, options_kind), chosen
        whole.operatorCodes.append(code)
        graph.operators.append(made)
        return output

    current = tensor("pixels", (batch, *network.input))
    graph.inputs = [current]
    places: dict[str, int] = {}
    for layer in network.layers:
        size, act = layer.output, activation[layer.activation]
        if layer.kind == "average_pool":
            axes = constant("axes", np.array([1, 2], np.int32))
            pooled = tensor(layer.name, (batch, size.channels))
            current = operator("MEAN", [current, axes], pooled, "ReducerOptions", keepDims=False)
            continue
        weight, bias = folded[f"{layer.name}.weight"], constant(f"{layer.name}.bias", folded[f"{layer.name}.bias"])
        if layer.kind == "dense":
            inputs = [current, constant(f"{layer.name}.weight", weight.T), bias]
            current = operator("FULLY_CONNECTED", inputs, tensor("logits", (batch, size.channels)),
                               "FullyConnectedOptions", fusedActivationFunction=act)  # fmt: skip
            continue
        for (before, after), side in zip(layer.padding, layer.input[:2], strict=True):
            needed = max((-(-side // layer.stride) - 1) * layer.stride + layer.kernel - side, 0)
            if (before, after) != (needed // 2, needed - needed // 2):
                raise ValueError(f"{layer.name}: padding {layer.padding} is not TensorFlow's SAME")
        options = {
            "padding": schema.Padding.SAME,
            "strideH": layer.stride,
            "strideW": layer.stride,
            "dilationHFactor": 1,
            "dilationWFactor": 1,
            "fusedActivationFunction": act,
        }
        out = tensor(layer.name, (batch, *size))
        if layer.kind == "depthwise":
            inputs = [current, constant(f"{layer.name}.weight", weight[None]), bias]
            options["depthMultiplier"] = 1
            current = operator("DEPTHWISE_CONV_2D", inputs, out, "DepthwiseConv2DOptions", **options)
        else:
            weight = out_in_rows_columns(layer, weight).transpose(0, 2, 3, 1)
            inputs = [current, constant(f"{layer.name}.weight", weight), bias]
            current = operator("CONV_2D", inputs, out, "Conv2DOptions", **options)
        if layer.adds:
            added = tensor(f"{layer.name}:added", (batch, *size))
            current = operator("ADD", [current, places[layer.adds]], added, "AddOptions",
                               fusedActivationFunction=activations.NONE)  # fmt: skip
        places[layer.name] = current
    graph.outputs = [current]
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(whole.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def ncnn_files(model: Model) -> tuple[str, bytes]:
    """Returns ncnn's .param text and .bin weights; ncnn runs one image at a time.

    Numbers before "=" are ncnn's keys: https://github.com/Tencent/ncnn/wiki/operators. A blob that is read twice needs
    a Split layer.
    """
    network, folded = model.network, weights.fold(model.network, model.tensors)
    shortcuts = {layer.adds for layer in network.layers if layer.adds}
    lines, data, name = ["Input pixels 0 1 pixels"], [], "pixels"
    codes = {"linear": "9=0", "relu": "9=1", "relu6": "9=3 -23310=2,0.0,6.0"}
    for layer in network.layers:
        out = "logits" if layer is network.layers[-1] else layer.name
        if layer.kind == "average_pool":
            lines.append(f"Pooling {out} 1 1 {name} {out} 0=1 4=1")
            name = out
            continue
        weight, bias = folded[f"{layer.name}.weight"], folded[f"{layer.name}.bias"]
        plain = weight.T if layer.kind == "dense" else out_in_rows_columns(layer, weight)
        data += [struct.pack("<I", 0), np.ascontiguousarray(plain).tobytes(), bias.tobytes()]  # 0: float32 follows
        if layer.kind == "dense":
            lines.append(f"InnerProduct {out} 1 1 {name} {out} 0={bias.size} 1=1 2={weight.size}")
            name = out
            continue
        (top, bottom), (left, right) = layer.padding
        kind, group = ("ConvolutionDepthWise", f" 7={bias.size}") if layer.kind == "depthwise" else ("Convolution", "")
        lines.append(
            f"{kind} {out} 1 1 {name} {out} 0={bias.size} 1={layer.kernel} 3={layer.stride} 4={left} 15={right} "
            f"14={top} 16={bottom} 5=1 6={weight.size}{group} {codes[layer.activation]}"
        )
        name = out
        if layer.adds:
            name = f"{out}:added"
            lines.append(f"BinaryOp {name} 2 1 {out} {layer.adds}:kept {name} 0=0")
        if layer.name in shortcuts:
            lines.append(f"Split {out}:split 1 2 {name} {out}:next {out}:kept")
            name = f"{out}:next"
    blobs = sum(int(line.split()[3]) for line in lines)
    return "\n".join(["7767517", f"{len(lines)} {blobs}", *lines]) + "\n", b"".join(data)
