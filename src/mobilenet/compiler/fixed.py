"""TFLite's whole-number arithmetic on vectors of 32 bits: what `fixed_point` says, in code.

A product of two such numbers has 64 bits. x86 multiplies every other number of a vector, so both halves are multiplied
where they are and joined again; other machines widen the lower and the upper half.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from llvmlite import ir  # type: ignore[import-untyped]

from .kernel import byte_offset

if TYPE_CHECKING:
    from .ir import Code, Pointer, Value

_I64, _I32, _I8 = ir.IntType(64), ir.IntType(32), ir.IntType(8)


class FixedPoint:
    """Is the words of `fixed_point` for a kernel that is being written."""

    def __init__(self, code: "Code") -> None:
        self._code, self._builder = code, code.builder

    def rescaled(self, values: "Value", left: "Value", multiplier: "Value", right: "Value") -> "Value":
        """Returns `fixed_point.rescaled` with the shift left - right, one of which is 0."""
        product = self._product(self._builder.shl(values, left), multiplier, 31, signed=True)
        return self._divided(product, right)

    def rescaled_up(self, values: "Value", doubled: "Value", half: "Value", right: "Value") -> "Value":
        """Returns `fixed_point.rescaled` where that is positive, else 0: fewer instructions, all without signs.

        Args:
            doubled: twice the multiplier, so that the product's upper 32 bits are what is needed.
            half, right: half of 2^right, rounded down, and the shift's opposite, which must not be negative.
        """
        b = self._builder
        product = self._product(self._positive(values), doubled, 32, signed=False)
        return b.lshr(b.add(product, half), right)

    def rescaled_once(self, values: "Value", multiplier: "Value", places: "Value") -> "Value":
        """Returns `fixed_point.rescaled_once`, of which `places` is one less than there."""
        b, wide = self._builder, ir.VectorType(_I64, self._code.lanes)
        product = b.mul(b.sext(values, wide), b.sext(multiplier, wide))
        halves = b.ashr(product, b.zext(places, wide))
        return b.trunc(b.ashr(b.add(halves, _all(wide, 1)), _all(wide, 1)), values.type)

    def mean(self, totals: "Value", count: int) -> "Value":
        """Returns `fixed_point.mean`."""
        b = self._builder
        counts, half = _all(totals.type, count), _all(totals.type, count // 2)
        return self._signed(totals, lambda magnitude: b.udiv(b.add(magnitude, half), counts))

    def byte_sum(self, pieces: "Sequence[Pointer]", count: int) -> "Value":
        """Returns a vector of one number, the sum of `count` bytes of each piece of memory; the machine must sum 4
        products of bytes."""  # fmt: skip
        b, code = self._builder, self._code
        kind = ir.VectorType(_I32, code.lanes)
        whole = count // (4 * code.lanes) * 4 * code.lanes
        sums, rest = ir.Constant(kind, None), ir.Constant(_I32, byte_offset(code.target) * whole * len(pieces))
        for piece in pieces:
            first, place = 0, piece.shaped(1)
            while first < whole:
                words = b.load(place.at(first).value, align=1, typ=kind)
                sums = code.dot("u8", code.fours(words), _all(kind, 0x01010101), sums)
                first += 4 * code.lanes
            while first < count:
                size = 1 << (count - first).bit_length() - 1
                bytes_ = b.load(place.at(first).value, align=1, typ=ir.VectorType(_I8, size))
                rest = b.add(rest, self._total(b.zext(bytes_, ir.VectorType(_I32, size))))
                first += size
        one = b.insert_element(ir.Constant(kind, ir.Undefined), b.add(rest, self._total(sums)), ir.Constant(_I32, 0))
        return b.shuffle_vector(one, ir.Constant(kind, ir.Undefined), _all(kind, 0))

    def times(self, x: "Value", y: "Value") -> "Value":
        """Returns the lower 32 bits of x·y."""
        return self._builder.mul(x, y)

    def shifted(self, x: "Value", places: int) -> "Value":
        """Returns x·2^places."""
        return self._builder.shl(x, _all(x.type, places))

    def _divided(self, values: "Value", exponents: "Value") -> "Value":
        """Returns `fixed_point.divided`: magnitude and half, both at most 2^31, have room without a sign."""
        b, one = self._builder, _all(values.type, 1)
        half = b.lshr(b.shl(one, exponents), one)
        return self._signed(values, lambda magnitude: b.lshr(b.add(magnitude, half), exponents))

    def _signed(self, values: "Value", change: "Callable[[Value], Value]") -> "Value":
        """Returns the magnitudes of values changed, with the values' signs."""
        b = self._builder
        sign = b.ashr(values, _all(values.type, 31))
        return b.sub(b.xor(change(b.sub(b.xor(values, sign), sign)), sign), sign)

    def _total(self, words: "Value") -> "Value":
        return self._code._call(f"llvm.vector.reduce.add.v{words.type.count}i32", _I32, words)

    def _positive(self, values: "Value") -> "Value":
        zero, kind = _all(values.type, 0), values.type
        return self._code._call(f"llvm.smax.v{kind.count}i32", kind, values, zero)

    def _product(self, x: "Value", y: "Value", places: int, *, signed: bool) -> "Value":
        """Returns x·y / 2^places, of at most 32 places, rounded to the nearest, halves upwards."""
        b, lanes = self._builder, self._code.lanes
        if self._code.target.machine != "x86_64":
            wide = ir.VectorType(_I64, lanes)
            widened = b.sext if signed else b.zext
            total = b.add(b.mul(widened(x, wide), widened(y, wide)), _all(wide, 1 << (places - 1)))
            return b.trunc(b.lshr(total, _all(wide, places)), x.type)
        wide = ir.VectorType(_I64, lanes // 2)
        word, more = _all(wide, 32), _all(wide, 1 << (places - 1))
        down = b.ashr if signed else b.lshr
        x, y = b.bitcast(x, wide), b.bitcast(y, wide)
        even, odd = ((down(b.shl(n, word), word), down(n, word)) for n in (x, y))
        low, high = (b.add(b.mul(*pair), more) for pair in zip(even, odd, strict=True))
        # What is needed of the products ends where the even numbers' bits begin, and at the odd ones' uppermost.
        halves = b.lshr(low, _all(wide, places)), b.shl(high, _all(wide, 32 - places))
        kind = ir.VectorType(_I32, lanes)
        mask = [n + lanes * (n % 2) for n in range(lanes)]
        return b.shuffle_vector(*(b.bitcast(half, kind) for half in halves), ir.Constant(kind, mask))


def _all(kind: Any, value: int) -> "Value":
    return ir.Constant(kind, [value] * kind.count)
