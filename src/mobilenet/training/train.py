"""Training: `train` turns labelled photos into a model folder, and can be stopped and resumed anywhere."""

import contextlib
import dataclasses
import math
import time
from importlib import metadata
from pathlib import Path

import torch

from .. import weights
from ..common.checks import exact_fields
from ..common.files import shown
from ..errors import MobileNetError, ModelError, UsageError
from ..quantization.quantize import usual_count
from ..storage import folder
from . import checkpoint, fine_tuning, measure
from .allocator import keeping_memory
from .batches import Batches, ahead
from .checkpoint import Checkpoint
from .distributed import Group, Lost
from .fine_tuning import Source
from .monitor import Epoch, Report, Step, on_stderr, silent
from .prepare import Prepared, plan_of, prepare
from .quantized_module import QuantizedModule
from .recipe import Plan
from .run_folder import RunFolder
from .settings import Settings
from .signals import Interrupted, Signals
from .tally import Result, Sums, Tally
from .tensorboard import Log, open_log
from .torch_model import TorchMobileNet
from .worker import Worker

CHECKPOINT_SECONDS = 60.0


def train(
    photos: Path | str,
    output: Path | str,
    settings: Settings | None = None,
    *,
    start_from: Path | str | None = None,
    resume: bool = False,
    report: Report | None = None,
) -> Result:
    """Trains a MobileNet on labelled photos and makes a model folder.

    Under `torchrun` it trains together with the other processes; process 0 alone writes and reports.

    Args:
        photos: folder or list, see `dataset.read`.
        output: model folder to make; see `run_folder` for what else is in it.
        settings: what is to be other than `recipe.decide` does it.
        start_from: folder of a model whose weights to begin with.
        resume: go on with the training in `output`, if there is one; its settings hold.
        report: is told notes and progress; by default they go to stderr.

    Raises:
        UsageError: a setting that can't be, or that is not the one the training was begun with.
        DataError: photos or model can't be used, too many photos are unreadable, or the data is not that of before.
        Interrupted: Ctrl-C or SIGTERM; a checkpoint was written.
        MobileNetError: another process trains in `output`; a process was lost; the loss is not finite.
    """
    began = time.monotonic()
    settings = settings or Settings()
    folder.refuse_inside(Path(output), Path(photos))
    group = Group.from_environment()
    tell = (report or on_stderr()) if group.is_first else silent
    run_folder = RunFolder(output)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    with Signals() as signals, run_folder.claim(resume) if group.is_first else contextlib.nullcontext():
        group.meet()
        if ended := _ended(run_folder, settings, group):
            tell(f"{shown(run_folder.output)}: this training has ended, there is nothing to go on with")
            return ended
        source = None if start_from is None else Path(start_from)
        if group.is_first:
            settings, source = run_folder.asked_for(settings, source, resume, tell)
        prepared = prepare(Path(photos), run_folder, settings, source, group, tell)
        training = Training(prepared, run_folder, settings, group, tell, signals, began)
        training.begin()
        result = training.run()
        group.leave()
    return result


def _ended(run_folder: RunFolder, settings: Settings, group: Group) -> Result | None:
    """Returns what the training in the folder came to, if it has ended and is the one that the settings ask for."""
    result = run_folder.read_result() if group.is_first else None
    if result is not None and (run := run_folder.read_run()):
        plan_of(run, run_folder).refuse_other(settings)
    told = group.tell(None if result is None else result.to_dict())
    return None if told is None else Result(**told | {"output": run_folder.output})


def _module(plan: Plan) -> TorchMobileNet:
    initial = weights.initial(plan.network, plan.seed)
    if plan.precision == "int8":
        return QuantizedModule(plan.network, plan.preprocessing, initial)
    return TorchMobileNet(plan.network, initial)


class Training:
    """Is a training in one process: the loop over epochs and steps, and what is written down on the way."""

    def __init__(
        self,
        prepared: Prepared,
        run_folder: RunFolder,
        settings: Settings,
        group: Group,
        report: Report,
        signals: Signals,
        began: float,
    ) -> None:
        self.prepared, self.folder, self.settings = prepared, run_folder, settings
        self.group, self.report, self.signals = group, report, signals
        plan, photos, begun = prepared.plan, prepared.train, prepared.run["begun"]
        if prepared.begun and settings.threads is None and begun["processes"] == group.size:
            torch.set_num_threads(begun["threads"])  # another number adds in another order
        model = _module(plan).to(group.device)
        if not prepared.begun:
            plan = measure.decide(plan, settings, model, photos, prepared.validation, group, began, report)
        self.plan = plan
        self.batches = Batches(plan, photos)
        self.steps = plan.epochs * self.batches.per_epoch
        self.worker = Worker(plan, model, self.steps, group)
        self.state = self.worker.state
        self.tally = Tally()
        self.saved_at = time.monotonic()

    # ------------------------------------------------------------------------------------------------ the beginning

    def begin(self) -> None:
        """Brings all processes to the same state: of a checkpoint, of another model, or new."""
        if self.group.is_first:
            if self.prepared.begun:
                self._load_checkpoint()
            else:
                self.folder.write_bad_photos(self.prepared.bad)
                self.folder.write_run(self.prepared.run | {"plan": self.plan.to_dict()})
            if self.state.step == 0 and self.prepared.run["start_from"]:
                self._take_source()
            self.folder.cut_metrics(self.state.step)
        self.group.copy(self.state.vectors.values())
        self.state.step, tally = self.group.tell([self.state.step, dataclasses.asdict(self.tally)])
        self.tally = Tally(**tally)
        self.group.hurry()

    def _load_checkpoint(self) -> None:
        sizes = {name: len(vector) for name, vector in self.state.vectors.items()}
        found, troubles = checkpoint.newest(self.folder.checkpoints, sizes)
        for trouble in troubles:
            self.report(trouble)
        if found is None:
            self.report("there is no checkpoint to go on from: beginning anew, by the recorded plan")
            return
        try:
            self.tally = Tally(**exact_fields("checkpoint", found.facts, Tally))
        except UsageError as error:
            raise ModelError(f"{shown(self.folder.checkpoints)}: {error}") from error
        self.state.load(found.vectors, found.step)
        which = "the checkpoint before" if troubles else "the checkpoint"
        self.report(f"going on from {which}, step {found.step} of {self.steps}")

    def _take_source(self) -> None:
        """Takes another model's weights, and fits a classifier to its features where it needs a new one."""
        run, model = self.prepared.run, self.worker.model
        source = Source.load(Path(run["start_from"]["path"]))
        if source.digest() != run["start_from"]["sha256"]:
            raise ModelError(f"{shown(source.path)}: is not the model that the training began from; restore it")
        kept = bool(run["data"]["kept"])
        model.load(fine_tuning.begin(source, self.plan.network, self.plan.seed, kept))
        if not kept:
            self.report("fitting the classifier to the frozen network's features")
            fine_tuning.train_classifier(model, self.prepared.train, self.plan, self.group.device)
        if isinstance(model, QuantizedModule):
            model.calibrate(fine_tuning.central_pixels(self.prepared.train, self.plan, usual_count(self.plan.network)))
        self.state.begin()
        self._save()

    # ------------------------------------------------------------------------------------------------------ the loop

    def run(self) -> Result:
        """Trains to the end, or raises what stops it; the last checkpoint then is of the last whole step."""
        self.signals.deferred = True
        try:
            wanted = bool(self.settings.tensorboard)
            with keeping_memory(), open_log(self.folder.tensorboard, self.state.step, wanted, self.group) as log:
                self._loop(log)
        except Lost:
            self._save()
            raise
        finally:
            self.signals.deferred = False
        result = self._result()
        if self.group.is_first:
            self.folder.end(result)
        return result

    def _loop(self, log: Log) -> None:
        first, began, photos = self.state.step, time.monotonic(), 0
        pin = self.group.device.type == "cuda"
        reading = self.batches.read(first, self.steps, self.group.rank, self.group.size, pin)
        with contextlib.closing(ahead(reading)) as parts:
            if self._is_epoch_full():  # a process was lost while this epoch was validated
                self._end_epoch(log)
            while not self.tally.done:
                start = time.monotonic()
                sums, stop = self.worker.step(parts, self.signals.pending)
                self._check_finite("the loss", sums.loss)
                self.tally.add(sums, time.monotonic() - start)
                photos += sums.photos
                elapsed = time.monotonic() - began
                self._tell_step(sums, photos / elapsed, elapsed / (self.state.step - first))
                log.step(self.state.step, sums.loss / sums.photos)
                if self._is_epoch_full():
                    self._end_epoch(log)
                elif stop or self._is_due():
                    self._save()
                if stop and not self.tally.done:
                    raise Interrupted(stop, f"; go on with --resume from step {self.state.step} of {self.steps}")

    def _is_epoch_full(self) -> bool:
        return self.tally.photos > 0 and self.state.step % self.batches.per_epoch == 0

    def _check_finite(self, name: str, value: float) -> None:
        if not math.isfinite(value):
            raise MobileNetError(
                f"{name} is {value} at step {self.state.step} of {self.steps}: begin anew in another "
                f"folder with a lower --learning-rate than {self.plan.learning_rate:g}, or with --clip 1"
            )

    def _tell_step(self, sums: Sums, speed: float, step_seconds: float) -> None:
        step, per_epoch = self.state.step, self.batches.per_epoch
        epoch, loss = (step - 1) // per_epoch + 1, sums.loss / sums.photos
        left = (self.steps - step) * step_seconds
        self.report(Step(epoch, self.plan.epochs, step, self.steps, loss, speed, left))

    def _end_epoch(self, log: Log) -> None:
        """Validates the averaged weights, keeps them if they are the best, writes the metrics and a checkpoint."""
        start, epoch = time.monotonic(), self.state.step // self.batches.per_epoch
        tally, validation, val_loss, val_top1 = self.tally, self.prepared.validation, None, None
        train_loss, train_top1 = tally.loss / tally.photos, tally.correct / tally.photos
        speed, seconds = tally.photos / tally.seconds, tally.seconds
        self._check_finite("the sum of the weights", float(self.state.vectors["average"].sum()))
        with self.state.averaged():
            found = self.worker.validate(validation) if validation else None
            if found:
                self._check_finite("the validation loss", found.loss)
                val_loss, val_top1 = found.loss / found.photos, found.correct / found.photos
            is_best = tally.end_epoch(epoch, found, time.monotonic() - start)
            if is_best:
                self._save_model(epoch, val_loss, val_top1)
        tally.done = epoch == self.plan.epochs or 0 < self.plan.patience <= epoch - tally.best_epoch
        told = Epoch(epoch, self.plan.epochs, train_loss, train_top1, val_loss, val_top1, speed, is_best)
        row = dataclasses.asdict(told) | {"step": self.state.step, "seconds": seconds + time.monotonic() - start}
        log.epoch(row)
        if self.group.is_first:
            self.folder.add_metrics(row)
        self._save()
        self.report(told)
        if tally.done and epoch < self.plan.epochs:
            self.report(f"stopped early: no better validation in {self.plan.patience} epochs")

    # ------------------------------------------------------------------------------------------ what is written down

    def _is_due(self) -> bool:
        seconds = self.settings.checkpoint_seconds
        return time.monotonic() - self.saved_at >= (CHECKPOINT_SECONDS if seconds is None else seconds)

    def _save(self) -> None:
        """Writes a checkpoint, in process 0."""
        if self.group.is_first:
            facts = dataclasses.asdict(self.tally)
            checkpoint.save(self.folder.checkpoints, Checkpoint(self.state.step, self.state.arrays(), facts))
        self.saved_at = time.monotonic()

    def _save_model(self, epoch: int, val_loss: float | None, val_top1: float | None) -> None:
        """Makes the model's present weights the model in the folder, in process 0."""
        if not self.group.is_first:
            return
        prepared, plan = self.prepared, self.plan
        data = prepared.run["data"]
        notes = {
            "Training": {
                "photos": len(prepared.train.index),
                "validation photos": len(prepared.validation.index) if prepared.validation else 0,
                "data fingerprint": data["fingerprint"],
                "epoch": epoch,
                "epochs planned": plan.epochs,
                "batch": plan.batch,
                "learning rate": plan.learning_rate,
                "augmentation": plan.augment,
                "precision": plan.precision,
                "seed": plan.seed,
                "begun from": (prepared.run["start_from"] or {"sha256": "random weights"})["sha256"],
                "torch": metadata.version("torch"),
            },
            "Accuracy": {} if val_top1 is None else {"validation top-1": val_top1, "validation loss": val_loss},
        }
        model = self.worker.model
        stored = folder.Stored(plan.network, model.tensors(), prepared.classes, plan.preprocessing, notes)
        if isinstance(model, QuantizedModule):
            stored = stored._replace(tensors=model.int8_tensors(), precision="int8", rescale="full")
        folder.save(self.folder.output, stored)

    def _result(self) -> Result:
        prepared, tally = self.prepared, self.tally
        count = len(prepared.validation.index) if prepared.validation else 0
        return Result(
            output=self.folder.output,
            epochs=self.state.step // self.batches.per_epoch,
            best_epoch=tally.best_epoch,
            val_top1=tally.best_correct / count if count else None,
            val_loss=tally.best_loss / count if count else None,
            train=len(prepared.train.index),
            validation=count,
            bad=len(prepared.bad),
            seconds=tally.total_seconds,
        )
