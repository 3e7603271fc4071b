import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mobilenet import photos
from mobilenet.arch import v1
from mobilenet.data import dataset as datasets
from mobilenet.errors import DatasetError, ModelError, UsageError
from mobilenet.evaluation.evaluate import evaluate
from mobilenet.model import Model, create
from mobilenet.photos.preprocessing import Preprocessing
from mobilenet.runner import Runner, runner

LABELS = ("ant", "bee", "cat")


@pytest.fixture(scope="module")
def model() -> Model:
    made = create(v1(0.1, 32, 3), seed=4, labels=LABELS, preprocessing=Preprocessing(32, 32))
    rng = np.random.default_rng(2)
    # Fresh weights answer nearly the same to every photo: a wider classifier tells them apart.
    made.tensors["classifier.weight"] = 20 * rng.normal(size=made.tensors["classifier.weight"].shape).astype(np.float32)
    return made


def fill(root: Path, counts: dict[str, int]) -> Path:
    """Writes photos of noise into folders, `counts` of each."""
    seed = 0
    for folder, count in counts.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            seed += 1
            noise = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), np.uint8)
            Image.fromarray(noise).resize((40, 36), Image.Resampling.BICUBIC).save(root / folder / f"{number}.png")
    return root


def test_results_are_the_engines_answers_in_the_order_of_the_data(model, tmp_path):
    root = fill(tmp_path, {"test/ant": 3, "test/bee": 4, "test/cat": 5, "train/ant": 1, "train/bee": 1, "train/cat": 1})
    seen = []
    found = evaluate(model, root, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(done, 12) for done in range(1, 13)]
    assert (found.split, found.labels, found.root) == ("test", LABELS, root)
    assert [result.path for result in found.results] == sorted(f"test/{c}/{n}.png" for c, n in [
        *(("ant", n) for n in range(3)), *(("bee", n) for n in range(4)), *(("cat", n) for n in range(5))
    ])  # fmt: skip
    engine = runner(model)
    for result in found.results:
        assert LABELS[result.label] == result.path.split("/")[1]
        logits = engine(photos.pixels(root / result.path, model.preprocessing)[None])[0]
        assert result.predicted == logits.argmax()
        assert result.rank == int((logits > logits[result.label]).sum())
    assert len({result.predicted for result in found.results}) > 1  # the photos do get different answers
    assert found.confusion.sum() == 12


@pytest.mark.parametrize(
    ("folders", "split", "chosen", "count"),
    [
        (("train", "val", "test"), None, "test", 4),
        (("train", "val"), None, "val", 4),
        (("test",), None, "test", 4),
        (("train", "val", "test"), "val", "val", 4),
        (("train", "val", "test"), "train", "train", 4),
        (("train", "val", "test"), "all", "all", 12),
    ],
)
def test_the_split_is_test_else_val_or_the_one_asked_for(model, tmp_path, folders, split, chosen, count):
    root = fill(tmp_path, {f"{folder}/{label}": 2 for folder in folders for label in ("ant", "bee")})
    found = evaluate(model, root, split=split)
    assert (found.split, len(found.results)) == (chosen, count)


def test_a_data_set_without_val_and_test_is_taken_whole(model, tmp_path):
    root = fill(tmp_path, {"ant": 4, "bee": 4})
    whole = datasets.read(root, validation=0)
    assert evaluate(model, whole).split == "all"
    assert len(evaluate(model, whole).results) == len(evaluate(model, root).results) == 8
    with pytest.raises(DatasetError, match="the split 'test' has no photos; held are train"):
        evaluate(model, whole, split="test")
    with pytest.raises(UsageError, match="split: got 'tests', needed one of None, 'train'"):
        evaluate(model, whole, split="tests")


def test_the_split_that_the_training_wrote_is_kept(model, tmp_path):
    root = fill(tmp_path / "photos", {"ant": 8, "bee": 8})
    wrote = tmp_path / "split.jsonl"
    of_training = datasets.read(root, seed=7, validation=0.5)
    datasets.save_split(of_training, wrote)
    found = evaluate(model, root, split_file=wrote)
    assert [result.path for result in found.results] == [photo.path for photo in of_training.of("val")]
    assert found != evaluate(model, root, split_file=tmp_path / "none.jsonl")


def test_classes_are_matched_by_name(model, tmp_path):
    root = fill(tmp_path, {"cat": 4, "bee": 4})
    known = datasets.read(root)
    assert known.classes == ("bee", "cat")
    for found in (evaluate(model, known, split="all"), evaluate(model, root, split="all")):
        assert [result.label for result in found.results] == [1] * 4 + [2] * 4
        assert [each.support for each in found.classes] == [0, 4, 4]
    fill(tmp_path, {"dodo": 1})
    for source in (root, datasets.read(root)):
        with pytest.raises(DatasetError, match="dodo"):
            evaluate(model, source)


def test_broken_photos_are_set_aside_and_named(model, tmp_path):
    root = fill(tmp_path, {"ant": 10, "bee": 10})
    (root / "ant/3.png").write_bytes(b"<html>")
    known = datasets.read(root)
    os.unlink(root / "bee/0.png")  # vanishes after the folder was read
    found = evaluate(model, known, split="all")
    assert [photo.path for photo in found.broken] == ["ant/3.png", "bee/0.png"]
    assert found.broken[1].reason == "can't be read: No such file or directory"
    assert len(found.results) == 18
    assert not {"ant/3.png", "bee/0.png"} & {result.path for result in found.results}


def test_too_many_broken_photos_stop_it(model, tmp_path):
    root = fill(tmp_path, {"ant": 10, "bee": 10})
    for number in range(3):
        (root / f"ant/{number}.png").write_bytes(b"")
    with pytest.raises(
        DatasetError, match=r"3 or more of 20 photos can't be read, 10% of them may.*ant/0\.png: "
    ) as error:
        evaluate(model, root, split="all")
    assert error.value.exit_code == 3
    assert len(evaluate(model, root, split="all", max_broken=0.15).broken) == 3
    with pytest.raises(DatasetError, match="1 or more of 20"):
        evaluate(model, root, split="all", max_broken=0)


def test_a_data_set_of_broken_photos_is_none(model, tmp_path):
    root = fill(tmp_path, {"ant": 1, "bee": 1})
    for label in ("ant", "bee"):
        (root / f"{label}/0.png").write_bytes(b"")
    with pytest.raises(DatasetError, match="2 or more of 2 photos"):
        evaluate(model, root, split="all", max_broken=1.0)


def test_arguments_outside_their_rule_are_refused(model, tmp_path):
    root = fill(tmp_path, {"ant": 2, "bee": 2})
    with pytest.raises(UsageError, match="max_broken: got 2"):
        evaluate(model, root, max_broken=2)
    with pytest.raises(UsageError, match="has no classifier"):
        evaluate(model.without_top(), root)


def test_an_answer_that_is_not_finite_names_the_photo(model, tmp_path, monkeypatch):
    root = fill(tmp_path, {"ant": 2, "bee": 2})
    monkeypatch.setattr(Runner, "one", lambda self, pixels: np.full(3, np.nan, np.float32))
    with pytest.raises(ModelError, match=r"answer for ant/0\.png is not finite"):
        evaluate(model, root, split="all")
