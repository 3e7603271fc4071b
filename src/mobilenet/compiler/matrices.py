"""The matrix registers of a machine that multiplies whole matrices: what sets them up, loads, multiplies and stores.

There are eight, by number: 0 to 3 are sums, 4 and 5 inputs, 6 and 7 weights.
"""

from typing import TYPE_CHECKING

from llvmlite import ir  # type: ignore[import-untyped]

from .kernel import SIZES

if TYPE_CHECKING:
    from .ir import Code, Pointer, Value

_I64, _I8 = ir.IntType(64), ir.IntType(8)


class Matrices:
    """Is the words for matrix registers in a kernel that is being written."""

    def __init__(self, code: "Code") -> None:
        self._code = code

    def set_up(self, side: int, depth: int) -> None:
        """Makes sums [side, 16], inputs [side, depth] and weights [depth, 16], in words."""
        shapes = [(side, 16)] * 4 + [(side, depth)] * 2 + [(depth, 16)] * 2
        columns = b"".join((4 * count).to_bytes(2, "little") for _, count in shapes)
        table = bytes([1, *[0] * 15]) + columns.ljust(32, b"\0") + bytes(rows for rows, _ in shapes).ljust(16, b"\0")
        kind = ir.ArrayType(_I8, len(table))
        constant = ir.GlobalVariable(self._code.module, kind, "matrices")
        constant.linkage, constant.global_constant, constant.align = "internal", True, 64
        constant.initializer = ir.Constant(kind, bytearray(table))
        self._do("ldtilecfg", constant)

    def give_up(self) -> None:
        """Frees the registers for whoever is next."""
        self._do("tilerelease")

    def load(self, register: int, rows: "Pointer", stride: int) -> None:
        """Loads a matrix whose rows are `stride` numbers apart."""
        self._do("tileloadd64", _number(register), rows.value, ir.Constant(_I64, stride * SIZES[rows.numbers]))

    def clear(self, register: int) -> None:
        """Makes a matrix zeros."""
        self._do("tilezero", _number(register))

    def store(self, register: int, rows: "Pointer", stride: int) -> None:
        """Stores a matrix, its rows `stride` numbers apart."""
        self._do("tilestored64", _number(register), rows.value, ir.Constant(_I64, stride * SIZES[rows.numbers]))

    def dot(self, numbers: str, sums: int, inputs: int, weights: int) -> None:
        """Adds to the sums the product of inputs and weights, all three by their registers."""
        self._do({"bf16": "tdpbf16ps", "u8": "tdpbusd"}[numbers], *map(_number, (sums, inputs, weights)))

    def _do(self, name: str, *values: "Value") -> None:
        self._code._call(f"llvm.x86.{name}", ir.VoidType(), *values)


def _number(register: int) -> "Value":
    return ir.Constant(_I8, register)
