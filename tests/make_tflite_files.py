"""Makes tests/converted: files of TensorFlow's own converter, and the outputs of its interpreter.

    python tests/make_tflite_files.py   # with tensorflow-cpu 2.21, which nothing here needs else

`keras.applications.MobileNet` with random weights and batch norm statistics, as the converter writes it in float16 and
in int8 with floats or uint8 at both ends. Pixels are those of `torch_rule`.
"""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from torch_rule import ruled_pixels

FOLDER = Path(__file__).with_name("converted")
SIDE = 64  # of 32 the converter takes the pooling away
ENDS = {"float32": None, "uint8": tf.uint8}


def network() -> Any:
    model = keras.applications.MobileNet((SIDE, SIDE, 3), alpha=0.1, weights=None, classes=5)
    generator = np.random.default_rng(0)
    for weight in model.weights:
        shape, place = weight.shape, weight.path.rpartition("/")[2]
        if "variance" in place or "gamma" in place:
            weight.assign(generator.uniform(0.6, 1.8, shape))
        elif "kernel" in place:
            terms = np.prod(shape[:2] if "dw" in weight.path else shape[:-1])
            weight.assign(generator.normal(0, (3 / terms) ** 0.5, shape))
        else:
            weight.assign(generator.normal(0, 0.3, shape))
    return model


def photos() -> Iterator[list[Any]]:
    generator = np.random.default_rng(1)
    for _ in range(20):
        yield [generator.integers(0, 256, (1, SIDE, SIDE, 3)).astype(np.float32) / np.float32(127.5) - 1]


def converted(model: Any) -> Iterator[tuple[str, bytes]]:
    def converter() -> Any:
        made = tf.lite.TFLiteConverter.from_keras_model(model)
        made.optimizations = [tf.lite.Optimize.DEFAULT]
        return made

    half = converter()
    half.target_spec.supported_types = [tf.float16]
    yield "float16", half.convert()
    for name, kind in ENDS.items():
        whole = converter()
        whole.representative_dataset = photos
        whole.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        if kind is not None:
            whole.inference_input_type = whole.inference_output_type = kind
        yield f"int8_{name}_ends", whole.convert()


def outputs(data: bytes) -> list[Any]:
    """Returns the reference kernels' outputs; floats for an int8 network are those that its bytes stand for."""
    interpreter = tf.lite.Interpreter(
        model_content=data,
        experimental_op_resolver_type=tf.lite.experimental.OpResolverType.BUILTIN_REF,
        experimental_preserve_all_tensors=True,
    )
    interpreter.allocate_tensors()
    source, target = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    first = interpreter.get_tensor_details()
    scales = [t["quantization"] for t in first if t["dtype"] == np.int8 and t["shape"].tolist() == [1, SIDE, SIDE, 3]]
    found = []
    for pixels in ruled_pixels(SIDE, SIDE):
        given = pixels
        if source["dtype"] == np.float32 and scales:
            scale, zero = scales[0]
            given = (pixels.astype(np.float32) - 128 - np.float32(zero)) * np.float32(scale)
        elif source["dtype"] == np.float32:
            given = pixels.astype(np.float32) / np.float32(127.5) - 1
        interpreter.set_tensor(source["index"], given.astype(source["dtype"])[None])
        interpreter.invoke()
        found.append(interpreter.get_tensor(target["index"])[0].tolist())
    return found


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    noted = {}
    for name, data in converted(network()):
        (FOLDER / f"{name}.tflite.gz").write_bytes(gzip.compress(data, mtime=0))
        noted[name] = outputs(data)
        print(name, f"{len(data):,} bytes")
    (FOLDER / "outputs.json").write_text(json.dumps(noted, indent=0) + "\n")
