"""`export`: a file is run in its own runtime and compared before it is written; the command says what it did."""

import importlib
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mobilenet
from int8_makers import random_int8_model
from mobilenet.arch import v1, v2
from mobilenet.cli import main
from mobilenet.convert import FORMATS as LIBRARIES
from mobilenet.convert import write
from mobilenet.errors import GateError, MobileNetError, ModelError, UsageError
from mobilenet.export import FORMATS, checked, export
from mobilenet.formats import flatbuffer, protobuf
from mobilenet.reference import forward, softmax, tolerance
from model_makers import random_model, random_pixels

RUNTIMES = {"onnx": "onnxruntime", "tflite": "ai_edge_litert"}
MODELS = (v1(0.1, (33, 40), 3), v2(0.1, 32, 5, conventions="torchvision"), v2(0.1, 32, include_top=False))
installed = pytest.mark.parametrize(
    "format",
    [
        pytest.param(name, marks=pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=package))
        for name, package in RUNTIMES.items()
    ],
)


@installed
@pytest.mark.parametrize("network", MODELS, ids=str)
@pytest.mark.parametrize("softmax", [False, True])
def test_a_file_is_written_once_its_runtime_agrees(tmp_path: Path, format: str, network: Any, softmax: bool) -> None:
    path = tmp_path / f"model.{format}"
    written = mobilenet.export(random_model(network), path, softmax=softmax)
    assert written.files == {str(path): path.stat().st_size}
    assert written.format == format
    assert written.difference is not None
    assert written.difference < 0.1
    assert "run in" in str(written)


@pytest.mark.parametrize("network", MODELS, ids=str)
@pytest.mark.parametrize("pixels", [False, True])
def test_openvino_agrees_too(tmp_path: Path, network: Any, pixels: bool) -> None:
    """Told to compute in float32, as it takes bfloat16 where the processor has it."""
    openvino = pytest.importorskip("openvino")
    model = random_model(network)
    written = mobilenet.export(model, tmp_path / "x.onnx", pixels=pixels, check=False)
    compiled = openvino.Core().compile_model(*written.files, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    photo = random_pixels(network, 1)
    scaling = model.preprocessing.mean, model.preprocessing.std
    expected = forward(network, model.tensors, photo, scaling=scaling)
    mean, std = (np.array(part, np.float32) for part in scaling)
    found = compiled([photo if pixels else ((photo - mean) / std).astype(np.float32).transpose(0, 3, 1, 2)])[0]
    allowed = tolerance(network, model.tensors, photo, float(np.finfo(np.float32).eps), scaling=scaling)
    assert (np.abs((found if network.include_top else found.transpose(0, 2, 3, 1)) - expected) <= allowed).all()
    assert len(np.unique(expected)) > 1


@installed
def test_outputs_that_differ_are_exit_code_4_and_no_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, format: str,
                                                          capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    """The wrong file is made by folding other weights than the model has."""
    model = random_model(MODELS[0])
    model.save(tmp_path / "model")
    module = importlib.import_module(f"mobilenet.export.{format}")
    right = module.fold

    def wrong(*arguments: Any) -> Any:
        folded = right(*arguments)
        folded["block5.pointwise.bias"] = folded["block5.pointwise.bias"] + 1
        return folded

    monkeypatch.setattr(module, "fold", wrong)
    path = tmp_path / f"x.{format}"
    with pytest.raises(GateError, match=rf"x.{format}: .* gives .* where the reference has .*nothing was written"):
        export(model, path)
    assert main(["export", str(tmp_path / "model"), "-o", str(path), "--json"]) == 4
    assert json.loads(capsys.readouterr().out)["exit_code"] == 4
    assert not path.exists()


def test_nan_and_other_shapes_are_differences() -> None:
    model = random_model(MODELS[0])
    for outputs, said in ((np.full((1, 3), np.nan), "gives nan"), (np.zeros((1, 4)), r"outputs of shape \(1, 4\)")):
        with pytest.raises(GateError, match=said):
            checked._compare(model, lambda photos, outputs=outputs: outputs, False, "x")  # type: ignore[misc]


def test_probabilities_are_compared_as_closely_as_their_logits() -> None:
    """A hundredth of a logit is far beyond rounding; the probabilities must show it."""
    model = random_model(MODELS[1])
    model.tensors["classifier.weight"] *= np.float32(0.01)
    scaling = model.preprocessing.mean, model.preprocessing.std
    logits = forward(model.network, model.tensors, checked._photo(model), scaling=scaling)
    exact = softmax(logits)
    assert checked._compare(model, lambda photos: exact.astype(np.float32), True, "x")[0] < 1e-6
    off = softmax(logits + 0.01 * np.arange(5))
    with pytest.raises(GateError, match="would be rounding"):
        checked._compare(model, lambda photos: off.astype(np.float32), True, "x")


@pytest.mark.parametrize("format", RUNTIMES)
def test_without_the_runtime_nothing_is_written_unless_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, format: str
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    model, path = random_model(MODELS[0]), tmp_path / f"x.{format}"
    with pytest.raises(MobileNetError, match=r"needs .*, which is not installed: pip install 'mobilenet\[.*--no-check"):
        export(model, path)
    assert not path.exists()
    written = export(model, path, check=False)
    assert path.exists()
    assert "not checked" in str(written)
    assert written.difference is None


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("x.tfl", {}, r"format: got the ending of 'x.tfl', needed one of .onnx \(onnx\), .tflite \(tflite\)"),
        ("x.onnx", {"format": "onyx"}, "format: got 'onyx', needed"),
        ("x.tflite", {"pixels": True}, "pixels: tflite does not have that option; it has softmax, check"),
    ],
)
def test_formats_and_options_outside_the_rule_are_refused(
    tmp_path: Path, name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        export(random_model(MODELS[0]), tmp_path / name, **options)
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize("name", ["x.onnx", "x.tflite", "x.o", "x.wasm"])
def test_a_missing_folder_is_named_before_anything_is_made(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    monkeypatch.setattr(importlib.import_module("mobilenet.export"), "import_module", None)  # of the writer
    with pytest.raises(MobileNetError, match=rf"{name}: can't be written: the folder \S+none is missing; make it"):
        export(random_model(v1(0.1, 32, 3)), tmp_path / "none" / name)


@pytest.mark.parametrize("format", RUNTIMES)
def test_models_that_are_not_finite_are_refused(tmp_path: Path, format: str) -> None:
    model = random_model(MODELS[0])
    model.tensors["stem.gamma"][0] = np.nan
    with pytest.raises(ModelError, match=r"stem.gamma"):
        export(model, tmp_path / f"x.{format}", check=False)
    quantised = random_int8_model(MODELS[0])
    quantised.tensors["stem.scale"][0] = np.nan
    with pytest.raises(ModelError, match=r"stem.scale"):
        export(quantised, tmp_path / f"x.{format}", check=False)


@pytest.mark.parametrize("format", LIBRARIES)
def test_int8_models_are_not_written_for_libraries(tmp_path: Path, format: str) -> None:
    model = random_int8_model(MODELS[0])
    with pytest.raises(UsageError, match=f"{format}: the model is int8, needed is f32"):
        export(model, tmp_path / "x", format)
    with pytest.raises(ModelError, match=f"format: {format} holds float32 weights, the model is int8"):
        write(model, tmp_path / "x", format)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(("format", "name"), [("torchvision", "x.safetensors"), ("huggingface", "folder")])
def test_the_command_writes_for_libraries_what_import_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], format: str, name: str
) -> None:
    """A runtime's option is refused there, and without the format's name the ending says nothing."""
    made = random_model(v2(0.5, 32, 3, conventions=format))
    made.save(tmp_path / "model")
    path, back = tmp_path / name, tmp_path / "back"
    given = ["export", str(tmp_path / "model"), "-o", str(path)]
    assert main(given) == 2
    assert "or by name keras, notes, torchvision" in capsys.readouterr().err
    assert main([*given, "--format", format, "--softmax"]) == 2
    assert f"softmax: {format} does not have that option; it has none" in capsys.readouterr().err
    assert main([*given, "--format", format, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    assert document["files"] == {str(file): file.stat().st_size for file in files}
    assert document["format"] == format
    assert document["difference"] is None
    assert "it was not run there" in document["checked"]
    assert main(["import", str(path), "-o", str(back), "--resolution", "32"]) == 0
    found = mobilenet.load(back)
    assert found.network.layers == made.network.layers
    assert all((found.tensors[key] == value).all() for key, value in made.tensors.items())


def test_the_command_tells_the_format_by_the_ending(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    random_model(MODELS[0]).save(tmp_path / "model")
    model, onnx, other = (str(tmp_path / name) for name in ("model", "x.ONNX", "y"))
    assert main(["export", model, "-o", onnx, "--no-check", "--pixels", "--softmax", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["format"] == "onnx"
    assert document["files"] == {onnx: Path(onnx).stat().st_size}
    assert main(["export", model, "-o", other, "--format", "tflite", "--no-check"]) == 0
    assert "not checked: it was not run in ai-edge-litert" in capsys.readouterr().out
    assert flatbuffer.decode(Path(other).read_bytes(), b"TFL3")
    assert protobuf.Message(memoryview(Path(onnx).read_bytes())).integer(1) == 7


def test_every_format_has_a_writer_with_its_options() -> None:
    import inspect

    for name, known in FORMATS.items():
        module, _, function = known.writer.rpartition(".")
        writer = getattr(importlib.import_module(f"mobilenet.export.{module}"), function)
        given = [key for key, value in inspect.signature(writer).parameters.items() if value.kind == value.KEYWORD_ONLY]
        assert tuple(given) == known.options, name
