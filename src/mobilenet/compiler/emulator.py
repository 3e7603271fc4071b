"""Runs code made for another processor on an emulated one: needs the package `unicorn`, which is QEMU as a library.

Memory that code gets ends where a page begins that can't be touched, so that a read or write beyond it is an error.
"""

from collections.abc import Callable
from typing import Any

from ..errors import MobileNetError
from .targets import Target

_PAGE = 1 << 12
_STACK = 1 << 16
_RETURN = 0x1000  # the emulation ends when the code returns there
_CPACR_FULL = 3 << 20  # both fields of the floating-point unit's access


class Emulator:
    """Is an emulated processor with memory of its own."""

    def __init__(self, target: Target) -> None:
        """Sets a processor up that has the target's instructions.

        Raises:
            MobileNetError: unicorn is not installed, or does not know such a processor; says what to do.
        """
        try:
            import unicorn
        except ImportError:
            raise MobileNetError(f"running {target.name} code here needs: pip install 'mobilenet[emulate]'") from None
        if target.machine not in _MACHINES or "usdot" in target.words:
            raise MobileNetError(f"running {target.name} code here: unicorn has no such {target.machine} processor")
        library: Any = unicorn
        self._error = library.UcError
        self._uc, self._registers = _MACHINES[target.machine](library, target)
        self._thumb = target.machine == "armv7e-m"
        self._uc.mem_map(_RETURN, _PAGE, library.UC_PROT_EXEC)  # RISC-V looks there before it ends
        self._next = 1 << 20
        self._stack = self.map(bytes(_STACK), "rw") + _STACK

    def map(self, data: bytes, access: str) -> int:
        """Returns the address of new memory with these bytes; `access` has the letters of "rwx" that are allowed.

        Code begins where a page begins, data ends where one ends: alignments up to 64 must be kept by its length.
        """
        size = max(-(-len(data) // _PAGE) * _PAGE, _PAGE)
        start, self._next = self._next, self._next + size + _PAGE
        self._uc.mem_map(start, size, sum({"r": 1, "w": 2, "x": 4}[letter] for letter in access))
        address = start if "x" in access else start + size - len(data)
        self._uc.mem_write(address, data)
        return address

    def read(self, address: int, size: int) -> bytes:
        """Returns bytes of memory."""
        return bytes(self._uc.mem_read(address, size))

    def write(self, address: int, data: bytes) -> None:
        """Writes bytes to memory that was mapped."""
        self._uc.mem_write(address, data)

    def call(self, address: int, *arguments: int) -> None:
        """Calls a function with up to four whole numbers or addresses.

        Raises:
            MobileNetError: it touched memory that it was not given, or used an instruction that the target lacks.
        """
        stack, back, *places = self._registers
        self._uc.reg_write(stack, self._stack)
        self._uc.reg_write(back, _RETURN | self._thumb)
        for place, value in zip(places, arguments, strict=False):
            self._uc.reg_write(place, value)
        try:
            self._uc.emu_start(address | self._thumb, _RETURN)
        except self._error as error:
            raise MobileNetError(f"emulated code: {error}") from error


def _aarch64(unicorn: Any, target: Target) -> tuple[Any, tuple[int, ...]]:
    from unicorn import arm64_const as names

    uc = unicorn.Uc(unicorn.UC_ARCH_ARM64, unicorn.UC_MODE_ARM)
    uc.ctl_set_cpu_model(names.UC_CPU_ARM64_MAX if target.words else names.UC_CPU_ARM64_A72)
    uc.reg_write(names.UC_ARM64_REG_CPACR_EL1, uc.reg_read(names.UC_ARM64_REG_CPACR_EL1) | _CPACR_FULL)
    arguments = (names.UC_ARM64_REG_X0, names.UC_ARM64_REG_X1, names.UC_ARM64_REG_X2, names.UC_ARM64_REG_X3)
    return uc, (names.UC_ARM64_REG_SP, names.UC_ARM64_REG_LR, *arguments)


def _arm(unicorn: Any, target: Target) -> tuple[Any, tuple[int, ...]]:
    from unicorn import arm_const as names

    uc = unicorn.Uc(unicorn.UC_ARCH_ARM, unicorn.UC_MODE_ARM)
    uc.ctl_set_cpu_model(names.UC_CPU_ARM_CORTEX_A15)
    uc.reg_write(names.UC_ARM_REG_C1_C0_2, uc.reg_read(names.UC_ARM_REG_C1_C0_2) | 0xF << 20)
    uc.reg_write(names.UC_ARM_REG_FPEXC, 1 << 30)
    arguments = (names.UC_ARM_REG_R0, names.UC_ARM_REG_R1, names.UC_ARM_REG_R2, names.UC_ARM_REG_R3)
    return uc, (names.UC_ARM_REG_SP, names.UC_ARM_REG_LR, *arguments)


def _riscv64(unicorn: Any, target: Target) -> tuple[Any, tuple[int, ...]]:
    from unicorn import riscv_const as names

    uc = unicorn.Uc(unicorn.UC_ARCH_RISCV, unicorn.UC_MODE_RISCV64)
    uc.reg_write(names.UC_RISCV_REG_MSTATUS, uc.reg_read(names.UC_RISCV_REG_MSTATUS) | 3 << 13)
    arguments = (names.UC_RISCV_REG_A0, names.UC_RISCV_REG_A1, names.UC_RISCV_REG_A2, names.UC_RISCV_REG_A3)
    return uc, (names.UC_RISCV_REG_SP, names.UC_RISCV_REG_RA, *arguments)


# By `Target.machine`: makes a processor whose floating-point unit is on, and says its stack pointer, its return
# address and the registers of a function's arguments.
_MACHINES: dict[str, Callable[[Any, Target], tuple[Any, tuple[int, ...]]]] = {
    "aarch64": _aarch64,
    "armv7l": _arm,
    "armv7e-m": _arm,
    "riscv64": _riscv64,
}
