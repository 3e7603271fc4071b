"""Times our engine and its rivals on the same weights, in turns, and writes the results.

    python benchmarks/compare.py                      # all cases, about 10 minutes; writes benchmarks/results.json
    python benchmarks/compare.py --only v2-224-1      # one case (or several), prints its table and writes nothing
    python benchmarks/table.py                        # puts the results into the README

Before anything is timed every side's logits are compared with `reference.py`; a side that is wrong ends the run.

Each side lives in a process of its own for the whole run: several OpenMP libraries and thread pools in one process
disturb each other, and a rival that crashes takes nobody along. They work one at a time. In a round every side works
for a third of a second after a warm-up, the next round begins with the next side, and a side hands over only when its
process has stopped using the processor: threads that spin after a call (ONNX Runtime, OpenMP) would take it from the
next one. A round's figure is the median of its calls, by the wall clock; beside it stand the fastest call and the
median of the processor time, which for one thread says more on a machine with other work.
"""

import argparse
import datetime
import gc
import json
import multiprocessing
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import table
from numpy.typing import NDArray
from peak import Peak
from rivals import SIDES, Job, Logits, Side, Unavailable

import mobilenet
from mobilenet import arch, integer, reference
from mobilenet.cost import cost
from mobilenet.export import int8

RESULTS = Path(__file__).with_name("results.json")
WORKING, WARMING, SWEEPING = 0.3, 0.1, 0.3  # seconds of a round, before it, and of a batch's trial
SWEEPS = 3  # trials of each batch, whose median counts: one moment when the machine is slow should not decide

# Memory that is freed stays with its process, or PyTorch takes 1.2 times as long (V2 1.0 224), all of it page faults.
KEEPING_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "1000000000", "MALLOC_TRIM_THRESHOLD_": "1000000000"}


@dataclass(frozen=True)
class Case:
    """Is one line of the results.

    Attributes:
        batches: from which each side takes the one that is fastest for it.
        apart: whether rivals may also run once for each thread, on a share of the batch each, at the same time.
        rivals_run: what the rivals run, where it is not the network itself.
    """

    network: arch.Network
    threads: int
    precision: str = "f32"
    batches: tuple[int, ...] = (1,)
    apart: bool = False
    rivals_run: arch.Network | None = None


V2, V1 = arch.v2(1.0, 224), arch.v1(1.0, 224)
SMALL_V2, SMALL_V1 = arch.v2(0.35, 96), arch.v1(0.25, 96)
CASES = {
    "v2-224-1": Case(V2, 1),
    "v2-224-2": Case(V2, 2),
    "v1-224-1": Case(V1, 1),
    "v1-224-2": Case(V1, 2),
    "v2-96-1": Case(SMALL_V2, 1),
    "v2-96-2": Case(SMALL_V2, 2),
    "v1-96-1": Case(SMALL_V1, 1),
    "v1-96-2": Case(SMALL_V1, 2),
    "throughput": Case(V2, 2, batches=(1, 2, 4, 8, 16, 32), apart=True),
    "bf16": Case(V2, 1, "bf16"),
    "headline": Case(V1, 1, rivals_run=V1.replace(separable=False)),
    "int8-v2-224-1": Case(V2, 1, "int8"),
    "int8-v2-224-2": Case(V2, 2, "int8"),
    "int8-v1-224-1": Case(V1, 1, "int8"),
    "int8-v1-224-2": Case(V1, 2, "int8"),
    "int8-v2-96-1": Case(SMALL_V2, 1, "int8"),
    "int8-v2-96-2": Case(SMALL_V2, 2, "int8"),
    "int8-v1-96-1": Case(SMALL_V1, 1, "int8"),
    "int8-v1-96-2": Case(SMALL_V1, 2, "int8"),
}


# ------------------------------------------------------------------------------------------------ in a side's process


class Apart(Side):
    """Is a side once for each thread, each with its share of the batch, at the same time."""

    def __init__(self, kind: type[Side], job: Job) -> None:
        """Makes the shares; the batch must be a multiple of the threads."""
        share = Job(job.network, 1, job.batch // job.threads, job.precision)
        self._sides = [kind(share) for _ in range(job.threads)]
        self._pool = ThreadPoolExecutor(job.threads)
        self.settings = self._sides[0].settings

    def __call__(self) -> Logits:
        return np.concatenate(list(self._pool.map(lambda side: side(), self._sides)))


def serve(connection: Connection, name: str) -> None:
    """Does what is asked for until nothing more comes: (what, arguments) in, the answer out."""
    kind = Peak if name == "peak" else SIDES[name]
    call: Side | None = None
    gc.disable()
    while True:
        try:
            what, *given = connection.recv()
        except EOFError:
            return
        if what == "make":
            job, apart = given
            call = None  # the last one's memory and threads
            gc.collect()
            try:
                call = Apart(kind, job) if apart else kind(job)
                connection.send((call.settings, np.array(call())))
            except Unavailable as error:
                connection.send(error)
        elif call is not None:
            connection.send(measured(call, *given))


def measured(call: Callable[[], object], warming: float, working: float) -> dict[str, float]:
    """Returns milliseconds of one call: median and fastest by the wall clock, and the median of processor time."""
    end = time.perf_counter() + warming
    while time.perf_counter() < end:
        call()
    walls: list[float] = []
    used: list[float] = []
    end = time.perf_counter() + working
    while not walls or time.perf_counter() < end:
        processor, start = time.process_time(), time.perf_counter()
        call()
        walls.append(1e3 * (time.perf_counter() - start))
        used.append(1e3 * (time.process_time() - processor))
    rest()
    return {
        "wall": statistics.median(walls),
        "fastest": min(walls),
        "processor": statistics.median(used),
        "calls": len(walls),
    }


def rest() -> None:
    """Returns when the process no longer uses the processor."""
    for _ in range(200):
        used = time.process_time()
        time.sleep(0.01)
        if time.process_time() - used < 0.001:
            return
    raise RuntimeError("a thread goes on working after the last call; it would disturb the next side")


# ----------------------------------------------------------------------------------------------- in the main process


class Worker:
    """Is a side's process."""

    def __init__(self, name: str) -> None:
        self._name = name
        os.environ |= KEEPING_MEMORY
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, name), daemon=True)
        self._process.start()
        theirs.close()

    def ask(self, *what: object) -> Any:
        """Returns the answer."""
        self._pipe.send(what)
        try:
            return self._pipe.recv()
        except EOFError:
            raise SystemExit(f"{self._name}: its process ended, asked to {what[0]}") from None

    def stop(self) -> None:
        """Ends the process."""
        self._pipe.close()
        self._process.join()


@cache
def bounds(network: arch.Network, images: int, precision: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """Returns the right logits of the first images, and how far a side may be from them.

    float32: `reference.tolerance`. bf16: each layer rounds its weights, its inputs and its sums to 8 bits, 2**-9 at
    most and 2**-9 / sqrt(3) as a standard deviation, which adds up over layers as independent errors do; six
    deviations of it, relative to the standard deviation of the logits. int8: `integer.forward` and, for rivals that
    round otherwise, `int8.tolerance`.
    """
    job = Job(network, batch=images, precision=precision)
    if precision == "int8":
        return integer.forward(network, job.model.tensors, job.pixels), int8.tolerance(job.model, job.pixels)
    right = reference.forward(network, job.model.tensors, job.pixels)
    if precision == "f32":
        epsilon = float(np.finfo(np.float32).eps)
        return right, reference.tolerance(network, job.model.tensors, job.pixels, epsilon)
    layers = sum(layer.weight_shape is not None for layer in network.layers)
    return right, np.full_like(right, reference.SIGMAS * layers**0.5 * 2**-9 * right.std())


def make(worker: Worker, name: str, job: Job, apart: bool = False) -> dict[str, Any] | str:
    """Returns how a side does a job, its logits checked; or why it can't."""
    if job.precision not in SIDES[name].precisions:
        return f"no {job.precision}"
    answer = worker.ask("make", job, apart)
    if isinstance(answer, Unavailable):
        return str(answer)
    settings, logits = answer
    share = job.batch // job.threads if apart else job.batch  # each begins with the first image
    known = bounds(job.network, min(job.batch, 2), job.precision)
    right, far = (np.resize(np.resize(part, (share, logits.shape[1])), logits.shape) for part in known)
    error = np.abs(logits - right)
    if not (error <= far).all():
        raise SystemExit(f"{name}: logits of {job.network} are wrong by {error.max()}, allowed is {far.min()}")
    return {"batch": job.batch, "apart": apart, "settings": settings, "error": float((error / far).max())}


def best_made(worker: Worker, name: str, case: Case) -> dict[str, Any] | str:
    """Makes a side with the batch, and the use of threads, that are fastest for it."""
    network = case.network if name == "ours" else case.rivals_run or case.network
    slow = SIDES[name].slow_to_make
    ways = [(batch, False) for batch in case.batches[:: 2 if slow else 1]]
    if case.apart and name != "ours" and not slow:  # our engine chooses that itself
        ways += [(batch, True) for batch in case.batches if batch % case.threads == 0]
    tried: dict[tuple[int, bool], list[float]] = {way: [] for way in ways}
    for batch, apart in ways * (1 if slow else SWEEPS):
        made = make(worker, name, Job(network, case.threads, batch, case.precision), apart)
        if isinstance(made, str) or len(ways) == 1:
            return made
        tried[batch, apart].append(worker.ask("time", WARMING, SWEEPING)["wall"] / batch)
    medians = {way: statistics.median(walls) for way, walls in tried.items()}
    batch, apart = min(medians, key=medians.__getitem__)
    made = make(worker, name, Job(network, case.threads, batch, case.precision), apart)
    sweep = [{"batch": batch, "apart": apart, "wall": wall} for (batch, apart), wall in medians.items()]
    return made if isinstance(made, str) else made | {"milliseconds_an_image": sweep}


def run(case: Case, workers: dict[str, Worker], rounds: int) -> dict[str, Any]:
    """Returns the results of a case."""
    sides: dict[str, dict[str, Any]] = {}
    skipped: dict[str, str] = {}
    for name in SIDES:
        if name not in workers:
            continue
        made = best_made(workers[name], name, case)
        if isinstance(made, str):
            skipped[name] = made
            print(f"  {name}: skipped, {made}", flush=True)
        else:
            sides[name] = made | {"wall": [], "fastest": [], "processor": [], "calls": []}
    if "ours" in sides and case.threads == 1 and case.precision == "f32":  # the peak's loop is of float32
        settings, _ = workers["peak"].ask("make", Job(case.network), False)
        sides["peak"] = {"batch": 1, "settings": settings}
    order = list(sides)
    for n in range(rounds):
        for name in order[n % len(order) :] + order[: n % len(order)]:
            for what, figure in workers[name].ask("time", WARMING, WORKING).items():
                sides[name].setdefault(what, []).append(round(figure, 5))
    network = case.network
    described = {"network": str(network), "threads": case.threads, "precision": case.precision}
    described["multiply_adds"] = cost(network).macs
    if case.precision == "int8":
        described["rescale"] = Job(network, precision="int8").model.rescale
    if case.rivals_run:
        described |= {"rivals_run": str(case.rivals_run), "rivals_multiply_adds": cost(case.rivals_run).macs}
    return described | {"sides": sides, "skipped": skipped}


def machine(packages: Mapping[str, str]) -> dict[str, Any]:
    """Returns what the results were measured on, with the versions of packages, by the names of what they are for."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "processors": len(os.sched_getaffinity(0)),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "versions": {name: _version(package) for name, package in packages.items()},
        "load": os.getloadavg()[0],
    }


def _version(package: str) -> str:
    return mobilenet.__version__ if package == "mobilenet" else version(package)  # which need not be installed


def main() -> None:
    """Runs the cases, prints each, and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=CASES, metavar="CASE", help=f"of {', '.join(CASES)}")
    parser.add_argument("--sides", nargs="+", choices=SIDES, metavar="SIDE", help=f"of {', '.join(SIDES)}")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--clock", choices=table.CLOCKS, default="wall", help="which the printed figures are of")
    parser.add_argument("--out", type=Path, help="results as JSON; benchmarks/results.json when all cases are run")
    given = parser.parse_args()
    complete = not (given.only or given.sides)
    out = given.out or (RESULTS if complete else None)
    names: Sequence[str] = given.sides or list(SIDES)
    facts, start = machine({name: side.package for name, side in SIDES.items()}), time.monotonic()
    if facts["load"] > 0.3:
        print(f"the machine is busy (load {facts['load']:.1f}): figures of several threads will say little", flush=True)
    workers = {name: Worker(name) for name in (*names, "peak")}
    results: dict[str, Any] = {}
    for name in given.only or CASES:
        print(f"{name}: {CASES[name].network}, {CASES[name].precision}, {CASES[name].threads} thread(s)", flush=True)
        results[name] = run(CASES[name], workers, given.rounds)
        print(table.described(results[name], given.clock), flush=True)
    for worker in workers.values():
        worker.stop()
    facts["minutes"] = round((time.monotonic() - start) / 60, 1)
    print(f"{facts['minutes']} minutes; load before: {facts['load']:.1f}")
    if out:
        text = json.dumps({"machine": facts, "cases": results}, indent=1)
        out.write_text(re.sub(r"\[[^][{}]*\]", lambda row: " ".join(row[0].split()), text) + "\n")


if __name__ == "__main__":
    main()
