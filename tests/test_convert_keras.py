"""Keras' files: the same outputs as Keras' own, from every kind of file, and Keras loads what we write.

Keras is no dependency: where it is not installed these tests skip.
"""

import itertools
import json
import os
import shutil
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import mobilenet
from mobilenet import reference
from mobilenet.arch import Layer, Network, v1, v2
from mobilenet.convert import convert, write
from mobilenet.convert.keras_graph import graph
from mobilenet.convert.match import match
from mobilenet.convert.names import KERAS, keys
from mobilenet.engine import Engine
from mobilenet.errors import ModelError, UsageError
from mobilenet.model import Model
from mobilenet.notes import rows
from model_makers import random_model, same_tensors
from small_members import random_pixels

os.environ["KERAS_BACKEND"] = "torch"
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # some versions' imports warn of other packages' deprecations
    keras = pytest.importorskip("keras")
h5py = pytest.importorskip("h5py")

EPSILON = float(np.finfo(np.float32).eps)
DATA = os.environ.get("MOBILENET_DATA")
DEEP = os.environ.get("MOBILENET_DEEP") == "1"
layers = keras.layers
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # Keras with torch and numpy 2


def fill(model: Any, seed: int = 0) -> Any:
    """Gives a Keras model random weights, with batch-norm statistics far from 0 and 1."""
    generator = np.random.default_rng(seed)

    def drawn(weight: Any) -> NDArray[Any]:
        shape = tuple(weight.shape)
        match weight.name:
            case "kernel":  # of a depthwise layer [3, 3, channels, 1]
                terms = 9 if len(shape) == 4 and shape[0] == 3 and shape[-1] == 1 else np.prod(shape[:-1])
                return generator.normal(0, terms**-0.5, shape)
            case "gamma":
                return generator.uniform(1.5, 3, shape) * np.where(generator.random(shape) < 0.1, -1, 1)
            case "moving_variance":
                return generator.uniform(1, 5, shape)
            case "beta":
                return generator.normal(1, 1, shape)
            case _:
                return generator.normal(0, 1, shape)

    for layer in model.layers:
        if hasattr(layer, "layers"):
            fill(layer, seed + 1)
        elif layer.weights:
            layer.set_weights([drawn(weight) for weight in layer.weights])
    return model


def computed(model: Any, x: NDArray[Any]) -> NDArray[Any]:
    with torch.no_grad():
        return np.asarray(model(x.astype(np.float32), training=False).cpu(), np.float64)


def assert_same(model: Model, theirs: NDArray[Any], pixels: NDArray[Any], *, softmax: bool = False) -> None:
    """Checks that Keras' outputs, of the same pixels, are ours within the computed tolerance."""
    scaling = model.preprocessing.mean, model.preprocessing.std
    exact = reference.forward(model.network, model.tensors, pixels, scaling=scaling)
    tolerance = reference.tolerance(model.network, model.tensors, pixels, EPSILON, scaling=scaling)
    ours = Engine(model, threads=1)(pixels.astype(np.float32)).astype(np.float64)
    assert (np.abs(ours - exact) <= tolerance).all()
    apart = np.abs(exact[0] - exact[1])
    assert (apart > 3 * tolerance[0]).any(), "a tolerance that tells nothing"
    if softmax:
        exact = reference.softmax(exact)
        tolerance = exact * np.expm1(2 * tolerance.max() + 16 * EPSILON)
    assert theirs.shape == exact.shape
    assert (np.abs(theirs - exact) <= tolerance).all()


def saved(model: Any, folder: Path, kind: str) -> Path:
    path = folder / f"model{kind}"
    model.save_weights(path) if kind == ".weights.h5" else model.save(path)
    return path


def application(family: str, alpha: float, sizes: tuple[int, int], **arguments: Any) -> Any:
    make = {"v1": keras.applications.MobileNet, "v2": keras.applications.MobileNetV2}[family]
    given = {"classes": 5, "classifier_activation": None, "weights": None} | arguments
    return make(input_shape=(*sizes, 3), alpha=alpha, **given)


ALPHAS = {"v1": (0.25, 1 / 3, 0.75), "v2": (0.35, 0.2, 1.4)}
SIZES = ((32, 32), (45, 61))
MEMBERS = [(family, alpha, SIZES[n % 2]) for family, alphas in ALPHAS.items() for n, alpha in enumerate(alphas)]
if DEEP:
    MEMBERS = [each for name in ALPHAS for each in itertools.product([name], (*ALPHAS[name], 0.5, 1.0), SIZES)]
KINDS = (".h5", ".keras", ".weights.h5")


@pytest.mark.parametrize(("number", "member"), list(enumerate(MEMBERS)), ids=str)
def test_applications_there_and_back(number: int, member: tuple[str, float, tuple[int, int]], tmp_path: Path) -> None:
    family, alpha, sizes = member
    theirs = fill(application(*member))
    network = {"v1": v1, "v2": v2}[family](alpha, sizes, 5, conventions="keras")
    pixels = random_pixels(network)
    logits = computed(theirs, pixels / 127.5 - 1)
    kind = KINDS[number % 3]
    model = convert(saved(theirs, tmp_path, kind), resolution=sizes)
    assert model.network.layers == network.layers
    assert abs(model.network.alpha - alpha) < 0.001
    assert_same(model, logits, pixels)

    back = tmp_path / f"back{('.weights.h5', '.h5')[number % 2]}"
    write(model, back, "keras")
    before = [weight.numpy().copy() for weight in theirs.weights]
    fill(theirs, seed=9).load_weights(back)
    assert all((one.numpy() == two).all() for one, two in zip(theirs.weights, before, strict=True))
    np.testing.assert_array_equal(computed(theirs, pixels / 127.5 - 1), logits)


@pytest.mark.parametrize("family", ["v1", "v2"])
def test_every_kind_of_file_is_the_same_model(family: str, tmp_path: Path) -> None:
    theirs = fill(application(family, 0.35, (45, 64), classifier_activation="softmax"))
    models = {kind: convert(saved(theirs, tmp_path, kind), resolution=(45, 64)) for kind in KINDS}
    pixels = random_pixels(models[".h5"].network)
    assert_same(models[".h5"], computed(theirs, pixels / 127.5 - 1), pixels, softmax=True)
    assert models[".keras"].network == models[".h5"].network
    assert models[".weights.h5"].network.layers == models[".h5"].network.layers
    assert all(same_tensors(model.tensors, models[".h5"].tensors) for model in models.values())


@pytest.mark.parametrize(("family", "pooling"), [("v2", None), ("v1", None), ("v2", "avg"), ("v1", "max")])
def test_without_a_top(family: str, pooling: str | None, tmp_path: Path) -> None:
    theirs = fill(application(family, 0.35, (64, 64), include_top=False, pooling=pooling))
    model = convert(saved(theirs, tmp_path, ".h5"))
    assert (model.network.include_top, model.network.pooling) == (False, pooling)
    pixels = random_pixels(model.network)
    assert_same(model, computed(theirs, pixels / 127.5 - 1), pixels)
    if pooling is None:
        full = convert(saved(application(family, 0.35, (64, 64)), tmp_path, ".keras"), include_top=False)
        assert full.network.tensors == model.network.tensors


def nested(kind: str) -> Any:
    """Returns a model of one's own on top of an application, as tutorials make it."""
    base = application("v2" if kind == "functional" else "v1", 0.35, (64, 64), include_top=False)
    top = [layers.GlobalAveragePooling2D(), layers.Dropout(0.3), layers.Dense(4, activation="softmax", name="mine")]
    if kind == "sequential":
        first = [layers.Input((64, 64, 3)), layers.RandomFlip(), layers.Rescaling(1 / 127.5, offset=-1)]
        return keras.Sequential([*first, base, *top])
    if kind == "bare":
        return keras.Sequential([base, *top])
    x = inputs = keras.Input((64, 64, 3))
    if kind == "imagenet":
        mean, std = mobilenet.arch.SCALINGS["imagenet"]
        x = layers.Rescaling([1 / s for s in std], offset=[-m / s for m, s in zip(mean, std, strict=True)])(x)
    else:
        x = keras.applications.mobilenet_v2.preprocess_input(x)
    x = base(x, training=False)
    for layer in top:
        x = layer(x)
    return keras.Model(inputs, x)


@pytest.mark.parametrize("how", ["sequential", "functional", "imagenet", "bare"])
def test_models_in_models(how: str, tmp_path: Path) -> None:
    theirs = fill(nested(how))
    model = convert(saved(theirs, tmp_path, ".h5"))
    assert model.network.classes == 4
    assert model.network.conventions.dropout == pytest.approx(0.3)
    assert model.network.conventions.scaling == ("imagenet" if how == "imagenet" else "inception")
    pixels = random_pixels(model.network)
    assert_same(model, computed(theirs, pixels / 127.5 - 1 if how == "bare" else pixels), pixels, softmax=True)
    archived = convert(saved(theirs, tmp_path, ".keras"))
    assert archived.network == model.network
    assert archived.preprocessing == model.preprocessing
    alone = convert(saved(theirs, tmp_path, ".weights.h5"), resolution=64)
    assert alone.network.layers == model.network.layers
    assert all(same_tensors(each.tensors, model.tensors) for each in (archived, alone))


def test_weights_of_early_keras_3_have_no_names(tmp_path: Path) -> None:
    """Keras 3 before 3.9 wrote no names beside the arrays: those of a .keras file follow from its config."""
    theirs = fill(nested("functional"))
    path = saved(theirs, tmp_path, ".keras")
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    (tmp_path / "weights.h5").write_bytes(members["model.weights.h5"])
    with h5py.File(tmp_path / "weights.h5", "a") as file:
        file.visititems(lambda _, item: item.attrs.pop("name", None) and None)
    members["model.weights.h5"] = (tmp_path / "weights.h5").read_bytes()
    with zipfile.ZipFile(tmp_path / "early.keras", "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    assert same_tensors(convert(tmp_path / "early.keras").tensors, convert(path).tensors)


# ------------------------------------------------------------------------------------------------------ keras_model

BUILT = [
    v1(0.25, (45, 61), 5, conventions="notes"),
    v2(0.35, (45, 61), 5, conventions="notes"),
    v1(0.25, (45, 61), 5, conventions="keras"),
    v2(0.35, (45, 61), 5, conventions="torchvision"),
    v1(0.25, 32, 5, conventions="mlperf_tiny"),
    v2(0.2, 64, 5, separable=False, downsampling=8),
    v2(0.25, 40, include_top=False),
    v1(0.25, 40, include_top=False, pooling="max"),
]


@pytest.mark.parametrize("network", BUILT, ids=str)
def test_keras_model_computes_the_same(network: Network, tmp_path: Path) -> None:
    model = random_model(network)
    built = mobilenet.keras_model(model)
    named = [layer.name for layer in built.layers if not layer.name.endswith("_pad")]
    assert sorted(named) == sorted(row.name for row in rows(network))
    pixels = random_pixels(network)
    mean, std = (np.asarray(part) for part in (model.preprocessing.mean, model.preprocessing.std))
    assert_same(model, computed(built, (pixels - mean) / std), pixels, softmax=network.include_top)
    if network.separable and network.pooling is None:
        again = convert(saved(built, tmp_path, ".keras"), scaling=network.conventions.scaling)
        assert again.network.layers == network.layers
        assert same_tensors(again.tensors, model.tensors)


@pytest.mark.parametrize("make", [v1, v2])
def test_weights_by_the_notes_names(make: Callable[..., Network], tmp_path: Path) -> None:
    network = make(0.25, 40, 5, conventions="notes")
    model = random_model(network, seed=3)
    built = mobilenet.keras_model(model)
    wanted = [weight.numpy().copy() for weight in built.weights]
    for path in (tmp_path / "a.weights.h5", tmp_path / "a.h5"):
        write(model, path, "notes")
        fill(built, seed=9).load_weights(path)
        assert all((one.numpy() == two).all() for one, two in zip(built.weights, wanted, strict=True))
        found = convert(path, resolution=40)
        assert same_tensors(found.tensors, model.tensors)
        assert found.network.conventions == network.conventions
        other = random_model(network, seed=5)
        other.load_weights(path, by_name=False)
        assert same_tensors(other.tensors, model.tensors)


def test_names_of_applications_are_kerass() -> None:
    for source in KERAS[:2]:
        theirs = application(source.family, 0.35, (32, 32))
        network = source.network(0.35, resolution=32, classes=5)
        named = {f"{layer.name}/{weight.name}" for layer in theirs.layers for weight in layer.weights}
        assert set(keys(source, network).values()) == named


def test_what_keras_would_compute_otherwise_is_not_written(tmp_path: Path) -> None:
    torch_model = random_model(v2(0.35, 64, 5, conventions="torchvision"))
    with pytest.raises(ModelError, match=r"it has padding same, not symmetric, batch_norm_epsilon 0\.001, not 1e-05"):
        write(torch_model, tmp_path / "a.h5", "keras")
    keras_model = random_model(v1(0.25, 64, 5, conventions="keras"))
    with pytest.raises(ModelError, match=r"a.keras: needed is a name that ends in .weights.h5 or .h5"):
        write(keras_model, tmp_path / "a.keras", "keras")


def test_without_h5py_or_keras_the_message_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = random_model(v1(0.25, 32, 5, conventions="keras"))
    write(model, tmp_path / "a.h5", "keras")
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    monkeypatch.setitem(__import__("sys").modules, "keras", None)
    with pytest.raises(UsageError, match="pip install h5py"):
        write(model, tmp_path / "b.h5", "keras")
    with pytest.raises(UsageError, match="pip install h5py"):
        convert(tmp_path / "a.h5")
    with pytest.raises(UsageError, match=r"pip install 'mobilenet\[keras\]'"):
        mobilenet.keras_model(model)


# -------------------------------------------------------------------------------------------------- what is refused


@keras.saving.register_keras_serializable("mine")
class Own(layers.Layer):
    """Is a layer with code of its own."""

    def call(self, x: Any) -> Any:
        return x


def small_top(change: Callable[[Any], Any]) -> Any:
    """Returns a V1 with something between its features and its classifier."""
    base = application("v1", 0.25, (32, 32), include_top=False)
    return keras.Model(base.inputs, layers.Dense(3)(change(layers.GlobalAveragePooling2D()(base.outputs[0]))))


def plain(*given: Any, shape: tuple[Any, ...] = (32, 32, 3)) -> Any:
    return keras.Sequential([layers.Input(shape), *given])


def resnet() -> Any:
    x = inputs = keras.Input((32, 32, 3))
    x = layers.Activation("relu")(layers.BatchNormalization()(layers.Conv2D(8, 3, strides=2, padding="same")(x)))
    y = layers.BatchNormalization()(layers.Conv2D(8, 3, padding="same", name="odd")(x))
    return keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling2D()(layers.Add()([x, y]))))


def branching() -> Any:
    x = inputs = keras.Input((32, 32, 3))
    x = layers.Conv2D(8, 3, strides=2, padding="same")(x)
    y = layers.BatchNormalization()(x)
    return keras.Model(inputs, layers.Add(name="sum")([layers.Conv2D(8, 1, name="side")(x), y]))


def conv(**given: Any) -> Any:
    return layers.Conv2D(8, **{"kernel_size": 3, "strides": 2, "padding": "same", "name": "odd"} | given)


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "lambda": (
        lambda: small_top(layers.Lambda(lambda x: x * 2, name="evil", output_shape=(256,))),
        "layer 'evil' is of class 'Lambda', which holds code",
    ),
    "custom": (lambda: small_top(Own(name="mine")), "layer 'mine' is of class '(mine>)?Own', which no MobileNet has"),
    "two dense": (
        lambda: small_top(layers.Dense(8, activation="relu", name="hidden")),
        r"layer 'dense\w*' is the classifier, after the end of MobileNet V1; of a top of several layers",
    ),
    "sigmoid": (
        lambda: small_top(layers.Activation("sigmoid", name="s")),
        "layer 's' has activation 'sigmoid'; needed is relu, relu6, linear or softmax",
    ),
    "resnet": (resnet, "layer 'odd' is a standard convolution; MobileNet V1 has a depthwise convolution there"),
    "branches": (branching, r"layer '\w*normalization\w*', BatchNormalization, does not follow a convolution"),
    "vector": (lambda: plain(layers.Dense(3), shape=(8,)), r"input shape .*, needed is \(None, height, width"),
    "dilated": (lambda: plain(conv(dilation_rate=2, strides=1)), "layer 'odd' has dilation_rate"),
    "oblong": (lambda: plain(conv(kernel_size=(3, 1))), "layer 'odd' has kernel_size"),
    "leaky": (lambda: plain(conv(), layers.ReLU(negative_slope=0.1)), "is a ReLU with a slope or a threshold"),
    "clamp": (lambda: plain(conv(), layers.ReLU(max_value=4)), "clamps at 4, needed is 6"),
    "twice relu": (lambda: plain(conv(), layers.ReLU(), layers.ReLU()), "is an activation that no MobileNet has there"),
    "late norm": (
        lambda: plain(conv(activation="relu"), layers.BatchNormalization(name="bn")),
        "layer 'bn', BatchNormalization, does not follow a convolution right away",
    ),
    "no scale": (lambda: plain(conv(), layers.BatchNormalization(scale=False, name="bn")), "'bn' has scale False"),
    "epsilons": (
        lambda: plain(conv(), layers.BatchNormalization(), conv(name="b"), layers.BatchNormalization(epsilon=0.1)),
        "has epsilon 0.1, those before it 0.001",
    ),
    "early norm": (lambda: plain(layers.BatchNormalization(name="bn")), "'bn', .*, does not follow a convolution"),
    "late scale": (lambda: plain(conv(), layers.Rescaling(2.0, name="r")), "'r', Rescaling, scales what is not the"),
    "odd padding": (lambda: plain(layers.ZeroPadding2D(9, name="p")), "layer 'p' pads by"),
    "flat": (lambda: plain(conv(), layers.Flatten(name="f"), layers.Dense(2)), r"'f', Flatten, flattens \(16, 16, 8\)"),
    "part of a pool": (
        lambda: plain(conv(), layers.AveragePooling2D(2, name="p")),
        r"layer 'p' is of class|layer 'p' pools .* of \(16, 16, 8\)",
    ),
    "softmax inside": (lambda: plain(conv(), layers.Softmax(name="s")), "'s', softmax, does not follow the classifier"),
    "nothing": (lambda: plain(layers.Rescaling(1.0)), "it has no convolution"),
    "a convolution alone": (lambda: plain(conv()), "ends after layer 'odd'; MobileNet V. goes on with"),
}


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("suffix", [".h5", ".keras"])
def test_graphs_that_are_no_mobilenet_are_named(kind: str, suffix: str, tmp_path: Path) -> None:
    make, message = REFUSED[kind]
    with pytest.raises(ModelError, match=f"model{suffix}: .*({message})"):
        convert(saved(make(), tmp_path, suffix))


FIELDS: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "stride": (
        lambda found: found["conv_dw_1"].update(strides=[2, 2]),
        r"layer 'conv_dw_1' has stride 2, needed is 1",
    ),
    "filters": (
        lambda found: found["conv_pw_3"].update(filters=33),
        r"layer 'conv_pw_3' has output \(16, 16, 33\), needed is \(16, 16, 32\) for the nearest member, Mobile",
    ),
    "activation": (
        lambda found: found["conv_dw_5_relu"].update(max_value=None),
        "layer 'conv_dw_5' has activation relu, needed is relu6",
    ),
    "bias": (
        lambda found: found["conv_dw_5"].update(use_bias=True),
        "layer 'conv_dw_5' has bias True, needed is False",
    ),
    "multiplier": (lambda found: found["conv_dw_1"].update(depth_multiplier=2), "'conv_dw_1' has depth_multiplier 2"),
    "padding": (
        lambda found: found["conv_pad_2"].update(padding=[[1, 1], [1, 1]]),
        r"layer 'conv_dw_2' has padding \(\(1, 0\), \(1, 0\)\), needed is \(\(0, 1\), \(0, 1\)\)",
    ),
}


def config_of(path: Path) -> dict[str, Any]:
    with h5py.File(path) as file:
        return json.loads(file.attrs["model_config"])


@pytest.fixture(scope="module")
def v1_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of V1, to be copied."""
    return saved(application("v1", 0.25, (64, 64)), tmp_path_factory.mktemp("v1"), ".h5")


@pytest.mark.parametrize("kind", FIELDS)
def test_the_field_that_differs_is_named(kind: str, v1_file: Path, tmp_path: Path) -> None:
    change, message = FIELDS[kind]
    path = Path(shutil.copy(v1_file, tmp_path))
    config = config_of(path)
    change({layer["config"]["name"]: layer["config"] for layer in config["config"]["layers"]})
    with h5py.File(path, "a") as file:
        file.attrs["model_config"] = json.dumps(config)
    with pytest.raises(ModelError, match=f"not a MobileNet: {message}|{message}"):
        convert(path)


def test_arrays_that_do_not_fit_the_config_are_named(tmp_path: Path) -> None:
    path = saved(application("v1", 0.25, (32, 32)), tmp_path, ".h5")
    with h5py.File(path, "a") as file:
        weights = file["model_weights/conv_pw_1/conv_pw_1"]
        del weights["kernel"]
    with pytest.raises(ModelError, match=r"layer 'conv_pw_1': kernel is missing among the arrays"):
        convert(path)
    with h5py.File(path, "a") as file:
        file["model_weights/conv_pw_1/conv_pw_1"].create_dataset("kernel", (1, 1, 8, 17), "f4")
    with pytest.raises(ModelError, match=r"'conv_pw_1': kernel has shape \(1, 1, 8, 17\), its config says \(8, 16\)"):
        convert(path)


def test_weights_alone_that_do_not_fit_are_named(tmp_path: Path) -> None:
    path = saved(application("v1", 0.25, (32, 32)), tmp_path, ".weights.h5")
    with h5py.File(path, "a") as file:
        group = file["layers/conv2d/vars"]
        del group["0"]
        group.create_dataset("0", (3, 3, 3, 9), "f4")
    with pytest.raises(ModelError, match=r"'conv1/kernel' has shape \(3, 3, 3, 9\), .*needed is \(3, 3, 3, 8\)"):
        convert(path)
    (tmp_path / "a").mkdir()
    other = saved(plain(layers.Dense(3, name="d"), shape=(8,)), tmp_path / "a", ".weights.h5")
    with pytest.raises(ModelError, match=r"not a MobileNet: its tensors are 'd/"):
        convert(other)


def test_a_layer_used_twice_is_named(tmp_path: Path) -> None:
    x = inputs = keras.Input((32, 32, 8))
    layer = conv(strides=1)
    model = keras.Model(inputs, layer(layers.ReLU()(layer(x))))
    with pytest.raises(ModelError, match="layer 'odd' is used 2 times, no MobileNet does that"):
        convert(saved(model, tmp_path, ".keras"))


# --------------------------------------------------------------------------------------- configs that Keras 2 wrote


def keras_2(network: Network) -> list[dict[str, Any]]:
    """Returns the layers of a sequential V1 as Keras 2 wrote them: the input's shape in the first one."""
    found: list[dict[str, Any]] = []
    for layer in network.layers:
        if layer.kind == "average_pool":
            found.append({"class_name": "GlobalAveragePooling2D", "config": {"name": layer.name}})
            continue
        if layer.kind == "dense":
            config = {"name": layer.name, "units": network.classes, "activation": "softmax", "use_bias": True}
            found.append({"class_name": "Dense", "config": config})
            continue
        kind = "DepthwiseConv2D" if layer.kind == "depthwise" else "Conv2D"
        config = {"name": layer.name, "kernel_size": [layer.kernel] * 2, "strides": [layer.stride] * 2}
        config |= {"padding": "same", "use_bias": False, "activation": "linear", "filters": layer.output.channels}
        found.append({"class_name": kind, "config": config})
        norm = {"name": f"{layer.name}_bn", "epsilon": 0.001, "momentum": 0.9, "axis": [3]}
        found.append({"class_name": "BatchNormalizationV1", "config": norm})
        found.append({"class_name": "Activation", "config": {"name": f"{layer.name}_act", "activation": "relu"}})
    found[0]["config"]["batch_input_shape"] = [None, network.height, network.width, 3]
    return found


def test_a_sequential_model_of_keras_2() -> None:
    network = v1(0.25, (64, 47), 5, conventions="paper")
    for inner in ({"name": "s", "layers": keras_2(network)}, keras_2(network)):
        found = graph({"class_name": "Sequential", "config": inner}, (224, 224))
        assert match(found.layers, found.epsilon).layers == network.layers


def test_scaling_by_functions_of_keras_2() -> None:
    """tf.keras writes preprocess_input as TFOpLambda, with the numbers beside the source."""
    entry = {"class_name": "InputLayer", "name": "i", "config": {"batch_input_shape": [None, None, None, 3]}}
    operations = []
    for name, function, source, number in (("a", "math.truediv", "i", 127.5), ("b", "math.subtract", "a", 1.0)):
        node = [[source, 0, 0, {"y": number, "name": None}]]
        config = {"name": name, "function": function}
        operations.append({"class_name": "TFOpLambda", "name": name, "config": config, "inbound_nodes": node})
    config = {"name": "c", "kernel_size": 3, "strides": 2, "padding": "same", "filters": 8}
    last = {"class_name": "Conv2D", "name": "c", "config": config, "inbound_nodes": [[["b", 0, 0, {}]]]}
    model = {"layers": [entry | {"inbound_nodes": []}, *operations, last], "output_layers": [["c", 0, 0]]}
    found = graph({"class_name": "Model", "config": model}, (96, 64))
    assert found.scale == pytest.approx((1 / 127.5,))
    assert found.offset == (-1.0,)
    assert found.layers[0].input == (96, 64, 3)
    operations[0]["config"]["function"] = "image.resize"
    with pytest.raises(ModelError, match="layer 'a' is of class 'TFOpLambda'"):
        graph({"class_name": "Model", "config": model}, (96, 64))


def functional(*entries: tuple[str, str, dict[str, Any], list[str]]) -> dict[str, Any]:
    """Returns the config of a model as Keras 2 wrote it: class, name, arguments and inputs of each layer."""
    listed = [
        {"class_name": kind, "name": name, "config": config | {"name": name}, "inbound_nodes": nodes}
        for kind, name, config, inputs in entries
        for nodes in [[[[each, 0, 0, {}] for each in inputs]] if inputs else []]
    ]
    return {"class_name": "Functional", "config": {"layers": listed, "output_layers": [[entries[-1][1], 0, 0]]}}


START = ("InputLayer", "i", {"batch_input_shape": [None, 32, 32, 3]}, [])
CONV: dict[str, Any] = {"kernel_size": 3, "strides": 2, "padding": "same", "filters": 3}
FIRST = ("Conv2D", "a", CONV, ["i"])
HANDMADE = {
    "not last": ((START, FIRST, ("Conv2D", "b", CONV, ["i"])), "layer 'b', Conv2D, does not follow the layer before"),
    "two inputs": ((START, FIRST, ("ReLU", "r", {}, ["a", "i"])), "layer 'r' has 2 inputs, needed is one"),
    "second input": ((START, ("InputLayer", "j", START[2], [])), "layer 'j' is a second input"),
    "too small": ((START, ("Conv2D", "b", CONV | {"kernel_size": 9, "padding": "valid"}, ["i"]),
                   ("Conv2D", "c", CONV | {"kernel_size": 16, "padding": "valid"}, ["b"])), "'c' has no output"),
    "three": ((START, FIRST, ("Add", "s", {}, ["a", "a", "a"])), "layer 's' adds 3 outputs, needed are two"),
    "the input": ((START, ("Conv2D", "a", CONV | {"strides": 1}, ["i"]), ("Add", "s", {}, ["a", "i"])), "no shortcut"),
    "padded pool": ((START, FIRST, ("ZeroPadding2D", "p", {"padding": 1}, ["a"]),
                     ("GlobalAveragePooling2D", "g", {}, ["p"])), "layer 'g' pools a padding"),
    "padded end": ((START, FIRST, ("ZeroPadding2D", "p", {"padding": 1}, ["a"])), "output, 'p', is not that of its"),
    "no number": ((START, ("Multiply", "m", {}, ["i"])), "layer 'm', Multiply, has 0 numbers"),
    "from nowhere": ((START, ("ReLU", "r", {}, ["x"])), "'r' takes the output of 'x', which does not come before it"),
    "inner inputs": ((START, FIRST, ("Model", "m", functional(START)["config"], ["a", "i"])),
                     "model 'm' has 2 inputs, needed is one"),
}  # fmt: skip


@pytest.mark.parametrize("kind", HANDMADE)
def test_graphs_of_another_kind_are_named(kind: str) -> None:
    entries, message = HANDMADE[kind]
    with pytest.raises(ModelError, match=message):
        graph(functional(*entries), (224, 224))


def test_models_have_one_output() -> None:
    model = functional(START, FIRST)
    model["config"]["output_layers"] *= 2
    with pytest.raises(ModelError, match="the model has 2 outputs, needed is one"):
        graph(model, (224, 224))


def test_a_linear_activation_and_a_factor_change_nothing_else() -> None:
    linear = ("Activation", "l", {"activation": "linear"}, ["a"])
    found = graph(functional(START, FIRST, linear), (224, 224))
    assert [layer.activation for layer in found.layers] == ["linear"]
    half = ("Multiply", "m", {}, ["i"])
    model = functional(START, half, ("Conv2D", "a", CONV, ["m"]))
    model["config"]["layers"][1]["inbound_nodes"][0][0][3] = {"y": 0.5}
    assert graph(model, (224, 224)).scale == (0.5,)


def shortcut_moved(layers: tuple[Layer, ...]) -> list[Layer]:
    place = next(n for n, layer in enumerate(layers) if layer.adds)
    return [replace(layer, adds=None) if n == place else layer for n, layer in enumerate(layers)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (shortcut_moved, r"layer 'block2.project' adds nothing, MobileNetV2 .* block1.project there"),
        (
            lambda layers: list(layers[:-3]),
            "ends after layer .block16.project.; MobileNet V2 goes on with a 1x1 convolution",
        ),
        (lambda layers: [replace(layer, input=layer.input._replace(height=8)) for layer in layers], "its input is"),
        (lambda _: [], "it has no convolution"),
    ],
)
def test_layers_that_are_no_member_are_named(change: Callable[..., list[Layer]], message: str) -> None:
    network = v2(0.35, 64, 5)
    with pytest.raises(ModelError, match=message):
        match(change(network.layers), 1e-3)
    assert match(network.layers, None).layers == network.layers


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ([], "the model is of class \\[\\]"),
        ({"class_name": "MyModel"}, "the model is of class 'MyModel'"),
        ({"class_name": "Sequential", "config": {"layers": []}}, "the model has no layers"),
        ({"class_name": "Sequential", "config": {"layers": [{}]}}, "description of the layers is damaged: KeyError"),
        ({"class_name": "Sequential", "config": 7}, "description of the layers is damaged: TypeError"),
    ],
)
def test_damaged_configs_are_refused(config: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        graph(config, (224, 224))


def test_endless_configs_are_refused() -> None:
    dropout = {"class_name": "Dropout", "config": {"name": "d", "rate": 0.1}}
    with pytest.raises(ModelError, match="has more than 2,000 layers"):
        graph({"class_name": "Sequential", "config": {"layers": [dropout] * 2_001}}, (224, 224))
    deep = dropout
    for _ in range(6):
        deep = {"class_name": "Sequential", "name": "s", "config": {"name": "s", "layers": [deep]}}
    with pytest.raises(ModelError, match="is nested too deeply"):
        graph(deep, (224, 224))


# ---------------------------------------------------------------------------------------------------- real weights


class OfKeras2(layers.DepthwiseConv2D):
    """Is the layer with the argument that Keras 2 wrote and Keras 3 does not know."""

    def __init__(self, groups: int = 1, **given: Any) -> None:
        super().__init__(**given)


@pytest.mark.filterwarnings("ignore:The structure of `inputs`")
@pytest.mark.skipif(DATA is None, reason="MOBILENET_DATA is not set")
def test_the_person_detector_predicts_as_in_keras() -> None:
    """MLPerf Tiny's model: ReLU, biases before batch norm, pixels over 255."""
    path = Path(str(DATA)) / "models" / "vww_96.h5"
    model = convert(path)
    assert model.network.conventions.scaling == "unit"
    theirs = keras.models.load_model(path, compile=False, custom_objects={"DepthwiseConv2D": OfKeras2})
    with zipfile.ZipFile(Path(str(DATA)) / "photos.zip") as archive:
        names = [name for name in archive.namelist() if name.lower().endswith((".jpeg", ".jpg"))][:60]
        photos = [archive.read(name) for name in names]
    pixels = np.stack([mobilenet.photos.pixels(photo, model.preprocessing) for photo in photos])
    scores = computed(theirs, pixels / 255)
    found = model.predict(photos)
    exact = reference.forward(model.network, model.tensors, pixels)
    shift = reference.tolerance(model.network, model.tensors, pixels, EPSILON).max(1, keepdims=True)
    ours = reference.softmax(exact)
    assert (np.abs(scores - ours) <= ours * np.expm1(2 * shift + 16 * EPSILON)).all()
    assert [int(item.scores.argmax()) for item in found] == list(scores.argmax(1))
    assert len(set(scores.argmax(1))) == 2
