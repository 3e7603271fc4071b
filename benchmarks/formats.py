"""The model as ncnn's text and weights, batch norm folded, float32: the one rival's format that `export` lacks.

It takes "pixels", scaled, [C, H, W], and gives "logits" [classes], for networks with a classifier.
"""

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
