"""What the machine can do at its best, measured by two kernels of our own: multiply-adds and reads of memory."""

import ctypes
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from ..common.frozen import frozen
from .kernel import Floats, Kernel, in_word, multiplies_matrices
from .native import load_code
from .pack import aligned
from .stages import STORED
from .targets import Target

if TYPE_CHECKING:
    from .ir import Code as Written
    from .ir import Index, Value

MEMORY = 1 << 27  # bytes that are read for the bandwidth of memory: more than most caches hold
CACHE = 1 << 19  # bytes that each thread reads again and again, for its L2 cache's: half of the smallest of servers
# Of the loop of multiply-adds: some 0.1 ms, beside which the microsecond of a call is little, and within which a thread
# is seldom interrupted.
_ROUNDS = 20000
_TIMES = 5
_SIDE = 16  # rows, and words of a row, of a matrix register
_READS = 8  # vectors in a round of the loop that reads, each with a sum of its own


@frozen
class Peak(Kernel):
    """Is a loop of multiply-adds in registers; called with 0 and its rounds.

    Attributes:
        numbers: what is multiplied: "f32", "bf16" or "u8".
        chains: sums, each of which waits for itself alone: vectors, or 4 matrices where the machine multiplies those.
    """

    numbers: str
    chains: int

    @property
    def parameters(self) -> int:
        """Words that it reads of its parameters."""
        return 0

    def emit(self, code: "Written") -> None:
        """Writes the kernel."""
        if multiplies_matrices(self.numbers, code.target):
            self._matrices(code)
            return
        words = "f32" if self.numbers == "f32" else "i32"
        factor = code.source.shaped(1, numbers=words).load()
        kind = "i32" if self.numbers == "u8" else "f32"
        places = [code.out.shaped(1, numbers=kind).at(n * code.lanes) for n in range(self.chains)]

        def multiply(_: "Index", *sums: "Value") -> "list[Value]":
            # A product of two constants would be taken out of the loop.
            inputs = sums if self.numbers == "u8" else [factor] * len(sums)
            return [code.dot(self.numbers, x, factor, value) for x, value in zip(inputs, sums, strict=True)]

        sums = code.loop(code.begin, code.end, 1, multiply, [place.load() for place in places])
        for place, value in zip(places, sums, strict=True):
            place.store(value)

    def _matrices(self, code: "Written") -> None:
        code.matrices.set_up(_SIDE, _SIDE)
        rows = code.source.shaped(_SIDE, 1, numbers="i32")
        for register in range(8):
            code.matrices.load(register, rows, _SIDE)

        def multiply(_: "Index") -> None:
            for n in range(self.chains):
                code.matrices.dot(self.numbers, n, 4 + n // 2, 6 + n % 2)

        code.loop(code.begin, code.end, 1, multiply)
        for n in range(self.chains):
            code.matrices.store(n, code.out.shaped(_SIDE, 1, numbers="i32").at(_SIDE * n), _SIDE)
        code.matrices.give_up()


@frozen
class Read(Kernel):
    """Is a loop that reads and adds; called with 0 and its rounds, `vectors` vectors each.

    Attributes:
        vectors: in a round.
    """

    vectors: int

    @property
    def parameters(self) -> int:
        """Words that it reads of its parameters."""
        return 0

    def emit(self, code: "Written") -> None:
        """Writes the kernel."""
        step = self.vectors * code.lanes
        places = [code.out.at(n * code.lanes) for n in range(self.vectors)]

        def add(i: "Index", *sums: "Value") -> "list[Value]":
            piece = code.source.shaped(step).at(i).shaped(code.lanes)
            return [code.add(value, piece.at(n).load()) for n, value in enumerate(sums)]

        sums = code.loop(code.begin, code.end, 1, add, [place.load() for place in places])
        for place, value in zip(places, sums, strict=True):
            place.store(value)


class Machine:
    """Measures what so many threads can do at the same time, with one instruction set."""

    def __init__(self, target: Target, threads: int, precision: str = "f32") -> None:
        """Compiles the two kernels for a precision, or takes them from the cache."""
        self.target, self.threads = target, threads
        numbers = STORED[precision]
        matrices = multiplies_matrices(numbers, target)
        # Of vectors, four registers stay for the factor and what LLVM needs.
        self._peak, self._read = Peak(numbers, 4 if matrices else target.registers - 4), Read(_READS)
        self._operations = 2.0 * in_word(numbers, target) * self._peak.chains * (_SIDE**3 if matrices else target.lanes)
        self._code, _ = load_code((self._peak, self._read), target)
        self._pool = ThreadPoolExecutor(threads)
        self._sums = [aligned(4 * _SIDE * max(4 * _SIDE, target.lanes * target.registers)) for _ in range(threads)]

    def flops(self) -> float:
        """Returns operations per second, two a multiply-add: the sum of each thread's best of 5 runs."""
        seconds = self._run(self._peak, [(own.ctypes.data, _ROUNDS) for own in self._sums], _TIMES)
        return sum(self._operations * _ROUNDS / best for best in seconds)

    def bandwidth(self, size: int, times: int = 3) -> float:
        """Returns the bytes per second that all threads read together, `size` bytes each again and again."""
        step = 4 * _READS * self.target.lanes
        rounds = max(size // step, 1)
        memory = aligned(rounds * self.threads * step)
        memory += 1  # pages that were never written would all be the same one
        begins = [memory.ctypes.data + n * rounds * step for n in range(self.threads)]
        seconds = self._run(self._read, [(begin, rounds) for begin in begins], times)
        return sum(rounds * step / best for best in seconds)

    def _run(self, kernel: Kernel, calls: list[tuple[int, int]], times: int) -> list[float]:
        """Returns for each thread the seconds of the fastest of its runs; a call is where it reads, and its rounds."""
        words = [ctypes.c_void_p] * 4, [ctypes.c_int64] * 2
        function = ctypes.CFUNCTYPE(None, *words[0], *words[1])(self._code.address[kernel.name])

        def run(call: tuple[int, int], sums: Floats) -> float:
            found = []
            for _ in range(times):
                begin = time.perf_counter()
                function(sums.ctypes.data, call[0], None, None, 0, call[1])
                found.append(time.perf_counter() - begin)
            return min(found)

        return list(self._pool.map(run, calls, self._sums))
