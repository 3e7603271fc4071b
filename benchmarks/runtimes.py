"""Exports models, as they are and quantised, and counts the photos for which other runtimes give ours' outputs.

    pip install -r benchmarks/requirements.txt .
    python benchmarks/runtimes.py MODEL... --photos FOLDER                       # int8: the same bits
    python benchmarks/runtimes.py MODEL... --photos FOLDER --float --count 10    # float32: within `reference.tolerance`

A MODEL is a float32 model folder, an int8 one, which is taken as it is, or any file that `mobilenet.convert` reads.
Prints the tables of docs/export.md. The runtimes' settings are their defaults, one thread; OpenVINO is told to compute
in float32 what is not int8, as without it processors with bf16 or f16 use that.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import mobilenet
from mobilenet import integer, photos, reference
from mobilenet.evaluation.predict import photo_paths
from mobilenet.export import export
from mobilenet.model import Model
from mobilenet.quantization.quantize import evenly
from mobilenet.quantization.sweep import RESCALES

Array = NDArray[Any]
SEEN = 48  # photos that are quantised with; others are compared


def onnx_runtime(file: Path) -> Callable[[Array], Array]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda photo: np.asarray(session.run(None, {name: photo.transpose(0, 3, 1, 2)})[0])


def openvino(file: Path) -> Callable[[Array], Array]:
    import openvino

    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = openvino.Core().compile_model(file, "CPU", settings)
    return lambda photo: np.asarray(compiled([np.ascontiguousarray(photo.transpose(0, 3, 1, 2))])[0])


def litert(file: Path) -> Callable[[Array], Array]:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(file), num_threads=1)
    interpreter.allocate_tensors()
    source, target = (part()[0]["index"] for part in (interpreter.get_input_details, interpreter.get_output_details))

    def run(photo: Array) -> Array:
        interpreter.set_tensor(source, photo)
        interpreter.invoke()
        return np.array(interpreter.get_tensor(target))

    return run


RUNTIMES = {"ONNX Runtime": (".onnx", onnx_runtime), "LiteRT": (".tflite", litert), "OpenVINO": (".onnx", openvino)}


def rows(model: Model, rescale: str, seen: Array, compared: Array) -> list[str]:
    """Returns lines of the table, a runtime each; with the rescale "none" of the float32 model."""
    if rescale == "none":
        made, scaling = model, (model.preprocessing.mean, model.preprocessing.std)
        given = (model.network, model.tensors, compared)
        expected = reference.forward(*given, scaling=scaling)
        allowed = reference.tolerance(*given, float(np.finfo(np.float32).eps), scaling=scaling)
        mean, std = (np.array(part, np.float32) for part in scaling)
        compared = ((compared - mean) / std).astype(np.float32)
    else:
        made = model if model.precision == "int8" else model.quantize(seen, rescale=rescale)
        expected = integer.forward(made.network, made.tensors, compared)
        allowed = np.zeros_like(expected)
    step = float(np.abs(expected).max())
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for name, (suffix, start) in RUNTIMES.items():
            file = Path(folder) / f"model{suffix}"
            export(made, file)
            run = start(file)
            outputs = np.concatenate([run(photo[None]) for photo in compared])
            difference = np.abs(outputs - expected)
            equal, same = (difference <= allowed).all(-1).sum(), (outputs.argmax(-1) == expected.argmax(-1)).sum()
            found.append(f"| {model.network.family.upper()} {model.network.alpha} {model.network.height} | {rescale} "
                         f"| {name} | {equal} | {same} | {difference.max() / step:.2g} |")  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL")
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--count", type=int, default=60, help="photos compared (default 60)")
    parser.add_argument("--float", action="store_true", help="the float32 models, instead of int8 ones made of them")
    parser.add_argument("--rescale", nargs="+", choices=RESCALES, default=RESCALES, help="of int8 (default both)")
    args = parser.parse_args()
    paths = evenly(list(photo_paths([args.photos])), SEEN + args.count)
    right = "within rounding" if args.float else "with the same bits"
    print(f"| model | rescale | runtime | photos of {args.count} {right} | with the same label "
          "| largest difference of a logit over the largest logit |\n|---|---|---|---|---|---|")  # fmt: skip
    for source in args.models:
        model = mobilenet.load(source) if source.is_dir() else mobilenet.convert(source)
        pixels = np.stack([photos.pixels(path, model.preprocessing) for path in paths])
        given = (model.rescale,) if model.precision == "int8" else args.rescale
        for rescale in ("none",) if args.float else given:
            print(
                "\n".join(rows(model, rescale, pixels[: len(pixels) - args.count], pixels[-args.count :])), flush=True
            )


if __name__ == "__main__":
    main()
