"""Weights in and out: a table of the sources that are read, and one of the formats that are written.

`convert` recognises a source from the file itself, by its first bytes or the files in a folder, never by its name.
A further source is a line in `SOURCES`: its module has a function (path, options) that returns the parts of a model.
"""

import contextlib
import dataclasses
import os
import stat
import zipfile
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from ..common.files import shown
from ..errors import ModelError, UsageError
from ..model import PUBLISHED, Model
from ..quantized import Rescale
from ..storage.folder import Stored
from .source import Options

_HEAD = 64  # bytes of a file that its kind is told by


class Source(NamedTuple):
    """Is a kind of file or folder that is read.

    Attributes:
        title: for messages.
        fits: tells from the path and the first bytes (none of a folder) whether it is one.
        reader: "module.function" below this package.
    """

    title: str
    fits: Callable[[Path, bytes], bool]
    reader: str


class Format(NamedTuple):
    """Is a format that is written.

    Attributes:
        title: what reads it.
        writer: "module.function" below this package: (model, path, format).
    """

    title: str
    writer: str


def _archive_of(name: str) -> Callable[[Path, bytes], bool]:
    """Returns whether a file is a zip archive with a member whose last part is `name`."""

    def fits(path: Path, head: bytes) -> bool:
        if head[:4] != b"PK\x03\x04":
            return False
        with contextlib.suppress(Exception), zipfile.ZipFile(path) as archive:
            return any(member.rpartition("/")[2] == name for member in archive.namelist())
        return False

    return fits


def _pickle(path: Path, head: bytes) -> bool:
    """Pickles of protocol 2 and up, zip archives of them, and the tar archives of old torch."""
    return head[:1] == b"\x80" or _archive_of("data.pkl")(path, head) or head[:10] == b"sys_info\x00\x00"


def _graph_def(path: Path, head: bytes) -> bool:
    """A GraphDef begins with a node, field 1, and that with its name, field 1 too."""
    return head[:1] == b"\n" and b"\n" in head[2:7]


SOURCES: tuple[Source, ...] = (
    Source("TFLite", lambda _, head: head[4:8] == b"TFL3", "graphs.read_tflite"),
    Source("folder of transformers or timm", lambda path, _: (path / "config.json").is_file(), "model_folder.read"),
    Source("Keras .h5", lambda _, head: head[:8] == b"\x89HDF\r\n\x1a\n", "keras.read"),
    Source("Keras .keras", _archive_of("model.weights.h5"), "keras.read_archive"),
    Source("torch .pth", _pickle, "state_dict.read_pickle"),
    Source("safetensors", lambda _, head: head[8:9] == b"{", "state_dict.read"),
    Source("TensorFlow frozen graph", _graph_def, "graphs.read_frozen_graph"),
)

_STATE_DICT = "state_dict.write"
FORMATS: dict[str, Format] = {
    "keras": Format("keras.applications' load_weights (.weights.h5, .h5)", "keras.write"),
    "notes": Format("load_weights of keras_model and of the source notes' listing (.weights.h5, .h5)", "keras.write"),
    "torchvision": Format("torchvision's mobilenet_v2 (.safetensors)", _STATE_DICT),
    "timm": Format("timm's mobilenetv1 and mobilenetv2 (.safetensors)", _STATE_DICT),
    "huggingface": Format("transformers' from_pretrained (a folder)", "model_folder.write"),
    "d-li14": Format("d-li14's mobilenetv2.pytorch (.safetensors)", _STATE_DICT),
    "tonylins": Format("tonylins' pytorch-mobilenet-v2 (.safetensors)", _STATE_DICT),
}


def convert(
    source: str | os.PathLike[str],
    *,
    resolution: int | tuple[int, int] | None = None,
    labels: Sequence[str] | str | os.PathLike[str] | None = None,
    scaling: str | None = None,
    include_top: bool = True,
    unpickle: bool = False,
    allow_nonfinite: bool = False,
    rescale: Rescale = "fixed",
) -> Model:
    """Reads another program's MobileNet, with the same outputs; what it is, is recognised from the file itself.

    Args:
        source: a file or folder: Keras .h5, .weights.h5 or .keras; .safetensors or .pth of torchvision, timm, d-li14 or
            tonylins; a folder of transformers or timm; .tflite; a frozen graph (.pb); or the name of published weights,
            "imagenet/v2-1.0-224".
        resolution: one side or (height, width); None for the file's own, or 224 where it holds weights alone.
        labels: one a class, or a text file with a label a line; None for the source's own, or numbers.
        scaling: of the pixels, "inception", "imagenet" or "unit"; None for the source's own, or its library's usual.
        include_top: False leaves the classifier out.
        unpickle: reads pickles (.pth) too, in a process of its own.
        allow_nonfinite: takes NaN, infinities and negative variances.
        rescale: of an integer TFLite file: "fixed", to the last bit as TFLite's reference kernels compute, or "full",
            as LiteRT does by default, with XNNPACK, and faster here too.

    Raises:
        ModelError: names the file, the layer that does not fit, both shapes, and the likely cause.
        UsageError: an argument is outside its rule, or a package that the format needs is not installed.
    """
    if isinstance(labels, str | os.PathLike):
        labels = Path(labels)
    options = Options(resolution, labels, scaling, include_top, unpickle, allow_nonfinite, rescale)
    return Model(*read(Path(source), options))


def read(path: Path, options: Options) -> Stored:
    """Returns the parts of a model from the first source in the table that fits; raises as `convert` does."""
    if str(path).startswith(PUBLISHED) and not path.exists():
        from .hub import fetch

        path, labels = fetch(str(path))
        if options.labels is None:
            options = dataclasses.replace(options, labels=labels)
    head = _head(path)
    for source in SOURCES:
        if source.fits(path, head):
            stored: Stored = _call(source.reader)(path, options)
            if options.rescale != "fixed" and stored.precision != "int8":
                raise UsageError(f"rescale: got {options.rescale!r}, which only an integer TFLite file has; "
                                 f"{shown(path)} is {stored.precision}")  # fmt: skip
            return stored
    raise ModelError(
        f"{shown(path)}: is not recognised; known are {', '.join(source.title for source in SOURCES)}, by their content"
    )


def _head(path: Path) -> bytes:
    """Returns the first bytes of a regular file, none of a folder; never waits on a FIFO."""
    try:
        if stat.S_ISDIR(os.stat(path).st_mode):
            return b""
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise ModelError(f"{shown(path)}: is not a regular file or a folder")
            return file.read(_HEAD)
    except (OSError, ValueError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"{shown(path)}: can't be read: {getattr(error, 'strerror', None) or error}") from error


def write(model: Model, path: str | os.PathLike[str], format: str) -> None:
    """Writes a model for another program; `format` is a key of `FORMATS`.

    Raises:
        ModelError: the program's network would compute something else; names the difference.
        UsageError: the format is unknown, or a package that it needs is not installed.
    """
    if format not in FORMATS:
        raise UsageError(f"format: got {format!r}, needed one of {', '.join(FORMATS)}")
    if model.precision != "f32":
        raise ModelError(
            f"format: {format} holds float32 weights, the model is {model.precision}; write the model it is of"
        )
    _call(FORMATS[format].writer)(model, Path(path), format)


def _call(place: str) -> Any:
    module, _, name = place.rpartition(".")
    return getattr(import_module(f".{module}", __name__), name)
