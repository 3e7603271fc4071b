"""The tensors of an int8 model with the rescale "fixed" or "full", from a TFLite file of uint8 or int8 numbers alone.

Whole numbers of a file stand for scale · (number - zero point). Those of int8 files become bytes by adding 128 to them
and to their zero points, weights too. What TFLite computes with is computed here as its kernels do when they prepare
themselves: the factors of the sums in float64, but of uint8 convolutions and of fully connected layers from a product
that is rounded to float32; the clamps in float32.

That is the rescale "fixed", of the reference kernels. "full" is what LiteRT computes without being asked for anything,
with XNNPACK: there factors are products and quotients in float32, those of an addition whole numbers of 21 bits.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..arch import SCALINGS, Layer, Network
from ..errors import ModelError
from ..fixed_point import ADD_SHIFT, factors
from ..formats.tflite_graph import Graph, Operator, Quantization, Tensor
from ..formats.tflite_schema import Activation, Op, Type
from ..model import usual_preprocessing
from ..photos.preprocessing import Preprocessing
from ..quantized import PIXELS_ZERO, Rescale

Arrays = dict[str, NDArray[Any]]

_SAME = (Op.PAD, Op.RESHAPE, Op.SQUEEZE, Op.AVERAGE_POOL_2D, Op.MAX_POOL_2D, Op.REDUCE_MAX)  # scales as their inputs
_SCALES = 1e-9, 1e9  # between which every scale of activations lies, and below which one of weights: no overflows
_POOL_SCALES = 1e-6  # by which TFLite lets the scales of a pooling differ
_BIAS_SCALES = 0.02  # by which it lets the scale of a bias differ, in units of the output's
_PIXEL_SCALES = 1 / 64  # by which the scale of the input may differ from that of the pixels: of four bytes one step

_AS_THEY_ARE = (0.0,), (1.0,)  # mean and deviation of pixels that are not scaled


class Place(NamedTuple):
    """Is where a layer stands in the graph.

    Attributes:
        operator: that computes it.
        addition: the operator that adds a shortcut.
        shortcut: the tensor that is added.
    """

    operator: Operator
    addition: Operator | None = None
    shortcut: int = -1

    @property
    def result(self) -> int:
        """The tensor of the layer's output, with its shortcut."""
        return (self.addition or self.operator).outputs[0]


class _Scale(NamedTuple):
    """Is what a tensor of activations stands for, as bytes: scale · (byte - zero)."""

    scale: np.float32
    zero: int


def check_operator(graph: Graph, operator: Operator, kind: Type) -> None:
    """Checks that an operator's tensors have the numbers of an integer network.

    Raises:
        ModelError: names the tensor with another type, without scale, or with a zero point outside its type.
    """
    source, target = (_scale(graph, index, kind) for index in (operator.inputs[0], operator.outputs[0]))
    if operator.op in _SAME and (abs(source.scale - target.scale) > _POOL_SCALES or source.zero != target.zero):
        raise _error(graph.tensors[operator.outputs[0]], f"has scale {target.scale:g} and zero point {target.zero} as "
                     f"a byte, needed are those of its input, {source.scale:g} and {source.zero}")  # fmt: skip
    if operator.op == Op.SOFTMAX and (target.scale != np.float32(1 / 256) or target.zero != 0):
        raise _error(graph.tensors[operator.outputs[0]], f"has scale {target.scale:g} and zero point {target.zero} as "
                     "a byte, needed of a softmax are 1/256 and 0")  # fmt: skip
    for index in operator.inputs[1:2] if operator.op == Op.ADD else ():
        _scale(graph, index, kind)


def tensors_of(network: Network, graph: Graph, places: Sequence[Place], rescale: Rescale = "fixed") -> Arrays:
    """Returns the int8 model's tensors; `places` are those of the network's layers, `rescale` is "fixed" or "full".

    Raises:
        ModelError: names the tensor whose quantisation no kernel of TFLite's has.
    """
    kind = graph.tensors[graph.inputs[0]].type
    tensors: Arrays = {PIXELS_ZERO: np.full(network.channels, _scale(graph, graph.inputs[0], kind).zero, np.int32)}
    for layer, place in zip(network.layers, places, strict=True):
        operator = place.operator
        found = _output(graph, place, kind)
        if layer.weight_shape is not None:
            found |= _weights(graph, layer, operator, kind, rescale)
        elif layer.kind == "average_pool":
            found |= _average(graph, layer, operator, kind, rescale)
        if place.addition is not None:
            found |= _addition(graph, place, kind, rescale)
        tensors |= {f"{layer.name}.{part}": value for part, value in found.items()}
    return tensors


def preprocessing_of(
    network: Network, source: Tensor, told: Preprocessing | None, *, floats: bool = False
) -> Preprocessing:
    """Returns the preprocessing whose pixels are the network's input as they are.

    Args:
        told: by the file's metadata, if it says something.
        floats: the file takes floats, which it makes the network's bytes of: they must be pixels in a usual scaling.

    Raises:
        ModelError: the pixels, as the metadata or else some usual scaling has them, are not the bytes of the input.
    """
    scale, zero = _byte_scale(source)

    def fits(means: Sequence[float], stds: Sequence[float]) -> bool:
        pairs = zip(means, stds, strict=True)
        return all(abs(mean - zero) <= 1 and abs(std * float(scale) - 1) <= _PIXEL_SCALES for mean, std in pairs)

    if told is None and floats and not any(fits(*scaling) for scaling in (*SCALINGS.values(), _AS_THEY_ARE)):
        raise _error(source, f"has scale {scale:g} and zero point {zero} as a byte, which no pixel scaling of "
                     f"{', '.join(SCALINGS)} or none gives: a photo's bytes are not the input as they are")  # fmt: skip
    if told is not None:
        if not fits(told.mean, told.std):
            raise _error(source, f"has scale {scale:g} and zero point {zero} as a byte, but by the metadata pixels "
                         f"have mean {told.mean} and std {told.std}: they are not the input as they are")  # fmt: skip
        return told
    usual = usual_preprocessing(network).to_dict()
    return Preprocessing.from_dict(usual | {"mean": [float(zero)], "std": [_reciprocal(scale)]})


def _reciprocal(scale: np.float32) -> float:
    """Returns 1 / scale, a whole number if that is what the scale was made of."""
    exact = 1 / float(scale)
    return float(round(exact)) if np.float32(1 / max(round(exact), 1)) == scale else exact


def _output(graph: Graph, place: Place, kind: Type) -> Arrays:
    """Returns scale, zero point and clamps of a layer's output."""
    target = _scale(graph, place.result, kind)
    low, high = 0, 255
    if place.operator.activation != Activation.LINEAR:
        low = max(low, target.zero)
    if place.operator.activation == Activation.RELU6:
        high = min(high, target.zero + int(np.floor(np.float32(6) / target.scale + np.float32(0.5))))
    whole = {"zero": target.zero, "low": low, "high": high}
    return {"scale": np.array([target.scale], np.float32)} | {name: _whole(value) for name, value in whole.items()}


def _whole(value: int) -> NDArray[np.int32]:
    return np.array([value], np.int32)


def _weights(graph: Graph, layer: Layer, operator: Operator, kind: Type, rescale: Rescale) -> Arrays:
    weight = graph.tensors[operator.inputs[1]]
    source, target = (_scale(graph, index, kind) for index in (operator.inputs[0], operator.outputs[0]))
    channels = layer.output.channels
    scales, zero = _weight_scales(weight, operator, kind, channels)
    if kind == Type.UINT8 or (operator.op == Op.FULLY_CONNECTED and scales.size == 1):
        products = (source.scale * scales).astype(np.float64)
    else:
        products = float(source.scale) * scales.astype(np.float64)
    bias = np.zeros(channels, np.int32)
    if len(operator.inputs) > 2 and operator.inputs[2] >= 0:
        _check_bias(graph.tensors[operator.inputs[2]], products, float(target.scale))
        bias = np.asarray(graph.tensors[operator.inputs[2]].data, np.int32)
    numbers = np.asarray(weight.data).astype(np.int16) + (128 if kind == Type.INT8 else 0)
    found: Arrays = {
        "weight": np.ascontiguousarray(_layout(numbers, layer), np.uint8),
        "weight_zero": _whole(zero),
        "bias": bias,
    }
    if rescale == "full":
        return found | {"multiplier": np.broadcast_to(source.scale * scales / target.scale, channels).copy()}
    if layer.kind == "dense":
        found["roundings"] = _whole(1 if operator.op == Op.FULLY_CONNECTED else 2)
    return found | factors(np.broadcast_to(products / float(target.scale), channels))._asdict()


def _layout(weight: NDArray[Any], layer: Layer) -> NDArray[Any]:
    """Returns a weight, [out, k, k, in] or [1, k, k, channels] or [out, in], in our layout."""
    assert layer.weight_shape is not None
    return (weight if layer.kind == "depthwise" else np.moveaxis(weight, 0, -1)).reshape(layer.weight_shape)


def _weight_scales(weight: Tensor, operator: Operator, kind: Type, channels: int) -> tuple[NDArray[np.float32], int]:
    """Returns the scales, one or one a channel, and the zero point of the weights as bytes."""
    found = _quantization(weight)
    axis = 3 if operator.op == Op.DEPTHWISE_CONV_2D else 0
    if found.scale.size > 1 and (kind == Type.UINT8 or found.axis != axis or found.scale.size != channels):
        raise _error(weight, f"has {found.scale.size:,} scales for axis {found.axis}; needed is one, or of int8 one "
                     f"for each of the {channels:,} channels, axis {axis}")  # fmt: skip
    low, high = (0, 255) if kind == Type.UINT8 else (0, 0)
    for zero in (int(found.zero_point.min()), int(found.zero_point.max())):
        if not low <= zero <= high:
            raise _error(weight, f"has zero point {zero}, needed is {low} to {high}" if high else
                         f"has zero point {zero}, needed of int8 weights is 0")  # fmt: skip
    if float(found.scale.max()) > _SCALES[1]:
        raise _error(weight, f"has scale {found.scale.max():g}, needed is at most {_SCALES[1]:g}")
    return found.scale, int(found.zero_point[0]) + (128 if kind == Type.INT8 else 0)


def _check_bias(bias: Tensor, products: NDArray[np.float64], scale: float) -> None:
    """Checks a bias's scale, where it says one: that of the sums."""
    found = bias.quantization
    if found is None:
        return
    if found.zero_point.any():
        raise _error(bias, "has a zero point, which no bias has")
    fits = found.scale.size in (1, products.size)
    if not fits or (np.abs(found.scale.astype(np.float64) - products) > _BIAS_SCALES * scale).any():
        raise _error(bias, "has other scales than the products of its input's and its weight's")


def _average(graph: Graph, layer: Layer, operator: Operator, kind: Type, rescale: Rescale) -> Arrays:
    source, target = (_scale(graph, index, kind) for index in (operator.inputs[0], operator.outputs[0]))
    pixels = layer.input.height * layer.input.width
    if rescale == "full":
        # AVERAGE_POOL_2D rounds halves away from 0, which to bytes is up, to int8 down for most means, those below 0:
        # so little is the factor changed that nothing but halves is rounded otherwise.
        halves = 1 + (2.0**-22 if kind == Type.UINT8 else -(2.0**-22))
        factor = float(source.scale / target.scale) if operator.op == Op.MEAN else halves
        return {"multiplier": np.array([factor / pixels], np.float32)}
    multiplier, shift = np.zeros(1, np.int32), np.zeros(1, np.int32)
    if operator.op == Op.MEAN:
        multiplier, shift = factors(float(source.scale) / float(target.scale))
        if not multiplier[0]:
            raise _error(graph.tensors[operator.outputs[0]], f"has scale {target.scale:g}, too large for a mean of "
                         f"{source.scale:g}")  # fmt: skip
        # As many bits as the multiplier may gain before it is divided by the number of pixels.
        more = min(pixels.bit_length() - 1, 32, 31 + int(shift[0]))
        multiplier = np.asarray((multiplier.astype(np.int64) << more) // pixels, np.int32)
        shift = shift - np.int32(more)
    return {"multiplier": multiplier, "shift": shift, "origin": _whole(0 if kind == Type.UINT8 else 128)}


def _addition(graph: Graph, place: Place, kind: Type, rescale: Rescale) -> Arrays:
    own, shortcut, target = (
        _scale(graph, index, kind) for index in (place.operator.outputs[0], place.shortcut, place.result)
    )
    found: Arrays = {"sum_zero": _whole(own.zero)}
    if rescale == "full":
        ratios = np.array([own.scale, shortcut.scale], np.float32) / target.scale
        places = 21 - int(np.frexp(ratios.max())[1])  # the larger has 21 bits then
        if not 0 <= places <= 30:
            raise _error(graph.tensors[place.result], f"has scale {target.scale:g}, too far from those of what is "
                         f"added, {own.scale:g} and {shortcut.scale:g}")  # fmt: skip
        return found | {
            "sum_multiplier": np.rint(np.ldexp(ratios, places)).astype(np.int32),
            "sum_shift": _whole(places),
        }
    twice = 2 * float(max(own.scale, shortcut.scale))
    real = (float(own.scale) / twice, float(shortcut.scale) / twice, twice / ((1 << ADD_SHIFT) * float(target.scale)))
    if real[2] >= 1:
        raise _error(graph.tensors[place.result], f"has scale {target.scale:g}, too small for a sum of {twice / 2:g}")
    multiplier, shift = factors(real)
    return found | {"sum_multiplier": multiplier, "sum_shift": shift}


def _scale(graph: Graph, index: int, kind: Type) -> _Scale:
    tensor = graph.tensors[index]
    if tensor.type != kind:
        raise _error(tensor, f"is {tensor.type.name}, needed is {kind.name} as the input; a file of whole numbers must "
                     "have no others")  # fmt: skip
    return _byte_scale(tensor)


def _byte_scale(tensor: Tensor) -> _Scale:
    found = _quantization(tensor)
    low, high = (0, 255) if tensor.type == Type.UINT8 else (-128, 127)
    if found.scale.size != 1 or not low <= int(found.zero_point[0]) <= high:
        raise _error(tensor, f"has {found.scale.size} scales and zero point {int(found.zero_point[0])}; needed are one "
                     f"and {low} to {high}")  # fmt: skip
    if not _SCALES[0] <= float(found.scale[0]) <= _SCALES[1]:
        raise _error(tensor, f"has scale {found.scale[0]:g}, needed is {_SCALES[0]:g} to {_SCALES[1]:g}")
    return _Scale(found.scale[0], int(found.zero_point[0]) - low)


def _quantization(tensor: Tensor) -> Quantization:
    if tensor.quantization is None:
        raise _error(tensor, "has no scale, as every tensor of whole numbers must")
    return tensor.quantization


def _error(tensor: Tensor, text: str) -> ModelError:
    return ModelError(f"TFLite: tensor {tensor.name!r} {text}")
