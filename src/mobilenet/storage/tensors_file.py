"""The safetensors format, of four types: written as the library writes it, read strictly and within a known memory.

The file: 8 bytes little-endian length of the header; the header, JSON of name -> dtype, shape and [begin, end] in the
data; the data. A reader here accepts any order of the tensors, but no hole, no overlap and no byte left over, and it
knows all of that, and what the caller thinks of the names and shapes, before it reads a byte of the data. Nothing is
mapped: a file that is cut while it is read gives an error, never a signal.
"""

import hashlib
import io
import json
import math
import os
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..common import strict_json
from ..common.checks import short
from ..common.files import shown
from ..errors import ModelError

Tensors = dict[str, NDArray[np.float32]]
Shapes = dict[str, tuple[int, ...]]
Types = Mapping[str, str]
"""Names of tensors -> "float32", "int8", "uint8" or "int32"."""

_LENGTH_BYTES = 8
_MAX_RANK = 8
_MAX_SIDE = 1 << 48
_CHUNK = 1 << 20  # bytes read, then hashed
_CODES = {"float32": "F32", "int8": "I8", "uint8": "U8", "int32": "I32"}
_BFLOAT16 = np.dtype("<u2")
# What other programs' files hold: floats, which become float32, and counters, which nobody reads.
_FOREIGN = ("F32", "F16", "BF16", "F64", "I64")
_TYPES = {code: np.dtype(name).newbyteorder("<") for name, code in _CODES.items()} | {
    "F16": np.dtype("<f2"),
    "BF16": _BFLOAT16,
    "F64": np.dtype("<f8"),
    "I64": np.dtype("<i8"),
}


class _Entry(NamedTuple):
    code: str
    shape: tuple[int, ...]
    begin: int
    end: int


def encode(
    tensors: Mapping[str, NDArray[Any]],
    metadata: Mapping[str, str] | None = None,
    counters: Iterable[str] = (),
) -> bytes:
    """Returns the file that holds tensors of the four types, data aligned to 8 bytes as the library aligns it.

    They come in the order given, those of one byte an item last, so that all items are aligned to their own size.

    Args:
        tensors: by name.
        metadata: None for none.
        counters: names of whole numbers of 8 bytes, all 0, that come before the tensors.
    """
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    ordered = sorted(tensors.items(), key=lambda item: -item[1].itemsize)
    parts = [np.asarray(tensor, _TYPES[_CODES[tensor.dtype.name]], order="C") for _, tensor in ordered]
    offset = 0
    for name in counters:
        header[name] = {"dtype": "I64", "shape": [], "data_offsets": [offset, offset + 8]}
        offset += 8
    zeros = bytes(offset)
    for (name, tensor), part in zip(ordered, parts, strict=True):
        code = _CODES[tensor.dtype.name]
        header[name] = {"dtype": code, "shape": part.shape, "data_offsets": [offset, offset + part.nbytes]}
        offset += part.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(_LENGTH_BYTES, "little"), text, zeros, *(part.data for part in parts)])


def read(
    path: Path,
    choose: Callable[[Shapes], Iterable[str]],
    sha256: str | None = None,
    *,
    follow_symlinks: bool = False,
    types: Types | None = None,
    foreign: bool = False,
) -> dict[str, NDArray[Any]]:
    """Reads tensors of a file.

    Args:
        path: of a regular file.
        choose: gets the shape of every tensor of the file, in the order of the data, before any data is read; returns
            the names to read, or raises.
        sha256: of the whole file, in hexadecimal, checked if given; then `choose` must return all names.
        follow_symlinks: False refuses a symbolic link in place of the file.
        types: that the tensors must have, by name; None for float32 alone.
        foreign: takes floats of other widths as well, and turns them into float32; integers may be in the file.

    Raises:
        ModelError: names the file and the tensor, says what is wrong.
        FileNotFoundError: there is no such file.
    """
    with _open(path, follow_symlinks) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            head, entries = _read_header(file, size, types, foreign)
            wanted = set(choose({name: entry.shape for name, entry in entries.items()}))
            digest = hashlib.sha256(head)
            whole = None if sha256 is None else _hashed(file, size - len(head), digest)
            tensors: dict[str, NDArray[Any]] = {}
            for name, entry in entries.items():
                if name in wanted:
                    data = _read_part(file, len(head), entry) if whole is None else whole[entry.begin : entry.end]
                    raw = data.view(_TYPES[entry.code]).reshape(entry.shape)
                    kept = raw.astype(raw.dtype.newbyteorder("="), copy=not raw.flags.aligned)
                    tensors[name] = _float32(name, raw) if foreign else kept
        except ValueError as error:
            raise ModelError(f"{shown(path)}: {error}") from error
        except OSError as error:
            raise ModelError(f"{shown(path)}: can't be read: {error.strerror}") from error
    if sha256 is not None and digest.hexdigest() != sha256:
        raise ModelError(
            f"{shown(path)}: damaged or replaced: its SHA-256 is {digest.hexdigest()}, the config says {sha256}"
        )
    return tensors


def _open(path: Path, follow_symlinks: bool) -> io.FileIO:
    """Opens a regular file; a FIFO is not waited for."""
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow_symlinks else os.O_NOFOLLOW)
    try:
        descriptor = os.open(path, flags)
    except FileNotFoundError:
        raise
    except OSError as error:
        link = not follow_symlinks and os.path.islink(path)
        reason = "is a symbolic link, a regular file is needed" if link else f"can't be read: {error.strerror}"
        raise ModelError(f"{shown(path)}: {reason}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ModelError(f"{shown(path)}: is not a regular file")
    return io.FileIO(descriptor, "rb")


def _hashed(file: io.FileIO, size: int, digest: "hashlib._Hash") -> NDArray[np.uint8]:
    """Reads the rest of a file, hashed in a thread while the next bytes are read: the two are most of a load."""
    data = np.empty(size, np.uint8)
    filled: SimpleQueue[memoryview | None] = SimpleQueue()

    def hash_filled() -> None:
        for part in iter(filled.get, None):
            digest.update(part)

    hasher = Thread(target=hash_filled, daemon=True)  # an interrupt while it starts leaves it waiting
    hasher.start()
    try:
        for begin in range(0, size, _CHUNK):
            part = data[begin : begin + _CHUNK].data
            _fill(file, part)
            filled.put(part)
    finally:
        filled.put(None)
        hasher.join()
    return data


def _read_part(file: io.FileIO, start: int, entry: _Entry) -> NDArray[np.uint8]:
    data = np.empty(entry.end - entry.begin, np.uint8)
    file.seek(start + entry.begin)
    _fill(file, data.data)
    return data


def _fill(file: io.FileIO, buffer: memoryview) -> None:
    """Reads until the buffer is full; one system call gives 2 GiB at most."""
    done = 0
    while done < len(buffer):
        count = file.readinto(buffer[done:])
        if not count:
            raise ValueError("was cut short while it was read")
        done += count


def _float32(name: str, raw: NDArray[Any]) -> NDArray[np.float32]:
    if raw.dtype == _BFLOAT16:  # the upper half of a float32
        return (raw.astype(np.uint32) << 16).view(np.float32)
    if raw.dtype.kind != "f":
        raise ValueError(f"tensor {short(name)} holds integers, needed are floats")
    with np.errstate(over="ignore"):  # what is too large becomes infinity, which `check_values` names
        return raw.astype(np.float32, copy=False)


def _read_header(file: io.FileIO, size: int, types: Types | None, foreign: bool) -> tuple[bytes, dict[str, _Entry]]:
    """Returns the bytes before the data, and the entries in the order of the data, which they cover exactly."""
    if size < _LENGTH_BYTES:
        raise ValueError(f"has {size} bytes, a safetensors file begins with {_LENGTH_BYTES} bytes of length")
    head = bytearray(_LENGTH_BYTES)
    _fill(file, memoryview(head))
    length = int.from_bytes(head, "little")
    if length > min(size - _LENGTH_BYTES, strict_json.LIMIT):
        raise ValueError(
            f"declares a header of {length:,} bytes; the file has {size - _LENGTH_BYTES:,} bytes after the length, "
            f"and the limit is {strict_json.LIMIT:,}"
        )
    text = bytearray(length)
    _fill(file, memoryview(text))
    try:
        header = strict_json.parse(bytes(text))
    except ValueError as error:
        raise ValueError(f"the header {error}") from None
    if not isinstance(header, dict):
        raise ValueError(f"the header is {short(header)}, an object is needed")
    header.pop("__metadata__", None)
    entries = {name: _entry(name, value, _needed(name, types, foreign)) for name, value in header.items()}
    ordered = dict(sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)))
    _check_layout(ordered, size - _LENGTH_BYTES - length)
    return bytes(head + text), ordered


def _needed(name: str, types: Types | None, foreign: bool) -> Sequence[str]:
    """Returns the codes that a tensor's type may have."""
    if foreign:
        return _FOREIGN
    if types is None:
        return ("F32",)
    # A tensor of a name that is not known may have any type here: `choose` knows names better.
    return [_CODES[types[name]]] if name in types else list(_CODES.values())


def _entry(name: str, value: object, needed: Sequence[str]) -> _Entry:
    where = f"tensor {short(name)}"
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{where} is {short(value)}, needed are exactly dtype, shape and data_offsets")
    code, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if code not in needed:
        raise ValueError(f"{where} has dtype {short(code)}, needed is {' or '.join(map(repr, needed))}")
    if not _counts(shape) or len(shape) > _MAX_RANK:
        raise ValueError(f"{where} has shape {short(shape)}, needed is a list of whole numbers from 0")
    if not _counts(offsets) or len(offsets) != 2:
        raise ValueError(f"{where} has data_offsets {short(offsets)}, needed are [begin, end]")
    begin, end = offsets
    size = _TYPES[code].itemsize * math.prod(shape)
    if end - begin != size:
        raise ValueError(f"{where} of shape {tuple(shape)} needs {size:,} bytes of data, "
                         f"its data_offsets {begin} to {end} do not fit")  # fmt: skip
    return _Entry(code, tuple(shape), begin, end)


def _counts(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < _MAX_SIDE for item in value)


def _check_layout(entries: Mapping[str, _Entry], size: int) -> None:
    """Raises unless the entries, in order, cover the `size` bytes of data: no hole, no overlap, nothing left over."""
    end = 0
    for name, entry in entries.items():
        if entry.begin != end:
            fault = "overlaps the tensor before it" if entry.begin < end else "leaves a hole before it"
            raise ValueError(f"tensor {short(name)} begins at byte {entry.begin:,}, needed is {end:,}: it {fault}")
        end = entry.end
    if end != size:
        fault = "was it cut?" if size < end else "the bytes at the end belong to no tensor"
        raise ValueError(f"holds {size:,} bytes of data, the header describes {end:,}; {fault}")
