"""Exported code linked into C programs, which run here or under QEMU, for tests."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

PROGRAMS = Path(__file__).parent / "programs"
ZIG = importlib.util.find_spec("ziglang") is not None
needs_zig = pytest.mark.skipif(not ZIG, reason="needs ziglang, a C compiler and linker for every processor")
LINUX = {
    "sse": ("x86_64-linux-none", None),
    "aarch64": ("aarch64-linux-none", "qemu-aarch64"),
    "android-aarch64": ("aarch64-linux-none", "qemu-aarch64"),
    "armv7": ("arm-linux-none", "qemu-arm"),
    "riscv64": ("riscv64-linux-none", "qemu-riscv64"),
}
BOARDS = {"mps2-an386": "cortex_m4", "mps2-an500": "cortex_m7"}


def zig(*arguments: str | Path) -> None:
    command = [sys.executable, "-m", "ziglang", "cc", "-Wall", "-Wextra", "-Werror", "-O1", "-s", "-nostdlib"]
    done = subprocess.run([*command, "-ffreestanding", *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def run_on_linux(target: str, folder: Path, program: Path, pixels: np.ndarray) -> np.ndarray:
    """Links the folder's "model" for a key of `LINUX` into `program` and returns its outputs for pixels."""
    triple, emulator = LINUX[target]
    command = [found for name in (emulator, f"{emulator}-static") if name and (found := shutil.which(name))][:1]
    if emulator and not command:
        pytest.skip(f"needs {emulator}")
    zig("-target", triple, "-static", f"-I{folder}", PROGRAMS / "run.c", folder / "model.o", "-o", program)
    given = weights_of(folder) + pixels.tobytes()
    done = subprocess.run([*command, str(program)], input=given, capture_output=True, check=True)
    return np.frombuffer(done.stdout, np.float32)


def run_on_board(board: str, folder: Path, work: Path, pixels: np.ndarray) -> np.ndarray:
    """Links the folder's "model" for a key of `BOARDS` and returns its outputs for pixels."""
    if not shutil.which("qemu-system-arm"):
        pytest.skip("needs qemu-system-arm")
    program, script = work / "run", PROGRAMS / "cortex_m.ld"
    sources = PROGRAMS / "cortex_m.c", folder / "model.o"
    machine = "-target", "thumb-freestanding-eabihf", f"-mcpu={BOARDS[board]}"
    zig(*machine, f"-I{folder}", *sources, "-T", script, "-o", program)
    (work / "pixels").write_bytes(pixels.tobytes())
    (work / "weights").write_bytes(weights_of(folder))
    command = ["qemu-system-arm", "-M", board, "-display", "none", "-monitor", "none", "-serial", "none"]
    subprocess.run([*command, "-semihosting", "-kernel", str(program)], cwd=work, check=True)
    return np.fromfile(work / "output", np.float32)


def weights_of(folder: Path) -> bytes:
    """Returns the weights that lie beside the code, nothing if they are inside."""
    path = folder / "model.weights"
    return path.read_bytes() if path.exists() else b""
