"""Decoded photos on disk: a photo is decoded once, every epoch after the first reads rows of a memory map.

A folder holds one cache (`row_store.py`): `pixels.u8`, uint8 [N, height, width, channels]; `aspect.f32`, float32 [N];
and `bad.jsonl`, the photos that could not be decoded, for people.
"""

import hashlib
import importlib.metadata
import json
import math
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..common.checks import choice, integer, number
from ..common.files import shown, write_atomic
from ..common.parallel import in_threads, processors
from ..errors import DatasetError, MobileNetError, PhotoError
from ..photos import decode, open_bytes, pixels
from ..photos.preprocessing import Preprocessing
from .dataset import Photo
from .layouts import SetAside, first_few
from .row_store import Chunk, RowStore

Mode = Literal["train", "eval"]

_VERSION = 1
"""Goes up with every change of what is kept for a photo; older caches are then made anew."""
_CHUNK_ROWS = 64
_CHUNK_BYTES = 4 << 20


@dataclass(frozen=True)
class Cache:
    """Holds N photos as rows that any number of processes can map; `index` says which rows to use.

    A bad photo keeps its row, with label -1 and aspect NaN, so that using it by mistake does not go unnoticed.
    """

    folder: Path
    photos: tuple[Photo, ...]
    pixels: NDArray[np.uint8]
    """uint8 [N, height, width, channels], a read-only `np.memmap`."""
    labels: NDArray[np.int64]
    """[N], -1 where the photo is bad."""
    aspect: NDArray[np.float32]
    """[N], width / height of the upright photo, within 1% (3% below 64 pixels) as large JPEGs are decoded scaled down;
    NaN where the photo is bad, and everywhere in mode "eval"."""
    index: NDArray[np.int64]
    """[M], the rows of the photos that are not bad, ascending."""
    bad: tuple[SetAside, ...]
    """The photos that could not be decoded, with the reason."""


def build(
    photos: Sequence[Photo],
    root: Path,
    folder: Path,
    preprocessing: Preprocessing,
    mode: Mode,
    *,
    threads: int | None = None,
    max_bad: float = 0.1,
    progress: Callable[[int, int], None] | None = None,
) -> Cache:
    """Returns the cache of these photos in `folder`, decoding what is not there yet; several processes may call it.

    Mode "eval" keeps exactly `photos.pixels(path, preprocessing)`. Mode "train" keeps the whole photo squashed to the
    preprocessing's height and width, with its true aspect ratio, so that crops can be taken later in true geometry.
    The cache is made anew when a photo's path, size, time or permissions, the shape, the mode, how photos are resized
    or a decoder's version changed; otherwise it is continued, after whatever interruption. `progress` is called with
    the number of photos done and the total.

    Raises `DatasetError` with the exact count and the first names when more than the fraction `max_bad` of the photos,
    or in mode "train" all of one class, can't be decoded; `MobileNetError` with the bytes needed when the disk is full.
    """
    choice("mode", mode, ("train", "eval"))
    number("max_bad", max_bad, 0, 1)
    threads = processors() if threads is None else threads
    integer("threads", threads, 1, 1024)
    if not photos:
        raise DatasetError(f"{shown(root)}: no photos to decode for the cache in {shown(folder)}")
    if mode == "train":
        preprocessing = replace(preprocessing, resize="squash", crop=1.0)
    decoder = _Decoder(tuple(photos), Path(root), Path(folder), preprocessing, mode)
    store = decoder.store
    try:
        with store.lock():
            done = store.resume()
            if len(done) < len(store.chunks):
                decoder.decode(done, threads, progress or (lambda _done, _total: None))
            cache = _mapped(decoder, done)
    except OSError as error:
        raise MobileNetError(
            f"{shown(folder)}: the cache of {store.bytes:,} bytes can't be kept there: {error.strerror}"
        ) from error
    _refuse_bad(cache, mode, max_bad)
    return cache


class _Decoder:
    def __init__(
        self, photos: tuple[Photo, ...], root: Path, folder: Path, preprocessing: Preprocessing, mode: Mode
    ) -> None:
        self.photos, self.root, self.preprocessing, self.mode = photos, root, preprocessing, mode
        self.shape = (preprocessing.height, preprocessing.width, preprocessing.channels)
        self.stop = threading.Event()
        # Everything that the pixels depend on. Mean and deviation are not: rows are from before the scaling.
        key = {
            "format": "mobilenet-cache",
            "version": _VERSION,
            "mode": mode,
            "shape": self.shape,
            "resize": [preprocessing.crop, preprocessing.resize, preprocessing.interpolation],
            "decoders": [importlib.metadata.version(name) for name in ("pillow", "simplejpeg")],
            "photos": _fingerprint(root, photos),
        }
        size = math.prod(self.shape)
        chunk = max(1, min(_CHUNK_ROWS, _CHUNK_BYTES // size))
        self.store = RowStore(folder, key, len(photos), chunk, {"pixels.u8": size, "aspect.f32": 4})

    def decode(self, done: dict[int, Chunk], threads: int, progress: Callable[[int, int], None]) -> None:
        """Decodes the chunks that are not in `done`, and adds them."""
        missing = [number for number in self.store.chunks if number not in done]
        count = sum(len(self.store.rows_of(number)) for number in done)
        progress(count, len(self.photos))
        with self.store.filling() as note, closing(in_threads(self._chunk, missing, threads, self.stop)) as chunks:
            for chunk in chunks:
                note(chunk)
                done[chunk.number] = chunk
                count += len(self.store.rows_of(chunk.number))
                progress(count, len(self.photos))

    def _chunk(self, number: int) -> Chunk:
        rows = self.store.rows_of(number)
        values = np.zeros((len(rows), *self.shape), np.uint8)
        aspect = np.full(len(rows), np.nan, np.float32)
        bad: list[tuple[int, str]] = []
        for position, row in enumerate(rows):
            if self.stop.is_set():
                raise RuntimeError("stopped")  # nobody waits for this chunk any more
            path = os.path.join(self.root, self.photos[row].path)
            try:
                values[position], aspect[position] = self._photo(path)
            except PhotoError as error:
                bad.append((row, str(error).removeprefix(f"{shown(path)}: ")))
        return self.store.write(number, (values, aspect), bad)

    def _photo(self, path: str) -> tuple[NDArray[np.uint8], float]:
        if self.mode == "eval":
            return pixels(path, self.preprocessing), math.nan
        height, width, _ = self.shape
        image = decode(open_bytes(path), path, minimum=(height, width))
        aspect = image.shape[1] / image.shape[0]
        return image if image.shape == self.shape else pixels(image, self.preprocessing), aspect


def _fingerprint(root: Path, photos: Iterable[Photo]) -> str:
    """Returns a SHA-256 of each photo's path, size, time and permissions. The root may move; a missing file counts."""
    digest = hashlib.sha256()
    for photo in photos:
        try:
            status = os.stat(os.path.join(root, photo.path))
            state = f"{status.st_size} {status.st_mtime_ns} {status.st_mode}"
        except (OSError, ValueError):
            state = "missing"
        digest.update(f"{photo.path}\0{state}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _mapped(decoder: _Decoder, done: dict[int, Chunk]) -> Cache:
    photos, folder = decoder.photos, decoder.store.folder
    remarks = sorted(remark for chunk in done.values() for remark in chunk.remarks)
    bad = tuple(SetAside(photos[row].path, reason) for row, reason in remarks)
    if bad:
        write_atomic(folder / "bad.jsonl", "".join(json.dumps(item._asdict()) + "\n" for item in bad).encode())
    else:
        (folder / "bad.jsonl").unlink(missing_ok=True)
    labels = np.array([photo.label for photo in photos], np.int64)
    labels[[row for row, _ in remarks]] = -1
    values = np.memmap(folder / "pixels.u8", np.uint8, "r", shape=(len(photos), *decoder.shape))
    aspect = np.fromfile(folder / "aspect.f32", np.float32)
    return Cache(folder, photos, values, labels, aspect, np.flatnonzero(labels >= 0), bad)


def _refuse_bad(cache: Cache, mode: Mode, max_bad: float) -> None:
    total = len(cache.photos)
    if len(cache.bad) > max_bad * total:
        named = first_few([f"{shown(item.path)}: {item.reason}" for item in cache.bad])
        raise DatasetError(
            f"{len(cache.bad)} of {total} photos can't be decoded, more than {max_bad:.0%}: {named}; "
            f"{shown(cache.folder / 'bad.jsonl')} lists all"
        )
    lost = {photo.label for photo in cache.photos} - set(cache.labels.tolist())
    if mode == "train" and lost:
        gone = [photo.path for photo in cache.photos if photo.label == min(lost)]
        raise DatasetError(f"no photo of one class can be decoded: {first_few(gone)}")
