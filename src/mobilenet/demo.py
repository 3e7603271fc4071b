"""The main job on real data that comes with the package: photos of digits in, a model, labels and a report out."""

import os
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .common.files import shown
from .errors import DataError, UsageError

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


def _others(folder: Path, known: set[str]) -> bool:
    return folder.exists() and any(path.name not in known for path in folder.iterdir())


def demo(output: Path) -> tuple[dict[str, Any], str]:
    """Trains, evaluates and predicts on the digits, in the folder `output`; a second call goes on where one stopped.

    Returns:
        The evaluation's figures with the report's path as plain data, and a text for people.

    Raises:
        DataError: `output` holds something that is not the demo's.
        UsageError: `output` is there and no folder.
    """
    from .common.progress import counter
    from .cost import cost
    from .evaluation.evaluate import evaluate
    from .evaluation.report import write_report
    from .model import load
    from .training.settings import Settings
    from .training.train import train

    photos, model_folder, report = output / "photos", output / "model", output / "report.html"
    if os.path.lexists(output) and not output.is_dir():
        raise UsageError(f"{shown(output)}: is no folder; name one, to be made")
    if _others(output, {"photos", "model", "report.html"}) or _others(photos, {"train", "test"}):
        raise DataError(f"{output}: holds something else than the demo; give another folder with --output")
    count = write_photos(photos)
    train(photos, model_folder, Settings(alpha=0.35, epochs=12, augment="light", seed=1), resume=True)
    model = load(model_folder)
    found = evaluate(model, photos, split="test", progress=counter("evaluating"))
    write_report(report, model, found, model_folder)
    some = sorted((photos / "test").glob("*/*.png"))[::75]
    labelled = zip(some, model.predict(list(some)), strict=True)
    costs = cost(model.network)
    lines = [
        f"{count} photos of handwritten digits",
        f"{model.network}: {costs.macs:,} multiply-adds, {costs.params:,} parameters",
        str(found),
        *(f"{path.relative_to(output)}: {prediction}" for path, prediction in labelled),
        f"model: {model_folder}",
        f"report: {report}",
    ]
    return found.to_dict() | {"report": str(report)}, "\n".join(lines)
