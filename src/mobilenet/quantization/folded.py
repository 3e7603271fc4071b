"""The float32 network with batch norm folded in, a layer at a time over many images: what quantisation measures."""

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from ..arch import Layer, Network
from ..integer import weighted_sum
from ..photos.preprocessing import Preprocessing
from ..storage.tensors_file import Tensors

Floats = NDArray[np.float32]


def scaled(pixels: NDArray[np.uint8], preprocessing: Preprocessing) -> Floats:
    """Returns pixels as the network's first layer sees them."""
    mean, std = np.array(preprocessing.mean, np.float32), np.array(preprocessing.std, np.float32)
    return np.asarray((pixels.astype(np.float32) - mean) / std)


def before_activation(layer: Layer, folded: Mapping[str, Floats], x: Floats) -> Floats:
    """Returns the output of a layer for many images but for its activation and shortcut; of a pool its output."""
    if layer.kind in ("average_pool", "max_pool"):
        return np.asarray(x.mean((1, 2)) if layer.kind == "average_pool" else x.max((1, 2)))
    weight = folded[f"{layer.name}.weight"]
    if layer.kind == "conv":
        weight = weight.reshape(-1, layer.output.channels)
    total = weighted_sum(layer, x, weight)
    total += folded[f"{layer.name}.bias"]
    return total


def activated(layer: Layer, value: Floats, shortcut: Floats | None) -> Floats:
    """Returns the layer's output from what `before_activation` gave; may write over it."""
    if layer.activation != "linear":
        np.clip(value, 0, 6 if layer.activation == "relu6" else None, out=value)
    if shortcut is not None:
        value += shortcut
    return value


def run(network: Network, folded: Tensors, x: Floats) -> Iterator[tuple[Layer, Floats]]:
    """Yields each layer with its output for scaled pixels [N, height, width, channels]."""
    needed = {layer.adds for layer in network.layers}
    added: dict[str, Floats] = {}
    for layer in network.layers:
        x = activated(layer, before_activation(layer, folded, x), added.pop(layer.adds) if layer.adds else None)
        if layer.name in needed:
            added[layer.name] = x
        yield layer, x
