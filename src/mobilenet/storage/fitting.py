"""Finds the network that tensors do fit, when they do not fit the one that was asked for: the cause in an error."""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping

from ..arch import STEM_CHANNELS, Conventions, Network, conventions, scale_channels, sources
from ..errors import UsageError

Shapes = Mapping[str, tuple[int, ...]]

MAX_ALPHA = 16.0  # that is looked for
WIDTH_RULES = ("rounding", "divisor", "min_width", "fixed_stem", "scaled_first", "scale_head", "round_expansion")


def explain(network: Network, shapes: Shapes) -> str:
    """Returns in which fields the nearest network that has tensors of these names and shapes differs from `network`.

    As "alpha 0.75 and classes 1001"; "" if no member of the families is known that has them, or it is this one.
    """
    part = None
    for found in _candidates(network, shapes):
        if found.tensors == shapes:
            return " and ".join(_differences(network, found))
        part = part or found
    return " and ".join(_differences(network, part)) if part else ""


def find(network: Network, shapes: Shapes) -> Network | None:
    """Returns the network that has exactly the tensors `shapes`, the one that differs least from `network`, or None.

    It may differ in alpha, classes, channels, the top, and the conventions that decide names and widths.
    """
    exact = (found for base in _with_names(network, set(shapes)) for found in _bisected(base, shapes))
    found = itertools.chain(_candidates(network, shapes), exact)
    return next((each for each in found if each.tensors == shapes), None)


def nearest(network: Network, shapes: Shapes) -> Network:
    """Returns the network with another alpha, classes or channels that shares most tensors with `shapes`."""
    best, most = network, -1
    stem, last = (shapes.get(f"{network.layers[n].name}.weight", ()) for n in (0, -1))
    sizes = {"channels": stem[2]} if len(stem) == 4 else {}
    sizes |= {"classes": last[-1]} if len(last) == 2 and network.include_top else {}
    for alpha in (network.alpha, *_alphas(network, shapes)):
        for found in _try(network, alpha=alpha, **sizes):
            shared = len(shapes.items() & found.tensors.items())
            if shared > most:
                best, most = found, shared
    return best


def _differences(network: Network, other: Network) -> Iterator[str]:
    for mine, theirs in ((network, other), (network.conventions, other.conventions)):
        for field in dataclasses.fields(mine):
            value = getattr(theirs, field.name)
            if field.name != "conventions" and value != getattr(mine, field.name):
                background = " (ImageNet's 1000 and a background)" if (field.name, value) == ("classes", 1001) else ""
                yield f"{field.name} {value}{background}"


def _candidates(network: Network, shapes: Shapes) -> Iterator[Network]:
    """Yields networks that have these tensors, and maybe more, those that differ least from `network` first."""
    for base in _with_names(network, set(shapes)):
        stem = shapes.get(f"{base.layers[0].name}.weight", ())
        if len(stem) != 4:
            continue
        last = shapes.get(f"{base.layers[-1].name}.bias", ()) if base.include_top else ()
        sizes = {"channels": stem[2]} | ({"classes": last[0]} if len(last) == 1 else {})
        for rules, alpha in itertools.product(_width_rules(base), (network.alpha, *_alphas(base, shapes))):
            width = STEM_CHANNELS if rules.fixed_stem else scale_channels(STEM_CHANNELS, alpha, rules, in_block=False)
            if width == stem[3]:  # the whole network is some hundred times the work
                for found in _try(base, alpha=alpha, conventions=rules, **sizes):
                    if shapes.items() <= found.tensors.items():
                        yield found


def _with_names(network: Network, names: set[str]) -> Iterator[Network]:
    """Yields networks of other families, kinds and tops that have tensors of these names."""
    conv, other = network.conventions, {"v1": "v2", "v2": "v1"}[network.family]
    for family, top, twin, bias, first in itertools.product((False, True), repeat=5):
        include_top = network.include_top ^ top
        rules = dataclasses.replace(conv, conv_bias=conv.conv_bias ^ bias, expand_first=conv.expand_first ^ first)
        for found in _try(
            network,
            family=other if family else network.family,
            include_top=include_top,
            pooling=None if include_top else network.pooling,
            separable=network.separable ^ twin,
            conventions=rules,
        ):
            if names <= set(found.tensors):
                yield found


def _width_rules(base: Network) -> list[Conventions]:
    """Returns the network's conventions, then with the rules for widths of each known source."""
    found = [base.conventions]
    for source in sources(base.family):
        known = conventions(base.family, source)
        rules = {name: getattr(known, name) for name in WIDTH_RULES}
        found.append(dataclasses.replace(base.conventions, **rules))
    return list(dict.fromkeys(found))


def _alphas(base: Network, shapes: Shapes) -> list[float]:
    """Returns the ratios of the widths to those of alpha 1, to two decimals: alpha is one if it has no more.

    Multiples of 0.05, which people take, come first.
    """
    full = {
        name: shape[0] for found in _try(base, alpha=1.0) for name, shape in found.tensors.items() if len(shape) == 1
    }
    ratios = {round(shapes[n][0] / full[n], 2) for n in full if shapes.get(n, (0,))[0] > 0} - {0.0}
    return sorted(ratios, key=lambda alpha: (round(alpha * 100) % 5 != 0, alpha))


def _bisected(base: Network, shapes: Shapes) -> Iterator[Network]:
    """Yields the network whose alpha is the shortest number that gives the widths, as every width grows with alpha."""
    stem, last = (shapes.get(f"{base.layers[n].name}.weight", ()) for n in (0, -1))
    if len(stem) != 4 or (base.include_top and len(last) != 2):
        return
    sizes = {"channels": stem[2]} | ({"classes": last[1]} if base.include_top else {})
    wanted = sum(shape[0] for shape in shapes.values() if len(shape) == 1)

    def least(total: int) -> float:
        low, high = 0.0, MAX_ALPHA
        while high - low > 1e-9:
            middle = (low + high) / 2
            widths = sum(
                shape[0]
                for found in _try(base, alpha=middle, **sizes)
                for shape in found.tensors.values()
                if len(shape) == 1
            )
            low, high = (low, middle) if widths >= total else (middle, high)
        return high

    low, high = least(wanted), least(wanted + 1)
    for digits in range(8):
        alpha = math.ceil(low * 10**digits) / 10**digits
        if alpha < high:
            yield from _try(base, alpha=alpha, **sizes)
            return


def _try(network: Network, **changes: object) -> Iterator[Network]:
    try:
        yield network.replace(**changes)
    except UsageError:
        return
