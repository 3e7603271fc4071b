"""What an int8 model's tensors are: names, shapes and types, computed from the network, and the checks that they fit.

A quantised network has the layers of `arch`, batch norm folded in. `integer.py` says what its tensors mean:

    pixels.zero     int32   [channels]  zero point of the pixels, whose scale is 1
    L.weight        int8    the layer's weight in the layout of the float file, -127..127
    L.bias          int32   [out]       in units of input scale · weight scale
    L.multiplier    float32 [out]       input scale · weight scale / output scale, without the last for the classifier;
                            [1] for average pooling, where it has the number of pixels
    L.shortcut      float32 [1]         scale of the added tensor / output scale
    L.scale         float32 [1]         of the output, which is scale · (uint8 - zero)
    L.zero          int32   [1]         zero point of the output, 0..255, the lower clamp after a ReLU
    L.high          int32   [1]         upper clamp: what 6 is after a ReLU6, else 255

That is the rescale "float", our own. With the rescale "full" everything between layers is bytes, as other runtimes have
it: the classifier too has scale, zero and clamps, and a shortcut is added to bytes. These tensors are other:

    L.weight        uint8   the layer's weight in the layout of the float file
    L.weight_zero   int32   [1]         zero point of the weights, 0..255
    L.sum_zero      int32   [1]         zero point of the layer's own output, before a shortcut is added
    L.sum_multiplier int32  [2]         scale of that output, and of the shortcut, / output scale, in units of
    L.sum_shift     int32   [1]         2^-shift; a shift of 0 and multipliers of 1 where the three scales are the same
    L.low           int32   [1]         lower clamp

The rescale "fixed" is that of TFLite's reference kernels, with the tensors of "full" but for these:

    L.multiplier    int32   [out]       input scale · weight scale / output scale as `fixed_point` has factors; [1] for
    L.shift         int32   [out]       average pooling: input scale / output scale / pixels, multiplier 0 for the mean
                                        itself, where the scales are the same (AVERAGE_POOL_2D)
    L.roundings     int32   [1]         of the classifier alone: how often its products are rounded, 2 as in all other
                                        layers, or 1 as in FULLY_CONNECTED
    L.origin        int32   [1]         of average pooling alone: the byte that is TFLite's 0, 0 or 128, from which
                                        halves of the mean itself are rounded away
    L.sum_multiplier, L.sum_shift  int32 [3]  of the layer's own output, of the shortcut, and of their sum
"""

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .arch import Layer, Network
from .common.checks import short
from .errors import ModelError
from .fixed_point import ADD_SHIFT
from .storage.tensors_file import Types

Rescale = Literal["float", "fixed", "full"]
PIXELS_ZERO = "pixels.zero"
EXACT = 1 << 24  # whole numbers below it are float32 numbers
LARGEST_SUM_MULTIPLIER = 1 << 21  # 510 times it, and half of 2^30, stay below 2^31
_SUMS = 1 << 31  # what an int32 sum stays below
_RESCALED = float(1 << 30)  # what a rescaled sum stays below, so that rounding it to an int32 is safe
_SMALLEST = float(np.finfo(np.float32).tiny)  # no product with a whole number is denormal then


class Spec(NamedTuple):
    """Is what a tensor must be."""

    shape: tuple[int, ...]
    type: str


def specs(network: Network, rescale: Rescale = "float") -> dict[str, Spec]:
    """Returns shape and type ("int8", "int32", …) of every tensor by name, in the order of the layers."""
    parts = {"float": _float_parts, "fixed": _fixed_parts, "full": _full_parts}[rescale]
    found = {PIXELS_ZERO: Spec((network.channels,), "int32")}
    for layer in network.layers:
        found |= {f"{layer.name}.{part}": spec for part, spec in parts(layer).items()}
    return found


def _float_parts(layer: Layer) -> dict[str, Spec]:
    parts: dict[str, Spec] = {}
    if layer.weight_shape is not None:
        outs = (layer.output.channels,)
        parts |= {"weight": Spec(layer.weight_shape, "int8"), "bias": Spec(outs, "int32")}
        parts |= {"multiplier": Spec(outs, "float32")}
    elif layer.kind == "average_pool":
        parts["multiplier"] = Spec((1,), "float32")
    if layer.adds is not None:
        parts["shortcut"] = Spec((1,), "float32")
    if layer.kind != "dense":
        parts |= {"scale": Spec((1,), "float32"), "zero": Spec((1,), "int32"), "high": Spec((1,), "int32")}
    return parts


def _fixed_parts(layer: Layer) -> dict[str, Spec]:
    one, outs, three = (Spec(shape, "int32") for shape in ((1,), (layer.output.channels,), (3,)))
    parts: dict[str, Spec] = {}
    if layer.weight_shape is not None:
        parts |= {"weight": Spec(layer.weight_shape, "uint8"), "weight_zero": one, "bias": outs}
        parts |= {"multiplier": outs, "shift": outs} | ({"roundings": one} if layer.kind == "dense" else {})
    elif layer.kind == "average_pool":
        parts |= {"multiplier": one, "shift": one, "origin": one}
    if layer.adds is not None:
        parts |= {"sum_zero": one, "sum_multiplier": three, "sum_shift": three}
    return parts | {"scale": Spec((1,), "float32"), "zero": one, "low": one, "high": one}


def _full_parts(layer: Layer) -> dict[str, Spec]:
    parts = _fixed_parts(layer)
    for name in ("shift", "roundings", "origin"):
        parts.pop(name, None)
    if "multiplier" in parts:
        parts["multiplier"] = Spec(parts["multiplier"].shape, "float32")
    if layer.adds is not None:
        parts |= {"sum_multiplier": Spec((2,), "int32"), "sum_shift": Spec((1,), "int32")}
    return parts


def rescale_of(layer: Layer, tensors: Mapping[str, NDArray[Any]]) -> Rescale:
    """Returns the rescale that a layer's tensors are of."""
    if f"{layer.name}.low" not in tensors:
        return "float"
    return "fixed" if f"{layer.name}.shift" in tensors else "full"


def types(network: Network, rescale: Rescale = "float") -> Types:
    """Returns the type of every tensor by name."""
    return {name: spec.type for name, spec in specs(network, rescale).items()}


def check_shapes(
    network: Network, shapes: Mapping[str, tuple[int, ...]], rescale: Rescale = "float"
) -> tuple[str, ...]:
    """Returns the tensors' names if `shapes` are exactly theirs, else raises a `ModelError` that names one."""
    needed = specs(network, rescale)
    what = f"{network} in int8" + ("" if rescale == "float" else f" with the rescale {rescale!r}")
    for name, (shape, _) in needed.items():
        if name not in shapes:
            raise ModelError(f"tensor {name!r} of shape {shape} is missing for {what}")
        if shapes[name] != shape:
            raise ModelError(f"tensor {name!r} has shape {shapes[name]}, needed is {shape} for {what}")
    for name in shapes:
        if name not in needed:
            raise ModelError(f"tensor {short(name)} does not belong to {what}")
    return tuple(needed)


def check(network: Network, tensors: Mapping[str, NDArray[Any]], rescale: Rescale = "float") -> None:
    """Checks names, shapes, types and values, so that no sum can leave int32 and no rescaled sum its range.

    Raises:
        ModelError: names the first tensor that does not fit, what it holds and what is needed.
    """
    check_shapes(network, {name: tensor.shape for name, tensor in tensors.items()}, rescale)
    for name, spec in specs(network, rescale).items():
        if tensors[name].dtype != np.dtype(spec.type):
            raise ModelError(f"tensor {name!r} has type {tensors[name].dtype}, needed is {spec.type}")
    check_values(network, tensors, rescale)


def check_values(network: Network, tensors: Mapping[str, NDArray[Any]], rescale: Rescale = "float") -> None:
    """Raises a `ModelError` that names the first tensor of `specs` with a value outside its range."""
    _within(PIXELS_ZERO, tensors, 0, 255)
    check_layer = {"float": _check_float, "fixed": _check_fixed, "full": _check_full}[rescale]
    before: Layer | None = None
    for layer in network.layers:
        check_layer(layer, tensors)
        if layer.kind == "max_pool" and before is not None:
            for name in ("scale", "zero"):
                _same(f"{layer.name}.{name}", f"{before.name}.{name}", tensors)
        before = layer


def _check_float(layer: Layer, tensors: Mapping[str, NDArray[Any]]) -> None:
    part = {name: f"{layer.name}.{name}" for name in ("weight", "zero", "high", "scale", "multiplier", "shortcut")}
    for name in ("scale", "multiplier", "shortcut"):
        if part[name] in tensors:
            _positive(part[name], tensors[part[name]])
    if layer.kind != "dense":
        _within(part["zero"], tensors, 0, 255)
        top = 255 if layer.activation == "relu6" else None
        _within(part["high"], tensors, lower_clamp(layer, tensors) if top else 255, 255)
    if layer.weight_shape is not None:
        _within(part["weight"], tensors, -127, 127)
    _check_sums(layer, tensors)


def _check_bytes(layer: Layer, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Checks what the rescales "fixed" and "full" have in common."""
    part = {name: f"{layer.name}.{name}" for name in ("scale", "zero", "low", "high", "weight_zero", "sum_zero")}
    _positive(part["scale"], tensors[part["scale"]])
    for name in ("zero", "low", "weight_zero", "sum_zero"):
        if part[name] in tensors:
            _within(part[name], tensors, 0, 255)
    _within(part["high"], tensors, int(tensors[part["low"]][0]), 255)


def _check_full(layer: Layer, tensors: Mapping[str, NDArray[Any]]) -> None:
    _check_bytes(layer, tensors)
    if layer.kind != "max_pool":
        _positive(f"{layer.name}.multiplier", tensors[f"{layer.name}.multiplier"])
    _check_sums(layer, tensors)
    if layer.adds is not None:
        multiplier, shift = f"{layer.name}.sum_multiplier", f"{layer.name}.sum_shift"
        _within(multiplier, tensors, 0, LARGEST_SUM_MULTIPLIER)
        _within(shift, tensors, 0, 30)


def _check_fixed(layer: Layer, tensors: Mapping[str, NDArray[Any]]) -> None:
    def part(name: str) -> str:
        return f"{layer.name}.{name}"

    _check_bytes(layer, tensors)
    if layer.kind == "average_pool":
        _within(part("origin"), tensors, 0, 128)
    if layer.kind == "dense":
        _within(part("roundings"), tensors, 1, 2)
    if layer.kind != "max_pool":
        _check_factors(part(""), tensors, largest_sums(layer, tensors))
    if layer.adds is not None:
        # Differences of bytes; the sum of two products with factors of at most 1.
        _check_factors(part("sum_"), tensors, np.array([255, 255, 510], np.int64) << ADD_SHIFT)


def _check_factors(prefix: str, tensors: Mapping[str, NDArray[Any]], largest: NDArray[np.int64]) -> None:
    """Checks multipliers and shifts, and that numbers up to `largest` stay below 2^31 when they are shifted left."""
    _within(f"{prefix}multiplier", tensors, 0, (1 << 31) - 1)
    _within(f"{prefix}shift", tensors, -31, 30)
    shifts = tensors[f"{prefix}shift"].astype(np.int64)
    if prefix.endswith("sum_"):
        _within(f"{prefix}shift", tensors, -31, 0)
    shifted = largest << np.maximum(shifts, 0)
    if int(shifted.max()) >= _SUMS or int(largest.max()) >= _SUMS:
        channel = int(np.argmax(shifted))
        raise ModelError(f"layer {prefix.rpartition('.')[0]!r}: channel {channel}: the sum may reach "
                         f"{int(shifted.max()):,} and must stay below {_SUMS:,}")  # fmt: skip


def lower_clamp(layer: Layer, tensors: Mapping[str, NDArray[Any]]) -> int:
    """Returns the least output of a layer: what 0 is after a ReLU, else 0."""
    if f"{layer.name}.low" in tensors:
        return int(tensors[f"{layer.name}.low"][0])
    return 0 if layer.activation == "linear" else int(tensors[f"{layer.name}.zero"][0])


def largest_sums(layer: Layer, tensors: Mapping[str, NDArray[Any]]) -> NDArray[np.int64]:
    """Returns a bound on the magnitude of each output channel's sum, bias included."""
    if layer.weight_shape is None:
        return np.array([255 * layer.input.height * layer.input.width], np.int64)
    weight, bias = centred_weight(layer, tensors), tensors[f"{layer.name}.bias"]
    # One channel's sum has at most 9 · 65,536 terms: int64 has room for any.
    total = np.abs(weight).reshape(-1, layer.output.channels).sum(0, dtype=np.int64)
    return np.asarray(255 * total + np.abs(bias.astype(np.int64)))


def centred_weight(layer: Layer, tensors: Mapping[str, NDArray[Any]]) -> NDArray[np.int16]:
    """Returns a layer's weights without their zero point."""
    zero = tensors.get(f"{layer.name}.weight_zero", np.zeros(1, np.int32))
    return np.asarray(tensors[f"{layer.name}.weight"].astype(np.int16) - zero.astype(np.int16))


def _check_sums(layer: Layer, tensors: Mapping[str, NDArray[Any]]) -> None:
    if layer.kind == "max_pool":
        return
    sums = largest_sums(layer, tensors)
    if int(sums.max()) >= _SUMS:
        raise ModelError(f"layer {layer.name!r}: channel {int(sums.argmax())}: the sum may reach {int(sums.max()):,} "
                         f"and must stay below {_SUMS:,}")  # fmt: skip
    rescaled = np.asarray(sums * tensors[f"{layer.name}.multiplier"].astype(np.float64), np.float64)
    if f"{layer.name}.shortcut" in tensors:
        rescaled = rescaled + 255.0 * float(tensors[f"{layer.name}.shortcut"][0])
    if float(rescaled.max()) >= _RESCALED:
        raise ModelError(f"layer {layer.name!r}: channel {int(rescaled.argmax())}: the rescaled sum may reach "
                         f"{rescaled.max():g} and must stay below {_RESCALED:g}")  # fmt: skip


def _within(name: str, tensors: Mapping[str, NDArray[Any]], low: int, high: int) -> None:
    for value in (int(tensors[name].min()), int(tensors[name].max())):
        if not low <= value <= high:
            needed = f"{low} to {high}" if low < high else f"{high}"
            raise ModelError(f"tensor {name!r} holds {value}, needed is {needed}")


def _positive(name: str, tensor: NDArray[np.float32]) -> None:
    for value in (float(tensor.min()), float(tensor.max())):
        if not (math.isfinite(value) and value >= _SMALLEST):
            raise ModelError(f"tensor {name!r} holds {value:g}, needed is a finite number from {_SMALLEST:g} up")


def _same(name: str, other: str, tensors: Mapping[str, NDArray[Any]]) -> None:
    if tensors[name][0] != tensors[other][0]:
        raise ModelError(f"tensor {name!r} holds {tensors[name][0]}, needed is {tensors[other][0]} as in {other!r}")


def dequantised(layer: Layer, tensors: Mapping[str, NDArray[Any]], output: NDArray[Any]) -> NDArray[np.float32]:
    """Returns the numbers that a layer's uint8 output stands for."""
    zero, scale = tensors[f"{layer.name}.zero"], tensors[f"{layer.name}.scale"]
    return np.asarray((output.astype(np.int32) - zero).astype(np.float32) * scale, np.float32)


def weight_scales(network: Network, tensors: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float64]]:
    """Returns the scale of each output channel's weights, by the layer's name: the multiplier without the other two."""
    found: dict[str, NDArray[np.float64]] = {}
    source = 1.0
    for layer in network.layers:
        target = float(tensors.get(f"{layer.name}.scale", np.ones(1))[0])
        if layer.weight_shape is not None:
            factor = tensors[f"{layer.name}.multiplier"].astype(np.float64)
            if f"{layer.name}.shift" in tensors:
                factor = np.ldexp(factor, tensors[f"{layer.name}.shift"] - 31)
            found[layer.name] = factor * target / source
        source = target
    return found
