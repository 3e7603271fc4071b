"""From kernels to machine code: writes each one's LLVM module, compiles them over all processors, links the objects.

The only module, with `ir`, that needs llvmlite. LLVM here holds one lock for a whole process, so the work is spread
over processes: `python -m mobilenet.compiler.build` is such a worker.
"""

import contextlib
import json
import os
import struct
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import BinaryIO

from llvmlite import binding  # type: ignore[import-untyped]

from ..errors import MobileNetError
from . import driver, ir
from .add import Add
from .conv import Conv
from .dense import Dense
from .depthwise import Depthwise
from .kernel import Kernel
from .link import link
from .lower import Plan
from .pointwise import Pointwise
from .pool import Pool
from .scale import Scale
from .targets import TARGETS, Target

_KINDS: dict[str, type[Kernel]] = {
    kind.__name__: kind for kind in (Add, Conv, Dense, Depthwise, Pointwise, Pool, Scale)
}
_PER_WORKER = 8  # kernels that are worth the start of a process, 0.2 s


def build(kernels: Sequence[Kernel], target: Target, workers: int | None = None) -> tuple[bytes, dict[str, int]]:
    """Returns one image of position-independent code, and where each kernel (by its repr) and driver function begins.

    Args:
        workers: processes to compile in; None for as many as there are processors, or fewer for few kernels.

    Raises:
        MobileNetError: a worker failed; says how.
    """
    # Kernels that share a kind differ little in cost: dealt out in turn every worker gets the same.
    most = min(workers or len(os.sched_getaffinity(0)), max(len(kernels) // _PER_WORKER, 1))
    shares = [kernels[first::most] for first in range(most)]
    others = [_start(share, target) for share in shares[1:]]
    objects = [(repr(kernel), compile_kernel(kernel, target)) for kernel in shares[0]]
    for share, worker in zip(shares[1:], others, strict=True):
        objects += zip(map(repr, share), _finish(worker), strict=True)
    named = [(name, name, compile_text(text, target)) for name, text in driver.modules(target).items()]
    named += [(name, _SYMBOL, data) for name, data in sorted(objects)]
    image, functions = link((symbol, data) for _, symbol, data in named)
    return image, dict(zip((name for name, _, _ in named), functions, strict=True))


_SYMBOL = "kernel"


def module(kernel: Kernel, target: Target, name: str = _SYMBOL) -> str:
    """Returns a kernel's LLVM module as text."""
    code = ir.Code(name, target)
    kernel.emit(code)
    # Kernels count in 64 bits; where an address has 32, each such number would take two registers.
    return code.finish() if target.bits == 64 else code.finish().replace("i64", "i32")


def compile_kernel(kernel: Kernel, target: Target) -> bytes:
    """Returns a kernel's object file."""
    return compile_text(module(kernel, target), target)


def compile_text(text: str, target: Target) -> bytes:
    """Returns the object file of an LLVM module."""
    machine = _machine(target)
    return bytes(machine.emit_object(_optimised(text, machine)))


def program(plan: Plan, weights: bytes, symbol: str) -> bytes:
    """Returns one object file of a plan: the function `symbol` of `driver.program`, all kernels, the weights."""
    machine = _machine(plan.target)
    names = {kernel: f"{symbol}_{n}" for n, kernel in enumerate(dict.fromkeys(s.kernel for s in plan.parts[0] if s))}
    whole = _optimised(driver.program(plan, weights, symbol, names), machine)
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


def _start(kernels: Sequence[Kernel], target: Target) -> "subprocess.Popen[bytes]":
    order = {"target": target.name, "kernels": [[type(kernel).__name__, asdict(kernel)] for kernel in kernels]}
    command = [sys.executable, "-m", "mobilenet.compiler.build"]
    worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=_environment())
    assert worker.stdin
    with contextlib.suppress(BrokenPipeError), worker.stdin as stdin:  # it has ended: its exit code says so
        stdin.write(json.dumps(order).encode())
    return worker


def _environment() -> dict[str, str]:
    """Returns this process's environment, with this package where a worker finds it."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}


def _finish(worker: "subprocess.Popen[bytes]") -> list[bytes]:
    with worker:
        assert worker.stdout
        data = worker.stdout.read()
    if worker.returncode:
        raise MobileNetError(f"compiler: a worker process ended with exit code {worker.returncode}; see its message")
    objects, place = [], 0
    while place < len(data):
        (size,) = struct.unpack_from("<Q", data, place)
        objects.append(data[place + 8 : place + 8 + size])
        place += 8 + size
    return objects


def work(orders: BinaryIO, results: BinaryIO) -> None:
    """Compiles what `orders` says and writes the objects, each after its length, to `results`."""
    order = json.load(orders)
    for kind, constants in order["kernels"]:
        data = compile_kernel(_KINDS[kind](**constants), TARGETS[order["target"]])
        results.write(struct.pack("<Q", len(data)) + data)


if __name__ == "__main__":
    work(sys.stdin.buffer, sys.stdout.buffer)
