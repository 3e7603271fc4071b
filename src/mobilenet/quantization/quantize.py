"""Post-training quantisation: a float32 model and a few dozen photos in, an int8 model out."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from .. import photos
from ..arch import Network
from ..common.checks import choice, integer, short
from ..common.files import shown
from ..common.progress import Progress
from ..data import dataset
from ..data.dataset import Dataset
from ..data.layouts import EXTENSIONS
from ..errors import DataError, DatasetError, PhotoError, UsageError
from ..evaluation.predict import photo_paths
from ..model import Model, need_float
from ..weights import check_values, fold
from . import folded
from .equalise import equalised
from .ranges import METHODS
from .sweep import RESCALES, Choices, Sweep

PHOTOS = (48, 512)
"""Photos that are taken where nothing else is asked for: at least, and at most, as many as have `_PIXELS` together.

Small photos have few values a layer: of 50 at 32x32 the answers for others were 2 dB worse than for themselves, of 400
0.2 dB (V2 0.5, CIFAR-10). Of 32 at 224x224 it is 0.1 dB (V1 0.25, ImageNet).
"""
_PIXELS = 48 * 224 * 224

_LARGEST = 1 << 26  # numbers of the largest feature map for all photos together: about 1 GiB in all
_T = TypeVar("_T")


class Quantized(NamedTuple):
    """Is what quantisation made.

    Attributes:
        model: int8, with the labels and preprocessing of the float32 model.
        ratios: by layer its output in float32 over its error in int8, mean squares over the photos, in dB.
        paths: of the photos that it was measured on; none of an array.
    """

    model: Model
    ratios: dict[str, float]
    paths: tuple[Path, ...]


def quantize(
    model: Model,
    images: Path | str | NDArray[np.uint8],
    choices: Choices | None = None,
    *,
    count: int | None = None,
    progress: Progress | None = None,
) -> Quantized:
    """Returns the int8 model of a float32 model.

    Args:
        model: float32, trained.
        images: what photos are like that the model will see, labels are not needed: uint8 [N, H, W, channels] or
            [N, H, W, 3]; or a folder, at any depth, or a list. Of a data set with the model's labels, train is taken.
        choices: None for the best known.
        count: photos that are taken of `images`, evenly spread, fewer of large networks; None for `usual_count`.
        progress: is called with the layers done and their number.

    Raises:
        UsageError: names the argument that is outside its rule; the model is not float32.
        DataError: there are no photos, or half of those taken can't be read; the first is named.
        ModelError: names the tensor with NaN or infinity, or the layer whose sums would not fit an int32.
    """
    need_float(model, "quantize")
    choices = choices or Choices()
    choice("method", choices.method, METHODS)
    choice("rescale", choices.rescale, RESCALES)
    count = usual_count(model.network) if count is None else count
    integer("count", count, 1, 65536)
    check_values(model.tensors)
    network, preprocessing = model.network, model.preprocessing
    count = min(count, max(_LARGEST // max(layer.output.size for layer in network.layers), 1))
    pixels, paths = _pixels(model, images, count)
    tensors = model.tensors
    if choices.equalise:
        seen = folded.run(network, fold(network, tensors), folded.scaled(pixels, preprocessing))
        tensors = equalised(network, tensors, {layer.name: y.reshape(-1, y.shape[-1]).max(0) for layer, y in seen})
    sweep = Sweep(network, fold(network, tensors), preprocessing, pixels, choices, progress)
    facts = {
        "photos": len(pixels),
        "ranges": choices.method,
        "signal to noise of the output, dB": round(sweep.ratios[network.layers[-1].name], 1),
    }
    notes = model.notes | {"Quantisation": facts}
    made = Model(network, sweep.tensors, model._labels, preprocessing, notes, "int8", choices.rescale)
    return Quantized(made, sweep.ratios, paths)


def _pixels(model: Model, images: Any, count: int) -> tuple[NDArray[np.uint8], tuple[Path, ...]]:
    """Returns `count` images as the network's input, evenly taken, and the paths of those that are files."""
    if isinstance(images, str | Path):
        data = labelled(model, images)
        paths = [data.path(photo) for photo in data.of("train")] if data else list(photo_paths([images]))
        if paths == [Path(images)] and not os.path.lexists(images):
            raise DataError(f"{shown(images)}: no such folder; give one with a few dozen photos, at any depth")
        if paths == [Path(images)] and os.path.isdir(images):
            raise DataError(f"{shown(images)}: no photo in this folder can be read; give one with a few dozen, at any "
                            f"depth, like those that the model will see ({', '.join(sorted(EXTENSIONS))})")  # fmt: skip
        return _decoded(model, evenly(paths, count))
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.ndim != 4 or not len(images):
        got = f"{images.dtype} {list(images.shape)}" if isinstance(images, np.ndarray) else short(images)
        raise UsageError(f"images: got {got}, needed uint8 [N, H, W, 3] with N from 1, or a folder of photos")
    taken = images[:: -(-len(images) // count)]
    if taken.shape[1:] == model.network.input:
        return taken, ()
    return np.stack([photos.pixels(image, model.preprocessing) for image in taken]), ()


def usual_count(network: Network) -> int:
    """Returns how many photos are taken where nothing else is asked for."""
    least, most = PHOTOS
    return min(max(_PIXELS // (network.height * network.width), least), most)


def evenly(items: Sequence[_T], count: int) -> list[_T]:
    """Returns at most `count` of the items, evenly spread."""
    return [items[len(items) * n // count] for n in range(count)] if len(items) > count else list(items)


def labelled(model: Model, photos: Path | str) -> Dataset | None:
    """Returns photos as a data set with the model's labels; None where they have none, or others."""
    try:
        return dataset.read(photos, classes=model.labels, validation=0.0)
    except DatasetError:
        return None


def _decoded(model: Model, paths: Sequence[Path]) -> tuple[NDArray[np.uint8], tuple[Path, ...]]:
    found: dict[Path, NDArray[np.uint8]] = {}
    troubles: list[str] = []
    for path in paths:
        try:
            found[path] = photos.pixels(path, model.preprocessing)
        except PhotoError as error:
            troubles.append(str(error))
    if len(found) <= len(troubles):
        raise DataError(
            f"{len(troubles)} of {len(paths)} photos to quantise with can't be read; the first: {troubles[0]}"
        )
    return np.stack(list(found.values())), tuple(found)
