"""A network's tensors in memory: random ones to begin with, the checks that they fit, and folding batch norm."""

import math
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arch import STATISTICS, Layer, Network
from .common.checks import integer, short
from .errors import ModelError
from .storage import fitting
from .storage.tensors_file import Shapes, Tensors


def initial(network: Network, seed: int = 0) -> Tensors:
    """Returns random tensors to train from, the same for a seed on every machine.

    Convolutions are normal with variance 2 / fan-out (He et al. 2015), where the fan-out is k²·out, of a depthwise
    layer k²; the classifier is normal with deviation 0.01 and bias 0; batch norm is the identity. As torchvision has
    it. Each layer draws from a stream of its own, so that another number of classes leaves the rest as it was.

    Raises:
        UsageError: `seed` is no whole number from 0 to 2⁶⁴ - 1.
    """
    integer("seed", seed, 0, 2**64 - 1)
    fixed = {"bias": 0.0, "gamma": 1.0, "beta": 0.0, "mean": 0.0, "variance": 1.0}
    tensors: Tensors = {}
    for layer in network.layers:
        for name, shape in layer.tensors.items():
            part = name.rpartition(".")[2]
            if part in fixed:
                tensors[name] = np.full(shape, fixed[part], np.float32)
                continue
            stream = np.random.Generator(np.random.Philox(key=seed + (zlib.crc32(name.encode()) << 64)))
            tensors[name] = stream.standard_normal(shape, np.float32)
            tensors[name] *= np.float32(_deviation(layer))
    return tensors


def _deviation(layer: Layer) -> float:
    if layer.kind == "dense":
        return 0.01
    outs = 1 if layer.kind == "depthwise" else layer.output.channels
    return math.sqrt(2 / (layer.kernel**2 * outs))


def check(network: Network, tensors: Mapping[str, NDArray[Any]], *, allow_nonfinite: bool = False) -> None:
    """Checks that the tensors are the network's: every name, shape and type, all values finite, no variance below 0.

    Raises:
        ModelError: names the first tensor that does not fit and both shapes, and the alpha, number of classes or
            family that would explain it. `allow_nonfinite` lets any values pass.
    """
    check_shapes(network, {name: tensor.shape for name, tensor in tensors.items()})
    for name, tensor in tensors.items():
        if tensor.dtype != np.float32:
            raise ModelError(f"tensor {name!r} has type {tensor.dtype}, needed is float32")
    if not allow_nonfinite:
        check_values(tensors)


def check_shapes(network: Network, shapes: Shapes) -> tuple[str, ...]:
    """Returns the network's names if `shapes` are exactly its tensors' shapes; raises `ModelError` as `check` does."""
    for name, needed in network.tensors.items():
        if name not in shapes:
            raise ModelError(f"tensor {name!r} of shape {needed} is missing for {network}{_cause(network, shapes)}")
        check_shape(network, name, shapes)
    for name in shapes:
        if name not in network.tensors:
            raise ModelError(f"tensor {short(name)} does not belong to {network}{_cause(network, shapes)}")
    return tuple(network.tensors)


def check_shape(network: Network, name: str, shapes: Shapes) -> None:
    """Raises a `ModelError` unless the tensor has the shape that the network gives it."""
    if shapes[name] != network.tensors[name]:
        raise ModelError(
            f"tensor {name!r} has shape {shapes[name]}, needed is {network.tensors[name]} for {network}"
            f"{_cause(network, shapes)}"
        )


def _cause(network: Network, shapes: Shapes) -> str:
    found = fitting.explain(network, shapes)
    return f"; the tensors fit {found}" if found else ""


def check_values(tensors: Mapping[str, NDArray[np.float32]]) -> None:
    """Raises a `ModelError` that names the first tensor with NaN, infinity or a variance below 0."""
    for name, tensor in tensors.items():
        # NaN and infinities all show in the extremes, which need no memory as isfinite would.
        low, high = float(tensor.min()), float(tensor.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ModelError(f"tensor {name!r} holds NaN or infinity; allow_nonfinite=True takes it all the same")
        if low < 0 and name.endswith(STATISTICS[1]):
            raise ModelError(f"tensor {name!r} holds {low}, a variance is never negative; allow_nonfinite=True takes "
                             "it all the same")  # fmt: skip


def fold(network: Network, tensors: Mapping[str, NDArray[np.float32]]) -> Tensors:
    """Returns weight and bias of each layer with batch norm folded in: w·s and β + (b - μ)·s, s = γ / √(σ² + ε).

    The one place where it is done; computed in float64 and rounded once to float32. Names are "<layer>.weight" and
    "<layer>.bias"; every layer with weights has both.
    """
    return {name: tensor.copy() for name, tensor in Folded(network, tensors).items()}


class Folded(Mapping[str, NDArray[np.float32]]):
    """Is what `fold` returns, each layer folded when it is asked for and not kept; tensors that stay as they are, are
    the network's own."""  # fmt: skip

    def __init__(self, network: Network, tensors: Mapping[str, NDArray[np.float32]]) -> None:
        self._layers = {layer.name: layer for layer in network.layers if layer.weight_shape is not None}
        self._epsilon = network.conventions.batch_norm_epsilon
        self._tensors = tensors

    def __len__(self) -> int:
        return 2 * len(self._layers)

    def __iter__(self) -> Iterator[str]:
        return (f"{name}.{part}" for name in self._layers for part in ("weight", "bias"))

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        layer_name, _, wanted = name.rpartition(".")
        layer = self._layers[layer_name]
        part = {name.rpartition(".")[2]: self._tensors[name] for name in layer.tensors}
        value = part.get(wanted)
        if value is None:
            value = np.zeros(layer.output.channels, np.float32)
        if not layer.batch_norm:
            return value
        scale = part["gamma"] / np.sqrt(part["variance"].astype(np.float64) + self._epsilon)
        if wanted == "weight":  # the output channel is the last axis in every layout
            return np.multiply(value, scale, out=np.empty_like(value), casting="same_kind")  # rounded once all the same
        return (part["beta"] + (value.astype(np.float64) - part["mean"]) * scale).astype(np.float32)
