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

from ..common.files import shown
from ..common.progress import Progress, counter
from ..data import cache, dataset
from ..data.cache import Cache
from ..data.dataset import Dataset
from ..data.layouts import SetAside
from ..errors import DataError, DatasetError, ModelError, UsageError
from ..photos import open_bytes
from ..photos.headers import read_header
from . import augment, recipe
from .distributed import Group
from .fine_tuning import Source
from .monitor import Report
from .recipe import Plan
from .run_folder import RunFolder
from .settings import Settings

SAMPLE = 200  # photos whose size decides about the resolution


class Prepared(NamedTuple):
    """Is what a training works with.

    Attributes:
        plan: what is done, final if it was `begun`, else but for the choices that need a measurement.
        train, validation: decoded photos; no `validation` where there are none.
        run: what `run.json` holds, or will hold.
        begun: whether this training is resumed.
    """

    plan: Plan
    train: Cache
    validation: Cache | None
    run: dict[str, Any]
    begun: bool

    @property
    def classes(self) -> tuple[str, ...]:
        """The labels."""
        return tuple(self.run["data"]["classes"])

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
    data: Dataset | None = None
    run: dict[str, Any] | None = None
    begun = False
    if group.is_first:
        run = folder.read_run()
        begun = run is not None
        if run is None:
            source = Source.load(start_from) if start_from else None
            data = dataset.read(photos, **_reading(settings))
            run = _new_run(data, settings, source, group, report)
            dataset.save_split(data, folder.split)
        else:
            _refuse_other_source(run, start_from)
    run, begun = group.tell([run, begun])
    plan = plan_of(run, folder)
    if begun:
        plan.refuse_other(settings)
    if data is None:
        data = dataset.read(photos, seed=plan.seed, validation=plan.validation, split_file=folder.split)
    if set(data.classes) == set(run["data"]["classes"]):
        data = data.relabel(run["data"]["classes"])
    _refuse_other_data(data, run, folder)
    train, validation = _decode(data, plan, folder, settings, report if group.is_first else None)
    run["data"]["usable"] = _check_usable(train, validation, run["data"].get("usable"), folder, group)
    recipe.check_micro_batches(plan, len(train.index), group.size)
    return Prepared(plan, train, validation, run, begun)


def _reading(settings: Settings) -> dict[str, Any]:
    return {name: value for name, value in settings.given().items() if name in ("seed", "validation")}


def _new_run(data: Dataset, settings: Settings, source: Source | None, group: Group, report: Report) -> dict[str, Any]:
    """Returns the run of a new training, as far as it is known before the photos are decoded."""
    for note in data.notes:
        report(note)
    kept = source is not None and source.has_classes(data.classes)
    if source is not None and not kept and settings.precision == "int8":
        raise DatasetError(
            f"{shown(data.root)}: has other classes than the model in {shown(source.path)}; needed are the same: train "
            "a float32 model for these first, then begin from it"
        )
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
        "start_from": {"path": str(source.path), "sha256": source.digest()} if source else None,
        "begun": {
            **{package: metadata.version(package) for package in ("torch", "numpy")},
            "python": platform.python_version(),
            "machine": platform.machine(),
            "device": group.device.type,
            "processes": group.size,
            "threads": torch.get_num_threads(),
        },
    }


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


def plan_of(run: dict[str, Any], folder: RunFolder) -> Plan:
    """Returns the plan that `run.json` holds; raises a `ModelError` that names what in it is wrong."""
    try:
        return Plan.from_dict(run["plan"])
    except (UsageError, DataError, KeyError, TypeError) as error:
        raise ModelError(f"{shown(folder.run)}: {error}") from error


def _refuse_other_data(data: Dataset, run: dict[str, Any], folder: RunFolder) -> None:
    begun = run["data"]
    if data.fingerprint() == begun["fingerprint"]:
        return
    raise DatasetError(
        f"{shown(data.root)}: is not the data that the training in {shown(folder.output)} began with: "
        f"{len(data.of('train'))} photos to train on and {len(data.of('val'))} to validate on in {len(data.classes)} "
        f"classes, then {begun['train']} and {begun['val']} in {len(begun['classes'])}; restore it, or begin anew in "
        "another folder"
    )


def _decode(
    data: Dataset, plan: Plan, folder: RunFolder, settings: Settings, report: Report | None
) -> tuple[Cache, Cache | None]:
    height, width = augment.stored(plan.preprocessing)
    larger = replace(plan.preprocessing, height=height, width=width)
    limits = {} if settings.max_bad is None else {"max_bad": settings.max_bad}

    def progress(what: str) -> Progress | None:
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


def _check_usable(train: Cache, validation: Cache | None, begun: str | None, folder: RunFolder, group: Group) -> str:
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
