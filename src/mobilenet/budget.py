"""The members of both families that fit a budget: `choose` lists them, best first."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .arch import Conventions, Family, Network, v1, v2
from .common.checks import choice, integer
from .common.text import Unit, bytes_text, parse_amount, table_text
from .cost import cost
from .errors import GateError, UsageError
from .published import checkpoint

FAMILIES: tuple[Family, ...] = ("v1", "v2")
# The published ones (V1 1 to 0.25 at 224 to 128, V2 1.4 to 0.35 at 224 to 96) and others between and beyond them.
ALPHAS = (*(n / 20 for n in range(2, 21)), 1.1, 1.2, 1.3, 1.4)
RESOLUTIONS = (32, 64, 96, 128, 160, 192, 224, 256)

_UNITS: Mapping[str, Unit] = {"macs": "count", "params": "count", "memory": "bytes", "size": "bytes"}


@dataclass(frozen=True)
class Candidate:
    """Is one member of the families that fits a budget.

    Attributes:
        network: the member.
        macs: multiply-adds of one image.
        params: parameters that training learns.
        memory: bytes of activations live at once.
        size: bytes of all stored numbers, with batch norm's moving statistics: a file of weights but for its header.
        top1: published ImageNet top-1 accuracy in percent (slim's checkpoint), None where there is none.
        pareto: whether every candidate that is as accurate, by the published figures, needs more multiply-adds.
    """

    network: Network
    macs: int
    params: int
    memory: int
    size: int
    top1: float | None
    pareto: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Returns what tells the member and its figures as plain data."""
        member = {name: getattr(self.network, name) for name in ("family", "alpha", "height", "width", "classes")}
        figures = ("macs", "params", "memory", "size", "top1", "pareto")
        return member | {name: getattr(self, name) for name in figures}


def choose(
    macs: str | float | None = None,
    params: str | float | None = None,
    memory: str | float | None = None,
    size: str | float | None = None,
    *,
    classes: int = 1000,
    channels: int = 3,
    families: Sequence[Family] = FAMILIES,
    alphas: Sequence[float] = ALPHAS,
    resolutions: Sequence[int] = RESOLUTIONS,
    bytes_per_element: int = 4,
    fused: bool = False,
    conventions: str | Conventions = "paper",
) -> list[Candidate]:
    """Lists the members of the families that fit a budget, best first.

    Those with a published ImageNet accuracy come first, by it; the others after them, by multiply-adds from the most.

    Args:
        macs: the most multiply-adds of one image, a number or a text such as "100M".
        params: the most parameters, "3M".
        memory: the most bytes of activations live at once, "1MB"; see `mobilenet.cost` for the two ways to count.
        size: the most bytes of stored weights, "2MB".
        classes, channels: of the networks.
        families, alphas, resolutions: the members to look at.
        bytes_per_element: of activations and weights alike: 4 for float32, 1 for int8.
        fused: counts memory with fused blocks, not layer by layer.
        conventions: the name of a source both families have, or a `Conventions`.

    Raises:
        UsageError: names the argument, its value and the rule.
        GateError: nothing fits; names the member that comes nearest, its figures and by how much each misses.
    """
    integer("bytes_per_element", bytes_per_element, 1, 8)
    given = {"macs": macs, "params": params, "memory": memory, "size": size}
    limits = {name: parse_amount(x, _UNITS[name], name) for name, x in given.items() if x is not None}
    members = [
        _candidate(_member(family, alpha, resolution, classes, channels, conventions), bytes_per_element, fused)
        for family in _some("families", families)
        for alpha in _some("alphas", alphas)
        for resolution in _some("resolutions", resolutions)
    ]
    fitting = [c for c in members if all(getattr(c, name) <= limit for name, limit in limits.items())]
    if not fitting:
        raise GateError(_nothing_fits(members, limits))
    front = _pareto(fitting)
    ranked = sorted(fitting, key=lambda c: (c.top1 is None, -(c.top1 or 0.0), -c.macs if c.top1 is None else c.macs))
    return [replace(c, pareto=c.network in front) for c in ranked]


def choose_table(candidates: Sequence[Candidate], limit: int = 20) -> str:
    """Returns the first `limit` candidates as a plain table; a star marks the Pareto front of top-1 over macs."""
    integer("limit", limit, 1, 2**31)
    rows = [
        (
            f"{c.network.family} {c.network.alpha:g} {c.network.height}",
            f"{c.macs:,}",
            f"{c.params:,}",
            bytes_text(c.memory),
            bytes_text(c.size),
            "" if c.top1 is None else f"{c.top1:.1f}%",
            "*" if c.pareto else "",
        )
        for c in candidates[:limit]
    ]
    columns = ("<member", "multiply-adds", "parameters", "peak memory", "weights", "ImageNet top-1", "<front")
    more = len(candidates) - len(rows)
    return table_text(columns, rows) + (f"\n… and {more} more" if more > 0 else "")


def _some(name: str, values: Sequence[Any]) -> Sequence[Any]:
    if isinstance(values, str) or not isinstance(values, Sequence) or not values:
        raise UsageError(f"{name}: got {values!r}, needed a list with at least one entry")
    return values


def _member(
    family: Family, alpha: float, resolution: int, classes: int, channels: int, conventions: str | Conventions
) -> Network:
    choice("families", family, FAMILIES)
    make = v1 if family == "v1" else v2
    return make(alpha, resolution, classes, channels=channels, conventions=conventions)


def _candidate(network: Network, bytes_per_element: int, fused: bool) -> Candidate:
    counted = cost(network, bytes_per_element)
    memory = counted.fused_peak_memory if fused else counted.peak_memory
    row = checkpoint(network.family, network.alpha, network.height)
    top1 = row.top1 if row else None
    return Candidate(network, counted.macs, counted.params, memory, counted.total_params * bytes_per_element, top1)


def _pareto(candidates: Iterable[Candidate]) -> set[Network]:
    """Returns the networks on the front, by a walk from the cheapest up: each must beat all cheaper ones."""
    known = [(c.macs, -c.top1, c.network) for c in candidates if c.top1 is not None]
    front: set[Network] = set()
    best = -1.0
    for _, negative, network in sorted(known, key=lambda item: item[:2]):
        if -negative > best:
            front.add(network)
            best = -negative
    return front


def _nothing_fits(members: Sequence[Candidate], limits: Mapping[str, int]) -> str:
    nearest = min(members, key=lambda c: max(getattr(c, name) / limit for name, limit in limits.items()))
    words = {"macs": "multiply-adds", "params": "parameters", "memory": "of activations", "size": "of weights"}
    figures = []
    for name, limit in limits.items():
        value, write = getattr(nearest, name), bytes_text if _UNITS[name] == "bytes" else "{:,}".format
        verdict = "fits" if value <= limit else f"{value / limit:,.2f} times too much"
        figures.append(f"{write(value)} {words[name]} (limit {write(limit)}: {verdict})")
    return f"none of {len(members)} members fits; the nearest, {nearest.network}, has " + ", ".join(figures)
