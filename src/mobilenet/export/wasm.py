"""A WebAssembly module from LLVM's object file, which is nearly one: it lacks its own memory and its exports.

The object is of one piece, calls nothing and has its data at 0, so all its numbers are final already; what a linker
does for many objects is not needed. Sections and their numbers are those of the WebAssembly core specification, the
object's own ones those of "WebAssembly Object File Linking" in WebAssembly/tool-conventions.
"""

from collections.abc import Iterator

from ..errors import MobileNetError

PAGE = 1 << 16
_HEADER = b"\0asm\1\0\0\0"
_CUSTOM, _IMPORT, _MEMORY, _EXPORT = 0, 2, 5, 7
_ORDER = (1, 3, _MEMORY, _EXPORT, 12, 10, 11)  # types, functions, memory, exports, count of data, code, data
_IMPORTED_MEMORY = b"\x03env\x0f__linear_memory\x02"
_SYMBOLS, _FUNCTION, _DATA, _UNDEFINED = 8, 0, 1, 0x10


def module(data: bytes, name: str, size: int) -> bytes:
    """Returns a module that exports the function `name` as "run", and "memory" of at least `size` bytes.

    Raises:
        MobileNetError: the object needs something from elsewhere, or has no such function.
    """
    sections = {}
    symbols = b""
    for kind, content in _sections(data):
        if kind == _CUSTOM:
            symbols = content if content.startswith(b"\x07linking") else symbols
        else:
            sections[kind] = content
    imported = sections.pop(_IMPORT)
    if imported[0] != 1 or not imported.startswith(_IMPORTED_MEMORY, 1):
        raise MobileNetError(f"compiler: the WebAssembly object needs something from elsewhere: {imported[:60]!r}")
    function = _number(_function(symbols, name))
    sections[_MEMORY] = b"\x01\x00" + _number(-(-size // PAGE))
    sections[_EXPORT] = b"\x02\x06memory\x02\x00\x03run\x00" + function
    parts = (bytes([kind]) + _number(len(sections[kind])) + sections[kind] for kind in _ORDER if kind in sections)
    return _HEADER + b"".join(parts)


def _sections(data: bytes) -> Iterator[tuple[int, bytes]]:
    if not data.startswith(_HEADER):
        raise MobileNetError("compiler: no WebAssembly object")
    place = len(_HEADER)
    while place < len(data):
        size, begin = _read(data, place + 1)
        yield data[place], data[begin : begin + size]
        place = begin + size


def _function(linking: bytes, name: str) -> int:
    """Returns the number of a function by the section "linking": after its name and version come pieces by kind."""
    place = len(b"\x07linking") + 1
    while place < len(linking):
        kind, (size, place) = linking[place], _read(linking, place + 1)
        if kind == _SYMBOLS:
            for symbol, number in _functions(linking, place):
                if symbol == name:
                    return number
        place += size
    raise MobileNetError(f"compiler: the WebAssembly object lacks the function {name}")


def _functions(linking: bytes, place: int) -> Iterator[tuple[str, int]]:
    """Returns name and number of the functions in a table of symbols, up to the first that is no function or data."""
    count, place = _read(linking, place)
    for _ in range(count):
        kind, (flags, place) = linking[place], _read(linking, place + 1)
        number = 0
        if kind == _FUNCTION:
            number, place = _read(linking, place)
        elif kind != _DATA or flags & _UNDEFINED:
            return
        size, place = _read(linking, place)
        name, place = linking[place : place + size].decode(), place + size
        if kind == _FUNCTION:
            yield name, number
        else:  # segment, offset, size
            for _ in range(3):
                _, place = _read(linking, place)


def _number(value: int) -> bytes:
    """Returns a number as the format has them, unsigned LEB128."""
    found = bytearray()
    while True:
        value, low = value >> 7, value & 0x7F
        found.append(low | (0x80 if value else 0))
        if not value:
            return bytes(found)


def _read(data: bytes, place: int) -> tuple[int, int]:
    """Returns the number at a place, and the place behind it."""
    value = shift = 0
    while True:
        byte, place = data[place], place + 1
        value |= (byte & 0x7F) << shift
        if not byte & 0x80:
            return value, place
        shift += 7
