"""Keeps compiled code on disk for the next start: private to the user, and checked before any of it is used.

A file is the SHA-256 of the rest, the length of a JSON header, the header (which llvmlite compiled it, where each
function begins, and the facts that belong to it: a network's plans), the code. Its name is a hash of what all that is
made from: the network's layers or the kernels, the target, and the source of this folder and of the layers. It is read
once, into memory, and what was checked is what is run: nothing can be swapped in between. Processes that compile the
same network at a time write the same file, each whole, and the last one stays.
"""

import contextlib
import hashlib
import json
import os
import re
import stat
import struct
import time
from collections.abc import Iterable
from functools import cache
from importlib import util
from pathlib import Path
from typing import Any, NamedTuple

from ..common.files import read_opened, shown, write_atomic
from ..errors import MobileNetError
from .targets import Target

ENVIRONMENT = "MOBILENET_CODE"
LIMIT = 1 << 28  # bytes of all files together; a network compiles to 0.1 to 1 MB
_NAME = re.compile(r"[0-9a-f]{64}")
_TEMPORARY = re.compile(r"\.[0-9a-f]{16}\.tmp")  # as `write_atomic` names them
_ABANDONED = 3600  # seconds after which nobody writes to a temporary file any more
_USED = 86400  # seconds: so exact is the date on which a file was last used


class Image(NamedTuple):
    """Is compiled code.

    Attributes:
        code: the machine's.
        functions: where each begins in it, by name.
        facts: that belong to it, as plain data.
    """

    code: bytes
    functions: dict[str, int]
    facts: Any = None


def folder() -> Path:
    """Returns where compiled code is kept: `MOBILENET_CODE`, or mobilenet/code in the user's cache.

    Raises:
        MobileNetError: the user has no home folder, and neither variable is set.
    """
    if given := os.environ.get(ENVIRONMENT):
        return Path(given)
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "mobilenet" / "code"
    try:
        return Path.home() / ".cache" / "mobilenet" / "code"
    except RuntimeError as error:
        raise MobileNetError(f"there is no home folder to keep compiled code in; set {ENVIRONMENT}") from error


def key(parts: Iterable[str], target: Target) -> str:
    """Returns the name under which code is kept; `parts` are all that it depends on beside target and compiler."""
    facts = [target.name, target.triple, target.cpu, _COMPILER, *parts]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()


def read(name: str, where: Path | None = None) -> Image | None:
    """Returns the code that was kept under a name; None if there is none that can be used.

    None as well: it is not as it was written; the folder or file is another user's or can be written by others; another
    llvmlite than the one installed compiled it.
    """
    try:
        path = (where or folder()) / name
        data = _read_private(path)
        if hashlib.sha256(data[32:]).digest() != data[:32]:
            return None
        (size,) = struct.unpack_from("<Q", data, 32)
        header = json.loads(data[40 : 40 + size])
        if _llvmlite() not in ("", header["llvmlite"]):
            return None
        return Image(data[40 + size :], header["functions"], header["facts"])
    except (OSError, MobileNetError, ValueError, LookupError, TypeError, struct.error):
        return None


def write(name: str, image: Image, where: Path | None = None) -> Path:
    """Keeps code under a name and returns its file; the files that were not used for the longest time make room.

    Raises:
        MobileNetError: names the folder and says why nothing can be kept there.
    """
    where = where or folder()
    facts = {"llvmlite": _llvmlite(), "functions": image.functions, "facts": image.facts}
    header = json.dumps(facts, separators=(",", ":")).encode()
    rest = struct.pack("<Q", len(header)) + header + image.code
    try:
        where.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _private(os.stat(where)):
            raise MobileNetError(f"{shown(where)}: is another user's or can be written by others; set {ENVIRONMENT}")
        write_atomic(where / name, hashlib.sha256(rest).digest() + rest, mode=0o600)
    except OSError as error:
        raise MobileNetError(f"{shown(where)}: can't be made: {error.strerror}; set {ENVIRONMENT}") from error
    with contextlib.suppress(OSError):
        _make_room(where)
    return where / name


def _read_private(path: Path) -> bytes:
    """Returns a file's bytes, of a folder and a file that nobody else can write, looking only at what was opened."""
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(path.name, flags, dir_fd=directory)
        try:
            status = os.fstat(descriptor)
            if not (_private(os.fstat(directory)) and _private(status)):
                raise MobileNetError(f"{shown(path)}: is another user's or can be written by others")
            if time.time() - status.st_mtime > _USED:
                with contextlib.suppress(OSError):  # of a cache that is read-only
                    os.utime(descriptor)
            return read_opened(descriptor, LIMIT, path)
        finally:
            os.close(descriptor)
    finally:
        os.close(directory)


def _private(status: os.stat_result) -> bool:
    """Whether a folder or file is this user's and nobody else can write it."""
    return status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _make_room(where: Path) -> None:
    """Removes the files used longest ago until the rest is within the limit, and what killed processes left behind."""
    files: list[tuple[float, int, str]] = []
    for name in os.listdir(where):
        with contextlib.suppress(FileNotFoundError):  # another process makes room as well
            status = os.lstat(where / name)
            files.append((status.st_mtime, status.st_size, name))
    total = 0
    for used, size, name in sorted(files, reverse=True):
        if _NAME.fullmatch(name):
            total += size
            stale = total > LIMIT
        else:
            stale = bool(_TEMPORARY.fullmatch(name)) and time.time() - used > _ABANDONED
        if stale:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(where / name)


def _source() -> str:
    """Returns a hash of the source of this folder, and of what in it depends on other modules."""
    source = hashlib.sha256()
    own = Path(__file__).parent
    others = ("arch.py", "fixed_point.py", "common/frozen.py", "photos/resampling.py")
    for path in (*(own.parent / name for name in others), *sorted(own.glob("*.py"))):
        source.update(path.read_bytes())
    return source.hexdigest()


_COMPILER = _source()  # now, and not when it is asked for: by then another version may be installed


@cache
def _llvmlite() -> str:
    """Returns which llvmlite is installed, "" if none; `importlib.metadata` would take 15 ms to load."""
    spec = util.find_spec("llvmlite")
    if spec is None or spec.origin is None:
        return ""
    return next((path.name for path in Path(spec.origin).parents[1].glob("llvmlite-*.dist-info")), "unknown")
