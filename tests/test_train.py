"""A training learns, writes what it should, stops when it should, and refuses what it can't do."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mobilenet import weights
from mobilenet.errors import DatasetError, MobileNetError, ModelError, UsageError
from mobilenet.photos.preprocessing import Preprocessing
from mobilenet.storage import folder
from mobilenet.training import augment, fine_tuning, measure
from mobilenet.training.batches import Batches, MicroBatch
from mobilenet.training.distributed import Group
from mobilenet.training.monitor import Epoch, Event, Step, on_stderr, silent
from mobilenet.training.optimizer import State
from mobilenet.training.recipe import Plan
from mobilenet.training.settings import Settings
from mobilenet.training.torch_model import TorchMobileNet
from mobilenet.training.train import train
from mobilenet.training.worker import Worker
from toy_training import TINY, make_photos, metrics_of, state_of, tiny


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_photos(tmp_path_factory.mktemp("data") / "photos")


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Event]]:
    """Returns a training on photos that are easily told apart, and what it told."""
    data = make_photos(tmp_path_factory.mktemp("easy") / "photos", each=60)
    told: list[Event] = []
    output = tmp_path_factory.mktemp("learned") / "out"
    train(data, output, tiny(epochs=8), report=told.append)
    return output, told


def silently(photos: Path, output: Path, settings: Settings, **more: Any) -> list[str]:
    """Trains and returns the notes."""
    told: list[Event] = []
    train(photos, output, settings, report=told.append, **more)
    return [event for event in told if isinstance(event, str)]


def plan_in(output: Path) -> Plan:
    return Plan.from_dict(json.loads((output / "training" / "run.json").read_text())["plan"])


# ---------------------------------------------------------------------------------------------- what a training does


def test_it_learns(learned: tuple[Path, list[Event]]) -> None:
    epochs = [event for event in learned[1] if isinstance(event, Epoch)]
    assert epochs[-1].train_loss < 0.6 * epochs[0].train_loss
    assert epochs[-1].val_top1 is not None
    assert epochs[-1].val_top1 > 0.9


def test_the_folder_holds_the_best_model(learned: tuple[Path, list[Event]]) -> None:
    output, told = learned
    epochs = [event for event in told if isinstance(event, Epoch)]
    best = max(epochs, key=lambda event: (event.val_top1, -(event.val_loss or 0)))
    assert best.is_best
    stored = folder.load(output)
    assert stored.labels == ("colour0", "colour1", "colour2")
    assert stored.notes["Accuracy"] == {"validation top-1": best.val_top1, "validation loss": best.val_loss}
    assert stored.notes["Training"]["epoch"] == best.epoch
    result = json.loads((output / "training" / "result.json").read_text())
    assert (result["best_epoch"], result["val_top1"]) == (best.epoch, best.val_top1)
    # Its weights give the accuracy that was told, computed anew from the photos.
    model = TorchMobileNet(stored.network, stored.tensors).eval()
    data = json.loads((output / "training" / "run.json").read_text())["data"]
    names = (output / "training" / "split.jsonl").read_text().splitlines()[1:]
    paths = [row["path"] for row in map(json.loads, names) if row["split"] == "val"]
    from mobilenet.photos import pixels

    inputs = np.stack([pixels(Path(data["path"]) / path, stored.preprocessing) for path in paths])
    with torch.no_grad():
        logits = model(augment.scaled(torch.from_numpy(inputs), stored.preprocessing))
    right = [stored.labels[index] == path.split("/")[0] for index, path in zip(logits.argmax(1), paths, strict=True)]
    assert np.mean(right) == best.val_top1


def test_metrics_and_progress(learned: tuple[Path, list[Event]]) -> None:
    output, told = learned
    steps = [event for event in told if isinstance(event, Step)]
    assert [event.step for event in steps] == list(range(1, 81))
    assert {event.steps for event in steps} == {80}
    assert [steps[index].epoch for index in (0, 9, 10, 79)] == [1, 1, 2, 8]
    assert steps[-1].seconds_left == 0
    assert min(event.images_per_second for event in steps) > 0
    rows = metrics_of(output)
    assert [(row["epoch"], row["step"]) for row in rows] == [(n, 10 * n) for n in range(1, 9)]
    first = [event.loss for event in steps[:10]]
    assert rows[0]["train_loss"] == pytest.approx(np.mean(first), rel=0.05)  # batches differ by one photo
    text = str(steps[3])
    assert text.startswith(f"epoch 1/8 step 4/80 loss {steps[3].loss:.3f} ")
    assert text.endswith(" left")


def test_what_is_written_down(learned: tuple[Path, list[Event]]) -> None:
    output = learned[0]
    run = json.loads((output / "training" / "run.json").read_text())
    assert run["plan"]["seed"] == 0
    assert run["plan"]["precision"] == "f32"
    assert (run["data"]["train"], run["data"]["val"]) == (153, 27)
    assert run["begun"]["torch"] == torch.__version__
    assert run["begun"]["threads"] == 1
    assert not (output / "training" / "cache").exists()


def test_the_seed_decides_about_everything(photos: Path, tmp_path: Path) -> None:
    for name, seed in (("one", 3), ("same", 3), ("other", 4)):
        silently(photos, tmp_path / name, tiny(epochs=1, seed=seed))
    one, same, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "same", "other"))
    assert one == same != other


def test_micro_batches_add_up_to_the_gradient_of_the_batch(photos: Path, tmp_path: Path) -> None:
    """Checked against each part's own gradient, by autograd, weighted by its number of photos."""
    from mobilenet.data import cache, dataset

    data = dataset.read(photos)
    how = Preprocessing(32, 32, crop=1.0, resize="squash")
    found = cache.build(data.of("train"), data.root, tmp_path / "cache", how, "train")
    silently(photos, tmp_path / "out", tiny(epochs=1))
    plan = replace(plan_in(tmp_path / "out"), micro_batches=3, batch=17)
    model = TorchMobileNet(plan.network, weights.initial(plan.network, 0))
    worker = Worker(plan, model, 10, Group())
    parts = list(Batches(plan, found).read(0, 1, 0, 1))
    assert [len(part.labels) for part in parts] == [6, 6, 5]
    gradients, statistics = [], []
    for part in parts:
        model.train()
        model.gradients_flat.zero_()
        worker.accumulate(part._replace(share=1.0))
        gradients.append(model.gradients_flat.double().clone())
        statistics.append(model.batch_statistics.double().clone())
    needed = sum(g * n for g, n in zip(gradients, (6, 6, 5), strict=True)) / 17
    measured = sum(s * n for s, n in zip(statistics, (6, 6, 5), strict=True)) / 17
    taken: list[torch.Tensor] = []
    worker.state.update = lambda *both: taken.extend(each.double().clone() for each in both)  # type: ignore[method-assign]
    sums, stop = worker.step(iter(parts))
    assert (sums.photos, stop) == (17, 0)
    # A gradient is summed in float32 over at most 6 · 16 · 16 places of a photo's largest feature map.
    eps = float(np.finfo(np.float32).eps)
    torch.testing.assert_close(taken[0], needed, rtol=0, atol=6 * 256 * eps * float(needed.abs().max()))
    torch.testing.assert_close(taken[1], measured, rtol=8 * eps, atol=8 * eps)


def test_the_first_gradient_is_that_of_the_smoothed_loss(photos: Path, tmp_path: Path) -> None:
    silently(photos, tmp_path / "out", tiny(epochs=1, average=0.0))
    rows = metrics_of(tmp_path / "out")
    model = TorchMobileNet(plan_in(tmp_path / "out").network, weights.initial(plan_in(tmp_path / "out").network, 0))
    uniform = F.cross_entropy(torch.zeros(1, 3), torch.zeros(1, dtype=torch.int64), label_smoothing=0.1)
    assert rows[0]["train_loss"] < 2 * float(uniform)
    assert not torch.equal(torch.from_numpy(state_of(tmp_path / "out")["parameters"]), model.parameters_flat.detach())


def test_bf16_is_used_when_asked_for(photos: Path, tmp_path: Path) -> None:
    silently(photos, tmp_path / "out", tiny(epochs=1, precision="bf16"))
    assert plan_in(tmp_path / "out").precision == "bf16"
    assert math.isfinite(metrics_of(tmp_path / "out")[0]["train_loss"])


def test_larger_photos_are_cropped(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", each=6, side=120)
    settings = Settings(**{name: value for name, value in TINY.items() if name not in ("resolution", "downsampling")})
    silently(photos, tmp_path / "out", replace(settings, epochs=1, batch=8))
    plan = plan_in(tmp_path / "out")
    assert (plan.network.height, plan.preprocessing.resize, plan.preprocessing.crop) == (160, "crop", 0.875)


# ------------------------------------------------------------------------------------------------- choices it makes


def test_the_faster_precision_is_taken_and_recorded(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for fast in ("f32", "bf16"):
        times = {"f32": 2.0, "bf16": 2.0, fast: 1.0}
        monkeypatch.setattr(measure, "_seconds", lambda plan, *_, times=times: times[plan.precision])
        notes = silently(photos, tmp_path / fast, tiny(epochs=1, precision=None))
        assert plan_in(tmp_path / fast).precision == fast
        assert any("f32 " in note and "bf16 " in note for note in notes)


def test_a_time_budget_sets_the_epochs(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "_seconds", lambda *_: 0.5)
    notes = silently(photos, tmp_path / "out", tiny(epochs=None, minutes=0.13))
    # 4 steps of 0.5 s and a validation of 9 photos where 51 are trained on: 2.2 s an epoch, 7.8 s.
    assert plan_in(tmp_path / "out").epochs == 3
    assert "3 epochs of about 2 s fit into 0.13 minutes" in notes
    assert len(metrics_of(tmp_path / "out")) == 3


def test_the_measurement_changes_nothing(photos: Path, tmp_path: Path) -> None:
    silently(photos, tmp_path / "measured", tiny(epochs=None, minutes=1e-6))
    silently(photos, tmp_path / "plain", tiny(epochs=1))
    measured, plain = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("measured", "plain"))
    assert measured == plain


def test_a_slow_machine_is_measured_once(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[Plan] = []
    accumulate = Worker.accumulate

    def counted(self: Worker, part: MicroBatch) -> torch.Tensor:
        passes.append(self.plan)
        return accumulate(self, part)

    monkeypatch.setattr(measure, "LONGEST", 0.0)
    monkeypatch.setattr(Worker, "accumulate", counted)
    silently(photos, tmp_path / "out", tiny(epochs=1, precision=None))
    measured = [plan.precision for plan in passes[: -Batches(passes[-1], cache_of(51)).per_epoch]]
    assert measured == ["f32", "f32", "bf16", "bf16"]


def cache_of(count: int) -> Any:
    return SimpleNamespace(index=range(count))


def test_it_stops_early(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(State, "update", lambda self, *_: setattr(self, "step", self.step + 1))  # learns nothing
    notes = silently(photos, tmp_path / "out", tiny(epochs=50, patience=3))
    assert notes[-1] == "stopped early: no better validation in 3 epochs"
    rows = metrics_of(tmp_path / "out")
    assert [row["is_best"] for row in rows] == [True, False, False, False]


def test_without_validation_the_last_epoch_is_the_model(photos: Path, tmp_path: Path) -> None:
    told: list[Event] = []
    result = train(photos, tmp_path / "out", tiny(validation=0.0), report=told.append)
    assert (result.val_top1, result.val_loss, result.best_epoch, result.train) == (None, None, 2, 60)
    assert all(row["is_best"] for row in metrics_of(tmp_path / "out"))
    assert str(result).endswith("the model of epoch 2 of 2")
    average = state_of(tmp_path / "out")["average"]
    network = plan_in(tmp_path / "out").network
    model = TorchMobileNet(network, folder.load(tmp_path / "out").tensors)
    assert np.array_equal(average, model.parameters_flat.detach().numpy())


# ------------------------------------------------------------------------------------------------------ bad photos


def test_bad_photos_are_set_aside_and_listed(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos")
    bad = [photos / "colour0" / "003.png", photos / "colour2" / "011.png"]
    for path in bad:
        path.write_bytes(b"no photo")
    result = train(photos, tmp_path / "out", tiny(epochs=1), report=lambda _: None)
    assert result.bad == 2
    assert result.train + result.validation == 58
    assert str(result).endswith("; 2 unreadable photo(s) left out")
    listed = (tmp_path / "out" / "training" / "bad_photos.jsonl").read_text().splitlines()
    assert sorted(json.loads(line)["path"] for line in listed) == ["colour0/003.png", "colour2/011.png"]


def test_too_many_bad_photos_stop_it(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos")
    for path in sorted(photos.glob("*/00*.png")):
        path.write_bytes(b"no photo")
    with pytest.raises(DatasetError, match="can't be decoded, more than 10%") as caught:
        train(photos, tmp_path / "out", tiny(), report=lambda _: None)
    assert caught.value.exit_code == 3
    assert not (tmp_path / "out" / "training" / "run.json").exists()


def test_no_photos_to_train_on(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="missing"):
        train(tmp_path / "missing", tmp_path / "out", tiny(), report=lambda _: None)
    rows = [f"{path},{path.parent.name},val" for path in sorted(photos.glob("*/*.png"))]
    (tmp_path / "list.csv").write_text("\n".join(["path,label,split", *rows]))
    with pytest.raises(DatasetError, match="no photos to train on"):
        train(tmp_path / "list.csv", tmp_path / "out", tiny(), report=lambda _: None)


# ---------------------------------------------------------------------------------------------------- the folder


def test_a_folder_with_something_else_is_left_alone(
    photos: Path, learned: tuple[Path, list[Event]], tmp_path: Path
) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match=r"mine: holds thesis.txt and is no training; choose another folder"):
        train(photos, mine, tiny())
    assert [path.name for path in mine.iterdir()] == ["thesis.txt"]
    with pytest.raises(UsageError, match=r"thesis.txt: is a file; name a folder"):
        train(photos, mine / "thesis.txt", tiny())
    folder.save(tmp_path / "model", folder.load(learned[0]))
    with pytest.raises(UsageError, match="model: holds a model; choose another folder"):
        train(photos, tmp_path / "model", tiny())
    with pytest.raises(MobileNetError, match="can't be trained in"):
        train(photos, Path("/proc/mobilenet"), tiny())


def test_a_start_that_failed_can_be_repeated(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="micro_batches"):
        train(photos, tmp_path / "out", tiny(micro_batches=16), report=lambda _: None)
    silently(photos, tmp_path / "out", tiny(epochs=1))


def test_a_loss_that_is_not_finite_stops_it(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    update = State.update

    def explode(self: State, *both: torch.Tensor) -> None:
        update(self, *both)
        if self.step == 6:
            self.vectors["parameters"].fill_(math.inf)

    monkeypatch.setattr(State, "update", explode)
    with pytest.raises(MobileNetError, match=r"the loss is nan at step 7 of 8: begin anew .* lower --learning-rate"):
        train(photos, tmp_path / "out", tiny(), report=lambda _: None)
    assert all(np.isfinite(vector).all() for vector in state_of(tmp_path / "out").values())


# ---------------------------------------------------------------------------------------------- from another model


def test_another_models_weights_are_fine_tuned(learned: tuple[Path, list[Event]], tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", classes=2, seed=1)
    settings = Settings(epochs=1, batch=16, precision="f32", threads=1, learning_rate=1e-6)
    notes = silently(photos, tmp_path / "out", settings, start_from=learned[0])
    assert "fitting the classifier to the frozen network's features" in notes
    stored, source = folder.load(tmp_path / "out"), folder.load(learned[0])
    assert stored.network == source.network.replace(classes=2)
    assert stored.labels == ("colour0", "colour1")
    # At this learning rate all the learning was done by the classifier on frozen features.
    assert metrics_of(tmp_path / "out")[0]["val_top1"] == 1.0
    for name in ("stem.weight", "block3.project.gamma"):
        np.testing.assert_allclose(stored.tensors[name], source.tensors[name], rtol=0, atol=1e-3)
    assert "training began from" in str(_raised(photos, tmp_path / "out", learned[0]))


def _raised(photos: Path, output: Path, source: Path) -> str:
    """Returns the error when the source is another model than recorded, before there is a checkpoint."""
    run = json.loads((output / "training" / "run.json").read_text())
    run["start_from"]["sha256"] = "0" * 64
    (output / "training" / "run.json").write_text(json.dumps(run))
    (output / "training" / "result.json").unlink()
    for path in (output / "training" / "checkpoints").iterdir():
        path.unlink()
    with pytest.raises(ModelError) as caught:
        train(photos, output, start_from=source, resume=True, report=lambda _: None)
    return str(caught.value)


def test_a_classifier_for_the_same_classes_is_kept(learned: tuple[Path, list[Event]], tmp_path: Path) -> None:
    source = folder.load(learned[0])
    assert source.labels is not None
    turned = source._replace(
        labels=source.labels[::-1],
        tensors=source.tensors
        | {name: source.tensors[name][..., ::-1].copy() for name in ("classifier.weight", "classifier.bias")},
    )
    folder.save(tmp_path / "turned", turned)
    photos = make_photos(tmp_path / "photos", seed=1)
    settings = Settings(epochs=1, batch=16, precision="f32", threads=1, learning_rate=1e-6)
    notes = silently(photos, tmp_path / "out", settings, start_from=tmp_path / "turned")
    assert not any("fitting" in note for note in notes)
    assert folder.load(tmp_path / "out").labels == ("colour2", "colour1", "colour0")
    assert metrics_of(tmp_path / "out")[0]["val_top1"] > 0.9


def test_weights_that_do_not_fit_are_refused(learned: tuple[Path, list[Event]], photos: Path, tmp_path: Path) -> None:
    message = r"out: tensor 'block0.*' has shape \(.*\), MobileNetV2 alpha 0.5 .* needs \(.*\); leave out --family"
    with pytest.raises(ModelError, match=message):
        train(photos, tmp_path / "new", tiny(alpha=0.5), start_from=learned[0], report=lambda _: None)


def test_a_model_without_top_gets_one(learned: tuple[Path, list[Event]], photos: Path, tmp_path: Path) -> None:
    source = folder.load(learned[0])
    headless = source.network.replace(include_top=False, pooling="avg")
    tensors = {name: source.tensors[name] for name in headless.tensors}
    folder.save(tmp_path / "headless", source._replace(network=headless, tensors=tensors, labels=None))
    found = fine_tuning.Source.load(tmp_path / "headless")
    assert found.network == source.network
    assert not found.has_classes(("colour0", "colour1", "colour2"))
    begun = fine_tuning.begin(found, source.network, 0, False)
    assert np.array_equal(begun["head.weight"], source.tensors["head.weight"])
    assert np.array_equal(begun["classifier.weight"], weights.initial(source.network, 0)["classifier.weight"])


def test_the_frozen_classifier_is_the_minimum() -> None:
    rng = np.random.default_rng(0)
    labels = torch.from_numpy(rng.integers(0, 3, 200))
    features = torch.from_numpy(rng.standard_normal((200, 5)) * [1, 10, 0.1, 1, 1] + labels[:, None].numpy() * 0.5 + 3)
    weight, bias = (tensor.requires_grad_() for tensor in fine_tuning.fit_classifier(features, labels, 3, 0.1))
    penalty = (weight * features.std(0)[:, None]).square().sum() / (2 * 200)
    loss = F.cross_entropy(features @ weight + bias, labels, label_smoothing=0.1) + penalty
    gradient = torch.autograd.grad(loss, [weight, bias])
    assert float((gradient[0] / features.abs().mean(0)[:, None]).abs().max()) < 1e-3
    assert float(gradient[1].abs().max()) < 1e-3
    assert float(loss.detach()) < math.log(3)


# ------------------------------------------------------------------------------------------------------ what it tells


def test_tensorboard_gets_the_same_figures(photos: Path, tmp_path: Path) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    silently(photos, tmp_path / "out", tiny(tensorboard=True))
    events = event_accumulator.EventAccumulator(str(tmp_path / "out" / "training" / "tensorboard"))
    events.Reload()
    rows = metrics_of(tmp_path / "out")
    for name in ("train_loss", "val_top1"):
        assert [event.value for event in events.Scalars(name)] == pytest.approx([row[name] for row in rows])
    assert [event.step for event in events.Scalars("step_loss")] == list(range(1, 9))


def test_tensorboard_needs_its_package(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UsageError, match=r"pip install 'mobilenet\[tensorboard\]'"):
        train(photos, tmp_path / "out", tiny(tensorboard=True), report=lambda _: None)


def test_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    report = on_stderr()
    report("a note")
    report(Epoch(1, 2, 1.5, 0.5, None, None, 99.6, False))
    report(Epoch(2, 2, 1.25, 0.75, 1.0, 0.9, 99.6, True))
    assert capsys.readouterr().err.splitlines() == [
        "a note",
        "epoch 1/2 train loss 1.500 top-1 50.0% 100 images/s",
        "epoch 2/2 train loss 1.250 top-1 75.0% val loss 1.000 top-1 90.0% 100 images/s best",
    ]


def test_weights_that_are_not_finite_are_no_model(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last step of an epoch breaks them: no loss has shown it yet."""
    update = State.update

    def explode(self: State, *both: torch.Tensor) -> None:
        update(self, *both)
        if self.step == 4:
            self.vectors["average"].fill_(math.inf)

    monkeypatch.setattr(State, "update", explode)
    with pytest.raises(MobileNetError, match=r"the sum of the weights is inf at step 4 of 8: begin anew"):
        train(photos, tmp_path / "out", tiny(), report=silent)
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_a_time_budget_sets_the_patience(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "_seconds", lambda *_: 0.01)
    train(photos, tmp_path / "out", Settings(**TINY | {"patience": None, "minutes": 0.02}), report=silent)
    plan = json.loads((tmp_path / "out" / "training" / "run.json").read_text())["plan"]
    assert plan["patience"] == math.ceil(plan["epochs"] / 3)


def test_photos_that_can_not_be_used_leave_no_folder_behind(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for data in ("empty", "missing"):
        with pytest.raises(DatasetError):
            train(tmp_path / data, tmp_path / "out", tiny(), report=silent)
        assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()  # the user's own stays
    with pytest.raises(DatasetError):
        train(tmp_path / "missing", tmp_path / "out", tiny(), report=silent)
    assert (tmp_path / "out").exists()
