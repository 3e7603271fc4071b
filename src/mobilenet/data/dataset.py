"""Photos with labels: a folder or a list becomes a `Dataset`, split into train, val and test. The files are only read.

Classes are in plain sorted order of their names ("10" before "2"), so the same names always give the same labels.
"""

import dataclasses
import hashlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..common.checks import integer, number
from ..common.files import read_regular, shown, write_atomic
from ..errors import DatasetError
from .layouts import Found, Row, SetAside, Split, first_few, read_folder, read_list

SPLITS: tuple[Split, ...] = ("train", "val", "test")

SMALLEST_SPLIT_CLASS = 4
"""A class with fewer photos gives none to val: of 3 photos, one would be a third."""

_SPLIT_LIMIT = 1 << 30


@dataclass(frozen=True, slots=True)
class Photo:
    """Is one photo: its path relative to the data set's root, the number of its class, and the split it is in."""

    path: str
    label: int
    split: Split


@dataclass(frozen=True)
class Dataset:
    """Holds what `read` found: `photos[i].label` is a position in `classes`; nothing is opened or decoded yet."""

    root: Path
    classes: tuple[str, ...]
    photos: tuple[Photo, ...]
    ignored: tuple[SetAside, ...] = ()
    """Files that are not used, each with the reason: not a photo by its name, outside of the class folders, missing."""
    notes: tuple[str, ...] = ()
    """What was decided on the way, in sentences for the user."""

    def path(self, photo: Photo) -> Path:
        """Returns where the photo lies."""
        return self.root / photo.path

    def of(self, split: Split) -> tuple[Photo, ...]:
        """Returns the photos of one split, in order."""
        return tuple(photo for photo in self.photos if photo.split == split)

    def counts(self, split: Split) -> tuple[int, ...]:
        """Returns the number of photos of each class in one split."""
        found = Counter(photo.label for photo in self.photos if photo.split == split)
        return tuple(found[label] for label in range(len(self.classes)))

    def relabel(self, classes: Sequence[str]) -> "Dataset":
        """Returns the same photos numbered by another tuple of classes, for example a model's; matched by name.

        Raises `DatasetError` that names the classes of this data set that `classes` does not have.
        """
        _refuse_unknown(self.root, self.classes, classes)
        number_of = {name: label for label, name in enumerate(classes)}
        new = [number_of[name] for name in self.classes]
        photos = tuple(Photo(photo.path, new[photo.label], photo.split) for photo in self.photos)
        return dataclasses.replace(self, classes=tuple(classes), photos=photos)

    def fingerprint(self) -> str:
        """Returns a SHA-256 of the classes and of every photo's path, label and split (not of the pixels)."""
        digest = hashlib.sha256(json.dumps(self.classes).encode())
        for photo in self.photos:
            digest.update(f"\n{photo.label} {photo.split} {photo.path}".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()


def read(
    path: Path | str,
    *,
    seed: int = 0,
    validation: float = 0.15,
    split_file: Path | None = None,
    classes: Sequence[str] | None = None,
    max_missing: float = 0.1,
) -> Dataset:
    """Reads a folder of photos or a CSV or JSONL list; no photo is opened.

    Where there is no val split, the fraction `validation` of each class's train photos becomes val (at least one of 4):
    those with the lowest hash of `seed` and path. A `split_file` that exists (`save_split`) goes before the hash: with
    it, photos that are added move none of the others; without, only the few that the new count moves over the line.
    `classes` numbers the labels by a model's classes; one class alone, or one without photos, is then allowed.
    Up to the fraction `max_missing` of a list's rows may name no file: they are set aside and listed in `ignored`.

    Raises `DatasetError` that names the folder, class, file or line: no photos, one class, an empty class, a class that
    is not in train, an unreadable folder, an archive, a bad row, one path with two labels.
    """
    number("validation", validation, 0, 1, open_high=True)
    number("max_missing", max_missing, 0, 1)
    integer("seed", seed, 0, 2**63 - 1)
    path = Path(os.path.abspath(path))
    found = read_folder(path) if os.path.isdir(path) else read_list(path, max_missing)
    names = _class_names(found, path, classes)
    stored = load_split(split_file) if split_file is not None and os.path.lexists(split_file) else {}
    splits = _splits(found.rows, seed, validation, stored, found.notes)
    label_of = {name: label for label, name in enumerate(names)}
    photos = tuple(Photo(row.path, label_of[row.label], split) for row, split in zip(found.rows, splits, strict=True))
    return Dataset(found.root, names, photos, tuple(found.ignored), tuple(found.notes))


def _class_names(found: Found, path: Path, classes: Sequence[str] | None) -> tuple[str, ...]:
    """Returns the classes in order, after every check of them; the errors say what is there instead."""
    names = sorted({row.label for row in found.rows})
    if not names:
        held = [f"{name}/" for _, name in found.empty] + [item.path for item in found.ignored]
        raise DatasetError(
            f"{shown(path)}: no labelled photos; needed is a folder a class, or train/ val/ test/ of such; "
            f"it holds {first_few(held) or 'nothing'}{_hint(found)}"
        )
    for name in names:
        if not _speakable(name):
            raise DatasetError(
                f"{shown(path)}: the class name '{shown(name)}' is not UTF-8 or has control characters; rename it"
            )
    if classes is not None:
        _refuse_unknown(path, names, classes)
        found.notes += [f"no photos of {shown(name)} in {split or shown(path)}" for split, name in found.empty]
        return tuple(classes)
    train = {row.label for row in found.rows if row.split in (None, "train")}
    empty = [name for split, name in found.empty if split in (None, "train")]
    if empty:
        raise DatasetError(
            f"{shown(path)}: {len(empty)} class folder(s) without photos: {first_few(empty)}; add photos or remove them"
        )
    found.notes += [f"no photos of {shown(name)} in {split or shown(path)}" for split, name in found.empty]
    untaught = [name for name in names if name not in train]
    if train and untaught:
        raise DatasetError(f"{shown(path)}: {len(untaught)} class(es) not in train: {first_few(untaught)}")
    if len(names) == 1:
        raise DatasetError(f"{shown(path)}: one class only, '{shown(names[0])}'; two are needed{_hint(found)}")
    return tuple(names)


def _speakable(name: str) -> bool:
    """Tells whether a class name can stand in a config, a table and a terminal (letters of any script can)."""
    return not any(c < " " or "\x7f" <= c <= "\x9f" or "\ud800" <= c <= "\udfff" for c in name)


def _refuse_unknown(path: Path, names: Iterable[str], classes: Sequence[str]) -> None:
    known = frozenset(classes)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise DatasetError(
            f"{shown(path)}: {len(unknown)} class(es) not among the {len(classes)} known: {first_few(unknown)}; "
            f"known are {first_few(classes)}"
        )


def _hint(found: Found) -> str:
    """Returns the folder or list that was probably meant, if one is in sight."""
    inner = sorted({row.path.split("/")[1] for row in found.rows if row.split is None and row.path.count("/") > 1})
    if inner:
        return f"; the folder inside holds {first_few([name + '/' for name in inner])}: was it meant?"
    lists = [item.path for item in found.ignored if item.path.endswith((".csv", ".jsonl"))]
    return f"; to use the labels of {shown(lists[0])} give that file" if lists else ""


def _splits(
    rows: Sequence[Row], seed: int, validation: float, stored: Mapping[str, Split], notes: list[str]
) -> list[Split]:
    """Returns each row's split: as given where a val split is, else as stored, else by the hash of seed and path."""
    carve = not any(row.split == "val" for row in rows)
    splits: list[Split] = [row.split or "train" for row in rows]
    undecided: defaultdict[str, list[int]] = defaultdict(list)
    for position, row in enumerate(rows):
        if row.split is None or (carve and row.split == "train"):
            undecided[row.label].append(position)
    new = 0
    for positions in undecided.values():
        fresh = [p for p in positions if stored.get(rows[p].path, "test") == "test"]
        for p in set(positions).difference(fresh):
            splits[p] = stored[rows[p].path]
        missing = _validation_count(len(positions), validation) - sum(splits[p] == "val" for p in positions)
        for p in sorted(fresh, key=lambda p: _draw(seed, rows[p].path))[: max(0, missing)]:
            splits[p] = "val"
        new += len(fresh)
    whole = [label for label, positions in undecided.items() if len(positions) < SMALLEST_SPLIT_CLASS]
    if validation and whole:
        named = first_few(whole)
        notes.append(f"{len(whole)} class(es) of fewer than {SMALLEST_SPLIT_CLASS} photos stay in train: {named}")
    if stored:
        gone = len(stored.keys() - {row.path for row in rows})
        changes = f"; {new} photo(s) were not in it, {gone} of it are gone" if new or gone else ""
        notes.append(f"the stored split was used{changes}")
    return splits


def _validation_count(count: int, validation: float) -> int:
    """Returns how many of a class's photos are val: at least one, and at least one is left, of four or more."""
    if count < SMALLEST_SPLIT_CLASS or not validation:
        return 0
    return min(max(round(count * validation), 1), count - 1)


def _draw(seed: int, path: str) -> float:
    """Returns a number in [0, 1) that depends on the seed and the path alone, on every machine."""
    digest = hashlib.blake2b(f"{seed} {path}".encode("utf-8", "surrogateescape"), digest_size=6)
    return int.from_bytes(digest.digest(), "big") / 2**48


_SPLIT_FORMAT = {"format": "mobilenet-split", "version": 1}


def save_split(dataset: Dataset, path: Path) -> None:
    """Writes the split of each photo, whole or not at all, as JSON lines: a header, then a path and split a line.

    Raises `MobileNetError` that names the path when it can't be written.
    """
    lines = [json.dumps(_SPLIT_FORMAT | {"photos": len(dataset.photos)})]
    lines += [json.dumps({"path": photo.path, "split": photo.split}) for photo in dataset.photos]
    write_atomic(path, "\n".join([*lines, ""]).encode())


def load_split(path: Path) -> dict[str, Split]:
    """Returns path -> split of a file that `save_split` wrote.

    Raises `DataError` that names the file and the line that is not as written, or the count that does not fit.
    """
    lines = read_regular(path, _SPLIT_LIMIT).removesuffix(b"\n").split(b"\n")
    header = _json_object(path, 1, lines[0])
    if header != _SPLIT_FORMAT | {"photos": len(lines) - 1}:
        raise DatasetError(f"{shown(path)}: is not a split of this version with {len(lines) - 1} photos; remove it")
    splits: dict[str, Split] = {}
    for number_of_line, line in enumerate(lines[1:], 2):
        row = _json_object(path, number_of_line, line)
        if row.keys() != {"path", "split"} or not isinstance(row["path"], str) or row["split"] not in SPLITS:
            raise DatasetError(f"{shown(path)}: line {number_of_line}: needed a path and one of train, val, test")
        splits[row["path"]] = row["split"]
    return splits


def _json_object(path: Path, line: int, text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{shown(path)}: line {line}: is not JSON") from error
    if not isinstance(value, dict):
        raise DatasetError(f"{shown(path)}: line {line}: is not a JSON object")
    return value
