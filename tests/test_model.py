"""A model as users have it: made, saved, summarised, asked, and given other weights by name."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

import mobilenet
from mobilenet import MobileNet, MobileNetV2, photos
from mobilenet.arch import conventions, v1, v2
from mobilenet.cost import cost
from mobilenet.engine import Engine
from mobilenet.errors import ModelError, PhotoError, UsageError
from mobilenet.model import Model, Prediction, create, load, usual_preprocessing
from mobilenet.notes import rows
from mobilenet.photos.preprocessing import Preprocessing
from mobilenet.reference import forward, softmax, tolerance
from mobilenet.weights import initial
from model_makers import SMALL, random_model, random_pixels, random_tensors, same_tensors

LABELS = ("cat", "dog", "bird")


@pytest.fixture(autouse=True)
def _no_flushing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture(scope="module")
def model() -> Model:
    return random_model(SMALL, labels=LABELS)


# Making


def test_a_new_model_has_initial_weights_and_the_usual_preprocessing() -> None:
    made = create(SMALL, seed=3)
    assert same_tensors(made.tensors, initial(SMALL, 3))
    assert made.labels == ("0", "1", "2")
    assert made.preprocessing == Preprocessing(32, 32, 3, mean=(127.5,), std=(127.5,))
    assert made.notes == {}
    assert repr(made) == "<Model MobileNetV1 alpha 0.1 32x32x3 3 classes>"


def test_the_usual_preprocessing_scales_as_the_conventions_say() -> None:
    network = v2(0.1, (40, 56), conventions="torchvision")
    assert usual_preprocessing(network) == Preprocessing(
        40, 56, 3, mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375)
    )
    with pytest.raises(UsageError, match=r"scaling: 'imagenet' has values for 3 channels, the network has 1; give a"):
        usual_preprocessing(v2(0.1, 40, channels=1, conventions="torchvision"))


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"labels": ["a"]}, "labels: there are 1 for 3 classes; needed is one a class"),
        ({"preprocessing": Preprocessing(64, 32)}, "preprocessing: makes an input of"),
    ],
)
def test_parts_that_do_not_fit_are_refused(parts: dict, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        create(SMALL, **parts)


@pytest.mark.parametrize("labels", ["abc", b"abc", 3, np.array("abc"), {"a", "b", "c"}])
def test_labels_that_are_no_list_are_refused(labels: object) -> None:
    with pytest.raises(UsageError, match=r"labels: got .*, needed a list with a text for each class"):
        create(SMALL, labels=labels)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"labels: got .*, needed a list"):
        Model(SMALL, random_tensors(SMALL), labels)  # type: ignore[arg-type]


def test_labels_may_come_one_after_the_other() -> None:
    for labels in (list(LABELS), dict.fromkeys(LABELS).keys(), (label for label in LABELS), np.array(LABELS)):
        assert create(SMALL, labels=labels).labels == LABELS


@pytest.mark.parametrize("source", [3, None, True, object(), {}, [3]])
def test_what_is_no_photo_is_refused(source: object) -> None:
    with pytest.raises(UsageError, match=r"photo: got .*, needed a path, a file's bytes, a PIL image or an array"):
        random_model().predict(source)


@pytest.mark.parametrize(("make", "family"), [(MobileNet, "v1"), (MobileNetV2, "v2")])
def test_published_weights_are_not_those_of_the_notes(make: type, family: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=rf"needed a file or folder: .* mobilenet.load\(.imagenet/{family}-1.0-224"):
        make((224, 224, 3), 1000, weights="imagenet")
    random_model(conventions_of_the_notes := make((32, 32, 3), 3, 0.25).network).save("imagenet")
    assert make((32, 32, 3), 3, 0.25, weights="imagenet").network == conventions_of_the_notes


def test_labels_without_a_classifier_are_refused() -> None:
    with pytest.raises(ModelError, match=r"labels: there are 3, and .* has no classifier; needed are none"):
        create(SMALL.replace(include_top=False), labels=LABELS)


def test_tensors_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ModelError, match=r"tensor 'stem.weight' has shape .*the tensors fit alpha 0.1$"):
        Model(SMALL.replace(alpha=0.2), random_tensors(SMALL))


def test_saved_and_loaded_it_says_the_same(tmp_path: Path, model: Model) -> None:
    model.save(tmp_path / "m")
    found = load(tmp_path / "m")
    assert (found.network, found.labels, found.preprocessing) == (model.network, LABELS, model.preprocessing)
    pixels = random_pixels(SMALL, 3)
    assert Engine(found)(pixels).tobytes() == Engine(model)(pixels).tobytes()


def test_numbered_classes_stay_numbered(tmp_path: Path) -> None:
    random_model().save(tmp_path)
    assert '"labels": null' in (tmp_path / "config.json").read_text()
    assert load(tmp_path).labels == ("0", "1", "2")


def test_without_the_top_it_ends_with_the_last_feature_map(model: Model) -> None:
    bare = model.without_top()
    assert bare.labels == ()
    assert bare.preprocessing == model.preprocessing
    pixels = random_pixels(SMALL, 2)
    features = Engine(bare)(pixels)
    assert features.shape == (2, *bare.network.output)
    logits = features.mean((1, 2)) @ model.tensors["classifier.weight"] + model.tensors["classifier.bias"]
    assert logits == pytest.approx(Engine(model)(pixels), rel=1e-4, abs=1e-4)
    assert bare.without_top().network == bare.network


# Prediction


def photo(seed: int, height: int = 50, width: int = 70) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def expected(model: Model, source) -> np.ndarray:
    return softmax(Engine(model)(photos.pixels(source, model.preprocessing)[None])[0])


def test_a_photo_is_labelled_from_every_form_it_comes_in(tmp_path: Path, model: Model) -> None:
    Image.fromarray(photo(1)).save(tmp_path / "a.png")
    scores = expected(model, photo(1))
    path = tmp_path / "a.png"
    for source in (path, str(path), path.read_bytes(), Image.open(path), photo(1)):
        found = model.predict(source)
        assert found.scores.dtype == np.float32
        assert found.scores == pytest.approx(scores, rel=1e-5)
        assert found.label == LABELS[int(scores.argmax())]
    several = model.predict([path, photo(2), photo(1)])
    assert [item.scores.tobytes() for item in several] == [
        model.predict(source).scores.tobytes() for source in (path, photo(2), photo(1))
    ]


def test_an_array_of_the_networks_size_is_run_as_it_is(model: Model) -> None:
    pixels = random_pixels(SMALL, 40)  # more than a batch
    logits = Engine(model)(pixels)
    found = model.predict(pixels)
    assert len(found) == 40
    for row, item in zip(logits.astype(np.float64), found, strict=True):
        assert item.scores == pytest.approx(softmax(row), rel=1e-5, abs=1e-30)
        assert item.scores.sum() == pytest.approx(1, abs=1e-6)
    assert model.predict(pixels[0]).scores.tobytes() == found[0].scores.tobytes()
    assert model.predict(pixels.astype(np.float32)[0]).scores.tobytes() == found[0].scores.tobytes()
    assert model.predict(()) == []
    assert model.predict(pixels[:0]) == []


def test_a_network_of_other_channels_takes_arrays() -> None:
    network = v1(0.1, 32, 3, channels=5)
    found = random_model(network).predict(random_pixels(network, 1)[0])
    assert len(found.scores) == 3
    with pytest.raises(PhotoError, match=r"5 channels"):
        random_model(network).predict(photo(1))


def test_scores_of_huge_logits_are_probabilities() -> None:
    model = random_model(SMALL)
    model.tensors["classifier.bias"][:] = 0, 1e30, -1e30
    assert model.predict(photo(1)).scores.tolist() == [0, 1, 0]


def test_the_best_come_first_and_of_equals_the_first() -> None:
    prediction = Prediction(np.array([0.1, 0.4, 0.1, 0.4], np.float32), ("a", "b", "c", "d"))
    assert [label for label, _ in prediction.top(3)] == ["b", "d", "a"]
    assert prediction.top(9)[0] == ("b", pytest.approx(0.4))
    assert len(prediction.top(9)) == 4
    assert all(type(score) is float for _, score in prediction.top())
    assert prediction.label == "b"
    assert str(prediction) == "b 40.0%, d 40.0%, a 10.0%, c 10.0%"
    with pytest.raises(UsageError, match=r"k: got 0, needed a whole number"):
        prediction.top(0)


def test_what_can_not_be_labelled_is_named(tmp_path: Path, model: Model) -> None:
    with pytest.raises(PhotoError, match=r"missing.jpg: .*No such file"):
        model.predict(tmp_path / "missing.jpg")
    with pytest.raises(UsageError, match=r"predict: .* no top has no classifier; needed is one with include_top=True"):
        model.without_top().predict(photo(1))
    with pytest.raises(
        UsageError, match=r"predict: got an array float64 \[50, 70, 3\]; needed uint8 or float32 \[32, 3"
    ):
        model.predict(photo(1).astype(np.float64))


# The notes' listing


def test_the_summary_of_v1_is_the_notes_listing() -> None:
    network = v1(0.25, 64, 7, conventions="notes")
    lines = create(network).summary().splitlines()
    names = [line.split()[0] for line in lines[3:-4]]
    blocks = [f"block{n}_{part}" for n in range(13) for part in ("dw", "bn1", "act1", "pw", "bn2", "act2")]
    assert names == ["initial_conv", "initial_bn", "initial_act", *blocks, "global_avg", "softmax"]
    assert lines[-4:] == [
        "Total parameters: 220,343",  # these three as Keras 3 prints them for the notes' code
        "Trainable parameters: 214,871",
        "Non-trainable parameters: 5,472",
        f"Multiply-adds: {cost(network).macs:,}",
    ]
    text = "\n".join(" ".join(line.split()) for line in lines)
    for line in (
        "input InputLayer (None, 64, 64, 3) 0",
        "initial_conv Conv2D (None, 32, 32, 8) 216 221,184",
        "block3_bn2 BatchNormalization (None, 8, 8, 64) 256",
        "block12_dw DepthwiseConv2D (None, 1, 1, 256) 2,304 2,304",  # the notes' second stride 2 in the last blocks
        "global_avg GlobalAveragePooling2D (None, 256) 0",
        "softmax Dense (None, 7) 1,799 1,792",
    ):
        assert line in text


def test_the_summary_of_v2_has_names_after_the_same_pattern() -> None:
    names = [row.name for row in rows(v2())]
    assert names[:13] == [
        "input", "initial_conv", "initial_bn", "initial_act", "block0_dw", "block0_bn1", "block0_act1",
        "block0_project", "block0_bn2", "block1_expand", "block1_bn1", "block1_act1", "block1_dw",
    ]  # fmt: skip
    start = names.index("block2_expand")
    assert names[start : start + 10] == [
        f"block2_{part}"
        for part in ("expand", "bn1", "act1", "dw", "bn2", "act2", "project", "bn3", "add")
    ] + ["block3_expand"]  # fmt: skip
    assert names[-5:] == ["head_conv", "head_bn", "head_act", "global_avg", "softmax"]


@pytest.mark.parametrize(
    "network",
    [
        v1(), v2(), v1(0.5, separable=False), v2(0.35, separable=False), v1(include_top=False),
        v1(include_top=False, pooling="max"), v2(conventions="paddle"),
        v1(conventions=conventions("v1", "mlperf_tiny")),
    ],
    ids=str,
)  # fmt: skip
def test_the_listing_counts_what_there_is(network) -> None:
    listed = rows(network)
    assert len({row.name for row in listed}) == len(listed)
    assert sum(row.macs for row in listed) == cost(network).macs
    assert sum(row.trainable for row in listed) == cost(network).params
    assert sum(row.params for row in listed) == cost(network).total_params
    assert sorted(name for row in listed for name in row.tensors.values()) == sorted(network.tensors)


# The names from the notes


def test_the_notes_call_gives_the_notes_network() -> None:
    model = MobileNet((224, 224, 3), 100, alpha=0.25, include_top=True, weights=None)
    assert model.network == v1(0.25, 224, 100, conventions="notes")
    assert same_tensors(model.tensors, create(model.network).tensors)
    odd = MobileNet(shape=[65, 33, 4], num_classes=None, include_top=False)
    assert odd.network.input == (65, 33, 4)
    assert not odd.network.include_top
    second = MobileNetV2(shape=(96, 96, 3), num_classes=5)
    assert second.network == v2(1.0, 96, 5, conventions="notes")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shape": (224, 224), "num_classes": 5}, r"shape: got \(224, 224\), needed \(height, width, channels\)"),
        ({"shape": 224, "num_classes": 5}, r"shape: got 224, needed"),
        ({"shape": (224, 31, 3), "num_classes": 5}, r"width: got 31, needed"),
        ({"shape": (224, 224, 3), "num_classes": None}, r"num_classes: got None, needed"),
        ({"shape": (224, 224, 3), "num_classes": 0}, r"classes: got 0, needed"),
        ({"shape": (224, 224, 3), "num_classes": 5, "alpha": 0}, r"alpha: got 0, needed"),
    ],
)
def test_arguments_of_the_notes_call_are_checked(arguments: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        MobileNet(**arguments)


# Weights by name


def test_weights_come_from_a_model_folder(tmp_path: Path) -> None:
    other = random_model(v1(0.1, 64, 9), seed=5)
    other.save(tmp_path / "other")
    bare = create(SMALL.replace(include_top=False))
    done = bare.load_weights(tmp_path / "other")
    assert same_tensors(bare.tensors, {name: other.tensors[name] for name in bare.tensors})
    assert done.kept == ()
    assert done.unused == ("classifier",)
    assert len(done.loaded) == 27
    assert str(done) == "27 layers loaded; 1 of the file not used: 'classifier'"


def test_weights_come_from_a_safetensors_file_and_the_rest_stays(tmp_path: Path) -> None:
    other = random_tensors(SMALL, 5)
    part = {name: tensor for name, tensor in other.items() if name.startswith(("stem", "block3.pointwise"))}
    safetensors.numpy.save_file(part, tmp_path / "part.safetensors")
    (tmp_path / "link.safetensors").symlink_to("part.safetensors")
    for name in ("part.safetensors", "link.safetensors"):
        model = random_model(SMALL, 1)
        pixels = random_pixels(SMALL, 1)
        before = model.predict(pixels)[0].scores
        done = model.load_weights(str(tmp_path / name), by_name=True)
        assert done.loaded == ("stem", "block3.pointwise")
        assert len(done.kept) == 26
        assert same_tensors(model.tensors, random_tensors(SMALL, 1) | part)
        assert not np.array_equal(model.predict(pixels)[0].scores, before)


def test_without_by_name_the_layers_must_be_the_same(tmp_path: Path) -> None:
    model, other = random_model(SMALL, 1), random_tensors(SMALL, 5)
    safetensors.numpy.save_file(other, tmp_path / "all.safetensors")
    part = {name: tensor for name, tensor in other.items() if not name.startswith("classifier")}
    safetensors.numpy.save_file(part, tmp_path / "less.safetensors")
    more = other | {"aux.weight": np.zeros(3, np.float32)}
    safetensors.numpy.save_file(more, tmp_path / "more.safetensors")
    for name, layer in (("less", "'classifier' is not in the file"), ("more", "'aux' is not in this network")):
        with pytest.raises(ModelError, match=rf"{name}.safetensors: layer {layer}; by_name=True loads those"):
            model.load_weights(tmp_path / f"{name}.safetensors", by_name=False)
    assert same_tensors(model.tensors, random_tensors(SMALL, 1))
    model.load_weights(tmp_path / "all.safetensors", by_name=False)
    assert same_tensors(model.tensors, other)


def test_weights_that_do_not_fit_are_named_and_nothing_is_loaded(tmp_path: Path) -> None:
    model, path = random_model(SMALL, 1), tmp_path / "a.safetensors"
    good = random_tensors(SMALL, 5)
    no_bias = {name: tensor for name, tensor in good.items() if name != "classifier.bias"}
    nan = good | {"stem.beta": np.full(3, np.nan, np.float32)}
    for tensors, message in (
        (
            random_tensors(SMALL.replace(classes=9)),
            r"layer 'classifier': weight has shape \(102, 9\), needed is \(102, 3\)",
        ),
        (no_bias, r"layer 'classifier' has 'weight'; needed are weight, bias"),
        (nan, r"tensor 'stem.beta' holds NaN"),
        ({"body.weight": good["stem.weight"]}, r"holds no layer of this network: there are 'body', needed 'stem', 'bl"),
    ):
        safetensors.numpy.save_file(tensors, path)
        with pytest.raises(ModelError, match=rf"a.safetensors: {message}"):
            model.load_weights(path)
    path.write_bytes(b"x" * 50)
    with pytest.raises(ModelError, match=r"a.safetensors: declares a header"):
        model.load_weights(path)
    random_model(SMALL.replace(classes=9)).save(tmp_path / "m")
    with pytest.raises(ModelError, match=r"m: layer 'classifier': weight has shape"):
        model.load_weights(tmp_path / "m")
    assert same_tensors(model.tensors, random_tensors(SMALL, 1))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.safetensors", "none.safetensors: no such file"),
        ("none.h5", "none.h5: can't be read as HDF5: .*No such file"),
        ("none", "none: no such file or folder"),
        ("a.pth", "a.pth: needed is a model folder, a .safetensors file or a Keras .h5 file"),
        ("fifo.safetensors", "fifo.safetensors: is not a regular file"),
        ("fifo.h5", "fifo.h5: is not a regular file"),
        (".", "config.json: .*No such file"),
    ],
)
def test_what_is_no_file_of_weights_is_named(tmp_path: Path, name: str, message: str) -> None:
    pytest.importorskip("h5py")
    (tmp_path / "a.pth").write_bytes(b"PK")
    os.mkfifo(tmp_path / "fifo.safetensors")
    os.mkfifo(tmp_path / "fifo.h5")
    with pytest.raises(ModelError, match=message):
        random_model().load_weights(tmp_path / name)


def test_h5_without_h5py_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(UsageError, match=r"a.h5: reading .h5 files needs h5py: pip install h5py"):
        random_model().load_weights(tmp_path / "a.h5")


# Keras files. Keras itself writes them where it is installed, with the notes' code word for word.

NOTES = """
import os
os.environ["KERAS_BACKEND"] = "torch"
import warnings
warnings.simplefilter("ignore")
import numpy as np
import torch
torch.set_num_threads(1)
from keras.layers import *
from keras.models import Model

def get_conv_block(tensor, channels, strides, alpha=1.0, name=''):
    channels = int(channels * alpha)
    x = Conv2D(channels, kernel_size=(3, 3), strides=strides, use_bias=False, padding='same',
               name='{}_conv'.format(name))(tensor)
    x = BatchNormalization(name='{}_bn'.format(name))(x)
    x = Activation('relu', name='{}_act'.format(name))(x)
    return x

def get_dw_sep_block(tensor, channels, strides, alpha=1.0, name=''):
    channels = int(channels * alpha)
    x = DepthwiseConv2D(kernel_size=(3, 3), strides=strides, use_bias=False, padding='same',
                        name='{}_dw'.format(name))(tensor)
    x = BatchNormalization(name='{}_bn1'.format(name))(x)
    x = Activation('relu', name='{}_act1'.format(name))(x)
    x = Conv2D(channels, kernel_size=(1, 1), strides=(1, 1), use_bias=False, padding='same',
               name='{}_pw'.format(name))(x)
    x = BatchNormalization(name='{}_bn2'.format(name))(x)
    x = Activation('relu', name='{}_act2'.format(name))(x)
    return x

def MobileNet(shape, num_classes, alpha=1.0, include_top=True, weights=None):
    x_in = Input(shape=shape)
    x = get_conv_block(x_in, 32, (2, 2), alpha=alpha, name='initial')
    layers = [
        (64, (1, 1)), (128, (2, 2)), (128, (1, 1)), (256, (2, 2)), (256, (1, 1)), (512, (2, 2)),
        *[(512, (1, 1)) for _ in range(5)], (1024, (2, 2)), (1024, (2, 2))
    ]
    for i, (channels, strides) in enumerate(layers):
        x = get_dw_sep_block(x, channels, strides, alpha=alpha, name='block{}'.format(i))
    if include_top:
        x = GlobalAvgPool2D(name='global_avg')(x)
        x = Dense(num_classes, activation='softmax', name='softmax')(x)
    return Model(inputs=x_in, outputs=x)

os.chdir(FOLDER)
model = MobileNet((96, 64, 3), 7, alpha=0.25)
rng = np.random.default_rng(1)
def drawn(weight):
    if weight.name == 'kernel':  # of a depthwise layer [3, 3, channels, 1]
        terms = 9 if weight.shape[-1] == 1 else np.prod(weight.shape[:-1])
        return rng.normal(0, np.sqrt(2 / terms), weight.shape)
    near_one = weight.name in ('gamma', 'moving_variance')
    return rng.uniform(*((0.7, 1.3) if near_one else (-0.3, 0.5)), weight.shape)
for layer in model.layers:
    layer.set_weights([drawn(weight) for weight in layer.weights])
model.compile('adam', 'categorical_crossentropy')
pixels = rng.integers(0, 256, (3, 96, 64, 3), dtype=np.uint8)
model.save('whole.h5')
model.save_weights('alone.weights.h5')
MobileNet((96, 64, 3), 7, alpha=0.25, include_top=False).save('headless.h5')
np.savez('answers.npz', pixels=pixels, scores=model.predict(pixels / 127.5 - 1, verbose=0),
         params=model.count_params(), names=[layer.name for layer in model.layers[1:]])
"""


@pytest.fixture(scope="module")
def keras_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for package in ("keras", "torch", "h5py"):
        if importlib.util.find_spec(package) is None:  # importing Keras here would fix its back end
            pytest.skip(f"{package} is not installed")
    place = tmp_path_factory.mktemp("keras")
    code = f"FOLDER = {str(place)!r}\n{NOTES}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return place


@pytest.mark.parametrize("file", ["whole.h5", "alone.weights.h5"])
def test_keras_files_of_the_notes_give_keras_answers(keras_files: Path, file: str) -> None:
    answers = np.load(keras_files / "answers.npz")
    model = MobileNet((96, 64, 3), 7, alpha=0.25, weights=keras_files / file)
    assert [row.name for row in rows(model.network)][1:] == list(answers["names"])
    assert sum(row.params for row in rows(model.network)) == answers["params"]
    pixels = answers["pixels"]
    found = np.stack([item.scores for item in model.predict(pixels)])
    assert answers["scores"].std() > 0.05
    # Both are float32: twice the tolerance of the logits; a probability moves by at most half of what a logit does.
    epsilon = float(np.finfo(np.float32).eps)
    allowed = 2 * tolerance(model.network, model.tensors, pixels, epsilon).max(1, keepdims=True)
    assert (np.abs(found - answers["scores"]) <= allowed).all()
    assert allowed.max() < 0.02
    exact = forward(model.network, model.tensors, pixels)
    assert (exact.argmax(1) == answers["scores"].argmax(1)).all()
    assert model.load_weights(keras_files / file, by_name=False).kept == ()


def test_keras_layers_are_loaded_by_name(keras_files: Path) -> None:
    model = MobileNet((64, 64, 3), 9, alpha=0.25)
    before = dict(model.tensors)
    message = r"whole.h5: layer 'softmax': kernel has shape \(256, 7\), needed is \(256, 9\)"
    with pytest.raises(ModelError, match=message):
        model.load_weights(keras_files / "whole.h5")
    assert same_tensors(model.tensors, before)
    done = model.load_weights(keras_files / "headless.h5")
    assert done.kept == ("softmax",)
    assert done.unused == ()
    assert {name for name in before if before[name] is model.tensors[name]} == {"classifier.weight", "classifier.bias"}
    with pytest.raises(ModelError, match=r"headless.h5: layer 'softmax' is not in the file; by_name=True"):
        model.load_weights(keras_files / "headless.h5", by_name=False)
    with pytest.raises(
        ModelError, match=r"layer 'initial_conv': kernel has shape \(3, 3, 3, 8\), needed is \(3, 3, 3, 16\)"
    ):
        MobileNet((64, 64, 3), 7, alpha=0.5, weights=keras_files / "whole.h5")


def write_keras_2(path: Path, model: Model, change=None) -> None:
    """Writes the model as Keras 2's `save_weights` did: a group a layer, names ending in ":0", `depthwise_kernel`."""
    import h5py

    with h5py.File(path, "w") as file:
        listed = rows(model.network)
        file.attrs["layer_names"] = [row.name.encode() for row in listed]
        for row in listed:
            group = file.create_group(row.name)
            for part, tensor in row.tensors.items():
                name = "depthwise_kernel" if (row.kind, part) == ("DepthwiseConv2D", "kernel") else part
                array = model.tensors[tensor].reshape(row.shapes[part])
                group.create_dataset(f"{row.name}/{name}:0", data=array)
        if change is not None:
            change(file, h5py)


@pytest.fixture
def h5(tmp_path: Path) -> Path:
    pytest.importorskip("h5py")
    return tmp_path / "a.h5"


@pytest.mark.parametrize("make", [MobileNet, MobileNetV2])
def test_keras_2_files_are_read(h5: Path, make) -> None:
    source = make((64, 64, 3), 5, alpha=0.25)
    source.tensors.update(random_tensors(source.network, 8))
    write_keras_2(h5, source)
    found = make((64, 64, 3), 5, alpha=0.25)
    done = found.load_weights(h5, by_name=False)
    assert same_tensors(found.tensors, source.tensors)
    assert len(done.loaded) == sum(bool(row.tensors) for row in rows(found.network))


def _kernel(file, layer: str = "initial_conv"):
    return file[f"{layer}/{layer}"], "kernel:0"


def _replace(file, make, layer: str = "initial_conv") -> None:
    group, name = _kernel(file, layer)
    del group[name]
    make(group, name)


CHANGES = {
    "an external link": (
        lambda file, h5py: file.__setitem__("initial_conv/more", h5py.ExternalLink("/etc/passwd", "/")),
        "'/initial_conv/more' is a link; only arrays in the file itself are read",
    ),
    "an external link at the top": (
        lambda file, h5py: file.__setitem__("model_weights", h5py.ExternalLink("other.h5", "/")),
        "'//model_weights' is a link",
    ),
    "a soft link": (
        lambda file, h5py: _replace(file, lambda g, n: g.__setitem__(n, h5py.SoftLink("/softmax/softmax/kernel:0"))),
        "'/initial_conv/initial_conv/kernel:0' is a link",
    ),
    "a soft link to itself": (
        lambda file, h5py: file.__setitem__("loop", h5py.SoftLink("/loop")),
        "'//loop' is a link",
    ),
    "data in another file": (
        lambda file, h5py: _replace(
            file, lambda g, n: g.create_dataset(n, (3, 3, 3, 8), "f4", external=[("/etc/passwd", 0, 864)])
        ),
        "array .*kernel:0' has its data in another file, which is not opened",
    ),
    "a virtual array": (
        lambda file, h5py: _replace(file, lambda g, n: g.create_virtual_dataset(n, _virtual(h5py))),
        "array .*kernel:0' has its data in another file, which is not opened",
    ),
    "another shape": (
        lambda file, h5py: _replace(file, lambda g, n: g.create_dataset(n, (3, 3, 8, 3), "f4")),
        r"layer 'initial_conv': kernel has shape \(3, 3, 8, 3\), needed is \(3, 3, 3, 8\)",
    ),
    "a huge shape": (
        lambda file, h5py: _replace(file, lambda g, n: g.create_dataset(n, (1 << 40, 4), "f4", chunks=(1024, 4))),
        r"layer 'initial_conv': kernel has shape \(1099511627776, 4\), needed is",
    ),
    "huge pieces": (
        lambda file, h5py: _replace(
            file,
            lambda g, n: g.create_dataset(n, (3, 3, 3, 8), "f4", chunks=(64, 64, 64, 64), maxshape=(None,) * 4),
        ),
        r"array .*kernel:0' has pieces of \(64, 64, 64, 64\), larger than its shape \(3, 3, 3, 8\)",
    ),
    "another type": (
        lambda file, h5py: _replace(file, lambda g, n: g.create_dataset(n, (3, 3, 3, 8), "f8")),
        "array .*kernel:0' has type float64, needed is float32",
    ),
    "text": (
        lambda file, h5py: _replace(file, lambda g, n: g.create_dataset(n, data="x", dtype=h5py.string_dtype())),
        "array .*kernel:0' has type object, needed is float32",
    ),
    "a type in place of an array": (
        lambda file, h5py: _replace(file, lambda g, n: g.__setitem__(n, np.dtype("f4"))),
        "'/initial_conv/initial_conv/kernel:0' is neither a group nor an array",
    ),
    "a nest": (lambda file, h5py: file.create_group("initial_conv/a/b/c/d/e"), "is nested too deeply"),
    "a group in itself": (
        lambda file, h5py: file["initial_conv"].__setitem__("again", file["initial_conv"]),
        "is nested too deeply",
    ),
    "no bias": (
        lambda file, h5py: file["softmax/softmax"].__delitem__("bias:0"),
        "'softmax' has 'kernel'; needed are k",
    ),
    "NaN": (
        lambda file, h5py: file["initial_bn/initial_bn/beta:0"].__setitem__(0, np.nan),
        "tensor 'stem.beta' holds NaN",
    ),
    "nothing": (lambda file, h5py: file.clear(), "holds no layer of this network: there are none"),
}


def _virtual(h5py):
    layout = h5py.VirtualLayout((3, 3, 3, 8), "f4")
    layout[...] = h5py.VirtualSource("other.h5", "x", (3, 3, 3, 8))
    return layout


@pytest.mark.parametrize("kind", CHANGES)
def test_hostile_keras_files_are_refused(h5: Path, kind: str) -> None:
    change, message = CHANGES[kind]
    source = MobileNet((64, 64, 3), 5, alpha=0.25)
    write_keras_2(h5, source, change)
    with pytest.raises(ModelError, match=f"a.h5: .*{message}"):
        source.load_weights(h5)


def test_a_crowd_of_layers_is_refused(h5: Path) -> None:
    import h5py

    with h5py.File(h5, "w") as file:
        for index in range(20_001):
            file.create_group(f"layer{index}")
    with pytest.raises(ModelError, match=r"a.h5: '/' has 20,001 members, at most 20,000 are allowed"):
        random_model().load_weights(h5)


def test_numbered_variables_without_a_layer_name_are_refused(h5: Path) -> None:
    import h5py

    with h5py.File(h5, "w") as file:
        file.create_dataset("layers/conv2d/vars/0", (3, 3, 3, 8), "f4")
        file.create_group("layers/dropout/vars")
        file.create_dataset("layers/stray", (3,), "f4")
    with pytest.raises(ModelError, match=r"a.h5: layer 'conv2d' has no name in the file; save the whole model as .h5"):
        random_model().load_weights(h5)


def test_unknown_layers_are_left_out(h5: Path) -> None:
    source = MobileNet((64, 64, 3), 5, alpha=0.25)
    write_keras_2(h5, source, lambda file, _: file.create_dataset("lambda/lambda/code:0", (3,), "f4"))
    assert source.load_weights(h5).unused == ("lambda",)


def test_a_damaged_keras_file_is_refused(h5: Path) -> None:
    source = MobileNet((64, 64, 3), 5, alpha=0.25)
    write_keras_2(h5, source)
    good = h5.read_bytes()
    for size in (0, 7, 100, 5000, len(good) // 2):
        h5.write_bytes(good[:size])
        with pytest.raises(ModelError, match=r"a.h5: can't be read as HDF5"):
            source.load_weights(h5)


# The package


def test_importing_the_package_imports_neither_numpy_nor_torch() -> None:
    code = (
        "import sys, mobilenet, mobilenet.arch, mobilenet.cost\n"
        "assert callable(mobilenet.cost) and mobilenet.v2\n"
        "print([name for name in ('numpy', 'torch', 'PIL', 'llvmlite', 'safetensors') if name in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(mobilenet.__file__).parents[1])}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert out.stdout.strip() == "[]"
