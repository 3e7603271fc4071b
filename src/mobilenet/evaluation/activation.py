"""Class activation maps: which parts of a photo speak for a class (Zhou et al. 2016, arXiv 1512.04150).

MobileNet ends in average pooling and a linear classifier, so a class's logit is its bias plus the mean over positions
of (features · the class's weights): the map is that sum before the mean, an exact decomposition of the logit.
"""

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .. import photos
from ..engine import Engine
from ..errors import PhotoError
from ..model import Model
from ..quantized import centred_weight, weight_scales

SIDE = 160  # of a picture in the report, in pixels
# matplotlib's "inferno" at eight equal steps: brightness grows evenly, so that it reads without colour as well.
HEAT = np.array(
    [
        (0, 0, 4),
        (40, 11, 84),
        (101, 21, 110),
        (159, 42, 99),
        (212, 72, 66),
        (245, 125, 21),
        (250, 193, 39),
        (252, 255, 164),
    ],
    np.float32,
)


def activation_maps(model: Model, pixels: NDArray[np.uint8], classes: Sequence[int]) -> NDArray[np.float32]:
    """Returns one map a photo, [photos, h, w] at the resolution of the last feature map, for the class given for each.

    The mean of a map plus the class's bias is the class's logit. `pixels` are uint8 [photos, height, width, channels].
    """
    return _weighted(model, Engine(model.without_top())(pixels), classes)


def _weighted(model: Model, features: NDArray[np.float32], classes: Sequence[int]) -> NDArray[np.float32]:
    weights = classifier_weight(model)[:, list(classes)]
    return np.asarray(np.einsum("nhwc,cn->nhw", features, weights), np.float32)


def classifier_weight(model: Model) -> NDArray[np.float32]:
    """Returns the classifier's weight [features, classes], of an int8 model the numbers that its integers stand for."""
    last = model.network.layers[-1]
    if model.precision != "int8":
        return np.asarray(model.tensors[f"{last.name}.weight"], np.float32)
    scales = weight_scales(model.network, model.tensors)[last.name]
    return np.asarray(centred_weight(last, model.tensors) * scales.astype(np.float32), np.float32)


def explained(model: Model, wanted: Sequence[tuple[Path, int]]) -> list[tuple[str, str] | None]:
    """Returns for each (photo, class) two pictures as data URIs: what the model sees, and the same under its map.

    None stands for a photo that can't be read. Pictures are JPEG, 160 pixels along their longer side.
    """
    engine = Engine(model.without_top())
    found: list[tuple[str, str] | None] = []
    for path, number in wanted:
        try:
            pixels = photos.pixels(path, model.preprocessing)
        except PhotoError:
            found.append(None)
            continue
        picture = _picture(pixels)
        heat = _weighted(model, engine(pixels[None]), [number])[0]
        found.append((_data_uri(picture), _data_uri(_under_heat(picture, heat))))
    return found


def _picture(pixels: NDArray[np.uint8]) -> Image.Image:
    image = Image.fromarray(np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels)
    scale = SIDE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.BICUBIC)


def _under_heat(picture: Image.Image, heat: NDArray[np.float32]) -> Image.Image:
    """Returns the picture in grey under the map's colours; parts that speak against the class count as none."""
    positive = np.maximum(heat, 0)
    scaled = Image.fromarray(positive / (positive.max() or 1))  # float32: mode "F"
    share = np.clip(np.asarray(scaled.resize(picture.size, Image.Resampling.BICUBIC)), 0, 1)
    steps = np.linspace(0, 1, len(HEAT))
    colours = np.stack([np.interp(share, steps, channel) for channel in HEAT.T], axis=2)
    grey = np.asarray(picture.convert("L"), np.float32)[:, :, None]
    mixed = 0.45 * grey + 0.55 * colours
    return Image.fromarray(mixed.round().astype(np.uint8))


def _data_uri(image: Image.Image) -> str:
    data = io.BytesIO()
    image.save(data, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()
