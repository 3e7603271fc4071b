"""Charts as inline SVG for the report: lines, a confusion matrix, a reliability diagram.

Each function returns one `<svg>` with a title and a description for screen readers. Colours are CSS classes, so that
the page's light and dark styles both apply; every text that comes from outside is escaped here.
"""

import html
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from ..common.files import shown
from .metrics import Bin

Point = tuple[float, float]

WIDTH, HEIGHT = 460, 260  # of a chart in its own units; the page scales it
LEFT, RIGHT, TOP, BOTTOM = 58, 24, 14, 42  # margins for the axes' texts
LABEL_LENGTH = 16  # characters of a class name beside the matrix
COUNTED_CLASSES = 16  # up to here a cell of the matrix is large enough for its count


@dataclass(frozen=True)
class Series:
    """Is a line of a chart: its CSS class, its points in order of x, and which to mark: the "highest" or "lowest"."""

    style: str
    points: Sequence[Point]
    mark: Literal["highest", "lowest"] | None = None


@dataclass(frozen=True)
class Axis:
    """Maps values from `low` to `high` to a range of the chart's units; `ticks` are round values in between."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, about: int = 5, whole: bool = False) -> list[float]:
        """Returns round values, 1, 2 or 5 times a power of ten apart, about as many as asked for."""
        step = _round_step((self.high - self.low) / about)
        if whole:
            step = max(1.0, step)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [n * step for n in range(first, last + 1)]


def _round_step(step: float) -> float:
    power = 10.0 ** math.floor(math.log10(step))
    return next(power * n for n in (1, 2, 5, 10) if power * n >= step * (1 - 1e-9))


def svg(width: float, height: float, title: str, description: str, body: str, style: str = ' class="plot"') -> str:
    """Returns an image with a title and a description; `body` and `style` (attributes) are SVG already."""
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{escape(title)}: {escape(description)}"'
        f"{style}>{body}</svg>"
    )


def escape(text: object) -> str:
    """Returns text as it may stand in HTML, between tags or in quotes; what can't be printed is spelled out."""
    return html.escape(shown(str(text)), quote=True)


def cut(text: str, length: int) -> str:
    """Returns a text of at most `length` characters, the end replaced by an ellipsis."""
    return text if len(text) <= length else text[: length - 1] + "…"


def _text(style: str, x: float, y: float, anchor: str, text: str) -> str:
    """Returns a text whose start, middle or end (`anchor`) is at x; `text` is escaped already."""
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'


def _turned(style: str, x: float, y: float, anchor: str, text: str) -> str:
    """Returns a text that reads upwards."""
    place = f'transform="translate({x:.1f} {y:.1f}) rotate(-90)" text-anchor="{anchor}"'
    return f'<text class="{style}" {place}>{text}</text>'


def _rule(style: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{style}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _rect(style: str, x: float, y: float, width: float, height: float, more: str = "") -> str:
    return f'<rect class="{style}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"{more}/>'


# ----------------------------------------------------------------------------------------------------------- lines


def line_chart(title: str, description: str, series: Sequence[Series], x_name: str, percent: bool = False) -> str:
    """Returns lines over whole numbers (epochs). Series must hold at least one finite point in all."""
    points = [point for each in series for point in each.points]
    x = _x_axis([point[0] for point in points])
    y = _y_axis([point[1] for point in points], percent)
    body = "".join(_frame(x, y, x_name, percent)) + "".join(_line(each, x, y, percent) for each in series)
    return svg(WIDTH, HEIGHT, title, description, body)


def _x_axis(values: Sequence[float]) -> Axis:
    low, high = min(values), max(values)
    return Axis(low, high if high > low else low + 1, LEFT, WIDTH - RIGHT)


def _y_axis(values: Sequence[float], percent: bool) -> Axis:
    low, high = min(values), max(values)
    margin = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
    # No room below 0 or above 100% where no value is.
    bottom = max(low - margin, 0.0) if low >= 0 else low - margin
    top = min(high + margin, 1.0) if percent and high <= 1 else high + margin
    return Axis(bottom, top, HEIGHT - BOTTOM, TOP)


def _frame(x: Axis, y: Axis, x_name: str, percent: bool) -> Iterator[str]:
    right, base = WIDTH - RIGHT, HEIGHT - BOTTOM
    ticks = y.ticks()
    for value in ticks:
        yield _rule("grid", LEFT, y(value), right, y(value))
        yield _text("tick", LEFT - 8, y(value) + 4, "end", _tick(value, ticks, percent))
    for value in x.ticks(6, whole=True):
        yield _text("tick", x(value), base + 18, "middle", f"{value:g}")
    yield _rule("axis", LEFT, base, right, base)
    yield _text("name", (LEFT + right) / 2, HEIGHT - 5, "middle", escape(x_name))


def _tick(value: float, ticks: Sequence[float], percent: bool) -> str:
    scale = 100 if percent else 1
    step = scale * abs(ticks[1] - ticks[0]) if len(ticks) > 1 else 1.0
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    if digits > 4:
        return f"{scale * value:.0e}"
    return f"{scale * value:,.{digits}f}{'%' if percent else ''}"


def _line(series: Series, x: Axis, y: Axis, percent: bool) -> str:
    places = [(x(a), y(b)) for a, b in series.points]
    path = "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in places)
    drawn = f'<path class="line {series.style}" d="{path}"/>'
    if len(places) == 1:
        drawn += _dot(places[0], series.style)
    if series.mark:
        best = max if series.mark == "highest" else min
        value = best(value for _, value in series.points)
        a, b = places[[value for _, value in series.points].index(value)]
        under = series.mark == "lowest" or b < TOP + 20
        inside = min(max(a, LEFT + 24), WIDTH - RIGHT - 14)
        text = f"{value:.1%}" if percent else f"{value:.3g}"
        drawn += _dot((a, b), series.style)
        drawn += _text(f"mark {series.style}", inside, b + (20 if under else -10), "middle", text)
    return drawn


def _dot(at: Point, style: str) -> str:
    return f'<circle class="dot {style}" cx="{at[0]:.1f}" cy="{at[1]:.1f}" r="4"/>'


# ------------------------------------------------------------------------------------------------ confusion matrix


def confusion_chart(counts: Sequence[Sequence[int]], labels: Sequence[str]) -> str:
    """Returns the matrix: a row a true class, a column a predicted one, shaded by the share of the row."""
    cell = 36 if len(labels) <= COUNTED_CLASSES else 18
    names = [cut(label, LABEL_LENGTH) for label in labels]
    left = top = 30 + max(_text_width(name) for name in names)
    size = cell * len(labels)
    body = [
        _rect("empty", left, top, size, size),
        _text("name", left + size / 2, 12, "middle", "predicted"),
        _turned("name", 11, top + size / 2, "middle", "true"),
    ]
    for index, name in enumerate(names):
        middle = (index + 0.5) * cell + 4
        body.append(_text("tick", left - 6, top + middle, "end", escape(name)))
        body.append(_turned("tick", left + middle, top - 6, "start", escape(name)))
    for row, values in enumerate(counts):
        for column, count in enumerate(values):
            if count:
                x, y = left + column * cell, top + row * cell
                body.append(_cell(x, y, cell, count, count / sum(values), labels[row], labels[column], row == column))
    width, height = left + size + 6, top + size + 6
    # Smaller than that its texts can't be read: then it scrolls.
    style = f' style="min-width: {0.72 * width:.0f}px; max-width: {1.25 * width:.0f}px"'
    said = f"{len(labels)} classes, rows true, columns predicted; the table of classes has the figures"
    return svg(width, height, "Confusion matrix", said, "".join(body), style)


def _cell(x: float, y: float, side: int, count: int, share: float, true: str, predicted: str, right: bool) -> str:
    # A square root for the wrong ones: half a percent of a class is still seen.
    opacity = share if right else math.sqrt(share)
    style = "right" if right else "wrong"
    said = f"{cut(true, 60)}: {count:,} of its photos ({share:.1%}) labelled {cut(predicted, 60)}"
    text = ""
    if side >= 30:
        ink = "count on" if opacity > 0.6 else "count"
        text = _text(ink, x + side / 2, y + side / 2 + 4, "middle", _short(count))
    rect = _rect(style, x, y, side - 1, side - 1, f' fill-opacity="{max(opacity, 0.06):.2f}"')
    return f"<g><title>{escape(said)}</title>{rect}{text}</g>"


def _short(count: int) -> str:
    """Returns a count in four characters: 999, 1.5k, 12k, 999k, 1.0M."""
    if count < 1000:
        return str(count)
    size, unit = (1000, "k") if count < 999_500 else (1_000_000, "M")
    return f"{count / size:.1f}{unit}" if count < 9.95 * size else f"{count / size:.0f}{unit}"


def _text_width(text: str) -> float:
    return 6.8 * len(text)  # a generous mean at 12 units; wide letters get shorter names by LABEL_LENGTH


# --------------------------------------------------------------------------------------------------- reliability


def reliability_chart(bins: Sequence[Bin]) -> str:
    """Returns accuracy over confidence, bin by bin, with the diagonal of perfect calibration and the counts below."""
    height, strip = 360, 62
    x = Axis(0, 1, LEFT, WIDTH - RIGHT)
    y = Axis(0, 1, height - BOTTOM - strip, TOP)
    base = height - BOTTOM
    most = max(each.count for each in bins)
    body = []
    for tick in (0, 0.2, 0.4, 0.6, 0.8, 1):
        body.append(_rule("grid", x(0), y(tick), x(1), y(tick)))
        body.append(_text("tick", LEFT - 8, y(tick) + 4, "end", f"{tick:.0%}"))
        body.append(_text("tick", x(tick), base + 18, "middle", f"{tick:.0%}"))
    body += [_reliability_bin(each, x, y, base, 44 * each.count / most) for each in bins if each.count]
    body.append(_rule("diagonal", x(0), y(0), x(1), y(1)))
    body.append(_rule("axis", x(0), base, x(1), base))
    body.append(_text("tick", LEFT - 8, base - 18, "end", "photos"))
    body.append(_text("name", x(0.5), height - 5, "middle", "probability the model gives its answer"))
    return svg(WIDTH, height, "Reliability diagram", "share of right answers by the probability given", "".join(body))


def _reliability_bin(each: Bin, x: Axis, y: Axis, base: float, photos: float) -> str:
    accuracy, confidence = each.accuracy or 0.0, each.confidence or 0.0
    left, width = x(each.low) + 1, x(each.high) - x(each.low) - 2
    said = f"{each.low:.0%} to {each.high:.0%}: {each.count:,} photos, said {confidence:.1%}, right {accuracy:.1%}"
    shapes = (
        _rect("accuracy", left, y(accuracy), width, y(0) - y(accuracy)),
        _rule("gap", x(confidence), y(accuracy), x(confidence), y(confidence)),
        _rect("photos", left, base - photos, width, photos),
    )
    return f"<g><title>{escape(said)}</title>{''.join(shapes)}</g>"
