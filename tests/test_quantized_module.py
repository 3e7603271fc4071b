"""Training for int8: the module computes the int8 network, learns through its roundings, and ends in an int8 model."""

import importlib
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from int8_makers import random_bytes
from mobilenet import integer, quantized
from mobilenet.arch import Network, v1, v2
from mobilenet.engine import Engine
from mobilenet.errors import DatasetError, UsageError
from mobilenet.export.onnx import onnx
from mobilenet.model import Model, load
from mobilenet.photos.preprocessing import Preprocessing
from mobilenet.quantization.sweep import Choices, Sweep
from mobilenet.training import augment, quantized_module, recipe
from mobilenet.training.optimizer import State
from mobilenet.training.quantized_module import QuantizedModule
from mobilenet.training.settings import Settings
from mobilenet.training.torch_model import TorchMobileNet
from mobilenet.training.train import train
from mobilenet.weights import fold
from model_makers import random_model, same_tensors
from small_members import random_pixels, small_members
from test_export_int8 import FORMATS, run
from toy_training import assert_same, log_of, make_photos, start, tiny, wait_for

MEMBERS = [network for network in small_members() if network.include_top][:8]
EXPORTED = (v1(0.25, (64, 48), 10), v2(0.35, (96, 64), 10), v2(0.5, 48, 5, downsampling=16, conventions="torchvision"))


def module_of(
    network: Network, preprocessing: Preprocessing | None = None, steps: int = 0, alike: int = 0
) -> tuple[QuantizedModule, Any]:
    """Returns a module trained for a few steps, and photos; some channels may have no weights but a large bias."""
    model = random_model(network, preprocessing=preprocessing)
    for layer in network.layers[1:]:
        if layer.batch_norm:
            model.tensors[f"{layer.name}.gamma"][:alike] = 1e-9
            model.tensors[f"{layer.name}.beta"][:alike] = 30
    pixels = random_pixels(network, 6).astype(np.uint8)
    module = QuantizedModule(network, model.preprocessing, model.tensors)
    module.calibrate(pixels)
    x, labels = augment.scaled(torch.from_numpy(pixels), module.preprocessing), torch.arange(6) % network.classes
    for _ in range(steps):
        module.parameters_flat.grad = None
        functional.cross_entropy(module(x), labels).backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            module.parameters_flat -= 0.01 * module.gradients_flat / module.gradients_flat.norm()
    return module, pixels


def model_of(module: QuantizedModule) -> Model:
    tensors = module.int8_tensors()
    return Model(module.network, tensors, None, module.preprocessing, precision="int8", rescale="full")


@pytest.mark.parametrize("alike", [0, 2])
@pytest.mark.parametrize("network", MEMBERS, ids=str)
def test_its_answers_are_the_int8_networks(network: Network, alike: int) -> None:
    module, pixels = module_of(network, steps=2, alike=alike)
    tensors = module.int8_tensors()
    quantized.check(network, tensors, "full")
    expected = integer.forward(network, tensors, pixels)
    with torch.no_grad():
        found = module.eval()(augment.scaled(torch.from_numpy(pixels), module.preprocessing)).numpy()
    np.testing.assert_array_equal(found, expected)
    assert len(np.unique(expected)) > 3


@pytest.mark.parametrize("network", MEMBERS, ids=str)
def test_its_scales_are_those_that_quantize_chooses(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights and biases are rounded in float32 here, so that a half may go the other way."""
    choices = Choices(compensate=False, correct_bias=False, rescale="full")
    monkeypatch.setattr(quantized_module, "Choices", lambda **_: choices)
    module, pixels = module_of(network)
    expected = Sweep(network, fold(network, module.tensors()), module.preprocessing, pixels, choices).tensors
    found = module.int8_tensors()
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert tensor.dtype == expected[name].dtype
        pair = tensor.astype(np.float64), expected[name].astype(np.float64)
        whole = name.endswith((".weight", ".bias"))
        np.testing.assert_allclose(*pair, rtol=1e-6 if whole else 0, atol=whole, err_msg=name)


@FORMATS
@pytest.mark.parametrize("network", EXPORTED, ids=str)
def test_other_runtimes_give_the_same_bits_after_training(format: str, network: Network) -> None:
    module, pixels = module_of(network, steps=3)
    model = model_of(module)
    assert importlib.import_module(f"mobilenet.export.{format}").exact(model)
    photos = np.concatenate([random_bytes(network, 3), pixels])
    assert (run(model, format, photos) == integer.forward(network, model.tensors, photos)).all()


@pytest.mark.parametrize("network", EXPORTED, ids=str)
def test_openvino_gives_the_same_bits_after_training(network: Network, tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    module, pixels = module_of(network, steps=3)
    model = model_of(module)
    (tmp_path / "x.onnx").write_bytes(onnx(model))
    compiled = openvino.Core().compile_model(tmp_path / "x.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    photos = np.concatenate([random_bytes(network, 4), pixels])
    found = np.concatenate([compiled([photo[None].transpose(0, 3, 1, 2)])[0] for photo in photos])
    assert (found == integer.forward(network, model.tensors, photos)).all()


def test_pixels_of_any_scaling_are_the_same_bytes() -> None:
    network = v1(0.1, 32, 4)
    module, pixels = module_of(network, Preprocessing(32, 32, mean=(123.675, 116.28, 103.53), std=(58.4, 57.1, 57.4)))
    with torch.no_grad():
        x = augment.scaled(torch.from_numpy(pixels), module.preprocessing)
        between = x + 0.3 / torch.tensor(module.preprocessing.std)[:, None, None]  # as augmentation gives them
        found, rounded = module.eval()(x).numpy(), module(between).numpy()
    np.testing.assert_array_equal(found, integer.forward(network, module.int8_tensors(), pixels))
    np.testing.assert_array_equal(found, rounded)


def test_gradients_pass_the_roundings() -> None:
    """They point where those of the float32 network do; those of 70,000 independent numbers have a cosine of 0.004."""
    network = v2(0.25, 32, 5, downsampling=8)
    module, pixels = module_of(network)
    plain = TorchMobileNet(network, module.tensors())
    x = augment.scaled(torch.from_numpy(pixels), module.preprocessing)
    labels = torch.arange(len(x)) % 5
    gradients = []
    for each in (module, plain):
        each.eval()
        functional.cross_entropy(each(x), labels).backward()  # type: ignore[no-untyped-call]
        gradients.append(each.gradients_flat.clone())
    cosine = functional.cosine_similarity(*gradients, dim=0)
    assert cosine > 0.5
    assert float(gradients[0].norm() / gradients[1].norm()) == pytest.approx(1, abs=0.5)


def test_statistics_stay_and_shapes_are_checked() -> None:
    module, pixels = module_of(v1(0.1, 32, 4))
    module.train()
    module(augment.scaled(torch.from_numpy(pixels), module.preprocessing))
    torch.testing.assert_close(module.batch_statistics, module.statistics, rtol=0, atol=0)
    with pytest.raises(UsageError, match="x: got shape"):
        module(torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_parameter_that_is_not_finite_makes_the_loss_so(value: float) -> None:
    """Training then says what to do: nothing warns or raises before."""
    module, pixels = module_of(v2(0.35, 32, 3))
    with torch.no_grad():
        module.parameters_flat[0] = value
        logits = module(augment.scaled(torch.from_numpy(pixels), module.preprocessing))
    assert not functional.cross_entropy(logits, torch.zeros(len(pixels), dtype=torch.long)).isfinite()


def test_a_checkpoint_holds_the_ranges() -> None:
    network = v2(0.35, 32, 3)
    module, _ = module_of(network)
    settings = Settings(precision="int8", epochs=1)
    source = recipe.Source(network, module.preprocessing)
    plan = recipe.decide(settings, recipe.Photos(64, 16, network.classes, 32), source=source)
    kept = State(module, plan, 8).arrays()
    other = QuantizedModule(network, module.preprocessing)
    State(other, plan, 8).load(kept, 3)
    assert same_tensors(other.int8_tensors(), module.int8_tensors())


def test_a_whole_training_ends_in_an_int8_model(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos")
    train(photos, tmp_path / "float", tiny(epochs=12), report=lambda _: None)
    settings = tiny(epochs=2, precision="int8", learning_rate=0.002, alpha=None, resolution=None, downsampling=None)
    result = train(photos, tmp_path / "int8", settings, start_from=tmp_path / "float", report=lambda _: None)
    model = load(tmp_path / "int8")
    assert (model.precision, model.rescale) == ("int8", "full")
    assert model.labels == load(tmp_path / "float").labels
    assert result.val_top1 is not None
    before = load(tmp_path / "float")
    pixels = np.stack([before._pixels(path) for path in sorted(photos.rglob("*.png"))])
    assert np.mean(Engine(before)(pixels).argmax(1) == Engine(model)(pixels).argmax(1)) > 0.8


def test_after_a_kill_it_goes_on_to_the_same_model(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos")
    random_model(v2(0.35, 32, 3, downsampling=16), labels=["colour0", "colour1", "colour2"]).save(tmp_path / "float")
    given = {"precision": "int8", "alpha": None, "resolution": None, "downsampling": None, "checkpoint_seconds": 0.0}
    settings = tiny(epochs=3, **given)
    undisturbed = start(photos, tmp_path / "whole", settings, start_from=tmp_path / "float")
    undisturbed.join()
    killed = start(photos, tmp_path / "out", settings, start_from=tmp_path / "float", hold_at=5)
    wait_for(tmp_path / "out", "step=5")
    killed.kill()
    killed.join()
    resumed = start(photos, tmp_path / "out", settings, resume=True)
    resumed.join()
    assert [each.exitcode for each in (undisturbed, killed, resumed)] == [0, -signal.SIGKILL, 0]
    assert "going on from the checkpoint, step" in log_of(tmp_path / "out").read_text()
    assert_same(tmp_path / "whole", tmp_path / "out")


def test_what_int8_needs_is_said(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", each=8)
    with pytest.raises(UsageError, match="precision: int8 trains the int8 model of a trained one; needed is --from"):
        train(photos, tmp_path / "out", tiny(precision="int8"), report=lambda _: None)
    random_model(v2(0.1, 32, 2), labels=["x", "y"]).save(tmp_path / "other")
    settings = tiny(precision="int8", alpha=None, resolution=None, downsampling=None)
    with pytest.raises(DatasetError, match=r"has other classes than the model in .*other; needed are the same"):
        train(photos, tmp_path / "out2", settings, start_from=tmp_path / "other", report=lambda _: None)
