"""ONNX and TFLite files run in their runtimes and compared with the reference; written only if they agree.

An int8 model's reference is `integer`. Where the file's scales give just its multipliers (`int8.Quantised.exact`) the
outputs must be the same bits; where they don't, outputs are compared within `int8.tolerance`.
"""

import importlib.util
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import integer
from ..common.files import shown, write_atomic
from ..errors import GateError, MobileNetError
from ..model import Model
from ..reference import ROUNDINGS, forward, softmax, tolerance
from ..storage.folder import check_tensors
from . import Exported, int8

_EPSILON = float(np.finfo(np.float32).eps)
Floats = NDArray[np.float32]


def write_onnx(
    model: Model, path: Path, *, pixels: bool = False, softmax: bool = False, check: bool = True
) -> Exported:
    """Writes an ONNX file; arguments and errors as `export`."""
    from .onnx import exact, onnx

    check_tensors(model.network, model.tensors, model.precision, model.rescale)
    data = onnx(model, pixels=pixels, softmax=softmax)

    def run(photos: NDArray[np.uint8]) -> Floats:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        # On x86 without VNNI its fast products of uint8 and int8 saturate; these are the exact ones.
        options.add_session_config_entry("session.x64quantprecision", "1")
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        source = photos if pixels else _input(model, photos).transpose(0, 3, 1, 2)
        found = np.asarray(session.run(None, {session.get_inputs()[0].name: source})[0])
        return found.transpose(0, 2, 3, 1) if found.ndim == 4 else found

    runtime = "onnxruntime", "onnx"
    return _write(model, path, data, "onnx", runtime, run if check else None, softmax, exact(model))


def write_tflite(model: Model, path: Path, *, softmax: bool = False, check: bool = True) -> Exported:
    """Writes a TFLite file; arguments and errors as `export`."""
    from .tflite import exact, tflite

    check_tensors(model.network, model.tensors, model.precision, model.rescale)
    data = tflite(model, softmax=softmax)

    def run(photos: NDArray[np.uint8]) -> Floats:
        from ai_edge_litert.interpreter import Interpreter

        interpreter = Interpreter(model_content=data)
        interpreter.allocate_tensors()
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], _input(model, photos))
        interpreter.invoke()
        return np.asarray(interpreter.get_tensor(interpreter.get_output_details()[0]["index"]))

    return _write(
        model, path, data, "tflite", ("ai-edge-litert", "litert"), run if check else None, softmax, exact(model)
    )


def _write(
    model: Model,
    path: Path,
    data: bytes,
    format: str,
    runtime: tuple[str, str],
    run: Callable[[NDArray[np.uint8]], Floats] | None,
    probabilities: bool,
    exact: bool,
) -> Exported:
    checked, difference = f"not checked: it was not run in {runtime[0]}", None
    if run is not None:
        _need(path, *runtime)
        difference, allowed = _compare(model, run, probabilities, f"{shown(path)}: {runtime[0]}", exact)
        found = "the model's outputs, to the last bit"
        if allowed:
            found = f"at most {difference:.2g} from the reference (rounding allows {allowed:.2g})"
        checked = f"run in {runtime[0]} {version(runtime[0])}: {found}"
    if model.precision == "int8" and not exact:
        checked += f"\n{_why_not_exact(model)}"
    write_atomic(path, data)
    return Exported({str(path): len(data)}, format, checked, difference)


def _why_not_exact(model: Model) -> str:
    """Returns why an int8 model's file can't give its outputs to the last bit, and what can."""
    if model.rescale == "float" and any(layer.adds for layer in model.network.layers):
        return (
            "not bit for bit: other runtimes round sums before they add a shortcut to them, this model (rescale "
            "'float') does after; of one that `mobilenet quantize` makes with 'full', its default, they give the bits"
        )
    return "not bit for bit: no scales of this format give just the model's multipliers"


def _need(path: Path, package: str, extra: str) -> None:
    if importlib.util.find_spec(package.replace("-", "_")) is None:
        raise MobileNetError(
            f"{shown(path)}: checking it needs {package}, which is not installed: pip install 'mobilenet[{extra}]', or "
            "--no-check (check=False) to write it without; nothing was written"
        )


def _compare(
    model: Model, run: Callable[[NDArray[np.uint8]], Floats], probabilities: bool, who: str, exact: bool = False
) -> tuple[float, float]:
    """Returns the largest difference from the reference, and how large one there may be; raises a `GateError`."""
    photo = _photo(model)
    expected, allowed = _expected(model, photo, exact)
    if probabilities and model.network.include_top:
        expected, allowed = through_softmax(expected, allowed)
    found = run(photo)
    if found.shape != expected.shape:
        raise GateError(f"{who} gives outputs of shape {found.shape}, needed is {expected.shape}; nothing was written")
    difference = np.abs(found - expected)
    if not (difference <= allowed).all():
        worst = np.nanargmax(difference - allowed) if np.isfinite(difference).any() else 0
        room = allowed.flat[worst]
        needed = f"a difference of {room:.2g} would be rounding" if room else "this file must give the same bits"
        raise GateError(f"{who} gives {found.flat[worst]} where the reference has {expected.flat[worst]}; {needed}; "
                        "nothing was written")  # fmt: skip
    return float(difference.max()), float(allowed.max())


def _expected(model: Model, photo: NDArray[np.uint8], exact: bool) -> tuple[NDArray[Any], NDArray[Any]]:
    """Returns the reference's outputs, and how far from them rounding may lead."""
    if model.precision == "int8":
        right = integer.forward(model.network, model.tensors, photo)
        return right, np.zeros_like(right) if exact else int8.tolerance(model, photo)
    scaling = model.preprocessing.mean, model.preprocessing.std
    expected = forward(model.network, model.tensors, photo, scaling=scaling)
    return expected, tolerance(model.network, model.tensors, photo, _EPSILON, scaling=scaling)


def through_softmax(logits: NDArray[Any], allowed: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Returns the probabilities, and how far those of logits within `allowed` may be from them."""
    found = softmax(logits)
    # Logits off by e change a probability by at most the factor exp(2e). Then there is the rounding of a logit's
    # distance to the largest, of exp, and of the sum of all, whose terms may be so alike that all roundings are.
    rounding = np.ptp(logits) + logits.shape[-1] / 2 + ROUNDINGS
    return found, found * np.expm1(2 * allowed.max() + rounding * _EPSILON) + np.finfo(np.float32).tiny


def _photo(model: Model) -> NDArray[np.uint8]:
    """Returns a picture [1, height, width, channels]: noise on waves, as photos have both."""
    height, width, channels = model.network.input
    rows, columns = np.mgrid[:height, :width]
    waves = np.sin((rows[..., None] + 2 * columns[..., None]) / 9 + np.arange(channels))
    noise = np.random.default_rng(0).normal(0, 40, waves.shape)
    photo: NDArray[np.uint8] = np.clip(127 + 80 * waves + noise, 0, 255).astype(np.uint8)
    return photo[None]


def _input(model: Model, photos: NDArray[np.uint8]) -> NDArray[Any]:
    """Returns pixels as a file takes them: scaled, but as they are for an int8 model."""
    if model.precision == "int8":
        return photos
    mean, std = (np.array(part, np.float32) for part in (model.preprocessing.mean, model.preprocessing.std))
    return np.asarray((photos - mean) / std, np.float32)
