"""What happens to a sum between the registers and memory: activation and shortcut, or the rescaling of whole numbers.

The endings of floats are the activations: "linear", "relu", "relu6". Those of whole numbers are "rescaled" (to bytes,
whose limits 0 and 255 are the activation's), "rescaled+zero" (with a zero point) and "rescaled+limits" (with a zero
point and other limits). Their constants are rows of the parameters behind those of the inputs, a number a channel.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .ir import Code, Value

ROWS = {"rescaled": ("multiplier",), "rescaled+zero": ("multiplier", "zero")}
ROWS["rescaled+limits"] = (*ROWS["rescaled+zero"], "low", "high")
SHORTCUT = ("shortcut", "shortcut_zero")
FLOATS = ("multiplier", *SHORTCUT)  # the rows that are floats


def rows(ending: str, adds: bool = False) -> tuple[str, ...]:
    """Returns the names of the rows of parameters of an ending, in their order."""
    found = ROWS.get(ending, ())
    return (*found, *SHORTCUT) if found and adds else found


def finish(
    code: "Code",
    value: "Value",
    ending: str,
    row: "Callable[[str, str], Value]",
    shortcut: "Value | None" = None,
    *,
    exact: bool = False,
) -> "Value":
    """Returns what a sum is stored as.

    Args:
        value: the sum, of floats, or of whole numbers where the ending rescales.
        row: returns a vector of the parameters by its name and kind of numbers.
        shortcut: the vector to be added, of floats.
        exact: whether a sum of whole numbers comes as floats, exactly.
    """
    names = rows(ending, shortcut is not None)
    if not names:
        value = code.activate(value, ending)
        return code.add(value, shortcut) if shortcut is not None else value
    value = code.multiply(value if exact else code.to_floats(value), row("multiplier", "f32"))
    if shortcut is not None:
        added = code.add(shortcut, row("shortcut_zero", "f32"))
        value = code.add(value, code.multiply(added, row("shortcut", "f32")))
    value = code.rounded(value)
    if "zero" in names:
        value = code.plus(value, row("zero", "i32"))
    if "low" in names:
        value = code.limited(value, row("low", "i32"), row("high", "i32"))
    return value
