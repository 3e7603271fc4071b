"""Finds the network that tensors do fit, when they do not fit the one that was asked for: the cause in an error."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping

from .arch import STEM_CHANNELS, Network, conventions, sources
from .errors import UsageError

Shapes = Mapping[str, tuple[int, ...]]

_ALPHAS = (1.0, 0.75, 0.5, 0.25, 0.35, 1.4, 1.3, 1.25, 1.5, 2.0, 0.1)  # published widths


def explain(network: Network, shapes: Shapes) -> str:
    """Returns in which fields the nearest network that has tensors of these names and shapes differs from `network`.

    As "alpha 0.75 and classes 1001"; "" if no member of the families is known that has them, or it is this one.
    """
    near = [found for found in _candidates(network, shapes) if shapes.items() <= found.tensors.items()]
    if not near:
        return ""
    # A file may hold a part of a network only, but the whole of one is the better explanation.
    whole = [found for found in near if len(found.tensors) == len(shapes)]
    return " and ".join(_differences(network, (whole or near)[0]))


def _differences(network: Network, other: Network) -> Iterator[str]:
    for pair in ((network, other), (network.conventions, other.conventions)):
        for field in dataclasses.fields(pair[0]):
            mine, theirs = (getattr(side, field.name) for side in pair)
            if mine != theirs and field.name != "conventions":
                background = " (ImageNet's 1000 and a background)" if (field.name, theirs) == ("classes", 1001) else ""
                yield f"{field.name} {theirs}{background}"


def _candidates(network: Network, shapes: Shapes) -> Iterator[Network]:
    """Yields networks whose tensors have these names, those that differ least from `network` first."""
    for base in _with_names(network, set(shapes)):
        sized = _with_sizes(base, shapes)
        stem = shapes.get(f"{base.layers[0].name}.weight", ())
        alphas = (network.alpha, *_ALPHAS, *((stem[-1] / STEM_CHANNELS,) if stem and stem[-1] > 0 else ()))
        for source, alpha in itertools.product((None, *sources(base.family)), alphas):
            known = base.conventions if source is None else conventions(base.family, source)
            # Of a source only what decides about widths; the rest can't be seen in shapes.
            rules = {name: getattr(known, name) for name in _WIDTH_RULES}
            yield from _try(sized, alpha=alpha, conventions=dataclasses.replace(base.conventions, **rules))


_WIDTH_RULES = ("rounding", "divisor", "min_width", "fixed_stem", "scale_head", "round_expansion")


def _with_names(network: Network, names: set[str]) -> Iterator[Network]:
    others = {"v1": "v2", "v2": "v1"}
    top, separable = network.include_top, network.separable
    conv = network.conventions
    for change in itertools.product((False, True), repeat=5):
        family, include_top, twin, bias, first = change
        found = _try(
            network,
            family=others[network.family] if family else network.family,
            include_top=top ^ include_top,
            pooling=network.pooling if not (top ^ include_top) else None,
            separable=separable ^ twin,
            conventions=dataclasses.replace(
                conv, conv_bias=conv.conv_bias ^ bias, expand_first=conv.expand_first ^ first
            ),
        )
        yield from (base for base in found if names <= set(base.tensors))


def _with_sizes(base: Network, shapes: Shapes) -> Network:
    """Returns the network with the input channels and the classes that the first and last weights have."""
    stem = shapes.get(f"{base.layers[0].name}.weight", ())
    last = shapes.get(f"{base.layers[-1].name}.bias", ()) if base.include_top else ()
    changes = ({"channels": stem[-2]} if len(stem) == 4 else {}) | ({"classes": last[-1]} if len(last) == 1 else {})
    return next(_try(base, **changes), base)


def _try(network: Network, **changes: object) -> Iterator[Network]:
    try:
        yield network.replace(**changes)
    except UsageError:
        return
