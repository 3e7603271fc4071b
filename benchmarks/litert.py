"""Compares integer TFLite files, imported with either rescale, with LiteRT: bytes, labels and time.

    python benchmarks/litert.py PHOTOS MODEL.tflite … [--labels labels.txt]  # a folder of photos; minutes for each file

One thread each. The bytes of every photo's logits are compared with those of LiteRT's reference kernels and those of
its default, XNNPACK. A photo's time is the least of a few runs, the table has the median over the photos; ours, with
both rescales, and LiteRT's take turns. With labels, a photo's own one is what its file is called behind the first "_".
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import labels
import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from numpy.typing import NDArray

from mobilenet import photos
from mobilenet.compiler.native import NativeEngine
from mobilenet.convert.source import RESCALES
from mobilenet.convert.tflite import read
from mobilenet.evaluation.predict import photo_paths
from mobilenet.formats import tflite_graph
from mobilenet.formats.tflite_schema import Op
from mobilenet.model import Model

RUNS = 5  # of a photo, of which the quickest counts
Logits = Callable[[NDArray[np.uint8]], NDArray[Any]]


def ours(model: Model) -> Logits:
    """Returns the call that computes the bytes of a photo's logits."""
    engine, last = NativeEngine(model, 1), model.network.layers[-1].name
    scale, zero = (model.tensors[f"{last}.{part}"][0] for part in ("scale", "zero"))
    return lambda pixels: np.rint(engine(pixels)[0] / scale).astype(np.int32) + zero


def theirs(data: bytes, kernels: OpResolverType) -> Logits:
    """Returns LiteRT's."""
    graph = tflite_graph.read(data)
    last = graph.operators[-1]
    logits = last.inputs[0] if last.op == Op.SOFTMAX else graph.outputs[0]
    interpreter = Interpreter(model_content=data, num_threads=1, experimental_op_resolver_type=kernels)
    interpreter.allocate_tensors()
    source = interpreter.get_input_details()[0]
    less = 128 if source["dtype"] == np.int8 else 0

    def run(pixels: NDArray[np.uint8]) -> NDArray[Any]:
        given = pixels if less == 0 else (pixels.astype(np.int16) - less).astype(np.int8)
        interpreter.set_tensor(source["index"], given)
        interpreter.invoke()
        return np.asarray(interpreter.get_tensor(logits).reshape(-1).astype(np.int32) + less)

    return run


def milliseconds(run: Logits, pixels: NDArray[np.uint8]) -> float:
    """Returns the time of the quickest run."""
    times = []
    for _ in range(RUNS):
        begin = time.perf_counter()
        run(pixels)
        times.append(time.perf_counter() - begin)
    return min(times) * 1e3


def compare(path: Path, files: Sequence[Path], names: Sequence[str]) -> None:
    """Prints a line for each rescale, and one for each kind of LiteRT's kernels."""
    data = path.read_bytes()
    models = {rescale: read(path, rescale=rescale) for rescale in RESCALES}
    sides = {f"rescale {rescale}": ours(model) for rescale, model in models.items()}
    sides |= {"LiteRT, reference": theirs(data, OpResolverType.BUILTIN_REF)}
    sides |= {"LiteRT, XNNPACK": theirs(data, OpResolverType.AUTO)}
    found: dict[str, list[NDArray[Any]]] = {name: [] for name in sides}
    took: dict[str, list[float]] = {name: [] for name in sides if name != "LiteRT, reference"}
    for file in files:
        pixels = photos.pixels(file.read_bytes(), models["full"].preprocessing)[None]
        for name, run in sides.items():
            found[name].append(run(pixels))
            if name in took:
                took[name].append(milliseconds(run, pixels))
    bytes_ = {name: np.stack(rows) for name, rows in found.items()}
    truth = np.array([labels.index(file, names) if names else -1 for file in files])
    print(f"{path.name}, {len(files)} photos: of each pair those with equal bytes, with the same label")
    for name, rows in bytes_.items():
        against = [rows_ for other, rows_ in bytes_.items() if other.startswith("LiteRT")]
        pairs = [f"{(rows == x).all(1).sum()}, {(rows.argmax(1) == x.argmax(1)).sum()}" for x in against]
        right = f", {(rows.argmax(1) == truth).mean():.1%} right" if names else ""
        ms = f", {statistics.median(took[name]):.2f} ms" if name in took else ""
        print(f"  {name}: reference {pairs[0]}; XNNPACK {pairs[1]}{right}{ms}")


def main() -> None:
    """Compares the files that the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--labels", type=Path, help="text file with a label a line")
    args = parser.parse_args()
    names = labels.read(args.labels)
    files = list(photo_paths([args.photos]))
    for path in args.models:
        compare(path, files, names)


if __name__ == "__main__":
    main()
