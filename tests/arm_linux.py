"""Runs AArch64 code under QEMU's user mode, for instructions that unicorn does not have."""

import shutil
import struct
import subprocess
import tempfile
from itertools import accumulate
from pathlib import Path

QEMU = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
_PAGE = 1 << 12
_ACCESS = {"r": 4, "w": 2, "x": 1}  # of ELF
_WRITE, _EXIT = 64, 93  # of Linux on AArch64
_BRANCH_X9, _SYSTEM_CALL = b"\x20\x01\x3f\xd6", b"\x01\x00\x00\xd4"


class ArmLinux:
    """Stands for `Emulator`: each call is a program that calls the function and writes out the memory it may write.

    Memory ends where a page begins that is not there.
    """

    def __init__(self) -> None:
        self._memory: list[tuple[int, bytes, str]] = []
        self._next = 1 << 20

    def map(self, data: bytes, access: str) -> int:
        """Returns the address of new memory, as `Emulator.map` does."""
        size = max(-(-len(data) // _PAGE), 1) * _PAGE
        start, self._next = self._next, self._next + size + _PAGE
        whole = data.ljust(size, b"\0") if "x" in access else data.rjust(size, b"\0")
        self._memory.append((start, whole, access))
        return start if "x" in access else start + size - len(data)

    def read(self, address: int, size: int) -> bytes:
        """Returns bytes of memory."""
        (found,) = (
            data[address - start : address - start + size]
            for start, data, _ in self._memory
            if start <= address < start + len(data)
        )
        return found

    def write(self, address: int, data: bytes) -> None:
        """Writes bytes to memory that was mapped."""
        for n, (start, old, access) in enumerate(self._memory):
            if start <= address < start + len(old):
                at = address - start
                self._memory[n] = start, old[:at] + data + old[at + len(data) :], access

    def call(self, address: int, *arguments: int) -> None:
        """Calls a function; fails where it touches memory that it was not given."""
        written = [(start, data) for start, data, access in self._memory if "w" in access]
        code = _set(9, address) + b"".join(_set(n, value) for n, value in enumerate(arguments)) + _BRANCH_X9
        for start, data in written:
            code += _set(0, 1) + _set(1, start) + _set(2, len(data)) + _set(8, _WRITE) + _SYSTEM_CALL
        code += _set(0, 0) + _set(8, _EXIT) + _SYSTEM_CALL
        pieces = [*self._memory, (self._next, code.ljust(-(-len(code) // _PAGE) * _PAGE, b"\0"), "rx")]
        with tempfile.TemporaryDirectory() as folder:
            program = Path(folder) / "program"
            program.write_bytes(_elf(pieces, self._next))
            program.chmod(0o700)
            done = subprocess.run([QEMU or "", "-cpu", "max", str(program)], capture_output=True, check=True)
        starts = accumulate((len(data) for _, data in written), initial=0)
        found = {start: done.stdout[at : at + len(data)] for (start, data), at in zip(written, starts, strict=False)}
        self._memory = [(start, found.get(start, data), access) for start, data, access in self._memory]


def _set(register: int, value: int) -> bytes:
    """Returns instructions that put a whole number into a register: movz and three movk."""
    parts = [(0xD2800000 if n == 0 else 0xF2800000) | n << 21 | (value >> 16 * n & 0xFFFF) << 5 for n in range(4)]
    return b"".join(struct.pack("<I", part | register) for part in parts)


def _elf(pieces: list[tuple[int, bytes, str]], entry: int) -> bytes:
    """Returns a program of these pieces of memory."""
    heads = b""
    offset = first = -(-(64 + 56 * len(pieces)) // _PAGE) * _PAGE
    for start, data, access in pieces:
        flags = sum(_ACCESS[letter] for letter in access)
        heads += struct.pack("<IIQQQQQQ", 1, flags, offset, start, start, len(data), len(data), _PAGE)
        offset += len(data)
    head = b"\x7fELF\2\1\1".ljust(16, b"\0")
    head += struct.pack("<HHIQQQIHHHHHH", 2, 183, 1, entry, 64, 0, 0, 64, 56, len(pieces), 0, 0, 0)
    return (head + heads).ljust(first, b"\0") + b"".join(data for _, data, _ in pieces)
