"""Amounts and tables as plain text: "512KiB" read into bytes, bytes written as "524 kB", rows lined up in columns."""

import re
from collections.abc import Sequence
from typing import Literal

from ..errors import UsageError
from .checks import choice, number, short

Unit = Literal["count", "bytes"]
_POWERS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}
_AMOUNT = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([a-z]*)\s*", re.IGNORECASE)
MAX_AMOUNT = 10**15


def parse_amount(amount: str | float, unit: Unit, name: str = "amount") -> int:
    """Returns a limit such as "100M", "3.5M", "1MB" or "512KiB" as a whole number.

    Args:
        amount: digits, then a factor k, M, G (thousands) or Ki, Mi, Gi (1024s), upper or lower case; or a plain number.
        unit: "bytes" allows a "B" at the end; "count" (multiply-adds, parameters) does not.
        name: of the argument, for the error.

    Raises:
        UsageError: names the argument, its value and the rule.
    """
    choice("unit", unit, ("count", "bytes"))
    if isinstance(amount, str):
        example = "512KiB, 1MB or 250000" if unit == "bytes" else "100M, 3.5M or 250000"
        match = _AMOUNT.fullmatch(amount)
        factor = match[2].lower() if match else None
        if factor is not None and unit == "bytes":
            factor = factor.removesuffix("b")
        if match is None or factor not in _POWERS:
            what = "bytes" if unit == "bytes" else "a plain count"
            raise UsageError(f"{name}: got {short(amount)}, needed {what} such as {example}")
        amount = float(match[1]) * _POWERS[factor]
    number(name, amount, 1, MAX_AMOUNT)
    return round(amount)


def bytes_text(count: int) -> str:
    """Returns a number of bytes with three digits and its decimal unit: "802 kB", "6.02 MB"."""
    for power, unit in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if count >= 0.9995 * power:  # what would round to 1000 of the unit below
            value = count / power
            return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f} {unit}"
    return f"{count} B"


def table_text(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns rows under their headings, lined up: a heading that begins with "<" stands left, the others right."""
    headings = [column.removeprefix("<") for column in columns]
    lines = [headings, *(list(row) for row in rows)]
    widths = [max(len(line[n]) for line in lines) for n in range(len(columns))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column.startswith("<") else cell.rjust(width)
            for cell, width, column in zip(line, widths, columns, strict=True)
        ).rstrip()
        for line in lines
    )
