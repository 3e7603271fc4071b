"""JSON with one meaning only: no duplicate keys, no NaN or infinity, no nesting bombs, no surprises in size."""

import json
import math
from pathlib import Path
from typing import Any

from ..errors import DataError, ModelError
from .checks import short
from .files import read_regular, shown

# Together these keep the memory of reading under 16 MiB: at worst a byte of strings takes 19 bytes ("ā","ā",…), and a
# list in a list some 200, which a text of brackets alone has in two bytes.
LIMIT = 640 << 10
BRACKETS_LIMIT = 10_000
MAX_KEY = 200  # characters


def read_object(path: Path) -> dict[str, Any]:
    """Returns the object that a file holds; raises a `ModelError` that names the file and says what is wrong."""
    try:
        found = parse(read_regular(path, LIMIT))
    except DataError as error:
        raise ModelError(str(error)) from error
    except ValueError as error:
        raise ModelError(f"{shown(path)}: {error}") from error
    if not isinstance(found, dict):
        raise ModelError(f"{shown(path)}: is {short(found)}, an object is needed")
    return found


def parse(data: bytes) -> Any:
    """Returns the value that the UTF-8 bytes describe.

    Raises:
        ValueError: says what is wrong: not UTF-8, not JSON, too long, a key given twice, a number that is not finite.
    """
    if len(data) > LIMIT:
        raise ValueError(f"has {len(data):,} bytes, at most {LIMIT:,} are allowed")
    if data.count(b"[") + data.count(b"{") > BRACKETS_LIMIT:
        raise ValueError(f"holds more than {BRACKETS_LIMIT:,} lists and objects")
    try:
        return json.loads(
            data.decode("utf-8"), object_pairs_hook=_object, parse_float=_finite, parse_constant=_no_constant
        )
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8 at byte {error.start}") from None
    except RecursionError:
        raise ValueError("is nested too deeply") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    longest = max(map(len, found), default=0)
    if longest > MAX_KEY:
        raise ValueError(f"holds a key of {longest:,} characters, at most {MAX_KEY} are allowed")
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"holds the key {short(twice)} twice")
    return found


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"holds the number {text[:20]}, which is too large")
    return value


def _no_constant(text: str) -> float:
    raise ValueError(f"holds {text}, which is not JSON")
