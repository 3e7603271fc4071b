"""FlatBuffers, the encoding of TFLite files: tables of numbered fields, written whole and read with suspicion.

https://flatbuffers.dev/internals: little-endian; a table begins with the distance back to its vtable, which lists
where each field stands in it (0 where it is absent); strings, vectors and tables stand elsewhere, at a distance
forwards from the field.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..errors import MobileNetError, ModelError


@dataclass(frozen=True)
class Scalar:
    """Is a number in a table: its `struct` code ("b" int8, "B" uint8, "i" int32, "I" uint32, "f" float32) and value."""

    code: str
    value: float


Reference: TypeAlias = "str | bytes | NDArray[Any] | Fields | Sequence[str] | Sequence[Fields]"
Value: TypeAlias = "Scalar | Reference"
Fields = Mapping[int, Value]
"""A table to write: field number -> value. `bytes` are a vector of uint8 that begins at a multiple of 16, an array is a
vector of its type, a sequence a vector of strings or tables."""

MAX_BYTES = (1 << 31) - 1
"""The format's own limit of a file."""
_BYTES_ALIGNMENT = 16  # TFLite's force_align of a buffer's data; XNNPACK reads weights in place


# ---------------------------------------------------------------------------------------------------------- writing


def encode(root: Fields, identifier: bytes) -> bytes:
    """Returns the file whose root table has the given fields; `identifier` is the file's four characters.

    Raises:
        MobileNetError: it would have more than 2 GiB.
    """
    out = bytearray(4) + identifier
    _point(out, 0, _table(out, root))
    if len(out) > MAX_BYTES:
        raise MobileNetError(f"flatbuffer: the file would have {len(out):,} bytes, the format allows {MAX_BYTES:,}")
    return bytes(out)


def _table(out: bytearray, fields: Fields) -> int:
    """Appends a table and all it refers to; returns its position."""
    place, places = 4, {}
    for field, value in sorted(fields.items()):
        size = struct.calcsize(value.code) if isinstance(value, Scalar) else 4
        places[field] = place = -(-place // size) * size
        place += size
    vtable = struct.pack("<HH", 4 + 2 * (max(places, default=-1) + 1), place)
    vtable += b"".join(struct.pack("<H", places.get(field, 0)) for field in range(max(places, default=-1) + 1))
    _align(out, 8, ahead=len(vtable))
    out += vtable
    position = len(out)
    out += struct.pack("<i", len(vtable)) + bytes(place - 4)
    for field, value in fields.items():
        if isinstance(value, Scalar):
            struct.pack_into(f"<{value.code}", out, position + places[field], value.value)
        else:
            _point(out, position + places[field], _reference(out, value))
    return position


def _reference(out: bytearray, value: Reference) -> int:
    """Appends what a field refers to; returns its position."""
    if isinstance(value, Mapping):
        return _table(out, value)
    if isinstance(value, str):
        return _vector(out, value.encode() + b"\0", len(value.encode()), 1)
    if isinstance(value, bytes):
        return _vector(out, value, len(value), _BYTES_ALIGNMENT)
    if isinstance(value, np.ndarray):
        return _vector(out, value.astype(value.dtype.newbyteorder("<")).tobytes(), value.size, value.itemsize)
    items: list[Reference] = list(value)
    position = _vector(out, bytes(4 * len(items)), len(items), 4)
    for index, item in enumerate(items):
        _point(out, position + 4 + 4 * index, _reference(out, item))
    return position


def _vector(out: bytearray, data: bytes, count: int, alignment: int) -> int:
    _align(out, max(alignment, 4), ahead=4)
    position = len(out)
    out += struct.pack("<I", count) + data
    return position


def _align(out: bytearray, alignment: int, ahead: int) -> None:
    """Appends zeros until what comes `ahead` bytes later stands at a multiple of `alignment`."""
    out += bytes(-(len(out) + ahead) % alignment)


def _point(out: bytearray, place: int, position: int) -> None:
    struct.pack_into("<I", out, place, (position - place) & 0xFFFFFFFF)  # beyond 4 GiB `encode` refuses


# ---------------------------------------------------------------------------------------------------------- reading


def decode(data: bytes, identifier: bytes) -> "Table":
    """Returns the root table of a file.

    Raises:
        ModelError: the file is too short, or has another identifier; from the table's methods: where in the file what
            reaches beyond its end.
    """
    if len(data) < 8 or data[4:8] != identifier:
        raise ModelError(f"no {identifier.decode()} file: bytes 4 to 7 are {data[4:8]!r}")
    return Table(data, _number(data, "I", 0))


@dataclass(frozen=True)
class Table:
    """Is a table of a file that nobody has checked: each access is checked against the file's length."""

    data: bytes
    position: int

    def scalar(self, field: int, code: str, default: float = 0) -> Any:
        """Returns a number by its `struct` code; the schema's default where the field is absent."""
        place = self._place(field)
        return default if place is None else _number(self.data, code, place)

    def integer(self, field: int, code: str = "i", default: int = 0) -> int:
        """Returns a whole number."""
        return int(self.scalar(field, code, default))

    def table(self, field: int) -> "Table | None":
        """Returns a table, None where it is absent."""
        target = self._target(field)
        return None if target is None else Table(self.data, target)

    def tables(self, field: int, limit: int) -> "list[Table]":
        """Returns a vector of at most `limit` tables, empty where it is absent."""
        target = self._target(field)
        if target is None:
            return []
        count = self._count(target, 4)
        if count > limit:
            raise ModelError(f"flatbuffer: {count:,} tables at byte {target:,}, at most {limit:,} are allowed")
        places = range(target + 4, target + 4 + 4 * count, 4)
        return [Table(self.data, place + _number(self.data, "I", place)) for place in places]

    def array(self, field: int, dtype: str) -> NDArray[Any] | None:
        """Returns a vector of numbers, a view of the file; None where it is absent."""
        target = self._target(field)
        if target is None:
            return None
        kind = np.dtype(dtype).newbyteorder("<")
        return np.frombuffer(self.data, kind, self._count(target, kind.itemsize), target + 4)

    def text(self, field: int) -> str:
        """Returns a string, cut to 1000 bytes, "" where it is absent; bytes that are not UTF-8 are replaced."""
        found = self.array(field, "u1")
        return "" if found is None else found[:1000].tobytes().decode("utf-8", "replace")

    def _place(self, field: int) -> int | None:
        vtable = self.position - _number(self.data, "i", self.position)
        if 4 + 2 * field >= _number(self.data, "H", vtable):
            return None
        offset = _number(self.data, "H", vtable + 4 + 2 * field)
        return self.position + offset if offset else None

    def _target(self, field: int) -> int | None:
        place = self._place(field)
        return None if place is None else place + int(_number(self.data, "I", place))

    def _count(self, target: int, size: int) -> int:
        count = int(_number(self.data, "I", target))
        if target + 4 + count * size > len(self.data):
            raise ModelError(
                f"flatbuffer: {count:,} items of {size} bytes at byte {target:,} reach beyond the file's "
                f"{len(self.data):,} bytes"
            )
        return count


def _number(data: bytes, code: str, place: int) -> Any:
    if not 0 <= place <= len(data) - struct.calcsize(code):
        raise ModelError(f"flatbuffer: byte {place:,} is referred to, the file has {len(data):,}")
    return struct.unpack_from(f"<{code}", data, place)[0]
