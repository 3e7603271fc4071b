"""Tensors fit their network, folding keeps the meaning, and a model folder is what it was, whatever happens."""

import errno
import json
import math
import os
import random
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from members import DEEP, random_members
from mobilenet.arch import Network, conventions, v1, v2
from mobilenet.common import strict_json
from mobilenet.errors import MobileNetError, ModelError, UsageError
from mobilenet.model import Model, load
from mobilenet.photos.preprocessing import Preprocessing
from mobilenet.reference import forward, tolerance
from mobilenet.storage import fitting, folder, tensors_file
from mobilenet.storage.folder import Stored
from mobilenet.weights import check, check_shapes, fold, initial
from model_makers import SMALL, edit_config, random_model, random_pixels, random_tensors, same_tensors

PREPROCESSING = Preprocessing(32, 32, 3, crop=1.0, resize="squash", interpolation="bicubic", mean=(1.5, 2.0, 3.0))
NOTES = {"Data": {"photos": 12, "source": "hand"}, "Accuracy": {"top-1": 0.75, "by class": [1, None]}, "seed": 3}


@pytest.fixture(autouse=True)
def _no_flushing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting for the disk is what `files.py` does and its tests check; here it would be most of the time."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


# Initial weights


def test_initial_weights_are_the_same_for_a_seed_and_for_no_other() -> None:
    one = initial(SMALL, 7)
    assert {name: tensor.shape for name, tensor in one.items()} == SMALL.tensors
    assert list(one) == list(SMALL.tensors)
    assert all(tensor.dtype == np.float32 for tensor in one.values())
    assert same_tensors(one, initial(SMALL, 7))
    other = initial(SMALL, 8)
    assert not any((one[name] == other[name]).any() for name in one if name.endswith(".weight"))


def test_initial_weights_are_the_same_on_every_machine() -> None:
    found = initial(v1(0.25, 32, 2), 5)
    assert found["stem.weight"][0, 0, 0, :3] == pytest.approx([0.21308367, -0.0500207953, 0.108599469], rel=1e-6)
    assert found["classifier.weight"][-1] == pytest.approx([0.00319188577, -0.00404352648], rel=1e-6)


def test_another_number_of_classes_leaves_the_rest_as_it_was() -> None:
    one, other = initial(v2(0.35, 64, 10), 1), initial(v2(0.35, 64, 12), 1)
    differing = {name for name in one if one[name].tobytes() != other[name].tobytes()}
    assert differing == {"classifier.weight", "classifier.bias"}


@pytest.mark.parametrize("network", [v1(), v2(), v1(0.5, separable=False)], ids=str)
def test_initial_weights_have_the_deviations_of_he(network: Network) -> None:
    tensors = initial(network)
    for layer in network.layers:
        if layer.weight_shape is None:
            continue
        weight = tensors[f"{layer.name}.weight"].astype(np.float64)
        outs = {"depthwise": 1}.get(layer.kind, layer.output.channels)
        deviation = 0.01 if layer.kind == "dense" else math.sqrt(2 / (layer.kernel**2 * outs))
        # The standard error of a deviation of n normal numbers is σ / √(2n).
        assert abs(weight.std() / deviation - 1) < 5 / math.sqrt(2 * weight.size)
        assert abs(weight.mean()) < 5 * deviation / math.sqrt(weight.size)
    fixed = {"bias": 0, "gamma": 1, "beta": 0, "mean": 0, "variance": 1}
    for name, tensor in tensors.items():
        part = name.rpartition(".")[2]
        assert part == "weight" or (tensor == fixed[part]).all()


@pytest.mark.parametrize("seed", [-1, 2**64, 1.0, None, True])
def test_a_seed_outside_the_rule_is_refused(seed) -> None:
    with pytest.raises(UsageError, match="seed: got"):
        initial(SMALL, seed)


def test_the_largest_seed_is_taken() -> None:
    assert same_tensors(initial(SMALL, 2**64 - 1), initial(SMALL, 2**64 - 1))


# Checks


def test_tensors_that_fit_pass() -> None:
    check(SMALL, random_tensors(SMALL))


@pytest.mark.parametrize(
    ("source", "needed", "message"),
    [
        (
            v1(0.75),
            v1(1.0),
            r"'stem.weight' has shape \(3, 3, 3, 24\), needed is \(3, 3, 3, 32\) for .*fit alpha 0.75$",
        ),
        (v2(1.3, 96), v2(1.0, 96), r"'stem.weight'.* fit alpha 1.3$"),
        (v1(0.6), v1(1.0), r"'stem.weight'.* fit alpha 0.6$"),
        (
            v1(classes=1001),
            v1(classes=10),
            r"'classifier.weight'.*fit classes 1001 \(ImageNet's 1000 and a background\)",
        ),
        (v2(classes=7), v2(), r"'classifier.weight' has shape \(1280, 7\).*fit classes 7$"),
        (v2(0.5, classes=7), v2(), r"'stem.weight'.*fit alpha 0.5 and classes 7$"),
        (v1(channels=1), v1(), r"'stem.weight' has shape \(3, 3, 1, 32\).*fit channels 1$"),
        (
            v1(include_top=False),
            v1(),
            r"'classifier.weight' of shape \(1024, 1000\) is missing.*fit include_top False$",
        ),
        (v1(), v1(include_top=False), r"'classifier.weight' does not belong to .*fit include_top True$"),
        (v2(), v1(), r"'stem.weight'|'block0.pointwise.weight'.* is missing .*fit family v2$"),
        (v1(separable=False), v1(), r"'block0.depthwise.weight'.* is missing .*fit separable False$"),
        (v1(conventions=conventions("v1", conv_bias=True)), v1(), r"'stem.bias' does not belong .*fit conv_bias True$"),
        (
            v2(0.5, conventions=conventions("v2", "tonylins")),
            v2(0.5),
            r"'stem.weight'.*fit rounding ceil and fixed_stem",
        ),
        (
            v2(conventions=conventions("v2", "paddle")),
            v2(),
            r"'block0.expand.weight' does not belong.*fit expand_first",
        ),
    ],
)
def test_a_misfit_names_the_tensor_and_the_cause(source: Network, needed: Network, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        check_shapes(needed, source.tensors)


def test_a_misfit_without_a_known_cause_names_the_tensor_alone() -> None:
    tensors = initial(SMALL)
    tensors["block3.pointwise.beta"] = np.zeros(99, np.float32)
    with pytest.raises(
        ModelError, match=r"'block3.pointwise.beta' has shape \(99,\), needed is \(25,\) for .* classes$"
    ):
        check(SMALL, tensors)


def test_the_cause_is_also_found_for_a_part_of_a_network() -> None:
    part = {name: shape for name, shape in v2(0.75).tensors.items() if name.startswith(("stem", "block1."))}
    assert fitting.explain(v2(), part) == "alpha 0.75"
    assert fitting.explain(v2(0.75), part) == ""
    assert fitting.explain(v2(), {"stem.weight": ()}) == ""


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_unless_asked_for(value: float) -> None:
    for name in ("block2.depthwise.weight", "stem.mean", "classifier.bias"):
        tensors = random_tensors(SMALL)
        tensors[name].flat[-1] = value
        with pytest.raises(ModelError, match=f"tensor '{name}' holds NaN or infinity; allow_nonfinite=True"):
            check(SMALL, tensors)
        check(SMALL, tensors, allow_nonfinite=True)


def test_a_negative_variance_is_refused_unless_asked_for() -> None:
    tensors = random_tensors(SMALL)
    tensors["stem.variance"][1] = -0.5
    with pytest.raises(ModelError, match=r"'stem.variance' holds -0.5, a variance is never negative; allow_nonfinite"):
        check(SMALL, tensors)
    check(SMALL, tensors, allow_nonfinite=True)


def test_other_types_are_refused() -> None:
    tensors = random_tensors(SMALL) | {"stem.beta": np.zeros(3)}
    with pytest.raises(ModelError, match=r"'stem.beta' has type float64, needed is float32"):
        check(SMALL, tensors)


# Folding


@pytest.mark.parametrize("seed", range(6))
def test_a_folded_network_is_the_network(seed: int) -> None:
    """Folded weights in a network without statistics give the same outputs: reference against reference."""
    network = random_members(seed, 1)[0]
    network = network.replace(height=40, width=33, alpha=min(network.alpha, 0.5))
    tensors, pixels = random_tensors(network, seed), random_pixels(network, 1)
    folded = fold(network, tensors)
    assert list(folded) == [
        f"{layer.name}.{p}" for layer in network.layers if layer.tensors for p in ("weight", "bias")
    ]
    assert all(tensor.dtype == np.float32 for tensor in folded.values())
    bare = network.replace(conventions=_with_biases(network))
    plain = {"gamma": 1.0, "beta": 0.0, "mean": 0.0, "variance": 1 - bare.conventions.batch_norm_epsilon}
    unfolded = {
        name: folded[name] if name in folded else np.full(shape, plain[name.rpartition(".")[2]])
        for name, shape in bare.tensors.items()
    }
    scaling = ((127.5,), (127.5,))
    expected = forward(network, tensors, pixels, scaling=scaling)
    allowed = tolerance(network, tensors, pixels, float(np.finfo(np.float32).eps), scaling=scaling)
    assert (np.abs(forward(bare, unfolded, pixels, scaling=scaling) - expected) <= allowed).all()


def _with_biases(network: Network):
    fields = {**network.to_dict()["conventions"], "conv_bias": True}
    return type(network.conventions)(**fields)


def test_folding_is_rounded_once() -> None:
    """Computed in float64, a value is off by half a unit in the last place; in float32 it would be by several."""
    network = v1(0.25, 32, 3, conventions=conventions("v1", conv_bias=True))
    tensors = random_tensors(network)
    folded = fold(network, tensors)
    half_unit = float(np.finfo(np.float32).eps) / 2
    for name, weight in (("stem", tensors["stem.weight"]), ("block5.pointwise", tensors["block5.pointwise.weight"])):
        part = {p: tensors[f"{name}.{p}"].astype(np.longdouble) for p in ("bias", "gamma", "beta", "mean", "variance")}
        scale = part["gamma"] / np.sqrt(part["variance"] + np.longdouble(1e-3))
        shift = (part["bias"] - part["mean"]) * scale
        assert np.abs(folded[f"{name}.weight"] / (weight * scale) - 1).max() <= half_unit * (1 + 1e-6)
        assert (np.abs(folded[f"{name}.bias"] - (part["beta"] + shift)) <= half_unit * np.abs(shift + part["beta"])
                * (1 + 1e-6)).all()  # fmt: skip


# The file of weights


def test_the_file_is_what_the_safetensors_library_reads_and_writes(tmp_path: Path) -> None:
    tensors = random_tensors(SMALL)
    data = tensors_file.encode(tensors)
    assert same_tensors(safetensors.numpy.load(data), tensors)
    assert int.from_bytes(data[:8], "little") % 8 == 0
    for metadata in (None, {"format": "pt"}):
        safetensors.numpy.save_file(tensors, tmp_path / "theirs", metadata)
        assert same_tensors(
            dict(sorted(tensors_file.read(tmp_path / "theirs", list).items())), dict(sorted(tensors.items()))
        )


def test_chosen_tensors_alone_are_read(tmp_path: Path) -> None:
    tensors = random_tensors(SMALL)
    (tmp_path / "a").write_bytes(tensors_file.encode(tensors))
    found = tensors_file.read(tmp_path / "a", lambda shapes: [name for name in shapes if name.startswith("block3")])
    assert same_tensors(found, {name: tensor for name, tensor in tensors.items() if name.startswith("block3")})


def test_scalars_and_empty_arrays_survive(tmp_path: Path) -> None:
    tensors = {"empty": np.zeros((3, 0, 2), np.float32), "scalar": np.float32(2).reshape(())}
    (tmp_path / "a").write_bytes(tensors_file.encode(tensors))
    found = tensors_file.read(tmp_path / "a", list)
    assert same_tensors(found, tensors)
    assert {name: array.shape for name, array in found.items()} == {"empty": (3, 0, 2), "scalar": ()}


# The model folder


def stored(seed: int = 0, network: Network = SMALL) -> Stored:
    preprocessing = Preprocessing(network.height, network.width, 3, crop=0.5 + seed / 100)
    labels = tuple(f"{name} {seed}" for name in ("Käfer", "🐝", "नमस्ते")[: network.classes])
    return Stored(network, random_tensors(network, seed), labels, preprocessing, {"seed": seed})


def same(one: Stored, other: Stored) -> bool:
    return same_tensors(one.tensors, other.tensors) and one._replace(tensors={}) == other._replace(tensors={})


@pytest.mark.parametrize("network", random_members(11, 12), ids=range(12) if not DEEP else None)
def test_what_was_saved_is_loaded(tmp_path: Path, network: Network) -> None:
    network = network.replace(alpha=min(network.alpha, 0.5))
    preprocessing = Preprocessing(network.height, network.width, network.channels)
    labels = tuple(f"label {n}" for n in range(network.classes)) if network.include_top else None
    given = Stored(network, random_tensors(network), labels, preprocessing, NOTES)
    folder.save(tmp_path / "new" / "model", given)
    assert same(folder.load(str(tmp_path / "new" / "model")), given)
    assert sorted(os.listdir(tmp_path / "new" / "model")) == ["README.md", "config.json", "model.safetensors"]


def test_the_files_are_plain(tmp_path: Path) -> None:
    model = Model(SMALL, random_tensors(SMALL), ("a", "b", "c"), PREPROCESSING, NOTES)
    model.save(tmp_path / "m")
    assert same_tensors(safetensors.numpy.load_file(tmp_path / "m" / "model.safetensors"), model.tensors)
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert list(config) == ["format", "version", "network", "labels", "preprocessing", "sha256", "notes"]
    assert config["network"]["alpha"] == 0.1
    found = load(tmp_path / "m")
    assert (found.network, found.labels, found.preprocessing, found.notes) == (
        SMALL,
        ("a", "b", "c"),
        PREPROCESSING,
        NOTES,
    )


def test_the_page_about_the_format_names_its_keys_and_limits() -> None:
    page = Path(__file__).parents[1] / "docs" / "model-folder.md"
    if not page.exists():
        pytest.skip("the tests are away from the project")
    text = page.read_text()
    for key in folder._KEYS:
        assert f"| `{key}` |" in text
    for said in (
        f"`{folder.FORMAT!r}`".replace("'", '"'),
        f"{strict_json.LIMIT >> 10} KiB",
        f"{strict_json.BRACKETS_LIMIT:,}",
    ):
        assert said in text
    assert (
        f"{strict_json.MAX_KEY} characters\n  of a key" in text or f"{strict_json.MAX_KEY} characters of a key" in text
    )
    assert f"1 to {folder._MAX_LABEL:,} characters" in text


def test_the_model_card_is_made_of_the_facts(tmp_path: Path) -> None:
    notes = {**NOTES, "Hostile": {"a|b\n# x": "<script>|\x1b[31m[link](http://x)"}}
    random_model(SMALL, labels=("a", "b", "c"), notes=notes).save(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert card.startswith("# MobileNetV1 alpha 0.1 32x32x3 3 classes\n")
    for line in (
        "| Classes | 3: a, b, c |",
        "## Accuracy",
        "| top-1 | 0.75 |",
        "| by class | \\[1, null\\] |",
        "## Facts",
        "| seed | 3 |",
        "| a\\|b \\# x | \\<script\\>\\| \\[31m\\[link\\](http://x) |",
    ):
        assert line in card.splitlines()
    assert "\x1b" not in card


def test_the_model_card_of_many_classes_and_of_none_is_short(tmp_path: Path) -> None:
    random_model(v1(0.1, 32, 1000), labels=[f"label {n}" for n in range(1000)]).save(tmp_path / "many")
    assert "label 19 and 980 more |" in (tmp_path / "many" / "README.md").read_text()
    random_model(SMALL).save(tmp_path / "numbered")
    assert "| Classes | 3, numbered |" in (tmp_path / "numbered" / "README.md").read_text()
    random_model(SMALL.replace(include_top=False)).save(tmp_path / "none")
    assert "| Classes | none" in (tmp_path / "none" / "README.md").read_text()


def test_other_files_of_the_folder_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    folder.save(tmp_path, stored(1))
    folder.save(tmp_path, stored(2))
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert same(folder.load(tmp_path), stored(2))


@pytest.mark.parametrize("name", ["config.json", "README.md", "model.safetensors"])
@pytest.mark.parametrize("make", [Path.touch, Path.mkdir, lambda path: path.symlink_to("/dev/null")])
def test_a_folder_of_something_else_is_not_written_to(tmp_path: Path, name: str, make) -> None:
    make(tmp_path / name)
    with pytest.raises(ModelError, match=f"{name}: would be overwritten, and .* holds no model"):
        folder.save(tmp_path, stored())
    assert os.listdir(tmp_path) == [name]


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "m").write_text("mine")
    with pytest.raises(ModelError, match="m: is a file, a folder is needed"):
        folder.save(tmp_path / "m", stored())
    with pytest.raises(MobileNetError, match="n: can't be made: Not a directory"):
        folder.save(tmp_path / "m" / "n", stored())
    assert (tmp_path / "m").read_text() == "mine"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": ("a", "b")}, "labels: there are 2 for 3 classes"),
        ({"labels": ("a", "b", "c\x1b[31m")}, r"labels: label 2 is 'c\\x1b\[31m'; needed is a text"),
        ({"labels": ("a", "", "c")}, "labels: label 1 is ''"),
        ({"labels": ("a", "b" * 1001, "c")}, "labels: label 1 is 'bbb"),
        ({"labels": ("a", 1, "c")}, "labels: label 1 is 1"),
        ({"notes": {"a": object()}}, "can't hold these labels and notes: Object of type object"),
        ({"notes": {"a": math.nan}}, "can't hold these labels and notes: Out of range float"),
        ({"notes": {"a": "x" * 700_000}}, "can't hold these labels and notes: has 70.,... bytes, at most 655,360"),
        (
            {"preprocessing": Preprocessing(32, 33, 3)},
            r"preprocessing: makes an input of \(32, 33, 3\), .* needs \(32, 32",
        ),
        ({"network": SMALL.replace(include_top=False)}, "'classifier.weight' does not belong"),
    ],
)
def test_what_could_not_be_loaded_is_not_saved(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        folder.save(tmp_path / "m", stored()._replace(**changes))
    assert os.listdir(tmp_path) == []


def test_weights_that_are_not_finite_are_saved_only_when_asked(tmp_path: Path) -> None:
    model = random_model()
    model.tensors["stem.beta"][0] = np.nan
    with pytest.raises(ModelError, match=r"'stem.beta' holds NaN"):
        model.save(tmp_path / "m")
    assert os.listdir(tmp_path) == []
    model.save(tmp_path / "m", allow_nonfinite=True)
    with pytest.raises(ModelError, match=r"model.safetensors: tensor 'stem.beta' holds NaN"):
        load(tmp_path / "m")
    assert same_tensors(load(tmp_path / "m", allow_nonfinite=True).tensors, model.tensors)


def test_edited_weights_load_when_the_config_names_no_hash(tmp_path: Path) -> None:
    folder.save(tmp_path, stored(1))
    edited = random_tensors(SMALL, 9)
    safetensors.numpy.save_file(edited, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"model.safetensors: damaged or replaced: its SHA-256 is"):
        folder.load(tmp_path)
    edit_config(tmp_path, sha256=None)
    assert same_tensors(folder.load(tmp_path).tensors, edited)
    folder.save(tmp_path, stored(2))
    assert same(folder.load(tmp_path), stored(2))


def test_every_damaged_byte_is_found(tmp_path: Path) -> None:
    folder.save(tmp_path, stored())
    path = tmp_path / "model.safetensors"
    good, generator = path.read_bytes(), random.Random(1)
    for _ in range(200 if not DEEP else 5000):
        place = generator.randrange(len(good))
        path.write_bytes(good[:place] + bytes([good[place] ^ 1 << generator.randrange(8)]) + good[place + 1 :])
        with pytest.raises(ModelError, match=r"model.safetensors: "):
            folder.load(tmp_path)


# Failures while saving

WAYS = [
    (call, code)
    for call in ("open", "fsync", "replace", "any")
    for code in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EACCES)
]


class Failing:
    """Stands for `os.open`, `os.fsync` and `os.replace`, and fails at the n-th call that changes the disk."""

    def __init__(self, patch: pytest.MonkeyPatch, call: str, at: int, code: int) -> None:
        self.left, self.code = at, code
        for name in ("open", "fsync", "replace") if call == "any" else (call,):
            patch.setattr(os, name, self._stand_in(name, getattr(os, name)))

    def _stand_in(self, name: str, real):
        def call(*arguments, **named):
            if name != "open" or arguments[1] & os.O_CREAT:
                if self.left == 0:
                    raise OSError(self.code, os.strerror(self.code))
                self.left -= 1
            return real(*arguments, **named)

        return call


@pytest.mark.parametrize("before", [True, False], ids=["over a model", "new"])
@pytest.mark.parametrize(("call", "code"), WAYS)
def test_a_failure_at_any_call_leaves_the_old_model_or_the_new(tmp_path, monkeypatch, call, code, before) -> None:
    old, new = stored(1), stored(2)
    failures = 0
    for at in range(100):
        path = tmp_path / str(at)
        if before:
            folder.save(path, old)
        with monkeypatch.context() as patch:
            Failing(patch, call, at, code)
            message = failure(path, new)
        failed = message is not None
        failures += failed
        assert not failed or (str(path) in message and os.strerror(code) in message)
        if before or path.exists():
            found = folder.load(path)
            assert same(found, new) or (failed and before and same(found, old))
            _assert_no_litter(path)
        else:
            assert failed
        if not failed:
            break
        # Whatever was left, the next save works and clears it away.
        folder.save(path, new)
        assert sorted(os.listdir(path)) == ["README.md", "config.json", "model.safetensors"]
    assert failures == {"open": 3, "fsync": 6, "replace": 4, "any": 13}[call]


def failure(path: Path, given: Stored) -> str | None:
    """Saves a model and returns the error, if there was one."""
    try:
        folder.save(path, given)
    except MobileNetError as error:
        return str(error)
    return None


def _assert_no_litter(path: Path) -> None:
    """At most the weights under the name that the config gives them may be there beside the three files."""
    more = set(os.listdir(path)) - {"README.md", "config.json", "model.safetensors"}
    sha256 = json.loads((path / "config.json").read_text())["sha256"]
    assert more <= {f"model.{sha256[:16]}.safetensors"}


@pytest.mark.parametrize("limit", [100, 1000, 5000, 50_000])
def test_a_full_disk_leaves_the_old_model(tmp_path: Path, limit: int) -> None:
    big = Stored(v1(0.1, 32, 900), random_tensors(v1(0.1, 32, 900)), None, Preprocessing(32, 32), {})
    folder.save(tmp_path / "m", stored(1))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        for path in (tmp_path / "m", tmp_path / "new"):
            with pytest.raises(MobileNetError, match="can't be written: File too large"):
                folder.save(path, big)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert same(folder.load(tmp_path / "m"), stored(1))
    assert sorted(os.listdir(tmp_path / "m")) == ["README.md", "config.json", "model.safetensors"]
    assert os.listdir(tmp_path) == ["m"]


def test_ctrl_c_while_saving_leaves_the_old_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.save(tmp_path, stored(1))

    def interrupt(*_) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(folder, "_config", lambda *_: b"{}")
        patch.setattr(os, "fsync", interrupt)
        with pytest.raises(KeyboardInterrupt):
            folder.save(tmp_path, stored(2))
    assert same(folder.load(tmp_path), stored(1))
    assert sorted(os.listdir(tmp_path)) == ["README.md", "config.json", "model.safetensors"]


def test_staged_weights_stay_while_the_config_can_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They may be the model: the disk failed after the config was written and before the weights had their name."""
    folder.save(tmp_path, stored(1))
    sha256 = json.loads((tmp_path / "config.json").read_text())["sha256"]
    staged = tmp_path / f"model.{sha256[:16]}.safetensors"
    (tmp_path / "model.safetensors").rename(staged)
    real_replace, real_open = os.replace, os.open

    def replace(source, target) -> None:
        if str(target).endswith("model.safetensors"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real_replace(source, target)

    def unreadable(path, *arguments, **named):
        if str(path).endswith("config.json"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real_open(path, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        patch.setattr(folder, "_refuse_other_files", lambda _: patch.setattr(os, "open", unreadable))
        with pytest.raises(MobileNetError, match=r"model.safetensors: can't be written: Input/output error"):
            folder.save(tmp_path, stored(2))
    assert same(folder.load(tmp_path), stored(2))


def test_what_a_killed_process_left_is_cleared_away_later(tmp_path: Path) -> None:
    folder.save(tmp_path, stored(1))
    for name, age in ((".0123456789abcdef.tmp", 4000), (".fedcba9876543210.tmp", 60), ("mine.tmp", 4000)):
        (tmp_path / name).write_bytes(b"half")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    folder.save(tmp_path, stored(2))
    left = {".fedcba9876543210.tmp", "mine.tmp"}  # somebody may be writing to the first
    assert set(os.listdir(tmp_path)) == left | {"README.md", "config.json", "model.safetensors"}


KILLED = """
import os, random, signal, sys, time
os.fsync = lambda _: None  # what was written survives a kill without it
sys.path[:0] = {path!r}
from pathlib import Path
from test_weights import folder, same, stored

place, old, new = Path({place!r}), stored(1), stored(2)
folder.save(place, old)

def killed_at(call):
    left = [call]
    def count(event, arguments):
        if event in ("open", "os.rename", "os.remove"):  # before each of these calls; opening a folder is flushing it
            if left[0] == 0:
                os._exit(9)
            left[0] -= 1
    folder.save(place, old)
    sys.addaudithook(count)
    folder.save(place, new)
    os._exit(0)

def killed_after(seconds):
    while True:
        folder.save(place, old)
        folder.save(place, new)

def outcome(run, argument, seconds):
    child = os.fork()
    if child == 0:
        run(argument)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    found = folder.load(place)
    assert same(found, old) or same(found, new)
    return status, same(found, new)

seen = set()
for call in range(100):
    status, is_new = outcome(killed_at, call, None)
    seen.add(is_new)
    if status == 0:
        break
assert status == 0 and is_new and seen == {{True, False}} and call > 8, (call, seen)
for _ in range({count}):
    outcome(killed_after, None, random.random() * 0.05)
folder.save(place, new)
print(call, [name for name in os.listdir(place) if not name.endswith(".tmp")])
"""


def test_kill_9_at_any_moment_leaves_the_old_model_or_the_new(tmp_path: Path) -> None:
    code = KILLED.format(path=sys.path, place=str(tmp_path), count=50 if not DEEP else 1000)
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}  # a fork copies one thread only
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in ("README.md", "config.json", "'model.safetensors'"))
    assert "model." not in done.stdout.replace("model.safetensors", "")


INTERRUPTED = """
import sys
sys.path[:0] = {path!r}
from mobilenet.storage import tensors_file
from test_weights import folder

class Interrupted(tensors_file.Thread):
    def start(self):
        super().start()
        raise KeyboardInterrupt

tensors_file.Thread = Interrupted
try:
    folder.load({place!r})
except KeyboardInterrupt:
    print("interrupted")
"""


def test_an_interrupt_while_a_model_is_loaded_leaves_no_process_that_does_not_end(tmp_path: Path) -> None:
    folder.save(tmp_path, stored(1))
    code = INTERRUPTED.format(path=sys.path, place=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "interrupted\n"


def test_a_model_may_be_saved_while_it_is_loaded(tmp_path: Path) -> None:
    folder.save(tmp_path, stored(1))
    stop = threading.Event()

    def saves() -> None:
        while not stop.is_set():
            folder.save(tmp_path, stored(1))
            folder.save(tmp_path, stored(2))

    saver = threading.Thread(target=saves)
    saver.start()
    try:
        for _ in range(60):
            found = folder.load(tmp_path)
            assert same(found, stored(1)) or same(found, stored(2))
    finally:
        stop.set()
        saver.join()
