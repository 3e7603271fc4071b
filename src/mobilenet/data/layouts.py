"""The layouts in which people keep labelled photos, each read into the same rows: path, class, split if it is given.

Folders: `train/ val/ test/` with a folder a class in each, or a folder a class alone. Lists: CSV with a header, or
JSONL, with the columns or keys path, label and, if wanted, split. Nothing is opened but the list itself.
"""

import csv
import io
import json
import os
import posixpath
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, NoReturn

from ..common.files import read_regular, shown
from ..errors import DatasetError

Split = Literal["train", "val", "test"]

EXTENSIONS = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp"})
"""A file in a folder is taken for a photo by its name; what it really holds is decided when it is decoded."""

_SPLIT_NAMES: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
_LITTER = frozenset({"thumbs.db", "desktop.ini", "__macosx", "@eadir"})
_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".tbz2", ".xz", ".txz", ".zst", ".7z", ".rar")
_ARCHIVE_BYTES = (b"PK\x03\x04", b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"7z\xbc\xaf", b"Rar!")
_LIST_LIMIT = 1 << 30
_COLUMNS = {
    "path": ("path", "file", "filename", "file_name", "filepath", "image", "image_path", "photo"),
    "label": ("label", "class", "category", "class_name"),
    "split": ("split", "subset", "set", "partition"),
}


class Row(NamedTuple):
    """Is one photo as the user gave it: path relative to the root with `/`, class name, split or None."""

    path: str
    label: str
    split: Split | None


class SetAside(NamedTuple):
    """Is one file that is not used, with the reason."""

    path: str
    reason: str


@dataclass
class Found:
    """Collects what a layout holds: the rows, what is left out with the reason, and sentences for the user."""

    root: Path
    rows: list[Row] = field(default_factory=list)
    ignored: list[SetAside] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    empty: list[tuple[Split | None, str]] = field(default_factory=list)  # class folders without photos


def first_few(names: Collection[str]) -> str:
    """Returns the first five names as they stand in an error, and how many more there are."""
    shown_names = [shown(name) for name, _ in zip(names, range(5), strict=False)]
    few = ("; " if any("," in name for name in shown_names) else ", ").join(shown_names)
    return few if len(names) <= 5 else f"{few} and {len(names) - 5} more"


# Folders


def read_folder(root: Path) -> Found:
    """Reads the layout by split and class, or by class alone.

    Folders that are links are followed, each once a class. Raises `DatasetError` that names the folder that can't be
    read, or the two that mean the same split.
    """
    found = Found(root)
    folders = _outside(found, "")
    splits = {name: split for name in folders if (split := _SPLIT_NAMES.get(name.casefold()))}
    # "train" is a class of vehicles as well: without folders of its own, beside others, it is a class.
    by_split = any(split == "train" and _list(Found(root), f"{name}/")[1] for name, split in splits.items())
    if by_split or (splits and len(splits) == len(folders)):
        _refuse_twice(root, splits)
        found.ignored += [SetAside(f"{name}/", "a folder beside the splits") for name in folders if name not in splits]
        for name, split in splits.items():
            _classes(found, f"{name}/", _outside(found, f"{name}/"), split)
    else:
        _classes(found, "", folders, None)
    found.rows.sort()
    return found


def _refuse_twice(root: Path, splits: dict[str, Split]) -> None:
    for split, count in Counter(splits.values()).items():
        if count > 1:
            both = " and ".join(f"{name}/" for name in splits if splits[name] == split)
            raise DatasetError(f"{shown(root)}: {both} both mean the split {split}; keep one of them")


def _classes(found: Found, prefix: str, names: Iterable[str], split: Split | None) -> None:
    for name in names:
        before = len(found.rows)
        _class(found, f"{prefix}{name}/", name, split)
        if len(found.rows) == before:
            found.empty.append((split, name))


def _class(found: Found, prefix: str, label: str, split: Split | None) -> None:
    """Takes every photo at any depth under one class folder, entering no folder twice, whatever links lead to it."""
    seen = {_identity(found, "")}
    waiting = [prefix]
    while waiting:
        prefix = waiting.pop()
        identity = _identity(found, prefix)
        if identity in seen:
            found.ignored.append(SetAside(prefix, "a link to a folder that was already read"))
            continue
        seen.add(identity)
        photos, folders = _list(found, prefix)
        found.rows += [Row(prefix + name, label, split) for name in photos]
        waiting += [f"{prefix}{name}/" for name in reversed(folders)]


def _outside(found: Found, prefix: str) -> list[str]:
    """Returns the folders in a folder whose own photos can't have a class."""
    photos, folders = _list(found, prefix)
    found.ignored += [SetAside(prefix + name, "a photo outside of the class folders") for name in photos]
    return folders


def _list(found: Found, prefix: str) -> tuple[list[str], list[str]]:
    """Returns the names of the photos and of the folders in one folder, sorted; the rest goes to `ignored`."""
    photos: list[str] = []
    folders: list[str] = []
    try:
        with os.scandir(os.path.join(found.root, prefix)) as entries:
            for entry in entries:
                name = entry.name
                if name.startswith(".") or name.casefold() in _LITTER:
                    continue
                kind = _kind(entry)
                if kind == "folder":
                    folders.append(name)
                elif kind == "file" and name[name.rfind(".") :].lower() in EXTENSIONS:
                    photos.append(name)
                else:
                    reason = "not a photo by its name" if kind == "file" else kind
                    found.ignored.append(SetAside(prefix + name, reason))
    except OSError as error:
        _refuse_folder(found, prefix, error)
    return sorted(photos), sorted(folders)


def _identity(found: Found, prefix: str) -> tuple[int, int]:
    try:
        status = os.stat(os.path.join(found.root, prefix))
    except OSError as error:
        _refuse_folder(found, prefix, error)
    return status.st_dev, status.st_ino


def _refuse_folder(found: Found, prefix: str, error: OSError) -> NoReturn:
    folder = shown(os.path.join(found.root, prefix))
    raise DatasetError(f"{folder}: the folder can't be read: {error.strerror}; make it readable or move it") from error


def _kind(entry: os.DirEntry[str]) -> str:
    # A directory entry knows its kind: only links cost a system call, which 10^6 files would feel.
    try:
        if entry.is_file():
            return "file"
        if entry.is_dir():
            return "folder"
        return "a link to nothing" if entry.is_symlink() else "not a regular file"
    except OSError as error:  # a link that leads to itself
        return f"a link that can't be followed: {error.strerror}"


# Lists


def read_list(path: Path, max_missing: float) -> Found:
    """Reads a CSV or JSONL list; its paths are absolute or relative to the list's folder.

    Rows that name no file are set aside up to the fraction `max_missing`. Raises `DatasetError` that names the list,
    the first lines that are wrong and how many there are: no label, an unknown split, one path with two labels.
    """
    text = _list_text(path)
    found = Found(path.parent)
    problems: list[str] = []
    rows = _csv_rows(path, text, problems) if path.suffix.lower() in (".csv", ".tsv") else _json_rows(text, problems)
    first: dict[str, tuple[int, Row]] = {}
    repeated = 0
    for line, row in rows:
        line_before, before = first.setdefault(row.path, (line, row))
        repeated += line_before != line
        if before != row:
            problems.append(f"line {line}: {row.path!r} is {_use(row)}, in line {line_before} it is {_use(before)}")
    found.rows = [row for _, row in first.values()]
    if problems:
        raise DatasetError(f"{shown(path)}: {len(problems)} bad row(s): {first_few(problems)}")
    if repeated:
        found.notes.append(f"{repeated} row(s) of {shown(path.name)} repeat an earlier one; each photo is taken once")
    _set_missing_aside(found, path, {name: line for name, (line, _) in first.items()}, max_missing)
    return found


def _use(row: Row) -> str:
    return repr(row.label) + (f" in {row.split}" if row.split else "")


def _list_text(path: Path) -> str:
    name = path.name.lower()
    if not os.path.lexists(path):
        raise DatasetError(f"{shown(path)}: no such file or folder; give a folder of photos, a .csv or a .jsonl list")
    if name.endswith(_ARCHIVES):
        _refuse_archive(path)
    if not name.endswith((".csv", ".tsv", ".jsonl")):
        raise DatasetError(f"{shown(path)}: is not a data set; give a folder of photos, a .csv or a .jsonl list")
    data = read_regular(path, _LIST_LIMIT)
    if data.startswith(_ARCHIVE_BYTES) or data[257:262] == b"ustar":
        _refuse_archive(path)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DatasetError(f"{shown(path)}: line {line} is not UTF-8; save the list as UTF-8") from error


def _refuse_archive(path: Path) -> NoReturn:
    raise DatasetError(
        f"{shown(path)}: is an archive, and archives are never unpacked here; "
        "unpack it yourself and give the folder that comes out"
    )


def _csv_rows(path: Path, text: str, problems: list[str]) -> Iterator[tuple[int, Row]]:
    for delimiter in (",", ";", "\t"):
        names = [name.strip().casefold() for name in _csv_header(text, delimiter)]
        columns = {key: names.index(name) for key, known in _COLUMNS.items() for name in known if name in names}
        if columns.keys() >= {"path", "label"}:
            break
    else:
        raise DatasetError(
            f"{shown(path)}: the first line has to name the columns path and label (and split, if there is one), "
            f"it is '{shown(text.split(chr(10), 1)[0].strip())}'"
        )
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        next(reader)
        for cells in reader:
            values = {key: cells[column].strip() for key, column in columns.items() if column < len(cells)}
            if cells and (row := _row(reader.line_num, values, "split" in columns, problems)):
                yield reader.line_num, row
    except csv.Error as error:
        problems.append(f"line {reader.line_num}: {error}")


def _csv_header(text: str, delimiter: str) -> list[str]:
    return next(csv.reader(io.StringIO(text[:65536], newline=""), delimiter=delimiter), [])


def _json_rows(text: str, problems: list[str]) -> Iterator[tuple[int, Row]]:
    with_split: bool | None = None
    for line, record in enumerate(text.split("\n"), 1):
        if not record.strip():
            continue
        try:
            values = json.loads(record)
        except (ValueError, RecursionError):
            problems.append(f"line {line}: is not JSON")
            continue
        if not isinstance(values, dict):
            problems.append(f"line {line}: is not a JSON object")
            continue
        with_split = "split" in values if with_split is None else with_split
        if row := _row(line, values, with_split or "split" in values, problems):
            yield line, row


def _row(line: int, values: Mapping[str, object], with_split: bool, problems: list[str]) -> Row | None:
    """Checks one row; where one row has a split, all must: half a split would be guessed at."""
    path, label = values.get("path"), values.get("label")
    if isinstance(label, int) and not isinstance(label, bool):
        label = str(label)
    if not (isinstance(path, str) and path) or not (isinstance(label, str) and label):
        problems.append(f"line {line}: needed a path and a label")
        return None
    split = _SPLIT_NAMES.get(str(values.get("split", "")).casefold())
    if with_split and split is None:
        problems.append(f"line {line}: split is {str(values.get('split', ''))!r}, needed train, val or test")
        return None
    return Row(posixpath.normpath(path), label, split)


def _set_missing_aside(found: Found, path: Path, lines: dict[str, int], max_missing: float) -> None:
    missing = [row for row in found.rows if not os.path.isfile(os.path.join(found.root, row.path))]
    if not missing:
        return
    if len(missing) > max_missing * len(found.rows):
        named = first_few([f"line {lines[row.path]}: {row.path}" for row in missing])
        hint = "; write paths with /" if any("\\" in row.path for row in missing) else ""
        raise DatasetError(
            f"{shown(path)}: {len(missing)} of {len(found.rows)} row(s) name no file: {named}; "
            f"paths are looked up from {shown(found.root)}{hint}"
        )
    found.ignored += [SetAside(row.path, f"line {lines[row.path]} names it, there is no such file") for row in missing]
    found.notes.append(f"{len(missing)} of {len(found.rows)} row(s) of {shown(path.name)} name no file; set aside")
    gone = {row.path for row in missing}
    found.rows = [row for row in found.rows if row.path not in gone]
