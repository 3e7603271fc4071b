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
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .arch import Layer, Network
from .common.checks import short
from .errors import ModelError
from .storage.tensors_file import Types

PIXELS_ZERO = "pixels.zero"
EXACT = 1 << 24  # whole numbers below it are float32 numbers
_SUMS = 1 << 31  # what an int32 sum stays below
_RESCALED = float(1 << 30)  # what a rescaled sum stays below, so that rounding it to an int32 is safe
_SMALLEST = float(np.finfo(np.float32).tiny)  # no product with a whole number is denormal then


class Spec(NamedTuple):
    """Is what a tensor must be."""

    shape: tuple[int, ...]
    type: str


def specs(network: Network) -> dict[str, Spec]:
    """Returns shape and type ("int8", "int32" or "float32") of every tensor by name, in the order of the layers."""
    found = {PIXELS_ZERO: Spec((network.channels,), "int32")}
    for layer in network.layers:
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
        found |= {f"{layer.name}.{part}": spec for part, spec in parts.items()}
    return found


def types(network: Network) -> Types:
    """Returns the type of every tensor by name."""
    return {name: spec.type for name, spec in specs(network).items()}


def check_shapes(network: Network, shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
    """Returns the tensors' names if `shapes` are exactly theirs, else raises a `ModelError` that names one."""
    needed = specs(network)
    for name, (shape, _) in needed.items():
        if name not in shapes:
            raise ModelError(f"tensor {name!r} of shape {shape} is missing for {network} in int8")
        if shapes[name] != shape:
            raise ModelError(f"tensor {name!r} has shape {shapes[name]}, needed is {shape} for {network} in int8")
    for name in shapes:
        if name not in needed:
            raise ModelError(f"tensor {short(name)} does not belong to {network} in int8")
    return tuple(needed)


def check(network: Network, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Checks names, shapes, types and values, so that no sum can leave int32 and no rescaled sum its range.

    Raises:
        ModelError: names the first tensor that does not fit, what it holds and what is needed.
    """
    check_shapes(network, {name: tensor.shape for name, tensor in tensors.items()})
    for name, spec in specs(network).items():
        if tensors[name].dtype != np.dtype(spec.type):
            raise ModelError(f"tensor {name!r} has type {tensors[name].dtype}, needed is {spec.type}")
    check_values(network, tensors)


def check_values(network: Network, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Raises a `ModelError` that names the first tensor of `specs` with a value outside its range."""
    _within(PIXELS_ZERO, tensors, 0, 255)
    before: Layer | None = None
    for layer in network.layers:
        part = {name: f"{layer.name}.{name}" for name in ("weight", "zero", "high", "scale", "multiplier", "shortcut")}
        for name in ("scale", "multiplier", "shortcut"):
            if part[name] in tensors:
                _positive(part[name], tensors[part[name]])
        if layer.kind != "dense":
            _within(part["zero"], tensors, 0, 255)
            top = 255 if layer.activation == "relu6" else None
            _within(part["high"], tensors, lower_clamp(layer, tensors) if top else 255, 255)
        if layer.kind == "max_pool" and before is not None:
            for name in ("scale", "zero"):
                _same(part[name], f"{before.name}.{name}", tensors)
        if layer.weight_shape is not None:
            _within(part["weight"], tensors, -127, 127)
        _check_sums(layer, tensors)
        before = layer


def lower_clamp(layer: Layer, tensors: Mapping[str, NDArray[Any]]) -> int:
    """Returns the least output of a layer: what 0 is after a ReLU, else 0."""
    return 0 if layer.activation == "linear" else int(tensors[f"{layer.name}.zero"][0])


def largest_sums(layer: Layer, tensors: Mapping[str, NDArray[Any]]) -> NDArray[np.int64]:
    """Returns a bound on the magnitude of each output channel's sum, bias included."""
    if layer.weight_shape is None:
        return np.array([255 * layer.input.height * layer.input.width], np.int64)
    weight, bias = tensors[f"{layer.name}.weight"], tensors[f"{layer.name}.bias"]
    # One channel's sum has at most 9 · 65,536 terms: int64 has room for any.
    total = np.abs(weight.astype(np.int16)).reshape(-1, layer.output.channels).sum(0, dtype=np.int64)
    return np.asarray(255 * total + np.abs(bias.astype(np.int64)))


def _check_sums(layer: Layer, tensors: Mapping[str, NDArray[Any]]) -> None:
    if layer.kind == "max_pool":
        return
    sums = largest_sums(layer, tensors)
    if int(sums.max()) >= _SUMS:
        raise ModelError(f"layer {layer.name!r}: channel {int(sums.argmax())}: the sum may reach {int(sums.max()):,} "
                         f"and must stay below {_SUMS:,}")  # fmt: skip
    rescaled = np.asarray(sums * tensors[f"{layer.name}.multiplier"].astype(np.float64), np.float64)
    if layer.adds is not None:
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
        target = float(tensors[f"{layer.name}.scale"][0]) if layer.kind != "dense" else 1.0
        if layer.weight_shape is not None:
            found[layer.name] = tensors[f"{layer.name}.multiplier"].astype(np.float64) * target / source
        source = target
    return found
