"""Keras' files: .h5 and .keras of whole models, whose config says what the layers are, and weights alone, by name.

Arrays alone are read; of the config only what `keras_graph` knows. Weights are written as Keras' own programs read
them: .h5 as Keras 2 and 3 do, .weights.h5 as Keras 3 does.
"""

import dataclasses
import io
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..arch import Layer, Network
from ..common import strict_json
from ..common.checks import short
from ..common.files import read_regular, shown, write_atomic
from ..errors import DataError, ModelError, UsageError
from ..model import Model
from ..storage import keras_h5
from ..storage.folder import Stored
from ..storage.tensors_file import Shapes, Tensors
from . import by_name
from .keras_graph import Graph, graph
from .match import match
from .names import KERAS, Source, keys, theirs
from .source import Options, finish
from .state_dict import source_for

_CONFIG, _WEIGHTS = "config.json", "model.weights.h5"
_MAX_ARCHIVE = 4 << 30  # bytes
_MAX_MEMBERS = 1_000
_MAX_RATIO = 8  # of a member's size to the archive's: weights hardly shrink
_DAMAGED = (zipfile.BadZipFile, zlib.error, struct.error, OSError, ValueError, LookupError, RuntimeError, EOFError)
_PREFER = ("keras", "notes", "mlperf_tiny")
_CLASSES = {"depthwise": "depthwise_conv2d", "dense": "dense"}


def read(path: Path, options: Options) -> Stored:
    """Reads a .h5 file, a whole model or weights alone.

    Raises:
        ModelError: names the file and the layer; both shapes, and the likely cause.
        UsageError: h5py is not installed.
    """
    config = keras_h5.model_config(path, strict_json.LIMIT)
    if config is None:
        return _weights_alone(path, options)
    return _whole(path, config, options, None)


def read_archive(path: Path, options: Options) -> Stored:
    """Reads a .keras file, as `read` does: two members of the archive, in memory; nothing is unpacked.

    Raises:
        ModelError: the archive holds a name that leads out of it, or one twice; else as `read`.
    """
    try:
        archive = zipfile.ZipFile(io.BytesIO(read_regular(path, _MAX_ARCHIVE)))
        _check_members(path, archive.infolist())
        config, weights = archive.read(_CONFIG), archive.read(_WEIGHTS)
    except DataError as error:
        raise ModelError(str(error)) from error
    except _DAMAGED as error:
        raise ModelError(f"{shown(path)}: is no .keras file: {shown(str(error))}") from error
    return _whole(path, config, options, io.BytesIO(weights))


def _check_members(path: Path, members: Sequence[zipfile.ZipInfo]) -> None:
    names = [member.filename for member in members]
    if len(names) > _MAX_MEMBERS or len(set(names)) < len(names):
        raise ModelError(f"{shown(path)}: holds {len(names):,} members, or two of one name")
    size = path.stat().st_size
    for member in members:
        if member.filename.startswith("/") or ".." in member.filename.replace("\\", "/").split("/"):
            raise ModelError(f"{shown(path)}: holds {short(member.filename)}, which leads out of the archive")
        if member.file_size > _MAX_RATIO * size:
            raise ModelError(f"{shown(path)}: {short(member.filename)} would have {member.file_size:,} bytes")


def _whole(path: Path, config: bytes, options: Options, weights: io.BytesIO | None) -> Stored:
    try:
        description = strict_json.parse(config)
        found = graph(description, options.sides())
        if not options.include_top:
            found = _without_top(found)
        network = match(found.layers, found.epsilon, _PREFER)
        network = network.replace(conventions=_conventions(network, found))
        names = dict(_group_names(description, "/layers")) if weights else {}
    except ValueError as error:
        raise ModelError(f"{shown(path)}: {error}") from error
    places = dict(_places(network, found))

    def choose(layers: keras_h5.Layers) -> dict[str, Any]:
        _check(network, places, layers)
        return {layer: None for layer, _ in places.values()}

    arrays = keras_h5.read(path, choose, weights, names)
    tensors = {tensor: arrays[layer][part].reshape(network.tensors[tensor]) for tensor, (layer, part) in places.items()}
    preprocessing = None
    if found.scale and found.offset:
        scale, offset = np.broadcast_arrays(np.array(found.scale), np.array(found.offset))
        mean, std = -offset / scale, 1 / scale
        preprocessing = {"mean": _rounded(mean), "std": _rounded(std)}
    return finish(path, "Keras model", network, tensors, options, preprocessing=preprocessing)


def _rounded(values: "np.ndarray[Any, np.dtype[np.float64]]") -> tuple[float, ...]:
    """Returns the numbers without what a division and its inverse leave behind."""
    return tuple(round(float(value), 9) + 0.0 for value in values)


def _without_top(found: Graph) -> Graph:
    end = next((n for n, layer in enumerate(found.layers) if layer.kind in ("average_pool", "dense")), None)
    return dataclasses.replace(found, layers=found.layers[:end], weights=found.weights[:end])


def _conventions(network: Network, found: Graph) -> Any:
    momentum = network.conventions.batch_norm_momentum if found.momentum is None else found.momentum
    return dataclasses.replace(network.conventions, batch_norm_momentum=momentum, dropout=found.dropout)


def _places(network: Network, found: Graph) -> Iterator[tuple[str, tuple[str, str]]]:
    for layer, weights in zip(network.layers, found.weights, strict=True):
        for tensor in layer.tensors:
            yield tensor, weights[tensor.rpartition(".")[2]]


def _check(network: Network, places: Mapping[str, tuple[str, str]], layers: keras_h5.Layers) -> None:
    """Raises unless the arrays are there and have the shapes of the config's layers."""
    for tensor, (layer, part) in places.items():
        if part not in layers.get(layer, {}):
            raise ModelError(f"layer {short(layer)}: {part} is missing among the arrays")
        shape, needed = layers[layer][part], network.tensors[tensor]
        if [n for n in shape if n != 1] != [n for n in needed if n != 1] or np.prod(shape) != np.prod(needed):
            raise ModelError(f"layer {short(layer)}: {part} has shape {shape}, its config says {needed}")


def _group_names(config: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    """Yields group -> name of each layer, as Keras 3 numbers the classes in the order of the layers."""
    counts: dict[str, int] = {}
    for entry in config["config"]["layers"]:
        kind = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", entry["class_name"])
        kind = re.sub("([a-z])([A-Z])", r"\1_\2", kind).lower()
        counts[kind] = counts.get(kind, -1) + 1
        group = f"{prefix}/{kind}_{counts[kind]}" if counts[kind] else f"{prefix}/{kind}"
        yield group, str(entry.get("name") or entry["config"]["name"])
        if isinstance(entry["config"].get("layers"), list):
            yield from _group_names(entry, f"{group}/layers")


def _weights_alone(path: Path, options: Options) -> Stored:
    found: list[by_name.Fit] = []

    def choose(layers: keras_h5.Layers) -> keras_h5.Layers:
        flat: Shapes = {f"{layer}/{part}": shape for layer, parts in layers.items() for part, shape in parts.items()}
        dense = [layer for layer, parts in layers.items() if len(parts.get("kernel", ())) == 2]
        own = [dataclasses.replace(source, older=dense[0]) for source in KERAS] if len(dense) == 1 else []
        found.append(by_name.fit([*KERAS, *own], flat))  # a classifier of one's own has a name of one's own
        return layers

    arrays = keras_h5.read(path, choose)
    fit = found[0]
    tensors = fit.tensors({f"{layer}/{part}": a for layer, parts in arrays.items() for part, a in parts.items()})
    return finish(path, fit.source.title, fit.network, tensors, options)


# --------------------------------------------------------------------------------------------------------- writing


def write(model: Model, path: Path, format: str) -> None:
    """Writes weights that `load_weights` of the Keras model reads: of `keras.applications`, or of `keras_model`.

    Args:
        model: what to write.
        path: ends in .weights.h5 (Keras 3) or .h5 (Keras 2 and 3).
        format: "keras" has the names of `keras.applications`, "notes" those of the source notes.

    Raises:
        ModelError: `keras.applications` has no such network; names the difference.
        UsageError: h5py is not installed.
    """
    try:
        import h5py
    except ImportError:
        raise UsageError(f"{shown(path)}: writing .h5 files needs h5py: pip install h5py") from None
    source = source_for(model, KERAS, format)
    if path.suffix != ".h5":
        raise ModelError(f"{shown(path)}: needed is a name that ends in .weights.h5 or .h5")
    data = io.BytesIO()
    with h5py.File(data, "w") as file:
        layers = _by_layer(model, source)
        (_write_numbered if path.name.endswith(".weights.h5") else _write_named)(file, layers)
    write_atomic(path, data.getvalue())


def _by_layer(model: Model, source: Source) -> dict[str, tuple[str, Tensors]]:
    """Returns Keras' layer -> (its class in small letters, its arrays by Keras' names)."""
    network = model.network
    found: dict[str, tuple[str, Tensors]] = {}
    for tensor, key in keys(source, network).items():
        name, _, part = key.partition("/")
        owner, _, ours = tensor.rpartition(".")
        layer = network.by_name[owner]
        array = model.tensors[tensor]
        held = found.setdefault(name, (_class(source, layer, ours), {}))[1]
        held[part] = theirs(source, layer, array) if ours == "weight" else array
    return found


def _class(source: Source, layer: Layer, part: str) -> str:
    if part not in ("weight", "bias"):
        return "batch_normalization"
    return "conv2d" if layer.kind == "dense" and source.convolved_top else _CLASSES.get(layer.kind, "conv2d")


def _write_named(file: Any, layers: Mapping[str, tuple[str, Tensors]]) -> None:
    file.attrs["layer_names"] = [name.encode() for name in layers]
    file.attrs["backend"], file.attrs["keras_version"] = b"tensorflow", b"3.0.0"
    for name, (kind, arrays) in layers.items():
        group = file.create_group(name)
        group.attrs["weight_names"] = [f"{name}/{_legacy(kind, part)}:0".encode() for part in arrays]
        for part, array in arrays.items():
            group.create_dataset(f"{name}/{_legacy(kind, part)}:0", data=array)


def _legacy(kind: str, part: str) -> str:
    return "depthwise_kernel" if (kind, part) == ("depthwise_conv2d", "kernel") else part


def _write_numbered(file: Any, layers: Mapping[str, tuple[str, Tensors]]) -> None:
    counts: dict[str, int] = {}
    for name, (kind, arrays) in layers.items():
        counts[kind] = counts.get(kind, -1) + 1
        group = file.create_group(f"layers/{kind}_{counts[kind]}/vars" if counts[kind] else f"layers/{kind}/vars")
        group.attrs["name"] = name
        for number, array in enumerate(arrays.values()):
            group.create_dataset(str(number), data=array)
