"""Weights from one network to another, layer by layer by name, whatever file they come from."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from .. import notes as listing
from ..arch import Network
from ..common.checks import short
from ..common.files import shown
from ..errors import ModelError
from ..weights import check_values
from . import folder, keras_h5, tensors_file
from .tensors_file import Shapes, Tensors

Layers = Mapping[str, Mapping[str, tuple[int, ...]]]


class Transfer(NamedTuple):
    """Is what `load_weights` did.

    Attributes:
        loaded: names of the layers whose weights were replaced.
        kept: names of the layers that the file does not have: they kept their weights.
        unused: names of the file's layers that this network does not have.
    """

    loaded: tuple[str, ...]
    kept: tuple[str, ...]
    unused: tuple[str, ...]

    def __str__(self) -> str:
        parts = [f"{len(self.loaded)} layers loaded"]
        for names, what in ((self.kept, "kept their weights"), (self.unused, "of the file not used")):
            if names:
                parts.append(f"{len(names)} {what}: {', '.join(map(short, names))}")
        return "; ".join(parts)


def read(path: Path, network: Network, by_name: bool) -> tuple[Tensors, Transfer]:
    """Reads what a network can take over from a model folder, a .safetensors file or a Keras .h5 file.

    Args:
        path: of the folder or file.
        network: whose layers are looked for.
        by_name: whether layers may be missing on either side.

    Raises:
        ModelError: names the file, the layer and both shapes.
    """
    suffix = path.suffix.lower()
    if path.is_dir():
        stored = folder.load_float(path)
        done = _named(path, _by_layer(network.tensors), _by_layer(stored.network.tensors), by_name)
        tensors = {name: stored.tensors[name] for name in _names(network, done)}
    elif suffix == ".safetensors":
        tensors, done = _from_safetensors(path, network, by_name)
    elif suffix in (".h5", ".hdf5"):
        tensors, done = _from_keras(path, network, by_name)
    elif not path.exists():
        raise ModelError(f"{shown(path)}: no such file or folder")
    else:
        raise ModelError(f"{shown(path)}: needed is a model folder, a .safetensors file or a Keras .h5 file")
    try:
        check_values(tensors)
    except ModelError as error:
        raise ModelError(f"{shown(path)}: {error}") from error
    return tensors, done


def _from_safetensors(path: Path, network: Network, by_name: bool) -> tuple[Tensors, Transfer]:
    done = Transfer((), (), ())

    def choose(shapes: Shapes) -> tuple[str, ...]:
        nonlocal done
        done = match(_by_layer(network.tensors), _by_layer(shapes), by_name)
        return _names(network, done)

    try:
        return tensors_file.read(path, choose, follow_symlinks=True), done
    except FileNotFoundError:
        raise ModelError(f"{shown(path)}: no such file") from None


def _from_keras(path: Path, network: Network, by_name: bool) -> tuple[Tensors, Transfer]:
    rows = {row.name: row for row in listing.rows(network) if row.tensors}
    done = Transfer((), (), ())

    def choose(layers: keras_h5.Layers) -> dict[str, Any]:
        nonlocal done
        done = match({name: row.shapes for name, row in rows.items()}, layers, by_name)
        return dict.fromkeys(done.loaded)

    arrays = keras_h5.read(path, choose)
    return {
        tensor: arrays[layer][part].reshape(network.tensors[tensor])
        for layer in done.loaded
        for part, tensor in rows[layer].tensors.items()
    }, done


def match(mine: Layers, theirs: Layers, by_name: bool) -> Transfer:
    """Returns which layers, weight -> shape each, can be taken over; raises `ModelError` where they differ."""
    done = Transfer(
        tuple(name for name in mine if name in theirs),
        tuple(name for name in mine if name not in theirs),
        tuple(name for name in theirs if name not in mine),
    )
    for name in done.loaded:
        _check_layer(name, mine[name], theirs[name])
    if not by_name and done.kept + done.unused:
        where = "is not in the file" if done.kept else "is not in this network"
        raise ModelError(
            f"layer {short((done.kept + done.unused)[0])} {where}; by_name=True loads those that are in both"
        )
    if not done.loaded:
        raise ModelError(
            f"holds no layer of this network: there are {', '.join(map(short, list(theirs)[:3])) or 'none'}, needed "
            f"{', '.join(map(short, list(mine)[:3]))}, …"
        )
    return done


def _check_layer(name: str, mine: Mapping[str, tuple[int, ...]], theirs: Mapping[str, tuple[int, ...]]) -> None:
    if set(mine) != set(theirs):
        raise ModelError(f"layer {name!r} has {', '.join(map(short, theirs))}; needed are {', '.join(mine)}")
    for part, needed in mine.items():
        if theirs[part] != needed:
            raise ModelError(f"layer {name!r}: {part} has shape {theirs[part]}, needed is {needed}; rename the layer "
                             "or leave it out of the file to keep the weights there are")  # fmt: skip


def _named(path: Path, mine: Layers, theirs: Layers, by_name: bool) -> Transfer:
    try:
        return match(mine, theirs, by_name)
    except ModelError as error:
        raise ModelError(f"{shown(path)}: {error}") from error


def _by_layer(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Shapes]:
    found: dict[str, Shapes] = {}
    for name, shape in shapes.items():
        layer, _, part = name.rpartition(".")
        found.setdefault(layer, {})[part] = shape
    return found


def _names(network: Network, done: Transfer) -> tuple[str, ...]:
    return tuple(name for layer in done.loaded for name in network.by_name[layer].tensors)
