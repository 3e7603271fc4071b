import csv
import io
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mobilenet.evaluation.predict as predict
from mobilenet import photos
from mobilenet.arch import v1
from mobilenet.common.parallel import AHEAD
from mobilenet.errors import DataError, PhotoError, UsageError
from mobilenet.evaluation.predict import Row, answers, photo_paths, predict_paths, write_rows
from mobilenet.model import Model
from mobilenet.photos.preprocessing import Preprocessing
from mobilenet.runner import Runner, runner
from mobilenet.weights import initial
from photo_makers import scene

LABELS = ("cat", "dog", "fish, raw", "bird", "bee", "ox")
PREPROCESSING = Preprocessing(32, 32, 3)


@pytest.fixture(scope="module")
def model() -> Model:
    network = v1(0.1, 32, len(LABELS))
    tensors = initial(network, seed=1)
    rng = np.random.default_rng(2)
    # Fresh weights answer nearly the same to every photo: a wider classifier tells them apart.
    tensors["classifier.weight"] = rng.normal(size=tensors["classifier.weight"].shape).astype(np.float32)
    return Model(network, tensors, LABELS, PREPROCESSING, {})


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def photo(path: Path | str, seed: int = 0) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    Image.fromarray(noise).resize((48, 40), Image.Resampling.BICUBIC).save(path)
    return path


def listed(*arguments: str | Path) -> list[str]:
    return [path.as_posix() for path in photo_paths(arguments)]


# Arguments


def test_files_stand_for_themselves_in_the_order_given(here):
    assert listed("b.txt", "a.jpg", Path("b.txt")) == ["b.txt", "a.jpg", "b.txt"]


def test_a_folder_gives_its_photos_at_any_depth_in_sorted_order(here):
    for name in (
        "b.PNG",
        "a.jpg",
        "10.webp",
        "9.webp",
        "notes.txt",
        ".hidden.jpg",
        "z/deep/c.gif",
        "a/x.bmp",
        ".git/y.jpg",
    ):
        photo(f"photos/{name}") if not name.endswith("txt") else Path(f"photos/{name}").write_text("x")
    names = ["10.webp", "9.webp", "a.jpg", "b.PNG", "a/x.bmp", "z/deep/c.gif"]
    assert listed("photos") == [f"photos/{name}" for name in names]


def test_links_to_folders_are_followed_once(here):
    photo("a/b/1.png")
    os.symlink(here / "a", here / "a/b/back")
    os.symlink("nowhere", here / "a/gone.jpg")
    os.symlink("self.jpg", here / "a/self.jpg")
    assert listed("a") == ["a/gone.jpg", "a/self.jpg", "a/b/1.png"]


def test_patterns_that_the_shell_left_are_expanded_and_files_named_like_one_are_not(here):
    for name in ("2.jpg", "1.jpg", "in/3.jpg", "in/deep/4.jpg"):
        photo(name)
    assert listed("*.jpg") == ["1.jpg", "2.jpg"]
    assert listed("**/*.jpg") == ["1.jpg", "2.jpg", "in/3.jpg", "in/deep/4.jpg"]
    assert listed("i[n]") == ["in/3.jpg", "in/deep/4.jpg"]
    assert listed("no*.jpg") == ["no*.jpg"]
    photo("[1].jpg")
    assert listed("[1].jpg") == ["[1].jpg"]


def test_a_folder_named_as_standard_input_is_a_folder(here):
    photo("-/1.jpg")
    assert listed("./-") == ["-/1.jpg"]


def test_lists_give_a_path_a_line_and_standard_input_too(here, monkeypatch):
    photo("in/2.jpg")
    Path("list.txt").write_bytes(b"a b.jpg\r\n\nin\n@list.txt\ncaf\xe9.jpg")
    names = ["a b.jpg", "in/2.jpg", "@list.txt", os.fsdecode(b"caf\xe9.jpg")]
    assert listed("@list.txt") == names
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(Path("list.txt").read_bytes())))
    assert listed("-", "last.jpg") == [*names, "last.jpg"]


def test_a_photo_whose_name_begins_as_a_lists_does_is_a_photo(here):
    photo("@1.jpg")
    Path("1.jpg").write_text("other.jpg")
    assert listed("@1.jpg") == ["@1.jpg"]


def test_a_list_that_is_none_is_refused_before_any_path(here):
    with pytest.raises(DataError, match=r"^gone\.txt: can't be read as a list"):
        photo_paths(["a.jpg", "@gone.txt"])
    with pytest.raises(DataError, match="can't be read as a list"):
        photo_paths([f"@{here}"])
    Path("binary").write_bytes(b"a.jpg\n" + bytes(predict.LINE_LIMIT))
    paths = photo_paths(["@binary"])
    assert next(paths) == Path("a.jpg")
    with pytest.raises(DataError, match="binary: line 2 has 65,536 bytes or more"):
        next(paths)


def test_paths_come_one_by_one(here):
    def endless():
        while True:
            yield b"a.jpg\n"

    class Endless:
        lines = endless()

        def readline(self, limit):
            return next(self.lines)

    assert next(predict._listed(Endless(), "endless")) == Path("a.jpg")


# Logits


def test_answers_are_in_order_with_errors_in_their_place_and_a_bounded_number_ahead(here, model):
    names = [photo(f"{n:02}.png", seed=n) for n in range(30)]
    names[4].write_bytes(b"no photo")
    taken = []

    def counted():
        for name in names:
            taken.append(name)
            yield name

    engines = runner(model, 3), runner(model, 1)
    found = answers(counted(), PREPROCESSING, *engines)
    first = next(found)
    assert len(taken) == AHEAD * 3
    rest = [first, *found]
    assert len(rest) == len(names)
    for name, logits in zip(names, rest, strict=True):
        if name == names[4]:
            assert isinstance(logits, PhotoError)
        else:
            expected = engines[0](photos.pixels(name, PREPROCESSING)[None])[0]
            assert [(one == expected).all() for one in logits] == [True, True]


def test_jpegs_are_resized_by_the_engines_resampler(here, model, monkeypatch):
    class Inverted:
        """Resizes as Pillow does, and inverts what it makes."""

        size = (PREPROCESSING.height, PREPROCESSING.width)

        def takes(self, height, width):
            return True

        def __call__(self, given, box, interpolation):
            resized = Image.fromarray(given[..., :3]).resize(self.size[::-1], Image.Resampling.BILINEAR, box)
            return 255 - np.asarray(resized)

    Image.fromarray(scene(90, 70)).save("a.jpg")
    engine = runner(model)
    [plain] = answers([Path("a.jpg")], PREPROCESSING, engine)
    pixels = photos.pixels("a.jpg", PREPROCESSING)
    assert (plain[0] == engine.one(pixels)).all()
    monkeypatch.setattr(engine, "resampler", Inverted())
    [inverted] = answers([Path("a.jpg")], PREPROCESSING, engine)
    assert (inverted[0] == engine.one(255 - pixels)).all()


def test_what_was_worked_on_ahead_is_dropped_when_the_reader_stops(here, model):
    names = [photo(f"{n}.png") for n in range(6)]
    found = answers(names, PREPROCESSING, runner(model))
    next(found)
    found.close()
    with pytest.raises(StopIteration):
        next(found)


# Labels


def test_rows_hold_the_likeliest_labels_of_the_engine(here, model):
    names = [photo(f"{n}.png", seed=n) for n in range(5)]
    rows = list(predict_paths(model, names, top=3))
    assert [row.path for row in rows] == names
    engine = runner(model)
    for row in rows:
        logits = engine(photos.pixels(row.path, model.preprocessing)[None])[0].astype(np.float64)
        shares = np.exp(logits) / np.exp(logits).sum()
        best = sorted(range(len(LABELS)), key=lambda n, shares=shares: -shares[n])[:3]
        assert [label for label, _ in row.predictions] == [LABELS[n] for n in best]
        # computed in float64, kept in float32
        assert [share for _, share in row.predictions] == pytest.approx(
            shares[best], rel=float(np.finfo(np.float32).eps)
        )
    assert len({row.predictions[0] for row in rows}) > 1  # the photos do get different answers


def test_more_labels_than_classes_give_all_and_they_sum_to_one(here, model):
    [row] = predict_paths(model, [photo("a.png")], top=50)
    assert sorted(label for label, _ in row.predictions) == sorted(LABELS)
    assert sum(share for _, share in row.predictions) == pytest.approx(1, rel=6 * float(np.finfo(np.float32).eps))


def test_broken_photos_get_an_error_and_the_rest_goes_on(here, model):
    Path("empty.jpg").touch()
    Path("page.jpg").write_text("<html>" * 100)
    Path("none").mkdir()
    os.mkfifo("pipe.jpg")
    good = [photo("a.png"), photo("b.png", 1)]
    bad = ["empty.jpg", "page.jpg", "none", "pipe.jpg", "gone.jpg", "x" * 300 + ".jpg", "nul\0.jpg"]
    rows = list(predict_paths(model, photo_paths([good[0], *bad, good[1]])))
    assert [row.error is None for row in rows] == [True, *[False] * len(bad), True]
    errors = {str(row.path): row.error for row in rows if row.error}
    assert errors["none"] == "no photos in this folder"
    assert "FIFO" in errors["pipe.jpg"]
    assert "No such file" in errors["gone.jpg"]
    assert not any(error.startswith(path) for path, error in errors.items())  # the path is beside it
    assert all(row.predictions == () for row in rows if row.error)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
def test_an_unreadable_folder_is_an_error_row(here, model):
    photo("open/a.png")
    photo("open/shut/b.png")
    os.chmod("open/shut", 0)
    rows = list(predict_paths(model, photo_paths(["open"])))
    os.chmod("open/shut", 0o700)
    assert [row.error for row in rows] == [None, "the folder can't be read"]


def test_a_folder_that_vanishes_is_an_error_row(here, model, monkeypatch):
    photo("a/1.png")

    def refuse(path):
        raise PermissionError(13, "Permission denied", path)

    with monkeypatch.context() as patch:
        patch.setattr(predict.os, "scandir", refuse)
        assert listed("a") == ["a"]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_answer_that_is_not_finite_is_an_error_row(here, model, bad, monkeypatch):
    answers = {0: [0, 0, 0, 0, 0, 1], 1: [0, 0, bad, 0, 0, 0]}
    monkeypatch.setattr(photos, "pixels", lambda path, *_, **__: int(path.stem == "b"))
    monkeypatch.setattr(Runner, "one", lambda self, pixels: np.array(answers[pixels], np.float32))
    rows = list(predict_paths(model, [photo("a.png"), photo("b.png")], top=1))
    assert rows[0].predictions[0][0] == "ox"
    assert rows[1].error == "the model's answer is not finite; are its weights whole?"


def test_arguments_outside_their_rule_are_refused_at_once(model):
    with pytest.raises(UsageError, match="top: got 0"):
        predict_paths(model, [], top=0)
    with pytest.raises(UsageError, match="has no classifier"):
        predict_paths(model.without_top(), [])


# Text

ROWS = [
    Row(Path("a.jpg"), (("cat", 0.7512345678), ("fish, raw", 0.2))),
    Row(Path("dir/broken.jpg"), error='is "empty"'),
    Row(Path('new\nline,"quoted"\r.jpg'), (("a\x1bred", 1.0), ("\u732b", 1e-9))),
]


def test_json_lines_hold_a_row_each():
    out = io.StringIO()
    assert write_rows(iter(ROWS), "jsonl", out) == 1
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert lines[0] == {
        "path": "a.jpg",
        "predictions": [{"label": "cat", "probability": 0.751235}, {"label": "fish, raw", "probability": 0.2}],
    }
    assert lines[1] == {"path": "dir/broken.jpg", "error": 'is "empty"'}
    assert lines[2]["path"] == str(ROWS[2].path)
    assert lines[2]["predictions"][1]["probability"] == 1e-9


@pytest.mark.parametrize("rows", [[], ROWS[:1], ROWS])
def test_json_is_one_document(rows):
    out = io.StringIO()
    failed = write_rows(iter(rows), "json", out)
    assert json.loads(out.getvalue()) == {"photos": [row.to_dict() for row in rows], "failed": failed}


@pytest.mark.parametrize(
    ("error", "text", "code"), [(DataError("list: x"), "list: x", 3), (KeyboardInterrupt(), "interrupted", 130)]
)
def test_json_is_one_document_after_an_error_too(error, text, code):
    def rows():
        yield ROWS[0]
        raise error

    out = io.StringIO()
    with pytest.raises(type(error)):
        write_rows(rows(), "json", out)
    wanted = {"photos": [ROWS[0].to_dict()], "failed": 0, "error": text, "exit_code": code}
    assert json.loads(out.getvalue()) == wanted


def test_csv_reads_back_as_written():
    out = io.StringIO(newline="")
    assert write_rows(iter(ROWS), "csv", out) == 1
    assert list(csv.reader(io.StringIO(out.getvalue(), newline=""))) == [
        ["path", "rank", "label", "probability", "error"],
        ["a.jpg", "1", "cat", "0.751235", ""],
        ["a.jpg", "2", "fish, raw", "0.2", ""],
        ["dir/broken.jpg", "", "", "", 'is "empty"'],
        [str(ROWS[2].path), "1", "a\x1bred", "1.0", ""],
        [str(ROWS[2].path), "2", "\u732b", "1e-09", ""],
    ]


def test_names_that_are_not_utf8_can_be_written_as_utf8():
    rows = [Row(Path(os.fsdecode(b"caf\xe9.jpg")), (("cat", 0.5),))]
    for format in ("table", "csv", "jsonl", "json"):
        out = io.StringIO()
        write_rows(iter(rows), format, out)
        assert "caf" in out.getvalue().encode().decode()
    assert json.loads(out.getvalue())["photos"][0]["path"] == str(rows[0].path)  # JSON's escape keeps the byte


def test_the_table_is_aligned_and_printable():
    out = io.StringIO()
    assert write_rows(iter(ROWS), "table", out) == 1
    assert out.getvalue().splitlines() == [
        "photo                     label      probability",
        "a.jpg                     cat              75.1%",
        "                          fish, raw        20.0%",
        'dir/broken.jpg            error: is "empty"',
        'new\\nline,"quoted"\\r.jpg  a\\x1bred        100.0%',
        "                          \u732b                0.0%",
    ]


def test_long_names_are_cut_in_the_middle_and_late_rows_keep_the_columns():
    rows = [Row(Path(f"{n}.jpg"), (("cat", 0.5),)) for n in range(20)]
    rows += [Row(Path("folder/" * 20 + "last.jpg"), (("\u732b" * 50, 0.25),))]
    out = io.StringIO()
    write_rows(iter(rows), "table", out)
    lines = out.getvalue().splitlines()
    assert lines[-1] == "fo\u2026jpg  \u732b\u2026\u732b        25.0%"
    assert [len(line) for line in lines[:-1]] == [len(lines[0])] * 21
    assert {predict._width(line) for line in lines} == {len(lines[0])}


def test_rows_are_written_as_they_come():
    out = io.StringIO()

    def rows():
        yield ROWS[0]
        assert json.loads(out.getvalue())["path"] == "a.jpg"
        yield ROWS[1]

    assert write_rows(rows(), "jsonl", out) == 1


def test_an_unknown_format_is_refused():
    with pytest.raises(UsageError, match=r"format: got 'xml', needed one of 'table', 'jsonl', 'json', 'csv'"):
        write_rows([], "xml", io.StringIO())  # type: ignore[arg-type]
