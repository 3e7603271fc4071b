"""The main job on real data that comes with the package: photos of digits in, a trained model, labels and a report out."""

from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .errors import DataError

TILE = 8  # side of a digit in digits.png, in pixels
SIDE = 32  # side of the photos made of them, the least a MobileNet takes
TEST_FROM = 1437  # the last fifth, mostly written by people whose digits are not in the first four fifths


def write_photos(folder: Path) -> int:
    """Writes the digits as PNG files under `folder`/train|test/<digit>/ and returns how many there are."""
    packed = resources.files(__package__) / "digits"
    with (packed / "digits.png").open("rb") as file:
        sheet = np.asarray(Image.open(file))
    labels = (packed / "labels.txt").read_text(encoding="ascii").split()
    for index, label in enumerate("".join(labels)):
        row, column = (TILE * place for place in divmod(index, len(labels[0])))
        path = folder / ("train" if index < TEST_FROM else "test") / label / f"{index:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        digit = Image.fromarray(sheet[row : row + TILE, column : column + TILE])
        digit.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(path)
    return index + 1
