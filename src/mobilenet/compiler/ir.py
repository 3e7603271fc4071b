"""A small vector language over LLVM: pointers with constant strides, vectors of numbers, loops that carry values.

Numbers in memory are "f32", "bf16", "u8" or "i32". A vector that is loaded is of floats, but for "i32"; a vector that
is stored is rounded to what the memory holds. So a kernel that adds and multiplies says the same for all of them. A sum
of products of many inputs is said with `dot`, which takes them by the word of 32 bits: 1 float, 2 bfloat16, or 4 bytes
(2 on machines that can't sum 4 products of bytes exactly).

A kernel is a Python function that says its loops and sums in these words; what is a Python `for` in it is unrolled,
what is a `code.loop` is a loop of the machine. All sizes are constants. No kernel knows the instruction set: it asks
`code.lanes` how many floats a vector has. Every kernel is one function

    void kernel(out, source, parameters, extra, begin, end)

of four pointers and two whole numbers, so that a plan is a table of such calls.
"""

from collections.abc import Callable, Sequence
from copy import copy
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]

from . import substitutes
from .fixed import FixedPoint
from .kernel import SIZES, byte_offset, four_order, in_word, multiplies_bytes_together
from .matrices import Matrices
from .targets import Target

Value = Any  # an SSA value of llvmlite, which has no types
Index = Any  # int or Value

_I64, _I32, _I16, _I8, _F32 = ir.IntType(64), ir.IntType(32), ir.IntType(16), ir.IntType(8), ir.FloatType()


class _BFloat16(ir.Type):  # type: ignore[misc]
    """Is LLVM's type `bfloat`, for which llvmlite has no name."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat16)

    def __hash__(self) -> int:
        return hash(_BFloat16)


_BF16 = _BFloat16()
_ELEMENTS = {"f32": _F32, "bf16": _I16, "u8": _I8, "i32": _I32}
_POINTER = ir.PointerType()
_KERNEL = ir.FunctionType(ir.VoidType(), [_POINTER] * 4 + [_I64] * 2)


class Code:
    """Is one kernel while it is written.

    Attributes:
        lanes: floats in a vector.
        out, source, parameters, extra: the kernel's pointers, to be given strides by `Pointer.shaped`.
        begin, end: the kernel's whole numbers.
    """

    def __init__(self, name: str, target: Target) -> None:
        self.target = target
        self.lanes = target.lanes
        self._vector = ir.VectorType(_F32, target.lanes)
        self._words = ir.VectorType(_I32, target.lanes)
        self.module = ir.Module(name)
        self.module.triple = target.triple
        function = ir.Function(self.module, _KERNEL, name)
        function.attributes.add("nounwind")
        for argument in function.args[:4]:
            argument.add_attribute("noalias")
        *pointers, self.begin, self.end = function.args
        self.builder = ir.IRBuilder(function.append_basic_block())
        self._scratch: Value = None
        self.out, self.source, self.parameters, self.extra = (Pointer(self, p, (1,)) for p in pointers)

    def narrow(self, lanes: int) -> "Code":
        """Returns the same kernel to be written with narrower vectors."""
        code = copy(self)
        code.lanes, code._vector, code._words = lanes, ir.VectorType(_F32, lanes), ir.VectorType(_I32, lanes)
        code.out, code.source, code.parameters, code.extra = (
            Pointer(code, place.value, (1,)) for place in (self.out, self.source, self.parameters, self.extra)
        )
        return code

    def finish(self) -> str:
        """Returns the module as LLVM's text."""
        self.builder.ret_void()
        # There is no C library here: without this LLVM turns a loop that copies into a call of memcpy. llvmlite has no
        # name for this attribute.
        return str(self.module).replace(" nounwind", ' nounwind "no-builtins"', 1)

    # -------------------------------------------------------------------------------------------------- arithmetic

    def constant(self, value: float) -> Value:
        """Returns a vector of one value."""
        return ir.Constant(self._vector, [float(value)] * self.lanes)

    def whole_numbers(self, value: int) -> Value:
        """Returns a vector of one whole number."""
        return ir.Constant(self._words, [value] * self.lanes)

    def fma(self, x: Value, y: Value, z: Value) -> Value:
        """Returns x·y + z, rounded once where the machine can and, always the same there, twice where it can't."""
        return self._call(f"llvm.fmuladd.v{self.lanes}f32", self._vector, x, y, z)

    def add(self, x: Value, y: Value) -> Value:
        """Returns x + y."""
        return self.builder.fadd(x, y)

    def multiply(self, x: Value, y: Value) -> Value:
        """Returns x·y."""
        return self.builder.fmul(x, y)

    def divide(self, x: Value, y: Value) -> Value:
        """Returns x / y."""
        return self.builder.fdiv(x, y)

    def maximum(self, x: Value, low: Value) -> Value:
        """Returns the larger; NaN where x is NaN, as numpy does."""
        return self.builder.select(self.builder.fcmp_ordered("<", x, low), low, x)

    def minimum(self, x: Value, high: Value) -> Value:
        """Returns the smaller; NaN where x is NaN."""
        return self.builder.select(self.builder.fcmp_ordered(">", x, high), high, x)

    def activate(self, x: Value, activation: str) -> Value:
        """Returns an activation of x by the name it has in a `Layer`."""
        if activation != "linear":
            x = self.maximum(x, self.constant(0))
        if activation == "relu6":
            x = self.minimum(x, self.constant(6))
        return x

    # ------------------------------------------------------------------------------------- products of many inputs

    def dot(self, numbers: str, inputs: Value, weights: Value, sums: Value) -> Value:
        """Returns sums + inputs·weights, word by word: floats of floats, or whole numbers of bytes.

        Args:
            numbers: what the inputs are in memory.
            inputs: a vector of one word, as `Pointer.word` returns, or of words as `interleaved` does.
            weights: a vector of words.
        """
        if numbers == "f32":
            return self.fma(inputs, weights, sums)
        if numbers == "bf16":
            return self._dot_bf16(inputs, weights, sums)
        if self.target.compact:
            return substitutes.dot(self, inputs, weights, sums)
        if in_word(numbers, self.target) == 2:
            return self.builder.add(sums, substitutes.pairs(self, inputs, weights))
        if "vnni" in self.target.words:
            return self._call(f"llvm.x86.avx512.vpdpbusd.{32 * self.lanes}", self._words, sums, inputs, weights)
        (name,) = self.target.words
        x, w = (self.builder.bitcast(value, ir.VectorType(_I8, 16)) for value in (inputs, weights))
        return self._call(f"llvm.aarch64.neon.{name}.v4i32.v16i8", self._words, sums, x, w)

    def fours(self, words: Value) -> Value:
        """Returns words of four bytes as `dot` takes them: less `byte_offset`."""
        return self.builder.xor(words, self.whole_numbers(-0x7F7F7F80)) if byte_offset(self.target) else words

    def products_written_out(self, numbers: str) -> bool:
        """Whether a word's products are several instructions each already, so that there is no loop to be unrolled."""
        return numbers == "u8" and not multiplies_bytes_together(self.target)

    def _dot_bf16(self, inputs: Value, weights: Value, sums: Value) -> Value:
        b = self.builder
        if "bf16" in self.target.words:
            pairs = ir.VectorType(_BF16, 2 * self.lanes)
            x, w = (b.bitcast(value, pairs) for value in (inputs, weights))
            return self._call("llvm.x86.avx512bf16.dpbf16ps.512", self._vector, sums, x, w)
        for half in (self._low_half, self._high_half):
            sums = self.fma(half(inputs), half(weights), sums)
        return sums

    def _low_half(self, words: Value) -> Value:
        return self.builder.bitcast(self.builder.shl(words, self.whole_numbers(16)), self._vector)

    def _high_half(self, words: Value) -> Value:
        return self.builder.bitcast(self.builder.and_(words, self.whole_numbers(-65536)), self._vector)

    @property
    def matrices(self) -> Matrices:
        """The machine's registers that hold whole matrices."""
        return Matrices(self)

    def scratch(self, words: int) -> "Pointer":
        """Returns memory for a kernel's own use, the same each time."""
        if self._scratch is None:
            with self.builder.goto_entry_block():
                self._scratch = self.builder.alloca(ir.ArrayType(_I32, words))
                self._scratch.align = 64
        return Pointer(self, self._scratch, (1,))

    # ---------------------------------------------------------------------------------------------- kinds of numbers

    def to_floats(self, words: Value) -> Value:
        """Returns whole numbers as floats, rounded to the nearest."""
        return self.builder.sitofp(words, self._vector)

    def bits(self, x: Value) -> Value:
        """Returns the words that were loaded as floats."""
        return self.builder.bitcast(x, self._words)

    def from_bits(self, words: Value) -> Value:
        """Returns the floats that have these bits."""
        return self.builder.bitcast(words, self._vector)

    def rounded(self, x: Value) -> Value:
        """Returns floats as whole numbers, rounded to the nearest, to the even one of two.

        They must fit; those beyond ±2^22, which no byte comes from, may become others beyond it.
        """
        if self.target.machine in substitutes.NO_ROUNDING:
            return substitutes.rounded(self, x)
        if self.target.machine == "x86_64" and self.lanes == 4:
            # LLVM 22 makes of lrint of a load cvtps2dq from memory, which without AVX faults where it is not aligned.
            return self._call("llvm.x86.sse2.cvtps2dq", self._words, x)
        return self._call(f"llvm.lrint.v{self.lanes}i32.v{self.lanes}f32", self._words, x)

    def plus(self, x: Value, y: Value) -> Value:
        """Returns the sum of whole numbers."""
        return self.builder.add(x, y)

    def times(self, x: Value, y: Value) -> Value:
        """Returns the product of whole numbers."""
        return self.builder.mul(x, y)

    def without_bits(self, x: Value, bits: int | Value) -> Value:
        """Returns whole numbers less their lowest bits, rounded down."""
        return self.builder.ashr(x, self.whole_numbers(bits) if isinstance(bits, int) else bits)

    def shuffled(self, x: Value, y: Value, order: Sequence[int]) -> Value:
        """Returns lanes of x and, counted on, of y (of the same length) in an order."""
        return self.builder.shuffle_vector(x, y, ir.Constant(ir.VectorType(_I32, len(order)), list(order)))

    def limited(self, x: Value, low: Value, high: Value) -> Value:
        """Returns whole numbers within limits."""
        return self._least_words(self._call(f"llvm.smax.v{self.lanes}i32", self._words, x, low), high)

    def _least_words(self, x: Value, high: Value) -> Value:
        return self._call(f"llvm.smin.v{self.lanes}i32", self._words, x, high)

    @property
    def fixed(self) -> FixedPoint:
        """TFLite's arithmetic on vectors of whole numbers."""
        return FixedPoint(self)

    @property
    def four_order(self) -> tuple[int, ...]:
        """The order of channels in four vectors side by side that `Pointer.store_four` stores as bytes: machines take
        and give 16 bytes as 4, 4, 4 and 4."""  # fmt: skip
        return four_order(self.target, self.lanes)

    def interleaved(self, rows: "Sequence[Pointer | None]", size: int) -> list[Value]:
        """Returns bytes of rows side by side, None for zeros: `size` rows in each word, as `dot` takes them, the words
        of each `size` rows four vectors in the order of `four_order`."""  # fmt: skip
        b, lanes, found = self.builder, self.lanes, []
        whole = ir.VectorType(_I8, 4 * lanes)
        zeros = ir.Constant(whole, None)
        loaded = [b.load(row.value, align=1, typ=whole) if row else zeros for row in rows]
        for first in range(0, len(rows), size):
            x, y = loaded[first : first + 2]
            for high in (False, True):
                pairs = self._zipped(x, y, high)
                for upper in (False, True):
                    if size == 4:
                        more = self._zipped(loaded[first + 2], loaded[first + 3], high)
                        other = b.bitcast(more, ir.VectorType(_I16, 2 * lanes))
                        both = self._zipped(b.bitcast(pairs, ir.VectorType(_I16, 2 * lanes)), other, upper)
                    else:
                        both = self._zipped(pairs, zeros, upper)
                    words = b.bitcast(both, self._words)
                    found.append(self.fours(words) if size == 4 else words)
        return found

    def _zipped(self, x: Value, y: Value, high: bool) -> Value:
        """Returns the numbers of the lower or upper halves of each 16 bytes (of all, where machines take them so) of x
        and y in turns."""  # fmt: skip
        count = x.type.count
        block = count * 4 // self.lanes if self.target.machine == "x86_64" else count
        begins = range(block // 2 * high, count, block)
        mask = [n + other for begin in begins for n in range(begin, begin + block // 2) for other in (0, count)]
        return self.shuffled(x, y, mask)

    def _four_bytes(self, values: Sequence[Value]) -> Value:
        """Returns four vectors of whole numbers as one of bytes, the nearest that are."""
        b, lanes = self.builder, self.lanes
        halves, whole = ir.VectorType(_I16, 2 * lanes), ir.VectorType(_I8, 4 * lanes)
        if self.target.machine == "x86_64":
            kind, end = {16: ("avx512", ".512"), 8: ("avx2", ""), 4: ("sse2", ".128")}[lanes]
            words = [self._call(f"llvm.x86.{kind}.packssdw{end}", halves, *values[n : n + 2]) for n in (0, 2)]
            return self._call(f"llvm.x86.{kind}.packuswb{end}", whole, *words)
        limits = self.whole_numbers(0), self.whole_numbers(255)
        narrow = [b.trunc(self.limited(value, *limits), ir.VectorType(_I8, lanes)) for value in values]
        pairs = [self._joined(narrow[n], narrow[n + 1], lanes) for n in (0, 2)]
        return self._joined(pairs[0], pairs[1], 2 * lanes)

    def _joined(self, x: Value, y: Value, count: int) -> Value:
        return self.shuffled(x, y, range(2 * count))

    def _to_bf16(self, x: Value) -> Value:
        """Returns floats as bfloat16, rounded to the nearest, to the even one of two."""
        b = self.builder
        if "bf16" in self.target.words:
            return b.fptrunc(x, ir.VectorType(_BF16, self.lanes))
        bits = b.bitcast(x, self._words)
        odd = b.and_(b.lshr(bits, self.whole_numbers(16)), self.whole_numbers(1))
        up = b.lshr(b.add(b.add(bits, self.whole_numbers(0x7FFF)), odd), self.whole_numbers(16))
        quiet = b.or_(b.lshr(bits, self.whole_numbers(16)), self.whole_numbers(64))  # a NaN must stay one
        return b.trunc(b.select(b.fcmp_unordered("uno", x, x), quiet, up), ir.VectorType(_I16, self.lanes))

    def _call(self, name: str, kind: Any, *values: Value) -> Value:
        """Calls a function of LLVM's own."""
        known = self.module.globals.get(name)
        function = known or ir.Function(self.module, ir.FunctionType(kind, [value.type for value in values]), name)
        return self.builder.call(function, list(values))

    # ------------------------------------------------------------------------------------------------------- loops

    def loop(
        self,
        begin: Index,
        end: Index,
        step: int,
        body: Callable[..., Sequence[Value] | None],
        carried: Sequence[Value] = (),
    ) -> list[Value]:
        """Loops i from `begin` while i < `end`; at least once: the caller knows that begin < end.

        Args:
            body: called once, with i and what is carried; returns what the next round gets.

        Returns:
            what the last round returned.
        """
        b = self.builder
        before, inside = b.block, b.append_basic_block()
        b.branch(inside)
        b.position_at_end(inside)
        i = b.phi(_I64)
        phis = [b.phi(value.type) for value in carried]
        i.add_incoming(_i64(begin), before)
        for phi, value in zip(phis, carried, strict=True):
            phi.add_incoming(value, before)
        results = list(body(i, *phis) or ())
        following = b.add(i, _i64(step), flags=["nsw", "nuw"])
        for phi, value in zip(phis, results, strict=True):
            phi.add_incoming(value, b.block)
        i.add_incoming(following, b.block)
        after = b.append_basic_block()
        b.cbranch(b.icmp_signed("<", following, _i64(end)), inside, after)
        b.position_at_end(after)
        return results

    def unrolled(
        self,
        count: int,
        unroll: int,
        body: Callable[..., Sequence[Value]],
        carried: Sequence[Value],
        once: Callable[[Index], None] | None = None,
    ) -> list[Value]:
        """Loops i from 0 to a constant `count` with `unroll` rounds of the body in one of the loop.

        `once` is called with i once for all of these.
        """

        def rounds(first: Index, number: int, values: Sequence[Value]) -> Sequence[Value]:
            if once and number == unroll:
                once(first)
            for j in range(number):
                values = body(self.sum(first, j), *values)
            return values

        whole = count // unroll * unroll
        if whole > unroll:
            carried = self.loop(0, whole, unroll, lambda i, *values: rounds(i, unroll, values), carried)
            return list(rounds(whole, count - whole, carried))
        return list(rounds(0, count, carried))

    def tiles(self, begin: Index, end: Index, size: int, body: Callable[[Index], None]) -> None:
        """Calls the body for tiles of `size` that cover begin..end; the caller knows that end - begin >= size.

        The last tile ends at `end`, and where the rest is smaller than a tile it does some of the one before it once
        more: the one place where a count that is no multiple of a tile is dealt with. So a body must write the same
        whenever it is called with the same place.
        """
        if isinstance(begin, int) and isinstance(end, int):
            whole = begin + (end - begin) // size * size
            if whole - begin > size:
                self.loop(begin, whole, size, lambda i: body(i))
            else:
                body(begin)
            if whole < end:
                body(end - size)
            return
        last = self.builder.sub(_i64(end), _i64(size))
        self.loop(begin, end, size, lambda i: body(self._least(i, last)))

    # -------------------------------------------------------------------------------------------- whole numbers

    def sum(self, x: Index, y: Index) -> Index:
        """Returns x + y."""
        if isinstance(x, int) and isinstance(y, int):
            return x + y
        if isinstance(y, int) and y == 0:
            return x
        return self.builder.add(_i64(x), _i64(y), flags=["nsw"])

    def product(self, x: Index, factor: Index) -> Index:
        """Returns x·factor."""
        if isinstance(x, int) and isinstance(factor, int):
            return x * factor
        return self.builder.mul(_i64(x), _i64(factor), flags=["nsw"])

    def least(self, x: Index, y: int) -> Index:
        """Returns the smaller."""
        return min(x, y) if isinstance(x, int) else self._least(x, _i64(y))

    def _least(self, x: Value, y: Value) -> Value:
        return self.builder.select(self.builder.icmp_signed("<", x, y), x, y)

    def row(self, rows: "Pointer", index: Index, height: int, ring: int, zeros: "Pointer") -> "Pointer":
        """Returns a pointer to a row of an image of which `ring` rows are kept, row r at r mod `ring`.

        Rows above and below the image are `zeros`: that is all there is to padding in this direction.
        """
        b, index = self.builder, _i64(index)
        slot = index if ring >= height else b.urem(index, _i64(ring))
        inside = b.icmp_unsigned("<", index, _i64(height))
        place = b.select(inside, rows.at(slot).value, zeros.value)
        return Pointer(self, place, rows.strides[1:], rows.numbers)


class Pointer:
    """Is an address in an array of numbers with constant strides.

    Attributes:
        value: the address.
        strides: in numbers, of as many indices as `at` takes.
        numbers: what is in the array.
    """

    def __init__(self, code: Code, value: Value, strides: tuple[int, ...], numbers: str = "f32") -> None:
        self.code = code
        self.value = value
        self.strides = strides
        self.numbers = numbers

    def shaped(self, *strides: int, numbers: str | None = None) -> "Pointer":
        """Returns the same address with other strides, or of other numbers."""
        return Pointer(self.code, self.value, strides, numbers or self.numbers)

    def at(self, *index: Index) -> "Pointer":
        """Returns the address of an element; strides of indices that are not given remain."""
        b, address, constant, size = self.code.builder, self.value, 0, SIZES[self.numbers]
        for i, stride in zip(index, self.strides, strict=False):
            if isinstance(i, int):
                constant += i * stride
            else:
                address = b.gep(address, [b.mul(i, _i64(size * stride), flags=["nsw"])], source_etype=_I8)
        if constant:
            address = b.gep(address, [_i64(size * constant)], source_etype=_I8)
        return Pointer(self.code, address, self.strides[len(index) :] or (1,), self.numbers)

    def load(self, *, aligned: bool = True, whole: bool = False) -> Value:
        """Returns the vector that begins here; whole vectors' places unless `aligned` is False, `whole` bytes as whole
        numbers."""  # fmt: skip
        code, b = self.code, self.code.builder
        align = SIZES[self.numbers] * (code.lanes if aligned else 1)
        loaded = b.load(self.value, align=align, typ=ir.VectorType(_ELEMENTS[self.numbers], code.lanes))
        if self.numbers == "bf16":
            return code._low_half(b.zext(loaded, code._words))
        if self.numbers == "u8":
            loaded = b.zext(loaded, code._words)
        return code.to_floats(loaded) if self.numbers == "u8" and not whole else loaded

    def load_bytes(self) -> Value:
        """Returns the vector of whole numbers whose bytes begin here."""
        code = self.code
        loaded = code.builder.load(self.value, align=1, typ=ir.VectorType(_I8, code.lanes))
        return code.builder.zext(loaded, code._words)

    def index(self) -> Index:
        """Returns the one whole number here, to count or address with."""
        return self.code.builder.sext(self.code.builder.load(self.value, align=4, typ=_I32), _I64)

    def store(self, value: Value, *, aligned: bool = True) -> None:
        """Writes a vector from here on; whole numbers that are no bytes become the nearest that are."""
        code, b = self.code, self.code.builder
        if self.numbers == "bf16":
            value = code._to_bf16(value)
        elif self.numbers == "u8":
            words = code.limited(value, code.whole_numbers(0), code.whole_numbers(255))
            value = b.trunc(words, ir.VectorType(_I8, code.lanes))
        b.store(value, self.value, align=SIZES[self.numbers] * (code.lanes if aligned else 1))

    def store_four(self, values: Sequence[Value], *, natural: bool = False) -> None:
        """Writes four vectors of whole numbers as bytes: in the order of `Code.four_order`, or the vectors' own."""
        code, b = self.code, self.code.builder
        stored = code._four_bytes(values)
        if natural and code.target.machine == "x86_64":  # words of four bytes: 4 of each 16 bytes are one vector's
            words, blocks = ir.VectorType(_I32, code.lanes), code.lanes // 4
            mask = [4 * block + vector for vector in range(4) for block in range(blocks)]
            both = ir.Constant(ir.VectorType(_I32, code.lanes), mask)
            stored = b.shuffle_vector(b.bitcast(stored, words), ir.Constant(words, ir.Undefined), both)
        b.store(stored, self.value, align=code.lanes)

    def load_four(self, *, natural: bool = False, whole: bool = False) -> list[Value]:
        """Returns four vectors of floats, or `whole` numbers, of bytes: in the order of `Code.four_order`, or as they
        lie."""  # fmt: skip
        code, b, lanes = self.code, self.code.builder, self.code.lanes
        if natural:
            return [self.shaped(1).at(v * lanes).load(whole=whole) for v in range(4)]
        bytes_ = ir.VectorType(_I8, 4 * lanes)
        loaded, order = b.load(self.value, align=lanes, typ=bytes_), code.four_order
        found = []
        for v in range(4):
            mask = ir.Constant(ir.VectorType(_I32, lanes), list(order[v * lanes : (v + 1) * lanes]))
            words = b.zext(b.shuffle_vector(loaded, ir.Constant(bytes_, ir.Undefined), mask), code._words)
            found.append(words if whole else code.to_floats(words))
        return found

    def word(self, *, pair: bool = False) -> Value:
        """Returns a vector of the one word of inputs here, as `Code.dot` takes it; or in turns of a pair of floats."""
        code, b, lanes = self.code, self.code.builder, self.code.lanes
        if pair:
            return b.bitcast(self._repeated(ir.DoubleType(), lanes // 2, 4), code._vector)
        if self.numbers == "f32":
            return self._repeated(_F32, lanes, 4)
        if self.numbers in ("bf16", "i32"):
            return self._repeated(_I32, lanes, 4)
        if in_word(self.numbers, code.target) == 4:
            return code.fours(self._repeated(_I32, lanes, 1))
        pairs = b.bitcast(self._repeated(_I16, lanes, 1), ir.VectorType(_I8, 2 * lanes))
        return b.bitcast(b.zext(pairs, ir.VectorType(_I16, 2 * lanes)), code._words)

    def _repeated(self, kind: Any, count: int, align: int) -> Value:
        b, vector = self.code.builder, ir.VectorType(kind, count)
        one = b.load(self.value, align=align, typ=kind)
        first = b.insert_element(ir.Constant(vector, ir.Undefined), one, ir.Constant(_I32, 0))
        return self.code.shuffled(first, first, [0] * count)

    def apart(self) -> "Pointer":
        """Returns the same address, in a register: LLVM is not told how it came about."""
        address = self.code.builder.asm(ir.FunctionType(_POINTER, [_POINTER]), "", "=r,0", [self.value], False)
        return Pointer(self.code, address, self.strides, self.numbers)

    def prefetch(self) -> None:
        """Asks for the cache line here to be in L2 soon; any address will do."""
        read, level, data = (ir.Constant(_I32, n) for n in (0, 2, 1))
        self.code._call("llvm.prefetch.p0", ir.VoidType(), self.value, read, level, data)


def _i64(value: Index) -> Value:
    return ir.Constant(_I64, value) if isinstance(value, int) else value
