"""Times the way from JPEG files to labels: ours, ONNX Runtime with Pillow, and torchvision's pipeline, in turns.

    python benchmarks/pipeline.py PHOTOS              # a folder; about 5 minutes; writes benchmarks/pipeline.json
    python benchmarks/pipeline.py PHOTOS --limit 100  # the first 100 photos; prints and writes nothing
    python benchmarks/table.py                        # puts the results into the README

MobileNet V2 1.0 224 on two threads: int8 for ours and ONNX Runtime, float32 for torchvision, as its users have it. All
have the same weights, made by `rivals.tensors`, or those of `--model`. Before anything is timed each side's logits of
two photos are compared with `integer.forward` or `reference.forward`; a side that is wrong ends the run. The results
say how many labels are ours, which means something with trained weights only: random ones like one class best.

As in `compare.py` each side has a process of its own, in a round each labels all photos once, and the next round begins
with the next side. A side is tried in several ways, and the fastest takes part; so does the way that most programs do
it, one photo after the other. A side that is not installed is left out, and it says so. torchvision needs a build of
torch with CUDA, even where there is no GPU: `pip install -r benchmarks/requirements-pipeline.txt`.
"""

import argparse
import importlib.util
import json
import multiprocessing
import os
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from compare import KEEPING_MEMORY, machine, rest
from numpy.typing import NDArray
from PIL import Image
from rivals import tensors

import mobilenet
from mobilenet import arch, integer, photos, reference
from mobilenet.evaluation.predict import photo_paths, predict_paths
from mobilenet.export import int8
from mobilenet.export.onnx import onnx
from mobilenet.model import Model
from mobilenet.quantization.quantize import quantize
from mobilenet.quantization.sweep import Choices

RESULTS = Path(__file__).with_name("pipeline.json")
NETWORK = arch.v2(1.0, 224, conventions="torchvision")
THREADS = 2
CHECKED, CALIBRATED, TRIED = 2, 32, 60  # photos
FLOAT, QUANTISED = "float", "int8"  # folders of the two models

Array = NDArray[Any]


class Side:
    """Is what takes part.

    Attributes:
        ways: to do it, of which the fastest takes part; the first is the usual one.
    """

    ways: ClassVar[tuple[dict[str, int], ...]] = ({},)

    def __init__(self, models: Path) -> None:
        """Takes the models from a folder; raises `ImportError` where a package is missing."""

    def prepare(self, **way: int) -> None:
        """Makes everything ready to do it in one of the ways."""

    def logits(self, paths: Sequence[Path]) -> Array:
        """Returns the logits of photos, each decoded by `mobilenet.photos`."""
        raise NotImplementedError

    def labels(self, paths: Sequence[Path]) -> list[int]:
        """Returns the likeliest class of each photo, from its file on."""
        raise NotImplementedError

    def decode(self, paths: Sequence[Path]) -> None:
        """Makes the photos into the network's input on one thread, and no more."""
        raise NotImplementedError


class Ours(Side):
    """Is `mobilenet.evaluation.predict`, which the command `mobilenet predict` runs."""

    def __init__(self, models: Path) -> None:
        self._model = mobilenet.load(models / QUANTISED)
        self._numbers = {label: number for number, label in enumerate(self._model.labels)}
        self._engine = self._model.compile(threads=THREADS)

    def logits(self, paths: Sequence[Path]) -> Array:
        return np.array(self._engine(pixels(self._model, paths)))

    def labels(self, paths: Sequence[Path]) -> list[int]:
        rows = predict_paths(self._model, paths, top=1)
        return [self._numbers[row.predictions[0][0]] for row in rows]

    def decode(self, paths: Sequence[Path]) -> None:
        for path in paths:
            photos.pixels(path, self._model.preprocessing, resampler=self._engine.resampler)


class OnnxRuntime(Side):
    """Is ONNX Runtime with Pillow: each photo opened, cut and resized by one call, and run as it is, without scaling.

    Ways: photos one after the other; or in two threads, which share the processors with those of ONNX Runtime or not.
    """

    ways = (
        {"decoders": 1, "intra_op": 2, "spinning": 1},
        {"decoders": 2, "intra_op": 2, "spinning": 0},
        {"decoders": 2, "intra_op": 1, "spinning": 0},
    )

    def __init__(self, models: Path) -> None:
        import onnxruntime

        self._runtime = onnxruntime
        self._model = mobilenet.load(models / QUANTISED)
        self._size = self._model.preprocessing.height
        self._area = self._model.preprocessing.crop

    def prepare(self, **way: int) -> None:
        options = self._runtime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = way["intra_op"], 1
        options.graph_optimization_level = self._runtime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.add_session_config_entry("session.intra_op.allow_spinning", str(way["spinning"]))
        options.add_free_dimension_override_by_name("N", 1)
        file = onnx(self._model, pixels=True)
        self._session = self._runtime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        self._decoders = way["decoders"]

    def _run(self, image: Array) -> Array:
        return np.asarray(self._session.run(None, {"pixels": image[None]})[0][0])

    def logits(self, paths: Sequence[Path]) -> Array:
        return np.array([self._run(image) for image in pixels(self._model, paths)])

    def labels(self, paths: Sequence[Path]) -> list[int]:
        if self._decoders == 1:
            return [self._label(path) for path in paths]
        with ThreadPoolExecutor(self._decoders) as pool:
            return list(pool.map(self._label, paths))

    def _label(self, path: Path) -> int:
        return int(self._run(self._opened(path)).argmax())

    def _opened(self, path: Path) -> Array:
        with Image.open(path) as image:
            side = self._area * min(image.size)
            left, top = (image.width - side) / 2, (image.height - side) / 2
            box = (left, top, left + side, top + side)
            size = (self._size, self._size)
            return np.asarray(image.convert("RGB").resize(size, Image.Resampling.BILINEAR, box))

    def decode(self, paths: Sequence[Path]) -> None:
        for path in paths:
            self._opened(path)


class Torchvision(Side):
    """Is torchvision as its references have it: transforms, a DataLoader with processes that live on, its own model.

    Ways: from one photo at a time to batches, with processes and threads that share the processors or not.
    """

    ways = (
        {"workers": 2, "threads": 2, "batch": 32},
        {"workers": 2, "threads": 1, "batch": 32},
        {"workers": 1, "threads": 1, "batch": 32},
        {"workers": 1, "threads": 2, "batch": 8},
    )

    def __init__(self, models: Path) -> None:
        import torch
        import torchvision

        self._model = mobilenet.load(models / FLOAT)
        if self._model.network.conventions != NETWORK.conventions:
            raise ImportError(f"has no network with the conventions of {self._model.network}")
        self._torch, self._torchvision = torch, torchvision
        module = torchvision.models.mobilenet_v2(num_classes=self._model.network.classes)
        with tempfile.TemporaryDirectory() as folder:
            from mobilenet.convert import write

            file = Path(folder, "weights.safetensors")
            write(self._model, file, "torchvision")
            state = {name: torch.from_numpy(array) for name, array in _arrays(file)}
        module.load_state_dict(state, strict=False)
        self._module = module.eval()
        transforms, scaling = torchvision.transforms, self._model.preprocessing
        self._transform = transforms.Compose(
            [
                transforms.Resize(round(scaling.height / scaling.crop)),
                transforms.CenterCrop(scaling.height),
                transforms.ToTensor(),
                transforms.Normalize([x / 255 for x in scaling.mean], [x / 255 for x in scaling.std]),
            ]
        )

    def prepare(self, **way: int) -> None:
        self._way = way
        self._torch.set_num_threads(way["threads"])
        self._loader: tuple[tuple[Path, ...], Any] = ((), None)  # whose processes live on

    def logits(self, paths: Sequence[Path]) -> Array:
        mean, std = (np.asarray(part, np.float32) for part in arch.SCALINGS[NETWORK.conventions.scaling])
        scaled = ((pixels(self._model, paths) - mean) / std).astype(np.float32).transpose(0, 3, 1, 2)
        with self._torch.inference_mode():
            return np.asarray(self._module(self._torch.from_numpy(np.ascontiguousarray(scaled))).numpy())

    def labels(self, paths: Sequence[Path]) -> list[int]:
        found: list[int] = []
        with self._torch.inference_mode():
            for batch in self._batches(tuple(paths)):
                found += self._module(batch).argmax(1).tolist()
        return found

    def _batches(self, paths: tuple[Path, ...]) -> Any:
        if self._loader[0] != paths:
            files = _Files(paths, self._transform, self._torchvision.datasets.folder.default_loader)
            batch, workers = self._way["batch"], self._way["workers"]
            made = self._torch.utils.data.DataLoader(files, batch, num_workers=workers, persistent_workers=True)
            self._loader = paths, made
        return self._loader[1]

    def decode(self, paths: Sequence[Path]) -> None:
        for path in paths:
            self._transform(self._torchvision.datasets.folder.default_loader(path))


class _Files:
    """Is a data set of torch: the photos of a list."""

    def __init__(self, paths: Sequence[Path], transform: Callable[[Any], Any], load: Callable[[Path], Any]) -> None:
        self._paths, self._transform, self._load = paths, transform, load

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Any:
        return self._transform(self._load(self._paths[index]))


def _arrays(file: Path) -> Iterator[tuple[str, Array]]:
    """Gives the tensors of a safetensors file of float32 (and counters, which nothing reads)."""
    data = file.read_bytes()
    size = int.from_bytes(data[:8], "little")
    for name, facts in json.loads(data[8 : 8 + size]).items():
        if facts.get("dtype") == "F32":
            begin, end = facts["data_offsets"]
            values = np.frombuffer(data[8 + size + begin : 8 + size + end], np.float32)
            yield name, values.reshape(facts["shape"]).copy()


SIDES: dict[str, type[Side]] = {"ours": Ours, "ONNX Runtime + Pillow": OnnxRuntime, "torchvision": Torchvision}
PACKAGES = {  # and modules
    "ours": ("mobilenet", "mobilenet"),
    "ONNX Runtime": ("onnxruntime", "onnxruntime"),
    "Pillow": ("pillow", "PIL"),
    "torchvision": ("torchvision", "torchvision"),
}


def pixels(model: Model, paths: Sequence[Path]) -> NDArray[np.uint8]:
    """Returns photos as the network's input."""
    return np.stack([photos.pixels(path, model.preprocessing) for path in paths])


# ------------------------------------------------------------------------------------------------ in a side's process


def serve(connection: Connection, name: str, models: Path) -> None:
    """Does what is asked for until nothing more comes: (method, arguments) in, the answer out."""
    try:
        side = SIDES[name](models)
    except ImportError as error:
        connection.send(str(error))
        return
    connection.send(None)
    while True:
        try:
            what, *given, way = connection.recv()
        except EOFError:
            return
        start = time.perf_counter()
        answer = getattr(side, what)(*given, **way)
        seconds = time.perf_counter() - start
        if what == "labels":
            rest()
        connection.send((answer, seconds))


class Worker:
    """Is a side's process."""

    def __init__(self, name: str, models: Path) -> None:
        os.environ |= KEEPING_MEMORY
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, name, models))
        self._process.start()
        theirs.close()
        self.missing: str | None = self._pipe.recv()

    def ask(self, what: str, *given: object, **way: int) -> tuple[Any, float]:
        """Returns the answer and the seconds it took."""
        self._pipe.send((what, *given, way))
        answer: tuple[Any, float] = self._pipe.recv()
        return answer

    def stop(self) -> None:
        """Ends the process."""
        self._pipe.close()
        self._process.join()


# ----------------------------------------------------------------------------------------------- in the main process


def make(given: Path | None, paths: Sequence[Path], folder: Path) -> str:
    """Writes the float32 model and its int8 model into a folder; returns the latter's rescale."""
    model = mobilenet.load(given) if given else Model(NETWORK, tensors(NETWORK))
    images = pixels(model, paths[:CALIBRATED])
    model.save(folder / FLOAT)
    made = quantize(model, images, Choices("minmax", compensate=False)).model
    made.save(folder / QUANTISED)
    return made.rescale


def check(name: str, worker: Worker, models: Path, paths: Sequence[Path]) -> None:
    """Ends the run if a side's logits of some photos are not what they must be."""
    model = mobilenet.load(models / (FLOAT if name == "torchvision" else QUANTISED))
    images = pixels(model, paths)
    if name == "torchvision":
        right = reference.forward(model.network, model.tensors, images)
        far = reference.tolerance(model.network, model.tensors, images, float(np.finfo(np.float32).eps))
    else:
        right = integer.forward(model.network, model.tensors, images)
        far = np.zeros_like(right) if name == "ours" else int8.tolerance(model, images)
    found, _ = worker.ask("logits", paths)
    if not (np.abs(found - right) <= far).all():
        raise SystemExit(f"{name}: logits are wrong by {np.abs(found - right).max()}, allowed is {far.min()}")


def best_way(name: str, worker: Worker, paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Returns the ways that take part, the usual one and the fastest, with the images a second of their trials."""
    tried = []
    for way in SIDES[name].ways:
        worker.ask("prepare", **way)
        worker.ask("labels", paths)
        tried.append({"way": way, "tried": round(len(paths) / worker.ask("labels", paths)[1], 1)})
    return [tried[0], max(tried, key=lambda each: each["tried"])]


def entries(name: str, ways: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Returns the lines of the results for a side: one, or two where the usual way is not the fastest."""
    usual, best = ways
    if name == "ONNX Runtime + Pillow" and usual is not best:
        return {name: best, f"{name}, one by one": usual}
    return {name: best}


Sides = dict[str, dict[str, Any]]


def prepared(paths: Sequence[Path], models: Path, names: Sequence[str]) -> tuple[dict[str, Worker], Sides]:
    """Returns the sides that take part, ready, each in a process, and what is known of them."""
    sides: Sides = {}
    workers: dict[str, Worker] = {}
    for name in names:
        worker = Worker(name, models)
        if worker.missing:
            print(f"  {name}: skipped, {worker.missing}", flush=True)
            continue
        worker.ask("prepare", **SIDES[name].ways[0])
        check(name, worker, models, paths[:CHECKED])
        found = entries(name, best_way(name, worker, paths[:TRIED]))
        worker.stop()
        for line, facts in found.items():
            workers[line] = worker = Worker(name, models)
            worker.ask("prepare", **facts["way"])
            labels, _ = worker.ask("labels", paths)  # warms up as well
            sides[line] = facts | {"labels": labels}
    return workers, sides


def timed(workers: dict[str, Worker], sides: Sides, paths: Sequence[Path], rounds: int) -> None:
    """Adds to what is known of the sides their images a second in each round, and what decoding takes."""
    order = list(sides)
    for n in range(rounds):
        for line in order[n % len(order) :] + order[: n % len(order)]:
            _, seconds = workers[line].ask("labels", paths)
            sides[line].setdefault("rates", []).append(round(len(paths) / seconds, 2))
            _, seconds = workers[line].ask("decode", paths[:TRIED])
            sides[line].setdefault("decoding", []).append(round(1e3 * seconds / len(paths[:TRIED]), 3))


def results(workers: dict[str, Worker], sides: Sides, paths: Sequence[Path]) -> dict[str, Any]:
    """Ends the processes and returns the results."""
    for worker in workers.values():
        worker.stop()
    labels = {name: facts.pop("labels") for name, facts in sides.items()}
    for name, facts in sides.items():
        facts["different_labels"] = len(set(labels[name]))
        if "ours" in labels:
            facts["agreement"] = round(float(np.mean(np.equal(labels[name], labels["ours"]))), 4)
    return {"photos": len(paths), "threads": THREADS, "sides": sides}


def described(sides: Sides) -> str:
    """Returns the results as lines for a terminal."""
    lines = []
    ours = sides.get("ours")
    for name, side in sides.items():
        spread = f"{min(side['rates']):.0f}..{max(side['rates']):.0f}"
        times = f", ours {statistics.median(ratios(ours, side)):.2f} times as many" if ours and side is not ours else ""
        lines.append(
            f"  {name:34} {statistics.median(side['rates']):6.1f} images/s ({spread}){times}; decoding and resizing "
            f"{statistics.median(side['decoding']):.2f} ms of one thread; {side.get('agreement', 1):.1%} of labels as "
            f"ours ({side['different_labels']} different); {side['way']}"
        )
    return "\n".join(lines)


def ratios(ours: dict[str, Any], theirs: dict[str, Any]) -> list[float]:
    """Returns our images a second over a rival's in each round."""
    return [a / b for a, b in zip(ours["rates"], theirs["rates"], strict=True)]


def main() -> None:
    """Runs the sides over a folder of photos, prints the results, and writes them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", type=Path)
    parser.add_argument("--model", type=Path, help="a float32 model folder; random weights if none is given")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES), metavar="SIDE")
    parser.add_argument("--limit", type=int, help="photos")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="results as JSON; benchmarks/pipeline.json when nothing is left out")
    given = parser.parse_args()
    paths = list(photo_paths([given.photos]))[: given.limit]
    complete = not given.limit and given.sides == list(SIDES)
    facts = machine({name: package for name, (package, module) in PACKAGES.items() if importlib.util.find_spec(module)})
    with tempfile.TemporaryDirectory() as folder:
        rescale = make(given.model, paths, Path(folder))
        workers, sides = prepared(paths, Path(folder), given.sides)
        timed(workers, sides, paths, given.rounds)
        found = {"machine": facts, "rescale": rescale, **results(workers, sides, paths)}
    print(described(sides))
    if out := given.out or (RESULTS if complete else None):
        text = json.dumps(found, indent=1)
        out.write_text(re.sub(r"\[[^][{}]*\]", lambda row: " ".join(row[0].split()), text) + "\n")


if __name__ == "__main__":
    main()
