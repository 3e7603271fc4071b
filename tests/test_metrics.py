import json
import math
from pathlib import Path

import numpy as np
import pytest

from mobilenet.data.layouts import SetAside
from mobilenet.errors import ModelError
from mobilenet.evaluation.metrics import Evaluation, log_softmax, score, wilson

EPS = np.finfo(np.float64).eps


def evaluated(logits, labels, names=None, broken=()) -> Evaluation:
    logits = np.asarray(logits, np.float32)
    names = names or tuple(f"class {n}" for n in range(logits.shape[1]))
    paths = [f"{n}.jpg" for n in range(len(labels))]
    return Evaluation(Path("photos"), names, "test", tuple(score(paths, labels, logits)), tuple(broken))


def random_case(seed: int, photos: int = 200, classes: int = 7, temperature: float = 1.5):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, photos)
    logits = rng.normal(size=(photos, classes)) * temperature
    logits[np.arange(photos), labels] += 1
    return logits.astype(np.float32), labels.tolist()


def brute_probabilities(row) -> list[float]:
    shares = [math.exp(float(value) - max(map(float, row))) for value in row]
    return [share / math.fsum(shares) for share in shares]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("classes", [2, 7, 30])
def test_every_figure_equals_its_definition(seed, classes):
    logits, labels = random_case(seed, classes=classes)
    found = evaluated(logits, labels)
    k = min(5, classes)
    right = in_top = 0
    loss, brier = [], []
    matrix = [[0] * classes for _ in range(classes)]
    bins: dict[int, list[tuple[float, bool]]] = {}
    for row, label in zip(logits, labels, strict=True):
        shares = brute_probabilities(row)
        order = sorted(range(classes), key=lambda c, row=row: (-row[c], c))
        right += order[0] == label
        in_top += label in order[:k]
        loss.append(-math.log(shares[label]))
        brier.append(math.fsum((share - (c == label)) ** 2 for c, share in enumerate(shares)))
        matrix[label][order[0]] += 1
        number = next(n for n in range(15) if n / 15 < shares[order[0]] <= (n + 1) / 15)
        bins.setdefault(number, []).append((shares[order[0]], order[0] == label))
    n = len(labels)
    assert found.top1 == right / n
    assert found.top5 == in_top / n
    assert found.k == k
    # A loss is a logarithm of a sum of `classes` terms; the error of each is a few eps of the largest logit.
    tolerance = 8 * EPS * classes * float(np.abs(logits).max())
    assert found.loss == pytest.approx(sum(loss) / n, rel=0, abs=tolerance)
    assert found.brier == pytest.approx(sum(brier) / n, rel=0, abs=tolerance)
    assert found.confusion.tolist() == matrix
    assert found.confusion.dtype == np.int64
    for number, each in enumerate(found.bins):
        seen = bins.get(number, [])
        assert each.count == len(seen)
        assert (each.low, each.high) == (number / 15, (number + 1) / 15)
        if seen:
            assert each.confidence == pytest.approx(sum(p for p, _ in seen) / len(seen), rel=0, abs=tolerance)
            assert each.accuracy == pytest.approx(sum(ok for _, ok in seen) / len(seen), rel=0, abs=tolerance)
    gap = sum(abs(sum(ok for _, ok in seen) - sum(p for p, _ in seen)) for seen in bins.values()) / n
    assert found.calibration_error == pytest.approx(gap, rel=0, abs=tolerance)
    for number, each in enumerate(found.classes):
        tp = matrix[number][number]
        fn = sum(matrix[number]) - tp
        fp = sum(row[number] for row in matrix) - tp
        assert (each.support, each.predicted) == (tp + fn, tp + fp)
        assert each.precision == (tp / (tp + fp) if tp + fp else None)
        assert each.recall == (tp / (tp + fn) if tp + fn else None)
        assert each.f1 == (2 * tp / (2 * tp + fp + fn) if tp + fp + fn else None)


def test_figures_equal_those_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    logits, labels = random_case(5, photos=500, classes=12)
    found = evaluated(logits, labels)
    predicted = logits.argmax(axis=1)
    shares = np.exp(log_softmax(logits))
    assert found.top1 == pytest.approx(metrics.accuracy_score(labels, predicted), rel=4 * EPS)
    assert found.top5 == pytest.approx(metrics.top_k_accuracy_score(labels, shares, k=5), rel=4 * EPS)
    # scikit-learn clips and renormalises in float64: at most classes * eps a photo, over a loss of about 2.
    assert found.loss == pytest.approx(metrics.log_loss(labels, shares), rel=32 * EPS)
    assert found.balanced_accuracy == pytest.approx(metrics.balanced_accuracy_score(labels, predicted), rel=16 * EPS)
    assert found.confusion.tolist() == metrics.confusion_matrix(labels, predicted).tolist()
    precision, recall, f1, support = metrics.precision_recall_fscore_support(labels, predicted)
    for each, *theirs in zip(found.classes, precision, recall, f1, support, strict=True):
        assert [each.precision, each.recall, each.f1, each.support] == pytest.approx(theirs, rel=8 * EPS)


def test_perfect_and_all_wrong_answers():
    perfect = evaluated(np.eye(6) * 1000, range(6))
    assert (perfect.top1, perfect.top5, perfect.balanced_accuracy) == (1, 1, 1)
    assert (perfect.loss, perfect.brier, perfect.calibration_error) == (0, 0, 0)
    assert perfect.mistakes == perfect.confusions == ()
    assert all((each.precision, each.recall, each.f1) == (1, 1, 1) for each in perfect.classes)
    assert "confusions" not in str(perfect)

    wrong = evaluated(np.roll(np.eye(6), 1, axis=1) * 1000, range(6))
    assert (wrong.top1, wrong.balanced_accuracy) == (0, 0)
    assert wrong.interval[0] == pytest.approx(0, abs=EPS)
    assert (wrong.loss, wrong.brier, wrong.calibration_error) == (1000, 2, 1)
    assert all((each.precision, each.recall, each.f1) == (0, 0, 0) for each in wrong.classes)
    assert len(wrong.mistakes) == 6


def test_a_class_without_photos_has_no_recall_and_one_never_predicted_no_precision():
    found = evaluated([[9, 0, 0, 0], [9, 0, 0, 0], [0, 0, 9, 0]], [0, 1, 0])
    assert [each.recall for each in found.classes] == [0.5, 0, None, None]
    assert [each.precision for each in found.classes] == [0.5, None, 0, None]
    assert [each.f1 for each in found.classes] == [0.5, 0, 0, None]
    assert found.balanced_accuracy == 0.25  # of the two classes that have photos
    assert [each.label for each in found.worst_classes] == ["class 1", "class 2", "class 0"]
    assert "–" in str(found)


def test_equal_logits_mean_the_first_class_for_prediction_and_rank_alike():
    found = evaluated(np.zeros((8, 8)), range(8))
    assert [result.predicted for result in found.results] == [0] * 8
    assert [result.rank for result in found.results] == list(range(8))
    assert (found.top1, found.top5) == (1 / 8, 5 / 8)
    assert found.loss == pytest.approx(math.log(8), rel=4 * EPS)


def test_a_probability_on_an_edge_belongs_to_the_bin_below_it():
    # Three classes of equal logits: 1/3 = 5/15 exactly as the edges compute it, the top of the fifth bin.
    found = evaluated([[0, 0, 0]], [0])
    assert found.results[0].probability == 5 / 15
    assert [each.count for each in found.bins] == [0, 0, 0, 0, 1] + [0] * 10


def test_logits_far_apart_neither_overflow_nor_lose_the_loss():
    found = evaluated([[3e38, -3e38], [0, 800]], [1, 0])
    assert found.results[0].loss == pytest.approx(6e38, rel=1e-6)
    assert found.results[1].loss == 800
    assert found.results[1].probability == 1


def test_an_answer_that_is_not_finite_names_its_photo():
    logits = np.zeros((3, 2), np.float32)
    logits[1, 0] = np.nan
    with pytest.raises(ModelError, match=r"1\.jpg is not finite"):
        evaluated(logits, [0, 0, 0])


def test_the_confusions_are_all_there_most_frequent_first():
    logits, labels = random_case(3)
    found = evaluated(logits, labels)
    counts = [pair.count for pair in found.confusions]
    assert counts == sorted(counts, reverse=True)
    matrix = np.diag(np.diag(found.confusion))
    for pair in found.confusions:
        assert pair.label != pair.predicted
        matrix[pair.label, pair.predicted] += pair.count
    assert (matrix == found.confusion).all()
    assert [m.probability for m in found.mistakes] == sorted((m.probability for m in found.mistakes), reverse=True)


@pytest.mark.parametrize(
    ("right", "count", "low", "high"),
    [  # Newcombe 1998 (Statistics in Medicine 17, 857-872), Table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_the_interval_is_the_published_one(right, count, low, high):
    assert wilson(right, count) == pytest.approx((low, high), abs=5e-5)
    assert wilson(count - right, count) == pytest.approx((1 - high, 1 - low), abs=5e-5)


def test_the_dict_is_json_and_complete():
    logits, labels = random_case(1, classes=3)
    found = evaluated(logits, labels, ("a", "b", "never"), [SetAside("x.jpg", "is empty")])
    data = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert data["photos"] == 200
    assert data["broken"] == [{"path": "x.jpg", "reason": "is empty"}]
    assert data["confusion"] == found.confusion.tolist()
    assert data["top1"] == found.top1
    assert data["top1_interval_95"] == list(found.interval)
    assert sum(each["count"] for each in data["calibration"]) == 200
    first = found.confusions[0]
    assert data["confusions"][0] == {
        "label": found.labels[first.label],
        "predicted": found.labels[first.predicted],
        "count": first.count,
    }


def test_many_classes_make_no_dense_matrix():
    found = evaluated(np.eye(101), range(101))
    assert found.to_dict()["confusion"] is None
    assert "confusion" not in vars(found)  # nor was one made on the way


def test_the_text_shows_summary_classes_confusions_and_broken_photos():
    logits, labels = random_case(2, photos=400, classes=30)
    names = ("a\x1b[31mred", "long " * 20, *(f"class {n}" for n in range(28)))
    found = evaluated(logits, labels, names, [SetAside(f"{n}\n.jpg", "is empty") for n in range(12)])
    text = str(found)
    assert f"top-1    {found.top1:.2%}" in text
    assert f"top-5    {found.top5:.2%}" in text
    assert "(12 more can't be read)" in text
    assert "… and 10 classes with a higher F1" in text
    assert "… and 2 more; `mobilenet data check` lists all" in text
    assert "\x1b" not in text
    assert "0\\n.jpg: is empty" in text
    pair = found.confusions[0]
    assert f"taken for {found.labels[pair.predicted]}: {pair.count} " in text
    assert max(map(len, text.splitlines())) <= 110
    table = text.split("\n\n")[1].splitlines()
    assert len(table) == 22  # heading, 20 classes, the rest in one line
    assert len({len(line) for line in table[1:21]}) == 1  # aligned


def test_two_classes_have_no_top5_line():
    assert "top-5" not in str(evaluated(np.eye(2), [0, 1]))
