"""What an int8 model computes, to the last bit. With the rescale "float" every step is exact, or rounded to float32
once, to nearest even:

    sum = sum((x - x's zero) · weight) + bias       whole numbers; padding is the zero point, so that it adds nothing
    t   = float32(sum) · multiplier                 two roundings: the sum's, and the product's
    t   = t + float32(s - s's zero) · shortcut      two more, of the product and of the sum: where a layer adds s
    y   = clip(rint(t) + zero, low, high)           uint8; low is the zero point after a ReLU, else 0

The classifier's logits are its t; average pooling sums x - x's zero over the pixels; max pooling is max(x). `quantized`
has the tensors' names.

With the rescale "full" all outputs are uint8, the classifier's too, whose logits are scale · (y - zero), and weights
have a zero point, which is subtracted. All else is as above, but a shortcut is added in whole numbers:

    own = clip(rint(t) + own zero, 0, 255) - own zero
    y   = clip((own · own multiplier + (s - s's zero) · s's multiplier) / 2^shift + zero, low, high)   halves rounded up

With the rescale "fixed" there are no floats but in the logits; products with a factor are `fixed_point.rescaled`:

    sum = sum((x - x's zero) · (weight - weight's zero)) + bias
    y   = clip(sum · factor + zero, low, high)
    where a layer adds s:
    own = clip(sum · factor + own zero, 0, 255) - own zero
    y   = clip((own · 2^20 · own factor + (s - s's zero) · 2^20 · s's factor) · the sum's factor + zero, low, high)
    average pooling is that y too, of weights of 1, or the mean of x, its halves rounded away from the origin

TFLite's int8 numbers are these bytes less 128, zero points too; nothing but the origin tells them apart.

Sums run in floating point, where they are exact because every partial sum is a whole number that the type holds: in
float32 below 2^24, else in float64; this is what makes numpy, and so this module, quick.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from .arch import Layer, Network
from .errors import UsageError
from .fixed_point import ADD_SHIFT, Whole, mean, rescaled, rescaled_once
from .quantized import EXACT, PIXELS_ZERO, centred_weight, dequantised, largest_sums, lower_clamp, rescale_of

Array = NDArray[Any]
Bytes = NDArray[np.uint8]
_CHUNK = 1 << 20  # numbers of the largest feature map that a few images at a time may have


def forward(network: Network, tensors: Mapping[str, Array], pixels: Array) -> NDArray[np.float32]:
    """Returns logits [N, classes]; without the top the last output, dequantised, [N, h, w, C] or [N, C].

    Args:
        network, tensors: of an int8 model, checked (`quantized.check`).
        pixels: uint8 [N, height, width, channels], or float32, which is rounded and clipped to uint8.

    Raises:
        UsageError: names the shape that does not fit the network.
    """
    return IntegerNetwork(network, tensors)(pixels)


def outputs(network: Network, tensors: Mapping[str, Array], pixels: Array) -> dict[str, Array]:
    """Returns the output of every layer by name, uint8 but for "float" logits. Arguments as `forward`."""
    return {layer.name: y for layer, y in IntegerNetwork(network, tensors).run(pixels)}


def as_bytes(pixels: Array) -> Bytes:
    """Returns pixels as uint8: floating point rounded to the nearest even and clipped, NaN as 0."""
    if pixels.dtype == np.uint8:
        return pixels
    return np.fmin(np.fmax(np.rint(pixels), 0), 255).astype(np.uint8)


class Fixed(NamedTuple):
    """Is how a layer's sums are rescaled in whole numbers: the tensors of `quantized` by their names, int64."""

    multiplier: Whole
    shift: Whole
    roundings: int
    origin: int
    sum_zero: int
    sum_multiplier: Whole
    sum_shift: Whole


class Sum(NamedTuple):
    """Is how bytes are added with the rescale "full": the tensors sum_zero, sum_multiplier and sum_shift."""

    zero: int
    own: int
    shortcut: int
    shift: int


class Step(NamedTuple):
    """Is a layer with its tensors, ready to be computed with."""

    layer: Layer
    zero_in: Array  # of the input: one value, or one a channel of the pixels
    weight: Array  # like `zero_in` and `bias` of the type in which all sums are exact, [terms, out] or [k, k, channels]
    bias: Array
    multiplier: NDArray[np.float32]
    shortcut: np.float32
    zero_shortcut: int
    zero: int
    low: int
    high: int
    fixed: Fixed | None
    sum: Sum | None
    logits: bool  # whether the layer's output is float32


class IntegerNetwork:
    """Is an int8 network with its weights ready to be computed with; may be called from several threads at once."""

    def __init__(self, network: Network, tensors: Mapping[str, Array]) -> None:
        """Prepares tensors that have passed `quantized.check`."""
        self.network, self.tensors = network, tensors
        self.steps: list[Step] = []
        zero_in = tensors[PIXELS_ZERO]
        for layer in network.layers:
            self.steps.append(prepare(layer, tensors, zero_in))
            zero_in = tensors.get(f"{layer.name}.zero", zero_in)
        self._added = {layer.adds for layer in network.layers}

    def __call__(self, pixels: Array) -> NDArray[np.float32]:
        """Returns what `forward` returns; a few images at a time, so that memory does not grow with their number."""
        count = max(_CHUNK // max(layer.output.size for layer in self.network.layers), 1)
        parts = [self._last(pixels[begin : begin + count]) for begin in range(0, max(len(pixels), 1), count)]
        return np.concatenate(parts)

    def _last(self, pixels: Array) -> NDArray[np.float32]:
        for layer, y in self.run(pixels):
            last, output = layer, y
        return output if output.dtype == np.float32 else dequantised(last, self.tensors, output)

    def run(self, pixels: Array) -> Iterator[tuple[Layer, Array]]:
        """Yields each layer with its output, in order; keeps only those that are needed later."""
        if pixels.ndim != 4 or pixels.shape[1:] != self.network.input:
            raise UsageError(f"pixels: got shape {pixels.shape}, the network needs {('N', *self.network.input)}")
        x: Array = as_bytes(pixels)
        added: dict[str, Bytes] = {}
        for step in self.steps:
            layer = step.layer
            x = output(step, x, added.pop(layer.adds) if layer.adds else None)
            if layer.name in self._added:
                added[layer.name] = x
            yield layer, x


def prepare(layer: Layer, tensors: Mapping[str, Array], zero_in: Array) -> Step:
    """Returns a layer ready to be computed with; `zero_in` is its input's zero point."""

    def part(name: str, default: Any) -> Any:
        return tensors.get(f"{layer.name}.{name}", default)

    rescale = rescale_of(layer, tensors)
    exact = np.float32 if int(largest_sums(layer, tensors).max()) < EXACT else np.float64
    weight: Array = np.zeros(0) if layer.weight_shape is None else centred_weight(layer, tensors)
    if layer.kind == "conv":
        weight = weight.reshape(-1, layer.output.channels)
    return Step(
        layer=layer,
        zero_in=zero_in.astype(exact),
        weight=weight.astype(exact),
        bias=part("bias", np.zeros(1)).astype(exact),
        multiplier=part("multiplier", np.ones(1, np.float32)),
        shortcut=part("shortcut", np.ones(1, np.float32))[0],
        zero_shortcut=int(tensors[f"{layer.adds}.zero"][0]) if layer.adds else 0,
        zero=int(part("zero", [0])[0]),
        low=lower_clamp(layer, tensors),
        high=int(part("high", [255])[0]),
        fixed=_fixed(layer, tensors) if rescale == "fixed" else None,
        sum=_sum(layer, tensors) if rescale == "full" and layer.adds else None,
        logits=rescale == "float" and layer.kind == "dense",
    )


def _fixed(layer: Layer, tensors: Mapping[str, Array]) -> Fixed:
    def part(name: str) -> Whole:
        return np.asarray(tensors.get(f"{layer.name}.{name}", np.zeros(1)), np.int64)

    def number(name: str) -> int:
        return int(part(name)[0])

    return Fixed(
        multiplier=part("multiplier"),
        shift=part("shift"),
        roundings=number("roundings"),
        origin=number("origin"),
        sum_zero=number("sum_zero"),
        sum_multiplier=part("sum_multiplier"),
        sum_shift=part("sum_shift"),
    )


def _sum(layer: Layer, tensors: Mapping[str, Array]) -> Sum:
    own, shortcut = tensors[f"{layer.name}.sum_multiplier"].tolist()
    return Sum(int(tensors[f"{layer.name}.sum_zero"][0]), own, shortcut, int(tensors[f"{layer.name}.sum_shift"][0]))


def output(step: Step, x: Bytes, shortcut: Bytes | None) -> Array:
    """Returns a layer's output from its input and the tensor that it adds."""
    if step.layer.kind == "max_pool":
        return np.asarray(x.max((1, 2)))
    t = sums(step, x)
    t += step.bias
    if step.fixed is not None:
        return _fixed_output(step, step.fixed, t.astype(np.int64), shortcut)
    t = t.astype(np.float32, copy=False)
    t *= step.multiplier
    if step.logits:
        return t
    added = None if shortcut is None else shortcut.astype(np.int32) - step.zero_shortcut
    if added is not None and step.sum is None:
        # A variable of its own: the product is rounded before it is added.
        product = added.astype(np.float32) * step.shortcut
        t += product
    np.rint(t, out=t)
    if added is not None and step.sum is not None:
        t = _byte_sum(step.sum, t, added)
    t += np.float32(step.zero)  # inexact only above 2^24, far beyond the clamp
    return np.clip(t, step.low, step.high, out=t).astype(np.uint8)


def _byte_sum(sum: Sum, t: Array, added: Array) -> NDArray[np.float32]:
    """Returns a layer's output less its zero point from its rounded sums and what it adds, with the rescale "full"."""
    own = np.clip(t, -sum.zero, 255 - sum.zero).astype(np.int32)
    total = own * sum.own + added * sum.shortcut
    return np.asarray((total + (1 << sum.shift >> 1)) >> sum.shift, np.float32)


def _fixed_output(step: Step, fixed: Fixed, total: Whole, shortcut: Bytes | None) -> Bytes:
    """Returns a layer's output from its exact sums with the rescale "fixed"."""
    if step.layer.kind == "average_pool" and not fixed.multiplier[0]:
        pixels = step.layer.input.height * step.layer.input.width
        above = pixels * (int(step.zero_in[0]) - fixed.origin)  # the sums are above the zero point
        y = mean(total + above, pixels) + fixed.origin
    else:
        y = (rescaled_once if fixed.roundings == 1 else rescaled)(total, fixed.multiplier, fixed.shift)
        if shortcut is None:
            y += step.zero
        else:
            own = np.clip(y, -fixed.sum_zero, 255 - fixed.sum_zero)
            terms = own, shortcut.astype(np.int64) - step.zero_shortcut
            factors = list(zip(fixed.sum_multiplier, fixed.sum_shift, strict=True))
            both = sum(rescaled(term << ADD_SHIFT, *factor) for term, factor in zip(terms, factors[:2], strict=True))
            y = rescaled(np.asarray(both), *factors[2]) + step.zero
    return np.clip(y, step.low, step.high).astype(np.uint8)


def sums(step: Step, x: Bytes) -> Array:
    """Returns the exact sums of (x - zero point) · weight, without bias."""
    layer, weight = step.layer, step.weight
    centred = x.astype(weight.dtype)
    centred -= step.zero_in
    return np.asarray(centred.sum((1, 2))) if layer.kind == "average_pool" else weighted_sum(layer, centred, weight)


def weighted_sum(layer: Layer, x: Array, weight: Array) -> Array:
    """Returns the sums that a convolution or dense layer is named for, in the type of `x` and `weight`.

    `weight` is in the layout of the file, but that of a standard convolution is [k · k · in, out].
    """
    if layer.kind in ("pointwise", "dense"):
        return np.asarray(x @ weight)
    seen = windows(layer, x)
    if layer.kind == "depthwise":
        return np.asarray(np.einsum("nhwijc,ijc->nhwc", seen, weight))
    return np.asarray(seen.reshape(*seen.shape[:3], -1) @ weight)


def windows(layer: Layer, centred: Array) -> Array:
    """Returns a view [N, height, width, k, k, channels] of what each output is made from."""
    padded = np.pad(centred, ((0, 0), *layer.padding, (0, 0)))
    image, row, column, item = padded.strides
    shape = (len(padded), *layer.output[:2], layer.kernel, layer.kernel, layer.input.channels)
    steps = (image, row * layer.stride, column * layer.stride, row, column, item)
    return as_strided(padded, shape, steps, writeable=False)
