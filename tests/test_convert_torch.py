"""State dicts of torchvision, timm, transformers, d-li14 and tonylins: the same outputs, and files both ways.

The libraries' own outputs stand in torch_references.json, made by make_torch_references.py; weights and pixels follow
from a seed. The hash of each library's names and shapes stands there as well, so that a file that has it is one that
the library loads strictly. MOBILENET_WRITTEN=FOLDER keeps the files that are written, for that script's `check`.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import mobilenet
from mobilenet import cli, reference
from mobilenet.arch import Network, conventions, v1, v2
from mobilenet.convert import convert, write
from mobilenet.convert.names import TORCH, Source, keys, theirs
from mobilenet.engine import Engine
from mobilenet.errors import MobileNetError, ModelError, UsageError
from mobilenet.model import Model
from mobilenet.storage import tensors_file
from model_makers import random_model, same_tensors
from small_members import random_tensors
from torch_rule import CLASSES, listing_hash, ruled, ruled_pixels

REFERENCES = json.loads(Path(__file__).with_name("torch_references.json").read_text())
EPSILON = float(np.finfo(np.float32).eps)
Arrays = dict[str, NDArray[np.float32]]


def source_of(member: str) -> Source:
    name, family = member.split()[:2]
    return next(source for source in TORCH if (source.name, source.family) == (name, family))


def network_of(member: str, alpha: float, sizes: tuple[int, int]) -> Network:
    source = source_of(member)
    divisor = {"divisor": 4} if (source.name, alpha) == ("d-li14", 0.1) else {}
    variant = "_".join([source.preset, *member.split()[2:]])
    rules = conventions(source.family, variant, **divisor)
    return source.network(alpha, resolution=tuple(sizes), classes=CLASSES, conventions=rules)


def shapes_of(source: Source, network: Network) -> dict[str, tuple[int, ...]]:
    """Returns the names and shapes of the library's state dict, as our table has them."""
    found = {}
    for tensor, key in keys(source, network).items():
        layer, _, part = tensor.rpartition(".")
        blank = np.zeros(network.tensors[tensor], np.float32)
        found[key] = theirs(source, network.by_name[layer], blank).shape if part == "weight" else blank.shape
    return found


def save(path: Path, arrays: Arrays, source: Source, network: Network) -> Path:
    """Saves a state dict as the library does; transformers with its configs. Returns what is to be imported."""
    data = tensors_file.encode(arrays, {"format": "pt"})
    if source.name != "huggingface":
        path = path.with_name(f"{path.name}.safetensors")
        path.write_bytes(data)
        return path
    path.mkdir()
    (path / "model.safetensors").write_bytes(data)
    config = {"model_type": f"mobilenet_{source.family}", "depth_multiplier": network.alpha, "hidden_act": "relu6"}
    (path / "config.json").write_text(json.dumps(config))
    return path


def written(path: Path) -> Arrays:
    file = path / "model.safetensors" if path.is_dir() else path
    return tensors_file.read(file, lambda shapes: [key for key in shapes if not key.endswith("tracked")], foreign=True)


def ids(each: dict[str, Any]) -> str:
    return f"{each['member']} {each['alpha']} {each['sizes'][0]}x{each['sizes'][1]}"


@pytest.mark.parametrize("each", REFERENCES, ids=ids)
def test_outputs_are_the_librarys_and_files_too(each: dict[str, Any], tmp_path: Path) -> None:
    source, network = source_of(each["member"]), network_of(each["member"], each["alpha"], each["sizes"])
    shapes = shapes_of(source, network)
    assert listing_hash(shapes) == each["hash"], "names and shapes are not the library's"
    state = {key: ruled(key, shape) for key, shape in shapes.items()}
    model = convert(save(tmp_path / "theirs", state, source, network), resolution=tuple(each["sizes"]))
    assert model.network.layers == network.layers
    assert model.network.alpha == network.alpha

    logits, pixels = np.array(each["logits"]), ruled_pixels(*each["sizes"])
    scaling = model.preprocessing.mean, model.preprocessing.std
    exact = reference.forward(model.network, model.tensors, pixels, scaling=scaling)
    tolerance = reference.tolerance(model.network, model.tensors, pixels, EPSILON, scaling=scaling)
    assert (np.abs(logits - exact) <= tolerance).all()
    assert (np.abs(Engine(model, threads=1)(pixels) - logits) <= 2 * tolerance).all()
    assert (np.abs(logits[0] - logits[1]) > 3 * tolerance).any(), "a tolerance that tells nothing"

    kept = os.environ.get("MOBILENET_WRITTEN")
    back = Path(kept or tmp_path) / f"{ids(each)}{'' if source.name == 'huggingface' else '.safetensors'}"
    write(model, back, source.name)
    assert same_tensors(written(back), state)


@pytest.mark.parametrize("member", sorted({each["member"] for each in REFERENCES}))
def test_each_source_there_and_back(member: str, tmp_path: Path) -> None:
    """What is written is read again as the same model, with its labels where the format has a place for them."""
    alpha = 0.35 if member.endswith("v2") else 1 / 3
    network = network_of(member, alpha, (64, 64))
    source = source_of(member)
    model = random_model(network, labels=[f"label {n}" for n in range(CLASSES)])
    path = tmp_path / ("x" if source.name == "huggingface" else "x.safetensors")
    write(model, path, source.name)
    found = convert(path, resolution=64)
    assert found.network.layers == network.layers
    assert same_tensors(found.tensors, model.tensors)
    assert found.preprocessing.mean == model.preprocessing.mean
    assert found.notes["imported"]["from"] == source.title
    if source.name == "huggingface":
        assert found.labels == model.labels
        assert found.preprocessing.interpolation == "bilinear"


def timm_state(family: str = "v2", alpha: float = 0.35) -> tuple[Source, Network, Arrays]:
    member = f"timm {family}"
    network = network_of(member, alpha, (64, 64))
    source = source_of(member)
    return source, network, {key: ruled(key, shape) for key, shape in shapes_of(source, network).items()}


def put(path: Path, arrays: Arrays) -> Path:
    path.write_bytes(tensors_file.encode(arrays))
    return path


def test_wrappers_are_taken_off(tmp_path: Path) -> None:
    _, network, state = timm_state()
    wrapped = {f"module.{key}": array for key, array in state.items()}
    assert convert(put(tmp_path / "a.safetensors", wrapped)).network.tensors == network.tensors


def test_floats_of_other_widths(tmp_path: Path) -> None:
    """float16 and bfloat16 become float32, float64 is rounded once; counters are passed over."""
    state = {"a": np.array([1.5, -2.0, 0.1], np.float64), "n": np.array(3, np.int64)}
    raw = {
        "F16": np.array([1.5, -2, 0.1], np.float16).tobytes(),
        "BF16": (np.array([1.5, -2, 0.1], np.float32).view(np.uint32) >> 16).astype(np.uint16).tobytes(),
        "F64": state["a"].tobytes(),
        "I64": state["n"].tobytes(),
    }
    header, offset = {}, 0
    for name, data in raw.items():
        shape = [] if name == "I64" else [3]
        header[name] = {"dtype": name, "shape": shape, "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    text = json.dumps(header).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(raw.values()))
    found = tensors_file.read(path, lambda shapes: ["F16", "BF16", "F64"], foreign=True)
    assert all(array.dtype == np.float32 for array in found.values())
    np.testing.assert_array_equal(found["F16"], np.array([1.5, -2, 0.1], np.float16))
    np.testing.assert_allclose(found["BF16"], [1.5, -2, 0.1], rtol=2**-7)
    np.testing.assert_array_equal(found["F64"], np.array([1.5, -2, 0.1], np.float32))
    with pytest.raises(ModelError, match=r"tensor 'I64' holds integers"):
        tensors_file.read(path, lambda shapes: ["I64"], foreign=True)
    with pytest.raises(ModelError, match=r"tensor 'F16' has dtype 'F16', needed is 'F32'"):
        tensors_file.read(path, lambda shapes: shapes)


def without_top(state: Arrays) -> Arrays:
    return {key: array for key, array in state.items() if not key.startswith("classifier")}


def test_a_file_without_a_top(tmp_path: Path) -> None:
    _, network, state = timm_state()
    found = convert(put(tmp_path / "a.safetensors", without_top(state)), resolution=96)
    assert not found.network.include_top
    assert found.network.input == (96, 96, 3)
    cut = convert(put(tmp_path / "b.safetensors", state), resolution=96, include_top=False)
    assert same_tensors(cut.tensors, found.tensors)
    assert cut.network.layers == found.network.layers
    assert cut.network.tensors == network.replace(include_top=False).tensors


def _pruned(state: Arrays) -> Arrays:
    return state | {"blocks.1.0.conv_pw.weight": state["blocks.1.0.conv_pw.weight"][:-1]}


WRONG = {
    "missing": (
        lambda state: {key: a for key, a in state.items() if key != "bn1.bias"},
        r"tensor 'bn1.bias' is missing for timm's mobilenetv2",
    ),
    "pruned": (
        _pruned,
        r"'blocks.1.0.conv_pw.weight' has shape \(47, 8, 1, 1\), in our order \(8, 47\); needed is \(8, 48\) for the "
        r"nearest member, MobileNetV2 alpha 0.35 .* of timm's mobilenetv2; was it made with another rule",
    ),
    "deeper": (
        lambda state: state | {"blocks.1.2.conv_pw.weight": state["blocks.1.1.conv_pw.weight"]},
        r"tensor 'blocks.1.2.conv_pw.weight' has no place in timm's mobilenetv2: this is a member of "
        "another depth than",
    ),
    "another": (lambda _: {"layer1.0.conv1.weight": np.zeros((3, 3), np.float32)}, "not a MobileNet: its tensors are"),
    "nothing": (lambda _: {}, "not a MobileNet: its tensors are none"),
    "NaN": (
        lambda state: state | {"bn1.bias": state["bn1.bias"] * np.float32(np.nan)},
        "tensor 'stem.beta' holds NaN or infinity",
    ),
    "half a top": (
        lambda state: {key: a for key, a in state.items() if key != "classifier.bias"},
        "tensors are missing for MobileNetV2 alpha 0.35",
    ),
    "a flat weight": (
        lambda state: state | {"conv_head.weight": state["conv_head.weight"].reshape(-1)},
        r"'conv_head.weight' has shape",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_does_not_fit_is_named(kind: str, tmp_path: Path) -> None:
    change, message = WRONG[kind]
    path = put(tmp_path / "a.safetensors", change(timm_state()[2]))
    with pytest.raises(ModelError, match=f"a.safetensors: .*{message}"):
        convert(path)


def test_what_is_no_file_of_ours_is_told(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    for name, message in (
        ("text", "text: is not recognised; known are TFLite, folder of transformers"),
        ("folder", "folder: is not recognised"),
        ("none", "none: can't be read: No such file"),
        ("fifo", "fifo: is not a regular file or a folder"),
        ("a\0b", "can't be read: "),
    ):
        with pytest.raises(ModelError, match=message):
            convert(tmp_path / name)


def test_labels_scaling_and_resolution_are_the_users(tmp_path: Path) -> None:
    _, _, state = timm_state()
    path = put(tmp_path / "a.safetensors", state)
    labels = tmp_path / "labels.txt"
    labels.write_text("".join(f"étiquette {n}\n" for n in range(CLASSES)))
    model = convert(path, labels=labels, scaling="unit", resolution=(96, 64))
    assert model.labels[1] == "étiquette 1"
    assert model.network.input == (96, 64, 3)
    assert (model.preprocessing.mean, model.preprocessing.std) == ((0.0,), (255.0,))
    assert model.network.conventions.scaling == "unit"
    with pytest.raises(ModelError, match="labels: there are 2 for 5 classes"):
        convert(path, labels=["a", "b"])
    labels.write_bytes(b"\xff\xfe")
    with pytest.raises(ModelError, match=r"labels.txt: is not UTF-8"):
        convert(path, labels=str(labels))
    with pytest.raises(UsageError, match="scaling: got 'no'"):
        convert(path, scaling="no")


# --------------------------------------------------------------------------------------------------------- writing


@pytest.mark.parametrize(
    ("network", "format", "message"),
    [
        (v2(0.35, 64, 5), "torchvision", "it has padding symmetric, not same, batch_norm_epsilon 1e-05, not 0.001"),
        (v1(0.25, 64, 5), "torchvision", "torchvision's mobilenet_v2 is a MobileNet V2, the model is MobileNetV1"),
        (v1(0.25, 64, 5, conventions="notes"), "timm", "activation relu6, not relu, .*last_stride 1, not 2"),
        (v2(0.35, 64, 5, conventions="tonylins"), "torchvision", "rounding divisible, not ceil"),
        (v2(0.35, 64, 5, conventions="timm", downsampling=8), "timm", ": it has downsampling 32, not 8"),
        (v2(0.35, 64, conventions="timm", include_top=False, pooling="avg"), "timm", "no avg pooling without"),
        (v1(0.25, 64, 5, conventions="notes"), "huggingface", "last_stride 1, not 2"),
        (v2(0.35, 64, conventions="huggingface", include_top=False), "huggingface", "has a classifier, .* has none"),
        (v2(0.25, 64, 5, conventions="slim"), "huggingface", "first_shortcut False, not True"),
        (v2(0.35, 64, 5, conventions="timm_120d"), "torchvision", "depth 1.0, not 1.4"),
        (v1(0.25, 64, 5, conventions="timm_100h"), "huggingface", "head_conv False, not True"),
    ],
)
def test_what_a_library_would_compute_otherwise_is_not_written(
    network: Network, format: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=message):
        write(random_model(network), tmp_path / "x.safetensors", format)
    assert list(tmp_path.iterdir()) == []


def test_names_of_formats_and_files(tmp_path: Path) -> None:
    model = random_model(v2(0.35, 64, 5, conventions="timm"))
    with pytest.raises(UsageError, match="format: got 'caffe', needed one of keras"):
        write(model, tmp_path / "x", "caffe")
    with pytest.raises(ModelError, match=r"x.pth: needed is a name that ends in .safetensors; pickles"):
        write(model, tmp_path / "x.pth", "timm")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = put(tmp_path / "a.safetensors", timm_state()[2])
    given = ["import", str(path), "-o", str(tmp_path / "model"), "--resolution", "64x96", "--scaling", "unit"]
    assert cli.main([*given, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["from"] == "timm's mobilenetv2"
    assert (document["mean"], document["std"]) == ([0.0], [255.0])
    model = mobilenet.load(tmp_path / "model")
    assert model.network.input == (64, 96, 3)
    assert cli.main(given) == 0
    assert capsys.readouterr().out.startswith("MobileNetV2 alpha 0.35 64x96x3 5 classes of timm's mobilenetv2, pixels")
    assert cli.main(["import", str(tmp_path / "none"), "-o", str(tmp_path / "other")]) == 3
    assert not (tmp_path / "other").exists()


# --------------------------------------------------------------------------------------- folders with a config.json


def hugging_folder(path: Path, family: str = "v2", **config: Any) -> tuple[Path, Model]:
    network = network_of(f"huggingface {family}", 0.35, (64, 64))
    model = random_model(network)
    write(model, path, "huggingface")
    text = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(text | config))
    return path, model


def test_conventions_of_transformers_travel(tmp_path: Path) -> None:
    """Padding, activation, epsilon and an expansion in the first block, as the config can say them."""
    rules = conventions(
        "v2", "huggingface", padding="symmetric", activation="relu", batch_norm_epsilon=1e-4, expand_first=True
    )
    network = v2(1.4, (64, 96), 1001, conventions=rules)
    model = Model(network, random_tensors(network), [f"n{n}" for n in range(1001)])
    write(model, tmp_path / "x", "huggingface")
    found = convert(tmp_path / "x")
    assert found.network == network
    assert same_tensors(found.tensors, model.tensors)
    assert found.labels == model.labels
    always = v2(0.35, 64, 5, conventions=conventions("v2", "huggingface", scale_head="always"))
    write(random_model(always), tmp_path / "y", "huggingface")
    assert convert(tmp_path / "y").network.by_name["head"].output.channels < 1280


def test_preprocessing_of_transformers_travels(tmp_path: Path) -> None:
    path, _ = hugging_folder(tmp_path / "a")
    file = path / "preprocessor_config.json"
    file.write_text(
        json.dumps(
            {"size": {"shortest_edge": 128}, "crop_size": {"height": 96, "width": 64}, "resample": 3,
             "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
        )
    )  # fmt: skip
    found = convert(path).preprocessing
    assert (found.height, found.width, found.crop, found.interpolation) == (96, 64, 0.5, "bicubic")
    assert found.mean == (123.675, 116.28, 103.53)
    file.write_text(json.dumps({"size": {"height": 96, "width": 64}, "do_center_crop": False, "do_normalize": False}))
    found = convert(path).preprocessing
    assert (found.height, found.resize, found.crop, found.mean, found.std) == (96, "squash", 1.0, (0.0,), (255.0,))
    file.unlink()
    assert convert(path).preprocessing.mean == (127.5,)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "resnet"}, "not a MobileNet: describes 'resnet'"),
        ({"output_stride": 8}, "output_stride: got 8, needed 32"),
        ({"expand_ratio": 4}, "expand_ratio: got 4, needed 6"),
        ({"architectures": ["MobileNetV2ForSemanticSegmentation"]}, "is no image classification"),
        ({"depth_multiplier": 0.75}, "says depth_multiplier 0.75, the tensors are those of alpha 0.35"),
        ({"depth_multiplier": -1}, "depth_multiplier: alpha: got -1"),
        ({"hidden_act": "gelu"}, "activation: got 'gelu'"),
        ({"layer_norm_eps": "x"}, "batch_norm_epsilon: got 'x'"),
        ({"format": "mobilenet model"}, "is a model of mobilenet already"),
    ],
)
def test_configs_that_do_not_fit_are_refused(config: dict[str, Any], message: str, tmp_path: Path) -> None:
    path, _ = hugging_folder(tmp_path / "a", **config)
    with pytest.raises(ModelError, match=message):
        convert(path)


def test_damaged_folders_are_refused(tmp_path: Path) -> None:
    path, model = hugging_folder(tmp_path / "a")
    with pytest.raises(ModelError, match="holds files already"):
        write(model, path, "huggingface")
    with pytest.raises(MobileNetError, match="can't be made"):
        write(model, path / "config.json", "huggingface")
    (path / "preprocessor_config.json").write_text('{"size": {"shortest_edge": 0}}')
    with pytest.raises(ModelError, match="ZeroDivisionError"):
        convert(path)
    (path / "preprocessor_config.json").write_text("[1]")
    with pytest.raises(ModelError, match=r"preprocessor_config.json: is \[1\], an object is needed"):
        convert(path)
    (path / "preprocessor_config.json").write_text("{")
    with pytest.raises(ModelError, match=r"preprocessor_config.json: "):
        convert(path)
    (path / "preprocessor_config.json").unlink()
    (path / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model.safetensors: no such file"):
        convert(path)
    os.mkfifo(path / "preprocessor_config.json")
    with pytest.raises(ModelError, match="is a FIFO"):
        convert(path)


def timm_folder(path: Path, **changes: Any) -> Path:
    _, _, state = timm_state()
    path.mkdir()
    put(path / "model.safetensors", state)
    config = {
        "architecture": "mobilenetv2_035",
        "num_classes": CLASSES,
        "pretrained_cfg": {
            "input_size": [3, 96, 64],
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
            "crop_pct": 0.9,
            "interpolation": "bicubic",
        },
    }
    (path / "config.json").write_text(json.dumps(config | changes))
    return path


def test_a_folder_of_timm(tmp_path: Path) -> None:
    found = convert(timm_folder(tmp_path / "a", label_names=[f"n{n}" for n in range(CLASSES)]))
    assert found.network.input == (96, 64, 3)
    assert found.preprocessing.crop == 0.9
    assert found.preprocessing.interpolation == "bicubic"
    assert found.preprocessing.mean == (123.675, 116.28, 103.53)
    assert found.network.conventions.scaling == "imagenet"
    assert found.labels == tuple(f"n{n}" for n in range(CLASSES))
    with pytest.raises(ModelError, match=r"config.json: pretrained_cfg: "):
        convert(timm_folder(tmp_path / "b", pretrained_cfg={"input_size": [1]}))
    shutil.copy(tmp_path / "a" / "config.json", tmp_path / "config.json")
    with pytest.raises(ModelError, match=r"model.safetensors: no such file"):
        convert(tmp_path)
