"""What code does where the machine lacks an instruction: sums of products of 4 bytes, rounding to whole numbers.

For the products, a word's bytes are widened when they are read: those at even places to pairs of 16 bits, then those at
odd ones; so weights stay bytes in memory. A product fits into 16 bits: inputs are 0 to 255, weights -127 to 127.
"""

from typing import TYPE_CHECKING, Any

from llvmlite import ir  # type: ignore[import-untyped]

if TYPE_CHECKING:
    from .ir import Code, Value

_I32, _I16 = ir.IntType(32), ir.IntType(16)

NO_ROUNDING = ("armv7l", "armv7e-m", "wasm32")  # machines on which LLVM calls lrintf
_BITS_2_23 = 0x4B000000  # of the float 2^23


def rounded(code: "Code", x: "Value") -> "Value":
    """Returns floats as whole numbers, as `Code.rounded` does.

    From 2^23 to 2^24 floats are the whole numbers, so that adding 1.5 · 2^23 rounds to one, whose bits count up from
    those of 2^23. Below that the sum's bits are still less, but for negative sums may be so by too much.
    """
    b, words = code.builder, code.whole_numbers
    bits = code.bits(b.fadd(x, code.constant(1.5 * 2**23)))
    least = code._call(f"llvm.smax.v{code.lanes}i32", bits.type, bits, words(_BITS_2_23))
    return b.sub(least, words(_BITS_2_23 + (1 << 22)))


def dot(code: "Code", inputs: "Value", weights: "Value", sums: "Value") -> "Value":
    """Returns sums + inputs·weights, as `Code.dot` does."""
    b, machine = code.builder, code.target.machine
    words = sums.type
    if code.lanes == 1:
        # As plain words: LLVM 22 forgets, on RISC-V, to extend the sign of a byte of a vector of one word.
        x, w, total = (b.bitcast(value, _I32) for value in (inputs, weights, sums))
        add = _add_halves if machine == "armv7e-m" else _add_products
        return b.bitcast(add(code, x, w, total), words)
    halves = ir.VectorType(_I16, 2 * code.lanes)
    eight, low = (ir.Constant(halves, [value] * 2 * code.lanes) for value in (8, 255))
    x, w = b.bitcast(inputs, halves), b.bitcast(weights, halves)
    for pair in ((b.and_(x, low), b.ashr(b.shl(w, eight), eight)), (b.lshr(x, eight), b.ashr(w, eight))):
        if machine == "armv7l":
            sums = code._call("llvm.arm.neon.vpadals.v4i32.v8i16", words, sums, b.mul(*pair))
        elif machine == "aarch64":
            sums = b.add(sums, code._call("llvm.aarch64.neon.saddlp.v4i32.v8i16", words, b.mul(*pair)))
        else:
            sums = b.add(sums, pairs(code, *(b.bitcast(value, words) for value in pair)))
    return sums


def pairs(code: "Code", x: "Value", w: "Value") -> "Value":
    """Returns the sums of two products each, of the halves of words."""
    b = code.builder
    if code.target.machine == "x86_64":
        halves = ir.VectorType(_I16, 2 * code.lanes)
        name = {16: "avx512.pmaddw.d.512", 8: "avx2.pmadd.wd", 4: "sse2.pmadd.wd"}[code.lanes]
        return code._call(f"llvm.x86.{name}", code._words, b.bitcast(x, halves), b.bitcast(w, halves))
    if code.target.machine == "wasm32":
        halves = ir.VectorType(_I16, 2 * code.lanes)
        return code._call("llvm.wasm.dot", code._words, b.bitcast(x, halves), b.bitcast(w, halves))
    half = code.whole_numbers(16)
    high = b.mul(b.ashr(x, half), b.ashr(w, half))
    low = b.mul(b.ashr(b.shl(x, half), half), b.ashr(b.shl(w, half), half))
    return b.add(low, high)


def _add_halves(code: "Code", x: "Value", w: "Value", total: "Value") -> "Value":
    """Returns total + products of a word's bytes 0 and 2, then of 1 and 3: Arm's instructions take them so."""
    for turn in (0, 8):
        if turn:
            x, w = (code._call("llvm.fshr.i32", _I32, value, value, _i32(turn)) for value in (x, w))
        pairs = code.builder.and_(x, _i32(0x00FF00FF)), code._call("llvm.arm.sxtb16", _I32, w)
        total = code._call("llvm.arm.smlad", _I32, *pairs, total)
    return total


def _add_products(code: "Code", x: "Value", w: "Value", total: "Value") -> "Value":
    b = code.builder
    for shift in (0, 8, 16, 24):
        left = b.and_(b.lshr(x, _i32(shift)), _i32(255))
        total = b.add(total, b.mul(left, b.ashr(b.shl(w, _i32(24 - shift)), _i32(24))))
    return total


def _i32(value: int) -> Any:
    return ir.Constant(_I32, value)
