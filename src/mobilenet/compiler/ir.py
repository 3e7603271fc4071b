"""A small vector language over LLVM: pointers with constant strides, vectors of floats, loops that carry values.

A kernel is a Python function that says its loops and sums in these words; what is a Python `for` in it is unrolled,
what is a `code.loop` is a loop of the machine. All sizes are constants. No kernel knows the instruction set: it asks
`code.lanes` how many floats a vector has. Every kernel is one function

    void kernel(out, source, parameters, extra, begin, end)

of four pointers and two whole numbers, so that a plan is a table of such calls.
"""

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]

from .targets import Target

Value = Any  # an SSA value of llvmlite, which has no types
Index = Any  # int or Value

_I64, _F32, _I8 = ir.IntType(64), ir.FloatType(), ir.IntType(8)
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
        self.module = ir.Module(name)
        self.module.triple = target.triple
        function = ir.Function(self.module, _KERNEL, name)
        function.attributes.add("nounwind")
        for argument in function.args[:4]:
            argument.add_attribute("noalias")
        *pointers, self.begin, self.end = function.args
        self.builder = ir.IRBuilder(function.append_basic_block())
        self.out, self.source, self.parameters, self.extra = (Pointer(self, p, (1,)) for p in pointers)

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

    def fma(self, x: Value, y: Value, z: Value) -> Value:
        """Returns x·y + z, rounded once where the machine can and, always the same there, twice where it can't."""
        name = f"llvm.fmuladd.v{self.lanes}f32"
        known = self.module.globals.get(name)
        function = known or ir.Function(self.module, ir.FunctionType(self._vector, [self._vector] * 3), name)
        return self.builder.call(function, [x, y, z])

    def add(self, x: Value, y: Value) -> Value:
        """Returns x + y."""
        return self.builder.fadd(x, y)

    def multiply(self, x: Value, y: Value) -> Value:
        """Returns x·y."""
        return self.builder.fmul(x, y)

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

    def product(self, x: Index, factor: int) -> Index:
        """Returns x·factor."""
        return x * factor if isinstance(x, int) else self.builder.mul(x, _i64(factor), flags=["nsw"])

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
        return Pointer(self, place, rows.strides[1:])


class Pointer:
    """Is an address in an array of floats with constant strides.

    Attributes:
        value: the address.
        strides: in floats, of as many indices as `at` takes.
    """

    def __init__(self, code: Code, value: Value, strides: tuple[int, ...]) -> None:
        self.code = code
        self.value = value
        self.strides = strides

    def shaped(self, *strides: int) -> "Pointer":
        """Returns the same address with other strides."""
        return Pointer(self.code, self.value, strides)

    def at(self, *index: Index) -> "Pointer":
        """Returns the address of an element; strides of indices that are not given remain."""
        b, address, constant = self.code.builder, self.value, 0
        for i, stride in zip(index, self.strides, strict=False):
            if isinstance(i, int):
                constant += i * stride
            else:
                address = b.gep(address, [b.mul(i, _i64(4 * stride), flags=["nsw"])], source_etype=_I8)
        if constant:
            address = b.gep(address, [_i64(4 * constant)], source_etype=_I8)
        return Pointer(self.code, address, self.strides[len(index) :] or (1,))

    def load(self, *, aligned: bool = True) -> Value:
        """Returns the vector that begins here; whole vectors' places unless `aligned` is False."""
        code = self.code
        return code.builder.load(self.value, align=4 * code.lanes if aligned else 4, typ=code._vector)

    def load_bytes(self, index: Index) -> Value:
        """Returns the bytes from the index-th on, as many as there are lanes, as floats."""
        code, b = self.code, self.code.builder
        place = b.gep(self.value, [_i64(index)], source_etype=_I8)
        return b.uitofp(b.load(place, align=1, typ=ir.VectorType(_I8, code.lanes)), code._vector)

    def broadcast(self) -> Value:
        """Returns a vector of the one float here."""
        code, b = self.code, self.code.builder
        scalar = b.load(self.value, align=4, typ=_F32)
        first = b.insert_element(ir.Constant(code._vector, ir.Undefined), scalar, ir.Constant(ir.IntType(32), 0))
        lanes = ir.Constant(ir.VectorType(ir.IntType(32), code.lanes), [0] * code.lanes)
        return b.shuffle_vector(first, ir.Constant(code._vector, ir.Undefined), lanes)

    def prefetch(self) -> None:
        """Asks for the cache line here to be in L2 soon; any address will do."""
        code, i32 = self.code, ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [_POINTER, i32, i32, i32])
        name = "llvm.prefetch.p0"
        function = code.module.globals.get(name) or ir.Function(code.module, kind, name)
        code.builder.call(function, [self.value, *(ir.Constant(i32, n) for n in (0, 2, 1))])

    def store(self, value: Value, *, aligned: bool = True) -> None:
        """Writes a vector from here on."""
        self.code.builder.store(value, self.value, align=4 * self.code.lanes if aligned else 4)


def _i64(value: Index) -> Value:
    return ir.Constant(_I64, value) if isinstance(value, int) else value
