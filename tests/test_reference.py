"""The reference against definitions written out once more, its tolerance against what it must and must not let by."""

import numpy as np
import pytest
from numpy.typing import NDArray

from mobilenet import reference
from mobilenet.arch import Conventions, Layer, Network, conventions, v1, v2
from mobilenet.errors import UsageError
from small_members import random_pixels, random_tensors

SINGLE = float(np.finfo(np.float32).eps)
EXACT = 1e-12  # float64 against float64: some thousand terms of 1e-16

NETWORKS = {
    "v1 same": v1(0.1, (33, 36), 7, conventions=conventions("v1", "slim", min_width=1)),
    "v1 symmetric, one channel": v1(0.1, (34, 37), 7, channels=1, conventions="timm"),
    "v1 bottom right": v1(0.1, (45, 32), 7, conventions="keras"),
    "v1 stride 2 at the end": v1(0.1, (32, 61), 7, channels=4, conventions="notes"),
    "v1 with bias": v1(0.1, 32, 7, conventions="mlperf_tiny"),
    "v2": v2(0.25, (37, 32), 7),
    "v2 max pooling": v2(0.1, (32, 35), include_top=False, pooling="max", conventions="torchvision"),
    "v2 no top": v2(0.1, (44, 33), include_top=False, downsampling=16, conventions="keras"),
    "v2 average pooling": v2(0.1, 32, include_top=False, pooling="avg"),
    "v2 twin": v2(0.1, (33, 32), 7, separable=False),
}
each_network = pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS.keys())


def sums_pixel_by_pixel(layer: Layer, x: NDArray[np.float64], weight: NDArray[np.float64]) -> NDArray[np.float64]:
    found = np.zeros((len(x), *layer.output))
    (top, _), (left, _) = layer.padding
    weight = weight.reshape(layer.kernel, layer.kernel, *weight.shape[(0 if layer.kernel == 1 else 2) :])
    for row in range(layer.output.height):
        for column in range(layer.output.width):
            for i in range(layer.kernel):
                for j in range(layer.kernel):
                    y, z = row * layer.stride + i - top, column * layer.stride + j - left
                    if 0 <= y < layer.input.height and 0 <= z < layer.input.width:
                        product = "nc,c->nc" if layer.kind == "depthwise" else "nc,co->no"
                        found[:, row, column] += np.einsum(product, x[:, y, z], weight[i, j])
    return found


@each_network
def test_every_layer_is_its_definition(network: Network) -> None:
    tensors = random_tensors(network)
    pixels = random_pixels(network)
    mean, std = {"inception": (127.5, 127.5), "unit": (0, 255)}.get(
        network.conventions.scaling, ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375])
    )
    if network.channels == 1:
        mean, std = 127.5, 127.5
    found = reference.outputs(network, tensors, pixels)
    assert list(found) == [layer.name for layer in network.layers]
    x = (pixels - mean) / std
    for layer in network.layers:
        part = {name.rpartition(".")[2]: tensors[name].astype(np.float64) for name in layer.tensors}
        if layer.kind == "average_pool":
            x = x.sum((1, 2)) / (layer.input.height * layer.input.width)
        elif layer.kind == "max_pool":
            x = x.reshape(len(x), -1, layer.input.channels).max(1)
        elif layer.kind == "dense":
            x = np.einsum("ni,io->no", x, part["weight"]) + part["bias"]
        else:
            x = sums_pixel_by_pixel(layer, x, part["weight"]) + part.get("bias", 0)
            x = (x - part["mean"]) / (part["variance"] + network.conventions.batch_norm_epsilon) ** 0.5
            x = x * part["gamma"] + part["beta"]
        if layer.activation != "linear":
            x[x < 0] = 0
        if layer.activation == "relu6":
            x[x > 6] = 6
        if layer.adds:
            x = x + found[layer.adds]
        np.testing.assert_allclose(found[layer.name], x, rtol=EXACT, atol=EXACT * np.abs(x).max(), err_msg=layer.name)
        x = found[layer.name]
    np.testing.assert_array_equal(reference.forward(network, tensors, pixels), x)
    assert x.dtype == np.float64
    assert x.size == len(pixels) * network.output.size


def test_pixels_may_come_scaled_or_with_another_scaling() -> None:
    network = NETWORKS["v1 symmetric, one channel"].replace(channels=3)
    tensors, pixels = random_tensors(network), random_pixels(network)
    mean, std = [10.0, 20.0, 30.0], [50.0, 60.0, 70.0]
    scaled = reference.forward(network, tensors, (pixels - mean) / std, scaling=reference.UNSCALED)
    np.testing.assert_array_equal(reference.forward(network, tensors, pixels, scaling=(mean, std)), scaled)
    off = np.abs(reference.forward(network, tensors, pixels) - scaled)
    assert (off > reference.tolerance(network, tensors, pixels, SINGLE)).any()
    whole = np.round(pixels).astype(np.uint8)
    np.testing.assert_array_equal(
        reference.forward(network, tensors, whole), reference.forward(network, tensors, whole.astype(float))
    )


def test_images_do_not_touch_each_other() -> None:
    network = NETWORKS["v2"]
    tensors, pixels = random_tensors(network), random_pixels(network, 3)
    alone = [reference.forward(network, tensors, pixels[n : n + 1])[0] for n in range(3)]
    np.testing.assert_allclose(reference.forward(network, tensors, pixels), alone, rtol=EXACT, atol=EXACT)


def test_softmax_is_exp_over_sum_and_never_overflows() -> None:
    np.testing.assert_allclose(reference.softmax(np.log([[1.0, 2.0, 5.0]])), [[0.125, 0.25, 0.625]], rtol=EXACT)
    np.testing.assert_array_equal(reference.softmax(np.array([-1e5, 1e5], np.float32)), [0, 1])


def test_errors_name_shape_and_scaling() -> None:
    network = NETWORKS["v2"]
    tensors = random_tensors(network)
    with pytest.raises(UsageError, match=r"pixels: got shape \(1, 32, 37, 3\), the network needs \('N', 37, 32, 3\)"):
        reference.forward(network, tensors, np.zeros((1, 32, 37, 3)))
    with pytest.raises(UsageError, match=r"pixels: got shape \(37, 32, 3\)"):
        reference.tolerance(network, tensors, np.zeros((37, 32, 3)), 2**-23)
    with pytest.raises(UsageError, match="scaling: got 2 means and 2 standard deviations, needed 1 of each or one for"):
        reference.forward(network, tensors, np.zeros((1, 37, 32, 3)), scaling=((0, 0), (1, 1)))
    four = NETWORKS["v2"].replace(channels=4, conventions=conventions("v2", "torchvision"))
    with pytest.raises(UsageError, match=r"got 3 means and 3 standard deviations.* each of the 4 channels"):
        reference.forward(four, random_tensors(four), np.zeros((1, 37, 32, 4)))


# ------------------------------------------------------------------------------------------------------- tolerance


@each_network
def test_tolerance_has_the_shape_of_the_outputs_and_grows_with_epsilon(network: Network) -> None:
    tensors, pixels = random_tensors(network), random_pixels(network)
    logits = reference.forward(network, tensors, pixels)
    found = {epsilon: reference.tolerance(network, tensors, pixels, epsilon) for epsilon in (SINGLE / 2, SINGLE)}
    assert found[SINGLE].shape == logits.shape
    # Clamped values have no error, or half of one; everywhere else twice the epsilon is about twice the tolerance.
    open_values = np.ones_like(logits, bool) if network.include_top else (logits > 0) & (logits < 6)
    assert open_values.mean() > 0.1
    np.testing.assert_allclose(found[SINGLE][open_values], 2 * found[SINGLE / 2][open_values], rtol=0.3)
    assert found[SINGLE].max() < 0.05 * logits.std()
    layers = reference.tolerances(network, tensors, pixels, SINGLE)
    assert {name: value.shape for name, value in layers.items()} == {
        name: value.shape for name, value in reference.outputs(network, tensors, pixels).items()
    }


def test_tolerance_lets_no_wrong_convention_by() -> None:
    right = conventions("v1", "slim", min_width=1)
    wrong: dict[str, Conventions] = {
        field: conventions("v1", "slim", min_width=1, **{field: value})
        for field, value in {"padding": "symmetric", "activation": "relu", "batch_norm_epsilon": 1e-5}.items()
    }
    network = v1(0.25, 64, 7, conventions=right)
    tensors, pixels = random_tensors(network), random_pixels(network)
    for layer in network.layers[:-2]:  # sums as small as in trained networks, where epsilon counts
        for part, factor in {"weight": 0.1, "mean": 0.1, "variance": 0.01}.items():
            tensors[f"{layer.name}.{part}"] *= np.float32(factor)
    logits = reference.forward(network, tensors, pixels)
    tolerance = reference.tolerance(network, tensors, pixels, SINGLE)
    for field, conv in wrong.items():
        off = np.abs(reference.forward(network.replace(conventions=conv), tensors, pixels) - logits)
        assert np.median(off / tolerance) > 10, field
    off = np.abs(reference.forward(network, tensors, pixels, scaling=((0.0,), (255.0,))) - logits)
    assert np.median(off / tolerance) > 10


def test_storage_covers_rounded_weights_and_activations() -> None:
    half = float(np.finfo(np.float16).eps)
    for network in (v1(0.25, 48, 7), v2(0.25, 48, 7, conventions="torchvision")):
        tensors, pixels = random_tensors(network), random_pixels(network)
        logits = reference.forward(network, tensors, pixels)
        rounded = {n: v.astype(np.float16) if n.endswith("weight") else v for n, v in tensors.items()}
        error = np.abs(reference.forward(network, rounded, pixels) - logits)
        tolerance = reference.tolerance(network, tensors, pixels, SINGLE, storage=half)
        assert (error <= tolerance).all()
        assert tolerance.max() < 200 * error.max()
        assert (error > reference.tolerance(network, tensors, pixels, SINGLE)).any()


def test_tolerance_is_zero_for_values_safely_beyond_a_clamp() -> None:
    network = NETWORKS["v1 bottom right"].replace(include_top=False)
    tensors, pixels = random_tensors(network), random_pixels(network)
    last = network.layers[-1].name
    tensors[f"{last}.beta"][0], tensors[f"{last}.beta"][1] = 1e3, -1e3
    tolerance = reference.tolerance(network, tensors, pixels, SINGLE)
    assert not tolerance[..., :2].any()
    assert tolerance[..., 2:].any()
