"""What a TFLite file says about itself: how pixels are scaled and what the outputs are called.

By the TFLite metadata specification (tensorflow_lite_support/metadata/metadata_schema.fbs, M001): a flatbuffer of its
own in a buffer of the model, and files in a zip archive behind the model.
"""

import io
import json
import zipfile
from enum import IntEnum

import numpy as np

from ..formats.flatbuffer import Fields, Scalar, Value, encode
from ..model import Model
from ..photos.preprocessing import Preprocessing

NAME = "TFLITE_METADATA"
"""Of the entry in the model's metadata that names the buffer."""
LABELS, PREPROCESSING = "labels.txt", "preprocessing.json"
_IDENTIFIER = b"M001"
_PARSER = "1.0.0"  # the oldest parser that knows all fields used here


class _Model(IntEnum):
    NAME, DESCRIPTION, VERSION, SUBGRAPHS, AUTHOR, LICENSE, FILES, MIN_PARSER_VERSION = range(8)


class _Subgraph(IntEnum):
    NAME, DESCRIPTION, INPUTS, OUTPUTS = range(4)


class _Tensor(IntEnum):
    NAME, DESCRIPTION, DIMENSION_NAMES, CONTENT, PROCESS_UNITS, STATS, FILES = range(7)


class _Content(IntEnum):
    PROPERTIES_TYPE, PROPERTIES = range(2)


class _File(IntEnum):
    NAME, DESCRIPTION, TYPE = range(3)


class _ProcessUnit(IntEnum):
    OPTIONS_TYPE, OPTIONS = range(2)


_FEATURE, _IMAGE = 1, 2  # ContentProperties
_COLOURS = {3: 1, 1: 2}  # ColorSpaceType by channels: RGB, GRAYSCALE
_NORMALIZATION = 1  # ProcessUnitOptions
_DESCRIPTIONS, _AXIS_LABELS = 1, 2  # AssociatedFileType


def encoded(model: Model, output: str) -> bytes:
    """Returns the metadata flatbuffer of a model with one input, scaled pixels, and one output called `output`."""
    scores: dict[int, Value] = {_Tensor.NAME: output, _Tensor.CONTENT: _content(_FEATURE, {})}
    if model.network.include_top:
        scores[_Tensor.FILES] = [_file(LABELS, "one line a class", _AXIS_LABELS)]
    subgraph: Fields = {_Subgraph.INPUTS: [_image(model.preprocessing)], _Subgraph.OUTPUTS: [scores]}
    fields: Fields = {
        _Model.NAME: f"MobileNet {model.network.family.upper()}",
        _Model.DESCRIPTION: str(model.network),
        _Model.SUBGRAPHS: [subgraph],
        _Model.FILES: [_file(PREPROCESSING, "how a photo becomes the input", _DESCRIPTIONS)],
        _Model.MIN_PARSER_VERSION: _PARSER,
    }
    return encode(fields, _IDENTIFIER)


def pack(tflite: bytes, model: Model) -> bytes:
    """Returns the file with labels and preprocessing packed behind it; uncompressed, as its readers map them."""
    out = io.BytesIO(tflite)
    files = {PREPROCESSING: json.dumps(model.preprocessing.to_dict())}
    if model.network.include_top:
        files[LABELS] = "".join(f"{label}\n" for label in model.labels)
    with zipfile.ZipFile(out, "a") as archive:
        for name, text in files.items():
            archive.writestr(zipfile.ZipInfo(name), text.encode())  # ZipInfo's date is fixed: same model, same bytes
    return out.getvalue()


def _image(preprocessing: Preprocessing) -> Fields:
    size = {0: Scalar("I", preprocessing.width), 1: Scalar("I", preprocessing.height)}
    colours = Scalar("b", _COLOURS.get(preprocessing.channels, 0))
    mean, std = (np.array(part, np.float32) for part in (preprocessing.mean, preprocessing.std))
    normalization: Fields = {
        _ProcessUnit.OPTIONS_TYPE: Scalar("B", _NORMALIZATION),
        _ProcessUnit.OPTIONS: {0: mean, 1: std},
    }
    return {
        _Tensor.NAME: "image",
        _Tensor.DESCRIPTION: "pixels 0..255, less the mean, over the standard deviation",
        _Tensor.CONTENT: _content(_IMAGE, {0: colours, 1: size}),
        _Tensor.PROCESS_UNITS: [normalization],
        _Tensor.STATS: {0: (255 - mean) / std, 1: (0 - mean) / std},
    }


def _content(kind: int, properties: Fields) -> Fields:
    return {_Content.PROPERTIES_TYPE: Scalar("B", kind), _Content.PROPERTIES: properties}


def _file(name: str, description: str, kind: int) -> Fields:
    return {_File.NAME: name, _File.DESCRIPTION: description, _File.TYPE: Scalar("b", kind)}
