"""An int8 model in the terms of formats whose tensors have scales and zero points, and how far from it is right.

Our layers have multipliers; other formats have scales, from which runtimes compute multipliers in float32: input scale
* weight scale / output scale, rounded after each step. What a tensor between layers stands for matters to no result:
its scale is divided by in one layer and multiplied with in the next. So those scales are powers of two, near the true
ones, and the weights' scales are the multipliers times a power of two: in whatever order they are computed, nothing is
rounded, and the runtime's multipliers are the model's. Where that holds (`Quantised.exact`), ONNX Runtime and XNNPACK
give the model's outputs bit for bit.

It can't hold with the rescale "float" where there are shortcuts: they are added to sums that have not been rounded, and
formats round those to a tensor of its own first, whose range is taken so wide that nothing is clipped that would not be
clipped after the addition. Nor is it sure where something else says what a scale is: a ReLU6 whose clamp is below 255,
a last output whose scale is told, a pooling whose multiplier is no short fraction. There the nearest scales are taken.

The pixels have a zero point a channel, which is also what they are padded with; formats have one.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import integer
from ..arch import Layer, Network, Pads, Shape
from ..errors import ModelError
from ..model import Model
from ..photos.preprocessing import Preprocessing
from ..quantized import PIXELS_ZERO, centred_weight, dequantised, largest_sums, lower_clamp

Array = NDArray[Any]
NO_PADS: Pads = ((0, 0), (0, 0))
_DRAWS = 8
_OFTEN, _SELDOM = 1 / 2, 1 / 32  # shares of values
_SHORT = 256  # a pooling's scales are as so many 256ths where that gives its multiplier


class Affine(NamedTuple):
    """Is what a tensor's uint8 stand for: scale * (uint8 - zero); the scale is a float32 number."""

    scale: float
    zero: int


@dataclass(frozen=True, eq=False)
class Part:
    """Is a layer of an int8 model.

    Attributes:
        layer: as in the network; the first has the padding of `Quantised.border` taken away.
        source, output: its input and output; without an output it is a classifier whose logits are float32.
        added: what the shortcut adds; None if there is none.
        sums: before the shortcut is added.
        low, high: clamps of the output.
        weight: int8 in our layout; empty of a pooling.
        bias: int32, in units of input scale * weight scale.
        scales: of the weights, float32 [out].
        multiplier: the model's, float32 [out].
        exact: whether runtimes compute from the scales what the model does.
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
    multiplier: NDArray[np.float32]
    exact: bool

    @property
    def clamps(self) -> bool:
        """Whether the output is clamped to less than uint8 holds."""
        return self.output is not None and (self.low, self.high) != (0, 255)


class Quantised(NamedTuple):
    """Is a whole model.

    Attributes:
        parts: its layers.
        border: what a channel of the pixels is padded with ahead of the first layer; None if that is the zero point of
            all, with which the layer pads.
        true: what the last output truly stands for, if it is uint8.
    """

    parts: tuple[Part, ...]
    border: NDArray[np.uint8] | None
    true: Affine | None

    @property
    def exact(self) -> bool:
        """Whether runtimes that multiply in float32 and round to the nearest even compute the model to the last bit."""
        return all(part.exact for part in self.parts)


def quantised(model: Model, *, told: bool = False) -> Quantised:
    """Returns an int8 model's layers with their scales.

    Args:
        told: the last output has its true scale; else it is written with another, and must be read with the true one.

    Raises:
        ModelError: names a layer whose weights do not fit int8 once their zero point is taken off.
    """
    network, tensors = model.network, model.tensors
    zeros = tensors[PIXELS_ZERO]
    scales = _scales(network, tensors, told)
    source = Affine(1.0, int(zeros[0]))
    parts: list[Part] = []
    outputs: dict[str, Affine] = {}
    for layer in network.layers:
        part = _part(layer, tensors, source, outputs.get(layer.adds or ""), scales.get(layer.name))
        parts.append(part)
        if part.output is not None:
            outputs[layer.name] = source = part.output
    last = network.layers[-1].name
    true = Affine(float(tensors[f"{last}.scale"][0]), source.zero) if last in scales else None
    if (zeros == zeros[0]).all():
        return Quantised(tuple(parts), None, true)
    parts[0] = _bordered(parts[0], zeros)
    return Quantised(tuple(parts), zeros.astype(np.uint8), true)


def _scales(network: Network, tensors: Mapping[str, Array], told: bool) -> dict[str, float]:
    """Returns the scale of each layer's output, but of logits in float32."""

    def near(layer: Layer) -> float:
        true = float(tensors[f"{layer.name}.scale"][0])
        return true if told and layer is network.layers[-1] else 2.0 ** round(math.log2(true))

    found: dict[str, float] = {}
    source = 1.0
    for layer, reader in zip(network.layers, (*network.layers[1:], None), strict=True):
        if f"{layer.name}.scale" not in tensors:
            continue
        low, high = lower_clamp(layer, tensors), int(tensors[f"{layer.name}.high"][0])
        if layer.adds:
            scale = found[layer.adds] / _shortcut(layer, tensors)
        elif layer.kind == "average_pool":
            scale = source / _pooled(layer, tensors)
        elif layer.kind == "max_pool":
            scale = source
        elif layer.activation == "relu6" and high < 255 and reader:
            scale = 6 / max(high - low, 0.25)  # where 6 is told to be; a quarter of a step is none
        elif reader and reader.kind == "average_pool":
            scale = near(reader) * _pooled(reader, tensors)
        else:
            scale = near(reader if reader and reader.kind == "max_pool" else layer)
        if layer.activation == "relu6" and high == 255 and not (told and reader in (None, network.layers[-1])):
            scale /= 2.0 ** max(math.ceil(math.log2(scale * 255 / 6)), 0)  # a ReLU6 that is told leaves 255 as it is
        found[layer.name] = source = float(np.float32(scale))
    return found


def _shortcut(layer: Layer, tensors: Mapping[str, Array]) -> float:
    """Returns the scale of what a layer adds over that of its output."""
    if f"{layer.name}.shortcut" in tensors:
        return float(tensors[f"{layer.name}.shortcut"][0])
    return math.ldexp(int(tensors[f"{layer.name}.sum_multiplier"][1]), -int(tensors[f"{layer.name}.sum_shift"][0]))


def _pooled(layer: Layer, tensors: Mapping[str, Array]) -> float:
    """Returns the scale of an average pooling's input over that of its output: a short fraction if one is right."""
    multiplier, pixels = tensors[f"{layer.name}.multiplier"][0], layer.input.height * layer.input.width
    ratio = float(multiplier) * pixels
    short = round(ratio * _SHORT) / _SHORT
    return short if np.float32(short / pixels) == multiplier else ratio


def _part(
    layer: Layer, tensors: Mapping[str, Array], source: Affine, added: Affine | None, scale: float | None
) -> Part:
    def own(name: str, default: Any) -> Array:
        return np.asarray(tensors.get(f"{layer.name}.{name}", default))

    output = None if scale is None else Affine(scale, int(own("zero", 0)[0]))
    low, high = (lower_clamp(layer, tensors), int(own("high", 255)[0])) if output else (0, 255)
    sums, exact = None, True
    if added and output:
        sums, exact = _sums(layer, tensors, added, output)
    weight, bias = np.empty(0, np.int8), own("bias", np.empty(0, np.int32))
    scales = multiplier = own("multiplier", np.ones(1, np.float32))
    rounded = sums if f"{layer.name}.sum_zero" in tensors else output
    target = rounded.scale if rounded else 1.0
    if layer.weight_shape is not None:
        weight = _int8(layer, centred_weight(layer, tensors))
        if output:
            weight, bias, multiplier = _without_still(layer, tensors, weight, bias, multiplier)
        scales, right = _weight_scales(multiplier, source.scale, target)
        exact = exact and bool(right.all())
    elif layer.kind == "average_pool":
        exact = _pools(multiplier[0], source.scale, target, layer.input.height * layer.input.width)
    return Part(layer, source, output, added, sums, low, high, weight, bias, scales, multiplier, exact)


def _sums(layer: Layer, tensors: Mapping[str, Array], added: Affine, output: Affine) -> tuple[Affine, bool]:
    """Returns what a layer's output is before the shortcut is added, and whether the addition is exact."""
    if f"{layer.name}.sum_zero" not in tensors:
        return _before(added, output), False
    own, shortcut = (int(number) for number in tensors[f"{layer.name}.sum_multiplier"])
    shift, zero = (int(tensors[f"{layer.name}.sum_{name}"][0]) for name in ("shift", "zero"))
    return Affine(float(np.float32(math.ldexp(output.scale * own, -shift))), zero), own == shortcut == 1 << shift


def _int8(layer: Layer, weight: Array) -> NDArray[np.int8]:
    if np.abs(weight).max() > 127:
        raise ModelError(f"layer {layer.name!r}: weights reach {np.abs(weight).max()} once their zero point is taken "
                         "off; formats with a scale a channel hold -127 to 127, machine code (.o, .so, .wasm) holds it "
                         "as it is")  # fmt: skip
    return weight.astype(np.int8)


def _weight_scales(multiplier: NDArray[np.float32], source: float, target: float) -> tuple[NDArray[np.float32], Array]:
    """Returns weights' scales, and which of them give the multiplier in float32: source * scale / target."""
    nearest = (multiplier.astype(np.float64) * target / source).astype(np.float32)
    found, right = nearest.copy(), np.zeros(nearest.shape, bool)
    for step in (0, 1, -1, 2, -2):
        scale = (nearest.view(np.int32) + np.int32(step)).view(np.float32)
        here = ~right & (np.float32(source) * scale / np.float32(target) == multiplier)
        found, right = np.where(here, scale, found), right | here
    return found, right


def _pools(multiplier: np.float32, source: float, target: float, pixels: int) -> bool:
    """Returns whether ONNX Runtime and XNNPACK compute this multiplier: each from the right here."""
    one, scale, count = np.float32(source), np.float32(target), np.float32(pixels)
    return bool(one / (scale * count) == multiplier == one / scale * (np.float32(1) / count))


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
    values = ((weight, np.int8(0)), (bias, np.int32(0)), (multiplier, np.float32(1)))
    weight, bias, multiplier = (np.where(still, instead, value) for value, instead in values)
    return weight, bias, multiplier


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
    values are moved (variance 1/2; the rounding ahead of a shortcut has 1/3), of other layers one in 32: there only
    multipliers in fixed point or with another last bit make a difference.
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
        if x.dtype == np.float32:
            return x
        share = _OFTEN if step.layer.adds or step.layer.kind == "average_pool" else _SELDOM
        draw = generator.random(x.shape, np.float32)
        steps = (draw < share / 2).astype(np.int16) - (draw > 1 - share / 2)
        inside = (x > step.low) & (x < step.high)
        x = added[step.layer.name] = (x + steps * inside).astype(np.uint8)
    return dequantised(network.layers[-1], tensors, x)
