"""Everything before the first step: the photos read and decoded, every choice made and agreed on by all processes."""

import hashlib
import os
import platform
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from . import augment, cache, dataset, recipe, transfer
from .cache import Cache
from .dataset import Dataset
from .distributed import Group
from .errors import DataError, DatasetError, ModelError, UsageError
from .files import shown
from .layouts import SetAside
from .monitor import Report
from .photo_headers import read_header
from .photos import open_bytes
from .progress import Progress
from .recipe import Plan
from .run_folder import RunFolder
from .settings import Settings

SAMPLE = 200  # photos whose size decides about the resolution


class Prepared(NamedTuple):
    """Is what a training works with.

    Attributes:
        plan: what is done, but for the choices that need a measurement (`measured` false).
        labels: of the classes.
        train, validation: decoded photos; no `validation` where there are none.
        source: the model to begin from, if any; only in process 0, and only if there is something to begin.
        keep_classifier: whether the source's classifier is for these classes.
        run: what `run.json` holds or will hold.
        measured: whether the plan is final, as on resume.
    """

    plan: Plan
    labels: tuple[str, ...]
    train: Cache
    validation: Cache | None
    source: transfer.Source | None
    keep_classifier: bool
    run: dict[str, Any]
    measured: bool

    @property
    def bad(self) -> tuple[SetAside, ...]:
        """The photos that can't be read."""
        return self.train.bad + (self.validation.bad if self.validation else ())


def prepare(
    photos: Path, folder: RunFolder, settings: Settings, start_from: Path | None, group: Group, report: Report
) -> Prepared:
    """Reads and decodes the photos and decides what is done, in all processes of the group alike.

    Raises:
        UsageError: a setting is not that of the training to be resumed, or does not fit the data.
        DataError: the photos, the model to begin from, or `run.json` can't be used, or are not those of before.
    """
    source: transfer.Source | None = None
    data: Dataset | None = None
    run: dict[str, Any] | None = None
    if group.is_first:
        run = folder.read_run()
        if run is None:
            source = transfer.Source.load(start_from) if start_from else None
            data = dataset.read(photos, **_reading(settings))
            run = _begin(data, settings, source, group, report)
            dataset.save_split(data, folder.split)
        else:
            _refuse_other_source(run, start_from)
    known = run is not None and "usable" in run["data"]
    run, known = group.tell([run, known])
    plan = _plan(run, folder)
    if known:
        plan.refuse_other(settings)
    if data is None:
        data = dataset.read(photos, seed=plan.seed, validation=plan.validation, split_file=folder.split)
    classes = tuple(run["data"]["classes"])
    if set(data.classes) == set(classes):
        data = data.relabel(classes)
    _refuse_other_data(data, run, folder)
    train, validation = _decode(data, plan, folder, settings, report if group.is_first else None)
    run["data"]["usable"] = _check_usable(train, validation, run["data"].get("usable"), folder, group)
    recipe.check_micro_batches(plan, len(train.index), group.size)
    if group.is_first and known and run["start_from"] and not any(folder.checkpoints.iterdir()):
        source = transfer.Source.load(Path(run["start_from"]["path"]))
    return Prepared(plan, classes, train, validation, source, bool(run["data"]["kept"]), run, known)


def _reading(settings: Settings) -> dict[str, Any]:
    return {name: value for name, value in settings.given().items() if name in ("seed", "validation")}


def _begin(
    data: Dataset, settings: Settings, source: transfer.Source | None, group: Group, report: Report
) -> dict[str, Any]:
    """Returns the run of a new training, as far as it is known before the photos are decoded."""
    for note in data.notes:
        report(note)
    kept = source is not None and source.has_classes(data.classes)
    if source is not None and source.labels is not None and kept:
        data = data.relabel(source.labels)
    train, validation = data.of("train"), data.of("val")
    if not train:
        raise DatasetError(f"{shown(data.root)}: no photos to train on; lower the validation share")
    known = recipe.Photos(len(train), len(validation), len(data.classes), _median_side(data))
    origin = recipe.Source(source.network, source.preprocessing) if source else None
    plan = recipe.decide(settings, known, group.size, origin)
    return {
        "plan": plan.to_dict(),
        "data": {
            "path": str(data.root),
            "fingerprint": data.fingerprint(),
            "classes": list(data.classes),
            "train": len(train),
            "val": len(validation),
            "kept": kept,
        },
        "start_from": {"path": os.path.abspath(source.path), "sha256": _digest(source)} if source else None,
        "begun": {
            **{package: metadata.version(package) for package in ("torch", "numpy")},
            "python": platform.python_version(),
            "machine": platform.machine(),
            "device": group.device.type,
            "processes": group.size,
            "threads": torch.get_num_threads(),
        },
    }


def _digest(source: transfer.Source) -> str:
    digest = hashlib.sha256()
    for name, tensor in source.tensors.items():
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(tensor))
    return digest.hexdigest()


def _median_side(data: Dataset) -> float:
    """Returns the median of the shorter sides, in pixels, of a sample; infinity where none can be read."""
    photos = data.of("train")
    sides = []
    for photo in photos[:: max(len(photos) // SAMPLE, 1)]:
        try:
            header = read_header(open_bytes(data.path(photo)))
        except DataError:
            continue  # decoding will name it
        sides.append(min(header.width, header.height))
    return float(np.median(sides)) if sides else np.inf


def _refuse_other_source(run: dict[str, Any], start_from: Path | None) -> None:
    begun = run["start_from"] and run["start_from"]["path"]
    if start_from is not None and os.path.abspath(start_from) != begun:
        raise UsageError(
            f"--from: the training was begun from {begun or 'random weights'}, not {shown(start_from)}; resume without "
            "it, or begin anew in another folder"
        )


def _plan(run: dict[str, Any], folder: RunFolder) -> Plan:
    try:
        return Plan.from_dict(run["plan"])
    except (UsageError, DataError, KeyError, TypeError) as error:
        raise ModelError(f"{shown(folder.run)}: {error}") from error


def _refuse_other_data(data: Dataset, run: dict[str, Any], folder: RunFolder) -> None:
    begun = run["data"]
    if data.fingerprint() == begun["fingerprint"]:
        return
    found = f"{len(data.of('train'))} photos to train on and {len(data.of('val'))} to validate on"
    raise DatasetError(
        f"{shown(data.root)}: {found} in {len(data.classes)} classes are not the {begun['train']} and {begun['val']} in "
        f"{len(begun['classes'])} classes of {begun['path']} that the training in {shown(folder.output)} began with; "
        "restore them, or begin anew in another folder"
    )


def _decode(
    data: Dataset, plan: Plan, folder: RunFolder, settings: Settings, report: Report | None
) -> tuple[Cache, Cache | None]:
    height, width = augment.stored(plan.preprocessing)
    larger = replace(plan.preprocessing, height=height, width=width)
    limits = {} if settings.max_bad is None else {"max_bad": settings.max_bad}

    def progress(what: str) -> Progress | None:
        from .progress import counter

        return counter(what) if report else None

    train = cache.build(
        data.of("train"), data.root, folder.cache / "train", larger, "train",
        threads=settings.threads, progress=progress("decoding"), **limits,
    )  # fmt: skip
    if not data.of("val"):
        return train, None
    return train, cache.build(
        data.of("val"), data.root, folder.cache / "val", plan.preprocessing, "eval",
        threads=settings.threads, progress=progress("decoding to validate"), **limits,
    )  # fmt: skip


def _check_usable(
    train: Cache, validation: Cache | None, begun: str | None, folder: RunFolder, group: Group
) -> str:
    """Returns a digest of which photos can be read; all processes must see the same, now and on resume."""
    digest = hashlib.sha256(train.index.tobytes())
    if validation is not None:
        digest.update(validation.index.tobytes())
    here = digest.hexdigest()
    first = group.tell(here)
    if here != first:
        raise DatasetError(f"process {group.rank}: reads other photos than process 0; are its files the same?")
    if begun is not None and here != begun:
        raise DatasetError(
            f"{shown(folder.output)}: other photos are unreadable than when the training began; those of then are in "
            f"{shown(folder.bad_photos)}; restore the others, or begin anew in another folder"
        )
    return here
