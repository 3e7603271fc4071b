"""Arrays on disk whose rows are filled in chunks, by threads, and kept through a kill or a power cut at any moment.

A folder holds one store:

    key.json     what it was made from: any difference, and it is made anew
    NAME         each array, rows one after another, its full length from the start
    done.log     a line a finished chunk: CRC-32 of key and line, then JSON with the chunk's CRC-32 and remarks on rows
    lock         held while a process fills it; a second one waits

A line is added to `done.log` only after the chunk's rows were flushed to the disk. So a chunk either counts with all
its rows or is made again.
"""

import contextlib
import fcntl
import json
import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..common.files import read_regular, shown, write_atomic
from ..errors import DataError, MobileNetError

_FLUSH_SECONDS = 2.0
"""What a kill can cost; a flush takes 5 to 50 ms."""
_LOG_LIMIT = 1 << 30


class Chunk(NamedTuple):
    """Is a finished chunk: its number, the CRC-32 of its rows, and (row, remark) of some of them."""

    number: int
    crc: int
    remarks: list[tuple[int, str]]


class RowStore:
    """Is a folder with arrays of `rows` rows; `arrays` gives the bytes of one row of each file.

    Its methods raise OSError where the disk does; `lock` has to be held around all of them.
    """

    def __init__(
        self, folder: Path, key: Mapping[str, object], rows: int, chunk: int, arrays: Mapping[str, int]
    ) -> None:
        self.folder, self.rows, self.chunk, self.arrays = folder, rows, chunk, arrays
        self.key = json.dumps({**key, "rows": rows, "chunk": chunk, "arrays": arrays}).encode()
        self.chunks = range(-(-rows // chunk))
        self.bytes = rows * sum(arrays.values())
        self._open: list[int] = []

    def rows_of(self, number: int) -> range:
        """Returns the rows of a chunk."""
        return range(self.rows)[number * self.chunk : (number + 1) * self.chunk]

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Makes the folder and waits until no other process works in it; the lock of a process that dies is freed."""
        os.makedirs(self.folder, exist_ok=True)
        file = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
        finally:
            os.close(file)

    # What is there

    def resume(self) -> dict[int, Chunk]:
        """Returns the chunks that count, by number; starts anew where the folder holds another store, or none.

        Raises `MobileNetError` that names the folder and the bytes needed and free when the disk is too full.
        """
        if not self._is_here():
            self._start()
            return {}
        lines = read_regular(self.folder / "done.log", _LOG_LIMIT).splitlines(keepends=True)
        done = {chunk.number: chunk for line in lines if (chunk := self._parse(line))}
        if len(done) < len(self.chunks):
            # Making rows takes 20 times as long as reading again those from before the interruption.
            done = {number: chunk for number, chunk in done.items() if self._is_whole(chunk)}
            write_atomic(self.folder / "done.log", b"".join(self._line(chunk) for chunk in done.values()))
        return done

    def _is_here(self) -> bool:
        try:
            return (
                read_regular(self.folder / "key.json", len(self.key), follow_symlinks=False) == self.key
                and all(os.lstat(self.folder / name).st_size == self.rows * size for name, size in self.arrays.items())
                and os.path.isfile(self.folder / "done.log")
            )
        except (DataError, OSError):
            return False

    def _start(self) -> None:
        """Makes the files; the key goes first and comes last, so a folder that has it has all of them."""
        for name in ("key.json", "done.log", *self.arrays):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.folder / name)  # not truncated: a process that still maps the old rows keeps them
        free = shutil.disk_usage(self.folder).free
        if self.bytes > free:
            raise MobileNetError(
                f"{shown(self.folder)}: {self.rows:,} photos need {self.bytes:,} bytes, {free:,} are free there; "
                "make room, or choose another folder or a lower resolution"
            )
        # Reserved at once: a sparse file would let the disk fill up half-way.
        reserve = getattr(os, "posix_fallocate", lambda file, _start, size: os.ftruncate(file, size))
        for name, size in self.arrays.items():
            with open(self.folder / name, "xb") as file:
                reserve(file.fileno(), 0, self.rows * size)
        write_atomic(self.folder / "done.log", b"")
        write_atomic(self.folder / "key.json", self.key)

    def _line(self, chunk: Chunk) -> bytes:
        text = json.dumps(chunk).encode()
        return b"%08x %s\n" % (zlib.crc32(text, zlib.crc32(self.key)), text)

    def _parse(self, line: bytes) -> Chunk | None:
        """Returns the chunk of a whole line of this very store; None for a torn or foreign one."""
        text = line[9:-1]
        if line != b"%08x %s\n" % (zlib.crc32(text, zlib.crc32(self.key)), text):
            return None
        number, crc, remarks = json.loads(text)
        return Chunk(number, crc, [(row, remark) for row, remark in remarks])

    def _is_whole(self, chunk: Chunk) -> bool:
        rows = self.rows_of(chunk.number)
        crc = 0
        for name, size in self.arrays.items():
            with open(self.folder / name, "rb") as file:
                file.seek(rows.start * size)
                crc = zlib.crc32(file.read(len(rows) * size), crc)
        return crc == chunk.crc

    # What is missing

    def write(self, number: int, values: Sequence[NDArray[np.generic]], remarks: list[tuple[int, str]]) -> Chunk:
        """Writes a chunk's rows of each array, in the arrays' order; any thread may, inside of `filling`."""
        start, crc = self.rows_of(number).start, 0
        for file, size, array in zip(self._open, self.arrays.values(), values, strict=True):
            data = array.data.cast("B")
            crc = zlib.crc32(data, crc)
            offset = start * size
            while data:
                written = os.pwrite(file, data, offset)
                data, offset = data[written:], offset + written
        return Chunk(number, crc, remarks)

    @contextlib.contextmanager
    def filling(self) -> Iterator[Callable[[Chunk], None]]:
        """Gives a function that notes a written chunk; notes reach the disk after the rows they speak of."""
        waiting: list[Chunk] = []
        last = time.monotonic()
        with contextlib.ExitStack() as files:
            opened = [files.enter_context(open(self.folder / name, "r+b")) for name in self.arrays]
            self._open = [file.fileno() for file in opened]
            log = files.enter_context(open(self.folder / "done.log", "ab"))

            def flush() -> None:
                for file in self._open:
                    os.fsync(file)
                log.writelines(self._line(chunk) for chunk in waiting)
                log.flush()
                os.fsync(log.fileno())
                waiting.clear()

            def note(chunk: Chunk) -> None:
                nonlocal last
                waiting.append(chunk)
                if time.monotonic() - last > _FLUSH_SECONDS:
                    flush()
                    last = time.monotonic()

            try:
                yield note
            finally:
                flush()
