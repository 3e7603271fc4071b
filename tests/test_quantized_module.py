"""Training for int8: the module computes the int8 network, learns through its roundings, and ends in an int8 model."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from mobilenet import integer, quantized
from mobilenet.arch import Network, v1, v2
from mobilenet.engine import Engine
from mobilenet.errors import DatasetError, UsageError
from mobilenet.model import load
from mobilenet.photos.preprocessing import Preprocessing
from mobilenet.training import augment, recipe
from mobilenet.training.optimizer import State
from mobilenet.training.quantized_module import QuantizedModule
from mobilenet.training.settings import Settings
from mobilenet.training.torch_model import TorchMobileNet
from mobilenet.training.train import train
from model_makers import SMALL, random_model, same_tensors
from small_members import random_pixels, small_members
from toy_training import make_photos, tiny

MEMBERS = [network for network in small_members() if network.include_top][:8]


def module_of(network: Network, preprocessing: Preprocessing | None = None) -> tuple[QuantizedModule, Any]:
    model = random_model(network, preprocessing=preprocessing)
    pixels = random_pixels(network, 6).astype(np.uint8)
    module = QuantizedModule(network, model.preprocessing, model.tensors)
    module.calibrate(pixels)
    return module, pixels


@pytest.mark.parametrize("network", MEMBERS, ids=str)
def test_its_answers_are_the_int8_networks(network: Network) -> None:
    module, pixels = module_of(network)
    tensors = module.int8_tensors()
    quantized.check(network, tensors, "full")
    expected = integer.forward(network, tensors, pixels)
    with torch.no_grad():
        found = module.eval()(augment.scaled(torch.from_numpy(pixels), module.preprocessing)).numpy()
    np.testing.assert_array_equal(found, expected)


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


def test_a_checkpoint_holds_the_ranges() -> None:
    module, _ = module_of(SMALL)
    settings = Settings(precision="int8", epochs=1)
    source = recipe.Source(SMALL, module.preprocessing)
    plan = recipe.decide(settings, recipe.Photos(64, 16, SMALL.classes, 32), source=source)
    kept = State(module, plan, 8).arrays()
    other = QuantizedModule(SMALL, module.preprocessing)
    State(other, plan, 8).load(kept, 3)
    assert same_tensors(other.int8_tensors(), module.int8_tensors())


def test_a_whole_training_ends_in_an_int8_model(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos")
    train(photos, tmp_path / "float", tiny(epochs=12), report=lambda _: None)
    settings = tiny(epochs=2, precision="int8", learning_rate=0.002, alpha=None, resolution=None, downsampling=None)
    result = train(photos, tmp_path / "int8", settings, start_from=tmp_path / "float", report=lambda _: None)
    model = load(tmp_path / "int8")
    assert model.precision == "int8"
    assert model.labels == load(tmp_path / "float").labels
    assert result.val_top1 is not None
    before = load(tmp_path / "float")
    pixels = np.stack([before._pixels(path) for path in sorted(photos.rglob("*.png"))])
    assert np.mean(Engine(before)(pixels).argmax(1) == Engine(model)(pixels).argmax(1)) > 0.8


def test_what_int8_needs_is_said(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", each=8)
    with pytest.raises(UsageError, match="precision: int8 trains the int8 model of a trained one; needed is --from"):
        train(photos, tmp_path / "out", tiny(precision="int8"), report=lambda _: None)
    random_model(v2(0.1, 32, 2), labels=["x", "y"]).save(tmp_path / "other")
    settings = tiny(precision="int8", alpha=None, resolution=None, downsampling=None)
    with pytest.raises(DatasetError, match=r"has other classes than the model in .*other; needed are the same"):
        train(photos, tmp_path / "out2", settings, start_from=tmp_path / "other", report=lambda _: None)
