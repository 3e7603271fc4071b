"""The sweep over the layers that makes int8 tensors: range, weights, bias, each with the errors made before in view.

Both networks, float32 and int8, run over the photos a layer at a time. A layer's weights get a scale an output channel;
its output gets a range from the float32 outputs; and its bias is moved by what, on average over the photos, the int8
sums of a channel differ from the float32 ones (bias correction: Nagel et al. 2019, arXiv 1906.04721, section 4.2,
measured on photos). Rounding weights moves a channel's mean, most in depthwise layers with their nine terms, and in the
next layer the error of a mean does not average out over the terms as noise does.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import integer
from ..arch import Layer, Network
from ..common.progress import Progress
from ..photos.preprocessing import Preprocessing
from ..quantized import PIXELS_ZERO, Rescale, dequantised
from ..storage.tensors_file import Tensors
from . import folded as floats
from . import short
from .folded import Floats
from .ranges import Method, Range, choose, of_logits, sample
from .rounding import covariance, rounded

Array = NDArray[Any]
RESCALES: tuple[Rescale, ...] = ("full", "float")
LARGEST_BIAS = 2.0**29  # in units of its scale: a channel with next to no weights gets a coarser scale
SMALLEST_SCALE = 1e-12
MIDDLE = 128  # of uint8: zero point of weights


@dataclass(frozen=True)
class Choices:
    """Holds how a model is quantised.

    Attributes:
        method: of choosing ranges.
        equalise: scale channels to similar ranges first. Off: see `equalise`.
        correct_bias: move biases by the mean error of their channel.
        compensate: round weights so that their errors cancel.
        rescale: "full" or "float"; see `integer`. With "full" all tensors that shortcuts connect have one range, so
            that adding them is exact, here and in other runtimes.
    """

    method: Method = "mse"
    equalise: bool = False
    correct_bias: bool = True
    compensate: bool = True
    rescale: Rescale = "full"


class Sweep:
    """Makes the tensors, a layer after the other.

    Attributes:
        tensors: those made so far, by the names of `quantized.specs`.
        ratios: of each layer's output in float32 over its error in int8, mean squares, in dB.
        moved: by how much the bias correction moved the biases of each layer, [channels].
    """

    def __init__(
        self,
        network: Network,
        folded: Tensors,
        preprocessing: Preprocessing,
        pixels: NDArray[np.uint8],
        choices: Choices,
        progress: Progress | None = None,
    ) -> None:
        """Makes all tensors of a network.

        Args:
            folded: weights and biases, as `weights.fold` gives them.
            pixels: [N, height, width, channels] of the photos that ranges and biases are measured on.
            progress: is called with the layers done and their number.
        """
        self.folded, self.choices = folded, choices
        self.mean, self.std = (
            np.resize(np.array(value, np.float64), network.channels)
            for value in (preprocessing.mean, preprocessing.std)
        )
        zeros = np.clip(np.rint(self.mean), 0, 255).astype(np.int32)
        self.tensors: dict[str, Array] = {PIXELS_ZERO: zeros}
        self.ratios: dict[str, float] = {}
        self.moved: dict[str, Array] = {}
        self._zero, self._range = zeros, Range(np.float32(1), 0)  # of the present layer's input
        x, x8 = floats.scaled(pixels, preprocessing), pixels
        last = network.layers[-1]
        self._told = (
            last.name,
            network.layers[-2].name if last.kind == "max_pool" else None,
        )  # whose scale readers see
        self._shared = _shared_ranges(network, folded, x, choices.method) if choices.rescale == "full" else {}
        needed = {layer.adds for layer in network.layers}
        added: dict[str, tuple[Floats, Array, Range]] = {}
        for done, layer in enumerate(network.layers, 1):
            shortcut = added.pop(layer.adds) if layer.adds else None
            x, x8 = self._layer(layer, x, x8, shortcut)
            if layer.name in needed:
                added[layer.name] = x, x8, self._range
            if progress:
                progress(done, len(network.layers))

    def _layer(
        self, layer: Layer, x: Floats, x8: Array, shortcut: tuple[Floats, Array, Range] | None
    ) -> tuple[Floats, Array]:
        """Makes a layer's tensors and returns its outputs in float32 and int8."""
        value = floats.before_activation(layer, self.folded, x)
        mean = value.mean(tuple(range(value.ndim - 1)), dtype=np.float64)
        y = floats.activated(layer, value, shortcut[0] if shortcut else None)
        out = self._output(layer, y)
        if out:
            self._add(layer, described(layer, out, shortcut[2] if shortcut else None, self.choices.rescale))
        if layer.weight_shape is not None:
            self._weigh(layer, mean, x8, out)
        y8 = integer.output(integer.prepare(layer, self.tensors, self._zero), x8, shortcut[1] if shortcut else None)
        self.ratios[layer.name] = _decibels(y, y8 if y8.dtype == np.float32 else dequantised(layer, self.tensors, y8))
        if out:
            self._range, self._zero = out, _whole(out.zero)
        return y, y8

    def _output(self, layer: Layer, y: Floats) -> Range | None:
        """Returns the range of a layer's output, None of logits in float32; makes an average pooling's multiplier."""
        if layer.kind == "max_pool":
            return self._range
        if layer.kind == "dense":
            if self.choices.rescale == "float":
                return None
            out = of_logits(y)
        else:
            out = self._shared.get(layer.name) or choose(layer, y, self.choices.method)
        if layer.kind == "average_pool":
            pixels = layer.input.height * layer.input.width
            ratio = short.pooling_ratio(float(self._range.scale / out.scale), pixels)
            self._add(layer, {"multiplier": np.array([ratio / pixels], np.float32)})
            out = out._replace(scale=np.float32(self._range.scale / ratio))
        if layer.name in self._told:
            out = out._replace(scale=short.scale(float(out.scale)))
        return out

    def _weigh(self, layer: Layer, mean: Array, x8: Array, out: Range | None) -> None:
        """Makes weight, bias and multiplier; `mean` is that of each channel in float32, before the activation."""
        source = float(self._range.scale)
        weight, bias = (self.folded[f"{layer.name}.{part}"].astype(np.float64) for part in ("weight", "bias"))
        if not self.ratios:  # the first layer has the pixels' scaling in it
            weight = weight / self.std[:, np.newaxis]
            shift = (self._zero - self.mean)[:, np.newaxis]
            bias = bias + (weight * shift).reshape(-1, len(bias)).sum(0)
        largest = np.abs(weight).reshape(-1, len(bias)).max(0)
        multiplier, unit = multipliers(layer, largest, bias, source, out, self.choices.rescale)
        scale = unit / source
        if self.choices.compensate:
            x = x8.astype(np.float32) - self._zero.astype(np.float32)
            weight8 = rounded(weight, scale, covariance(layer, x))
        else:
            weight8 = np.clip(np.rint(weight / scale), -127, 127).astype(np.int8)
        made: dict[str, Array] = {"weight": weight8, "bias": np.zeros(len(bias), np.int32), "multiplier": multiplier}
        if self.choices.rescale == "full":
            made |= {"weight": (weight8.astype(np.int16) + MIDDLE).astype(np.uint8), "weight_zero": _whole(MIDDLE)}
        self._add(layer, made)
        if self.choices.correct_bias:
            sums = integer.sums(integer.prepare(layer, self.tensors, self._zero), x8)
            before, bias = bias, mean - sums.mean(tuple(range(sums.ndim - 1)), dtype=np.float64) * unit
            self.moved[layer.name] = bias - before
        self._add(layer, {"bias": np.rint(bias / unit).astype(np.int32)})

    def _add(self, layer: Layer, parts: dict[str, Array]) -> None:
        self.tensors |= {f"{layer.name}.{part}": tensor for part, tensor in parts.items()}


def described(layer: Layer, out: Range, shortcut: Range | None, rescale: Rescale) -> dict[str, Array]:
    """Returns what tells of a layer's output, and how the shortcut is added."""
    six = round(6 / float(out.scale)) if layer.activation == "relu6" else 255
    made = {"scale": np.array([out.scale]), "zero": _whole(out.zero), "high": _whole(min(out.zero + six, 255))}
    if rescale == "full":
        made["low"] = _whole(out.zero if layer.activation != "linear" else 0)
        if shortcut:
            made |= {"sum_zero": _whole(out.zero), "sum_multiplier": _whole(1, 1), "sum_shift": _whole(0)}
    elif shortcut:
        made["shortcut"] = np.array([shortcut.scale / out.scale], np.float32)
    return made


def multipliers(
    layer: Layer, largest: Array, bias: Array, source: float, out: Range | None, rescale: Rescale
) -> tuple[NDArray[np.float32], Array]:
    """Returns a layer's multipliers, [out], and what 1 in the sums of each channel stands for, [out] float64.

    Args:
        largest: of each channel's weights, which becomes 127 or somewhat less, [out].
        bias: where it would not fit an int32, the channel's weights get coarser, [out].
        source: scale of the layer's input.
        out: range of its output, None of logits in float32.
    """
    least = np.maximum(largest / 127, np.abs(bias) / source / LARGEST_BIAS)
    unit = np.maximum(least, SMALLEST_SCALE) * source
    if out is None:
        step, multiplier = 1.0, short.logit_multipliers(unit)
    else:
        step, most = float(out.scale), max(out.zero, 255 - out.zero)
        joins = layer.adds and rescale == "full"
        found = short.multipliers_without_halves if joins else short.multipliers
        multiplier = found(unit / step, bias / step, most)
    return multiplier, multiplier.astype(np.float64) * step


def _shared_ranges(network: Network, folded: Tensors, x: Floats, method: Method) -> dict[str, Range]:
    """Returns the ranges of layers that shortcuts connect, the same for all of a chain, by the layers' names."""
    first: dict[str, str] = {}
    for layer in network.layers:
        if layer.adds:
            first[layer.name] = first.setdefault(layer.adds, layer.adds)
    values: dict[str, list[Floats]] = {name: [] for name in first.values()}
    outputs: dict[str, Floats] = {}
    for layer, y in floats.run(network, folded, x):
        if layer.name in first:
            values[first[layer.name]].append(sample(y))
            if layer.adds:
                values[first[layer.name]].append(sample(y - outputs.pop(layer.adds)))
            outputs[layer.name] = y
    ranges = {}
    for layer in network.layers:
        start = first.get(layer.name)
        if start and layer.adds and start not in ranges:  # this one is linear, the first may not be
            scale, zero = choose(layer, np.concatenate(values[start]), method)
            ranges[start] = Range(short.scale(float(scale)), zero)
    for layer in network.layers:
        if layer.activation == "relu6" and layer.name in ranges:  # 6 is a whole number of powers of two
            scale, zero = ranges[layer.name]
            ranges[layer.name] = Range(np.float32(2.0 ** math.ceil(math.log2(scale))), zero)
    return {name: ranges[start] for name, start in first.items()}


def _whole(*numbers: int) -> NDArray[np.int32]:
    return np.array(numbers, np.int32)


def _decibels(signal: Floats, seen: Array) -> float:
    error = float(np.square(signal - seen, dtype=np.float64).mean())
    return 10 * math.log10(max(float(np.square(signal, dtype=np.float64).mean()), 1e-30) / max(error, 1e-30))
