"""From LLVM's object files to one image: bytes that may be mapped anywhere and run.

Kernels call nothing and refer to nothing but their own constants, relative to where they are. So linking is laying the
sections behind one another and writing the distances. Whatever else an object file asks for is refused.
"""

import struct
from collections.abc import Callable, Iterable
from typing import NamedTuple

from ..errors import MobileNetError

_ALIGN = 64
_CODE_OR_DATA, _SYMBOLS, _RELOCATIONS = 1, 2, 4
_ALLOCATED, _WRITABLE = 2, 1
_X86, _ARM = 62, 183


class _Section(NamedTuple):
    name: int
    kind: int
    flags: int
    address: int
    offset: int
    size: int
    link: int
    info: int
    align: int
    entry: int


def link(objects: Iterable[tuple[str, bytes]]) -> tuple[bytes, list[int]]:
    """Returns one image of all objects (function's name, ELF bytes), and the offset in it of each one's function.

    Raises:
        MobileNetError: names the object and what in it can't be linked.
    """
    image = bytearray()
    functions: list[int] = []
    for name, data in objects:
        try:
            functions.append(_Object(name, data).append(image))
        except (struct.error, IndexError) as error:
            raise MobileNetError(f"compiler: the object file of {name} is damaged: {error}") from error
    return bytes(image), functions


class _Object:
    """Is one relocatable ELF file of 64 bits, little-endian."""

    def __init__(self, name: str, data: bytes) -> None:
        self.name, self.data = name, data
        if data[:6] != b"\x7fELF\x02\x01":
            raise self._error("no ELF file of 64 bits")
        self.machine = struct.unpack_from("<H", data, 18)[0]
        table, count = struct.unpack_from("<Q", data, 40)[0], struct.unpack_from("<H", data, 60)[0]
        self.sections = [_Section(*struct.unpack_from("<IIQQQQIIQQ", data, table + 64 * n)) for n in range(count)]

    def append(self, image: bytearray) -> int:
        """Lays the sections behind `image`, links them, and returns the function's offset."""
        places: dict[int, int] = {}
        for number, section in enumerate(self.sections):
            if section.flags & _ALLOCATED and section.kind == _CODE_OR_DATA and section.size:
                if section.flags & _WRITABLE:
                    raise self._error("it has data that can be written")
                image.extend(bytes(-len(image) % max(_ALIGN, section.align)))
                places[number] = len(image)
                image.extend(self.data[section.offset : section.offset + section.size])
        for section in self.sections:
            if section.kind == _RELOCATIONS and section.info in places:
                self._relocate(image, section, places)
        return self._function(places)

    def _symbols(self) -> list[tuple[str, int, int]]:
        """Returns name, section and value of each symbol."""
        table = next(section for section in self.sections if section.kind == _SYMBOLS)
        names = self.sections[table.link].offset
        found = []
        for place in range(table.offset, table.offset + table.size, 24):
            name, _, _, section, value, _ = struct.unpack_from("<IBBHQQ", self.data, place)
            start = names + name
            found.append((self.data[start : self.data.index(b"\0", start)].decode(), section, value))
        return found

    def _function(self, places: dict[int, int]) -> int:
        for name, section, value in self._symbols():
            if name == self.name and section in places:
                return places[section] + value
        raise self._error("its function is missing")

    def _relocate(self, image: bytearray, section: _Section, places: dict[int, int]) -> None:
        symbols = self._symbols()
        for entry in range(section.offset, section.offset + section.size, 24):
            offset, info, addend = struct.unpack_from("<QQq", self.data, entry)
            name, target, value = symbols[info >> 32]
            if target not in places:
                raise self._error(f"it needs {name or 'something'} from elsewhere")
            self._write(image, info & 0xFFFFFFFF, places[section.info] + offset, places[target] + value + addend)

    def _write(self, image: bytearray, kind: int, place: int, value: int) -> None:
        """Writes the distance from a place to a value into the instruction there."""
        if self.machine == _X86 and kind in (2, 4):  # R_X86_64_PC32, PLT32
            struct.pack_into("<i", image, place, value - place)
        elif self.machine == _ARM and kind in _ARM_FIELDS:
            (word,) = struct.unpack_from("<I", image, place)
            struct.pack_into("<I", image, place, _ARM_FIELDS[kind](word, place, value))
        else:
            raise self._error(f"relocation {kind} is unknown")

    def _error(self, text: str) -> MobileNetError:
        return MobileNetError(f"compiler: the object file of {self.name}: {text}")


def _page(word: int, place: int, value: int) -> int:
    """Writes the distance in pages into ADRP; right because images are mapped to whole pages."""
    pages = (value >> 12) - (place >> 12)
    return word | (pages & 3) << 29 | (pages >> 2 & 0x7FFFF) << 5


# ELF for the Arm 64-bit architecture: ADR_PREL_PG_HI21, ADD_ABS_LO12_NC and LDST128_ABS_LO12_NC, LDST64, LDST32.
_ARM_FIELDS: dict[int, Callable[[int, int, int], int]] = {
    275: _page,
    277: lambda word, place, value: word | (value & 0xFFF) << 10,
    299: lambda word, place, value: word | (value & 0xFFF) >> 4 << 10,
    286: lambda word, place, value: word | (value & 0xFFF) >> 3 << 10,
    285: lambda word, place, value: word | (value & 0xFFF) >> 2 << 10,
}
