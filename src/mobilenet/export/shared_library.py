"""A shared library of one function: an ELF file around linked code, for programs that load code while they run.

The code is position-independent and refers to nothing outside, so there is nothing for the loader to relocate. Fields
and numbers are those of the System V ABI, "Object Files" and "Dynamic Linking".
"""

import struct
from itertools import accumulate

_ALIGN = 1 << 16  # the largest page that AArch64 Linux has; Android's are 16 KiB
_CODE = 1 << 12  # where the code begins, a page of every kind of instruction that counts in pages
_MACHINES = {"x86_64": (62, 0), "aarch64": (183, 0), "riscv64": (243, 5)}  # e_machine, e_flags: RVC, double floats
_READ, _WRITE, _EXECUTE = 4, 2, 1
_SECTIONS = (".dynsym", ".dynstr", ".hash", ".text", ".dynamic", ".shstrtab")


def can_hold(machine: str) -> bool:
    """Whether libraries are made for a machine, as `Target.machine` names it."""
    return machine in _MACHINES


def shared_library(image: bytes, offset: int, function: str, name: str, machine: str) -> bytes:
    """Returns the library `name` whose only symbol is the function that begins at an offset of the image."""
    strings = b"\0" + b"\0".join(text.encode() for text in (function, name)) + b"\0"
    # Two symbols, the first one empty; a table with one chain, which is symbol 1.
    symbols = bytes(24) + struct.pack("<IBBHQQ", 1, 0x12, 0, 4, _ALIGN + _CODE + offset, len(image) - offset)
    table = struct.pack("<IIIII", 1, 2, 1, 0, 0)
    places = list(accumulate([64 + 5 * 56, len(symbols), len(strings) + -len(strings) % 8, len(table)]))
    head = symbols + strings + bytes(-len(strings) % 8) + table
    dynamic_at = _CODE + len(image) + -len(image) % 16
    entries = {14: 2 + len(function), 4: places[2], 5: places[1], 6: places[0], 10: len(strings), 11: 24, 0: 0}
    dynamic = b"".join(struct.pack("<QQ", *entry) for entry in entries.items())
    end = dynamic_at + len(dynamic)
    segments = b"".join(
        (
            _segment(1, _READ, 0, 0, places[3], _ALIGN),
            _segment(1, _READ | _EXECUTE, _CODE, _ALIGN, len(image), _ALIGN),
            _segment(1, _READ | _WRITE, dynamic_at, 2 * _ALIGN, len(dynamic), _ALIGN),  # glibc writes addresses in it
            _segment(2, _READ | _WRITE, dynamic_at, 2 * _ALIGN, len(dynamic), 8),
            _segment(0x6474E551, _READ | _WRITE, 0, 0, 0, 16),  # PT_GNU_STACK: the stack holds no code
        )
    )
    titles = b"\0" + b"\0".join(title.encode() for title in _SECTIONS) + b"\0"
    sections = bytes(64) + b"".join(
        (
            _section(".dynsym", 11, 2, places[0], 0, len(symbols), link=2, info=1, entry=24),
            _section(".dynstr", 3, 2, places[1], 0, len(strings)),
            _section(".hash", 5, 2, places[2], 0, len(table), link=1, entry=4),
            _section(".text", 1, 6, _CODE, _ALIGN, len(image)),
            _section(".dynamic", 6, 3, dynamic_at, 2 * _ALIGN, len(dynamic), link=2, entry=16),
            _section(".shstrtab", 3, 0, end, -end, len(titles)),
        )
    )
    headers_at = end + len(titles) + -(end + len(titles)) % 8
    number, flags = _MACHINES[machine]
    start = b"\x7fELF\2\1\1" + bytes(9)
    start += struct.pack("<HHIQQQIHHHHHH", 3, number, 1, 0, 64, headers_at, flags, 64, 56, 5, 64, 7, 6)
    parts = ((start + segments + head, _CODE), (image, dynamic_at), (dynamic + titles, headers_at), (sections, 0))
    whole = b""
    for part, until in parts:
        whole += part
        whole += bytes(max(until - len(whole), 0))
    return whole


def _segment(kind: int, access: int, offset: int, moved: int, size: int, align: int) -> bytes:
    return struct.pack("<IIQQQQQQ", kind, access, offset, offset + moved, offset + moved, size, size, align)


def _section(
    title: str, kind: int, flags: int, offset: int, moved: int, size: int, link: int = 0, info: int = 0, entry: int = 0
) -> bytes:
    name = 1 + sum(len(each) + 1 for each in _SECTIONS[: _SECTIONS.index(title)])
    return struct.pack("<IIQQQQIIQQ", name, kind, flags, offset + moved, offset, size, link, info, 8, entry)
