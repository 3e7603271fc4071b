"""An int8 model in the terms of formats whose tensors have scales and zero points, and how far from it is right.

Our layers have multipliers, and what a tensor's values stand for only matters at the end. Other formats compute the
multipliers from scales. So the scales here are those that give the model's multipliers; of a model that `quantize` or
training made they are its own.

Two things are finer in our arithmetic. A shortcut is added to sums that have not been rounded; formats round them to a
tensor of its own first, whose range is taken so wide that nothing is clipped that would not be clipped after the
addition. And the pixels have a zero point a channel, which is also what they are padded with; formats have one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import integer
from ..arch import Layer, Network, Pads, Shape
from ..model import Model
from ..photos.preprocessing import Preprocessing
from ..quantized import PIXELS_ZERO, dequantised, largest_sums, lower_clamp

Array = NDArray[Any]
NO_PADS: Pads = ((0, 0), (0, 0))
_DRAWS = 8
_OFTEN, _SELDOM = 1 / 2, 1 / 32  # shares of values


class Affine(NamedTuple):
    """Is what a tensor's uint8 stand for: scale * (uint8 - zero); the scale is a float32 number."""

    scale: float
    zero: int


@dataclass(frozen=True, eq=False)
class Part:
    """Is a layer of an int8 model.

    Attributes:
        layer: as in the network; the first has the padding of `Quantised.border` taken away.
        source, output: its input and output; without an output it is the classifier.
        added: what the shortcut adds; None if there is none.
        sums: before the shortcut is added.
        low, high: clamps of the output.
        weight: int8 in our layout; empty of a pooling.
        bias: int32, in units of input scale * weight scale.
        scales: of the weights, float32 [out].
    """

    layer: Layer
    source: Affine
    output: Affine | None
    added: Affine | None
    sums: Affine | None
    low: int
    high: int
    weight: NDArray[np.int8]
    bias: NDArray[np.int32]
    scales: NDArray[np.float32]

    @property
    def clamps(self) -> bool:
        """Whether the output is clamped to less than uint8 holds."""
        return self.output is not None and (self.low, self.high) != (0, 255)


class Quantised(NamedTuple):
    """Is a whole model: its layers, and what a channel of the pixels is padded with ahead of the first; None if that is
    the zero point of all, with which the first layer pads."""

    parts: tuple[Part, ...]
    border: NDArray[np.uint8] | None


def quantised(model: Model) -> Quantised:
    """Returns an int8 model's layers with their scales."""
    network, tensors = model.network, model.tensors
    zeros = tensors[PIXELS_ZERO]
    source = Affine(1.0, int(zeros[0]))
    parts: list[Part] = []
    outputs: dict[str, Affine] = {}
    for layer in network.layers:
        part = _part(layer, tensors, source, outputs.get(layer.adds or ""), layer is network.layers[-1])
        parts.append(part)
        if part.output is not None:
            outputs[layer.name] = source = part.output
    if (zeros == zeros[0]).all():
        return Quantised(tuple(parts), None)
    parts[0] = _bordered(parts[0], zeros)
    return Quantised(tuple(parts), zeros.astype(np.uint8))


def _part(layer: Layer, tensors: Mapping[str, Array], source: Affine, added: Affine | None, last: bool) -> Part:
    def own(name: str, default: Any) -> Array:
        return np.asarray(tensors.get(f"{layer.name}.{name}", default))

    low, high = (0, 255) if layer.kind == "dense" else (lower_clamp(layer, tensors), int(own("high", 255)[0]))
    output = sums = None
    multiplier = own("multiplier", np.ones(1)).astype(np.float64)
    if layer.kind != "dense":
        scale = float(own("scale", 1.0)[0])
        if added:
            scale = added.scale / float(own("shortcut", 1.0)[0])
        elif layer.kind == "average_pool":
            scale = source.scale / (layer.input.height * layer.input.width * float(multiplier[0]))
        elif layer.kind == "max_pool":
            scale = source.scale
        elif high < 255 and not last:
            scale = 6 / max(high - low, 0.25)  # where 6 is told to be; a quarter of a step is none
        output = Affine(float(np.float32(scale)), int(own("zero", 0)[0]))
        sums = _before(added, output) if added else None
    weight, bias = own("weight", np.empty(0, np.int8)), own("bias", np.empty(0, np.int32))
    if layer.weight_shape is not None and output:
        weight, bias, multiplier = _without_still(layer, tensors, weight, bias, multiplier)
    scales = multiplier * (output.scale if output else 1.0) / source.scale
    return Part(layer, source, output, added, sums, low, high, weight, bias, scales.astype(np.float32))


def _before(added: Affine, output: Affine) -> Affine:
    """Returns what holds every sum that, with the tensor that is added, may lie within the output's range."""
    ratio = added.scale / output.scale
    least = -output.zero - (255 - added.zero) * ratio  # in steps of the output
    return Affine(float(np.float32(output.scale + added.scale)), int(np.clip(np.rint(-least / (1 + ratio)), 0, 255)))


def _without_still(
    layer: Layer, tensors: Mapping[str, Array], weight: Array, bias: Array, multiplier: Array
) -> tuple[Array, Array, Array]:
    """Returns the parts with zeros for channels that never differ from 0 by a step of the output.

    They come from channels without weights, and have scales so small that XNNPACK takes none of the layer for them.
    """
    still = largest_sums(layer, tensors) * multiplier < 0.5
    return np.where(still, np.int8(0), weight), np.where(still, np.int32(0), bias), np.where(still, 1.0, multiplier)


def _bordered(part: Part, zeros: NDArray[np.int32]) -> Part:
    """Returns the first layer for pixels that have been padded: with one zero point, its bias makes up for the rest."""
    layer = part.layer
    (top, bottom), (left, right) = layer.padding
    size = Shape(top + layer.input.height + bottom, left + layer.input.width + right, layer.input.channels)
    moved = (part.weight.astype(np.int64) * (zeros[0] - zeros.astype(np.int64))[:, np.newaxis]).sum((0, 1, 2))
    bias = (part.bias + moved).astype(np.int32)
    return replace(part, layer=replace(layer, input=size, padding=NO_PADS), bias=bias)


def preprocessing(model: Model, *, centred: bool) -> Preprocessing:
    """Returns how a photo becomes a file's input: an int8 model's takes pixels as they are, it scales none.

    `centred` is for formats whose readers take an input's own scale and zero point into account: less the latter.
    """
    if model.precision != "int8":
        return model.preprocessing
    mean = float(model.tensors[PIXELS_ZERO][0]) if centred else 0.0
    return replace(model.preprocessing, mean=(mean,), std=(1.0,))


# -------------------------------------------------------------------------------------------------------- tolerance


def tolerance(model: Model, pixels: NDArray[np.uint8]) -> Array:
    """Returns how far each output of a computation that rounds otherwise may be from `integer.forward`'s.

    A value that is rounded otherwise is off by a step, and what follows from that is no rounding any more. So it is
    measured: the model is run again with values moved a step up or down, but for those at a clamp, and the tolerance is
    twice the largest difference of any output that a few such runs make. After a shortcut and a pooling half of the
    values are moved (variance 1/2; the rounding ahead of a shortcut has 1/3, that of a hybrid classifier's input 1/12),
    of other layers one in 32: there only multipliers in fixed point or with another last bit make a difference.
    """
    right = integer.forward(model.network, model.tensors, pixels)
    moved = [_moved(model.network, model.tensors, pixels, seed) - right for seed in range(_DRAWS)]
    return np.full_like(right, 2 * np.abs(moved).max())


def _moved(network: Network, tensors: Mapping[str, Array], pixels: Array, seed: int) -> Array:
    generator = np.random.default_rng(seed)
    added: dict[str, Array] = {}
    x: Array = pixels
    for step in integer.IntegerNetwork(network, tensors).steps:
        x = integer.output(step, x, added.get(step.layer.adds or ""))
        if step.layer.kind == "dense":
            return x
        share = _OFTEN if step.layer.adds or step.layer.kind == "average_pool" else _SELDOM
        draw = generator.random(x.shape, np.float32)
        steps = (draw < share / 2).astype(np.int16) - (draw > 1 - share / 2)
        inside = (x > step.low) & (x < step.high)
        x = added[step.layer.name] = (x + steps * inside).astype(np.uint8)
    return dequantised(network.layers[-1], tensors, x)
