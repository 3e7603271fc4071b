"""Compares a model computed in bfloat16 with the same in float32: the likeliest label, and how far logits are apart.

    python benchmarks/bfloat16.py MODEL … --photos PHOTOS [--labels labels.txt]  # a folder of photos; seconds

With labels, a photo's own one is what its file is called behind the first "_", and top-1 is printed as well.
"""

import argparse
from pathlib import Path

import labels
import numpy as np

import mobilenet
from mobilenet import photos
from mobilenet.evaluation.predict import photo_paths


def main() -> None:
    """Prints a line for each model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL", help="a float32 model's folder or file")
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--labels", type=Path, help="a text file with one a line, in the order of the classes")
    given = parser.parse_args()
    paths, names = list(photo_paths([given.photos])), labels.read(given.labels)
    own = np.array([labels.index(path, names) for path in paths]) if names else None
    for path in given.models:
        model = mobilenet.load(path)
        pixels = np.stack([photos.pixels(photo, model.preprocessing) for photo in paths])
        exact, rounded = (model.compile(precision=precision)(pixels) for precision in ("f32", "bf16"))
        same = int((exact.argmax(1) == rounded.argmax(1)).sum())
        error = float(np.sqrt(((rounded - exact) ** 2).mean() / exact.var()))
        line = f"{model.network}: same label for {same} of {len(paths)} photos ({same / len(paths):.1%})"
        line += f"; logits' error {error:.2%} of their spread"
        if own is not None:
            first = exact.shape[1] - len(names)  # of models with a class 0 for "none of these"
            right = [float((found.argmax(1) == own + first).mean()) for found in (exact, rounded)]
            line += f"; top-1 {right[0]:.1%}, in bfloat16 {right[1]:.1%}"
        print(line, flush=True)


if __name__ == "__main__":
    main()
