"""Labels and preprocessing in the metadata of a TFLite file: its flatbuffer, and the zip archive behind the model."""

import io
import zipfile

import numpy as np

from ..arch import Network
from ..common import strict_json
from ..errors import ModelError, UsageError
from ..formats import tflite_schema as schema
from ..formats.flatbuffer import Table, decode
from ..formats.tflite_schema import FileType
from ..photos.preprocessing import Preprocessing

PREPROCESSING = "preprocessing.json"
"""Our own file in the archive, with what the specification has no fields for."""
_MAX_FILE = 1 << 24
_MAX_ENTRIES = 64


def read(metadata: bytes, file: bytes, network: Network) -> tuple[tuple[str, ...] | None, Preprocessing | None]:
    """Returns the labels and the preprocessing that a TFLite file comes with, each None where it has none.

    Args:
        metadata: the metadata flatbuffer, empty if there is none.
        file: the whole file.
        network: whose input and classes they must fit.

    Raises:
        ModelError: says what of the metadata is damaged or does not fit.
    """
    if not metadata:
        return None, None
    root = decode(metadata, schema.METADATA_IDENTIFIER)
    subgraphs = root.tables(schema.ModelMetadata.SUBGRAPHS, _MAX_ENTRIES)
    inputs = [table for graph in subgraphs for table in graph.tables(schema.SubgraphMetadata.INPUTS, _MAX_ENTRIES)]
    outputs = [table for graph in subgraphs for table in graph.tables(schema.SubgraphMetadata.OUTPUTS, _MAX_ENTRIES)]
    labels = [name for table in outputs for name in _named(table, schema.TensorMetadata.FILES, FileType.AXIS_LABELS)]
    described = _named(root, schema.ModelMetadata.FILES, FileType.DESCRIPTIONS)
    ours = [PREPROCESSING] if PREPROCESSING in described else []
    files = _files(file, [*labels[:1], *ours])
    lines = _lines(files[labels[0]], network) if labels else None
    return lines, _preprocessing(files.get(PREPROCESSING), inputs, network)


def _lines(data: bytes, network: Network) -> tuple[str, ...] | None:
    if not network.include_top:
        return None
    lines = tuple(data.decode("utf-8", "replace").removesuffix("\n").replace("\r\n", "\n").split("\n"))
    if len(lines) != network.classes:
        raise ModelError(f"TFLite metadata: {len(lines):,} labels for {network.classes:,} classes")
    return lines


def _preprocessing(data: bytes | None, inputs: list[Table], network: Network) -> Preprocessing | None:
    if data is not None:
        try:
            found = Preprocessing.from_dict(strict_json.parse(data))
        except ValueError as error:
            raise ModelError(f"TFLite metadata: {PREPROCESSING} {error}") from None
        if (found.height, found.width, found.channels) != network.input:
            raise ModelError(f"TFLite metadata: {PREPROCESSING} is for another input than {tuple(network.input)}")
        return found
    for table in inputs:
        for unit in table.tables(schema.TensorMetadata.PROCESS_UNITS, _MAX_ENTRIES):
            options = unit.table(schema.ProcessUnit.OPTIONS)
            if options is not None and unit.integer(schema.ProcessUnit.OPTIONS_TYPE, "B") == schema.NORMALIZATION:
                mean, std = (_floats(options, part) for part in schema.Normalization)
                try:
                    return Preprocessing(*network.input, mean=mean, std=std)
                except UsageError as error:
                    raise ModelError(f"TFLite metadata: {error}") from None
    return None


def _floats(table: Table, field: int) -> tuple[float, ...]:
    found = table.array(field, "f4")
    # The shortest number that rounds to the float32: 123.675, not 123.67500305.
    return () if found is None else tuple(float(str(value)) for value in found[:1025].astype(np.float32))


def _named(table: Table, field: int, kind: FileType) -> list[str]:
    """Returns the names of the associated files of a kind."""
    entries = table.tables(field, _MAX_ENTRIES)
    found = [entry for entry in entries if entry.integer(schema.AssociatedFile.TYPE, "b") == kind]
    return [entry.text(schema.AssociatedFile.NAME) for entry in found]


def _files(file: bytes, names: list[str]) -> dict[str, bytes]:
    """Returns the contents of the named files of the archive; nothing is written anywhere."""
    if not names:
        return {}
    try:
        with zipfile.ZipFile(io.BytesIO(file)) as archive:
            return {name: _contents(archive, name) for name in names}
    except ModelError:
        raise
    except Exception as error:  # of damage zipfile raises a dozen kinds, EOFError and struct.error among them
        raise ModelError(f"TFLite metadata: the archive behind the model can't be read: {error!r}") from None


def _contents(archive: zipfile.ZipFile, name: str) -> bytes:
    if archive.getinfo(name).compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ModelError(f"TFLite metadata: {name!r} is compressed otherwise than zip files usually are")
    with archive.open(name) as file:
        data = file.read(_MAX_FILE + 1)
    if len(data) > _MAX_FILE:
        raise ModelError(f"TFLite metadata: {name!r} has more than {_MAX_FILE:,} bytes")
    return data
