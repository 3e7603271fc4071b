"""What is wrong with a data set, before an hour of training shows it: `mobilenet data check`."""

import hashlib
import os
import threading
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..common.checks import integer
from ..common.files import shown
from ..common.parallel import in_threads, processors
from ..common.text import table_text
from ..errors import PhotoError
from ..photos import decode, open_bytes
from .dataset import SPLITS, Dataset, Photo
from .layouts import SetAside

SMALLEST_SIDE = 32
"""A photo with a shorter side is reported as tiny: no MobileNet takes less."""

NEAR_BITS = 2
"""Photos whose dHashes differ in at most 2 of 64 bits are near duplicates. Measured on 250 photos: that finds 97% of
their copies at JPEG quality 50, 98% at half and at a quarter of the size; no two different ones are closer than 9."""

_CHUNK = 64
_LISTED = 10
_CLASSES_SHOWN = 50


@dataclass(frozen=True)
class Report:
    """Holds what `check` found; `ok` is false where training or its evaluation would go wrong."""

    dataset: Dataset
    unreadable: tuple[SetAside, ...]
    """Photos that can't be decoded, with the reason."""
    duplicates: tuple[tuple[Photo, ...], ...]
    """Groups of files with the same bytes."""
    near: tuple[tuple[Photo, Photo], ...]
    """A photo of val or test with one that looks the same in a split before it (train, val, test)."""
    tiny: tuple[Photo, ...]
    """Photos with a side below 32 pixels."""

    @property
    def leaks(self) -> tuple[tuple[Photo, ...], ...]:
        """Returns the groups of duplicates that are in more than one split: what is tested was trained on."""
        return tuple(group for group in self.duplicates if len({photo.split for photo in group}) > 1)

    @property
    def conflicts(self) -> tuple[tuple[Photo, ...], ...]:
        """Returns the groups of duplicates that have more than one label."""
        return tuple(group for group in self.duplicates if len({photo.label for photo in group}) > 1)

    @property
    def imbalance(self) -> float:
        """Returns the photos of the largest class divided by those of the smallest, in train or else in all splits."""
        counts = self.dataset.counts("train")
        if not any(counts):
            counts = tuple(map(sum, zip(*(self.dataset.counts(split) for split in SPLITS), strict=True)))
        return max(counts) / min(counts) if min(counts) else float("inf")

    @property
    def ok(self) -> bool:
        """Tells whether there is no unreadable photo, no duplicate across splits and none with two labels."""
        return not (self.unreadable or self.leaks or self.conflicts)

    def to_dict(self) -> dict[str, Any]:
        """Returns everything as JSON values, each list in full; an infinite imbalance is None."""
        counts = {split: self.dataset.counts(split) for split in SPLITS}
        names = self.dataset.classes
        return {
            "root": str(self.dataset.root),
            "ok": self.ok,
            "photos": {split: sum(counts[split]) for split in SPLITS},
            "classes": [{"name": name} | {s: counts[s][i] for s in SPLITS} for i, name in enumerate(names)],
            "imbalance": self.imbalance if np.isfinite(self.imbalance) else None,
            "unreadable": [item._asdict() for item in self.unreadable],
            "duplicates": [
                [{"path": p.path, "label": names[p.label], "split": p.split} for p in group]
                for group in self.duplicates
            ],
            "duplicates_across_splits": len(self.leaks),
            "duplicates_with_two_labels": len(self.conflicts),
            "near_duplicates": [[photo.path, other.path] for photo, other in self.near],
            "tiny": [photo.path for photo in self.tiny],
            "ignored": [item._asdict() for item in self.dataset.ignored],
            "notes": list(self.dataset.notes),
        }

    def __str__(self) -> str:
        """Returns the report as text: a table of the classes, then each finding with its first ten cases."""
        return "\n".join([*self._table(), "", *self._findings(), "", "ok" if self.ok else "not ok"])

    def _table(self) -> Iterator[str]:
        names = self.dataset.classes
        counts = {split: self.dataset.counts(split) for split in SPLITS}
        yield f"{shown(self.dataset.root)}: {len(self.dataset.photos):,} photos, {len(names):,} classes"
        order = list(range(len(names)))
        if len(names) > _CLASSES_SHOWN:
            order = sorted(order, key=lambda label: counts["train"][label])
            order = [*order[: _CLASSES_SHOWN // 2], *order[-_CLASSES_SHOWN // 2 :]]
            yield f"the {_CLASSES_SHOWN // 2} smallest and largest classes:"
        rows = [[names[label], *(f"{counts[split][label]:,}" for split in SPLITS)] for label in order]
        rows.append(["all", *(f"{sum(counts[split]):,}" for split in SPLITS)])
        yield table_text(["<class", *SPLITS], rows)
        yield f"largest class / smallest class: {self.imbalance:.3g}"

    def _findings(self) -> Iterator[str]:
        yield from _listed("unreadable photos", [f"{shown(path)}: {reason}" for path, reason in self.unreadable])
        yield from _listed("duplicates across splits", [self._group(group) for group in self.leaks])
        yield from _listed("duplicates with two labels", [self._group(group) for group in self.conflicts])
        rest = [group for group in self.duplicates if group not in {*self.leaks, *self.conflicts}]
        yield from _listed("duplicates within a split", [self._group(group) for group in rest])
        yield from _listed("near duplicates across splits", [self._group(pair) for pair in self.near])
        yield from _listed(f"photos with a side below {SMALLEST_SIDE} pixels", [shown(p.path) for p in self.tiny])
        yield from _listed("files ignored", [f"{shown(path)}: {reason}" for path, reason in self.dataset.ignored])
        yield from self.dataset.notes

    def _group(self, group: tuple[Photo, ...]) -> str:
        names = self.dataset.classes
        few = " = ".join(f"{shown(photo.path)} ({names[photo.label]}, {photo.split})" for photo in group[:3])
        return few if len(group) <= 3 else f"{few} and {len(group) - 3} more"


def _listed(what: str, cases: Collection[str]) -> Iterator[str]:
    yield f"{what}: {len(cases):,}"
    yield from (f"  {case}" for case, _ in zip(cases, range(_LISTED), strict=False))
    if len(cases) > _LISTED:
        yield f"  and {len(cases) - _LISTED:,} more"


def check(
    dataset: Dataset, *, threads: int | None = None, progress: Callable[[int, int], None] | None = None
) -> Report:
    """Decodes every photo and returns what is wrong: unreadable, the same bytes twice, near duplicates across splits,
    tiny photos, imbalance.

    Near duplicates are found by a 64-bit dHash of the decoded photo (grey, 9 x 8 pixels, is each brighter than its left
    neighbour), which survives re-encoding and scaling, not cropping or mirroring; photos without structure (at most 2
    bits set) are not compared. Takes about as long as one epoch's decoding; memory of about 1 kB a photo.
    """
    threads = processors() if threads is None else threads
    integer("threads", threads, 1, 1024)
    stop = threading.Event()
    total = len(dataset.photos)
    looks: dict[int, _Look] = {}
    unreadable: dict[int, str] = {}

    def work(start: int) -> list[tuple[int, "_Look | str"]]:
        rows = range(total)[start : start + _CHUNK]
        return [(row, _look(os.path.join(dataset.root, dataset.photos[row].path))) for row in rows if not stop.is_set()]

    done = 0
    with closing(in_threads(work, range(0, total, _CHUNK), threads, stop)) as chunks:
        for chunk in chunks:
            for row, look in chunk:
                if isinstance(look, str):
                    unreadable[row] = look
                else:
                    looks[row] = look
            done += len(chunk)
            if progress:
                progress(done, total)
    photos = dataset.photos
    looks = dict(sorted(looks.items()))
    return Report(
        dataset,
        tuple(SetAside(photos[row].path, unreadable[row]) for row in sorted(unreadable)),
        _duplicates(photos, looks),
        _near(photos, looks),
        tuple(photos[row] for row, look in looks.items() if look.side < SMALLEST_SIDE),
    )


class _Look(NamedTuple):
    """Is what is kept of a photo: a digest of its bytes, its dHash, and its shorter side (as far as it was decoded)."""

    digest: bytes
    dhash: int
    side: int


def _look(path: str) -> _Look | str:
    try:
        data = open_bytes(path)
        image = decode(data, path, minimum=(2 * SMALLEST_SIDE, 2 * SMALLEST_SIDE))
    except PhotoError as error:
        return str(error).removeprefix(f"{shown(path)}: ")
    return _Look(hashlib.blake2b(data, digest_size=16).digest(), dhash(image), min(image.shape[:2]))


def dhash(image: NDArray[np.uint8]) -> int:
    """Returns the 64-bit difference hash of an RGB photo [H, W, 3]."""
    small = Image.fromarray(image).convert("L").resize((9, 8), Image.Resampling.BILINEAR)
    grey = np.asarray(small)
    return int.from_bytes(np.packbits(grey[:, 1:] > grey[:, :-1]).tobytes(), "big")


def _duplicates(photos: tuple[Photo, ...], looks: dict[int, _Look]) -> tuple[tuple[Photo, ...], ...]:
    groups: defaultdict[bytes, list[Photo]] = defaultdict(list)
    for row, look in looks.items():
        groups[look.digest].append(photos[row])
    return tuple(tuple(group) for group in groups.values() if len(group) > 1)


def _near(photos: tuple[Photo, ...], looks: dict[int, _Look]) -> tuple[tuple[Photo, Photo], ...]:
    """Looks up each hash of val and test, with every way to flip at most 2 bits, among those of the splits before it.

    2081 look-ups a photo, whatever the photos are; comparing all pairs would be quadratic.
    """
    flips = [sum(1 << bit for bit in bits) for count in range(NEAR_BITS + 1) for bits in combinations(range(64), count)]
    rows: dict[str, list[int]] = {split: [] for split in SPLITS}
    for row, look in looks.items():
        if look.dhash.bit_count() > NEAR_BITS:
            rows[photos[row].split].append(row)
    pairs: list[tuple[Photo, Photo]] = []
    for asked, known in ((rows["val"], rows["train"]), (rows["test"], rows["train"] + rows["val"])):
        known = sorted(known, key=lambda row: looks[row].dhash)
        hashes = np.array([looks[row].dhash for row in known], np.uint64)
        questions = np.array([looks[row].dhash for row in asked], np.uint64)
        found: dict[int, int] = {}
        for flip in flips if known else ():
            wanted = questions ^ np.uint64(flip)
            place = np.minimum(np.searchsorted(hashes, wanted), len(hashes) - 1)
            for hit in np.flatnonzero(hashes[place] == wanted).tolist():
                found.setdefault(asked[hit], known[place[hit]])
        pairs += [(photos[a], photos[b]) for a, b in sorted(found.items()) if looks[a].digest != looks[b].digest]
    return tuple(pairs)
