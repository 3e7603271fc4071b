"""The machine's peak: multiply-adds of one thread in registers, without memory, by the kernel that `bench` takes."""

import ctypes

import numpy as np
from rivals import Job, Logits, Side

from mobilenet.compiler.machine import Peak as Loop
from mobilenet.compiler.native import load_code
from mobilenet.compiler.targets import choose

ROUNDS = 20000


class Peak(Side):
    """Is a loop of known length; its `settings` say how many multiply-adds a call does."""

    def __init__(self, job: Job) -> None:
        target = choose(None)
        loop = Loop("f32", target.registers - 4)
        self._code, _ = load_code((loop,), target)
        types = [ctypes.c_void_p] * 4 + [ctypes.c_int64] * 2
        self._function = ctypes.CFUNCTYPE(None, *types)(self._code.address[repr(loop)])
        self._memory = np.zeros(4096, np.float32)
        self._start = self._memory.ctypes.data + -self._memory.ctypes.data % 64
        self.settings = {"multiply_adds": loop.chains * target.lanes * ROUNDS}

    def __call__(self) -> Logits:
        self._function(*[self._start] * 4, 0, ROUNDS)
        return self._memory
