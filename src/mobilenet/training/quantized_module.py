"""The torch module whose forward pass is the int8 network's: training for it, quantisation-aware.

It is for networks with their classifier. All numbers between layers are whole ones, held in float32 and centred at
their zero points: the sums, factors and roundings are those of `integer.py`, which gives the same answers as long as
sums stay below 2^24, beyond which float32 has no room for every whole number. What is learned is the float32 network's
parameters. Rounding passes gradients on as if it were not there, a clamp only where it did not clip (Bengio et al.
2013, arXiv 1308.3432; Jacob et al. 2018, arXiv 1712.05877). Batch norm is folded into the weights with the statistics
that the float32 training left, and those and the ranges of the outputs stay as they are.
"""

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..arch import Layer, Network
from ..errors import UsageError
from ..photos.preprocessing import Preprocessing
from ..quantization.sweep import LARGEST_BIAS, SMALLEST_SCALE, Choices, Sweep
from ..quantized import PIXELS_ZERO
from ..weights import fold
from .torch_model import TorchMobileNet, _convolve

Numbers = dict[str, Tensor]


class QuantizedModule(TorchMobileNet):
    """Computes the int8 network of the present parameters.

    Attributes:
        ranges: [2L] float32 buffer: of each layer's output the scale, then of each the zero point.
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
        self.register_buffer("ranges", torch.cat([torch.ones(len(network.layers)), torch.zeros(len(network.layers))]))

    def calibrate(self, pixels: NDArray[np.uint8]) -> None:
        """Sets the ranges by what the layers give for some photos [N, height, width, channels], as `quantize` does.

        Biases are corrected, too, so that training begins about where quantisation without it ends.
        """
        network = self.network
        tensors = self.tensors()
        choices = Choices(compensate=False, rescale="float")
        sweep = Sweep(network, fold(network, tensors), self.preprocessing, pixels, choices)
        for name, moved in sweep.moved.items():
            part = f"{name}.beta" if network.by_name[name].batch_norm else f"{name}.bias"
            tensors[part] = (tensors[part] + moved).astype(np.float32)
        self.load(tensors)
        ones, zeros = np.ones(1), np.zeros(1)  # of the classifier, which has no range
        found = [sweep.tensors.get(f"{layer.name}.scale", ones) for layer in network.layers]
        found += [sweep.tensors.get(f"{layer.name}.zero", zeros) for layer in network.layers]
        with torch.no_grad():
            self.ranges.copy_(torch.from_numpy(np.concatenate(found)))

    def fixed(self) -> Numbers:
        """Returns what a training sets once, and a checkpoint holds: the ranges."""
        return {"ranges": self.ranges}

    def int8_tensors(self) -> dict[str, NDArray[np.generic]]:
        """Returns the int8 model's tensors, by the names of `quantized.specs`."""
        types = {"weight": np.int8, "bias": np.int32, "zero": np.int32, "high": np.int32}
        found: dict[str, NDArray[np.generic]] = {PIXELS_ZERO: self._centre.cpu().numpy().astype(np.int32)}
        learned, scales, scale_in = self._parts(), self._scales(), 1.0
        for layer in self.network.layers:
            numbers = self._numbers(layer, learned, scale_in)
            scale_in, zero = scales[layer.name]
            if layer.kind != "dense":
                numbers |= dict(zip(("scale", "zero", "high"), torch.tensor([[scale_in], [zero], [255]]), strict=True))
            for part, tensor in numbers.items():
                found[f"{layer.name}.{part}"] = tensor.detach().cpu().numpy().astype(types.get(part, np.float32))
        return found

    def _run(self, x: Tensor, layers: tuple[Layer, ...]) -> Tensor:
        height, width, channels = self.network.input
        if x.shape[1:] != (channels, height, width):
            raise UsageError(f"x: got shape {tuple(x.shape)}, the network needs (N, {channels}, {height}, {width})")
        if self.training:
            self.batch_statistics.data.copy_(self.statistics)
        pixels = x * _by_channel(self._std) + _by_channel(self._mean)
        x = pixels.round_().clamp_(0, 255) - _by_channel(self._centre)
        learned, scale_in = self._parts(), 1.0
        scales = self._scales()
        shortcuts: Numbers = {}
        for layer in layers:
            shortcut = shortcuts.pop(layer.adds) if layer.adds else None
            x = self._whole(layer, x, self._numbers(layer, learned, scale_in), shortcut, scales[layer.name][1])
            scale_in = scales[layer.name][0]
            if layer.name in self._shortcuts:
                shortcuts[layer.name] = x
        return x

    def _scales(self) -> dict[str, tuple[float, int]]:
        """Returns scale and zero point of each layer's output."""
        values = self.ranges.tolist()
        count = len(self.network.layers)
        return {layer.name: (values[n], round(values[count + n])) for n, layer in enumerate(self.network.layers)}

    def _numbers(self, layer: Layer, learned: Numbers, scale_in: float) -> Numbers:
        """Returns weight, bias, multiplier and shortcut of a layer: whole numbers, through which gradients pass."""
        scale, _ = self._scales()[layer.name]
        numbers: Numbers = {}
        if layer.adds:
            numbers["shortcut"] = torch.tensor([np.float32(self._scales()[layer.adds][0] / scale)])
        if layer.weight_shape is None:
            factor = scale_in / (layer.input.height * layer.input.width) / scale
            return numbers | {"multiplier": torch.tensor([np.float32(factor)])}
        weight, bias = self._folded(layer, learned)
        largest = weight.detach().double().abs().reshape(-1, len(bias)).amax(0) / 127
        steps = torch.maximum(largest, bias.detach().double().abs() / (scale_in * LARGEST_BIAS)).clamp_min(
            SMALLEST_SCALE
        )
        return numbers | {
            "weight": _rounded(weight / steps.float()).clamp(-127, 127),
            "bias": _rounded(bias / (steps * scale_in).float()),
            "multiplier": (steps * scale_in / (1.0 if layer.kind == "dense" else scale)).float(),
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

    def _whole(self, layer: Layer, x: Tensor, numbers: Numbers, shortcut: Tensor | None, zero: int) -> Tensor:
        """Returns a layer's output, centred at its zero point; of the classifier the logits."""
        multiplier = numbers["multiplier"].to(x.device)
        if layer.kind == "dense":
            dropped = F.dropout(x, self.network.conventions.dropout, self.training)
            return F.linear(dropped, numbers["weight"].t(), numbers["bias"]) * multiplier
        if layer.kind == "average_pool":
            t = x.sum((2, 3)) * multiplier
        else:
            sums = _convolve(layer, x, numbers["weight"], numbers["bias"], *self._paddings[layer.name])
            t = sums * _by_channel(multiplier)
        if shortcut is not None:
            t = t + shortcut * numbers["shortcut"].to(x.device)
        low = -zero if layer.activation == "linear" else 0
        return _rounded(t.clamp(low, 255 - zero))


def _by_channel(values: Tensor) -> Tensor:
    return values[:, None, None]


def _rounded(x: Tensor) -> Tensor:
    """Returns x rounded to the nearest even, exactly; its gradient is that of x."""
    return x + (x.round() - x).detach()
