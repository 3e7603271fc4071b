"""Where the time of an image goes: each layer's, beside what the machine can do at its best in the same moments.

A layer's time is read off the processor's clock between the calls of the compiled plan, in the order in which they are
made anyway, so layers that go through the image in strips keep their caches as they are. Calls without any such marks,
with them, and the measurement of the peak take turns: whatever disturbs one disturbs all.
"""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..arch import Layer, Network
from ..common.checks import number
from ..common.text import bytes_text, table_text
from ..cost import cost
from ..errors import UsageError
from .kernel import SIZES
from .machine import CACHE, MEMORY, Machine
from .plan import Plan
from .stages import STORED

if TYPE_CHECKING:
    from .native import NativeEngine

_LEAST = 5  # rounds
_BATCH = 8  # images a thread in a batch, for the throughput


@dataclass(frozen=True)
class LayerProfile:
    """Is what was measured of one layer.

    Attributes:
        layer: the layer.
        group: number of the layers that go through the image in strips with it, itself included: 1 if none do.
        first: whether it is the first of these.
        seconds: of one image.
        flops: floating-point operations of one image, two a multiply-add.
        bytes: that it reads and writes of weights and activations, each once; between layers in strips from cache.
    """

    layer: Layer
    group: int
    first: bool
    seconds: float
    flops: int
    bytes: int

    @property
    def speed(self) -> float:
        """Floating-point operations per second."""
        return self.flops / self.seconds if self.seconds else 0.0

    @property
    def intensity(self) -> float:
        """Floating-point operations a byte."""
        return self.flops / self.bytes


@dataclass(frozen=True)
class Profile:
    """Is what was measured of an engine; `str` of it is a table.

    Attributes:
        network: what was run.
        precision, target, threads: of the engine.
        layers: in the order of computation.
        waiting: seconds of an image in which a thread waits for the others, the mean of the threads.
        latency: seconds of a call with one image, from pixels to logits: a tenth of the calls took less than the first,
            half less than the second, a tenth more than the third.
        calls: that these are of.
        throughput: images per second in batches.
        peak: floating-point operations per second that all threads can do, measured in the same moments.
        bandwidth: bytes per second that all threads can read of memory.
        cache: the same of their L2 caches.
    """

    network: Network
    precision: str
    target: str
    threads: int
    layers: tuple[LayerProfile, ...]
    waiting: float
    latency: tuple[float, float, float]
    calls: int
    throughput: float
    peak: float
    bandwidth: float
    cache: float

    @property
    def flops(self) -> int:
        """Floating-point operations of one image."""
        return sum(each.flops for each in self.layers)

    @property
    def speed(self) -> float:
        """Floating-point operations per second of one image's call."""
        return self.flops / self.latency[1]

    def to_dict(self) -> dict[str, Any]:
        """Returns every figure as plain data, in seconds, bytes and operations per second."""
        return {
            "network": self.network.to_dict(),
            "precision": self.precision,
            "target": self.target,
            "threads": self.threads,
            "latency": dict(zip(("p10", "median", "p90"), self.latency, strict=True)),
            "calls": self.calls,
            "throughput": self.throughput,
            "flops": self.flops,
            "flops_per_second": self.speed,
            "share_of_peak": self.speed / self.peak,
            "peak_flops_per_second": self.peak,
            "memory_bytes_per_second": self.bandwidth,
            "cache_bytes_per_second": self.cache,
            "waiting": self.waiting,
            "layers": [
                {
                    "name": each.layer.name,
                    "kind": each.layer.kind,
                    "layers_in_strips": each.group,
                    "seconds": each.seconds,
                    "flops": each.flops,
                    "flops_per_second": each.speed,
                    "share_of_peak": each.speed / self.peak,
                    "bytes": each.bytes,
                }
                for each in self.layers
            ],
        }

    def __str__(self) -> str:
        return "\n\n".join((str(self.network), self._table(), self._totals()))

    def _table(self) -> str:
        total = sum(each.seconds for each in self.layers) + self.waiting
        rows = [
            (
                f"{self._bracket(index)} {each.layer.name}",
                each.layer.kind.replace("_", " "),
                f"{1e6 * each.seconds:,.1f}",
                f"{each.seconds / total:.1%}",
                f"{each.speed / 1e9:,.1f}" if each.flops else "",
                f"{each.speed / self.peak:.0%}" if each.flops else "",
                bytes_text(each.bytes),
                f"{each.intensity:.1f}" if each.flops else "",
            )
            for index, each in enumerate(self.layers)
        ]
        if self.threads > 1:
            rows.append(("  waiting", "", f"{1e6 * self.waiting:,.1f}", f"{self.waiting / total:.1%}", "", "", "", ""))
        columns = ("<  layer", "<kind", "µs", "share", "GFLOP/s", "of peak", "bytes", "FLOP/byte")
        return table_text(columns, rows)

    def _bracket(self, index: int) -> str:
        """Returns what joins the layers that go through the image together."""
        each = self.layers[index]
        if each.group == 1:
            return " "
        last = index + 1 == len(self.layers) or self.layers[index + 1].first
        return "╭" if each.first else "╰" if last else "│"

    def _totals(self) -> str:
        low, median, high = (1e3 * seconds for seconds in self.latency)
        threads = f"{self.threads} thread" + "s" * (self.threads > 1)
        spread = f"{low:.3f} to {high:.3f} for 8 of 10 of {self.calls} calls"
        share = f"{self.speed / self.peak:.0%} of the peak; two FLOP a multiply-add"
        rows = [
            ("latency", f"{median:.3f} ms", f"one image, {threads}; {spread}"),
            ("throughput", f"{self.throughput:,.1f}/s", f"images, in batches of {_BATCH * self.threads}"),
            ("speed", f"{self.speed / 1e9:,.1f} GFLOP/s", share),
            ("peak", f"{self.peak / 1e9:,.1f} GFLOP/s", f"measured, {self.precision}, {self.target}, {threads}"),
            ("memory", f"{self.bandwidth / 1e9:,.1f} GB/s", f"measured, reading {bytes_text(MEMORY)}"),
            (
                "cache",
                f"{self.cache / 1e9:,.1f} GB/s",
                f"measured, each thread reading {bytes_text(CACHE)} again and again",
            ),
        ]
        return "\n".join(f"{name:<11}{figure:>16}  {remark}" for name, figure, remark in rows)


def profile(engine: "NativeEngine", pixels: NDArray[Any] | None, seconds: float) -> Profile:
    """Measures an engine as `NativeEngine.profile` says."""
    number("seconds", seconds, 0.01, 3600)
    if pixels is None:
        pixels = np.random.default_rng(0).integers(0, 256, (1, *engine.network.input), np.uint8)
    if len(pixels) != 1:
        raise UsageError(f"pixels: got {len(pixels)} images, needed one, [1, height, width, channels]")
    out = engine(pixels)  # checks the pixels, and what is first touched here is not measured
    plan, tape = engine.marked()
    tape.play(pixels[0], out[0])
    machine = Machine(plan.target, engine.threads, plan.precision)
    calls: list[float] = []
    peaks: list[float] = []
    ticks: list[list[NDArray[np.int64]]] = []
    start = time.perf_counter()
    begin = 0
    while len(calls) < _LEAST or time.perf_counter() - start < seconds:
        peaks.append(machine.flops())
        calls.append(_seconds(engine, pixels))
        tape.play(pixels[0], out[0])
        if not ticks:
            begin, start = tape.marks[0][-1], time.perf_counter()
        ticks.append([np.diff(marks) for marks in tape.marks])
    rate = float(tape.marks[0][-1] - begin) / (time.perf_counter() - start)
    layers, waiting = _layers(plan, ticks, rate, engine.made.precision)
    batch = np.repeat(pixels, _BATCH * engine.threads, axis=0)
    batches = [_seconds(engine, batch) for _ in range(3)]
    deciles = statistics.quantiles(calls, n=10)
    return Profile(
        engine.network,
        engine.made.precision,
        engine.made.target,
        engine.threads,
        layers,
        waiting,
        (deciles[0], deciles[4], deciles[8]),
        len(calls),
        len(batch) / statistics.median(batches),
        statistics.median(peaks),
        machine.bandwidth(MEMORY // engine.threads),
        machine.bandwidth(CACHE, 50),
    )


def _seconds(engine: "NativeEngine", pixels: NDArray[Any]) -> float:
    start = time.perf_counter()
    engine(pixels)
    return time.perf_counter() - start


def _layers(
    plan: Plan, ticks: Sequence[Sequence[NDArray[np.int64]]], rate: float, precision: str
) -> tuple[tuple[LayerProfile, ...], float]:
    """Returns the layers with their median times, and the median time that is waited; both the mean of the threads."""
    names = [layer.name for layer in plan.network.layers]
    where = {name: index for index, name in enumerate(names)}
    places = [np.array([where[step.layer] if step else len(names) for step in part]) for part in plan.parts]
    runs: list[NDArray[np.float64]] = [
        np.mean([np.bincount(place, each, len(names) + 1) for place, each in zip(places, run, strict=True)], axis=0)
        for run in ticks
    ]
    *seconds, waiting = (float(value) / rate for value in np.median(np.array(runs), axis=0))
    groups = strips(plan)
    costs = cost(plan.network, SIZES[STORED[precision]]).layers
    found = [
        LayerProfile(
            each.layer,
            len(groups[each.name]),
            groups[each.name][0] == each.name,
            time,
            2 * each.macs,
            _bytes(each.layer, each.weights, SIZES[STORED[precision]], each.layer.name == names[0]),
        )
        for each, time in zip(costs, seconds, strict=True)
    ]
    return tuple(found), waiting


def _bytes(layer: Layer, weights: int, size: int, reads_pixels: bool) -> int:
    parameters = weights + layer.output.channels if weights else 0
    shortcut = layer.output.size if layer.adds else 0
    return size * (parameters + layer.output.size + shortcut) + layer.input.size * (1 if reads_pixels else size)


def strips(plan: Plan) -> dict[str, list[str]]:
    """Returns for each layer those that go through the image with it, itself included, in the order of computation."""
    runs = _between_waits(plan) if len(plan.parts) > 1 else _alternating([step.layer for step in plan.parts[0] if step])
    return {name: run for run in runs for name in run}


def _between_waits(plan: Plan) -> list[list[str]]:
    """Returns the layers between which no thread waits for the others; one may have no part in some layer."""
    runs: list[set[str]] = []
    for part in plan.parts:
        number = 0
        for step in part:
            if number == len(runs):
                runs.append(set())
            if step:
                runs[number].add(step.layer)
            else:
                number += 1
    names = [layer.name for layer in plan.network.layers]
    return [sorted(run, key=names.index) for run in runs if run]


def _alternating(calls: Sequence[str]) -> list[list[str]]:
    """Returns the layers in runs whose calls alternate."""
    last = {name: number for number, name in enumerate(calls)}
    runs: list[list[str]] = []
    end = -1
    for index, name in enumerate(calls):
        if index > end:
            runs.append([])
        if name not in runs[-1]:
            runs[-1].append(name)
        end = max(end, last[name])
    return runs
