"""Keeps compiled code on disk for the next start: private to the user, and checked before any of it is used.

A file is the SHA-256 of the rest, the length of a JSON header, the header (where each function begins), the code. Its
name is a hash of everything the code depends on: the kernels, the target, this package's own source and llvmlite.
"""

import hashlib
import json
import os
import stat
import struct
from collections.abc import Sequence
from functools import cache
from importlib import metadata
from pathlib import Path

from ..common.files import read_regular, write_atomic
from ..errors import DataError, MobileNetError
from .kernel import Kernel
from .targets import Target

ENVIRONMENT = "MOBILENET_CODE"
_LIMIT = 1 << 28  # bytes of a file; the largest network compiles to a hundredth of that

Image = tuple[bytes, dict[str, int]]


def folder() -> Path:
    """Returns where compiled code is kept: `MOBILENET_CODE`, or mobilenet/code in the user's cache."""
    if given := os.environ.get(ENVIRONMENT):
        return Path(given)
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "mobilenet" / "code"


def key(kernels: Sequence[Kernel], target: Target) -> str:
    """Returns the name under which the code of these kernels is kept."""
    facts = [target.name, target.triple, target.cpu, _compiler(), *sorted(map(repr, kernels))]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()


def read(name: str, where: Path | None = None) -> Image | None:
    """Returns the code that was kept under a name; None if there is none, or it is not as it was written, or the folder
    or file is another user's or can be written by others."""  # fmt: skip
    path = (where or folder()) / name
    try:
        if not (_private(path.parent) and _private(path)):
            return None
        data = read_regular(path, _LIMIT, follow_symlinks=False)
    except (OSError, DataError):
        return None
    if hashlib.sha256(data[32:]).digest() != data[:32]:
        return None
    (size,) = struct.unpack_from("<Q", data, 32)
    return data[40 + size :], json.loads(data[40 : 40 + size])


def write(name: str, image: Image, where: Path | None = None) -> bool:
    """Keeps code under a name; returns False where that can't be done: then the next start compiles again."""
    where = where or folder()
    code, functions = image
    header = json.dumps(functions).encode()
    rest = struct.pack("<Q", len(header)) + header + code
    try:
        where.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _private(where):
            return False
        write_atomic(where / name, hashlib.sha256(rest).digest() + rest)
        (where / name).chmod(0o600)
    except (OSError, MobileNetError):
        return False
    return True


def _private(path: Path) -> bool:
    """Whether a folder or file is this user's and nobody else can write it."""
    status = path.lstat()
    return status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


@cache
def _compiler() -> str:
    """Returns what stands for the compiler: a hash of this folder's source, and llvmlite's version if it is here."""
    source = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        source.update(path.read_bytes())
    try:
        return f"{source.hexdigest()} {metadata.version('llvmlite')}"
    except metadata.PackageNotFoundError:
        return source.hexdigest()
