"""From LLVM's object files to one image: bytes that may be mapped anywhere and run.

Kernels call nothing and refer to nothing but their own constants, relative to where they are. So linking is laying the
sections behind one another and writing the distances. Whatever else an object file asks for is refused.
"""

import struct
from collections.abc import Callable, Iterable
from typing import NamedTuple

from ..errors import MobileNetError

_ALIGN = 64
_CODE_OR_DATA, _SYMBOLS, _RELOCATIONS, _RELOCATIONS_IN_PLACE = 1, 2, 4, 9
_ALLOCATED, _WRITABLE = 2, 1
_X86, _ARM, _ARM32, _RISCV = 62, 183, 40, 243
_RISCV_LOW = (24, 25)  # PCREL_LO12_I, PCREL_LO12_S: their symbol is the place of the PCREL_HI20 that they complete


class _Class(NamedTuple):
    """Is where things are in an ELF file of 32 or of 64 bits, and the forms of their fields."""

    table: tuple[str, int]  # the place of the section headers' offset
    sections: int  # the place of their number
    section: str
    symbol: str
    relocation: str
    shift: int  # of the symbol's number in a relocation's info


_CLASSES = {
    1: _Class(("<I", 32), 48, "<IIIIIIIIII", "<IIIBBH", "<II", 8),
    2: _Class(("<Q", 40), 60, "<IIQQQQIIQQ", "<IBBHQQ", "<QQ", 32),
}


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


class _Relocation(NamedTuple):
    offset: int
    kind: int
    symbol: int
    addend: int


class _Object:
    """Is one relocatable ELF file, little-endian."""

    def __init__(self, name: str, data: bytes) -> None:
        self.name, self.data = name, data
        if data[:4] != b"\x7fELF" or data[4] not in _CLASSES or data[5] != 1:
            raise self._error("no ELF file, little-endian")
        self.form = _CLASSES[data[4]]
        self.machine = struct.unpack_from("<H", data, 18)[0]
        table, count = *struct.unpack_from(self.form.table[0], data, self.form.table[1]), self._half(self.form.sections)
        size = struct.calcsize(self.form.section)
        self.sections = [_Section(*struct.unpack_from(self.form.section, data, table + size * n)) for n in range(count)]

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
            if section.kind in (_RELOCATIONS, _RELOCATIONS_IN_PLACE) and section.info in places:
                self._relocate(image, section, places)
        return self._function(places)

    def _half(self, place: int) -> int:
        return int(struct.unpack_from("<H", self.data, place)[0])

    def _symbols(self) -> list[tuple[str, int, int]]:
        """Returns name, section and value of each symbol."""
        table = next(section for section in self.sections if section.kind == _SYMBOLS)
        names = self.sections[table.link].offset
        found = []
        for place in range(table.offset, table.offset + table.size, struct.calcsize(self.form.symbol)):
            fields = struct.unpack_from(self.form.symbol, self.data, place)
            section, value = (fields[5], fields[1]) if self.form.shift == 8 else (fields[3], fields[4])
            start = names + fields[0]
            found.append((self.data[start : self.data.index(b"\0", start)].decode(), section, value))
        return found

    def _function(self, places: dict[int, int]) -> int:
        for name, section, value in self._symbols():
            if name == self.name and section in places:
                return places[section] + (value & ~1 if self.machine == _ARM32 else value)  # 1 says: Thumb
        raise self._error("its function is missing")

    def _relocations(self, section: _Section) -> list[_Relocation]:
        """Returns what a section of relocations says; the addends of those without are where the code is."""
        form = self.form.relocation + ("q" if section.kind == _RELOCATIONS else "")
        found = []
        for entry in range(section.offset, section.offset + section.size, struct.calcsize(form)):
            offset, info, *addend = struct.unpack_from(form, self.data, entry)
            kind = info & (1 << self.form.shift) - 1
            found.append(_Relocation(offset, kind, info >> self.form.shift, *(addend or (0,))))
        return found

    def _relocate(self, image: bytearray, section: _Section, places: dict[int, int]) -> None:
        symbols = self._symbols()
        values: dict[int, tuple[int, int]] = {}  # by the place of each relocation: its own place and value
        for relocation in self._relocations(section):
            name, target, value = symbols[relocation.symbol]
            if target not in places:
                if self.machine == _RISCV and relocation.kind == 51:  # R_RISCV_RELAX, a hint
                    continue
                raise self._error(f"it needs {name or 'something'} from elsewhere")
            place = places[section.info] + relocation.offset
            end = places[target] + value + relocation.addend
            if self.machine == _RISCV and relocation.kind in _RISCV_LOW:
                self._write(image, relocation.kind, place, *values[end])
            else:
                values[place] = place, end
                self._write(image, relocation.kind, place, place, end)

    def _write(self, image: bytearray, kind: int, place: int, origin: int, value: int) -> None:
        """Writes the distance from an origin to a value into the instruction at a place."""
        field = _FIELDS.get((self.machine, kind))
        if field is None:
            raise self._error(f"relocation {kind} is unknown")
        (word,) = struct.unpack_from("<I", image, place)
        struct.pack_into("<I", image, place, field(word, origin, value) & 0xFFFFFFFF)

    def _error(self, text: str) -> MobileNetError:
        return MobileNetError(f"compiler: the object file of {self.name}: {text}")


def _page(word: int, place: int, value: int) -> int:
    """Writes the distance in pages into ADRP; right because images are mapped to whole pages."""
    pages = (value >> 12) - (place >> 12)
    return word | (pages & 3) << 29 | (pages >> 2 & 0x7FFFF) << 5


def _distance(word: int, place: int, value: int) -> int:
    return value - place


def _call(word: int, place: int, value: int) -> int:
    """Writes the distance in words into BL, which has -2 there: the machine is two words ahead."""
    return word & 0xFF000000 | (word + (value - place >> 2)) & 0xFFFFFF


def _upper(word: int, place: int, value: int) -> int:
    """Writes the distance into AUIPC, rounded to the 12 bits that the next instruction adds, which has a sign."""
    return word | (value - place + 0x800) & 0xFFFFF000


# Of x86-64: PC32, PLT32. Of the Arm 64-bit architecture: ADR_PREL_PG_HI21, ADD_ABS_LO12_NC and LDST128_ABS_LO12_NC,
# LDST64, LDST32. Of Arm's 32 bits: REL32, CALL. Of RISC-V: PCREL_HI20, PCREL_LO12_I and _S.
_FIELDS: dict[tuple[int, int], Callable[[int, int, int], int]] = {
    (_X86, 2): _distance,
    (_X86, 4): _distance,
    (_ARM, 275): _page,
    (_ARM, 277): lambda word, place, value: word | (value & 0xFFF) << 10,
    (_ARM, 299): lambda word, place, value: word | (value & 0xFFF) >> 4 << 10,
    (_ARM, 286): lambda word, place, value: word | (value & 0xFFF) >> 3 << 10,
    (_ARM, 285): lambda word, place, value: word | (value & 0xFFF) >> 2 << 10,
    (_ARM32, 3): lambda word, place, value: word + value - place,
    (_ARM32, 28): _call,
    (_RISCV, 23): _upper,
    (_RISCV, 24): lambda word, place, value: word | (value - place & 0xFFF) << 20,
    (_RISCV, 25): lambda word, place, value: word | (value - place & 0xFE0) << 20 | (value - place & 0x1F) << 7,
}
