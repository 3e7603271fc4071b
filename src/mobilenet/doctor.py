"""What this machine has: processor, memory, packages; for reports of problems and before a long run."""

import os
import platform
import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from .common.parallel import processors
from .errors import MobileNetError

# The instruction sets that the speed of a MobileNet depends on, under the names that Linux gives them.
INSTRUCTION_SETS = (
    "sse4_1", "avx2", "fma", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8",
    "asimd", "asimddp", "bf16", "i8mm", "sve",
)  # fmt: skip
NEEDED = ("llvmlite", "numpy", "pillow", "simplejpeg")
OPTIONAL = ("torch", "safetensors", "tensorboard", "h5py")


def examine() -> dict[str, Any]:
    """Returns facts of this machine: system, processor, memory and disk in bytes, packages with versions."""
    return {
        "mobilenet": _version("mobilenet"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": _cpuinfo("model name") or platform.processor() or platform.machine(),
        "cores": processors(),
        "instruction_sets": _instruction_sets(),
        "memory_bytes": _memory(),
        "disk_free_bytes": shutil.disk_usage(os.getcwd()).free,
        "packages": {name: _version(name) for name in NEEDED + OPTIONAL},
        "gpu": _gpu(),
    }


def describe(facts: dict[str, Any]) -> str:
    """Returns `examine`'s facts as a table, with what is missing and the command that installs it."""
    packages = facts["packages"]
    lines = [
        f"mobilenet     {facts['mobilenet'] or 'not installed (running from source)'}, Python {facts['python']}",
        f"system        {facts['system']}",
        f"processor     {facts['processor']}, {facts['cores']} cores, "
        f"{' '.join(facts['instruction_sets']) or 'instruction sets unknown'}",
        f"memory        {facts['memory_bytes'] / 2**30:.1f} GiB",
        f"free disk     {facts['disk_free_bytes'] / 2**30:.1f} GiB",
        f"GPU           {facts['gpu'] or 'none that torch can use'}",
    ]
    lines += [f"{name:<13} {version or 'missing'}" for name, version in packages.items()]
    lines += [f"-> {advice}" for advice in problems(facts)]
    return "\n".join(lines)


def problems(facts: dict[str, Any]) -> list[str]:
    """Returns what keeps this machine from a part of the work, each with what to do."""
    missing = [name for name in NEEDED if not facts["packages"][name]]
    found = [f"{name} is needed by everything: pip install {name}" for name in missing]
    if not facts["packages"]["torch"]:
        found.append("training needs torch: pip install 'mobilenet[train]'")
    return found


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpuinfo(key: str) -> str | None:
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return None
    lines = (line.partition(":") for line in path.read_text().splitlines())
    return next((value.strip() for name, _, value in lines if name.strip() == key), None)


def _instruction_sets() -> list[str]:
    flags = (_cpuinfo("flags") or _cpuinfo("Features") or "").split()
    return [name for name in INSTRUCTION_SETS if name in flags]


def _memory() -> int:
    if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", {}):
        raise MobileNetError(f"doctor: {sys.platform} does not tell its memory through sysconf; Linux and macOS do")
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _gpu() -> str | None:
    if not _version("torch"):
        return None
    try:
        import torch
    except (ImportError, OSError) as error:
        return f"unknown, torch can't be loaded: {error}"
    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
