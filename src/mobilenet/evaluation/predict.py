"""Labels for photos as a stream: paths in, one `Row` out for each, in the same order, worked on ahead in threads.

A photo that can't be read becomes a row with its error and the rest goes on. Memory does not grow with the number of
photos: paths, pixels and rows are all passed on as they come.
"""

import glob
import itertools
import json
import os
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO, Literal, TextIO, get_args

import numpy as np

from .. import photos
from ..common.checks import choice, integer
from ..common.files import shown
from ..common.frozen import frozen
from ..common.parallel import in_order
from ..errors import DataError, PhotoError, UsageError
from ..model import Model, Prediction, softmax
from ..photos.preprocessing import Preprocessing
from ..runner import Floats, Runner

Format = Literal["table", "jsonl", "json", "csv"]

LINE_LIMIT = 1 << 16  # bytes of one path in a list: 16 times Linux' longest
TABLE_PATH, TABLE_LABEL = 48, 40  # widest columns of the table; longer names are cut in the middle
TABLE_HEAD = 16  # rows that are looked at before the first is printed, for the widths


@frozen
class Row:
    """Is what one photo got: its likeliest labels with their probabilities, best first, or the error."""

    path: Path
    predictions: tuple[tuple[str, float], ...] = ()
    error: str | None = None

    def to_dict(self) -> dict[str, object]:
        """Returns the row as plain data: `path` with `predictions`, or with `error`."""
        if self.error is not None:
            return {"path": str(self.path), "error": self.error}
        found = [{"label": label, "probability": _digits(value)} for label, value in self.predictions]
        return {"path": str(self.path), "predictions": found}


# ------------------------------------------------------------------------------------------------ arguments to paths


def photo_paths(arguments: Iterable[str | Path]) -> Iterator[Path]:
    """Returns the photos that a command line's arguments mean, one by one, in their order.

    A file stands for itself and a folder for the photos at any depth under it, in sorted order, by their names'
    endings. A pattern (`*`, `?`, `[…]`, `**`) that is no file's name is expanded. `@list.txt`, where no file has that
    name, is a file with one path a line, relative to the current folder, and `-` the same from standard input. What is
    not there is handed on as it is: reading it gives the error.

    Raises:
        DataError: names the `@` list that can't be read, before any path is given, or its line that is no path.
    """
    given = [os.fspath(argument) for argument in arguments]
    for argument in given:
        if _is_list(argument) and not (os.path.isfile(argument[1:]) and os.access(argument[1:], os.R_OK)):
            raise DataError(f"{shown(argument[1:])}: can't be read as a list of paths, needed is a text file")
    return itertools.chain.from_iterable(map(_expanded, given))


def _is_list(argument: str) -> bool:
    return argument.startswith("@") and not os.path.lexists(argument)


def _expanded(argument: str) -> Iterator[Path]:
    if argument == "-":
        yield from _listed(sys.stdin.buffer, "standard input")
    elif _is_list(argument):
        with open(argument[1:], "rb") as lines:
            yield from _listed(lines, argument[1:])
    elif glob.has_magic(argument) and not os.path.lexists(argument):
        for path in sorted(glob.iglob(argument, recursive=True)) or [argument]:
            yield from _under(path)
    else:
        yield from _under(argument)


def _listed(lines: BinaryIO, name: str) -> Iterator[Path]:
    number = 0
    while line := lines.readline(LINE_LIMIT):
        number += 1
        if len(line) == LINE_LIMIT:
            raise DataError(f"{shown(name)}: line {number} has {LINE_LIMIT:,} bytes or more; needed is one path a line")
        if path := line.rstrip(b"\r\n"):
            yield from _under(os.fsdecode(path))


def _under(path: str) -> Iterator[Path]:
    """Gives a file itself, or a folder's photos: its own before those of its folders, each folder once."""
    if not os.path.isdir(path):
        yield Path(path)
        return
    from ..data.layouts import EXTENSIONS

    seen: set[tuple[int, int]] = set()
    waiting = [path]
    empty = True
    while waiting:
        folder = waiting.pop()
        try:
            status = os.stat(folder)
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError:
            empty = False
            yield Path(folder)
            continue
        if (status.st_dev, status.st_ino) in seen:  # a link back to a folder above
            continue
        seen.add((status.st_dev, status.st_ino))
        folders = []
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if os.path.isdir(entry.path):
                folders.append(entry.path)
            elif os.path.splitext(entry.name)[1].lower() in EXTENSIONS:
                empty = False
                yield Path(entry.path)
        waiting += reversed(folders)
    if empty:
        yield Path(path)


# ------------------------------------------------------------------------------------------------- photos to logits


def answers(
    paths: Iterable[Path], preprocessing: Preprocessing, *engines: Runner
) -> Iterator[list[Floats] | PhotoError]:
    """Gives each engine's logits of each photo, or why it can't be read, in order.

    There is a thread for each of the first engine's, in which a photo goes from its file to its logits.
    """
    return in_order(partial(_answer, preprocessing, engines), paths, engines[0].threads)


def _answer(preprocessing: Preprocessing, engines: Sequence[Runner], path: Path) -> list[Floats] | PhotoError:
    try:
        pixels = photos.pixels(_photo(path), preprocessing, resampler=engines[0].resampler)
    except PhotoError as error:
        return error
    return [engine.one(pixels) for engine in engines]


def _photo(path: Path) -> Path:
    if os.path.isdir(path):
        kind = "no photos in this folder" if os.access(path, os.R_OK | os.X_OK) else "the folder can't be read"
        raise PhotoError(f"{shown(path)}: {kind}")
    return path


# -------------------------------------------------------------------------------------------------- pixels to labels


def predict_paths(model: Model, paths: Iterable[Path], *, top: int = 5) -> Iterator[Row]:
    """Labels photos as they come: a `Row` for each path, in order, with at most `top` labels.

    Raises:
        UsageError: the model has no classifier, or `top` is not a positive whole number.
    """
    integer("top", top, 1, 1_000_000)
    engine = classifier(model)
    return in_order(partial(_row, engine, model, top), paths, engine.threads)


def classifier(model: Model) -> Runner:
    """Returns the model's engine, or raises a `UsageError` if the model ends before its classifier."""
    if not model.network.include_top:
        raise UsageError(f"model: {model.network} has no classifier; needed is one with include_top=True")
    return model.engine


def _row(engine: Runner, model: Model, top: int, path: Path) -> Row:
    found = _answer(model.preprocessing, [engine], path)
    if isinstance(found, PhotoError):
        return Row(path, error=str(found).removeprefix(f"{shown(path)}: "))
    [logits] = found
    if not np.isfinite(logits).all():
        return Row(path, error="the model's answer is not finite; are its weights whole?")
    return Row(path, tuple(Prediction(softmax(logits), model.labels).top(top)))


# ---------------------------------------------------------------------------------------------------- rows to text


def write_rows(rows: Iterable[Row], format: Format, out: TextIO) -> int:
    """Writes rows as they come and returns how many have an error.

    "table" is aligned for reading; "jsonl" is a JSON object a line, `Row.to_dict`; "json" one document, `{"photos":
    [rows], "failed": count}`; "csv" has a line for each label, `path,rank,label,probability,error`, and one with the
    error for a photo that can't be read.
    """
    choice("format", format, get_args(Format))
    writer = {"table": _table, "jsonl": _json_lines, "json": _json, "csv": _csv}[format]
    failed = 0

    def counted() -> Iterator[Row]:
        nonlocal failed
        for row in rows:
            failed += row.error is not None
            yield row

    try:
        writer(counted(), out)
    except BaseException as error:
        if format == "json":  # still one document
            code = getattr(error, "exit_code", 130 if isinstance(error, KeyboardInterrupt) else 1)
            text = json.dumps(str(error) or "interrupted")
            out.write(f'\n], "failed": {failed}, "error": {text}, "exit_code": {code}}}\n')
        raise
    if format == "json":
        out.write(f'\n], "failed": {failed}}}\n')
    return failed


def _digits(probability: float) -> float:
    """Keeps six digits: what is beyond differs from one machine to the next."""
    return float(f"{probability:.6g}")


def _json_lines(rows: Iterator[Row], out: TextIO) -> None:
    for row in rows:
        out.write(json.dumps(row.to_dict()) + "\n")


def _json(rows: Iterator[Row], out: TextIO) -> None:
    out.write('{"photos": [')
    for number, row in enumerate(rows):
        out.write((",\n" if number else "\n") + json.dumps(row.to_dict()))


def _csv(rows: Iterator[Row], out: TextIO) -> None:
    import csv

    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("path", "rank", "label", "probability", "error"))
    for row in rows:
        # A name that is not UTF-8 has its bytes escaped, because the file must be UTF-8.
        path = str(row.path).encode("utf-8", "backslashreplace").decode()
        if row.error is not None:
            writer.writerow((path, "", "", "", row.error))
        for rank, (label, value) in enumerate(row.predictions, 1):
            writer.writerow((path, rank, label, _digits(value), ""))


def _table(rows: Iterator[Row], out: TextIO) -> None:
    head = list(itertools.islice(rows, TABLE_HEAD))
    left = max((_width(shown(row.path)) for row in head), default=0)
    right = max((_width(shown(label)) for row in head for label, _ in row.predictions), default=0)
    left, right = max(5, min(left, TABLE_PATH)), max(5, min(right, TABLE_LABEL))
    out.write(f"{'photo':<{left}}  {'label':<{right}}  probability\n")
    for row in itertools.chain(head, rows):
        path = _cell(shown(row.path), left)
        if row.error is not None:
            out.write(f"{path}  error: {row.error}\n")
        for label, value in row.predictions:
            out.write(f"{path}  {_cell(shown(label), right)}  {value:>11.1%}\n")
            path = " " * left


def _cell(text: str, width: int) -> str:
    """Pads a text to so many columns of a terminal, or cuts it in the middle."""
    if _width(text) > width:
        start, end = (width - 1) // 2, len(text) - width // 2
        while _width(text[:start] + text[end:]) > width - 1:
            start, end = max(start - 1, 0), end + 1
        text = f"{text[:start]}…{text[end:]}"
    return text + " " * (width - _width(text))


def _width(text: str) -> int:
    """Returns how many columns a terminal takes for a text: two for wide East Asian letters, none for accents."""
    return sum(
        0 if unicodedata.combining(character) else 2 if unicodedata.east_asian_width(character) in "WF" else 1
        for character in text
    )
