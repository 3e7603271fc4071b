"""Models as other runtimes' files, each run again in its own runtime before it is written, and as other libraries'.

A further format is a line in `FORMATS`: its module has a function (model, path, **options) that checks, writes, and
returns what it wrote.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from ..common.files import check_target, shown
from ..common.text import bytes_text
from ..convert import FORMATS as LIBRARIES
from ..errors import UsageError
from ..model import Model


@dataclass(frozen=True)
class Exported:
    """Is what was written.

    Attributes:
        files: path -> bytes.
        format: a key of `FORMATS`.
        checked: what ran the file and how its outputs compare, or that it was not run; of an int8 model also why it is
            not bit for bit, where it can't be.
        difference: largest between an output and the reference's, None if it was not run.
    """

    files: Mapping[str, int]
    format: str
    checked: str
    difference: float | None

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as plain data."""
        return {**vars(self), "files": dict(self.files)}

    def __str__(self) -> str:
        return "\n".join([*(f"{name}: {bytes_text(size)}" for name, size in self.files.items()), self.checked])


class Format(NamedTuple):
    """Is a format that is written.

    Attributes:
        title: what runs it.
        suffixes: endings of a file's name that mean it.
        options: names of the arguments that its writer takes.
        writer: "module.function" below this package.
        precisions: of the models that it takes.
    """

    title: str
    suffixes: tuple[str, ...]
    options: tuple[str, ...]
    writer: str
    precisions: tuple[str, ...] = ("f32",)


_BOTH = ("f32", "int8")
FORMATS: dict[str, Format] = {
    "onnx": Format("ONNX Runtime, OpenVINO", (".onnx",), ("pixels", "softmax", "check"), "checked.write_onnx", _BOTH),
    "tflite": Format("LiteRT (TensorFlow Lite)", (".tflite",), ("softmax", "check"), "checked.write_tflite", _BOTH),
    "native": Format(
        "C programs, browsers",
        (".o", ".so", ".wasm"),
        ("target", "symbol", "weights", "softmax", "check"),
        "native.export",
        _BOTH,
    ),
}
_LIBRARY = "library.write"
FORMATS |= {name: Format(known.title, (), (), _LIBRARY) for name, known in LIBRARIES.items()}


def export(model: Model, path: str | os.PathLike[str], format: str | None = None, **options: Any) -> Exported:
    """Writes a model for another runtime, whole or not at all, after that runtime has given the reference's outputs.

    Args:
        path: of the file.
        format: a key of `FORMATS`; None to tell it from the path's ending, which those of libraries do not have.
        options: `pixels` (onnx): the input is the photo's uint8 [N, height, width, channels], scaled in the graph;
            an int8 model's is uint8 anyway, and without `pixels` [N, channels, height, width]; `softmax`: the outputs
            are probabilities (native: only of models with a classifier); `check=False` leaves out running the file;
            `target` (native): one of `native.NAMES`; `symbol` (native): with which the C names begin; `weights`
            (native): "inside" the code or "beside" it.

    Raises:
        UsageError: names the format or option that is unknown.
        MobileNetError: the runtime is not installed, the folder is missing, or the file can't be written.
        ModelError: the library's network is another; names the difference.
        GateError: the outputs differ from the reference's by more than rounding; nothing was written.
    """
    path = Path(path)
    meant = next((name for name, known in FORMATS.items() if path.suffix.lower() in known.suffixes), None)
    format = format or meant
    if format not in FORMATS:
        endings = ", ".join(f"{ending} ({name})" for name, known in FORMATS.items() for ending in known.suffixes)
        given = repr(format) if format else f"the ending of {shown(path.name)!r}"
        raise UsageError(f"format: got {given}, needed one of {endings}; or by name {', '.join(LIBRARIES)}")
    known = FORMATS[format]
    if meant not in (None, format):
        raise UsageError(
            f"format: got {format!r} for {shown(path.name)!r}, whose ending means {meant}; change one of them"
        )
    if model.precision not in known.precisions:
        raise UsageError(f"{format}: the model is {model.precision}, needed is {' or '.join(known.precisions)}")
    if model.precision == "int8" and model.rescale == "fixed" and format != "native":
        raise UsageError(f"{format}: the model computes as the TFLite file that it came from; use that file")
    for name in options:
        if name not in known.options:
            raise UsageError(f"{name}: {format} does not have that option; it has {', '.join(known.options) or 'none'}")
    if known.writer == _LIBRARY:
        options = {"format": format}
    else:
        check_target(path)  # some formats take long to make
    module, _, function = known.writer.rpartition(".")
    written: Exported = getattr(import_module(f".{module}", __name__), function)(model, path, **options)
    return written
