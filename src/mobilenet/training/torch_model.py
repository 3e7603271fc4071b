"""The torch module: a loop over arch's layers, with every learned number in one flat tensor.

One flat tensor makes an optimizer step, an average over processes, an exponential moving average and a checkpoint one
operation each. `forward` splits it into the layers' tensors; autograd joins their gradients again in one copy.
"""

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from .. import weights
from ..arch import STATISTICS, Layer, Network
from ..errors import UsageError


class TorchMobileNet(nn.Module):
    """Computes a network of arch with torch, for training and evaluation.

    Attributes:
        network: the architecture.
        parameters_flat: [P] float32, the only `nn.Parameter`: all learned tensors in the order of `network.tensors`,
            each in the layout of the file of weights. `parameter(name)` is a view of it.
        statistics: [S] float32 buffer, the running mean and variance of every batch norm, which eval mode uses.
        batch_statistics: [S] float32 buffer, in the same order: what the last forward pass in training mode measured
            on its batch. The variance is unbiased (divided by n - 1, as torch keeps it in running statistics),
            while the pass itself normalises with the biased one. Training mode never touches
            `statistics`: the trainer moves them once a step, with `conventions.batch_norm_momentum`.
        decayed: [P] bool buffer, True where weight decay applies: not to batch norm, biases and depthwise filters
            (arXiv 1704.04861, section 3.2).
    """

    parameters_flat: nn.Parameter
    statistics: Tensor
    batch_statistics: Tensor
    decayed: Tensor

    def __init__(self, network: Network, tensors: Mapping[str, NDArray[np.float32]] | None = None) -> None:
        """Builds the module with the given tensors (`network.tensors`, file layout), or with new ones from seed 0.

        Raises:
            ModelError: names the tensor that is missing, not of the network, or of another shape.
        """
        super().__init__()
        self.network = network
        self._learned = {name: shape for name, shape in network.tensors.items() if not _is_statistic(name)}
        self._measured = {name: shape for name, shape in network.tensors.items() if _is_statistic(name)}
        self._paddings = {layer.name: _padding(layer) for layer in network.layers}
        self._shortcuts = {layer.adds for layer in network.layers}
        self._statistic_sizes = _sizes(self._measured)
        sizes = torch.tensor(_sizes(self._learned))
        decayed = torch.tensor([_decays(network, name) for name in self._learned])
        self.parameters_flat = nn.Parameter(torch.zeros(int(sizes.sum())))
        self.register_buffer("statistics", torch.zeros(sum(_sizes(self._measured))))
        self.register_buffer("batch_statistics", torch.zeros_like(self.statistics), persistent=False)
        self.register_buffer("decayed", decayed.repeat_interleave(sizes), persistent=False)
        self.load(weights.initial(network) if tensors is None else tensors)

    @property
    def gradients_flat(self) -> Tensor:
        """[P] float32: the gradient of `parameters_flat`, zeros before the first backward pass, which adds to it."""
        if self.parameters_flat.grad is None:
            self.parameters_flat.grad = torch.zeros_like(self.parameters_flat)
        return self.parameters_flat.grad

    def parameter(self, name: str) -> Tensor:
        """Returns a learned tensor, in file layout, as a view of `parameters_flat` (without autograd)."""
        return self._parts()[name].detach()

    def load(self, tensors: Mapping[str, NDArray[np.float32]]) -> None:
        """Copies in tensors in file layout, all of `network.tensors` and no others.

        Raises:
            ModelError: names the tensor that is missing, not of the network, or of another shape.
        """
        weights.check(self.network, tensors, allow_nonfinite=True)
        with torch.no_grad():
            for flat, shapes in ((self.parameters_flat, self._learned), (self.statistics, self._measured)):
                flat.copy_(torch.from_numpy(np.concatenate([tensors[name].ravel() for name in shapes])))

    def tensors(self) -> dict[str, NDArray[np.float32]]:
        """Returns copies of all tensors, running statistics included, in file layout and order, float32."""
        learned = torch.split(self.parameters_flat.detach().cpu(), _sizes(self._learned))
        measured = torch.split(self.statistics.cpu(), _sizes(self._measured))
        found = dict(zip([*self._learned, *self._measured], [*learned, *measured], strict=True))
        return {name: found[name].view(shape).numpy().copy() for name, shape in self.network.tensors.items()}

    def fixed(self) -> dict[str, Tensor]:
        """Returns what a training sets once, and a checkpoint holds, by name: here nothing."""
        return {}

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits [N, classes]; without the top the features [N, C, h, w], or [N, C] with a pooling.

        Args:
            x: [N, channels, height, width] scaled pixels, fastest in channels_last memory.

        Raises:
            UsageError: `x` has another shape than the network's input.
        """
        return self._run(x, self.network.layers)

    def pooled(self, x: Tensor) -> Tensor:
        """Returns [N, C] features: what the classifier sees, before dropout.

        Raises:
            UsageError: the network has neither top nor pooling, or `x` has another shape than the network's input.
        """
        layers = self.network.layers
        if layers[-1].kind not in ("dense", "average_pool", "max_pool"):
            raise UsageError(f"pooled: {self.network} has no pooling; describe it with pooling='avg'")
        return self._run(x, layers[:-1] if layers[-1].kind == "dense" else layers)

    def classify(self, features: Tensor) -> Tensor:
        """Returns logits [N, classes] of the features that `pooled` gives, in training with dropout before.

        Raises:
            UsageError: the network has no classifier.
        """
        if not self.network.include_top:
            raise UsageError(f"classify: {self.network} has no classifier; describe it with include_top=True")
        return self._layer(self.network.layers[-1], features, self._parts(), {})

    def _parts(self) -> dict[str, Tensor]:
        parts = torch.split(self.parameters_flat, _sizes(self._learned))
        return {name: part.view(shape) for (name, shape), part in zip(self._learned.items(), parts, strict=True)}

    def _run(self, x: Tensor, layers: tuple[Layer, ...]) -> Tensor:
        height, width, channels = self.network.input
        if x.shape[1:] != (channels, height, width):
            raise UsageError(f"x: got shape {tuple(x.shape)}, the network needs (N, {channels}, {height}, {width})")
        learned = self._parts()
        # Emptied, since 0 * NaN of the pass before would last for ever; .data, so that autograd lets it.
        statistics = self.batch_statistics.data.zero_() if self.training else self.statistics
        measured = dict(zip(self._measured, torch.split(statistics, _sizes(self._measured)), strict=True))
        shortcuts: dict[str, Tensor] = {}
        for layer in layers:
            x = self._layer(layer, x, learned, measured)
            if layer.adds is not None:
                x = x.add_(shortcuts.pop(layer.adds))
            if layer.name in self._shortcuts:
                shortcuts[layer.name] = x
        return x

    def _layer(self, layer: Layer, x: Tensor, learned: dict[str, Tensor], measured: dict[str, Tensor]) -> Tensor:
        if layer.kind == "average_pool":
            return x.mean((2, 3), dtype=torch.promote_types(x.dtype, torch.float32))
        if layer.kind == "max_pool":
            return x.amax((2, 3))
        weight, bias = learned[f"{layer.name}.weight"], learned.get(f"{layer.name}.bias")
        if layer.kind == "dense":
            return F.linear(F.dropout(x, self.network.conventions.dropout, self.training), weight.t(), bias)
        x = F.batch_norm(
            _convolve(layer, x, weight, bias, *self._paddings[layer.name]),
            measured[f"{layer.name}.mean"],
            measured[f"{layer.name}.variance"],
            learned[f"{layer.name}.gamma"],
            learned[f"{layer.name}.beta"],
            training=self.training,
            momentum=1.0,  # the statistics of this batch alone
            eps=self.network.conventions.batch_norm_epsilon,
        )
        match layer.activation:
            case "relu6":
                return F.relu6(x, inplace=True)
            case "relu":
                return F.relu_(x)
            case _:
                return x


def _convolve(
    layer: Layer, x: Tensor, weight: Tensor, bias: Tensor | None, pad: tuple[int, ...], padding: tuple[int, int]
) -> Tensor:
    x = F.pad(x, pad) if any(pad) else x
    kernel = _torch_layout(weight)
    if layer.kind != "depthwise":
        return F.conv2d(x, kernel, bias, layer.stride, padding)
    groups = layer.output.channels
    if layer.stride > 1 and x.device.type == "cpu":
        # Autocast does not get this one: its gradient takes 14 to 28 times as long in bfloat16 as in float32 (torch
        # 2.13, AVX-512), a fifth of a whole step of V2 0.5 at 32x32.
        with torch.autocast("cpu", enabled=False):
            return F.conv2d(x.to(weight.dtype), kernel, bias, layer.stride, padding, groups=groups).to(x.dtype)
    return F.conv2d(x, kernel, bias, layer.stride, padding, groups=groups)


def _is_statistic(name: str) -> bool:
    return name.rpartition(".")[2] in STATISTICS


def _decays(network: Network, name: str) -> bool:
    layer, _, part = name.rpartition(".")
    return part == "weight" and network.by_name[layer].kind != "depthwise"


def _sizes(shapes: Mapping[str, tuple[int, ...]]) -> list[int]:
    return [int(np.prod(shape)) for shape in shapes.values()]


def _torch_layout(weight: Tensor) -> Tensor:
    """Returns a view [out, in over groups, k, k] of a weight in file layout."""
    if weight.dim() == 4:
        return weight.permute(3, 2, 0, 1)
    if weight.dim() == 3:
        return weight.permute(2, 0, 1)[:, None]
    return weight.t()[:, :, None, None]


def _padding(layer: Layer) -> tuple[tuple[int, int, int, int], tuple[int, int]]:
    """Returns `F.pad`'s (left, right, top, bottom) and conv2d's own (vertical, horizontal) padding.

    conv2d pads both sides alike, which is the layer's padding wherever it gives as many outputs: they start at the
    same place. Only a direction in which it does not needs a pass of `F.pad`.
    """
    sizes = zip(layer.input[:2], layer.output[:2], layer.padding, strict=True)
    alike = [(size + 2 * pads[0] - layer.kernel) // layer.stride + 1 == out for size, out, pads in sizes]
    (top, bottom), (left, right) = layer.padding
    pad = (0 if alike[1] else left, 0 if alike[1] else right, 0 if alike[0] else top, 0 if alike[0] else bottom)
    return pad, (top if alike[0] else 0, left if alike[1] else 0)
