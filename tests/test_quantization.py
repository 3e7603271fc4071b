"""Post-training quantisation: each part does what it is for, and the int8 model gives the float32 model's answers."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from int8_makers import random_int8_model
from mobilenet import cli, integer, quantized
from mobilenet.arch import Layer, Network, Shape, conventions, v1, v2
from mobilenet.engine import Engine
from mobilenet.errors import DataError, ModelError, UsageError
from mobilenet.model import Model, load
from mobilenet.photos.preprocessing import Preprocessing
from mobilenet.quantization import folded, ranges, short
from mobilenet.quantization.comparison import compare
from mobilenet.quantization.equalise import equalised
from mobilenet.quantization.quantize import evenly, quantize, usual_count
from mobilenet.quantization.rounding import covariance, rounded
from mobilenet.quantization.sweep import RESCALES, Choices, Sweep
from mobilenet.quantized import Rescale
from mobilenet.reference import forward, outputs, tolerances
from mobilenet.weights import fold
from model_makers import random_model
from small_members import random_pixels, small_members

LAYER = Layer("layer", "pointwise", None, Shape(4, 4, 8), Shape(4, 4, 6), activation="linear")
PLAIN = Choices("minmax", equalise=False, correct_bias=False, compensate=False)
MEMBERS = small_members()
NEAR = MEMBERS[:3] + MEMBERS[4:9]
NETWORK = v2(0.25, 32, 8, downsampling=16, conventions=conventions("v2", "paper", scale_head="always"))


def pictures(network: Network, count: int, seed: int = 0) -> NDArray[np.uint8]:
    return random_pixels(network, count, seed).astype(np.uint8)


# ------------------------------------------------------------------------------------------------------------- ranges


def test_the_range_of_what_a_layer_gives() -> None:
    y = np.linspace(-1, 3, 1001, dtype=np.float32)
    assert ranges.choose(LAYER, y, "minmax") == (np.float32(4 / 255), 64)
    zeros = ranges.choose(LAYER, np.zeros(5, np.float32), "mse")
    assert zeros.scale > 0
    assert zeros.zero == 0
    above = ranges.choose(LAYER, y + 2, "minmax")  # 0 is in every range: padding and shortcuts need it
    assert above == (np.float32(5 / 255), 0)


def test_relu6_keeps_its_range_where_it_is_full() -> None:
    relu6 = Layer("layer", "pointwise", None, Shape(4, 4, 8), Shape(4, 4, 6), activation="relu6")
    y = np.float32(1) * np.arange(1000) / 999
    for method in ranges.METHODS:
        assert ranges.choose(relu6, 6 * y**8, method) == (np.float32(6 / 255), 0)
        assert ranges.choose(relu6, y, method).scale <= np.float32(1 / 255)


def test_methods_cut_off_rare_values_and_the_least_error_is_least() -> None:
    y = np.random.default_rng(0).laplace(0, 1, 50_000).astype(np.float32)
    y[:3] = 20, -30, 25
    error = {}
    for method in ranges.METHODS:
        scale, zero = ranges.choose(LAYER, y, method)
        error[method] = float(np.square(y - scale * (np.clip(np.rint(y / scale) + zero, 0, 255) - zero)).mean())
    wide = ranges.choose(LAYER, y, "minmax").scale * 255
    assert wide == pytest.approx(55, rel=1e-5)
    assert ranges.choose(LAYER, y, "percentile").scale * 255 < 25 < wide
    assert error["mse"] < 0.9 * min(error["minmax"], error["percentile"])


# ------------------------------------------------------------------------------------------- equalisation and rounding


@pytest.mark.parametrize("network", MEMBERS[:10], ids=str)
def test_the_float_network_is_the_references(network: Network) -> None:
    model = random_model(network)
    pixels = pictures(network, 2)
    scaling = model.preprocessing.mean, model.preprocessing.std
    expected = outputs(network, model.tensors, pixels, scaling=scaling)
    allowed = tolerances(network, model.tensors, pixels, float(np.finfo(np.float32).eps), scaling=scaling)
    weights = fold(network, model.tensors)
    for layer, y in folded.run(network, weights, folded.scaled(pixels, model.preprocessing)):
        assert (np.abs(y - expected[layer.name]) <= allowed[layer.name]).all(), layer


def test_an_equalised_network_means_the_same_and_uses_its_ranges() -> None:
    network = v1(0.25, 32, 8, downsampling=8)
    tensors = random_model(network).tensors
    pixels, preprocessing = pictures(network, 4), random_model(network).preprocessing
    # Channels of very different ranges, as training leaves them.
    factors = np.geomspace(0.01, 1, network.layers[1].output.channels).astype(np.float32)
    for part in ("gamma", "beta"):
        tensors[f"block0.depthwise.{part}"] *= factors

    def run(tensors: Any) -> dict[str, NDArray[np.float32]]:
        seen = folded.run(network, fold(network, tensors), folded.scaled(pixels, preprocessing))
        return {layer.name: y.copy() for layer, y in seen}

    before = run(tensors)
    largest = {name: y.reshape(-1, y.shape[-1]).max(0) for name, y in before.items()}
    after = run(equalised(network, tensors, largest))
    logits = network.layers[-1].name
    np.testing.assert_allclose(after[logits], before[logits], rtol=1e-3, atol=1e-3 * np.abs(before[logits]).max())
    top = after["block0.depthwise"].reshape(-1, len(factors)).max(0)
    alive = largest["block0.depthwise"] > 0
    assert (top[alive] >= 0.999 * largest["block0.depthwise"][alive]).all()
    assert top[alive].min() > 4 * largest["block0.depthwise"][alive].min()
    assert (top <= 6).all()


def test_every_channel_is_looked_at() -> None:
    """Even steps through [N, h, w, channels] would meet one channel of some alone."""
    y = np.zeros((64, 16, 16, 64), np.float32)
    y[..., 63] = np.random.default_rng(0).uniform(0, 50, y.shape[:3])
    for method in ranges.METHODS:
        assert ranges.choose(LAYER, y, method).scale * 255 > 45


@pytest.mark.parametrize("kind", ["pointwise", "conv", "depthwise"])
def test_rounding_with_the_covariance_in_view_leaves_less_error(kind: Any) -> None:
    channels = 8
    layer = Layer("layer", kind, None, Shape(9, 9, channels), Shape(9, 9, channels), 1 if kind == "pointwise" else 3,
                  padding=((0, 0), (0, 0)) if kind == "pointwise" else ((1, 1), (1, 1)))  # fmt: skip
    generator = np.random.default_rng(0)
    smooth = generator.normal(0, 1, (6, 11, 11, 3))
    smooth = (smooth[:, 1:-1, 1:-1] + smooth[:, :-2, 1:-1] + smooth[:, 1:-1, :-2]) @ generator.normal(
        0, 1, (3, channels)
    )
    x = (20 * smooth + generator.normal(0, 2, smooth.shape)).astype(np.float32)
    assert layer.weight_shape
    weight = generator.normal(0, 1, layer.weight_shape)
    scale = np.abs(weight).reshape(-1, channels).max(0) / 20  # coarse, so that the error is plain
    nearest = np.clip(np.rint(weight / scale), -127, 127)
    found = rounded(weight, scale, covariance(layer, x))
    assert found.dtype == np.int8
    assert found.shape == weight.shape
    assert np.abs(found - weight / scale).max() < 8  # near the weight still

    def error(steps: NDArray[Any]) -> float:
        off = (steps * scale - weight).astype(np.float32)
        off = off.reshape(-1, channels) if kind == "conv" else off
        return float(integer.weighted_sum(layer, x, off).std((0, 1, 2)).mean())

    assert error(found) < 0.9 * error(nearest)


# ----------------------------------------------------------------------------------------------------------- the sweep


def sweep(model: Model, pixels: NDArray[np.uint8], choices: Choices) -> Sweep:
    return Sweep(model.network, fold(model.network, model.tensors), model.preprocessing, pixels, choices)


def test_the_correction_leaves_no_mean_error_in_a_sum() -> None:
    """Seen in logits that are sums, of the rescale "float"."""
    model = random_model(NETWORK)
    pixels = pictures(NETWORK, 8)
    logits = NETWORK.layers[-1].name
    expected = Engine(model)(pixels).mean(0)

    def bias(choices: Choices) -> float:
        made = sweep(model, pixels, replace(choices, rescale="float"))
        off = integer.forward(NETWORK, made.tensors, pixels).mean(0) - expected
        return float(np.abs(off).max())

    plain = bias(PLAIN)
    corrected = bias(Choices("minmax", equalise=False, correct_bias=True, compensate=False))
    unit = np.max(sweep(model, pixels, replace(PLAIN, rescale="float")).tensors[f"{logits}.multiplier"])
    assert corrected < 1.01 * unit  # a bias is a whole number of these
    assert plain > 4 * corrected


@pytest.mark.parametrize(
    "choices", [replace(PLAIN, rescale="float"), Choices(), Choices("percentile", equalise=True)], ids=str
)
@pytest.mark.parametrize("network", NEAR, ids=str)
def test_the_int8_network_is_near_the_float_one(network: Network, choices: Choices) -> None:
    model = random_model(network)
    pixels = pictures(network, 6)
    made = quantize(model, pixels, choices)
    quantized.check(network, made.model.tensors, choices.rescale)
    expected = Engine(model)(pixels)
    found = Engine(made.model)(pixels)
    signal = np.square(expected).mean()
    assert np.square(found - expected).mean() < signal / 10**1.2, made.ratios
    assert min(made.ratios.values()) > 8


def test_pixels_of_any_scaling_are_folded_in() -> None:
    """A mean that is no whole number, one beyond 255, and a deviation for each channel."""
    network = v1(0.25, 32, 4, downsampling=4)
    scaling = Preprocessing(32, 32, mean=(123.675, 300.0, -20.0), std=(58.4, 57.1, 2000.0))
    model = random_model(network, preprocessing=scaling)
    pixels = pictures(network, 6)
    made = quantize(model, pixels, PLAIN)
    assert made.model.tensors["pixels.zero"].tolist() == [124, 255, 0]
    assert made.ratios["stem"] > 30


@pytest.mark.parametrize("rescale", RESCALES)
def test_layers_without_weights_to_speak_of_are_quantised(rescale: Rescale) -> None:
    """A channel of zeros, one with a bias that dwarfs its weights, and a network that gives zeros alone."""
    model = random_model(NETWORK)
    for name in ("stem.gamma", "block3.expand.gamma", "head.gamma"):
        model.tensors[name][:] = 0
    model.tensors["block1.expand.gamma"][0], model.tensors["block1.expand.beta"][0] = 1e-30, 3
    model.tensors["classifier.weight"][:] = 0
    made = quantize(model, pictures(NETWORK, 3), Choices(rescale=rescale))
    found = Engine(made.model)(pictures(NETWORK, 2))
    step = made.model.tensors["classifier.scale"][0] if rescale == "full" else 0
    np.testing.assert_allclose(found, np.tile(model.tensors["classifier.bias"], (2, 1)), rtol=1e-6, atol=step)


# ------------------------------------------------------------------------------------------------------ what users call


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Makes twelve pictures, in a folder a class."""
    for index, pixels in enumerate(pictures(NETWORK, 12, 5)):
        path = tmp_path / "photos" / "abcdefgh"[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return tmp_path / "photos"


def test_photos_come_as_a_folder_or_as_arrays(folder: Path) -> None:
    model = random_model(NETWORK, labels=[*"abcdefgh"], notes={"Training": {"photos": 3}})
    made = quantize(model, folder, count=5)
    assert len(made.paths) == 5
    assert made.model.labels == model.labels
    assert made.model.notes["Training"] == {"photos": 3}
    assert made.model.notes["Quantisation"]["photos"] == 5
    assert model.quantize(pictures(NETWORK, 3)).precision == "int8"
    larger = np.random.default_rng(0).integers(0, 256, (3, 50, 40, 3), dtype=np.uint8)
    assert len(quantize(model, larger, count=2).model.predict(larger)) == 3
    assert [usual_count(NETWORK.replace(height=side, width=side)) for side in (32, 96, 224)] == [512, 261, 48]
    assert evenly([1, 2, 3, 4, 5, 6], 3) == [1, 3, 5]
    assert evenly([1, 2], 3) == [1, 2]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((0, 32, 32, 3), np.uint8), r"images: got uint8 \[0, 32, 32, 3\], needed uint8 \[N, H, W, 3\]"),
        (np.zeros((2, 32, 32, 3)), r"images: got float64 \[2, 32, 32, 3\]"),
        ([1, 2], r"images: got \[1, 2\], needed"),
    ],
)
def test_images_that_are_none_are_named(images: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        random_model(NETWORK).quantize(images)


def test_what_can_not_be_quantised_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"quantize: <Model .* int8> is quantised"):
        random_int8_model(NETWORK).quantize(pictures(NETWORK, 1))
    with pytest.raises(UsageError, match="method: got 'kl', needed one of"):
        quantize(random_model(NETWORK), pictures(NETWORK, 1), Choices("kl"))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="rescale: got 'fixed', needed one of 'full', 'float'"):
        random_model(NETWORK).quantize(pictures(NETWORK, 1), rescale="fixed")
    broken = random_model(NETWORK)
    broken.tensors["stem.weight"][0] = np.nan
    with pytest.raises(ModelError, match=r"tensor 'stem.weight' holds NaN"):
        broken.quantize(pictures(NETWORK, 1))
    with pytest.raises(DataError, match=r"no photo in this folder can be read; give one with a few dozen.*\.jpg"):
        random_model(NETWORK).quantize(tmp_path)
    (tmp_path / "x.jpg").write_bytes(b"no photo")
    with pytest.raises(DataError, match=r"1 of 1 photos to quantise with can't be read; the first: .*x.jpg"):
        random_model(NETWORK).quantize(tmp_path)


def test_the_command_says_what_it_cost(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    random_model(NETWORK, labels=[*"abcdefgh"]).save(tmp_path / "model")
    arguments = ["quantize", str(tmp_path / "model"), "--photos", str(folder), "-o", str(tmp_path / "int8")]
    assert cli.main([*arguments, "--count", "4"]) == 0
    text = capsys.readouterr().out
    for part in ("top-1", "size of the weights", "time a photo", "the same label for", "of 8 photos", "lose most"):
        assert part in text
    assert (load(tmp_path / "int8").precision, load(tmp_path / "int8").rescale) == ("int8", "full")
    assert cli.main([*arguments, "--json", "--ranges", "minmax", "--equalise", "--rescale", "float"]) == 0
    assert load(tmp_path / "int8").rescale == "float"
    found = json.loads(capsys.readouterr().out)
    assert found["measured_on"] == found["photos"] == 12  # there are no others
    assert found["bytes"]["int8"] < 0.35 * found["bytes"]["f32"]
    assert set(found["top1"]) == {"f32", "int8"}
    assert set(found["signal_to_noise_db"]) == set(NETWORK.by_name)
    assert cli.main([*arguments[:-1], str(tmp_path / "model")]) == 2  # it would be lost
    assert "which would be lost" in capsys.readouterr().err
    assert cli.main(["predict", str(tmp_path / "int8"), str(folder), "--top", "1"]) == 0
    assert cli.main(["evaluate", str(tmp_path / "int8"), str(folder)]) == 0
    assert (tmp_path / "int8" / "report.html").is_file()


def test_of_a_split_data_set_it_is_measured_on_train_and_compared_on_test(folder: Path) -> None:
    photos = folder.parent / "split"
    for split in ("train", "test"):
        (photos / split).mkdir(parents=True)
        for label in "ab":
            (photos / split / label).symlink_to(folder / label)
    model = random_model(NETWORK, labels=[*"abcdefgh"])
    made = quantize(model, photos, count=4)
    assert all("train" in path.parts for path in made.paths)
    assert compare(model, made, photos).top1 is not None


def test_without_labels_the_answers_are_compared_alone(folder: Path, tmp_path: Path) -> None:
    model = random_model(NETWORK, labels=[*"stuvwxyz"])
    made = quantize(model, folder, count=3)
    found = compare(model, made, folder, count=4)
    assert (found.photos, found.top1) == (4, None)
    assert "top-1" not in str(found)
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "x.jpg").write_bytes(b"no photo")
    with pytest.raises(DataError, match="none: no photo can be read"):
        compare(model, made, tmp_path / "none")


def test_short_multipliers_give_the_same_in_any_order() -> None:
    """Bias added before or after the product, with or without a rounding between; of all that is not clamped."""
    generator = np.random.default_rng(0)
    for most in (0, 1, 100, 1000, 30_000):
        least = generator.uniform(1e-6, 0.1, 200)
        steps = generator.uniform(-most, most, 200)
        multiplier = short.multipliers(least, steps, 255)
        assert (multiplier >= least.astype(np.float32)).all()
        assert multiplier.dtype == np.float32
        bias = np.rint(steps / multiplier)
        wanted = generator.uniform(-1, 256, (2000, 200))  # where sums end, and where products are halves
        wanted[::2] = np.floor(wanted[::2]) + 0.5
        sums = np.rint(wanted / multiplier) - bias
        exact = (sums + bias) * multiplier.astype(np.float64)
        first = (sums + bias).astype(np.float32) * multiplier
        last = sums.astype(np.float32) * multiplier + bias.astype(np.float32) * multiplier
        assert (first == exact).all()
        assert (last == exact).all()


def round_to_the_same(multiplier: NDArray[np.float32], bias: NDArray[Any], most: int) -> bool:
    """Returns whether sums near a half, that are not clamped, round as the exact product, a shortcut added or not."""
    for half in np.arange(-most - 16.5, most + 17):
        for near in (-1, 0, 1):
            sums = np.rint(half / multiplier.astype(np.float64)) + near
            exact = sums * multiplier.astype(np.float64)
            if (exact == half).any():
                return False
            whole = sums.astype(np.float32) * multiplier
            parts = (sums - bias).astype(np.float32) * multiplier + bias.astype(np.float32) * multiplier
            for product in (whole, parts):
                for shortcut in np.float32([0, 1, -255, 254]):
                    if (np.rint(product + shortcut) - shortcut != np.rint(exact)).any():
                        return False
    return True


def test_no_product_ahead_of_a_shortcut_is_a_half() -> None:
    generator = np.random.default_rng(0)
    least = np.concatenate([np.geomspace(1e-6, 3, 2000), 1 / np.arange(1, 2000)])
    for most in (128, 255):
        for steps in (0, 1, 90, 1000, 20_000):
            bias = generator.uniform(-steps, steps, len(least))
            multiplier = short.multipliers_without_halves(least, bias, most)
            assert (multiplier >= least.astype(np.float32)).all()
            assert round_to_the_same(multiplier, np.rint(bias / multiplier), most)
    many = np.rint(90 / least)
    assert not round_to_the_same(short.multipliers(least, many * least, 128), many, 128), "the check can fail"


def test_biases_that_leave_no_room_for_a_fraction_get_whole_multipliers() -> None:
    least = np.array([1e-3, 0.5, 1.0, 1.5, 3.7, 1000.2])
    for bias in (2.0**20, -(2.0**24), 2.0**40):
        multiplier = short.multipliers_without_halves(least, np.full(6, bias), 128)
        np.testing.assert_array_equal(multiplier, np.ceil(least))


@pytest.mark.parametrize("choices", [PLAIN, Choices(), Choices("percentile", equalise=True)], ids=str)
@pytest.mark.parametrize("network", [network for network in MEMBERS if network.family == "v2"][:6], ids=str)
def test_no_product_ahead_of_a_shortcut_is_a_half_in_a_quantised_model(network: Network, choices: Choices) -> None:
    tensors = quantize(random_model(network), pictures(network, 4), choices).model.tensors
    for layer in network.layers:
        if layer.adds:
            multiplier, bias, zero = (tensors[f"{layer.name}.{part}"] for part in ("multiplier", "bias", "sum_zero"))
            assert round_to_the_same(multiplier, bias, max(int(zero[0]), 255 - int(zero[0]))), layer.name


def test_short_multipliers_are_little_above_what_is_needed() -> None:
    least = np.geomspace(1 / 1000, 1, 100)
    assert (short.multipliers(least, np.zeros(100), 255) / least).max() < 1 + 2 * 1000 / (1 << 15) + 1e-6
    assert (short.multipliers_without_halves(least, np.zeros(100), 128) / least).max() < 1 + 4 / (1 << 12)
    assert (short.logit_multipliers(least) / least).max() <= 1 + 1 / 8
    assert {float(x).hex() for x in short.logit_multipliers(np.array([1.0, 1.1, 1.9]))} == {
        "0x1.0000000000000p+0", "0x1.2000000000000p+0", "0x1.0000000000000p+1"
    }  # fmt: skip


@pytest.mark.parametrize("pixels", [1, 4, 9, 16, 25, 35, 49, 64, 196])
def test_a_pooling_s_ratio_rounds_every_sum_the_same(pixels: int) -> None:
    for most in (1.0, 1.75, 1.9, 3.3, 3.94, 7.5):
        ratio = short.pooling_ratio(most, pixels)
        assert most - 0.5 <= ratio <= most
        sums, one = np.arange(255 * pixels + 1, dtype=np.float32), np.float32(1)
        ways = [sums * np.float32(ratio / pixels), sums / np.float32(pixels) * np.float32(ratio)]
        ways.append(sums * (np.float32(ratio) * (one / np.float32(pixels))))
        ways += [sums / np.float32(pixels) * (top / (top / np.float32(ratio))) for top in (one, np.float32(255))]
        near = ways[0] < 255
        assert all((np.rint(way[near]) == np.rint(ways[0][near])).all() for way in ways)


def test_a_pooling_of_any_pixels_has_a_factor_that_runtimes_compute_alike() -> None:
    for pixels in range(1, 101):
        for most in (1.0, 1.37, 3.97):
            ratio, count = np.float32(short.pooling_ratio(most, pixels)), np.float32(pixels)
            assert ratio / count == ratio * (1 / count), (pixels, most)


def test_a_pooling_whose_output_is_far_coarser_keeps_its_ratio() -> None:
    assert short.pooling_ratio(0.01, 49) == 0.01


def test_tensors_that_shortcuts_connect_have_one_range() -> None:
    network = v2(0.25, 64, 7)
    source, pixels = random_model(network), pictures(network, 4)
    model = quantize(source, pixels, Choices("minmax")).model
    quantized.check(network, model.tensors, "full")
    chains: list[set[str]] = []
    for layer in network.layers:
        if layer.adds:
            chain = next((chain for chain in chains if layer.adds in chain), None)
            chains += [chain := {layer.adds}] if chain is None else []
            chain.add(layer.name)
            assert model.tensors[f"{layer.name}.sum_multiplier"].tolist() == [1, 1]
            assert model.tensors[f"{layer.name}.sum_zero"] == model.tensors[f"{layer.name}.zero"]
    assert len(chains) == 6
    assert "stem" in chains[0], "with its ReLU6, whose 6 is a value"
    zero, high, scale = (model.tensors[f"stem.{part}"][0] for part in ("zero", "high", "scale"))
    assert (high - zero) * scale == 6 or high == 255
    sums = outputs(network, source.tensors, pixels, scaling=(source.preprocessing.mean, source.preprocessing.std))
    for name in chains[0]:
        zero, scale = (model.tensors[f"{name}.{part}"][0] for part in ("zero", "scale"))
        assert -(zero + 1) * scale <= sums[name].min() <= sums[name].max() <= (256 - zero) * scale
    for chain in chains:
        for part in ("scale", "zero"):
            assert len({float(model.tensors[f"{name}.{part}"][0]) for name in chain}) == 1
    zeros = [int(model.tensors[f"{layer.name}.zero"][0]) for layer in network.layers]
    assert not any(zero % 2 for zero in zeros), "halves are rounded to even numbers with and without the zero point"


def test_the_default_is_full_which_is_near_the_float_model_and_its_logits_have_room(tmp_path: Path) -> None:
    network = v2(0.25, 64, 7)
    source = random_model(network)
    pixels = pictures(network, 12)
    model = source.quantize(pixels[:8])
    assert (model.precision, model.rescale) == ("int8", "full")
    model.save(tmp_path / "model")
    again = load(tmp_path / "model")
    expected = forward(network, source.tensors, pixels, scaling=(source.preprocessing.mean, source.preprocessing.std))
    found = integer.forward(network, again.tensors, pixels)
    assert np.abs(found - expected).mean() < 0.3 * expected.std()
    step, zero = (model.tensors[f"classifier.{part}"][0] for part in ("scale", "zero"))
    assert expected[:8].max() < (255 - zero) * step / 1.05
    assert expected[:8].min() >= -(zero + 1) * step
