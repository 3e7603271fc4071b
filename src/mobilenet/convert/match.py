"""From the layers of any graph, in order of computation, to the member of the families that they are.

A reader (Keras' config, a frozen graph, TFLite) says what it found as `arch.Layer`s under the source's own names: each
convolution with the batch norm, activation and shortcut that follow it. The member that they are is one whose layers
are the same, field by field.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ..arch import Conventions, Family, Layer, Network, Pads, Shape, conventions, sources, v1, v2
from ..common.checks import short
from ..errors import ModelError, UsageError
from ..storage import fitting

_COMPARED = ("kind", "kernel", "stride", "batch_norm", "bias", "activation", "input", "output", "padding")
_STRUCTURE = ("expand_first", "depth", "head_conv")  # conventions that decide which layers there are
NO_PADS: Pads = ((0, 0), (0, 0))
_MAKES: dict[Family, Callable[..., Network]] = {"v1": v1, "v2": v2}


def convolved(size: Shape, pads: Pads, kernel: int, stride: int, channels: int, *, same: bool) -> tuple[Shape, Pads]:
    """Returns the shape of a convolution's output, and the zeros around its input that it does read.

    A side below 1 means that the kernel is larger than the input.

    Args:
        size: of the input.
        pads: what it is padded by beforehand.
        same: whether the convolution pads on its own, as TensorFlow's "SAME" does.
    """
    sides, read = [], []
    for side, (before, after) in zip(size[:2], pads, strict=True):
        padded = before + side + after
        count = -(-padded // stride) if same else (padded - kernel) // stride + 1
        needed = (count - 1) * stride + kernel
        before += max(needed - padded, 0) // 2 if same else 0
        sides.append(count)
        read.append((before, max(needed - side - before, 0)))
    return Shape(sides[0], sides[1], channels), (read[0], read[1])


def match(layers: Sequence[Layer], epsilon: float | None, prefer: Sequence[str] = ()) -> Network:
    """Returns the network that has these layers.

    Args:
        layers: in order of computation, `adds` with the name of the source's layer; pooling and classifier too.
        epsilon: of batch norm; None where the source has folded it away.
        prefer: presets of conventions whose other fields are taken first where several fit.

    Raises:
        ModelError: "not a MobileNet", with the first layer that does not fit, what it is and what is needed.
    """
    if not layers:
        raise ModelError("not a MobileNet: it has no convolution")
    bases = _skeletons(layers)
    tried: list[tuple[int, Network]] = []
    for base in bases:
        if len(base.layers) == len(layers) == _common(base, layers):
            for network in _members(base, layers, epsilon, prefer):
                place = _first_difference(network, layers)
                if place is None:
                    return network
                tried.append((place, network))
    if tried:
        place, network = max(tried, key=lambda each: each[0])
        raise ModelError(_other_field(network, layers, place))
    nearest = max((base for base in bases if base.separable), key=lambda base: _common(base, layers))
    raise ModelError(_other_kind(nearest, layers, _common(nearest, layers)))


def _skeletons(layers: Sequence[Layer]) -> list[Network]:
    """Returns the networks, alpha 1, that differ in the kinds of their layers, with the top and strides of these."""
    size, twos = layers[0].input, sum(layer.stride == 2 for layer in layers)
    last = [layer for layer in layers if layer.kernel > 1][-1:] or layers
    found = []
    kinds = [(family, *kind) for family in _MAKES for kind in itertools.product((True, False), _structures(family))]
    for family, separable, structure in kinds:
        top: dict[str, Any] = {"include_top": layers[-1].kind == "dense"}
        if layers[-1].kind == "average_pool":
            top["pooling"] = "avg"
        elif layers[-1].kind == "max_pool":
            top["pooling"] = "max"
        rules = conventions(family, "paper", **structure, last_stride=1)
        strides = twos
        if family == "v1" and last[0].stride == 2:
            rules = dataclasses.replace(rules, last_stride=2)
            strides -= 1
        try:
            base = _MAKES[family](
                1.0,
                (size.height, size.width),
                1000,
                channels=size.channels,
                downsampling=2 ** max(min(strides, 5), 0),
                separable=separable,
                conventions=rules,
                **top,
            )
        except UsageError:
            continue
        found.append(base)
    if not found:
        raise ModelError(f"not a MobileNet: its input is {tuple(size)}")
    return found


def _structures(family: Family) -> list[dict[str, Any]]:
    """Returns the values of the conventions that decide which layers there are, of all presets."""
    presets = [conventions(family, name) for name in sources(family)]
    known = dict.fromkeys(tuple(getattr(preset, name) for name in _STRUCTURE) for preset in presets)
    return [dict(zip(_STRUCTURE, values, strict=True)) for values in known]


def _common(base: Network, layers: Sequence[Layer]) -> int:
    """Returns how many layers from the beginning on are of the same kind."""
    pairs = zip(base.layers, layers, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0].kind == pair[1].kind, pairs))


def _members(base: Network, layers: Sequence[Layer], epsilon: float | None, prefer: Sequence[str]) -> Iterator[Network]:
    """Yields members with the widths of the layers, under the conventions that may explain them."""
    shapes: dict[str, tuple[int, ...]] = {}
    for layer, theirs in zip(base.layers, layers, strict=True):
        shapes |= dataclasses.replace(theirs, name=layer.name, batch_norm=layer.batch_norm).tensors
    rules = list(_rules(base, layers, epsilon, prefer))
    start = base.replace(conventions=rules[0])
    found = fitting.find(start, shapes)
    if found is None:
        yield fitting.nearest(start, shapes)
        return
    widths = {name: getattr(found.conventions, name) for name in fitting.WIDTH_RULES}
    # What else presets differ in is no layer's, so that of those that agree in these the first is enough.
    first: dict[tuple[str, bool], Conventions] = {}
    for each in rules:
        first.setdefault((each.padding, each.first_shortcut), each)
    for each in first.values():
        known = found.replace(conventions=each)
        yield known if known.tensors == shapes else found.replace(conventions=dataclasses.replace(each, **widths))


def _rules(
    base: Network, layers: Sequence[Layer], epsilon: float | None, prefer: Sequence[str]
) -> Iterator[Conventions]:
    """Yields conventions with what the layers show, the rest from each preset; those that change least come first."""
    shown: dict[str, Any] = {
        "activation": "relu" if layers[0].activation == "relu" else "relu6",
        "conv_bias": layers[0].bias,
        "last_stride": base.conventions.last_stride,
        "background": layers[-1].kind == "dense" and layers[-1].output.channels == 1001,
        **{name: getattr(base.conventions, name) for name in _STRUCTURE},
    }
    told = {*shown, "padding", "batch_norm_epsilon"} - (
        {"conv_bias", "batch_norm_epsilon"} if epsilon is None else set()
    )
    if epsilon is not None:
        shown["batch_norm_epsilon"] = epsilon
    names = [name for name in prefer if name in sources(base.family)]
    names += [name for name in sources(base.family) if name not in names]
    presets = [conventions(base.family, name) for name in names]
    padded = [
        (dataclasses.replace(known, **shown, padding=padding), known)
        for known in presets
        for padding in dict.fromkeys((known.padding, "same", "bottom_right", "symmetric"))
    ]
    ranked = sorted(padded, key=lambda pair: sum(getattr(pair[0], f) != getattr(pair[1], f) for f in told))
    yield from dict.fromkeys(rules for rules, _ in ranked)


def _first_difference(network: Network, layers: Sequence[Layer]) -> int | None:
    """Returns the index of the first layer that is not the network's, None if all are."""
    names = {None: None} | {theirs.name: ours.name for ours, theirs in zip(network.layers, layers, strict=False)}
    for index, (ours, theirs) in enumerate(itertools.zip_longest(network.layers, layers)):
        if ours is None or theirs is None or any(getattr(ours, f) != getattr(theirs, f) for f in _COMPARED):
            return index
        if ours.adds != names.get(theirs.adds, "?"):
            return index
    return None


def _other_kind(base: Network, layers: Sequence[Layer], place: int) -> str:
    family = f"MobileNet {base.family.upper()}"
    if place >= len(layers):
        needed = base.layers[place]
        return f"not a MobileNet: ends after layer {short(layers[-1].name)}; {family} goes on with {_what(needed)}"
    here = f"layer {short(layers[place].name)} is {_what(layers[place])}"
    if place >= len(base.layers):
        return (
            f"not a MobileNet: {here}, after the end of {family}; of a top of several layers, include_top=False "
            "(--no-top) takes the network below it"
        )
    return f"not a MobileNet: {here}; {family} has {_what(base.layers[place])} there"


def _other_field(network: Network, layers: Sequence[Layer], place: int) -> str:
    ours, theirs = network.layers[place], layers[place]
    for field in _COMPARED:
        needed, found = getattr(ours, field), getattr(theirs, field)
        if needed != found:
            return (
                f"not a MobileNet: layer {short(theirs.name)} has {field} {_plain(found)}, needed is {_plain(needed)} "
                f"for the nearest member, {network}"
            )
    return f"not a MobileNet: layer {short(theirs.name)} adds {theirs.adds or 'nothing'}, {network} {ours.adds} there"


def _plain(value: object) -> str:
    return str(tuple(value)) if isinstance(value, Shape) else str(value)


def _what(layer: Layer) -> str:
    kinds = {"conv": "a standard convolution", "depthwise": "a depthwise convolution", "dense": "the classifier"}
    kinds |= {"pointwise": "a 1x1 convolution", "average_pool": "average pooling", "max_pool": "max pooling"}
    return kinds[layer.kind]
