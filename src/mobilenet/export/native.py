"""A model as machine code: an object file, a shared library and a C header, or a WebAssembly module and its loader.

The object has one function, `mobilenet_run(input, output, scratch)`, all kernels and the weights. It refers to nothing
outside, so that any linker takes it into any program, with or without an operating system or a C library. The code is
run, here or emulated, and compared with the reference before anything is written.
"""

import ctypes
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .. import reference
from ..common.files import write_atomic
from ..common.text import bytes_text
from ..compiler import link
from ..compiler.emulator import Emulator
from ..compiler.lower import Plan, lower
from ..compiler.pack import aligned, pack
from ..compiler.targets import DEVICES, TARGETS, Target, choose, runnable
from ..errors import GateError, MobileNetError, UsageError
from ..model import Model
from ..weights import fold
from . import Exported, es_module, wasm
from .c_header import header, output_floats
from .shared_library import can_hold, shared_library

_FLOATS = {"aarch64" if name == "neon" else name: target for name, target in TARGETS.items() if not target.words}
NAMES = ("host", *DEVICES, *_FLOATS)
"""What `export` takes as its target: of the engine's those that differ in what they do with floats."""

_MADE_FOR = {
    "avx512": "x86-64 Linux with AVX-512 (x86-64-v4)",
    "avx2": "x86-64 Linux with AVX2 and FMA (x86-64-v3)",
    "sse": "any x86-64 Linux",
    "neon": "AArch64 Linux",
    "android-aarch64": "AArch64 Android",
    "armv7": "ARMv7-A Linux with NEON, hard float",
    "cortex-m": "Cortex-M4F and M7, or later ones with a floating-point unit, hard float",
    "riscv64": "RISC-V Linux, RV64GC",
    "wasm": "WebAssembly with 128-bit SIMD",
}
_EPSILON = float(np.finfo(np.float32).eps)
_LITTLE = range(12, 20)  # powers of two, of the bytes that a fused block may keep, that are tried for the least memory

Floats = NDArray[np.float32]
Runner = Callable[[NDArray[np.uint8]], Floats]


@dataclass(frozen=True)
class ExportedCode(Exported):
    """Is what was written.

    Attributes:
        target: what it is for, in words.
        weights, scratch: bytes; the weights are in the object or module.
    """

    target: str
    weights: int
    scratch: int

    def __str__(self) -> str:
        return f"{super().__str__()}\nfor {self.target}; scratch memory {bytes_text(self.scratch)}"


def export(model: Model, path: Path, *, target: str | None = None, symbol: str = "mobilenet") -> ExportedCode:
    """Writes a model as machine code: PATH.o, PATH.h and, for Linux of 64 bits and Android, PATH.so; or PATH.wasm and
    PATH.mjs.

    Args:
        path: without an ending; one that it has is dropped.
        target: one of `NAMES`; None for "wasm" if the path ends so, or else "host".
        symbol: with which the C names begin: `mobilenet` for mobilenet_run.

    Raises:
        UsageError: names the target or symbol and the rule.
        GateError: the code was run and its outputs differ from the reference; nothing was written.
        MobileNetError: llvmlite is missing, or a file can't be written.
    """  # fmt: skip
    chosen = _target(target or ("wasm" if path.suffix == ".wasm" else "host"))
    if not re.fullmatch("[a-z][a-z0-9_]{0,59}", symbol):
        raise UsageError(f"symbol: got {symbol[:80]!r}, needed small letters, digits and _, a letter first, at most 60")
    plan = _plan(model, chosen)
    from ..compiler import build  # only here is LLVM needed

    data = build.program(plan, _packed(model, plan), f"{symbol}_run")
    files = _files(model, plan, data, path.with_suffix(""), symbol)
    checked, run = _runner(plan, f"{symbol}_run", files)
    difference = _check(model, run, checked) if run else None
    checked += "" if difference is None else f": at most {difference:.2g} from the reference"
    for name, content in files.items():
        write_atomic(Path(name), content)
    sizes = {name: len(content) for name, content in files.items()}
    return ExportedCode(sizes, "native", checked, difference, _MADE_FOR[chosen.name], plan.weights, plan.arena)


def _files(model: Model, plan: Plan, data: bytes, path: Path, symbol: str) -> dict[str, bytes]:
    """Returns the files of LLVM's object file by their paths."""
    function, target = f"{symbol}_run", plan.target
    if target.name == "wasm":
        module = wasm.module(data, function, es_module.layout(plan).size)
        script = es_module.loader(model, plan, f"{path.name}.wasm")
        return {f"{path}.wasm": module, f"{path}.mjs": script.encode()}
    files = {f"{path}.o": data, f"{path}.h": header(model, plan, symbol, _MADE_FOR[target.name]).encode()}
    if can_hold(target.machine):
        image, (offset,) = link.link([(function, data)])
        files[f"{path}.so"] = shared_library(image, offset, function, f"{path.name}.so", target.machine)
    return files


def _target(name: str) -> Target:
    if name not in NAMES:
        raise UsageError(f"target: got {name[:60]!r}, needed one of {', '.join(NAMES)}")
    if name == "host":
        here = [target for target in runnable() if target in _FLOATS.values()]
        return here[0] if here else choose()  # which says what this machine runs
    return DEVICES[name] if name in DEVICES else _FLOATS[name]


def _plan(model: Model, target: Target) -> Plan:
    """Returns the plan of one thread; where memory is scarce the one that needs the least."""
    if target.name != "cortex-m":
        return lower(model.network, target)
    plans = [lower(model.network, target, cache=1 << power) for power in _LITTLE]
    return min(plans, key=lambda plan: plan.arena)


def _packed(model: Model, plan: Plan) -> bytes:
    folded = fold(model.network, model.tensors)
    return pack(plan, folded, model.preprocessing.mean, model.preprocessing.std).tobytes()


# ------------------------------------------------------------------------------------------------------------ check


def _check(model: Model, run: Runner, how: str) -> float:
    """Returns the largest difference of the code's outputs from the reference.

    Raises:
        GateError: it is more than float32's rounding explains.
    """
    pixels = _photo(model)
    expected = reference.forward(model.network, model.tensors, pixels[None], scaling=_scaling(model)).ravel()
    allowed = reference.tolerance(model.network, model.tensors, pixels[None], _EPSILON, scaling=_scaling(model)).ravel()
    allowed += _EPSILON * np.abs(expected)
    difference = np.abs(run(pixels) - expected)
    if not (difference <= allowed).all():
        worst = int(np.nanargmax(difference - allowed))
        raise GateError(
            f"export: the code, {how}, is {difference[worst]:.3g} away from the reference at output {worst}; rounding "
            f"explains {allowed[worst]:.3g}. Nothing was written"
        )
    return float(difference.max())


def _scaling(model: Model) -> reference.Scaling:
    return model.preprocessing.mean, model.preprocessing.std


def _photo(model: Model) -> NDArray[np.uint8]:
    """Returns pixels that have edges, gradients and noise, as photos do."""
    height, width, channels = model.network.input
    rows, columns = np.mgrid[:height, :width]
    waves = 127 + 90 * np.sin((rows + 2 * columns) / 9)[..., None] * (1 + np.arange(channels)) / channels
    noise = np.random.default_rng(0).normal(0, 25, (height, width, channels))
    return np.asarray(np.clip(waves + noise, 0, 255), np.uint8)


def _runner(plan: Plan, function: str, files: dict[str, bytes]) -> tuple[str, Runner | None]:
    """Returns how the exported code can be run on this machine, in words, and what runs it; None if it can't be."""
    if plan.target.name == "wasm":
        if shutil.which("node") is None:
            return "not run: node is not here", None
        return "run in node", lambda pixels: _run_in_node(files, pixels)
    if plan.target in runnable():
        return "run on this machine", lambda pixels: _run_here(plan, function, files, pixels)
    try:
        machine = Emulator(plan.target)
    except MobileNetError as error:
        return f"not run: {error}", None
    (data,) = (content for name, content in files.items() if name.endswith(".o"))
    return "run emulated", lambda pixels: _run_emulated(plan, machine, function, data, pixels)


def _run_here(plan: Plan, function: str, files: dict[str, bytes], pixels: NDArray[np.uint8]) -> Floats:
    """Runs the shared library."""
    output, scratch = np.full(output_floats(plan), np.nan, np.float32), aligned(plan.arena)
    scratch[:] = np.nan
    (data,) = (content for name, content in files.items() if name.endswith(".so"))
    with tempfile.NamedTemporaryFile(suffix=".so") as file:
        file.write(data)
        file.flush()
        library = ctypes.CDLL(file.name)
    run = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 3)((function, library))
    run(pixels.ctypes.data, output.ctypes.data, scratch.ctypes.data)
    return output


def _run_emulated(plan: Plan, machine: Emulator, function: str, data: bytes, pixels: NDArray[np.uint8]) -> Floats:
    """Runs the object file."""
    image, (offset,) = link.link([(function, data)])
    size = 4 * output_floats(plan)
    given, output = machine.map(pixels.tobytes(), "r"), machine.map(b"\xff" * size, "rw")
    scratch = machine.map(b"\xff" * plan.arena, "rw")
    machine.call(machine.map(image, "rx") + offset, given, output, scratch)
    return np.frombuffer(machine.read(output, size), np.float32)


_NODE = """
const [loader, pixels] = process.argv.slice(1);
const { load } = await import(loader);
const { readFileSync } = await import("node:fs");
const network = await load();
const first = network.run(readFileSync(pixels)), again = network.run(readFileSync(pixels));
if (Buffer.compare(Buffer.from(first.buffer), Buffer.from(again.buffer))) throw new Error("the second run differs");
process.stdout.write(Buffer.from(again.buffer));
"""


def _run_in_node(files: dict[str, bytes], pixels: NDArray[np.uint8]) -> Floats:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for path, content in files.items():
            (folder / Path(path).name).write_bytes(content)
        (folder / "pixels").write_bytes(pixels.tobytes())
        (loader,) = folder.glob("*.mjs")
        command = ["node", "--input-type=module", "--eval", _NODE, str(loader), str(folder / "pixels")]
        done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        raise MobileNetError(f"export: node could not run the module: {done.stderr.decode(errors='replace')[-500:]}")
    return np.frombuffer(done.stdout, np.float32)
