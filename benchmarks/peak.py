"""The machine's peak: multiply-adds of one thread in chains in registers, without memory."""

import ctypes

import numpy as np
from rivals import Job, Logits, Side

from mobilenet.compiler import ir
from mobilenet.compiler.build import compile_text
from mobilenet.compiler.link import link
from mobilenet.compiler.loader import Code
from mobilenet.compiler.targets import choose

ROUNDS = 20000


class Peak(Side):
    """Is a loop of known length; its `settings` say how many multiply-adds a call does."""

    def __init__(self, job: Job) -> None:
        target = choose(None)
        chains = target.registers - 4
        code = ir.Code("peak", target)
        sums = [code.out.at(n * target.lanes).load() for n in range(chains)]
        factor = code.source.broadcast()
        sums = code.loop(0, code.end, 1, lambda i, *values: [code.fma(v, factor, factor) for v in values], sums)
        for n, value in enumerate(sums):
            code.out.at(n * target.lanes).store(value)
        image, (offset,) = link([("peak", compile_text(code.finish(), target))])
        self._code = Code(image, {"peak": offset})
        types = [ctypes.c_void_p] * 4 + [ctypes.c_int64] * 2
        self._function = ctypes.CFUNCTYPE(None, *types)(self._code.address["peak"])
        self._memory = np.zeros(4096, np.float32)
        self._start = self._memory.ctypes.data + -self._memory.ctypes.data % 64
        self.settings = {"multiply_adds": chains * target.lanes * ROUNDS}

    def __call__(self) -> Logits:
        self._function(*[self._start] * 4, 0, ROUNDS)
        return self._memory
