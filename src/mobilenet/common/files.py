"""Files as wholes: written completely or not at all, and read only when they are regular files of a bounded size."""

import contextlib
import os
import stat
from pathlib import Path

from ..errors import DataError, MobileNetError

_SHOWN_CHARACTERS = 200
"""A longer name is shortened in the middle, so that a hostile name can't fill the terminal."""


def shown(path: Path | str) -> str:
    """Returns a path as printable text: bytes that are not UTF-8 and control characters escaped, long names cut."""
    text = "".join(_printable(character) for character in str(path))
    if len(text) <= _SHOWN_CHARACTERS:
        return text
    half = _SHOWN_CHARACTERS // 2
    return f"{text[:half]}…{text[-half:]}"


def _printable(character: str) -> str:
    if character.isprintable():
        return character
    if "\udc80" <= character <= "\udcff":  # a byte of a file's name that is not UTF-8 (PEP 383)
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")


def check_target(path: Path) -> None:
    """Raises the `MobileNetError` that `write_atomic` would: for before the work whose result is written."""
    folder = path.parent
    if not os.path.isdir(folder):
        raise MobileNetError(f"{shown(path)}: can't be written: the folder {shown(folder)} is missing; make it")
    if not os.access(folder, os.W_OK):
        raise MobileNetError(f"{shown(path)}: can't be written: nothing may be written into {shown(folder)}")
    _refuse_special(path)


def _refuse_special(path: Path) -> None:
    with contextlib.suppress(OSError, ValueError):  # there is none yet, or a link to none
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):
            kind = _kind(mode)
            raise MobileNetError(f"{shown(path)}: can't be written: is {kind}, needed is the name of a file")


def write_atomic(path: Path, data: bytes | bytearray | memoryview, mode: int = 0o666) -> None:
    """Writes a file whole or not at all: after any failure or power cut the path holds all of the old or of the new.

    The data goes to a temporary file in the same folder, is flushed to the disk, takes the path's name, and the folder
    is flushed too. The file's mode is `mode` less the process's umask. Raises `MobileNetError` that names the path and
    the system's reason, or what it is that is no file, as a device; the temporary file is removed.
    """
    path = Path(path)
    _refuse_special(path)
    temporary = path.parent / f".{os.urandom(8).hex()}.tmp"
    try:
        try:
            _write_through(temporary, data, mode)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError, ValueError):
                os.unlink(temporary)
            raise
        _flush_folder(path.parent)
    except (OSError, ValueError) as error:
        raise MobileNetError(f"{shown(path)}: can't be written: {_reason(error)}") from error


def _write_through(path: Path, data: bytes | bytearray | memoryview, mode: int) -> None:
    # O_EXCL: nothing that already has this name, not even a link, is written to.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with open(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(descriptor)


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_regular(path: Path, limit: int, follow_symlinks: bool = True) -> bytes:
    """Returns the bytes of a regular file of at most `limit` bytes; never waits on a FIFO and never reads a device.

    With `follow_symlinks` false, a symbolic link in place of the file is refused. Raises `DataError` that names the
    path when it is missing, not a regular file, unreadable, larger than `limit`, or changed in size while it was read.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC | (0 if follow_symlinks else os.O_NOFOLLOW)
    try:
        # Without O_NONBLOCK the open of a FIFO waits for a writer.
        descriptor = os.open(path, flags)
        try:
            return read_opened(descriptor, limit, path)
        finally:
            os.close(descriptor)
    except DataError:
        raise
    except (OSError, ValueError) as error:
        raise DataError(f"{shown(path)}: can't be read: {_reason(error)}") from error


def read_opened(descriptor: int, limit: int, path: Path) -> bytes:
    """Returns the bytes of an opened file by the rules of `read_regular`; `path` is for its errors.

    Looks at what was opened, not at the path once more: nothing can be swapped in between.
    """
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{shown(path)}: is {_kind(status.st_mode)}, a regular file is needed")
    if status.st_size > limit:
        raise DataError(f"{shown(path)}: has {status.st_size:,} bytes, at most {limit:,} are allowed")
    data = _read_up_to(descriptor, status.st_size + 1)
    if len(data) != status.st_size:
        raise DataError(f"{shown(path)}: changed while it was read ({status.st_size:,} bytes at first)")
    return data


def _read_up_to(descriptor: int, count: int) -> bytes:
    """Reads until the end of the file or `count` bytes; one system call may give less (2 GiB at most on Linux)."""
    parts: list[bytes] = []
    while count > 0 and (part := os.read(descriptor, count)):
        parts.append(part)
        count -= len(part)
    return b"".join(parts) if len(parts) != 1 else parts[0]


_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def _kind(mode: int) -> str:
    return _KINDS.get(stat.S_IFMT(mode), "not a file")


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
