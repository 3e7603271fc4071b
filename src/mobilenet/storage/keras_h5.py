"""Arrays of a Keras .h5 file by layer and weight name, and nothing else of it: no config, no link, no code.

Three layouts: Keras 2's `save_weights("x.h5")`, a group a layer; the whole model `save("x.h5")` of Keras 2 and 3, the
same under "model_weights"; Keras 3's `save_weights("x.weights.h5")`, where "layers" holds a group a layer, named after
its class, with the layer's name as an attribute of its "vars".
"""

import contextlib
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..common.checks import short
from ..common.files import shown
from ..errors import ModelError, UsageError

Layers = dict[str, dict[str, tuple[int, ...]]]

_MAX_OBJECTS = 20_000
_MAX_DEPTH = 4  # model_weights / layer / layer / kernel
# Keras 3 numbers the variables of a layer; their order is that of Keras' own classes.
_PARTS = {
    "conv2d": ("kernel", "bias"),
    "depthwise_conv2d": ("kernel", "bias"),
    "dense": ("kernel", "bias"),
    "batch_normalization": ("gamma", "beta", "moving_mean", "moving_variance"),
}


def read(
    path: Path,
    choose: Callable[[Layers], Mapping[str, Any]],
    file: BinaryIO | None = None,
    names: Mapping[str, str] | None = None,
) -> dict[str, dict[str, NDArray[np.float32]]]:
    """Reads arrays of a file.

    Args:
        path: of the .h5 file.
        choose: gets layer -> weight -> shape for every layer of the file that has weights, before an array is read;
            returns a mapping whose keys are the layers to read.
        file: the content, where it lies in an archive `path`.
        names: of layers by their group, for Keras before 3.9, which does not write them.

    Raises:
        ModelError: names the file, the layer and what is wrong.
        UsageError: h5py is not installed.
    """
    with opened(path, file) as (h5py, opened_file):
        layers = _layers(h5py, opened_file, names or {})
        wanted = choose({layer: {name: part.shape for name, part in parts.items()} for layer, parts in layers.items()})
        return {layer: {name: part[...] for name, part in layers[layer].items()} for layer in wanted}


def model_config(path: Path, limit: int) -> bytes | None:
    """Returns the JSON text that describes the layers of a whole model, None for a file of weights alone.

    Raises:
        ModelError: names the file; the text is longer than `limit` bytes, or no text.
        UsageError: h5py is not installed.
    """
    with opened(path) as (_, file):
        if "model_config" not in file.attrs:
            return None
        if file.attrs.get_id("model_config").get_storage_size() > limit:
            raise ModelError(f"its model_config is longer than the {limit:,} bytes that are allowed")
        text = file.attrs["model_config"]
        if not isinstance(text, str | bytes):
            raise ModelError("its model_config is no text")
        data = text.encode() if isinstance(text, str) else bytes(text)
        if len(data) > limit:  # the storage of a text of variable length is a reference to it
            raise ModelError(f"its model_config has {len(data):,} bytes, at most {limit:,} are allowed")
        return data


@contextlib.contextmanager
def opened(path: Path, file: BinaryIO | None = None) -> Iterator[tuple[Any, Any]]:
    """Opens a regular file and gives h5py with it; what is wrong in between comes as `ModelError` with the name."""
    try:
        import h5py
    except ImportError:
        raise UsageError(f"{shown(path)}: reading .h5 files needs h5py: pip install h5py") from None
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ModelError("is not a regular file")
        with h5py.File(file or path, "r") as opened_file:
            yield h5py, opened_file
    except ModelError as error:
        raise ModelError(f"{shown(path)}: {error}") from error
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:  # what h5py raises on damaged files
        raise ModelError(f"{shown(path)}: can't be read as HDF5: {shown(str(error))}") from error


def _layers(h5py: Any, file: Any, names: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Returns layer -> weight -> data set; the layers of a model within the model stand beside its own."""
    root = _members(h5py, file)
    found: dict[str, dict[str, Any]] = {}
    if isinstance(root.get("layers"), h5py.Group):
        for name, parts in _numbered_layers(h5py, root["layers"], names, 1):
            _put(found, name, parts)
        return found
    weights = root.get("model_weights", file)
    for layer, member in _members(h5py, weights).items():
        if isinstance(member, h5py.Group):
            nested: dict[str, dict[str, Any]] = {}
            for where, part in _data_sets(h5py, member):
                *_, owner, name = ["", layer, *where.split("/")]
                name = name.partition(":")[0]
                nested.setdefault(owner, {})["kernel" if name == "depthwise_kernel" else name] = part
            # A layer's own arrays may lie under another form of its name: conv2d / conv2d_1 / kernel:0.
            for name, parts in nested.items():
                _put(found, layer if len(nested) == 1 else name, parts)
    return found


def _put(found: dict[str, dict[str, Any]], name: str, parts: dict[str, Any]) -> None:
    if name in found:
        raise ModelError(f"has two layers {short(name)}; rename one of them")
    found[name] = parts


def _numbered_layers(
    h5py: Any, layers: Any, names: Mapping[str, str], depth: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the layers of Keras 3's files of weights, whose groups have the names of their classes."""
    if depth == _MAX_DEPTH:
        raise ModelError(f"{short(layers.name)} is nested too deeply")
    for group, member in _members(h5py, layers).items():
        members = _members(h5py, member) if isinstance(member, h5py.Group) else {}
        named = members.get("vars")
        if isinstance(named, h5py.Group) and (parts := _numbered(h5py, group, named)):
            name = named.attrs.get("name", names.get(named.parent.name))
            if not isinstance(name, str):
                raise ModelError(f"layer {short(group)} has no name in the file; save the whole model as .h5")
            yield name, parts
        if isinstance(members.get("layers"), h5py.Group):
            yield from _numbered_layers(h5py, members["layers"], names, depth + 1)


def _numbered(h5py: Any, group: str, named: Any) -> dict[str, Any]:
    data = dict(_data_sets(h5py, named))
    known = _PARTS.get(re.sub(r"_\d+$", "", group), ())
    return {known[int(n)] if n.isdecimal() and int(n) < len(known) else n: part for n, part in data.items()}


def _data_sets(h5py: Any, group: Any, prefix: str = "", depth: int = 1) -> Iterator[tuple[str, Any]]:
    for name, member in _members(h5py, group).items():
        where = f"{prefix}{name}"
        if isinstance(member, h5py.Group):
            if depth == _MAX_DEPTH:
                raise ModelError(f"{short(group.name)} is nested too deeply")
            yield from _data_sets(h5py, member, f"{where}/", depth + 1)
        else:
            _check_data(member)
            yield where, member


def _members(h5py: Any, group: Any) -> dict[str, Any]:
    """Returns the members of a group; a link that leads anywhere, inside the file or out of it, is refused."""
    if len(group) > _MAX_OBJECTS:
        raise ModelError(f"{short(group.name)} has {len(group):,} members, at most {_MAX_OBJECTS:,} are allowed")
    for name in group:
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise ModelError(f"{short(f'{group.name}/{name}')} is a link; only arrays in the file itself are read")
    found = {name: group[name] for name in group}
    for name, member in found.items():
        if not isinstance(member, h5py.Group | h5py.Dataset):
            raise ModelError(f"{short(f'{group.name}/{name}')} is neither a group nor an array")
    return found


def _check_data(part: Any) -> None:
    """Raises unless the data are plain numbers that lie in this file, in pieces no larger than the whole."""
    if part.external or part.is_virtual:
        raise ModelError(f"array {short(part.name)} has its data in another file, which is not opened")
    if part.dtype != np.float32:
        raise ModelError(f"array {short(part.name)} has type {part.dtype}, needed is float32")
    if part.chunks is not None and np.prod(part.chunks, dtype=object) > max(part.size, 1):
        raise ModelError(f"array {short(part.name)} has pieces of {part.chunks}, larger than its shape {part.shape}")
