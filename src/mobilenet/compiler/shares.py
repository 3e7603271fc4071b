"""One step's work for several threads, as even as whole tiles allow: who has less waits for who has more."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from .depthwise import Depthwise
from .kernel import SIZES, Kernel
from .plan import Place, Step
from .pointwise import Pointwise

_WORTH = 1.02  # as many times less work must a thread have for two threads to need the same panel


def split(step: Step, threads: int, lanes: int, *, by_channels: bool) -> list[list[Step]]:
    """Returns a step's work for each of several threads, nothing for one that has nothing to do.

    Panels, channels, rows or whatever else begin..end counts are split between whole tiles.

    Args:
        by_channels: whether the step before was split by channels. A depthwise layer is too then, where that is more
            even than by rows, and a thread reads what it wrote itself.
    """
    kernel, count = step.kernel, step.end - step.begin
    if isinstance(kernel, Pointwise):
        return _pointwise(step, kernel, threads, lanes)
    grain = kernel.high if isinstance(kernel, Depthwise) else 1
    if by_channels and type(kernel) is Depthwise and _most(kernel.vectors, threads) < _most(count // grain, threads):
        cuts = [kernel.vectors * n // threads for n in range(threads + 1)]
        return [[_of_channels(step, kernel, *cut, lanes)] if cut[0] < cut[1] else [] for cut in pairwise(cuts)]
    return _of_rows(step, threads, grain)


def _pointwise(step: Step, kernel: Pointwise, threads: int, lanes: int) -> list[list[Step]]:
    """Returns a pointwise layer's work for each thread, whichever way is the most even.

    Its output channels are split if that is as even as its pixels: every thread needs only its own part of the weights
    then, most of what it reads in the late layers. Or its tiles are, counted panel by panel: a thread has the rest of a
    panel, whole panels, and a part of one more.
    """
    panels, pixels = -(-kernel.vectors // kernel.wide), step.end - step.begin
    between = [(panels * n // threads, 0) for n in range(threads + 1)]
    within = [_edge(kernel, pixels, n / threads) for n in range(threads + 1)]
    of_panels, of_tiles = (
        [_of_tiles(step, kernel, *pair, lanes) for pair in pairwise(edges)] for edges in (between, within)
    )
    simple = min(of_panels, _of_rows(step, threads, kernel.high), key=_longest)
    return of_tiles if _WORTH * _longest(of_tiles) < _longest(simple) else simple


def _longest(shares: Sequence[Sequence[Step]]) -> int:
    """Returns the work of the thread that has most of a pointwise layer's, a vector of a tile's pixels being 1."""

    def work(kernel: Kernel, pixels: int) -> int:
        return -(-pixels // kernel.high) * kernel.vectors if isinstance(kernel, Pointwise) else 0

    return max(sum(work(step.kernel, step.end - step.begin) for step in share) for share in shares)


def _most(count: int, threads: int) -> float:
    """Returns the largest part of so many things that a thread has."""
    return -(-count // threads) / count


def _of_rows(step: Step, threads: int, grain: int) -> list[list[Step]]:
    """Returns a step split between whole tiles of its begin..end, of `grain` each."""
    tiles = (step.end - step.begin) // grain
    cuts = [step.begin + grain * min(-(-tiles * n // threads), tiles - 1) for n in range(threads)] + [step.end]
    return [[step._replace(begin=begin, end=end)] if begin < end else [] for begin, end in pairwise(cuts)]


def _edge(kernel: Pointwise, pixels: int, part: float) -> tuple[int, int]:
    """Returns the (panel, tile of pixels) before which that part of a pointwise layer's work is done."""
    whole, tiles = pixels // kernel.high, -(-pixels // kernel.high)
    panel = int(kernel.vectors * part / kernel.wide)
    vectors = min(kernel.wide, kernel.vectors - panel * kernel.wide)  # 0 at the very end
    tile = round((kernel.vectors * part - panel * kernel.wide) * tiles / max(vectors, 1))
    if tile < whole:
        return panel, tile
    # Beyond the last place that leaves a whole tile of pixels, the nearer of that and the next panel.
    return (panel, whole - 1) if tile < tiles and whole > 1 else (panel + 1, 0)


def _of_tiles(step: Step, kernel: Pointwise, first: tuple[int, int], last: tuple[int, int], lanes: int) -> list[Step]:
    """Returns the steps that do a pointwise layer's tiles from one (panel, tile) on to before another."""
    (panel, tile), (end, rest) = first, last

    def piece(panel: int, after: int, begin: int, end: int) -> Step:
        mine = _of_channels(step, kernel, panel * kernel.wide, min(after * kernel.wide, kernel.vectors), lanes)
        return mine._replace(begin=begin, end=end)

    here, there = (step.begin + n * kernel.high for n in (tile, rest))
    if panel == end:
        return [piece(panel, panel + 1, here, there)] if tile < rest else []
    found = [piece(panel, panel + 1, here, step.end)] if tile else []
    panel += bool(tile)
    if panel < end:
        found.append(piece(panel, end, step.begin, step.end))
    if rest:
        found.append(piece(end, end + 1, step.begin, there))
    return found


def _of_channels(step: Step, kernel: Pointwise | Depthwise, first: int, after: int, lanes: int) -> Step:
    """Returns the part of a step that computes the vectors first..after of the output's channels."""
    skipped = first * lanes
    size = skipped * SIZES[kernel.numbers]
    step = step._replace(out=_moved(step.out, size), parameters=_moved(step.parameters, 4 * kernel.rows * skipped))
    if isinstance(kernel, Depthwise):
        part = replace(kernel, vectors=after - first)
        return step._replace(kernel=part, source=_moved(step.source, size), extra=_moved(step.extra, size))
    paired = kernel.paired and after == kernel.vectors
    extra = _moved(step.extra, size) if kernel.adds else step.extra
    return step._replace(kernel=replace(kernel, vectors=after - first, paired=paired), extra=extra)


def _moved(place: Place, offset: int) -> Place:
    return place._replace(offset=place.offset + offset)
