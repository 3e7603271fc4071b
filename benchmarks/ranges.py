"""Quantises a model by each method of choosing ranges and prints what is left: the table of docs/quantize.md.

    python benchmarks/ranges.py MODEL --photos FOLDER [--labels labels.txt]

The folder is a data set with the model's labels (ranges are of its training photos, figures of its test photos), or
photos that are called after their label, behind the first "_": ranges are of a fifth of these, figures of the others.
A MODEL is a float32 model folder, or any file that `mobilenet.convert` reads, with `--labels` for its classes.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import labels
import numpy as np
from numpy.typing import NDArray

import mobilenet
from mobilenet import photos
from mobilenet.evaluation.predict import photo_paths
from mobilenet.model import Model
from mobilenet.quantization.quantize import evenly, labelled, quantize, usual_count
from mobilenet.quantization.ranges import METHODS
from mobilenet.quantization.sweep import Choices

Array = NDArray[Any]
COMPENSATED = "bias correction, compensated rounding"
STEPS = {  # with float32 logits, which show what each step does and no rounding of their own; then the default
    "nothing else": Choices(correct_bias=False, compensate=False, rescale="float"),
    "bias correction": Choices(compensate=False, rescale="float"),
    COMPENSATED: Choices(rescale="float"),
    f"{COMPENSATED}, equalisation": Choices(equalise=True, rescale="float"),
    f'{COMPENSATED}, rescale "full"': Choices(),
}


def pictures(model: Model, source: Path, names: Sequence[str]) -> tuple[Array, Array, Array]:
    """Returns the pixels that ranges are of, and those that are measured with their classes."""
    if data := labelled(model, source):
        seen = [data.path(photo) for photo in evenly(list(data.of("train")), usual_count(model.network))]
        tested = [(data.path(photo), photo.label) for photo in data.of("test")]
    else:
        paths = list(photo_paths([source]))
        seen = paths[::5]
        tested = [(path, labels.index(path, names)) for path in paths if path not in seen]
    return _pixels(model, seen), _pixels(model, [path for path, _ in tested]), np.array([label for _, label in tested])


def _pixels(model: Model, paths: Sequence[Path]) -> Array:
    return np.stack([photos.pixels(path, model.preprocessing) for path in paths])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, metavar="MODEL")
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--labels", type=Path, help="text file with a label a line")
    args = parser.parse_args()
    model = mobilenet.load(args.model) if args.model.is_dir() else mobilenet.convert(args.model)
    seen, tested, truth = pictures(model, args.photos, labels.read(args.labels))
    expected = model.compile()(tested)
    right = (expected.argmax(1) == truth).mean()
    print(f"{model.network}: ranges of {len(seen)} photos, figures of {len(tested)}")
    print(f"| ranges | and | top-1, the same label, signal over noise |\n|---|---|---|\n| float32 | | {right:.2%} |")
    for name, choices in STEPS.items():
        for method in METHODS if not name.startswith(f"{COMPENSATED}, ") else ("mse",):
            made = quantize(model, seen, replace(choices, method=method), count=len(seen)).model
            logits = made.compile()(tested)
            right, same = (logits.argmax(1) == truth).mean(), (logits.argmax(1) == expected.argmax(1)).mean()
            noise = 10 * np.log10((expected**2).mean() / ((logits - expected) ** 2).mean())
            print(f"| {method} | {name} | {right:.2%}, {same:.1%}, {noise:.1f} dB |", flush=True)


if __name__ == "__main__":
    main()
