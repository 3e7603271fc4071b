"""What happens to a sum between the registers and memory: activation and shortcut, or the rescaling of whole numbers.

The endings of floats are the activations: "linear", "relu", "relu6". Those of whole numbers have constants, rows of the
parameters behind those of the inputs, a number a channel. `integer` says what they compute.

With the rescales "float" and "full": "rescaled" (to bytes, whose limits 0 and 255 are the activation's),
"rescaled+zero" (with a zero point), "rescaled+limits" (with a zero point and other limits). With "float" a shortcut may
be added to each; with "full" it is an ending of its own: "summed", "summed+limits", "summed+same", where all scales are
the same. Of the classifier: "logits", which stay floats, and "full+logits", which become them again.

With the rescale "fixed": "fixed", any layer's; "fixed+relu", where the lower limit is the zero point or above, so that
what is negative need not be known, and no shift goes to the left, "fixed+relu+limits" with a zero point and limits;
"fixed+mean", of average pooling; "fixed+logits" and "fixed+logits once", which become floats.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ..fixed_point import ADD_SHIFT

if TYPE_CHECKING:
    from .ir import Code, Value

_LIMITS = ("zero", "low", "high")
_TERMS = ("own", "shortcut")
_FACTOR = ("left", "multiplier", "right")
_LOGITS = ("low", "high", "scale")
_OWN = ("own_low", "own_high")
_SUM = (*_OWN, "own_multiplier", "shortcut_multiplier", "sum_more", "sum_right")
ROWS = {
    "rescaled": ("float_multiplier",),
    "rescaled+zero": ("float_multiplier", "zero"),
    "rescaled+limits": ("float_multiplier", *_LIMITS),
    "logits": ("float_multiplier",),
    "summed": ("float_multiplier", *_SUM, "zero"),
    "summed+limits": ("float_multiplier", *_SUM, *_LIMITS),
    "summed+same": ("float_multiplier", *_OWN, "same_more"),
    "full+logits": ("float_multiplier", *_LOGITS),
    "fixed": (*_FACTOR, *_LIMITS),
    "fixed+relu": ("doubled", "half", "right"),
    "fixed+relu+limits": ("doubled", "half", "right", *_LIMITS),
    "fixed+mean": ("origin", "low", "high"),
    "fixed+logits": (*_FACTOR, *_LOGITS),
    "fixed+logits once": ("multiplier", "places", *_LOGITS),
}
_SHORTCUT = ("shortcut", "shortcut_zero")
_FIXED_SHORTCUT = (
    *_OWN,
    *(f"{term}_{part}" for term in (*_TERMS, "sum") for part in ("multiplier", "right")),
    "shortcut_zero",
)


def rows(ending: str, adds: bool = False) -> tuple[str, ...]:
    """Returns the names of the rows of parameters of an ending, in their order."""
    found = ROWS.get(ending, ())
    if not found or not adds or ending.startswith("summed"):
        return found
    return (*found, *(_FIXED_SHORTCUT if ending == "fixed" else _SHORTCUT))


def adds_whole_numbers(ending: str) -> bool:
    """Whether the shortcut is a vector of whole numbers."""
    return ending.startswith(("fixed", "summed"))


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
        value: the sum, of floats, or of whole numbers where the ending has rows.
        row: returns a vector of the parameters by its name and kind of numbers.
        shortcut: the vector to be added, of floats or, where `adds_whole_numbers` says so, of those.
        exact: whether a sum of whole numbers comes as floats, exactly.
    """
    names = rows(ending, shortcut is not None)
    if not names:
        value = code.activate(value, ending)
        return code.add(value, shortcut) if shortcut is not None else value
    if ending.startswith("fixed"):
        value = _fixed(code, code.rounded(value) if exact else value, ending, row, shortcut)
    else:
        value = code.multiply(value if exact else code.to_floats(value), row("float_multiplier", "f32"))
        if ending == "logits":
            return value
        if shortcut is not None and "shortcut" in names:
            added = code.add(shortcut, row("shortcut_zero", "f32"))
            value = code.add(value, code.multiply(added, row("shortcut", "f32")))
        value = code.rounded(value)
        if ending.startswith("summed"):
            value = _summed(code, value, names, row, shortcut)
    if "zero" in names:
        value = code.plus(value, row("zero", "i32"))
    if "low" in names:
        value = code.limited(value, row("low", "i32"), row("high", "i32"))
    return code.multiply(code.to_floats(value), row("scale", "f32")) if "scale" in names else value


def _summed(
    code: "Code", own: "Value", names: Sequence[str], row: "Callable[[str, str], Value]", shortcut: "Value"
) -> "Value":
    """Returns the sum of two bytes times their factors."""
    own = code.limited(own, row("own_low", "i32"), row("own_high", "i32"))
    if "same_more" in names:
        return code.plus(code.plus(own, shortcut), row("same_more", "i32"))
    terms = [code.times(x, row(f"{name}_multiplier", "i32")) for x, name in zip((own, shortcut), _TERMS, strict=True)]
    return code.without_bits(code.plus(code.plus(*terms), row("sum_more", "i32")), row("sum_right", "i32"))


def _fixed(
    code: "Code", value: "Value", ending: str, row: "Callable[[str, str], Value]", shortcut: "Value | None"
) -> "Value":
    """Returns sum · factor of whole numbers, and where a shortcut is added the two times theirs times the sum's."""

    def constants(*names: str) -> "list[Value]":
        return [row(name, "i32") for name in names]

    fixed = code.fixed
    if ending == "fixed+mean":
        return code.plus(value, *constants("origin"))
    if ending == "fixed+logits once":
        return fixed.rescaled_once(value, *constants("multiplier", "places"))
    if ending.startswith("fixed+relu"):
        return fixed.rescaled_up(value, *constants("doubled", "half", "right"))
    value = fixed.rescaled(value, *constants(*_FACTOR))
    if shortcut is None:
        return value

    def times(term: "Value", name: str) -> "Value":
        return fixed.rescaled(term, code.whole_numbers(0), *constants(f"{name}_multiplier", f"{name}_right"))

    own = code.limited(value, *constants("own_low", "own_high"))
    added = code.plus(shortcut, *constants("shortcut_zero"))
    both = [times(fixed.shifted(x, ADD_SHIFT), name) for x, name in zip((own, added), _TERMS, strict=True)]
    return times(code.plus(*both), "sum")
