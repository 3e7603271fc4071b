"""Which network a file's layers are: they are compared with what `arch` lays out, and the first that differs is named.

Files with a graph say what each layer computes, but not which member of the families the whole is. Their readers make
a list of steps; here the family, alpha, conventions and so on are found that give exactly these layers.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from ..arch import (
    SCALINGS,
    Activation,
    Conventions,
    Family,
    Kind,
    Layer,
    Network,
    Pads,
    Shape,
    conventions,
    sources,
    v1,
    v2,
)
from ..errors import ModelError, UsageError
from ..photos.preprocessing import Preprocessing
from ..presets import Padding
from ..storage import fitting
from ..storage.tensors_file import Tensors

_POOLS = ("average_pool", "max_pool")
_SOURCES = (
    "slim",
    "keras",
    "mlperf_tiny",
    "notes",
    "torchvision",
    "timm",
    "paddle",
)  # those with files of graphs first
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


def network_of(steps: Sequence[Step], what: str) -> Network:
    """Returns the network whose layers are exactly `steps`.

    Several may be: then one of a source whose conventions are these, where there is one.

    Raises:
        ModelError: "<what> is not a MobileNet" with the first step that differs from the most similar network's layer.
    """
    best = (False, -1, "it has no layers")
    if len(epsilons := {step.epsilon for step in steps} - {None}) > 1:
        raise ModelError(
            f"{what} is not a MobileNet: its batch norms have different epsilons, {sorted(map(str, epsilons))}"
        )
    for base in _structures(steps):
        fits, difference = _compare(base, steps, _STRUCTURE)
        structured = not difference
        if structured:
            network = fitting.find(base, _shapes(base, steps))
            fits, difference = _compare(network or _nearest(base, steps), steps)
            if network is not None and not difference:
                return network
        best = max(best, (structured, fits, difference), key=lambda found: found[:2])
    raise ModelError(f"{what} is not a MobileNet: {best[-1]}")


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


def _structures(steps: Sequence[Step]) -> Iterator[Network]:
    """Yields networks of alpha 1 that differ in what `fitting.find` does not look for, the likely ones first."""
    if not steps or steps[0].input.height < 1:
        return
    for make in (v1, v2) if _looks_like_v1(steps) else (v2, v1):
        family: Family = "v1" if make is v1 else "v2"
        for conv in _conventions(family, steps):
            try:
                yield make(1.0, steps[0].input[:2], **_arguments(steps, conv), conventions=conv)
            except UsageError:  # a resolution or number of channels that no network has
                continue


def _looks_like_v1(steps: Sequence[Step]) -> bool:
    """V1's blocks end with an activation, V2's are linear."""
    return not any(step.kind == "pointwise" and step.activation == "linear" for step in steps)


def _arguments(steps: Sequence[Step], conv: Conventions) -> dict[str, Any]:
    kinds = [step.kind for step in steps]
    downsampling = math.prod(step.stride for step in steps) // conv.last_stride
    include_top = kinds[-1] == "dense"
    pool = kinds[-1] if kinds[-1] in _POOLS else None
    return {
        "classes": min(steps[-1].output.channels, 1_000_000) if include_top else 1000,
        "channels": steps[0].input.channels,
        "include_top": include_top,
        "pooling": pool and {"average_pool": "avg", "max_pool": "max"}[pool],
        "downsampling": downsampling if downsampling in (1, 2, 4, 8, 16) else 32,
        "separable": "depthwise" in kinds,
    }


def _conventions(family: Family, steps: Sequence[Step]) -> Iterator[Conventions]:
    """Yields conventions with what the steps tell, one for each padding: those of the source that has most as it is."""
    activation = steps[0].activation if steps[0].activation != "linear" else "relu6"
    strided = [step.stride for step in steps if step.kernel > 1]
    facts: dict[str, Any] = {
        "activation": activation,
        "background": steps[-1].kind == "dense" and steps[-1].output.channels == 1001,
        "conv_bias": any("bias" in step.parts and step.epsilon is not None for step in steps),
        "last_stride": 2 if family == "v1" and strided[-1:] == [2] else 1,
        "expand_first": family == "v2" and [step.kind for step in steps[1:2]] == ["pointwise"],
    }
    epsilon = next((step.epsilon for step in steps if step.epsilon is not None), None)
    if epsilon is not None:
        facts["batch_norm_epsilon"] = epsilon
    known = [name for name in _SOURCES if name in sources(family)]
    presets = [conventions(family, name) for name in known]
    ranked = [
        (_distance(preset, facts) + (padding != preset.padding), padding, preset)
        for padding in get_args(Padding)
        for preset in presets
    ]
    ranked.sort(key=lambda found: found[0])
    best = {padding: preset for _, padding, preset in reversed(ranked)}  # widths' rules are `fitting.find`'s to try
    for padding in dict.fromkeys(padding for _, padding, _ in ranked):
        yield dataclasses.replace(best[padding], padding=padding, **facts)


def _distance(preset: Conventions, facts: Mapping[str, Any]) -> int:
    told = ("activation", "last_stride", "expand_first", "background")
    return sum(getattr(preset, name) != facts[name] for name in told)


def _shapes(base: Network, steps: Sequence[Step]) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the steps' tensors under the base's names."""
    found: dict[str, tuple[int, ...]] = {}
    for layer, step in zip(base.layers, steps, strict=True):
        for name in layer.tensors:
            weight = name == f"{layer.name}.weight" and "weight" in step.parts
            found[name] = step.parts["weight"].shape if weight else (step.output.channels,)
    return found


def _nearest(base: Network, steps: Sequence[Step]) -> Network:
    """Returns the base in the width that the stem has, for the error."""
    try:
        return base.replace(alpha=max(steps[0].output.channels, 1) / base.layers[0].output.channels)
    except UsageError:
        return base


_STRUCTURE = ("kind", "size", "kernel", "stride", "padding", "activation")  # what does not depend on alpha


def _compare(network: Network, steps: Sequence[Step], only: Sequence[str] = ()) -> tuple[int, str]:
    """Returns how many steps are the network's layers, and how the next differs, "" if all are."""
    names = [layer.name for layer in network.layers]
    for index, (layer, step) in enumerate(zip(network.layers, steps, strict=False)):
        adds = None if step.adds is None else names[step.adds]
        mine, theirs = _facts(layer, layer.adds), _facts(step, adds)
        if any(mine[name] != theirs[name] for name in only or mine):
            return (
                index,
                f"layer {index}, {step.name!r}, is {_text(theirs)}; {layer.name} of {network} is {_text(mine)}",
            )
    if len(steps) != len(names):
        return min(len(steps), len(names)), f"it has {len(steps)} layers, {network} has {len(names)}"
    return len(names), ""


def _facts(layer: Layer | Step, adds: str | None) -> dict[str, Any]:
    pads = layer.padding if layer.kernel > 1 else ((0, 0), (0, 0))
    return {
        "kind": layer.kind,
        "channels": (layer.input.channels, layer.output.channels),
        "size": layer.output[:2],
        "kernel": layer.kernel,
        "stride": layer.stride,
        "padding": pads,
        "activation": layer.activation,
        "adds": adds,
    }


def _text(facts: Mapping[str, Any]) -> str:
    ins, outs = facts["channels"]
    height, width = facts["size"]
    kernel = f" {facts['kernel']}x{facts['kernel']} stride {facts['stride']}" if facts["kernel"] > 1 else ""
    padding = f" padding {facts['padding']}" if facts["kernel"] > 1 else ""
    adds = f" added to {facts['adds']}" if facts["adds"] else ""
    return f"{facts['kind']}{kernel} {ins} -> {outs} channels, {height}x{width},{padding} {facts['activation']}{adds}"
