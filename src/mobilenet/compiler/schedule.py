"""Which rows are computed when: a group of stages goes through an image in strips, so that what is between them stays
in cache. A fused block is no kernel of its own but an order of calls.

Between two stages of a group only a ring of rows is kept: row r of the image at r mod ring. The last stage of a group
writes its whole output.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from .stages import Stage

CACHE = 1 << 19
"""Bytes that the rings of a group may take: half of the smallest L2 cache of today\'s servers."""

_WAIT = 1 << 18
"""What a core multiplies (AVX-512, float32) in the 2 µs that it takes threads to meet."""


class Call(NamedTuple):
    """Is the computation of rows begin..end of a stage, `stage` its index in the group."""

    stage: int
    begin: int
    end: int


class Group(NamedTuple):
    """Is a run of stages and the order of its calls.

    Attributes:
        stages: in the order of computation.
        rings: for each stage the rows of its output that are kept, all for the last.
        parts: for each thread, which has rings of its own, the calls in the order in which they are made.
    """

    stages: tuple[Stage, ...]
    rings: tuple[int, ...]
    parts: tuple[tuple[Call, ...], ...]


def group(stages: Sequence[Stage], strip: int, threads: int = 1) -> Group:
    """Returns a group whose last stage is computed `strip` rows at a time, the others when their rows are needed."""
    rows = stages[-1].rows
    edges = [rows * part // threads for part in range(threads + 1)]
    found = [_strips(stages, strip, begin, end) for begin, end in pairwise(edges)]
    rings = [max(column) for column in zip(*(rings for _, rings in found), strict=True)]
    rings[-1] = rows
    return Group(tuple(stages), tuple(rings), tuple(tuple(_unwrapped(calls, stages, rings)) for calls, _ in found))


def _strips(stages: Sequence[Stage], strip: int, begin: int, end: int) -> tuple[list[Call], list[int]]:
    """Returns the calls that compute rows begin..end of the last stage, and the rows of each stage to be kept."""
    done = [begin]
    for stage in reversed(stages[1:]):
        done.insert(0, stage.needs(done[0], done[0] + 1)[0])
    calls: list[Call] = []
    rings = [1] * len(stages)

    def compute(stage: int, end: int) -> None:
        begin = done[stage]
        if end <= begin:
            return
        if stage:
            first, after = stages[stage].needs(begin, end)
            compute(stage - 1, after)
            rings[stage - 1] = max(rings[stage - 1], after - first)
        calls.append(Call(stage, begin, end))
        done[stage] = end

    for bottom in range(begin + strip, end + strip, strip):
        compute(len(stages) - 1, min(bottom, end))
    return calls, rings


def _unwrapped(calls: Sequence[Call], stages: Sequence[Stage], rings: Sequence[int]) -> list[Call]:
    """Returns the calls cut where the ring that is written, or one read pixel by pixel, begins anew."""
    found: list[Call] = []
    for call in calls:
        stage = call.stage
        turns = {rings[stage]} | ({rings[stage - 1]} if stage and stages[stage].reads_through else set())
        cuts = {row for ring in turns for row in range(-(-call.begin // ring) * ring, call.end, ring)}
        found += [Call(stage, begin, end) for begin, end in pairwise(sorted(cuts | {call.begin, call.end}))]
    return found


def groups(stages: Sequence[Stage], fuse: bool = True, threads: int = 1, cache: int | None = None) -> list[Group]:
    """Returns all stages in groups that end where the least is between two stages, where that pays.

    `cache` is the bytes that the rings of a group may take; None for `CACHE`.

    A group of one stage has one part: its one call may be split over threads in whatever way suits its kernel.
    """
    found: list[Group] = []
    for run in _runs(stages):
        strip = _strip(run, threads, cache or CACHE) if fuse and len(run) > 1 else None
        if strip:
            found.append(group(run, strip, threads))
        else:
            found += [group([stage], stage.rows) for stage in run]
    return found


def _runs(stages: Sequence[Stage]) -> list[list[Stage]]:
    """Returns the stages cut where there is least between two of them, after what is added later, and around what needs
    all of its input.

    That is after the projections of V2, and after the depthwise layers of V1 that halve the map. A narrow V2 may add
    the stem's output to that of block 0, which is otherwise one group with it.
    """  # fmt: skip
    added = {stage.layer.adds for stage in stages}
    runs: list[list[Stage]] = []
    for stage in stages:
        run = runs[-1] if runs else []
        joins = (
            bool(run)
            and stage.by_rows
            and run[-1].by_rows
            and (run[-1].scales or run[-1].layer.name not in added)
            and not (len(run) > 1 and run[-2].size > run[-1].size < stage.size)
        )
        if joins:
            run.append(stage)
        else:
            runs.append([stage])
    return runs


def _strip(run: Sequence[Stage], threads: int, cache: int) -> int | None:
    """Returns the rows of a strip; None if the group is better done stage by stage.

    Between stages done one by one everything goes through the cache behind L2 once it is larger than L2; strips save
    that, and read the weights once more each. So: not where everything fits, and the tallest strips that do fit. Nor
    where each thread's part of the largest map fits its own L2, if computing rows twice takes longer than the times
    that threads meet for want of strips (measured with 2 threads).
    """
    largest = max(stage.size for stage in run[:-1])
    if largest <= cache or (largest <= cache * threads and _twice(run, threads) > _WAIT * threads * (len(run) - 1)):
        return None
    rows = -(-run[-1].rows // threads)
    for count in range(2 if threads == 1 else 1, rows + 1):
        strip = -(-rows // count)
        _, rings = _strips(run, strip, 0, run[-1].rows)
        if sum(ring * stage.bytes for ring, stage in zip(rings[:-1], run, strict=False)) <= cache:
            return strip
    return None


def _twice(run: Sequence[Stage], threads: int) -> int:
    """Returns the multiply-adds of the rows that more than one thread computes, where they have a group in strips."""
    parts = group(run, run[-1].rows, threads).parts
    found = sum((call.end - call.begin) * run[call.stage].macs for part in parts for call in part)
    return found - sum(stage.rows * stage.macs for stage in run)
