"""The model folder: config.json, model.safetensors and README.md, written whole or not at all and read with suspicion.

The format stands in docs/model-folder.md. The config gives the network, and the network the name and shape of every
tensor, so what the file of weights must hold is known before it is opened.
"""

import contextlib
import hashlib
import json
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, cast

from numpy.typing import NDArray

from .. import quantized
from ..arch import Network
from ..common import strict_json
from ..common.checks import refuse_unknown, short
from ..common.files import read_regular, shown, write_atomic
from ..errors import DataError, MobileNetError, ModelError, UsageError
from ..photos.preprocessing import Preprocessing
from ..quantized import Rescale
from ..weights import check, check_shapes, check_values
from . import tensors_file
from .tensors_file import Shapes

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
FORMAT, VERSION = "mobilenet model", 1

_KEYS = ("format", "version", "network", "labels", "preprocessing", "sha256", "notes")
_PRECISION = "precision"  # the key that only the config of an int8 model has
_RESCALE = "rescale"  # the key that only the config of an int8 model with another rescale than "float" has
_STAGED = re.compile(r"model\.[0-9a-f]{16}\.safetensors")
_TEMPORARY = re.compile(r"\.[0-9a-f]{16}\.tmp")  # as `write_atomic` names them
_ABANDONED = 3600  # seconds after which nobody writes to a temporary file any more
_MAX_LABEL = 1000  # characters
_RETRIES = 100  # of reading a folder that somebody saves into: each one more takes one more save

_T = TypeVar("_T")

Precision = Literal["f32", "int8"]


class Stored(NamedTuple):
    """Is what a model folder holds.

    Attributes:
        network: the architecture.
        tensors: by name, those of `network.tensors` in float32, or of an int8 model those of `quantized.specs`.
        labels: one for each class, or None if the classes have numbers only.
        preprocessing: how a photo becomes the network's input.
        notes: facts of the run that made the model, as plain data: section -> fact -> value.
        precision: "f32" or "int8".
        rescale: of an int8 model.
    """

    network: Network
    tensors: dict[str, NDArray[Any]]
    labels: tuple[str, ...] | None
    preprocessing: Preprocessing
    notes: Mapping[str, Any]
    precision: Precision = "f32"
    rescale: Rescale = "float"


def save(folder: str | os.PathLike[str], stored: Stored, *, allow_nonfinite: bool = False) -> None:
    """Writes a model folder whole or not at all: after a failure at any moment it holds the old model or the new.

    The new weights lie beside the old under a name of their own; config.json, which names their SHA-256, is what makes
    them the model. The folder is made if need be; other files in it are left alone.

    Raises:
        ModelError: names the tensor or label that does not fit, or the folder that holds files of something else.
        MobileNetError: names the file that could not be written, and why.
    """
    folder = Path(folder)
    network = stored.network
    check_tensors(network, stored.tensors, stored.precision, stored.rescale, allow_nonfinite=allow_nonfinite)
    check_labels(network, stored.labels)
    check_preprocessing(network, stored.preprocessing)
    names = quantized.specs(network, stored.rescale) if stored.precision == "int8" else network.tensors
    data = tensors_file.encode({name: stored.tensors[name] for name in names})
    sha256 = hashlib.sha256(data).hexdigest()
    config = _config(stored, sha256)
    from . import card  # predicting needs none of what it imports

    text = card.text(network, stored.labels, stored.notes, len(data) if stored.precision == "int8" else None).encode()
    made = _make(folder)
    try:
        _refuse_other_files(folder)
        write_atomic(folder / _staged(sha256), data)
        write_atomic(folder / CONFIG, config)  # from here on the folder holds the new model
        _rename(folder / _staged(sha256), folder / WEIGHTS)
        write_atomic(folder / CARD, text)
    except BaseException:
        _sweep(folder)
        if made:
            with contextlib.suppress(OSError):  # there is a file in it: it stays
                folder.rmdir()
        raise
    _sweep(folder)


def load(folder: str | os.PathLike[str], *, allow_nonfinite: bool = False) -> Stored:
    """Reads a model folder.

    Takes no more memory than the file of weights has bytes, and 16 MiB. Links in place of the files are refused.

    Raises:
        ModelError: names the file and what in it is wrong and would be right.
    """
    path = Path(folder) / CONFIG
    for _ in range(_RETRIES):
        before = _identity(path)
        try:
            return _load(path, _read_config(path), allow_nonfinite)
        except ModelError:
            if _identity(path) == before:  # else a new model took its place meanwhile
                raise
    return _load(path, _read_config(path), allow_nonfinite)


def load_float(folder: str | os.PathLike[str]) -> Stored:
    """Reads a model folder as `load` does; raises a `ModelError` too where the model is quantised."""
    stored = load(folder)
    if stored.precision != "f32":
        raise ModelError(
            f"{shown(os.fspath(folder))}: is an int8 model; needed is the float32 model that it was made from"
        )
    return stored


def check_tensors(
    network: Network,
    tensors: Mapping[str, NDArray[Any]],
    precision: Precision,
    rescale: Rescale,
    *,
    allow_nonfinite: bool = False,
) -> None:
    """Raises a `ModelError` unless the tensors are those of a model of this precision and rescale."""
    if precision == "int8":
        quantized.check(network, tensors, rescale)
    else:
        check(network, tensors, allow_nonfinite=allow_nonfinite)


def check_labels(network: Network, labels: Sequence[str] | None) -> None:
    """Raises a `ModelError` unless there is one printable label a class, or none at all."""
    if labels is None:
        return
    if not network.include_top:
        raise ModelError(f"labels: there are {len(labels):,}, and {network} has no classifier; needed are none")
    if len(labels) != network.classes:
        raise ModelError(f"labels: there are {len(labels):,} for {network.classes:,} classes; needed is one a class")
    for index, label in enumerate(labels):
        # Control characters could write over a terminal; joiners and marks of scripts are wanted.
        bad = not isinstance(label, str) or re.search("[\0-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", label)
        if bad or not 0 < len(label) <= _MAX_LABEL:
            raise ModelError(
                f"labels: label {index} is {short(label)}; needed is a text of 1 to {_MAX_LABEL} characters without "
                "control characters"
            )


def check_preprocessing(network: Network, preprocessing: Preprocessing) -> None:
    """Raises a `ModelError` unless photos come out in the size of the network's input."""
    made = (preprocessing.height, preprocessing.width, preprocessing.channels)
    if made != network.input:
        raise ModelError(f"preprocessing: makes an input of {made}, {network} needs {tuple(network.input)}")


def _config(stored: Stored, sha256: str) -> bytes:
    content: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "network": stored.network.to_dict(),
        "labels": stored.labels,
        "preprocessing": stored.preprocessing.to_dict(),
        "sha256": sha256,
        "notes": stored.notes,
    }
    content |= {_PRECISION: stored.precision} if stored.precision == "int8" else {}
    content |= {_RESCALE: stored.rescale} if stored.rescale != "float" else {}
    try:
        text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False).encode()
        strict_json.parse(text)
    except (TypeError, ValueError) as error:
        raise ModelError(f"{CONFIG}: can't hold these labels and notes: {error}") from error
    return text


def _staged(sha256: str) -> str:
    return f"model.{sha256[:16]}.safetensors"


def _make(folder: Path) -> bool:
    """Returns whether the folder was made just now."""
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        return False
    except (OSError, ValueError) as error:
        raise MobileNetError(f"{shown(folder)}: can't be made: {getattr(error, 'strerror', None) or error}") from error
    return True


def refuse_output(folder: Path) -> None:
    """Raises where no model is to be made in a folder: before the work that makes it, which `save` comes after.

    Raises:
        UsageError: it is a file, or a folder of photos; names the photo or the folder in it.
        ModelError: names the file that no model of ours put there.
    """
    from ..data.layouts import EXTENSIONS  # reading a model needs none of it

    if not os.path.lexists(folder):
        above = next(parent for parent in Path(os.path.abspath(folder)).parents if os.path.lexists(parent))
        if not above.is_dir() or not os.access(above, os.W_OK):
            why = "nothing may be written into" if above.is_dir() else "there is no folder"
            raise UsageError(f"output: {shown(folder)} can't be made: {why} {shown(above)}; choose another folder")
        return
    if not folder.is_dir():
        raise UsageError(f"output: {shown(folder)} is no folder; name one, to be made")
    _refuse_other_files(folder)
    if os.path.lexists(folder / CONFIG):
        return
    for path in sorted(folder.iterdir()):
        if not path.name.startswith(".") and (path.is_dir() or path.suffix.lower() in EXTENSIONS):
            raise UsageError(
                f"output: {shown(folder)} holds '{shown(path.name)}' and no model; choose a folder of its own"
            )


def refuse_inside(folder: Path, photos: Path) -> None:
    """Raises UsageError where a folder that is to be made would be one of a data set's."""
    if Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(photos)):
        raise UsageError(
            f"output: {shown(folder)} lies in the data set and would become a class; choose a folder outside"
        )


def _refuse_other_files(folder: Path) -> None:
    """Raises if a file would be overwritten that no model of ours put there."""
    if not os.path.isdir(folder):
        raise ModelError(f"{shown(folder)}: is a file, a folder is needed")
    taken = [name for name in (CONFIG, WEIGHTS, CARD) if os.path.lexists(folder / name)]
    if taken and _saved_sha256(folder) is None:
        raise ModelError(
            f"{shown(folder / taken[0])}: would be overwritten, and {shown(folder)} holds no model of mobilenet; "
            "choose another folder"
        )


def _saved_sha256(folder: Path) -> str | None:
    """Returns the hash that the folder's config names, "" if it names none; None if there is no config of ours."""
    try:
        config = strict_json.parse(_read_config(folder / CONFIG))
    except ValueError:
        return None
    ours = isinstance(config, dict) and config.get("format") == FORMAT
    return str(config.get("sha256") or "") if ours else None


def _rename(source: Path, target: Path) -> None:
    try:
        os.replace(source, target)
    except OSError as error:
        raise MobileNetError(f"{shown(target)}: can't be written: {error.strerror}") from error


def _sweep(folder: Path) -> None:
    """Removes weights that were staged and never became the model, and what a process that was killed left behind."""
    with contextlib.suppress(OSError):
        named = _saved_sha256(folder)
        if named is None and os.path.lexists(folder / CONFIG):
            return  # it can't be read just now: what is staged may be the model
        for name in os.listdir(folder):
            stale = _STAGED.fullmatch(name) and not (named and name == _staged(named))
            if stale or (_TEMPORARY.fullmatch(name) and time.time() - os.stat(folder / name).st_mtime > _ABANDONED):
                os.unlink(folder / name)


def _read_config(path: Path) -> bytes:
    try:
        return read_regular(path, strict_json.LIMIT, follow_symlinks=False)
    except DataError as error:
        hint = f"; a model is a folder with {CONFIG} and {WEIGHTS}" if not os.path.lexists(path) else ""
        if os.path.isfile(path.parent):
            hint += ", which `mobilenet import` makes of another program's file"
        raise ModelError(f"{error}{hint}") from error


def _identity(path: Path) -> tuple[int, int] | None:
    """Returns what tells a file from the one that was in its place before: each save puts a new one there."""
    with contextlib.suppress(OSError, ValueError):
        found = os.lstat(path)
        return found.st_ino, found.st_mtime_ns
    return None


def _load(path: Path, text: bytes, allow_nonfinite: bool) -> Stored:
    with _named(path):
        config = strict_json.parse(text)
        network = _network(config)
        labels = None if config["labels"] is None else tuple(_kind("labels", config["labels"], list))
        check_labels(network, labels)
        preprocessing = Preprocessing.from_dict(config["preprocessing"])
        check_preprocessing(network, preprocessing)
        notes = _kind("notes", config["notes"], dict)
        sha256 = config["sha256"]
        if sha256 is not None and not (isinstance(sha256, str) and re.fullmatch("[0-9a-f]{64}", sha256)):
            raise ModelError(f"sha256: got {short(sha256)}, needed 64 hexadecimal digits, or null for no check")
        precision, rescale = _precision(config)
    tensors = _read_weights(path.parent, network, sha256, precision, rescale)
    with _named(path.parent / WEIGHTS):
        if precision == "int8":
            quantized.check_values(network, tensors, rescale)
        elif not allow_nonfinite:
            check_values(tensors)
    return Stored(network, tensors, labels, preprocessing, notes, precision, rescale)


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Puts the file's name in front of what is wrong with its content."""
    try:
        yield
    except ValueError as error:  # as all our errors about data and arguments are
        raise ModelError(f"{shown(path)}: {error}") from error


def _network(config: object) -> Network:
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise ModelError(f"is not the config of a model: needed is an object with the format {FORMAT!r}")
    if config.get("version") != VERSION:
        raise ModelError(f"version: got {short(config.get('version'))}, this program reads version {VERSION}")
    refuse_unknown("config", config, (*_KEYS, _PRECISION, _RESCALE))
    missing = [key for key in _KEYS if key not in config]
    if missing:
        raise ModelError(f"config: the key {missing[0]!r} is missing")
    return Network.from_dict(config["network"])


def _precision(config: Mapping[str, Any]) -> tuple[Precision, Rescale]:
    if config.get(_PRECISION, "int8") != "int8":
        raise ModelError(f"{_PRECISION}: got {short(config[_PRECISION])}, needed 'int8', or no such key for float32")
    rescale = config.get(_RESCALE, "float")
    if _RESCALE in config and (rescale not in ("full", "fixed") or _PRECISION not in config):
        raise ModelError(f"{_RESCALE}: got {short(rescale)}, needed 'full' or 'fixed' beside the precision 'int8', or "
                         "no such key")  # fmt: skip
    return "int8" if _PRECISION in config else "f32", cast(Rescale, rescale)


def _kind(name: str, value: object, kind: type[_T]) -> _T:
    if not isinstance(value, kind):
        raise ModelError(f"{name}: got {short(value)}, needed {'an object' if kind is dict else 'a list'}")
    return value


def _read_weights(
    folder: Path, network: Network, sha256: str | None, precision: Precision, rescale: Rescale
) -> dict[str, NDArray[Any]]:
    def choose(shapes: Shapes) -> Iterable[str]:
        if precision == "int8":
            return quantized.check_shapes(network, shapes, rescale)
        return check_shapes(network, shapes)

    types = quantized.types(network, rescale) if precision == "int8" else None
    names = [WEIGHTS] if sha256 is None else [_staged(sha256), WEIGHTS]  # the first if a save was interrupted
    for name in names:
        with contextlib.suppress(FileNotFoundError):
            return tensors_file.read(folder / name, choose, sha256, types=types)
    raise ModelError(f"{shown(folder / WEIGHTS)}: is missing; {CONFIG} is there, the weights are not")
