"""From kernels to machine code: writes each one's LLVM module, compiles them over all processors, links the objects.

Of all modules only this one, `ir` and what that is made of (`fixed`, `matrices`, `substitutes`) need llvmlite. LLVM
here holds one lock for a whole process, so the work is spread over processes: `python -m mobilenet.compiler.build` is
such a worker.
"""

import contextlib
import json
import os
import re
import struct
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import BinaryIO, Self

from llvmlite import binding  # type: ignore[import-untyped]

from ..common.parallel import processors
from ..common.progress import Progress
from ..errors import MobileNetError
from . import driver, ir
from .kernel import Kernel
from .link import link
from .plan import KINDS, Plan
from .targets import TARGETS, Target

_PER_WORKER = 8  # kernels that are worth the start of a process, 0.2 s


def build(
    kernels: Sequence[Kernel], target: Target, workers: int | None = None, progress: Progress | None = None
) -> tuple[bytes, dict[str, int]]:
    """Returns one image of position-independent code, and where each kernel (by its repr) and driver function begins.

    Args:
        workers: processes to compile in; None for as many as there are processors, or fewer for few kernels.
        progress: is called with the kernels done and their number.

    Raises:
        MobileNetError: a worker failed; says how.
    """
    most = min(workers or processors(), max(len(kernels) // _PER_WORKER, 1)) if sys.executable else 1
    objects = sorted(_compiled(kernels, target, most, progress or (lambda done, total: None)).items())
    named = [(name, name, compile_text(text, target)) for name, text in driver.modules(target).items()]
    named += [(name, _SYMBOL, data) for name, data in objects]
    image, functions = link((symbol, data) for _, symbol, data in named)
    return image, dict(zip((name for name, _, _ in named), functions, strict=True))


def _compiled(kernels: Sequence[Kernel], target: Target, workers: int, progress: Progress) -> dict[str, bytes]:
    """Returns each kernel's object file. Whoever is free takes the next kernel: this process, and `workers` - 1 others
    that a thread each talks to."""  # fmt: skip
    waiting = deque(kernels)  # its popleft is atomic
    done: dict[str, bytes] = {}

    def drain(compile: Callable[[Kernel], bytes]) -> None:
        while True:
            try:
                kernel = waiting.popleft()
            except IndexError:
                return
            try:
                done[kernel.name] = compile(kernel)
            except BaseException:
                waiting.clear()  # the others need not finish what is of no use
                raise
            progress(len(done), len(kernels))

    def help() -> None:
        with _Worker(target) as worker:
            drain(worker.compile)

    with ThreadPoolExecutor(max(workers - 1, 1)) as pool:
        helping = [pool.submit(help) for _ in range(workers - 1)]
        drain(lambda kernel: compile_kernel(kernel, target))
        for each in helping:
            each.result()
    return done


_SYMBOL = "kernel"


def module(kernel: Kernel, target: Target, name: str = _SYMBOL) -> str:
    """Returns a kernel's LLVM module as text."""
    code = ir.Code(name, target)
    kernel.emit(code)
    if target.bits == 64:
        return code.finish()
    # Kernels count in 64 bits; where an address has 32, each such number would take two registers. Vectors stay.
    return re.sub(r"(<[^<>]*>|v\d+i64)|i64", lambda found: found[1] or "i32", code.finish())


def compile_kernel(kernel: Kernel, target: Target) -> bytes:
    """Returns a kernel's object file."""
    return compile_text(module(kernel, target), target)


def compile_text(text: str, target: Target) -> bytes:
    """Returns the object file of an LLVM module."""
    machine = _machine(target)
    return bytes(machine.emit_object(_optimised(text, machine)))


def program(plan: Plan, weights: bytes | None, symbol: str, last: tuple[float, float]) -> bytes:
    """Returns one object file of a plan: the function of `driver.program`, all kernels, and the weights if given."""
    machine = _machine(plan.target)
    names = {kernel: f"{symbol}_{n}" for n, kernel in enumerate(dict.fromkeys(s.kernel for s in plan.parts[0] if s))}
    whole = _optimised(driver.program(plan, weights, symbol, names, last), machine)
    for kernel, name in names.items():
        whole.link_in(_optimised(module(kernel, plan.target, name), machine))
        whole.get_function(name).linkage = "internal"
    return bytes(machine.emit_object(whole))


def assembly(kernel: Kernel, target: Target) -> str:
    """Returns a kernel's machine code as text, to be read by people."""
    machine = _machine(target)
    return str(machine.emit_assembly(_optimised(module(kernel, target), machine)))


def _optimised(text: str, machine: "binding.TargetMachine") -> "binding.ModuleRef":
    parsed = binding.parse_assembly(text)
    # Kernels are unrolled and vectorised as they are written; LLVM would only undo that.
    options = binding.create_pipeline_tuning_options(speed_level=3)
    options.loop_unrolling = options.loop_vectorization = options.slp_vectorization = False
    builder = binding.create_pass_builder(machine, options)
    builder.getModulePassManager().run(parsed, builder)
    return parsed


def _machine(target: Target) -> "binding.TargetMachine":
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    made = binding.Target.from_triple(target.triple)
    # A WebAssembly module has its memory to itself: its data begins at 0.
    reloc = "static" if target.machine == "wasm32" else "pic"
    options = {"features": target.features, "abiname": target.abi}
    return made.create_target_machine(cpu=target.cpu, opt=3, reloc=reloc, codemodel="small", **options)


# ---------------------------------------------------------------------------------------------------------- workers


class _Worker:
    """Is another process that compiles a kernel at a time."""

    def __init__(self, target: Target) -> None:
        self.target = target
        # -P: no module is taken from the current folder.
        command = [sys.executable, "-P", "-m", "mobilenet.compiler.build"]
        # In a group of its own: Ctrl-C reaches this process alone, which closes the orders, and that ends the worker.
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=_environment(), process_group=0
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(BrokenPipeError):  # it has ended: its exit code has said so
            self.process.__exit__(None, None, None)  # closes its orders, which ends it, and waits

    def compile(self, kernel: Kernel) -> bytes:
        """Returns a kernel's object file.

        Raises:
            MobileNetError: the process ended.
        """
        order = {"target": self.target.name, "kind": type(kernel).__name__, "constants": asdict(kernel)}
        assert self.process.stdin
        assert self.process.stdout
        with contextlib.suppress(BrokenPipeError):  # then there is no answer either
            self.process.stdin.write(json.dumps(order).encode() + b"\n")
            self.process.stdin.flush()
        head = self.process.stdout.read(8)
        size = struct.unpack("<Q", head)[0] if len(head) == 8 else None
        data = self.process.stdout.read(size) if size is not None else b""
        if len(data) != size:
            raise MobileNetError(
                f"compiler: a worker process ended with exit code {self.process.wait()}; see its message"
            )
        return data


def _environment() -> dict[str, str]:
    """Returns this process's environment, with this package where a worker finds it."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}


def work(orders: BinaryIO, results: BinaryIO) -> None:
    """Compiles what each line of `orders` says and writes the object, after its length, to `results`."""
    for line in orders:
        order = json.loads(line)
        data = compile_kernel(KINDS[order["kind"]](**order["constants"]), TARGETS[order["target"]])
        results.write(struct.pack("<Q", len(data)) + data)
        results.flush()


if __name__ == "__main__":
    work(sys.stdin.buffer, sys.stdout.buffer)
