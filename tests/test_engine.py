"""The engine computes what `reference.py` means, whatever the batch, the threads and the memory it is given."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from mobilenet import engine as engine_module
from mobilenet.arch import Network, v1, v2
from mobilenet.engine import Engine
from mobilenet.errors import UsageError
from mobilenet.model import Model
from mobilenet.photos.preprocessing import Preprocessing
from mobilenet.reference import forward, outputs, tolerance
from model_makers import SMALL, random_model, random_pixels, same_tensors
from small_members import small_members

EPSILON = float(np.finfo(np.float32).eps)


MEMBERS = small_members()


def preprocessing(network: Network, mean: tuple[float, ...] = (127.5,), std: tuple[float, ...] = (127.5,)):
    return Preprocessing(network.height, network.width, network.channels, mean=mean, std=std)


def assert_right(model: Model, pixels, found) -> None:
    scaling = model.preprocessing.mean, model.preprocessing.std
    expected = forward(model.network, model.tensors, pixels, scaling=scaling)
    allowed = tolerance(model.network, model.tensors, pixels, EPSILON, scaling=scaling)
    assert found.dtype == np.float32
    assert found.shape == expected.shape
    assert (np.abs(found - expected) <= allowed).all(), float((np.abs(found - expected) / allowed).max())


def test_there_are_members_of_all_kinds() -> None:
    assert len(MEMBERS) >= 50
    for seen in ("family", "separable", "include_top", "pooling", "downsampling"):
        assert len({getattr(member, seen) for member in MEMBERS}) > 1
    assert {member.conventions.padding for member in MEMBERS} == {"same", "symmetric", "bottom_right"}
    assert any(layer.adds for member in MEMBERS for layer in member.layers)


@pytest.mark.parametrize("network", MEMBERS, ids=range(len(MEMBERS)))
def test_random_members_equal_the_reference(network: Network) -> None:
    model = random_model(network, seed=1, preprocessing=preprocessing(network))
    pixels = random_pixels(network, 1)
    assert_right(model, pixels, Engine(model, 1)(pixels))


@pytest.mark.parametrize("make", [v1, v2])
def test_both_ends_of_the_clamp_are_reached(make) -> None:
    """The comparison with the reference would not see a missing clamp if no value were beyond it."""
    network = make(0.25, 64, 10, conventions="keras")
    model = random_model(network)
    values = outputs(network, model.tensors, random_pixels(network, 1))
    clamped = [layer.name for layer in network.layers if layer.activation == "relu6"]
    assert sum((values[name] == 0).any() and (values[name] == 6).any() for name in clamped) > 0.9 * len(clamped)


@pytest.mark.parametrize("band", [1, 500, 1 << 30])
@pytest.mark.parametrize("twin", [False, True])
def test_any_size_of_band_is_right(monkeypatch, band: int, twin: bool) -> None:
    monkeypatch.setattr(engine_module, "_BAND", band)
    model = random_model(v2(0.1, (45, 38), 5, separable=not twin))
    pixels = random_pixels(model.network, 2)
    assert_right(model, pixels, Engine(model, 1)(pixels))


def test_a_batch_is_its_images_bit_for_bit() -> None:
    model = random_model(v2(0.25, 64, 10))
    pixels = random_pixels(model.network, 7)
    alone = np.concatenate([Engine(model, 1)(pixels[index : index + 1]) for index in range(7)])
    for threads in (1, 2, 5, 16):
        engine = Engine(model, threads)
        assert engine(pixels).tobytes() == alone.tobytes()
        assert engine(pixels[::-1])[::-1].tobytes() == alone.tobytes()


def test_several_threads_may_call_one_engine() -> None:
    model = random_model(v2(0.1, 48, 10))
    pixels = random_pixels(model.network, 24)
    engine = Engine(model, 1)
    expected = engine(pixels)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda index: engine(pixels[index : index + 1])[0], list(range(24)) * 4))
    assert np.stack(found).tobytes() == np.concatenate([expected] * 4).tobytes()


def test_nothing_of_an_image_stays_for_the_next() -> None:
    model = random_model(v2(0.35, 64, 10))
    pixels = random_pixels(model.network, 2)
    engine = Engine(model, 1)
    fresh = engine(pixels[:1])
    engine(np.full_like(pixels[:1], 255))
    assert engine(pixels[:1]).tobytes() == fresh.tobytes()


def test_floats_are_the_same_scale_as_bytes() -> None:
    model = random_model()
    pixels = random_pixels(SMALL, 2)
    engine = Engine(model)
    assert engine(pixels.astype(np.float32)).tobytes() == engine(pixels).tobytes()
    between = pixels.astype(np.float32) * np.float32(0.37)
    assert_right(model, between, engine(between))


def test_the_pixels_are_scaled_as_the_preprocessing_says() -> None:
    mean, std = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
    model = random_model(SMALL, preprocessing=preprocessing(SMALL, mean, std))
    pixels = random_pixels(SMALL, 1)
    found = Engine(model)(pixels)
    assert_right(model, pixels, found)
    assert not np.allclose(found, Engine(random_model())(pixels))


def test_an_empty_batch_has_an_empty_answer() -> None:
    assert Engine(random_model())(random_pixels(SMALL, 0)).shape == (0, 3)
    headless = random_model(SMALL.replace(include_top=False))
    assert Engine(headless)(random_pixels(SMALL, 0)).shape == (0, *headless.network.output)


def test_without_the_top_there_are_feature_maps_or_vectors() -> None:
    network = v1(0.25, 96, 5)
    pixels = random_pixels(network, 2)
    for pooling, shape in ((None, (2, 3, 3, 256)), ("avg", (2, 256)), ("max", (2, 256))):
        model = random_model(network.replace(include_top=False, pooling=pooling))
        found = Engine(model)(pixels)
        assert found.shape == shape
        assert_right(model, pixels, found)


def test_pixels_that_are_a_view_are_taken_as_they_are() -> None:
    model = random_model()
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 64, 32), dtype=np.uint8).transpose(0, 2, 3, 1)[:, ::2]
    assert not pixels.flags.c_contiguous
    assert Engine(model)(pixels).tobytes() == Engine(model)(np.ascontiguousarray(pixels)).tobytes()


def test_the_engine_keeps_the_weights_it_was_made_with() -> None:
    model = random_model()
    engine, pixels = Engine(model), random_pixels(SMALL, 1)
    before = engine(pixels)
    for tensor in model.tensors.values():
        tensor *= 0
    assert engine(pixels).tobytes() == before.tobytes()


def test_a_model_is_not_changed_by_being_run() -> None:
    model = random_model()
    Engine(model)(random_pixels(SMALL, 1))
    assert same_tensors(model.tensors, random_model().tensors)


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        ([[1]], r"pixels: got list, needed uint8 or float32 \[N, 32, 32, 3\], values 0..255"),
        (np.zeros((1, 32, 32, 3)), r"got float64 \[1, 32, 32, 3\], needed uint8 or float32"),
        (np.zeros((1, 32, 32, 3), np.int8), r"got int8"),
        (np.zeros((32, 32, 3), np.uint8), r"got uint8 \[32, 32, 3\].*; one image alone is pixels\[None\]"),
        (np.zeros((1, 3, 32, 32), np.uint8), r"got uint8 \[1, 3, 32, 32\], needed"),
        (np.zeros((1, 32, 32, 1), np.uint8), r"got uint8 \[1, 32, 32, 1\], needed"),
        (np.zeros((), np.uint8), r"got uint8 \[\], needed"),
    ],
)
def test_pixels_that_do_not_fit_are_refused(pixels, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Engine(random_model())(pixels)


@pytest.mark.parametrize("threads", [0, -1, 1.5, True, 1025])
def test_threads_outside_the_rule_are_refused(threads) -> None:
    with pytest.raises(UsageError, match=r"threads: got .*, needed a whole number from 1 to 1024"):
        Engine(random_model(), threads)
