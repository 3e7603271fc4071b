"""A network as a torch module with batch norm folded, as one deploys it."""

import torch
import torch.nn.functional as F
from formats import out_in_rows_columns
from torch import Tensor, nn

from mobilenet import weights
from mobilenet.arch import Layer
from mobilenet.model import Model


class Folded(nn.Module):
    """Computes logits [N, classes] from scaled pixels [N, channels, height, width]."""

    def __init__(self, model: Model) -> None:
        """Takes over the model's weights."""
        super().__init__()
        self._layers = model.network.layers
        self._shortcuts = {layer.adds for layer in self._layers}
        folded = weights.fold(model.network, model.tensors)
        for layer in self._layers:
            if layer.weight_shape is None:
                continue
            module = _module(layer)
            weight = folded[f"{layer.name}.weight"]
            weight = weight.T if layer.kind == "dense" else out_in_rows_columns(layer, weight)
            state = {"weight": weight.copy(), "bias": folded[f"{layer.name}.bias"]}
            module.load_state_dict({part: torch.from_numpy(array) for part, array in state.items()})
            self.add_module(_place(layer), module)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the logits."""
        kept: dict[str | None, Tensor] = {}
        for layer in self._layers:
            if layer.kind == "average_pool":
                x = x.mean((2, 3))
                continue
            (top, bottom), (left, right) = layer.padding
            if (top, left) != (bottom, right):
                x = F.pad(x, (left, right, top, bottom))
            x = self.get_submodule(_place(layer))(x)
            if layer.activation != "linear":
                x = F.relu6(x, inplace=True) if layer.activation == "relu6" else F.relu(x, inplace=True)
            if layer.adds:
                x = x + kept[layer.adds]
            if layer.name in self._shortcuts:
                kept[layer.name] = x
        return x


def _place(layer: Layer) -> str:
    return layer.name.replace(".", "_")


def _module(layer: Layer) -> nn.Conv2d | nn.Linear:
    ins, outs = layer.input.channels, layer.output.channels
    if layer.kind == "dense":
        return nn.Linear(ins, outs)
    (top, bottom), (left, right) = layer.padding
    symmetric = (top, left) == (bottom, right)
    groups = outs if layer.kind == "depthwise" else 1
    return nn.Conv2d(ins, outs, layer.kernel, layer.stride, (top, left) if symmetric else 0, groups=groups)
