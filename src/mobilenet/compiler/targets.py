"""Instruction sets that code is made for: what LLVM must know of each, and which of them run here.

`TARGETS` are those that the compiled engine runs on, `DEVICES` those that code is exported for only.

Standard library only, so that code that has been compiled before is found and run without LLVM.
"""

import ctypes
import os
import platform
from functools import cache
from pathlib import Path

from ..common.frozen import frozen
from ..errors import UsageError

ENVIRONMENT = "MOBILENET_TARGET"


@frozen
class Target:
    """Is an instruction set as the compiler sees it.

    Attributes:
        name: "amx", "avx512bf16", "avx512vnni", "avx512", "avxvnni", "avx2", "sse", "neoni8mm", "neondot", "neon", or a
            device's.
        machine: what `platform.machine()` says where it runs.
        triple: of LLVM.
        cpu: of LLVM, the least processor that has the instruction set: a level of the x86-64 psABI.
        flags: of /proc/cpuinfo that must all be there.
        lanes: floats in a vector.
        registers: vectors that a kernel can hold at a time.
        features: of LLVM, beyond those of `cpu`.
        words: instructions that not every machine has: "vnni", "usdot" (sums of 4 products of bytes and signed bytes),
            "sdot" (of signed bytes alone), "bf16" (sums of 2 products of bfloat16), "tiles" (products of whole
            matrices, AMX).
        abi: of LLVM, where there are several.
        bits: of an address.
        compact: whether the weights of whole numbers are bytes that are widened when they are read, where the machine
            can't sum products of 4 bytes; else they have 16 bits.
    """

    name: str
    machine: str
    triple: str
    cpu: str
    flags: frozenset[str]
    lanes: int
    registers: int
    features: str = ""
    words: frozenset[str] = frozenset()
    abi: str = ""
    bits: int = 64
    compact: bool = False


_V2 = frozenset({"sse4_1", "sse4_2", "ssse3", "popcnt", "cx16"})
_V3 = _V2 | {"avx", "avx2", "fma", "f16c", "bmi1", "bmi2", "movbe", "abm"}
_V4 = _V3 | {"avx512f", "avx512dq", "avx512bw", "avx512vl", "avx512cd"}
_VNNI = _V4 | {"avx512_vnni"}
_BF16 = _VNNI | {"avx512_bf16"}
_LINUX = "x86_64-unknown-linux-gnu"
_512 = "+avx512vnni,+avx512bf16"
_DOT = frozenset({"asimd", "asimddp"})
_ARM = "aarch64-unknown-linux-gnu"

# Best first: the first that runs is taken.
TARGETS = {
    target.name: target
    for target in (
        Target(
            "amx",
            "x86_64",
            _LINUX,
            "x86-64-v4",
            _BF16 | {"amx_tile", "amx_int8", "amx_bf16"},
            16,
            32,
            f"{_512},+amx-tile,+amx-int8,+amx-bf16",
            frozenset({"vnni", "bf16", "tiles"}),
        ),
        Target("avx512bf16", "x86_64", _LINUX, "x86-64-v4", _BF16, 16, 32, _512, frozenset({"vnni", "bf16"})),
        Target("avx512vnni", "x86_64", _LINUX, "x86-64-v4", _VNNI, 16, 32, "+avx512vnni", frozenset({"vnni"})),
        Target("avx512", "x86_64", _LINUX, "x86-64-v4", _V4, 16, 32),
        Target("avxvnni", "x86_64", _LINUX, "x86-64-v3", _V3 | {"avx_vnni"}, 8, 16, "+avxvnni", frozenset({"vnni"})),
        Target("avx2", "x86_64", _LINUX, "x86-64-v3", frozenset(_V3), 8, 16),
        Target("sse", "x86_64", _LINUX, "x86-64", frozenset(), 4, 16),
        Target("neoni8mm", "aarch64", _ARM, "generic", _DOT | {"i8mm"}, 4, 32, "+dotprod,+i8mm", frozenset({"usdot"})),
        Target("neondot", "aarch64", _ARM, "generic", _DOT, 4, 32, "+dotprod", frozenset({"sdot"})),
        Target("neon", "aarch64", _ARM, "generic", frozenset({"asimd"}), 4, 32),
    )
}

# ARMv7: NEON without fused multiply-add, the baseline of Android and of most such boards. Cortex-M: code for the M4F
# runs on M7, M33, M55 and M85 too, where they have a floating-point unit. RISC-V: RV64GC, which has no vectors. Of the
# 16, 32 and 32 registers fewer are used: tiles that fill them leave LLVM too few for addresses. Bytes of code executed
# for a multiply-add of V1 0.25 at 96, all registers and these: ARMv7 5.4, 4.3; Cortex-M 13.0, 12.2; RISC-V 10.2, 7.7.
DEVICES = {
    target.name: target
    for target in (
        Target("android-aarch64", "aarch64", "aarch64-unknown-linux-android21", "generic", frozenset(), 4, 32),
        Target("armv7", "armv7l", "armv7-unknown-linux-gnueabihf", "generic", frozenset(), 4, 13, "+neon", bits=32),
        Target("cortex-m", "armv7e-m", "thumbv7em-unknown-none-eabihf", "cortex-m4", frozenset(), 1, 20, bits=32),
        Target("riscv64", "riscv64", "riscv64-unknown-linux-gnu", "generic-rv64", frozenset(), 1, 18,
               "+m,+a,+f,+d,+c", abi="lp64d"),
        Target("wasm", "wasm32", "wasm32-unknown-unknown", "generic", frozenset(), 4, 16, "+simd128", bits=32),
    )
}  # fmt: skip


def runnable() -> tuple[Target, ...]:
    """Returns the targets that this machine can run, best first; empty on a machine that none is made for."""
    if platform.system() != "Linux":
        return ()
    found = (t for t in TARGETS.values() if t.machine == platform.machine() and t.flags <= _flags())
    return tuple(t for t in found if "tiles" not in t.words or _tiles_allowed())


def choose(name: str | None = None) -> Target:
    """Returns the target `name`; None for the environment variable `MOBILENET_TARGET`, or else this machine's best.

    Raises:
        UsageError: the name is unknown, or this machine can't run it; says which ones it can.
    """
    asked, what = (name, "target") if name is not None else (os.environ.get(ENVIRONMENT), ENVIRONMENT)
    here = runnable()
    if not asked:
        if not here:
            raise UsageError(f"target: nothing is compiled for {platform.system()} on {platform.machine()} yet")
        return here[0]
    can = f"this machine runs {', '.join(t.name for t in here) or 'none of them'}"
    if asked not in TARGETS:
        if name is None and asked == "numpy":  # is for `runner`
            raise UsageError(f"{what}: got 'numpy', with which nothing is compiled; unset it, or name a target")
        numpy = ", or numpy" if name is None else ""
        raise UsageError(f"{what}: got {asked[:60]!r}, needed one of {', '.join(TARGETS)}{numpy}; {can}")
    if TARGETS[asked] not in here:
        raise UsageError(f"{what}: {asked} does not run here; {can}")
    return TARGETS[asked]


@cache
def _flags() -> frozenset[str]:
    """Returns the processor's features that the kernel lets programs use."""
    for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


@cache
def _tiles_allowed() -> bool:
    """Asks Linux for the use of tile registers, which a process must do once; returns whether it may."""
    return bool(ctypes.CDLL(None).syscall(158, 0x1023, 18) == 0)  # arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)
