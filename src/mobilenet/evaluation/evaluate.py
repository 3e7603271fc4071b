"""Runs a model over labelled photos: the `Evaluation` of one split, with the photos that can't be read set aside."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, get_args

from ..common.checks import choice, number
from ..common.files import shown
from ..data import dataset as datasets
from ..data.dataset import Dataset, Photo
from ..data.layouts import SetAside, Split
from ..errors import DatasetError, PhotoError
from ..model import Model
from .metrics import Evaluation, Result, score
from .predict import answers, classifier

SplitName = Literal["train", "val", "test", "all"]


def evaluate(
    model: Model,
    photos: Dataset | Path | str,
    *,
    split: SplitName | None = None,
    split_file: Path | None = None,
    max_broken: float = 0.1,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Measures the model on one split of a data set, whose classes are matched to the model's labels by name.

    Args:
        photos: a data set, or the folder or list to read one from.
        split: "train", "val", "test" or "all"; None takes test if there is one, else val, else all.
        split_file: where the model's training wrote its split, `training/split.jsonl` in the model folder, so that no
            photo it learned from is taken for val; only for a folder or list, and only where there is such a file.
        max_broken: share of the photos that may be unreadable; they are set aside and named in the result.
        progress: is called with the photos done and their number after each photo.

    Raises:
        DatasetError: names the classes the model does not know, the empty split, or the first broken photos where
            there are more than `max_broken`.
        ModelError: names the photo for which the model's answer is not finite.
        UsageError: names the argument outside its rule; or the model has no classifier.
    """
    number("max_broken", max_broken, 0, 1)
    engine = classifier(model)
    known = _known(model, photos, split_file)
    name, chosen = _choose(known, split)
    results: list[Result] = []
    broken: list[SetAside] = []
    paths = (known.path(photo) for photo in chosen)
    for photo, found in zip(chosen, answers(paths, model.preprocessing, engine), strict=True):
        if isinstance(found, PhotoError):
            broken.append(SetAside(photo.path, str(found).removeprefix(f"{shown(known.path(photo))}: ")))
            if len(broken) > max_broken * len(chosen) or len(broken) == len(chosen):
                raise DatasetError(_too_many(known, broken, len(chosen), max_broken))
        else:
            results += score([photo.path], [photo.label], found[0][None])
        if progress:
            progress(len(results) + len(broken), len(chosen))
    return Evaluation(known.root, model.labels, name, tuple(results), tuple(broken), known.notes)


def _known(model: Model, photos: Dataset | Path | str, split_file: Path | None) -> Dataset:
    """Returns the data set with the model's numbering of the classes."""
    if not isinstance(photos, Dataset):
        # No new split is made: without a stored one, a folder that is not split is measured whole.
        return datasets.read(photos, classes=model.labels, split_file=split_file, validation=0.0)
    return photos if photos.classes == model.labels else photos.relabel(model.labels)


def _choose(known: Dataset, split: str | None) -> tuple[str, Sequence[Photo]]:
    """Returns the split's name and its photos."""
    choice("split", split, (None, *get_args(SplitName)))
    held: tuple[Split, ...] = tuple(name for name in datasets.SPLITS if known.of(name))
    name = split or next((name for name in ("test", "val") if name in held), "all")
    chosen = known.photos if name == "all" else tuple(photo for photo in known.photos if photo.split == name)
    if not chosen:
        raise DatasetError(f"{shown(known.root)}: the split {name!r} has no photos; held are {', '.join(held)}")
    return name, chosen


def _too_many(known: Dataset, broken: Sequence[SetAside], count: int, limit: float) -> str:
    first = "; ".join(f"{shown(photo.path)}: {photo.reason}" for photo in broken[:3])
    return (
        f"{shown(known.root)}: {len(broken)} or more of {count} photos can't be read, {limit:.0%} of them may; "
        f"`mobilenet data check` lists them all; the first: {first}"
    )
