"""Protocol Buffers, the encoding of ONNX files and TensorFlow's graphs: written whole and read with suspicion.

https://protobuf.dev/programming-guides/encoding: a message is a list of fields, each a number with a wire type (0 a
varint, 1 eight bytes, 2 a length and bytes, 5 four bytes) and a value; repeated numbers stand one by one or packed.
"""

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..errors import MobileNetError, ModelError

Value: TypeAlias = (
    "int | float | str | bytes | Fields | Sequence[int] | Sequence[str] | Sequence[bytes] | Sequence[Fields]"
)
Fields = Mapping[int, Value]
"""A message to write: field number -> value. A float is four bytes; a sequence repeats the field."""

MAX_BYTES = (1 << 31) - 1
"""Protocol Buffers' own limit of a message."""
_MAX_FIELDS = 1_000_000  # in one message; a MobileNet's graph has hundreds
_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5


# ---------------------------------------------------------------------------------------------------------- writing


def encode(fields: Fields) -> bytes:
    """Returns the message.

    Raises:
        MobileNetError: it would have more than 2 GiB.
    """
    data = b"".join(_message(fields))
    if len(data) > MAX_BYTES:
        raise MobileNetError(f"protobuf: the file would have {len(data):,} bytes, the format allows {MAX_BYTES:,}")
    return data


def _message(fields: Fields) -> Iterator[bytes]:
    for field, value in fields.items():
        items = value if isinstance(value, Sequence) and not isinstance(value, str | bytes) else (value,)
        for item in items:
            if isinstance(item, int):
                yield _varint(field << 3 | _VARINT) + _varint(item & (1 << 64) - 1)
            elif isinstance(item, float):
                yield _varint(field << 3 | _FOUR_BYTES) + struct.pack("<f", item)
            else:
                data = _contents(item)
                yield _varint(field << 3 | _BYTES) + _varint(len(data))
                yield data


def _contents(item: str | bytes | Fields) -> bytes:
    if isinstance(item, str):
        return item.encode()
    return item if isinstance(item, bytes) else b"".join(_message(item))


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


# ---------------------------------------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class Message:
    """Is a message of a file that nobody has checked; of a field that does not repeat the last value counts.

    Its methods raise a `ModelError` that says where in the message what reaches beyond its end or has another type.
    """

    data: memoryview

    @cached_property
    def fields(self) -> dict[int, list[int | memoryview]]:
        """Field number -> values: numbers as their 64 bits, everything else as bytes."""
        found: dict[int, list[int | memoryview]] = {}
        place, count = 0, 0
        while place < len(self.data):
            key, place = _read_varint(self.data, place)
            value: int | memoryview
            if key & 7 == _VARINT:
                value, place = _read_varint(self.data, place)
            else:
                size, place = self._size(key & 7, place)
                value, place = self.data[place : place + size], place + size
            found.setdefault(key >> 3, []).append(value)
            count += 1
            if count > _MAX_FIELDS:
                raise ModelError(f"protobuf: a message has more than {_MAX_FIELDS:,} fields")
        return found

    def _size(self, wire_type: int, place: int) -> tuple[int, int]:
        """Returns how many bytes the value has and where they begin."""
        if wire_type == _BYTES:
            size, place = _read_varint(self.data, place)
        elif wire_type in (_EIGHT_BYTES, _FOUR_BYTES):
            size = 8 if wire_type == _EIGHT_BYTES else 4
        else:
            raise ModelError(f"protobuf: wire type {wire_type} at byte {place:,}, known are 0, 1, 2 and 5")
        if size > len(self.data) - place:
            raise ModelError(f"protobuf: {size:,} bytes at byte {place:,} of a message of {len(self.data):,}")
        return size, place

    def messages(self, field: int) -> "list[Message]":
        """Returns the messages of a repeated field."""
        return [Message(value) for value in self._chunks(field)]

    def message(self, field: int) -> "Message":
        """Returns a message, an empty one where it is absent."""
        return (self.messages(field) or [Message(memoryview(b""))])[-1]

    def integer(self, field: int, default: int = 0) -> int:
        """Returns a number of a varint field, as a signed one of 64 bits."""
        return (self.integers(field) or [default])[-1]

    def integers(self, field: int) -> list[int]:
        """Returns the numbers of a repeated field, packed or not, as signed ones of 64 bits."""
        found: list[int] = []
        for value in self.fields.get(field, []):
            if isinstance(value, int):
                found.append(value)
            else:
                place = 0
                while place < len(value):
                    number, place = _read_varint(value, place)
                    found.append(number)
        return [number - (1 << 64) if number >> 63 else number for number in found]

    def floats(self, field: int) -> NDArray[np.float32]:
        """Returns the four-byte numbers of a repeated field, packed or not."""
        data = b"".join(self._chunks(field))
        if len(data) % 4:
            raise ModelError(f"protobuf: field {field} has {len(data):,} bytes, needed is a multiple of 4")
        return np.frombuffer(data, "<f4")

    def contents(self, field: int) -> memoryview:
        """Returns bytes, none where the field is absent."""
        return (self._chunks(field) or [memoryview(b"")])[-1]

    def text(self, field: int) -> str:
        """Returns a string, "" where it is absent; bytes that are not UTF-8 are replaced."""
        return str(self.contents(field), "utf-8", "replace")

    def texts(self, field: int) -> list[str]:
        """Returns the strings of a repeated field."""
        return [str(value, "utf-8", "replace") for value in self._chunks(field)]

    def _chunks(self, field: int) -> list[memoryview]:
        values = self.fields.get(field, [])
        if any(isinstance(value, int) for value in values):
            raise ModelError(f"protobuf: field {field} is a varint, needed are bytes")
        return [value for value in values if not isinstance(value, int)]


def _read_varint(data: memoryview, place: int) -> tuple[int, int]:
    value = 0
    for index in range(10):
        if place + index >= len(data):
            raise ModelError(f"protobuf: the message ends within a number at byte {place:,}")
        byte = data[place + index]
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value & (1 << 64) - 1, place + index + 1
    raise ModelError(f"protobuf: a number at byte {place:,} has more than 10 bytes")
