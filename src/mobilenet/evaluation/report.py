"""The report of an evaluation as one HTML file: no script, no other file, no network; light and dark, desk and phone.

`write_report` joins the sections below in the order in which a reader asks: how good, how it learned, what it confuses,
which photos it gets wrong and why, whether its probabilities hold, what it costs, and how it was made. Every text that
comes from outside (labels, file names, notes) goes through `escape`, and every list is bounded.
"""

import json
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeGuard

from ..common.files import read_regular, shown, write_atomic
from ..common.text import bytes_text
from ..cost import Cost, cost
from ..errors import DataError
from ..model import Model
from .activation import explained
from .charts import COUNTED_CLASSES, Point, Series, confusion_chart, cut, escape, line_chart, reliability_chart
from .metrics import ClassScore, Evaluation, Result, wilson
from .page import PAGE, bar, figure, legend, section, table

MATRIX_CLASSES = 40  # above, the most confused pairs stand for the matrix
CLASS_ROWS, PAIR_ROWS, BROKEN_ROWS, NOTE_ROWS = 40, 25, 50, 200
MISTAKES = 12  # pictures of about 10 kB each
POINTS = 400  # of a curve
THRESHOLDS = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99)  # for taking sure answers only
METRICS_LIMIT = 1 << 26  # bytes of metrics.jsonl: 100,000 epochs and more

Metrics = Sequence[Mapping[str, Any]]


def write_report(path: Path | str, model: Model, evaluation: Evaluation, metrics: Path | Metrics | None = None) -> None:
    """Writes the report of an evaluation, whole or not at all; about 200 kB.

    Args:
        path: the HTML file to write.
        model: the model that was evaluated.
        evaluation: its `evaluate`.
        metrics: the training's epochs for the curves: a model folder (with `training/metrics.jsonl`, or without, then
            there are no curves), the file itself, or its rows.

    Raises:
        DataError: names the line of the metrics that is not a JSON object.
        MobileNetError: the file can't be written.
    """
    rows = read_metrics(metrics) if isinstance(metrics, Path) else list(metrics or ())
    costs = cost(model.network)
    sections = (
        _headline(evaluation, costs),
        _training(rows),
        _classes(evaluation),
        _mistakes(model, evaluation),
        _calibration(evaluation),
        _cost(costs),
        _facts(model, evaluation),
        _broken(evaluation),
    )
    page = PAGE.format(
        title=escape(f"MobileNet{model.network.family.upper()} on {evaluation.root.name}"),
        network=escape(model.network),
        data=f"{escape(evaluation.root.name)}, {_split(evaluation)}",
        sections="\n".join(filter(None, sections)),
    )
    write_atomic(Path(path), page.encode("utf-8", "backslashreplace"))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of a training's metrics, one a epoch, from `metrics.jsonl` or the model folder it belongs to.

    A folder without metrics gives none; a last line without its end is one that was being written, and left out.
    Raises `DataError` that names the line that is not a JSON object.
    """
    if path.is_dir():
        path = path / "training" / "metrics.jsonl"
        if not os.path.lexists(path):
            return []
    rows = []
    for number, line in enumerate(read_regular(path, METRICS_LIMIT).split(b"\n")[:-1], 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise DataError(f"{shown(path)}: line {number} is not a JSON object; remove the file to go without curves")
        rows.append(row)
    return rows


# -------------------------------------------------------------------------------------------------------- headline


def _split(found: Evaluation) -> str:
    split = "all photos" if found.split == "all" else f"{found.split} split"
    return f"{split}: {_count(len(found.results), 'photo')}"


def _headline(found: Evaluation, costs: Cost) -> str:
    low, high = found.interval
    most = Counter(result.label for result in found.results).most_common(1)[0][1] / len(found.results)
    tiles = [_tile("Top-1 accuracy", f"{found.top1:.1%}", f"95% interval {low:.1%} to {high:.1%}", "first")]
    if found.k < len(found.labels):
        tiles.append(_tile(f"Top-{found.k} accuracy", f"{found.top5:.1%}", f"right among its {found.k} likeliest"))
    else:
        tiles.append(_tile("Photos", f"{len(found.results):,}", f"of {_count(len(found.labels), 'class', 'classes')}"))
    tiles += [
        _tile("Balanced accuracy", f"{found.balanced_accuracy:.1%}", "mean recall of the classes"),
        _tile("Calibration error", f"{found.calibration_error:.1%}", f"Brier score {found.brier:.3f}"),
        _tile("Loss", f"{found.loss:.3f}", f"chance is {math.log(len(found.labels)):.3f}"),
        _tile("Multiply-adds", _amount(costs.macs), "for one photo"),
        _tile("Parameters", _amount(costs.params), f"{bytes_text(4 * costs.total_params)} as float32"),
    ]
    right = round(found.top1 * len(found.results))
    verdict = (
        f"{right:,} of {_count(len(found.results), 'photo')} labelled right. "
        f"Always saying the most frequent class would give {most:.1%}. {_trust(found)}"
    )
    return (
        f'<section class="headline"><div class="tiles">{"".join(tiles)}</div><p class="verdict">{verdict}</p></section>'
    )


def _tile(name: str, value: str, note: str, style: str = "") -> str:
    return f'<div class="tile {style}"><h2>{name}</h2><p class="figure">{value}</p><p class="note">{note}</p></div>'


def _trust(found: Evaluation) -> str:
    """Says in a sentence whether the probabilities are too high or too low."""
    said = math.fsum(result.probability for result in found.results) / len(found.results)
    gap = said - found.top1
    if abs(gap) < 0.02:
        return "On average its probabilities are as high as they should be."
    return (
        f"It is too {'sure' if gap > 0 else 'modest'}: its answers carry a probability of {said:.1%} on average "
        f"and {found.top1:.1%} of them are right."
    )


# -------------------------------------------------------------------------------------------------------- training


def _training(rows: Metrics) -> str:
    charts = [*_chart(rows, "Loss", "loss", "lowest"), *_chart(rows, "Top-1 accuracy", "top1", "highest")]
    if not charts:
        return ""
    seconds = math.fsum(value for _, value in _points(rows, "seconds"))
    took = f" in {_duration(seconds)}" if seconds else ""
    text = f"{_count(len(rows), 'epoch')}{took}. The train line is of the photos as they were varied for training."
    return section("How it learned", text, f'<div class="pair">{"".join(charts)}</div>')


def _chart(rows: Metrics, title: str, name: str, mark: Literal["highest", "lowest"]) -> Iterator[str]:
    series = [Series("train", _curve(rows, f"train_{name}")), Series("val", _curve(rows, f"val_{name}"), mark)]
    drawn = [each for each in series if each.points]
    if drawn:
        chart = line_chart(f"{title} by epoch", "train and val", drawn, "epoch", percent=name == "top1")
        yield figure(title, chart, legend(*((each.style, each.style) for each in drawn)))


def _points(rows: Metrics, name: str) -> list[Point]:
    """Returns (epoch, value) where both are finite numbers."""
    found = [(row.get("epoch"), row.get(name)) for row in rows]
    return [(float(x), float(y)) for x, y in found if _is_number(x) and _is_number(y)]


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e15  # NaN fails


def _curve(rows: Metrics, name: str) -> list[Point]:
    """Returns the points of a curve; of too many, the lowest and the highest of each run of them."""
    points = _points(rows, name)
    run = math.ceil(2 * len(points) / POINTS)
    if run <= 2:
        return points
    runs = [points[start : start + run] for start in range(0, len(points), run)]
    ends = ((min(each, key=_height), max(each, key=_height)) for each in runs)
    return [point for pair in ends for point in sorted(pair)]


def _height(point: Point) -> float:
    return point[1]


# --------------------------------------------------------------------------------------- classes and their confusion


def _classes(found: Evaluation) -> str:
    if len(found.labels) <= MATRIX_CLASSES:
        text = (
            "A row is a true class; its cells say what its photos were labelled as. "
            "Mistakes are shaded stronger than their share."
        )
        keys = legend(("right", "labelled right"), ("wrong", "labelled wrong"))
        confusion = figure("Confusion matrix", confusion_chart(found.confusion.tolist(), found.labels), keys)
    else:
        text = f"The most frequent confusions among {len(found.labels):,} classes."
        confusion = figure("Most frequent confusions", _pairs(found))
    beside = "pair" if len(found.labels) <= COUNTED_CLASSES else ""
    return section("What it confuses", text, f'<div class="{beside}">{confusion}{_class_table(found)}</div>')


def _pairs(found: Evaluation) -> str:
    rows = []
    for pair in found.confusions[:PAIR_ROWS]:
        share = pair.count / found.classes[pair.label].support
        names = (_label(found.labels[pair.label]), _label(found.labels[pair.predicted]))
        rows.append([*names, f"{pair.count:,}", bar(share, "wrong")])
    return table(("true", "labelled", "#photos", "of the class"), rows) if rows else "<p>None.</p>"


def _class_table(found: Evaluation) -> str:
    worst = found.worst_classes[:CLASS_ROWS]
    rows = [[_label(each.label), bar(each.f1 or 0.0), *_class_cells(each)] for each in worst]
    more = len(found.worst_classes) - len(worst)
    title = f"The {len(worst)} classes with the lowest F1" if more else "Classes, lowest F1 first"
    return figure(title, table(("class", "F1", "#precision", "#recall", "#photos"), rows))


def _class_cells(each: ClassScore) -> Iterator[str]:
    yield _percent(each.precision)
    yield _percent(each.recall)
    yield f"{each.support:,}"


# -------------------------------------------------------------------------------------------------------- mistakes


def _mistakes(model: Model, found: Evaluation) -> str:
    worst = found.mistakes[:MISTAKES]
    if not worst:
        return section("Mistakes", "None.", "")
    pictures = explained(model, [(found.root / result.path, result.predicted) for result in worst])
    cards = "".join(_card(found, result, pair) for result, pair in zip(worst, pictures, strict=True))
    text = (
        f"The {_count(len(worst), 'mistake')} it was surest of, out of {len(found.mistakes):,}; "
        "some may be wrong labels in the data. Left what the model sees, right the same with the parts that speak "
        "for its answer (class activation map)."
    )
    return section("Its worst mistakes", text, f'<div class="cards">{cards}</div>')


def _card(found: Evaluation, result: Result, pictures: tuple[str, str] | None) -> str:
    true, said = _label(found.labels[result.label]), _label(found.labels[result.predicted])
    images = '<p class="gone">The photo can’t be read any more.</p>'
    if pictures:
        images = (
            f'<img src="{pictures[0]}" alt="photo of class {true}, labelled {said}" width="160" height="160">'
            f'<img src="{pictures[1]}" alt="the parts that speak for {said}" width="160" height="160">'
        )
    name = result.path if len(result.path) <= 60 else "…" + result.path[-59:]
    return (
        f'<figure class="card"><div class="images">{images}</div><figcaption>'
        f'<p>labelled <span class="said">{said}</span> {result.probability:.1%}</p>'
        f'<p>is <span class="true">{true}</span> {_small(math.exp(-result.loss))}</p>'
        f'<p class="path">{escape(name)}</p></figcaption></figure>'
    )


# ----------------------------------------------------------------------------------------------------- calibration


def _calibration(found: Evaluation) -> str:
    text = (
        "Bars are the share of right answers among those given with a probability in the bar’s range; on the diagonal "
        f"a probability means what it says. Expected calibration error {found.calibration_error:.2%} over "
        f"{len(found.bins)} bins, Brier score {found.brier:.4f}."
    )
    keys = legend(("accuracy", "share right"), ("gap", "gap"), ("ideal", "ideal"), ("photos", "photos"))
    chart = figure("Reliability diagram", reliability_chart(found.bins), keys)
    return section("Whether its probabilities hold", text, f'<div class="pair">{chart}{_thresholds(found)}</div>')


def _thresholds(found: Evaluation) -> str:
    rows = []
    for least in THRESHOLDS:
        taken, right = found.accepted(least)
        low, high = wilson(right, taken) if taken else (0.0, 0.0)
        shares = (f"{right / taken:.1%}", f"{100 * low:.1f} to {high:.1%}") if taken else ("–", "–")
        rows.append([f"{least:.0%}", bar(taken / len(found.results)), *shares])
    kept = table(("from", "photos kept", "#right", "#95% interval"), rows)
    return figure("Taking only the surer answers", kept)


# ------------------------------------------------------------------------------------------------------------ cost


def _cost(costs: Cost) -> str:
    rows = []
    most = max(block.macs for block in costs.blocks) / costs.macs
    for block in costs.blocks:
        shape = block.layers[-1].layer.output
        share = block.macs / costs.macs
        output = f"{shape.height}×{shape.width}×{shape.channels}"
        rows.append([block.name, output, f"{block.macs:,}", bar(share, full=most), f"{block.params:,}"])
    rows.append(["<b>total</b>", "", f"<b>{costs.macs:,}</b>", "", f"<b>{costs.params:,}</b>"])
    twin = costs.standard
    text = f"{_amount(costs.macs)} multiply-adds for one photo"
    if twin:
        text += f", {twin.macs / costs.macs:.1f} times fewer than the same network of standard convolutions"
    text += (
        f"; at most {bytes_text(costs.peak_memory)} of activations at once as float32, "
        f"{bytes_text(costs.fused_peak_memory)} with fused blocks."
    )
    columns = ("block", "output", "#multiply-adds", "share", "#parameters")
    return section("What it costs", text, figure("Cost by block", table(columns, rows)))


# ----------------------------------------------------------------------------------------------------------- facts


def _facts(model: Model, found: Evaluation) -> str:
    network = model.network.to_dict()
    groups = {
        "Network": {name: value for name, value in network.items() if name != "conventions"},
        "Conventions": network["conventions"],
        "Preprocessing": model.preprocessing.to_dict(),
        "Run": model.notes,
        "Evaluation": {"data": str(found.root), "split": found.split, "photos": len(found.results)},
    }
    parts = []
    for title, values in groups.items():
        rows = [[escape(cut(name, 60)), _value(value)] for name, value in _flat(values)][:NOTE_ROWS]
        if rows:
            parts.append(f"<details><summary>{title}</summary>{table(('name', 'value'), rows)}</details>")
    return section("How it was made", "", "".join(parts))


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _value(value: object) -> str:
    if isinstance(value, list | tuple):
        value = ", ".join(map(str, value[:NOTE_ROWS]))
    return escape(cut(str(value), 200))


def _broken(found: Evaluation) -> str:
    if not found.broken:
        return ""
    rows = [[escape(photo.path), escape(cut(photo.reason, 200))] for photo in found.broken[:BROKEN_ROWS]]
    more = len(found.broken) - len(rows)
    text = f"{_count(len(found.broken), 'photo')} could not be read and count for nothing above."
    if more:
        text += f" The first {len(rows)}:"
    return section("Broken photos", text, figure("Set aside", table(("photo", "what is wrong"), rows)))


# ----------------------------------------------------------------------------------------------- names and numbers


def _label(name: str) -> str:
    return escape(cut(name, 60))


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _small(value: float) -> str:
    return f"{value:.1%}" if value >= 0.001 else "under 0.1%"


def _count(count: int, one: str, many: str = "") -> str:
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def _amount(count: int) -> str:
    for size, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= size:
            return f"{count / size:.3g}{unit}" if count < 999.5 * size else f"{count / size:.0f}{unit}"
    return str(count)


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 2:
        return _count(round(seconds), "second")
    return _count(minutes, "minute") if minutes < 120 else f"{seconds / 3600:.1f} hours"
