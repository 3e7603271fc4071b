"""One step's work for several threads, as even as whole tiles allow: whoever has less waits for whoever has more."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from .depthwise import Depthwise
from .kernel import SIZES
from .plan import Place, Step
from .pointwise import Pointwise

_WORTH = 1.02  # the longest share must shrink by this factor before two threads read the same panel


def split(step: Step, threads: int, lanes: int, *, by_channels: bool) -> list[list[Step]]:
    """Returns a step's work for each of several threads, an empty list for a thread without any.

    Panels, rows or whatever begin..end counts are split between whole tiles.

    Args:
        by_channels: whether the step before was split by channels. A depthwise layer may be too then: a thread reads
            what it wrote itself.
    """
    kernel = step.kernel
    if isinstance(kernel, Pointwise):
        return _pointwise(step, kernel, threads, lanes)
    of_rows = _of_rows(step, threads, kernel.high if isinstance(kernel, Depthwise) else 1)
    if by_channels and type(kernel) is Depthwise:  # its subclass, for bytes, always computes all channels
        edges = pairwise(kernel.vectors * n // threads for n in range(threads + 1))
        of_channels = [[_of_channels(step, kernel, *edge, lanes)] if edge[0] < edge[1] else [] for edge in edges]
        return min(of_channels, of_rows, key=_longest)
    return of_rows


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
    """Returns the work of the thread with most; the unit is one vector of outputs for one tile of pixels or rows."""

    def work(step: Step) -> int:
        assert isinstance(step.kernel, Pointwise | Depthwise)
        return -(-(step.end - step.begin) // step.kernel.high) * step.kernel.vectors

    return max(sum(map(work, share)) for share in shares)


def _of_rows(step: Step, threads: int, grain: int) -> list[list[Step]]:
    """Returns a step split between whole tiles of its begin..end, of `grain` each."""
    tiles = (step.end - step.begin) // grain
    cuts = [step.begin + grain * min(-(-tiles * n // threads), tiles - 1) for n in range(threads)] + [step.end]
    return [[step._replace(begin=begin, end=end)] if begin < end else [] for begin, end in pairwise(cuts)]


def _edge(kernel: Pointwise, pixels: int, part: float) -> tuple[int, int]:
    """Returns the (panel, tile of pixels) before which that part of a pointwise layer's work is done."""
    panel = int(kernel.vectors * part / kernel.wide)
    vectors = min(kernel.wide, kernel.vectors - panel * kernel.wide)  # 0 at the very end
    tiles = -(-pixels // kernel.high)
    tile = round((kernel.vectors * part - panel * kernel.wide) * tiles / max(vectors, 1))
    # A rest that is no whole tile goes to whoever has the tile before it.
    return (panel, tile) if tile < pixels // kernel.high else (panel + 1, 0)


def _of_tiles(step: Step, kernel: Pointwise, first: tuple[int, int], last: tuple[int, int], lanes: int) -> list[Step]:
    """Returns the steps that do a pointwise layer's tiles from one (panel, tile) on to before another."""
    (panel, tile), (final, rest) = first, last

    def of_panels(first: int, after: int, begin: int, end: int) -> Step:
        mine = _of_channels(step, kernel, first * kernel.wide, min(after * kernel.wide, kernel.vectors), lanes)
        return mine._replace(begin=begin, end=end)

    here, there = (step.begin + n * kernel.high for n in (tile, rest))
    if panel == final:
        return [of_panels(panel, panel + 1, here, there)] if tile < rest else []
    found = [of_panels(panel, panel + 1, here, step.end)] if tile else []
    whole = panel + bool(tile)
    if whole < final:
        found.append(of_panels(whole, final, step.begin, step.end))
    if rest:
        found.append(of_panels(final, final + 1, step.begin, there))
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
