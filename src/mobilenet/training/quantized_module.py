"""The torch module whose forward pass is the int8 network's: training for it, quantisation-aware.

It is for networks with their classifier. All numbers between layers are whole ones, held in float32 and centred at
their zero points: the sums, factors and roundings are those of `integer.py` with the rescale "full", which gives the
same answers as long as sums stay below 2^24, beyond which float32 has no room for every whole number. What is learned
is the float32 network's parameters; multipliers and scales follow from them anew each time, by the rules of `quantize`.
Rounding passes gradients on as if it were not there, a clamp only where it did not clip (Bengio et al. 2013, arXiv
1308.3432; Jacob et al. 2018, arXiv 1712.05877). Batch norm is folded into the weights with the statistics that the
float32 training left, and those and the ranges of the outputs stay as they are.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..arch import Layer, Network
from ..errors import UsageError
from ..photos.preprocessing import Preprocessing
from ..quantization.ranges import Range
from ..quantization.sweep import MIDDLE, Choices, Sweep, described, multipliers
from ..quantized import PIXELS_ZERO
from ..weights import fold
from .torch_model import TorchMobileNet, _convolve

Numbers = dict[str, Tensor]


class _Output(NamedTuple):
    """Is what training leaves as it is of a layer's output: its range, and the tensors that say it."""

    range: Range
    tensors: dict[str, NDArray[Any]]


class QuantizedModule(TorchMobileNet):
    """Computes the int8 network of the present parameters.

    Attributes:
        ranges: [2L + 1] float32 buffer: of each layer's output the scale, then of each the zero point, and the
            pooling's multiplier, which its scales say only roughly.
    """

    ranges: Tensor
    _mean: Tensor
    _std: Tensor
    _centre: Tensor

    def __init__(
        self,
        network: Network,
        preprocessing: Preprocessing,
        tensors: Mapping[str, NDArray[np.float32]] | None = None,
    ) -> None:
        """Builds the module with the given float32 tensors, or new ones; `calibrate` then sets the ranges."""
        super().__init__(network, tensors)
        self.preprocessing = preprocessing
        mean, std = (np.array(values, np.float32) for values in (preprocessing.mean, preprocessing.std))
        zeros = np.clip(np.rint(mean), 0, 255)
        for name, values in (("_mean", mean), ("_std", std), ("_centre", zeros)):
            self.register_buffer(name, torch.from_numpy(np.resize(values, network.channels)), persistent=False)
        count = len(network.layers)
        self.register_buffer("ranges", torch.cat([torch.ones(count), torch.zeros(count), torch.ones(1)]))

    def calibrate(self, pixels: NDArray[np.uint8]) -> None:
        """Sets the ranges by what the layers give for some photos [N, height, width, channels], as `quantize` does.

        Biases are corrected, too, so that training begins about where quantisation without it ends.
        """
        network = self.network
        tensors = self.tensors()
        choices = Choices(compensate=False, rescale="full")
        sweep = Sweep(network, fold(network, tensors), self.preprocessing, pixels, choices)
        for name, moved in sweep.moved.items():
            part = f"{name}.beta" if network.by_name[name].batch_norm else f"{name}.bias"
            tensors[part] = (tensors[part] + moved).astype(np.float32)
        self.load(tensors)
        names = [f"{layer.name}.{part}" for part in ("scale", "zero") for layer in network.layers]
        found = [sweep.tensors[name] for name in (*names, f"{network.layers[-2].name}.multiplier")]
        with torch.no_grad():
            self.ranges.copy_(torch.from_numpy(np.concatenate(found)))

    def fixed(self) -> Numbers:
        """Returns what a training sets once, and a checkpoint holds: the ranges."""
        return {"ranges": self.ranges}

    def int8_tensors(self) -> dict[str, NDArray[np.generic]]:
        """Returns the int8 model's tensors, by the names of `quantized.specs`, with the rescale "full"."""
        found: dict[str, NDArray[np.generic]] = {PIXELS_ZERO: self._centre.cpu().numpy().astype(np.int32)}
        learned, outputs, source = self._parts(), self._outputs(), 1.0
        for layer in self.network.layers:
            out = outputs[layer.name]
            made = self._numbers(layer, learned, source, out.range)
            tensors = {part: tensor.detach().cpu().numpy() for part, tensor in made.items()} | out.tensors
            if layer.weight_shape is not None:
                tensors["weight"] = (tensors["weight"] + MIDDLE).astype(np.uint8)
                tensors["weight_zero"] = np.array([MIDDLE], np.int32)
                tensors["bias"] = tensors["bias"].astype(np.int32)
            found |= {f"{layer.name}.{part}": tensor for part, tensor in tensors.items()}
            source = float(out.range.scale)
        return found

    def _run(self, x: Tensor, layers: tuple[Layer, ...]) -> Tensor:
        height, width, channels = self.network.input
        if x.shape[1:] != (channels, height, width):
            raise UsageError(f"x: got shape {tuple(x.shape)}, the network needs (N, {channels}, {height}, {width})")
        if self.training:
            self.batch_statistics.data.copy_(self.statistics)
        pixels = x * _by_channel(self._std) + _by_channel(self._mean)
        x = pixels.round_().clamp_(0, 255) - _by_channel(self._centre)
        learned, outputs, source = self._parts(), self._outputs(), 1.0
        shortcuts: Numbers = {}
        for layer in layers:
            out = outputs[layer.name]
            shortcut = shortcuts.pop(layer.adds) if layer.adds else None
            x = self._whole(layer, x, self._numbers(layer, learned, source, out.range), shortcut, out)
            source = float(out.range.scale)
            if layer.name in self._shortcuts:
                shortcuts[layer.name] = x
        return x

    def _outputs(self) -> dict[str, _Output]:
        """Returns what is fixed of each layer's output."""
        scales, zeros = self.ranges[:-1].cpu().numpy().reshape(2, -1)
        found: dict[str, _Output] = {}
        for layer, scale, zero in zip(self.network.layers, scales, zeros, strict=True):
            own = Range(scale, int(zero))
            shortcut = found[layer.adds].range if layer.adds else None
            found[layer.name] = _Output(own, described(layer, own, shortcut, "full"))
        return found

    def _numbers(self, layer: Layer, learned: Numbers, source: float, out: Range) -> Numbers:
        """Returns weight and bias of a layer, whole numbers through which gradients pass, and its multiplier.

        Scales are those that `quantize` would give the present weights, as constants.
        """
        if layer.weight_shape is None:
            return {"multiplier": self.ranges[-1:]}
        weight, bias = self._folded(layer, learned)
        largest = weight.detach().abs().reshape(-1, len(bias)).amax(0)
        seen, biases = torch.stack((largest, bias.detach())).double().cpu().numpy()
        with np.errstate(invalid="ignore", over="ignore", divide="ignore"):  # of NaN, which the loss then is, too
            factors, units = multipliers(layer, seen, biases, source, out, "full")
        multiplier, scale, unit = torch.from_numpy(np.stack((factors, units / source, units))).to(weight)
        return {
            "weight": _rounded(weight / scale).clamp(-127, 127),
            "bias": _rounded(bias / unit),
            "multiplier": multiplier,
        }

    def _folded(self, layer: Layer, learned: Numbers) -> tuple[Tensor, Tensor]:
        """Returns weight and bias with batch norm, and in the first layer the pixels' scaling, folded in."""
        weight, bias = learned[f"{layer.name}.weight"], learned.get(f"{layer.name}.bias")
        if layer.batch_norm:
            measured = dict(zip(self._measured, torch.split(self.statistics, self._statistic_sizes), strict=True))
            mean, variance = (measured[f"{layer.name}.{part}"] for part in ("mean", "variance"))
            factor = learned[f"{layer.name}.gamma"] * (variance + self.network.conventions.batch_norm_epsilon).rsqrt()
            weight = weight * factor
            bias = learned[f"{layer.name}.beta"] + ((0 if bias is None else bias) - mean) * factor
        assert bias is not None
        if layer is self.network.layers[0]:
            weight = weight / self._std[:, None]
            bias = bias + (weight * (self._centre - self._mean)[:, None]).reshape(-1, len(bias)).sum(0)
        return weight, bias

    def _whole(self, layer: Layer, x: Tensor, numbers: Numbers, shortcut: Tensor | None, out: _Output) -> Tensor:
        """Returns a layer's output, centred at its zero point; of the classifier the logits."""
        zero, low, high = (int(out.tensors[part][0]) for part in ("zero", "low", "high"))
        match layer.kind:
            case "average_pool":
                sums = x.sum((2, 3))
            case "dense":
                dropped = F.dropout(x, self.network.conventions.dropout, self.training)
                sums = F.linear(dropped, numbers["weight"].t(), numbers["bias"])
            case _:
                sums = _convolve(layer, x, numbers["weight"], numbers["bias"], *self._paddings[layer.name])
        t = sums * (_by_channel(numbers["multiplier"]) if sums.dim() == 4 else numbers["multiplier"])
        if shortcut is not None:
            own = _rounded(t.clamp(-zero, 255 - zero))
            return (own + shortcut).clamp(low - zero, high - zero)
        whole = _rounded(t.clamp(low - zero, high - zero))
        return whole * float(out.range.scale) if layer.kind == "dense" else whole


def _by_channel(values: Tensor) -> Tensor:
    return values[:, None, None]


class _Rounding(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        context.mark_dirty(x)
        return x.round_()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return gradient


def _rounded(x: Tensor) -> Tensor:
    """Returns x, written over with the nearest even whole numbers; its gradient is that of x."""
    rounded: Tensor = _Rounding.apply(x)  # type: ignore[no-untyped-call]
    return rounded
