"""Settings are checked by name, become options, and leave no choice open in the plan."""

import argparse
import math
from typing import Any

import pytest

from mobilenet import arch
from mobilenet.common.checks import fields
from mobilenet.errors import UsageError
from mobilenet.photos.preprocessing import Preprocessing
from mobilenet.training import recipe
from mobilenet.training.recipe import Photos, Plan, Source, add_arguments, decide, settings_from
from mobilenet.training.settings import Settings

CIFAR = Photos(train=42_500, validation=7_500, classes=10, side=32)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("alpha", 0, "alpha: got 0, needed a number above 0"),
        ("alpha", math.nan, "alpha: got nan"),
        ("family", "v3", "family: got 'v3', needed one of 'v1', 'v2'"),
        ("resolution", 31, "resolution: got 31, needed a whole number from 32"),
        ("resolution", (32, 9999), "resolution: got 9999"),
        ("resolution", (32, 32, 32), r"resolution: got \(32, 32, 32\)"),
        ("downsampling", 3, "downsampling: got 3, needed one of 32, 16, 8, 4, 2, 1"),
        ("source", "kera", "source: got 'kera', needed one of 'paper'"),
        ("epochs", 0, "epochs: got 0"),
        ("epochs", True, "epochs: got True"),
        ("minutes", 0.0, "minutes: got 0.0, needed a number above 0"),
        ("batch", 1, "batch: got 1, needed a whole number from 2"),
        ("label_smoothing", 1.0, "label_smoothing: got 1.0, needed a number from 0 to below 1"),
        ("augment", "much", "augment: got 'much', needed one of 'none', 'light', 'standard'"),
        ("precision", "f16", "precision: got 'f16', needed one of 'f32', 'bf16'"),
        ("seed", -1, "seed: got -1"),
        ("tensorboard", 1, "tensorboard: got 1, needed true or false"),
    ],
)
def test_a_setting_outside_its_rule_is_named(name: str, value: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Settings(**{name: value})


def test_epochs_and_minutes_exclude_each_other() -> None:
    with pytest.raises(UsageError, match="epochs, minutes: both were given"):
        Settings(epochs=1, minutes=1.0)


def test_every_setting_is_an_option() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    assert settings_from(parser.parse_args([])) == Settings()
    values = {
        "family": "v1", "alpha": 0.25, "resolution": (48, 64), "downsampling": 16, "source": "keras", "epochs": 3,
        "batch": 8, "micro_batches": 2, "learning_rate": 0.5, "weight_decay": 0.0, "label_smoothing": 0.0,
        "average": 0.5, "clip": 1.0, "augment": "light", "precision": "bf16", "patience": 0, "validation": 0.5,
        "seed": 2**40, "threads": 1, "checkpoint_seconds": 0.0, "max_bad": 0.5, "tensorboard": True,
    }  # fmt: skip
    assert {*values, "minutes"} == set(fields(Settings))
    texts = {name: str(value) for name, value in values.items()} | {"resolution": "48x64"}
    words = [f"--{name.replace('_', '-')}={text}" for name, text in texts.items() if name != "tensorboard"]
    assert settings_from(parser.parse_args([*words, "--tensorboard"])) == Settings(**values)
    assert settings_from(parser.parse_args(["--resolution", "96"])).resolution == 96
    for text in ("96x96x3", "x", "9.5"):
        with pytest.raises(SystemExit):
            parser.parse_args(["--resolution", text])


def test_nothing_asked_for_gives_a_whole_plan() -> None:
    plan = decide(Settings(), CIFAR)
    assert plan.network == arch.v2(0.5, 32, 10, downsampling=8)
    assert plan.preprocessing == Preprocessing(32, 32, crop=1.0, resize="squash")
    assert (plan.batch, plan.micro_batches, plan.epochs, plan.patience) == (128, 1, 23, 8)
    assert Plan.from_dict(plan.to_dict()) == plan


def test_what_is_asked_for_is_in_the_plan() -> None:
    asked: dict[str, Any] = {
        "epochs": 7, "batch": 50, "micro_batches": 3, "learning_rate": 0.3, "weight_decay": 0.0, "clip": 2.0,
        "label_smoothing": 0.0, "average": 0.0, "augment": "none", "precision": "bf16", "patience": 0,
        "validation": 0.5, "seed": 9,
    }  # fmt: skip
    shape: dict[str, Any] = {"family": "v1", "alpha": 0.25, "resolution": (64, 96), "source": "keras"}
    plan = decide(Settings(downsampling=8, **shape, **asked), CIFAR)
    assert {name: getattr(plan, name) for name in asked} == asked
    assert plan.network == arch.v1(0.25, (64, 96), 10, downsampling=8, conventions="keras")
    plan.refuse_other(Settings(threads=3, **shape, **asked))


@pytest.mark.parametrize(
    ("side", "resolution", "downsampling"), [(8, 32, 8), (48, 32, 8), (49, 64, 16), (97, 160, 32), (4000, 160, 32)]
)
def test_the_photos_decide_about_the_input(side: float, resolution: int, downsampling: int) -> None:
    network = decide(Settings(), CIFAR._replace(side=side)).network
    assert (network.height, network.width, network.downsampling) == (resolution, resolution, downsampling)


@pytest.mark.parametrize(("resolution", "downsampling"), [(32, 8), ((96, 64), 16), (97, 32), (224, 32)])
def test_the_input_decides_about_the_downsampling(resolution: int | tuple[int, int], downsampling: int) -> None:
    assert decide(Settings(resolution=resolution), CIFAR).network.downsampling == downsampling


def test_larger_photos_are_cropped_as_the_papers_do() -> None:
    plan = decide(Settings(source="torchvision"), CIFAR._replace(side=500))
    assert plan.preprocessing == Preprocessing(
        160, 160, crop=0.875, mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375)
    )


@pytest.mark.parametrize(
    ("train", "batch", "epochs"),
    [(10, 10, 1500), (100, 16, 215), (2_000, 64, 120), (20_000, 128, 50), (10**6, 128, 20)],
)
def test_the_number_of_photos_decides_about_batch_and_epochs(train: int, batch: int, epochs: int) -> None:
    plan = decide(Settings(), CIFAR._replace(train=train))
    assert (plan.batch, plan.epochs) == (batch, epochs)
    assert plan.learning_rate == pytest.approx(recipe.RATE * batch / 128)


def test_another_model_decides_about_the_network_and_needs_less() -> None:
    network = arch.v1(0.25, 128, conventions="keras")
    how = Preprocessing(128, 128, interpolation="bicubic")
    plan = decide(Settings(), CIFAR, source=Source(network, how))
    assert plan.network == network.replace(classes=10)
    assert plan.preprocessing == how
    assert plan.fine_tuning
    assert plan.epochs < decide(Settings(), CIFAR).epochs
    assert plan.learning_rate < decide(Settings(), CIFAR).learning_rate
    other = decide(Settings(resolution=160, alpha=0.5, downsampling=16), CIFAR, source=Source(network, how))
    assert other.network == network.replace(classes=10, height=160, width=160, alpha=0.5, downsampling=16)
    assert other.preprocessing == Preprocessing(160, 160, interpolation="bicubic")
    torch_like = decide(Settings(source="timm"), CIFAR, source=Source(network, how))
    assert torch_like.network.conventions == arch.conventions("v1", "timm")


@pytest.mark.parametrize(
    ("settings", "photos", "message"),
    [
        (Settings(patience=3), CIFAR._replace(validation=0), "patience: 3 epochs for a better validation, but no"),
        (Settings(batch=16, micro_batches=9), CIFAR, "micro_batches: 42500 photos in batches of 16 leave 1 photo"),
        (Settings(), CIFAR._replace(train=1), "micro_batches: 1 photos in batches of 2 leave 1 photo"),
    ],
)
def test_what_cannot_be_is_refused(settings: Settings, photos: Photos, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        decide(settings, photos)


def test_processes_make_micro_batches() -> None:
    assert decide(Settings(), CIFAR, 4).micro_batches == 4
    with pytest.raises(UsageError, match="micro_batches: 2 are fewer than the 4 processes"):
        decide(Settings(micro_batches=2), CIFAR, 4)


@pytest.mark.parametrize(("steps", "train"), [(1, 100), (100, 100), (1000, 10)])
def test_the_learning_rate_rises_and_falls_to_nothing(steps: int, train: int) -> None:
    plan = decide(Settings(learning_rate=0.4), CIFAR)
    rates = [recipe.learning_rate(plan, step, steps) for step in range(steps)]
    peak = rates.index(max(rates))
    assert max(rates) == pytest.approx(0.4)
    assert peak <= max(1, steps // 20)
    assert rates == sorted(rates[:peak]) + sorted(rates[peak:], reverse=True)
    if steps >= 100:
        assert rates[0] == pytest.approx(0.4 / (steps // 20))
        assert 0 < rates[-1] < 0.4 * 1e-3


def test_averages_begin_short() -> None:
    assert recipe.kept_share(0.999, 0) == 0.1
    assert recipe.kept_share(0.999, 90) == 0.91
    assert recipe.kept_share(0.999, 10**6) == 0.999
    assert recipe.kept_share(0.0, 50) == 0.0
    assert recipe.kept_share(0.999, 0, head_start=90) == 0.91


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs: got 0"),
        ({"batch": "64"}, "batch: got '64'"),
        ({"epoch": 3}, "plan: unknown key 'epoch'; did you mean 'epochs'"),
        ({"network": {}}, "network: the key 'family' is missing"),
    ],
)
def test_a_plan_from_a_file_is_checked(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Plan.from_dict(decide(Settings(), CIFAR).to_dict() | change)
