import base64
import io
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mobilenet.arch import v1, v2
from mobilenet.cost import cost
from mobilenet.data.layouts import SetAside
from mobilenet.engine import Engine
from mobilenet.errors import DataError
from mobilenet.evaluation import charts, report
from mobilenet.evaluation.activation import activation_maps, explained
from mobilenet.evaluation.charts import Axis, Series
from mobilenet.evaluation.metrics import Evaluation, score
from mobilenet.evaluation.report import read_metrics, write_report
from mobilenet.model import Model
from mobilenet.photos.preprocessing import Preprocessing
from mobilenet.weights import initial

HOSTILE = "<script>alert(1)</script>\"'&"
VOID = {"meta", "img", "br", "rect", "line", "path", "circle"}


class Page(HTMLParser):
    """Reads a page, checks that its tags nest, and collects them with their text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.texts.append(data)

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]

    @property
    def text(self) -> str:
        return " ".join(self.texts)


def made(tmp_path: Path, classes: int = 4, channels: int = 3, count: int = 30, **changes) -> tuple[Model, Evaluation]:
    """Returns a model and an evaluation over real files, with random answers."""
    rng = np.random.default_rng(classes)
    network = v2(0.1, (32, 40), classes, channels=channels)
    labels = changes.pop("labels", None) or tuple(f"class {n}" for n in range(classes))
    notes = changes.pop("notes", {"training": {"epochs": 3}})
    preprocessing = Preprocessing(32, 40, channels)
    model = Model(network, initial(network, seed=1), labels, preprocessing, notes)
    root = tmp_path / "photos"
    root.mkdir()
    paths = [f"{n}.png" for n in range(count)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8)).save(root / path)
    truth = rng.integers(0, classes, count)
    logits = rng.normal(size=(count, classes)) * 2
    results = tuple(score(paths, truth.tolist(), logits.astype(np.float32)))
    return model, replace(Evaluation(root, labels, "val", results), **changes)


def written(tmp_path: Path, model: Model, found: Evaluation, metrics=None) -> tuple[str, Page]:
    path = tmp_path / "report.html"
    write_report(path, model, found, metrics)
    text = path.read_text("utf-8")
    return text, Page(text)


def epochs(count: int = 10) -> list[dict[str, float]]:
    return [
        {"epoch": n, "train_loss": 2 / n, "val_loss": 2 / n + 0.01 * n, "val_top1": 1 - 1 / n, "seconds": 60}
        for n in range(1, count + 1)
    ]


def test_the_report_holds_the_figures_and_loads_and_runs_nothing(tmp_path):
    model, found = made(tmp_path, broken=(SetAside("bad.jpg", "is empty"),))
    text, page = written(tmp_path, model, found, epochs())
    costs = cost(model.network)
    for figure in (
        f"{found.top1:.1%}",
        f"{found.loss:.3f}",
        f"{found.calibration_error:.1%}",
        f"{found.balanced_accuracy:.1%}",
        f"{costs.macs:,}",
        f"{costs.params:,}",
        f"{costs.standard.macs / costs.macs:.1f} times fewer",
        "bad.jpg",
        "is empty",
        "10 epochs in 10 minutes",
        str(model.network),
    ):
        assert figure in page.text
    assert [attrs["content"] for attrs in page.named("meta") if "http-equiv" in attrs] == [
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    ]
    assert not {"script", "link", "iframe", "object", "form", "base"} & {tag for tag, _ in page.tags}
    for _, attrs in page.tags:
        assert not {"href", "xlink:href", "srcset"} & attrs.keys()
        assert not any(name.startswith("on") for name in attrs)
    assert all(attrs["src"].startswith("data:image/jpeg;base64,") for attrs in page.named("img"))
    assert "http:" not in text
    assert "https:" not in text
    assert "@import" not in text
    assert "url(" not in text
    assert "prefers-color-scheme: dark" in text
    assert len(text) < 500_000


def test_everything_has_a_text_for_those_who_do_not_see_it(tmp_path):
    model, found = made(tmp_path)
    _, page = written(tmp_path, model, found, epochs())
    assert page.named("html") == [{"lang": "en"}]
    assert all(attrs.get("alt") for attrs in page.named("img"))
    assert len(page.named("svg")) == 4  # two curves, confusion, reliability
    assert all(attrs["role"] == "img" and attrs["aria-label"] for attrs in page.named("svg"))
    assert all(attrs.get("scope") == "col" for attrs in page.named("th"))
    assert [tag for tag, _ in page.tags].count("h1") == 1


def luminance(colour: str) -> float:
    parts = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", [0, 1])
def test_texts_stand_out_from_what_is_behind_them(scheme):
    """WCAG 2.1, 1.4.3: a contrast of 4.5 for texts."""
    blocks = re.findall(r":root \{(.*?)\}", report.PAGE.replace("{{", "{").replace("}}", "}"), re.DOTALL)
    colours = dict(re.findall(r"--(\w+): (#\w{6})", blocks[scheme]))
    pairs = [(ink, back) for ink in ("ink", "quiet", "blue", "orange") for back in ("page", "card", "soft")]
    for ink, back in [*pairs, ("on", "blue"), ("on", "orange")]:
        light, dark = sorted((luminance(colours[ink]), luminance(colours[back])), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (ink, back)


def test_names_and_notes_from_outside_are_text(tmp_path):
    labels = (HOSTILE, HOSTILE + "2", "\u202ereversed {title}", "x" * 900)
    model, found = made(tmp_path, labels=labels, notes={HOSTILE: {HOSTILE: [HOSTILE, 1]}})
    results = tuple(replace(result, path=f"{HOSTILE}\udce9.png") for result in found.results)
    broken = (SetAside(HOSTILE + "\n.jpg", HOSTILE),)
    root = tmp_path / "<img src=x onerror=y>"
    text, page = written(tmp_path, model, replace(found, results=results, broken=broken, root=root))
    assert "script" not in {tag for tag, _ in page.tags}
    assert page.named("img") == []  # the hostile one is none, the others have no file
    assert page.text.count("<script>alert(1)</script>") > 20
    assert "The photo can’t be read any more." in page.text
    assert "x" * 100 not in text
    assert "\u202e" not in text
    assert "<img src=x onerror=y>" in page.text


def test_many_classes_give_pairs_and_a_bounded_page(tmp_path):
    model, found = made(
        tmp_path, classes=300, count=400, broken=tuple(SetAside(f"{n}.jpg", "bad " * 99) for n in range(200))
    )
    text, page = written(tmp_path, model, found, epochs(5000))
    assert "Most frequent confusions" in page.text
    assert "Confusion matrix" not in page.text
    assert "The 40 classes with the lowest F1" in page.text
    assert "200 photos could not be read and count for nothing above. The first 50:" in page.text
    assert len(page.named("img")) == 2 * report.MISTAKES
    assert len(text) < 500_000


def test_between_17_and_40_classes_the_matrix_has_no_counts(tmp_path):
    model, found = made(tmp_path, classes=20)
    text, page = written(tmp_path, model, found)
    assert "Confusion matrix" in page.text
    assert 'class="count' not in text
    pair = found.confusions[0]
    assert f"class {pair.label}: {pair.count} of its photos" in page.text


def test_without_metrics_there_are_no_curves_and_without_mistakes_no_pictures(tmp_path):
    model, found = made(tmp_path)
    right = tuple(replace(result, predicted=result.label, rank=0, probability=1.0) for result in found.results)
    _, page = written(tmp_path, model, replace(found, results=right))
    assert "How it learned" not in page.text
    assert page.named("img") == []
    assert "Broken photos" not in page.text
    assert "On average its probabilities are as high as they should be." in page.text


def test_two_classes_have_no_top_tile_but_the_number_of_photos(tmp_path):
    model, found = made(tmp_path, classes=2, count=10)
    _, page = written(tmp_path, model, found)
    assert "Top-2" not in page.text
    assert "of 2 classes" in page.text


@pytest.mark.parametrize(("probability", "says"), [(0.99, "It is too sure"), (0.01, "It is too modest")])
def test_the_verdict_says_which_way_the_probabilities_are_wrong(tmp_path, probability, says):
    model, found = made(tmp_path)
    results = tuple(replace(result, probability=probability) for result in found.results)
    _, page = written(tmp_path, model, replace(found, results=results))
    assert says in page.text


def test_the_same_input_gives_the_same_file(tmp_path):
    model, found = made(tmp_path)
    assert written(tmp_path, model, found, epochs())[0] == written(tmp_path, model, found, epochs())[0]


# Metrics of the training


def test_metrics_are_read_from_a_model_folder_or_a_file(tmp_path):
    assert read_metrics(tmp_path) == []
    path = tmp_path / "training" / "metrics.jsonl"
    path.parent.mkdir()
    path.write_text("".join(json.dumps(row) + "\n" for row in epochs(3)) + '{"epoch": 4, "tr')
    assert read_metrics(tmp_path) == read_metrics(path) == epochs(3)
    model, found = made(tmp_path)
    _, page = written(tmp_path, model, found, tmp_path)
    assert "3 epochs in 3 minutes" in page.text


@pytest.mark.parametrize("line", ["[1]", "{", "[" * 100_000, "\xff"])
def test_a_line_that_is_no_object_is_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"epoch": 1}\n' + line.encode("latin-1") + b"\n")
    with pytest.raises(DataError, match=r"metrics\.jsonl: line 2 is not a JSON object"):
        read_metrics(path)


def test_values_that_are_no_numbers_are_left_out(tmp_path):
    rows = [
        {"epoch": 1, "train_loss": math.nan, "val_loss": "low", "val_top1": True},
        {"epoch": None, "train_loss": 1.0},
        {"epoch": 2, "train_loss": 1.0, "val_loss": math.inf},
    ]
    model, found = made(tmp_path)
    _, page = written(tmp_path, model, found, rows)
    assert len(page.named("svg")) == 3  # no accuracy
    assert [attrs["class"] for attrs in page.named("circle")] == ["dot train"]  # one point is a dot


def test_a_long_curve_keeps_its_extremes():
    rows = [{"epoch": n, "val_loss": math.sin(n)} for n in range(10_000)]
    rows[7777]["val_loss"], rows[5]["val_loss"] = -3.0, 3.0
    points = report._curve(rows, "val_loss")
    assert len(points) <= report.POINTS
    assert points == sorted(points)
    assert (7777, -3) in points
    assert (5, 3) in points
    assert report._curve(rows[:400], "val_loss") == report._points(rows[:400], "val_loss")


# Charts


@pytest.mark.parametrize("span", [(0, 1), (0, 0.03), (-5, 17), (1e-9, 3e-9), (0, 12345678), (0.2, 0.9)])
def test_ticks_are_round_within_the_axis_and_about_as_many_as_asked_for(span):
    axis = Axis(*span, 0, 100)
    ticks = axis.ticks(5)
    assert 2 <= len(ticks) <= 7
    step = ticks[1] - ticks[0]
    slack = 1e-6 * step
    assert span[0] - slack <= ticks[0] < ticks[-1] <= span[1] + slack
    mantissa = step / 10 ** math.floor(math.log10(step) + 1e-9)
    assert min(abs(mantissa - nice) for nice in (1, 2, 5)) < 1e-6
    assert all(abs(value / step - round(value / step)) < 1e-6 for value in ticks)


def test_an_axis_of_epochs_has_whole_numbers():
    assert Axis(1, 3, 0, 100).ticks(6, whole=True) == [1, 2, 3]


def test_a_line_goes_where_its_points_are():
    drawn = charts.line_chart("t", "d", [Series("val", [(0, 0.0), (10, 1.0)])], "epoch", percent=True)
    left, right = charts.LEFT, charts.WIDTH - charts.RIGHT
    path = re.search(r'd="M(\S+) (\S+)L(\S+) (\S+)"', drawn)
    x0, y0, x1, y1 = map(float, path.groups())
    assert (x0, y0, x1, y1) == (left, charts.HEIGHT - charts.BOTTOM, right, charts.TOP)
    assert ">100%</text>" in drawn


@pytest.mark.parametrize("value", [0.0, 1.0, -2.0, 1e-12, 1e12])
@pytest.mark.parametrize("percent", [True, False])
def test_a_level_line_and_a_single_point_can_be_drawn(value, percent):
    for points in ([(1, value)], [(1, value), (2, value)]):
        drawn = charts.line_chart("t", "d", [Series("val", points, "highest")], "epoch", percent)
        numbers = [float(n) for n in re.findall(r'[xy12]="(-?[\d.]+)"', drawn)]
        assert all(-20 <= n <= charts.WIDTH for n in numbers)
        assert "nan" not in drawn


def test_the_mark_names_the_best_value():
    drawn = charts.line_chart("t", "d", [Series("val", [(1, 3.0), (2, 1.5), (3, 2.0)], "lowest")], "epoch")
    assert re.search(r'<text class="mark val"[^>]*>1.5</text>', drawn)
    drawn = charts.line_chart("t", "d", [Series("val", [(1, 0.3), (2, 0.15)], "highest")], "epoch", percent=True)
    assert re.search(r'<text class="mark val"[^>]*>30.0%</text>', drawn)


def test_the_matrix_shows_each_count_and_says_it():
    drawn = charts.confusion_chart([[8, 2], [0, 12345]], ["a", "b"])
    assert "<title>a: 2 of its photos (20.0%) labelled b</title>" in drawn
    assert "<title>b: 12,345 of its photos (100.0%) labelled b</title>" in drawn
    assert re.findall(r'class="count[^>]*>([^<]*)<', drawn) == ["8", "2", "12k"]
    assert drawn.count('<rect class="right"') == 2
    assert drawn.count('<rect class="wrong"') == 1


@pytest.mark.parametrize(
    ("count", "text"),
    [(7, "7"), (999, "999"), (1000, "1.0k"), (9949, "9.9k"), (9999, "10k"), (999_499, "999k"), (999_500, "1.0M")],
)
def test_counts_fit_their_cell(count, text):
    assert charts._short(count) == text


def test_the_reliability_diagram_draws_the_bins_that_hold_photos(tmp_path):
    _, found = made(tmp_path)
    drawn = charts.reliability_chart(found.bins)
    assert drawn.count('<rect class="accuracy"') == sum(each.count > 0 for each in found.bins)
    fullest = max(found.bins, key=lambda each: each.count)
    assert f"{fullest.count} photos, said {fullest.confidence:.1%}, right {fullest.accuracy:.1%}" in drawn


@pytest.mark.parametrize(
    ("count", "text"), [(999, "999"), (1000, "1k"), (568_740_352, "569M"), (27_969_024, "28M"), (3_504_872, "3.5M")]
)
def test_amounts_have_three_digits(count, text):
    assert report._amount(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(1, "1 second"), (89, "89 seconds"), (90, "2 minutes"), (7000, "117 minutes"), (9000, "2.5 hours")],
)
def test_durations_are_rounded_to_what_matters(seconds, text):
    assert report._duration(seconds) == text


# Class activation maps


@pytest.mark.parametrize("network", [v1(0.25, (64, 96), 5), v2(0.35, 64, 5, downsampling=8)], ids=str)
def test_the_mean_of_a_map_and_the_bias_are_the_logit(network):
    rng = np.random.default_rng(0)
    tensors = initial(network, seed=3)
    tensors["classifier.bias"] = rng.normal(size=5).astype(np.float32)
    model = Model(network, tensors, tuple("abcde"), Preprocessing(network.height, network.width), {})
    pixels = rng.integers(0, 256, (3, *network.input), np.uint8)
    classes = [4, 0, 2]
    maps = activation_maps(model, pixels, classes)
    last = network.layers[-3].output
    assert maps.shape == (3, last.height, last.width)
    logits = Engine(model)(pixels)[np.arange(3), classes]
    weights = float(np.abs(tensors["classifier.weight"]).max())
    # float32 sums of channels x positions terms, features at most 6 (relu6) or as large as they come
    features = Engine(model.without_top())(pixels)
    tolerance = 2 * float(np.finfo(np.float32).eps) * last.size * float(np.abs(features).max()) * weights
    assert maps.mean(axis=(1, 2)) + tensors["classifier.bias"][classes] == pytest.approx(logits, rel=0, abs=tolerance)
    assert tolerance < np.abs(maps).mean()  # so the comparison means something


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_are_small_jpegs_of_what_the_model_sees(tmp_path, channels):
    model, found = made(tmp_path, channels=channels)
    first, gone = explained(model, [(found.root / "0.png", 1), (found.root / "gone.png", 1)])
    assert gone is None
    for uri in first:
        head, data = uri.split(",")
        assert head == "data:image/jpeg;base64"
        image = Image.open(io.BytesIO(base64.b64decode(data)))
        assert (image.format, image.size, image.mode) == ("JPEG", (160, 128), "RGB")
    assert first[0] != first[1]


def test_the_heat_is_where_the_map_is_high():
    from mobilenet.evaluation.activation import _under_heat

    heat = np.array([[0, -5, 0], [0, 0, 9], [0, 0, 0]], np.float32)
    shown = np.asarray(_under_heat(Image.new("RGB", (90, 90), (100, 100, 100)), heat)).astype(int).sum(axis=2)
    assert np.unravel_index(shown.argmax(), shown.shape)[0] // 30 == 1
    assert np.unravel_index(shown.argmax(), shown.shape)[1] // 30 == 2
    assert shown[10, 45] == shown.min()  # what speaks against is as dark as nothing
    flat = np.asarray(_under_heat(Image.new("RGB", (9, 9)), np.zeros((2, 2), np.float32)))
    assert flat.max() == flat[0, 0].max()
