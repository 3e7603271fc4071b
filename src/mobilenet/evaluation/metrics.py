"""The figures of an evaluation, each derived from one `Result` a photo by its definition.

`Evaluation` holds the results; accuracy, the per-class figures, confusion and calibration are properties of it, so they
can't disagree. numpy alone: no model, no photo and no file is needed here.
"""

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..common.files import shown
from ..data.layouts import SetAside
from ..errors import ModelError

CALIBRATION_BINS = 15  # Guo et al. 2017 (arXiv 1706.04599), section 5
Z95 = 1.959963984540054  # the normal distribution's 97.5% quantile
TABLE_CLASSES, TABLE_CONFUSIONS = 20, 10  # rows of the text tables
DENSE_CLASSES = 100  # up to here `to_dict` holds the whole confusion matrix


@dataclass(frozen=True, slots=True)
class Result:
    """Is what the model made of one photo.

    Attributes:
        path: relative to the data set's root.
        label: number of the true class.
        predicted: number of the class with the highest probability (of equal ones the first).
        probability: what the model gives `predicted`.
        rank: how many classes come before the true one: 0 is right, below 5 is right in the top 5.
        loss: minus the natural logarithm of what the model gives the true class.
        brier: sum over the classes of (probability - truth)², from 0 to 2.
    """

    path: str
    label: int
    predicted: int
    probability: float
    rank: int
    loss: float
    brier: float


@dataclass(frozen=True, slots=True)
class ClassScore:
    """Holds one class's figures; None where a figure is not defined: no such photo, or never predicted."""

    label: str
    precision: float | None
    recall: float | None
    f1: float | None
    support: int
    predicted: int


@dataclass(frozen=True, slots=True)
class Confusion:
    """Is a pair of classes that the model takes for another: the true one, the predicted one, and how often."""

    label: int
    predicted: int
    count: int


@dataclass(frozen=True, slots=True)
class Bin:
    """Is a bin of the reliability diagram: the photos whose probability lies in (low, high].

    `confidence` is their mean probability and `accuracy` the share that is right; None in an empty bin.
    """

    low: float
    high: float
    count: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True)
class Evaluation:
    """Holds the outcome for every photo of a split; all figures are derived from it.

    Attributes:
        root: what the paths are relative to.
        labels: the model's, by number.
        split: "train", "val", "test" or "all".
        results: one for each photo that could be read, in the order of the data set; at least one.
        broken: the photos that could not be read, each with the reason.
        notes: what was remarkable when the data set was read.
    """

    root: Path
    labels: tuple[str, ...]
    split: str
    results: tuple[Result, ...]
    broken: tuple[SetAside, ...] = ()
    notes: tuple[str, ...] = ()

    @cached_property
    def top1(self) -> float:
        """Share of the photos whose likeliest class is the true one."""
        return self._top(1)

    @cached_property
    def top5(self) -> float:
        """Share of the photos whose true class is among the `k` likeliest."""
        return self._top(self.k)

    @property
    def k(self) -> int:
        """What `top5` counts: 5, or all classes where there are fewer."""
        return min(5, len(self.labels))

    @cached_property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95% interval for `top1`: what the accuracy on other photos of the same kind may be."""
        return wilson(sum(result.rank == 0 for result in self.results), len(self.results))

    @cached_property
    def loss(self) -> float:
        """Mean negative log-likelihood of the true class, in nats."""
        return math.fsum(result.loss for result in self.results) / len(self.results)

    @cached_property
    def brier(self) -> float:
        """Mean Brier score (Brier 1950, over all classes): 0 is certain and right, 2 certain and wrong."""
        return math.fsum(result.brier for result in self.results) / len(self.results)

    @cached_property
    def confusion(self) -> NDArray[np.int64]:
        """The confusion matrix [classes, classes]: row the true class, column the predicted one."""
        matrix = np.zeros((len(self.labels), len(self.labels)), np.int64)
        for pair, count in self._pairs.items():
            matrix[pair] = count
        return matrix

    @cached_property
    def confusions(self) -> tuple[Confusion, ...]:
        """Every pair of classes that was confused, the most frequent first."""
        wrong = [Confusion(label, predicted, n) for (label, predicted), n in self._pairs.items() if label != predicted]
        return tuple(sorted(wrong, key=lambda pair: (-pair.count, pair.label, pair.predicted)))

    @cached_property
    def classes(self) -> tuple[ClassScore, ...]:
        """Precision, recall and F1 of each class, in the order of the labels."""
        support = Counter(result.label for result in self.results)
        predicted = Counter(result.predicted for result in self.results)
        return tuple(
            _class_score(name, self._pairs[number, number], support[number], predicted[number])
            for number, name in enumerate(self.labels)
        )

    @cached_property
    def worst_classes(self) -> tuple[ClassScore, ...]:
        """The classes that occur in the data or the predictions, lowest F1 first."""
        seen = [score for score in self.classes if score.f1 is not None]
        return tuple(sorted(seen, key=lambda score: (score.f1, score.recall or 0.0, -score.support)))

    @cached_property
    def balanced_accuracy(self) -> float:
        """Mean recall over the classes that have photos: top-1 as if all had equally many."""
        recalls = [score.recall for score in self.classes if score.recall is not None]
        return math.fsum(recalls) / len(recalls)

    @cached_property
    def bins(self) -> tuple[Bin, ...]:
        """The 15 bins of the reliability diagram."""
        probability = np.array([result.probability for result in self.results])
        right = np.array([result.rank == 0 for result in self.results])
        edges = np.arange(CALIBRATION_BINS + 1) / CALIBRATION_BINS
        where = np.searchsorted(edges[1:-1], probability, side="left")
        return tuple(
            _bin(low, high, probability[where == index], right[where == index])
            for index, (low, high) in enumerate(itertools.pairwise(edges.tolist()))
        )

    @cached_property
    def calibration_error(self) -> float:
        """Expected calibration error: mean distance of confidence and accuracy over the bins, by their photos."""
        gaps = (
            each.count * abs(each.confidence - each.accuracy)
            for each in self.bins
            if each.confidence is not None and each.accuracy is not None
        )
        return math.fsum(gaps) / len(self.results)

    def accepted(self, least: float) -> tuple[int, int]:
        """Returns how many answers have a probability of at least `least`, and how many of these are right."""
        ranks = [result.rank for result in self.results if result.probability >= least]
        return len(ranks), ranks.count(0)

    @cached_property
    def mistakes(self) -> tuple[Result, ...]:
        """The photos that were labelled wrong, the ones the model was surest of first."""
        wrong = [result for result in self.results if result.rank > 0]
        return tuple(sorted(wrong, key=lambda result: (-result.probability, result.path)))

    @cached_property
    def _pairs(self) -> Counter[tuple[int, int]]:
        return Counter((result.label, result.predicted) for result in self.results)

    def _top(self, k: int) -> float:
        return sum(result.rank < k for result in self.results) / len(self.results)

    def to_dict(self) -> dict[str, Any]:
        """Returns the figures as plain data; above 100 classes `confusion` is null, and `confusions` says the same."""
        names = self.labels
        return {
            "split": self.split,
            "photos": len(self.results),
            "broken": [photo._asdict() for photo in self.broken],
            "notes": list(self.notes),
            "top1": self.top1,
            "top1_interval_95": list(self.interval),
            "top5": self.top5,
            "k": self.k,
            "loss": self.loss,
            "balanced_accuracy": self.balanced_accuracy,
            "calibration_error": self.calibration_error,
            "brier": self.brier,
            "classes": [asdict(score) for score in self.classes],
            "confusion": self.confusion.tolist() if len(names) <= DENSE_CLASSES else None,
            "confusions": [
                {"label": names[pair.label], "predicted": names[pair.predicted], "count": pair.count}
                for pair in self.confusions
            ],
            "calibration": [asdict(each) for each in self.bins],
        }

    def __str__(self) -> str:
        parts = (_summary(self), _class_table(self), _confusion_table(self), _broken_list(self))
        return "\n".join(itertools.chain.from_iterable(parts))


def _class_score(label: str, right: int, support: int, predicted: int) -> ClassScore:
    both = support + predicted
    return ClassScore(
        label,
        right / predicted if predicted else None,
        right / support if support else None,
        2 * right / both if both else None,
        support,
        predicted,
    )


def _bin(low: float, high: float, probability: NDArray[np.float64], right: NDArray[np.bool_]) -> Bin:
    if not len(right):
        return Bin(low, high, 0, None, None)
    return Bin(low, high, len(right), float(probability.mean()), float(right.mean()))


def wilson(right: int, count: int) -> tuple[float, float]:
    """Returns Wilson's 95% interval for a share of which `right` of `count` were seen (Wilson 1927)."""
    share, spread = right / count, Z95**2 / count
    centre = share + spread / 2
    half = Z95 * math.sqrt(share * (1 - share) / count + spread / (4 * count))
    return max(0.0, (centre - half) / (1 + spread)), min(1.0, (centre + half) / (1 + spread))


# ---------------------------------------------------------------------------------------------------- logits to results


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Returns the logarithms of the probabilities that logits [..., classes] stand for."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted


def score(paths: Sequence[str], labels: Sequence[int], logits: NDArray[np.float32]) -> Iterator[Result]:
    """Gives the `Result` of each photo from its true class and its logits [photos, classes].

    Raises `ModelError` that names the photo whose logits are not all finite.
    """
    rows = np.arange(len(labels))
    truth = np.asarray(labels)
    finite = np.isfinite(logits).all(axis=1)
    if not finite.all():
        path = paths[int(np.argmin(finite))]
        raise ModelError(f"the model's answer for {shown(path)} is not finite; are its weights whole?")
    logs = log_softmax(logits)
    shares = np.exp(logs)
    predicted = logits.argmax(axis=1)
    own = logits[rows, truth][:, None]
    before = (logits > own) | ((logits == own) & (np.arange(logits.shape[1]) < truth[:, None]))
    losses = -logs[rows, truth]
    likeliest = shares[rows, predicted]
    shares[rows, truth] -= 1
    briers = np.square(shares).sum(axis=1)
    ranks = before.sum(axis=1)
    for row, path in enumerate(paths):
        yield Result(
            path,
            int(truth[row]),
            int(predicted[row]),
            float(likeliest[row]),
            int(ranks[row]),
            float(losses[row]),
            float(briers[row]),
        )


# --------------------------------------------------------------------------------------------------- results to text


def _summary(found: Evaluation) -> Iterator[str]:
    low, high = found.interval
    right = round(found.top1 * len(found.results))
    yield f"split    {found.split}, {len(found.results):,} photos" + (
        f" ({len(found.broken):,} more can't be read)" if found.broken else ""
    )
    yield f"top-1    {found.top1:.2%}   ({right:,} right; 95% interval {low:.2%} to {high:.2%})"
    if found.k == 5 and len(found.labels) > 5:
        yield f"top-5    {found.top5:.2%}"
    yield f"balanced {found.balanced_accuracy:.2%}   (mean recall of the classes)"
    yield f"loss     {found.loss:.4f}   (negative log-likelihood, nats)"
    yield f"ECE      {found.calibration_error:.4f}   (expected calibration error; Brier score {found.brier:.4f})"


def _class_table(found: Evaluation) -> Iterator[str]:
    worst = found.worst_classes[:TABLE_CLASSES]
    width = max(len("class"), *(len(_name(score.label)) for score in worst))
    more = len(found.worst_classes) - len(worst)
    yield ""
    yield f"{'class':<{width}}  precision  recall      F1  photos" + (f"   (the {len(worst)} worst)" if more else "")
    for each in worst:
        cells = f"{_percent(each.precision):>9}  {_percent(each.recall):>6}  {_percent(each.f1):>6}  {each.support:>6,}"
        yield f"{_name(each.label):<{width}}  {cells}"
    if more:
        yield f"… and {more:,} classes with a higher F1"


def _confusion_table(found: Evaluation) -> Iterator[str]:
    pairs = found.confusions[:TABLE_CONFUSIONS]
    if pairs:
        width = max(4, *(len(_name(found.labels[pair.label])) for pair in pairs))
        yield ""
        yield "most frequent confusions"
        for pair in pairs:
            taken = _name(found.labels[pair.predicted])
            share = pair.count / found.classes[pair.label].support
            yield f"{_name(found.labels[pair.label]):<{width}}  taken for {taken}: {pair.count:,} ({share:.1%})"


def _broken_list(found: Evaluation) -> Iterator[str]:
    if found.broken:
        yield ""
        yield f"{len(found.broken):,} photo{'s' * (len(found.broken) != 1)} can't be read"
        yield from (f"{shown(photo.path)}: {photo.reason}" for photo in found.broken[:TABLE_CONFUSIONS])
        if len(found.broken) > TABLE_CONFUSIONS:
            yield f"… and {len(found.broken) - TABLE_CONFUSIONS:,} more; `mobilenet data check` lists all"


def _name(label: str) -> str:
    name = shown(label)
    return name if len(name) <= 32 else name[:31] + "…"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"
