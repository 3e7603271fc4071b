"""Runs in a process of its own, with a limit on its memory, so that a crash of a decoder is seen.

    python photo_mutations.py mutations SEED COUNT STATE     changes good photos and reads each
    python photo_mutations.py files FOLDER                   reads each file of a folder, in the order of their names

Prints one JSON document. STATE is a file that holds the number of the mutation that is being read, to find it after a
crash: `python photo_mutations.py show SEED NUMBER > photo`.
"""

import collections
import json
import os
import random
import resource
import sys
import time
import traceback
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import photo_makers as make
from mobilenet.errors import PhotoError
from mobilenet.photos import Preprocessing, pixels

LIMIT = 448 << 20
"""Address space beyond what the interpreter and its libraries take, which is some 60 MiB of real memory."""
HOW = Preprocessing(32, 32)
_EDGES = [0, 1, 2, 3, 7, 8, 0x7F, 0x80, 0xFE, 0xFF]


def status_bytes(field: str) -> int:
    """Returns a figure of this process from Linux's /proc, in bytes: VmSize is its address space, VmHWM its peak."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) << 10
    raise KeyError(field)


def mutated(photos: list[bytes], seed: int, number: int) -> bytes:
    """Returns the mutation of this number: bit flips, a cut, a splice, edited headers, parts moved or doubled."""
    choose = random.Random(f"{seed} {number}")
    data = bytearray(choose.choice(photos))
    for _ in range(choose.choice((1, 1, 1, 2, 3))):
        choose.choice(_MUTATIONS)(data, photos, choose)
    if data.startswith(b"\x89PNG") and choose.random() < 0.7:
        _mend_checksums(data)
    if data.startswith(b"RIFF") and choose.random() < 0.7:
        data[4:8] = max(len(data) - 8, 0).to_bytes(4, "little")
    return bytes(data)


def _flip(data: bytearray, _: list[bytes], choose: random.Random) -> None:
    for _bit in range(choose.choice((1, 1, 2, 8))):
        if data:
            data[choose.randrange(len(data))] ^= 1 << choose.randrange(8)


def _cut(data: bytearray, _: list[bytes], choose: random.Random) -> None:
    del data[choose.randrange(len(data) + 1) :]


def _cut_at_64(data: bytearray, _: list[bytes], choose: random.Random) -> None:
    del data[64 * choose.randrange(len(data) // 64 + 1) :]


def _splice(data: bytearray, photos: list[bytes], choose: random.Random) -> None:
    other = choose.choice([photo for photo in photos if photo[:2] == data[:2]] or photos)
    start, place = choose.randrange(len(other)), choose.randrange(len(data) + 1)
    data[place:] = other[start:] if choose.random() < 0.5 else other[place:]


def _edit(data: bytearray, _: list[bytes], choose: random.Random) -> None:
    place = choose.randrange(min(len(data), choose.choice((32, 64, 256))) + 1)
    size = choose.choice((1, 2, 4))
    value = bytes(choose.choice(_EDGES) for _ in range(size))
    data[place : place + size] = value if choose.random() < 0.5 else value[:1] + bytes(size - 1)


def _edit_jpeg_marker(data: bytearray, photos: list[bytes], choose: random.Random) -> None:
    places = [i for i in range(len(data) - 1) if data[i] == 0xFF and data[i + 1] >= 0xC0]
    if not places or not data.startswith(b"\xff\xd8"):
        return _edit(data, photos, choose)
    place = choose.choice(places)
    if choose.random() < 0.5:
        data[place + 1] = choose.randrange(0xC0, 0xFF)
    else:
        data[place + 2 : place + 12] = choose.randbytes(10)
    return None


def _move(data: bytearray, _: list[bytes], choose: random.Random) -> None:
    start, place = choose.randrange(len(data) + 1), choose.randrange(len(data) + 1)
    part = data[start : start + choose.choice((1, 4, 16, 64))]
    if choose.random() < 0.5:
        del data[start : start + len(part)]
    data[place:place] = part


_MUTATIONS: list[Callable[[bytearray, list[bytes], random.Random], None]]
_MUTATIONS = [_flip, _flip, _cut, _cut_at_64, _splice, _edit, _edit, _edit_jpeg_marker, _move]


def _mend_checksums(data: bytearray) -> None:
    position = 8
    while position + 12 <= len(data):
        end = position + 8 + int.from_bytes(data[position : position + 4])
        if end + 4 > len(data):
            return
        data[end : end + 4] = zlib.crc32(data[position + 4 : end]).to_bytes(4)
        position = end + 4


def outcome(source: bytes | Path) -> str:
    """Returns `pixels`, the refusal, or what should not have happened: another exception, a warning, wrong pixels."""
    with warnings.catch_warnings(record=True) as leaked:
        warnings.simplefilter("always")
        try:
            shape = pixels(source, HOW).shape
        except PhotoError as error:
            result = f"refused: {error}"
        except BaseException:
            result = f"wrong: {traceback.format_exc()}"
        else:
            result = "pixels" if shape == (32, 32, 3) else f"wrong: shape {shape}"
    return f"wrong: warning {leaked[0].message}" if leaked else result


def run_mutations(seed: int, count: int, state: Path) -> dict[str, Any]:
    """Reads mutations 0 to `count`."""
    photos = [data for _, data in make.small_photos()]
    assert all(outcome(photo) == "pixels" for photo in photos)
    counts: collections.Counter[str] = collections.Counter()
    wrong: list[tuple[int, str]] = []
    slowest = (0.0, -1)
    descriptor = os.open(state, os.O_WRONLY | os.O_CREAT)
    for number in range(count):
        os.pwrite(descriptor, b"%12d" % number, 0)
        data = mutated(photos, seed, number)
        start = time.perf_counter()
        result = outcome(data)
        slowest = max(slowest, (time.perf_counter() - start, number))
        counts[result.split(":")[0]] += 1
        if result.startswith("wrong") or "MemoryError" in result:
            wrong.append((number, result))
    os.close(descriptor)
    return {"counts": counts, "wrong": wrong[:20], "slowest": slowest}


def run_files(folder: Path) -> list[dict[str, Any]]:
    """Reads each file of a folder, each in a fork: gives the outcome, seconds, and the memory it took at most."""
    results = []
    for path in sorted(folder.iterdir()):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            before, start = status_bytes("VmRSS"), time.perf_counter()
            result = outcome(path)
            seconds, grown = time.perf_counter() - start, status_bytes("VmHWM") - before
            document = {"name": path.name, "outcome": result, "seconds": seconds, "grown": grown}
            os.write(writer, json.dumps(document).encode())
            os._exit(0)
        os.close(writer)
        with open(reader) as file:
            results.append(json.loads(file.read()))
        assert os.waitpid(child, 0)[1] == 0, path.name
    return results


if __name__ == "__main__":
    task, *arguments = sys.argv[1:]
    if task == "show":
        photos = [data for _, data in make.small_photos()]
        sys.stdout.buffer.write(mutated(photos, int(arguments[0]), int(arguments[1])))
    else:
        limit = status_bytes("VmSize") + LIMIT
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        document: Any
        if task == "mutations":
            document = run_mutations(int(arguments[0]), int(arguments[1]), Path(arguments[2]))
        else:
            document = run_files(Path(arguments[0]))
        print(json.dumps({"result": document, "peak": status_bytes("VmHWM")}))
