"""Checks of arguments and of data read from files: each error names the argument, its value and the rule."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, cast

from ..errors import UsageError


def refuse_unknown(what: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raises a UsageError that names the first key of `given` that is not in `known`, and the nearest that is."""
    names = tuple(known)
    for key in given:
        if key not in names:
            import difflib

            near = difflib.get_close_matches(str(key), names, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(names)}"
            raise UsageError(f"{what}: unknown key {str(key)[:60]!r}; {hint}")


def fields(kind: type) -> tuple[str, ...]:
    """Returns the names of a dataclass's fields."""
    return tuple(field.name for field in dataclasses.fields(kind))


def exact_fields(what: str, given: object, kind: type, optional: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Returns `given` as a dict if it holds exactly the fields of the dataclass `kind`; raises a UsageError if not.

    Of `optional` fields it need not hold all; their values are those that are not there.
    """
    if not isinstance(given, Mapping):
        raise UsageError(f"{what}: got {short(given)}, needed an object with the keys {', '.join(fields(kind))}")
    refuse_unknown(what, given, fields(kind))
    found = {**(optional or {}), **cast(Mapping[str, Any], given)}
    missing = [name for name in fields(kind) if name not in found]
    if missing:
        raise UsageError(f"{what}: the key {missing[0]!r} is missing")
    return found


def short(value: object) -> str:
    """Returns the value as it stands in an error, cut to 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def choice(name: str, value: object, allowed: tuple[object, ...]) -> None:
    """Raises a UsageError unless the value is one of `allowed`."""
    if isinstance(value, bool) or not any(value is item or value == item for item in allowed):
        raise UsageError(f"{name}: got {short(value)}, needed one of {', '.join(repr(item) for item in allowed)}")


def boolean(name: str, value: object) -> None:
    """Raises a UsageError unless the value is True or False."""
    if not isinstance(value, bool):
        raise UsageError(f"{name}: got {short(value)}, needed true or false")


def integer(name: str, value: object, low: int, high: int) -> None:
    """Raises a UsageError unless the value is a whole number (no bool) from `low` to `high`."""
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise UsageError(f"{name}: got {short(value)}, needed a whole number from {low} to {high}")


def number(
    name: str, value: object, low: float, high: float, *, open_low: bool = False, open_high: bool = False
) -> None:
    """Raises a UsageError unless the value is a finite number from `low` to `high`, an open end excluded."""
    fits = isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high  # NaN fails
    if not fits or (open_low and value == low) or (open_high and value == high):
        rule = f"{'above' if open_low else 'from'} {low:g} {'to below' if open_high else 'to'} {high:g}"
        raise UsageError(f"{name}: got {short(value)}, needed a number {rule}")
