"""A model as machine code: an object file, a shared library and a C header, or a WebAssembly module and its loader.

The object has one function, `mobilenet_run(input, output, scratch)`, all kernels and the weights, or takes the weights'
address too. It refers to nothing outside, so that any linker takes it into any program, with or without an operating
system or a C library. The code is run, here or emulated, and compared with the reference before anything is written.
"""

import re
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import integer, reference
from ..common.checks import choice
from ..common.files import check_target, write_atomic
from ..common.text import bytes_text
from ..compiler import link
from ..compiler.lower import lower
from ..compiler.native import integers, last_scale
from ..compiler.pack import pack
from ..compiler.plan import Plan
from ..compiler.targets import DEVICES, TARGETS, Target, choose, runnable
from ..errors import GateError, UsageError
from ..model import Model
from ..weights import fold
from . import Exported, es_module, wasm
from .c_header import header
from .checked import through_softmax
from .native_run import Code, Floats, Photos, Runner, runner
from .shared_library import can_hold, shared_library

# Tile registers are only for programs that have asked Linux for them, and what rounds floats to bfloat16 is not needed.
_ENGINES = {
    "aarch64" if name == "neon" else name: target
    for name, target in TARGETS.items()
    if not target.words & {"bf16", "tiles"}
}
NAMES = ("host", *DEVICES, *_ENGINES)
"""What `export` takes as its target."""
WEIGHTS = ("inside", "beside")

_MADE_FOR = {
    "avx512vnni": "x86-64 Linux with AVX-512 VNNI",
    "avxvnni": "x86-64 Linux with AVX-VNNI",
    "avx512": "x86-64 Linux with AVX-512 (x86-64-v4)",
    "avx2": "x86-64 Linux with AVX2 and FMA (x86-64-v3)",
    "sse": "any x86-64 Linux",
    "neoni8mm": "AArch64 Linux with i8mm (ARMv8.6)",
    "neondot": "AArch64 Linux with dotprod (ARMv8.2)",
    "neon": "AArch64 Linux",
    "android-aarch64": "AArch64 Android",
    "armv7": "ARMv7-A Linux with NEON, hard float",
    "cortex-m": "Cortex-M4F and M7, or later ones with a floating-point unit, hard float",
    "riscv64": "RISC-V Linux, RV64GC",
    "wasm": "WebAssembly with 128-bit SIMD",
}
_EPSILON = float(np.finfo(np.float32).eps)
_LITTLE = range(10, 20)  # powers of two, of the bytes that a fused block may keep, that are tried for the least memory
# What a kernel can hold at a time of whole numbers, where that is not what `Target.registers` says of floats. Bytes of
# code executed for a multiply-add of V1 0.25 at 64: Cortex-M with 7, 9, 12, 14 of them 8.7, 8.9, 8.1, 8.4; RISC-V with
# 9, 12, 15, 18 of them 16.4, 14.2, 14.7, 15.3.
_WHOLE_REGISTERS = {"cortex-m": 12, "riscv64": 12}


@dataclass(frozen=True)
class ExportedCode(Exported):
    """Is what was written.

    Attributes:
        target: what it is for, in words.
        weights, scratch: bytes; the weights are in the object or module, or in a file beside it.
    """

    target: str
    weights: int
    scratch: int

    def __str__(self) -> str:
        return f"{super().__str__()}\nfor {self.target}; scratch memory {bytes_text(self.scratch)}"


def export(
    model: Model,
    path: Path,
    *,
    target: str | None = None,
    symbol: str = "mobilenet",
    weights: str = "inside",
    softmax: bool = False,
    check: bool = True,
) -> ExportedCode:
    """Writes a model as machine code: PATH.o, PATH.h and, for Linux of 64 bits and Android, PATH.so; or PATH.wasm and
    PATH.mjs.

    Args:
        path: without an ending; one that it has is dropped.
        target: one of `NAMES`; None for "wasm" if the path ends so, or else "host".
        symbol: with which the C names begin: `mobilenet` for mobilenet_run.
        weights: "inside" the code, or "beside" it as PATH.weights, whose place in memory the function is told.
        softmax: whether the outputs are probabilities, not logits.
        check: whether to run it before it is written.

    Raises:
        UsageError: names the target, symbol or place of the weights and the rule; or there is no classifier to have a
            softmax.
        GateError: the code was run and its outputs differ from the reference; nothing was written.
        MobileNetError: llvmlite is missing, or a file can't be written.
    """  # fmt: skip
    choice("weights", weights, WEIGHTS)
    chosen = _target(target or ("wasm" if path.suffix == ".wasm" else "host"), model.precision)
    if not re.fullmatch("[a-z][a-z0-9_]{0,59}", symbol):
        raise UsageError(f"symbol: got {symbol[:80]!r}, needed small letters, digits and _, a letter first, at most 60")
    plan, beside = _plan(model, chosen, softmax), weights == "beside"
    packed = _packed(model, plan)
    from ..compiler import build  # only here is LLVM needed

    data = build.program(plan, None if beside else packed, f"{symbol}_run", last_scale(model))
    files = _files(model, plan, data, path.with_suffix(""), symbol, beside)
    files |= {f"{path.with_suffix('')}.weights": packed} if beside else {}
    for name in files:
        check_target(Path(name))
    checked, run = "not checked: it was not run", None
    if check:
        checked, run = runner(Code(chosen, plan, f"{symbol}_run", files, packed if beside else None))
    difference = _check(model, run, checked, plan.probabilities) if run else None
    if difference is not None:
        found = f"at most {difference:.2g} from the reference" if difference else "bit by bit the reference's outputs"
        checked += f": {found}"
    for name, content in files.items():
        write_atomic(Path(name), content)
    sizes = {name: len(content) for name, content in files.items()}
    return ExportedCode(sizes, "native", checked, difference, _made_for(chosen), plan.weights, plan.arena)


def _files(model: Model, plan: Plan, data: bytes, path: Path, symbol: str, beside: bool) -> dict[str, bytes]:
    """Returns the files of LLVM's object file by their paths, but that of the weights."""
    function, target = f"{symbol}_run", plan.target
    if target.name == "wasm":
        module = wasm.module(data, function, es_module.layout(plan).size)
        script = es_module.loader(model, plan, f"{path.name}.wasm", f"{path.name}.weights" if beside else None)
        return {f"{path}.wasm": module, f"{path}.mjs": script.encode()}
    files = {f"{path}.o": data, f"{path}.h": header(model, plan, symbol, _made_for(target), beside).encode()}
    if can_hold(target.machine):
        image, (offset,) = link.link([(function, data)])
        files[f"{path}.so"] = shared_library(image, offset, function, f"{path.name}.so", target.machine)
    return files


def _target(name: str, precision: str) -> Target:
    if name not in NAMES:
        raise UsageError(f"target: got {name[:60]!r}, needed one of {', '.join(NAMES)}")
    if name == "host":
        # Floats gain nothing from instructions for bytes, and run on more machines without.
        here = [target for target in runnable() if target in _ENGINES.values()]
        here = [target for target in here if precision == "int8" or not target.words]
        return here[0] if here else choose()  # which says what this machine runs
    return DEVICES[name] if name in DEVICES else _ENGINES[name]


def _made_for(target: Target) -> str:
    return _MADE_FOR.get(target.name) or f"{target.machine} Linux with {target.name}"


def _plan(model: Model, target: Target, softmax: bool = False) -> Plan:
    """Returns the plan of one thread; where memory is scarce the one that needs the least."""
    facts = None
    little = target.name == "cortex-m"
    if model.precision == "int8":
        registers = _WHOLE_REGISTERS.get(target.name, target.registers)
        target = replace(target, compact=not target.words, registers=registers)
        facts = integers(model.network, model.tensors)
    caches = [1 << power for power in _LITTLE] if little else [None]
    fixed = partial(lower, model.network, target, precision=model.precision, integers=facts, softmax=softmax)
    return min((fixed(cache=size) for size in caches), key=lambda plan: plan.arena)


def _packed(model: Model, plan: Plan) -> bytes:
    tensors = model.tensors if model.precision == "int8" else fold(model.network, model.tensors)
    return pack(plan, tensors, model.preprocessing.mean, model.preprocessing.std).tobytes()


# ------------------------------------------------------------------------------------------------------------ check


def _check(model: Model, run: Runner, how: str, softmax: bool = False) -> float:
    """Returns the largest difference of the code's outputs from the reference.

    Raises:
        GateError: it is more than float32's rounding explains; with int8's logits, there is one.
    """
    expected: NDArray[Any]
    allowed: NDArray[Any]
    photos = _photos(model)
    if model.precision == "int8":
        expected = integer.forward(model.network, model.tensors, photos)
        if not softmax:
            return _check_bits(expected.reshape(len(photos), -1), run(photos), how)
        allowed = np.zeros(expected.shape)  # of the logits
    else:
        photos = photos[:1]
        expected = reference.forward(model.network, model.tensors, photos, scaling=_scaling(model))
        allowed = reference.tolerance(model.network, model.tensors, photos, _EPSILON, scaling=_scaling(model))
        allowed += _EPSILON * np.abs(expected)
    if softmax:
        expected, allowed = through_softmax(expected, allowed)
    found = run(photos)
    expected, allowed = expected.reshape(found.shape), allowed.reshape(found.shape)
    difference = np.abs(found - expected)
    if not (difference <= allowed).all():
        photo, output = np.unravel_index(np.argmax(difference - allowed), difference.shape)  # NaN is the largest
        raise GateError(
            f"export: the code, {how}, is {difference[photo, output]:.3g} away from the reference at output {output} "
            f"of test image {photo}; rounding explains {allowed[photo, output]:.3g}. Nothing was written"
        )
    return float(difference.max())


def _check_bits(expected: Floats, found: Floats, how: str) -> float:
    if (wrong := np.argwhere(found != expected)).size:
        photo, output = wrong[0]
        raise GateError(
            f"export: the code, {how}, gives {found[photo, output]:.9g} at output {output} of test image {photo}, the "
            f"reference {expected[photo, output]:.9g}; of int8 models every bit must be the same. Nothing was written"
        )
    return 0.0


def _scaling(model: Model) -> reference.Scaling:
    return model.preprocessing.mean, model.preprocessing.std


def _photos(model: Model) -> Photos:
    """Returns four images: waves with noise, as photos have edges and both; noise; smooth colours; and blocks of the
    least and the largest value."""  # fmt: skip
    height, width, channels = model.network.input
    rows, columns = np.mgrid[:height, :width]
    generator = np.random.default_rng(0)
    waves = 127 + 90 * np.sin((rows + 2 * columns) / 9)[..., None] * (1 + np.arange(channels)) / channels
    photo = waves + generator.normal(0, 25, (height, width, channels))
    noise = generator.integers(-40, 296, (height, width, channels))
    across, down = columns[..., None] / width, rows[..., None] / height
    turn = np.arange(channels) / channels
    smooth = 255 * (across * (1 - turn) + (1 - down) * turn)
    blocks = 255 * generator.integers(0, 2, (-(-height // 8), -(-width // 8), channels)).repeat(8, 0).repeat(8, 1)
    images = photo, noise, smooth, blocks[:height, :width]
    return np.asarray(np.clip(images, 0, 255), np.uint8)
