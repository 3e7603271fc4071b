"""Equality with Keras given the same weights: its two applications, and the listing of the project's source notes.

Keras is no dependency: where it is not installed these tests skip.
"""

import os
import re
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mobilenet import reference
from mobilenet.arch import Network, v1, v2
from mobilenet.training.torch_model import TorchMobileNet
from small_members import Tensors, random_pixels, random_tensors

os.environ["KERAS_BACKEND"] = "torch"
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # some versions' imports warn of other packages' deprecations
    keras = pytest.importorskip("keras")

SINGLE = float(np.finfo(np.float32).eps)

# Keras' names of layers, and ours with the kind of their tensors; \1 is the number of a block.
V1_NAMES = {
    r"conv1": "stem",
    r"conv1_bn": "stem bn",
    r"conv_dw_(\d+)": r"block\1.depthwise",
    r"conv_dw_(\d+)_bn": r"block\1.depthwise bn",
    r"conv_pw_(\d+)": r"block\1.pointwise",
    r"conv_pw_(\d+)_bn": r"block\1.pointwise bn",
    r"conv_preds": "classifier",
}
V2_NAMES = {
    r"Conv1": "stem",
    r"bn_Conv1": "stem bn",
    r"expanded_conv_(depthwise|project)": r"block0.\1",
    r"expanded_conv_(depthwise|project)_BN": r"block0.\1 bn",
    r"block_(\d+)_(expand|depthwise|project)": r"block\1.\2",
    r"block_(\d+)_(expand|depthwise|project)_BN": r"block\1.\2 bn",
    r"Conv_1": "head",
    r"Conv_1_bn": "head bn",
    r"predictions": "classifier",
}
NOTES_NAMES = {
    r"initial_conv": "stem",
    r"initial_bn": "stem bn",
    r"block(\d+)_dw": r"block\1.depthwise",
    r"block(\d+)_bn1": r"block\1.depthwise bn",
    r"block(\d+)_pw": r"block\1.pointwise",
    r"block(\d+)_bn2": r"block\1.pointwise bn",
    r"softmax": "classifier",
}


def our_name(names: dict[str, str], theirs: str) -> str:
    found = [match.expand(ours) for pattern, ours in names.items() if (match := re.fullmatch(pattern, theirs))]
    assert len(found) == 1, f"Keras' layer {theirs!r} has no place in the table"
    # Keras' V1 alone counts its blocks from 1.
    return re.sub(r"\d+", lambda n: str(int(n[0]) - 1), found[0], count=1) if names is V1_NAMES else found[0]


def copy_tensors(tensors: Tensors, names: dict[str, str], model: Any) -> None:
    used = []
    for layer in model.layers:
        if not layer.weights:
            continue
        name, _, kind = our_name(names, layer.name).partition(" ")
        parts = ("gamma", "beta", "mean", "variance") if kind else ("weight", "bias")[: len(layer.weights)]
        mine = [f"{name}.{part}" for part in parts]
        layer.set_weights([tensors[n].reshape(w.shape) for n, w in zip(mine, layer.weights, strict=True)])
        used += mine
    assert sorted(used) == sorted(tensors)


def assert_equal(network: Network, names: dict[str, str], model: Any) -> None:
    """Checks that Keras, the reference and torch compute the same of the same random tensors."""
    tensors, pixels = random_tensors(network), random_pixels(network)
    copy_tensors(tensors, names, model)
    x = (pixels / 127.5 - 1).astype(np.float32)
    with torch.no_grad():
        theirs = np.asarray(model(x, training=False).cpu(), np.float64)
        ours = TorchMobileNet(network, tensors).eval()(torch.from_numpy(x).permute(0, 3, 1, 2)).double().numpy()
    ours = ours.transpose(0, 2, 3, 1) if ours.ndim == 4 else ours
    exact = reference.forward(network, tensors, x, scaling=reference.UNSCALED)
    tolerance = reference.tolerance(network, tensors, x, SINGLE, scaling=reference.UNSCALED)
    assert theirs.shape == exact.shape
    assert (np.abs(theirs - exact) <= tolerance).all(), np.abs(theirs - exact).max() / tolerance.max()
    assert (np.abs(theirs - ours) <= 2 * tolerance).all()
    apart = np.abs(exact[0] - exact[1])[tolerance[0] > 0] / tolerance[0][tolerance[0] > 0]
    assert np.quantile(apart, 0.9) > 3, "a tolerance that does not tell one photo from the other"


TOPS: list[dict[str, Any]] = [
    {"classes": 7},
    {"include_top": False},
    {"include_top": False, "pooling": "avg"},
    {"include_top": False, "pooling": "max"},
]


def keras_arguments(network: Network) -> dict[str, Any]:
    top = {"classes": network.classes, "classifier_activation": None} if network.include_top else {}
    return top | {
        "input_shape": tuple(network.input),
        "alpha": network.alpha,
        "include_top": network.include_top,
        "pooling": network.pooling,
        "weights": None,
    }


@pytest.mark.parametrize(
    ("alpha", "resolution", "top"),
    [
        (0.25, (32, 32), 0),
        (0.25, (45, 45), 0),  # odd and even maps in turn, where Keras' padding is not TensorFlow's "same"
        (0.25, (33, 64), 1),
        (0.35, (97, 46), 2),
        (0.5, (38, 51), 3),
        (0.75, (64, 33), 0),
        (1.0, (45, 35), 0),
        (0.25, (224, 224), 0),
    ],
)
def test_mobilenet_of_keras(alpha: float, resolution: tuple[int, int], top: int) -> None:
    network = v1(alpha, resolution, conventions="keras", **TOPS[top])
    assert_equal(network, V1_NAMES, keras.applications.MobileNet(**keras_arguments(network)))


@pytest.mark.parametrize(
    ("alpha", "resolution", "top"),
    [
        (0.35, (32, 32), 0),
        (0.35, (45, 45), 0),
        (0.5, (33, 64), 1),
        (0.56, (64, 37), 0),  # int(16 * 0.56) = 8 channels, where 8.96 itself would round to 16
        (0.75, (49, 35), 2),
        (0.14, (47, 83), 3),
        (1.0, (35, 45), 0),
        (1.3, (33, 33), 0),
        (1.4, (32, 35), 1),
        (0.35, (224, 224), 0),
    ],
)
def test_mobilenet_v2_of_keras(alpha: float, resolution: tuple[int, int], top: int) -> None:
    network = v2(alpha, resolution, conventions="keras", **TOPS[top])
    assert_equal(network, V2_NAMES, keras.applications.MobileNetV2(**keras_arguments(network)))


@pytest.mark.filterwarnings("ignore:This model usually expects 1 or 3 input channels")
@pytest.mark.parametrize("channels", [1, 4])
def test_other_channels_of_keras(channels: int) -> None:
    network = v1(0.25, (41, 32), 7, channels=channels, conventions="keras")
    assert_equal(network, V1_NAMES, keras.applications.MobileNet(**keras_arguments(network)))
    network = v2(0.35, (41, 32), 7, channels=channels, conventions="keras")
    assert_equal(network, V2_NAMES, keras.applications.MobileNetV2(**keras_arguments(network)))


def notes_conv_block(tensor: Any, channels: int, strides: tuple[int, int], alpha: float, name: str) -> Any:
    layers = keras.layers
    x = layers.Conv2D(
        int(channels * alpha), (3, 3), strides=strides, use_bias=False, padding="same", name=f"{name}_conv"
    )(tensor)
    x = layers.BatchNormalization(name=f"{name}_bn")(x)
    return layers.Activation("relu", name=f"{name}_act")(x)


def notes_dw_sep_block(tensor: Any, channels: int, strides: tuple[int, int], alpha: float, name: str) -> Any:
    layers = keras.layers
    x = layers.DepthwiseConv2D((3, 3), strides=strides, use_bias=False, padding="same", name=f"{name}_dw")(tensor)
    x = layers.BatchNormalization(name=f"{name}_bn1")(x)
    x = layers.Activation("relu", name=f"{name}_act1")(x)
    x = layers.Conv2D(int(channels * alpha), (1, 1), strides=(1, 1), use_bias=False, padding="same", name=f"{name}_pw")(
        x
    )
    x = layers.BatchNormalization(name=f"{name}_bn2")(x)
    return layers.Activation("relu", name=f"{name}_act2")(x)


def notes_mobilenet(shape: tuple[int, int, int], num_classes: int, alpha: float, include_top: bool) -> Any:
    """Returns the model of the source notes' listing, layer for layer."""
    x_in = keras.layers.Input(shape=shape)
    x = notes_conv_block(x_in, 32, (2, 2), alpha, "initial")
    blocks = [
        (64, (1, 1)),
        (128, (2, 2)),
        (128, (1, 1)),
        (256, (2, 2)),
        (256, (1, 1)),
        (512, (2, 2)),
        *[(512, (1, 1)) for _ in range(5)],
        (1024, (2, 2)),
        (1024, (2, 2)),
    ]
    for i, (channels, strides) in enumerate(blocks):
        x = notes_dw_sep_block(x, channels, strides, alpha, f"block{i}")
    if include_top:
        x = keras.layers.GlobalAvgPool2D(name="global_avg")(x)
        x = keras.layers.Dense(num_classes, activation="softmax", name="softmax")(x)
    return keras.Model(inputs=x_in, outputs=x)


@pytest.mark.parametrize(
    ("alpha", "resolution", "include_top"),
    [(1.0, (64, 64), True), (0.5, (45, 97), True), (0.35, (70, 33), False), (0.25, (224, 224), True)],
)
def test_listing_of_the_source_notes(alpha: float, resolution: tuple[int, int], include_top: bool) -> None:
    model = notes_mobilenet((*resolution, 3), 100, alpha, include_top)
    network = v1(alpha, resolution, 100, include_top=include_top, conventions="notes")
    if include_top:
        model.get_layer("softmax").activation = keras.activations.linear
    assert_equal(network, NOTES_NAMES, model)


def test_softmax_of_the_source_notes() -> None:
    model = notes_mobilenet((32, 32, 3), 10, 0.25, True)
    network = v1(0.25, 32, 10, conventions="notes")
    tensors, pixels = random_tensors(network), random_pixels(network)
    copy_tensors(tensors, NOTES_NAMES, model)
    with torch.no_grad():
        theirs = model((pixels / 127.5 - 1).astype(np.float32), training=False).double().numpy()
    exact: NDArray[np.float64] = reference.softmax(reference.forward(network, tensors, pixels))
    # A shift of each logit by up to e changes a probability by a factor of at most exp(2 e); 16 more roundings.
    shift = reference.tolerance(network, tensors, pixels, SINGLE).max() + 16 * SINGLE
    assert (np.abs(theirs - exact) <= exact * np.expm1(2 * shift)).all()
