"""What the layers of a file with a graph are: the steps that its reader finds, as `arch.Layer`s and as tensors."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arch import SCALINGS, Activation, Conventions, Kind, Layer, Network, Pads, Shape
from ..errors import ModelError
from ..photos.preprocessing import Preprocessing
from ..storage.tensors_file import Tensors
from .match import match

_PREFER = ("slim", "keras", "mlperf_tiny", "notes", "torchvision", "timm", "paddle")  # those with such files first
_POOLS = ("average_pool", "max_pool")
_IDENTITY = {"gamma": 1.0, "beta": 0.0, "mean": 0.0}


@dataclass(frozen=True, eq=False)
class Step:
    """Is one layer as a file has it, with all that `arch.Layer` says of a layer.

    Attributes:
        name: in the file.
        padding: rows and columns of zeros that the outputs do read.
        adds: index of the step whose output is added to this one's.
        parts: its tensors in our layout by `arch`'s names: "weight", "bias", and of batch norm what is not folded in.
        epsilon: of batch norm, None where it is folded into weight and bias.
    """

    name: str
    kind: Kind
    input: Shape
    output: Shape
    kernel: int = 1
    stride: int = 1
    padding: Pads = ((0, 0), (0, 0))
    activation: Activation = "linear"
    adds: int | None = None
    parts: Mapping[str, NDArray[Any]] = dataclasses.field(default_factory=dict)
    epsilon: float | None = None


def network_of(steps: Sequence[Step]) -> Network:
    """Returns the network whose layers are exactly `steps`.

    Raises:
        ModelError: "not a MobileNet", with the first step that differs from the most similar network's layer.
    """
    if len(epsilons := {step.epsilon for step in steps} - {None}) > 1:
        raise ModelError(f"not a MobileNet: its batch norms have different epsilons, {sorted(map(str, epsilons))}")
    biased = any("bias" in step.parts and step.epsilon is not None for step in steps)
    counts = Counter(step.name for step in steps)
    names = [f"{step.name} ({n})" if counts[step.name] > 1 else step.name for n, step in enumerate(steps)]
    layers = [
        Layer(
            name,
            step.kind,
            None,
            step.input,
            step.output,
            step.kernel,
            step.stride,
            step.padding,
            step.activation,
            batch_norm=step.kind not in (*_POOLS, "dense"),
            bias=step.kind == "dense" or (biased and step.kind not in _POOLS),
            adds=None if step.adds is None else names[step.adds],
        )
        for name, step in zip(names, steps, strict=True)
    ]
    return match(layers, next(iter(epsilons), None), _PREFER)


def tensors_of(network: Network, steps: Sequence[Step]) -> Tensors:
    """Returns the network's tensors; where batch norm is folded in, one that folds back to the file's very numbers."""
    tensors: Tensors = {}
    for layer, step in zip(network.layers, steps, strict=True):
        parts = dict(step.parts)
        if layer.batch_norm and step.epsilon is None:
            channels = layer.output.channels
            parts["beta"] = parts.pop("bias", np.zeros(channels))
            parts["variance"] = np.full(channels, 1 - network.conventions.batch_norm_epsilon)
        for name, shape in layer.tensors.items():
            part = name.rpartition(".")[2]
            value = parts.get(part, _IDENTITY.get(part, 0.0))
            tensors[name] = np.ascontiguousarray(np.broadcast_to(value, shape), np.float32)
    return tensors


def with_scaling(conv: Conventions, preprocessing: Preprocessing) -> Conventions:
    """Returns the conventions with the name of the preprocessing's scaling, as they are if it has none."""
    named = (name for name, scaling in SCALINGS.items() if scaling == (preprocessing.mean, preprocessing.std))
    return dataclasses.replace(conv, scaling=next(named, conv.scaling))
