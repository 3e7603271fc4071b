"""Which rows are computed when: a group of stages goes through an image in strips, so that what is between them stays
in cache. A fused block is no kernel of its own but an order of calls.

Between two stages of a group only a ring of rows is kept: row r of the image at r mod ring. The last stage of a group
writes its whole output.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from .stages import Stage

_CACHE = 1 << 19  # bytes that the rings of a group may take: half of the smallest L2 cache of today's servers


@dataclass(frozen=True)
class Call:
    """Is the computation of rows begin..end of a stage, `stage` its index in the group."""

    stage: int
    begin: int
    end: int


@dataclass(frozen=True)
class Group:
    """Is a run of stages and the order of its calls.

    Attributes:
        stages: in the order of computation.
        rings: for each stage the rows of its output that are kept, all for the last.
        calls: in the order in which they are made.
    """

    stages: tuple[Stage, ...]
    rings: tuple[int, ...]
    calls: tuple[Call, ...]


def group(stages: Sequence[Stage], strip: int) -> Group:
    """Returns a group whose last stage is computed `strip` rows at a time, the others when their rows are needed."""
    done = [0] * len(stages)
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

    last = len(stages) - 1
    for end in range(strip, stages[last].rows + strip, strip):
        compute(last, min(end, stages[last].rows))
    rings[last] = stages[last].rows
    return Group(tuple(stages), tuple(rings), tuple(_unwrapped(calls, stages, rings)))


def _unwrapped(calls: Sequence[Call], stages: Sequence[Stage], rings: Sequence[int]) -> list[Call]:
    """Returns the calls cut where the ring that is written, or one read pixel by pixel, begins anew."""
    found: list[Call] = []
    for call in calls:
        cuts = {call.begin, call.end}
        stage = call.stage
        cuts.update(range(-(-call.begin // rings[stage]) * rings[stage], call.end, rings[stage]))
        if stage and stages[stage].layer.kind == "pointwise":
            ring = rings[stage - 1]
            cuts.update(range(-(-call.begin // ring) * ring, call.end, ring))
        edges = sorted(cuts)
        found += [Call(stage, begin, end) for begin, end in pairwise(edges)]
    return found


def groups(stages: Sequence[Stage], fuse: bool = True) -> list[Group]:
    """Returns all stages in groups: the stem with the first block, every other block by itself where that pays."""
    found: list[Group] = []
    for run in _runs(stages):
        strip = _strip(run) if fuse and len(run) > 1 else None
        if strip:
            found.append(group(run, strip))
        else:
            found += [group([stage], stage.rows) for stage in run]
    return found


def _runs(stages: Sequence[Stage]) -> list[list[Stage]]:
    """Returns the stages cut after every block and around what needs the whole of its input."""
    runs: list[list[Stage]] = []
    for stage in stages:
        before = runs[-1][-1] if runs else None
        joins = (
            before is not None
            and stage.by_rows
            and before.by_rows
            and (before.layer.block in (None, stage.layer.block))
            and stage.layer.block in (None, 0, before.layer.block)
        )
        if joins:
            runs[-1].append(stage)
        else:
            runs.append([stage])
    return runs


def _strip(run: Sequence[Stage]) -> int | None:
    """Returns the rows of a strip; None if the group is better done stage by stage.

    Between stages done one by one everything goes through the cache behind L2 once it is larger than L2; strips save
    that, and read the weights once more each. So: not where everything fits, and the tallest strips that do fit.
    """
    if 4 * max(stage.size for stage in run[:-1]) <= _CACHE:
        return None
    rows = run[-1].rows
    for strip in range(rows, 0, -1):
        found = group(run, strip)
        held = sum(4 * ring * stage.pitch for ring, stage in zip(found.rings[:-1], run, strict=False))
        if held <= _CACHE and strip < rows:
            return strip
    return None
