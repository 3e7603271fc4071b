"""What a TFLite file says about itself: how pixels are scaled and what the outputs are called.

By the TFLite metadata specification: a flatbuffer of its own in a buffer of the model, and files in a zip archive
behind the model. Beside the labels there is a file of ours with all of the preprocessing, for which the specification
has no fields.
"""

import io
import json
import zipfile

import numpy as np

from ..formats.flatbuffer import Fields, Scalar, Value, encode
from ..formats.tflite_schema import (
    METADATA_IDENTIFIER,
    NORMALIZATION,
    AssociatedFile,
    ColorSpace,
    Content,
    ContentType,
    FileType,
    Image,
    ImageSize,
    ModelMetadata,
    Normalization,
    ProcessUnit,
    Stats,
    SubgraphMetadata,
    TensorMetadata,
)
from ..model import Model
from ..photos.preprocessing import Preprocessing
from .int8 import preprocessing

LABELS, PREPROCESSING = "labels.txt", "preprocessing.json"
_PARSER = "1.0.0"  # the oldest parser that knows all fields used here
_COLORS = {3: ColorSpace.RGB, 1: ColorSpace.GRAYSCALE}


def encoded(model: Model, output: str) -> bytes:
    """Returns the metadata flatbuffer of a model with one input, scaled pixels, and one output called `output`.

    Of an int8 model the scaling is what the input's own scale and zero point undo.
    """
    scores: dict[int, Value] = {
        TensorMetadata.NAME: output,
        TensorMetadata.CONTENT: _content(ContentType.FEATURE, {}),
    }
    if model.network.include_top:
        scores[TensorMetadata.FILES] = [_file(LABELS, "one line a class", FileType.AXIS_LABELS)]
    subgraph: Fields = {
        SubgraphMetadata.INPUTS: [_image(preprocessing(model, centred=True))],
        SubgraphMetadata.OUTPUTS: [scores],
    }
    fields: Fields = {
        ModelMetadata.NAME: f"MobileNet {model.network.family.upper()}",
        ModelMetadata.DESCRIPTION: str(model.network),
        ModelMetadata.SUBGRAPHS: [subgraph],
        ModelMetadata.FILES: [_file(PREPROCESSING, "how a photo becomes the input", FileType.DESCRIPTIONS)],
        ModelMetadata.MIN_PARSER_VERSION: _PARSER,
    }
    return encode(fields, METADATA_IDENTIFIER)


def pack(tflite: bytes, model: Model) -> bytes:
    """Returns the file with labels and preprocessing packed behind it; uncompressed, as its readers map them."""
    out = io.BytesIO(tflite)
    files = {PREPROCESSING: json.dumps(preprocessing(model, centred=True).to_dict())}
    if model.network.include_top:
        files[LABELS] = "".join(f"{label}\n" for label in model.labels)
    with zipfile.ZipFile(out, "a") as archive:
        for name, text in files.items():
            archive.writestr(zipfile.ZipInfo(name), text.encode())  # ZipInfo's date is fixed: same model, same bytes
    return out.getvalue()


def _image(given: Preprocessing) -> Fields:
    size: Fields = {
        ImageSize.WIDTH: Scalar("I", given.width),
        ImageSize.HEIGHT: Scalar("I", given.height),
    }
    colors = Scalar("b", _COLORS.get(given.channels, ColorSpace.UNKNOWN))
    mean, std = (np.array(part, np.float32) for part in (given.mean, given.std))
    normalization: Fields = {
        ProcessUnit.OPTIONS_TYPE: Scalar("B", NORMALIZATION),
        ProcessUnit.OPTIONS: {Normalization.MEAN: mean, Normalization.STD: std},
    }
    return {
        TensorMetadata.NAME: "image",
        TensorMetadata.DESCRIPTION: "pixels 0..255, less the mean, over the standard deviation",
        TensorMetadata.CONTENT: _content(ContentType.IMAGE, {Image.COLOR_SPACE: colors, Image.SIZE: size}),
        TensorMetadata.PROCESS_UNITS: [normalization],
        TensorMetadata.STATS: {Stats.MAX: (255 - mean) / std, Stats.MIN: (0 - mean) / std},
    }


def _content(kind: ContentType, properties: Fields) -> Fields:
    return {Content.PROPERTIES_TYPE: Scalar("B", kind), Content.PROPERTIES: properties}


def _file(name: str, description: str, kind: FileType) -> Fields:
    return {
        AssociatedFile.NAME: name,
        AssociatedFile.DESCRIPTION: description,
        AssociatedFile.TYPE: Scalar("b", kind),
    }
