"""The register tile that every convolution but the depthwise one is made of: pixels x vectors of output channels.

The sums of a tile stay in registers while the input channels go by; each input is read once a tile (twice where the
last vector takes them in pairs) and multiplied with `vectors` vectors of weights, each vector of weights with `pixels`
inputs. Weights are packed in the order in which they are read, panel by panel of `vectors` vectors:
[panel][bias, then inputs, then the ending's][vectors · lanes]. Inputs go by in words of 32 bits, a float, two bfloat16
or two or four bytes, and so do their weights.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .ending import adds_whole_numbers, finish, rows
from .kernel import Floats, Words, fuses, in_word, pad, repeats_words
from .targets import Target

if TYPE_CHECKING:
    from .ir import Code, Index, Pointer, Value

_L1 = 1 << 15  # bytes
_LINE = 16  # floats in a cache line
UNROLL = 4  # rounds of the loop over inputs in one: its counter and jump cost nothing beside 4·24 multiply-adds
PAIR = 2  # inputs of a round that takes them in pairs; two pairs in one are more than LLVM keeps in registers


def tile_shape(
    target: Target,
    numbers: str,
    pixels: int,
    counts: tuple[int, ...],
    vectors: int,
    inputs: int,
    *,
    overlap: bool = False,
    paired: bool = False,
) -> tuple[int, int]:
    """Returns the (pixels, vectors) of the tile that takes the fewest cycles, by the model that is written here.

    Args:
        target, numbers: what multiplies, and what inputs are.
        pixels: of the layer. They alone decide the vectors, so that weights are packed the same for every schedule.
        counts: of pixels that calls have; no tile is larger than the smallest.
        vectors: of output channels.
        inputs: words of inputs of each sum.
        overlap: whether pixels side by side have inputs in common.
        paired: whether the last vector takes two inputs at a time, as `tile` says.
    """
    facts = target, numbers, vectors, inputs, overlap, paired
    _, wide = _best((pixels,), (1, min(vectors, target.registers // 2)), *facts)
    return _best(counts, (wide, wide), *facts)


@cache
def _best(
    counts: tuple[int, ...],
    widths: tuple[int, int],
    target: Target,
    numbers: str,
    vectors: int,
    inputs: int,
    overlap: bool,
    paired: bool,
) -> tuple[int, int]:
    """Returns the (pixels, vectors) of the tile, from the narrowest to the widest, that takes the fewest cycles."""
    shapes = (
        (high, wide)
        for wide in range(widths[0], widths[1] + 1)
        for high in range(1, min(*counts, (target.registers - 1) // wide - 1) + 1)  # sums, weights, an input
    )

    def cycles(shape: tuple[int, int]) -> tuple[float, int]:
        """Returns those of all calls, their last tiles and panels included; of equal ones the widest is the best."""
        high, wide = shape
        count, last = _panels(vectors, wide, paired)
        row = count * _tile_cycles(target, numbers, high, wide, inputs, overlap, False)
        row += _tile_cycles(target, numbers, high, last, inputs, overlap, paired) if last else 0
        return sum(-(-pixels // high) for pixels in counts) * row, -wide

    return min(shapes, key=cycles)


def _panels(vectors: int, wide: int, paired: bool) -> tuple[int, int]:
    """Returns the number of panels that have the same code, and the vectors of the last one if it has its own, or 0."""
    count = (vectors - paired) // wide
    return count, vectors - count * wide


def _reads_inputs(numbers: str, target: Target, single: int, overlap: bool) -> bool:
    """Whether multiply-adds read their inputs themselves: one vector alone takes each, at an address of its own.

    Args:
        single: vectors that take one input at a time.
        overlap: whether pixels side by side have inputs in common.
    """
    return single == 1 and not overlap and repeats_words(numbers, target)


def _tile_cycles(target: Target, numbers: str, high: int, wide: int, inputs: int, overlap: bool, paired: bool) -> float:
    """Returns the cycles of a tile: two multiply-adds and two loads a cycle, sums that wait 4 cycles for themselves.

    Weights of a panel that is larger than L1 come from L2, 24 bytes a cycle. Where a multiply-add is one instruction
    this is the mean of a core alone and of one whose other thread is at work too. It takes some 2.15 instructions a
    cycle then, 1.55 of them loads, and tiles that are as fast alone differ by 15% (measured with AVX-512).
    """
    single = wide - paired  # vectors that take one input at a time
    vectors = single + paired / 2  # that are read and multiplied for each input
    products, pairs, size = high * vectors, high * paired / 2, 4 * target.lanes * vectors
    loads = (high if single else 0) + pairs + vectors
    cycles = max(products / 2, loads / 2, 4.0 if single else 2.0, size / 24 if inputs * size > _L1 else 0.0)
    if fuses(numbers, target):
        read = pairs + vectors if _reads_inputs(numbers, target, single, overlap) else loads
        cycles = (cycles + max(cycles, products / 1.55, (products + read) / 2.15, loads / 1.55)) / 2
    return inputs * cycles + high * wide + 10


def pack(packed: Words, rows: Sequence[NDArray[Any]], stored: int, step: int, fours: Sequence[int] = ()) -> None:
    """Writes rows [..., outputs] of words, bias, weights and the ending's, in the order in which the tiles read them.

    Args:
        packed: where they go, zeros.
        stored: outputs with those that only fill a vector.
        step: outputs of a panel.
        fours: where outputs are stored as bytes, the order of those of four vectors.
    """
    lines = [row.reshape(-1, row.shape[-1]).view(np.int32) for row in rows]
    count = sum(map(len, lines))
    for first in range(0, stored, step):
        panel = packed[count * first : count * min(first + step, stored)].reshape(count, -1)
        line = 0
        for part in lines:
            piece = part[:, first : first + step]
            panel[line : line + len(part), : piece.shape[1]] = piece
            line += len(part)
        if fours and (whole := panel.shape[1] // len(fours) * len(fours)):
            groups = panel[:, :whole].reshape(count, -1, len(fours))
            panel[:, :whole] = groups[..., list(fours)].reshape(count, whole)


def in_pairs(rows: Floats, lanes: int, each: int) -> Floats:
    """Returns rows [count, outputs] with the last vector of outputs as a paired `tile` reads it: of `each` rows the
    first holds all, side by side for each output; where `each` is 1 zeros are beside it."""
    whole_ = rows.shape[1] // lanes * lanes
    found = np.zeros((len(rows), whole_ + lanes), np.float32)
    found[:, :whole_] = rows[:, :whole_]
    for row in range(each):
        outputs = rows[row::each, whole_:]
        found[::each, whole_ + row : whole_ + row + 2 * outputs.shape[1] : 2] = outputs
    return found


def words(weight: Floats, numbers: str, size: int) -> Words:
    """Returns weights [..., inputs, outputs] by the word [..., words, outputs]: `size` inputs side by side in each."""
    *rest, inputs, outputs = weight.shape
    filled = pad(weight, weight.ndim - 2, -(-inputs // size) * size).reshape(*rest, -1, size, outputs)
    kinds = {"f32": np.float32, "u8": np.int8 if size == 4 else np.int16}
    numbers_ = to_bf16(filled) if numbers == "bf16" else filled.astype(kinds[numbers], copy=False)
    return np.ascontiguousarray(np.moveaxis(numbers_, -2, -1)).view(np.int32)[..., 0]


def to_bf16(x: Floats) -> NDArray[np.uint16]:
    """Returns floats as the bits of bfloat16, rounded to the nearest, to the even one of two."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def for_panels(
    code: "Code",
    vectors: int,
    wide: int,
    rows: int,
    body: "Callable[[Index, Pointer, int], None]",
    last: "Callable[[Index, Pointer, int], None] | None" = None,
) -> None:
    """Calls the body for each panel, of `rows` rows, with its first output channel, its parameters, and its vectors.

    `last` is the body of the last panel where that is another.
    """
    step = wide * code.lanes
    count, rest = _panels(vectors, wide, last is not None)
    parameters = code.parameters.shaped(rows * step)
    if count == 1:
        body(0, parameters.at(0).shaped(step, 1), wide)
    elif count > 1:
        code.loop(0, count, 1, lambda i: body(code.product(i, step), parameters.at(i).shaped(step, 1), wide))
    if rest:
        (last or body)(count * step, parameters.at(count).shaped(rest * code.lanes, 1), rest)


def lines_ahead(tiles: int, wide: int, lanes: int) -> int:
    """Returns the cache lines to ask for in each round of the loop so that a panel's tiles ask for the next panel.

    Measured: 12% of V2 1.0 224 and 16% of V1, whose 14 and 17 MB of weights come through L2 once an image.
    """
    return min(-(-UNROLL * wide * lanes // _LINE // tiles), 2 * wide)


def ahead_of(panel: "Pointer", size: int, rounds: int, pixel: "Index", high: int, lines: int) -> "tuple[Pointer, int]":
    """Returns the `ahead` of the tile at `pixel`, each tile's share of what follows a panel of `size` words: where it
    begins, and the cache lines to ask for in each of its `rounds`."""  # fmt: skip
    return panel.shaped(1).at(size).shaped(rounds * _LINE * lines // high).at(pixel), lines


def ask(ahead: "tuple[Pointer, int]", k: "Index", each: int = 1) -> None:
    """Asks for a round's lines; k counts what goes by, `each` in a round."""
    begin, lines = ahead
    place = begin.shaped(lines * _LINE // each, _LINE).at(k)
    for line in range(lines):
        place.at(line).prefetch()


def tile(
    code: "Code",
    high: int,
    wide: int,
    segments: "Sequence[Pointer]",
    length: int,
    panel: "Pointer",
    ahead: "tuple[Pointer, int] | None" = None,
    *,
    paired: bool = False,
) -> "list[list[Value]]":
    """Returns the sums [high][wide] of a tile, bias included.

    The last vector of a `paired` tile, of floats, has at most half of its outputs. Lanes 2j and 2j + 1 are output j's,
    of the inputs with an even and an odd number, and a multiply-add is for two inputs.

    Args:
        segments: where each piece of the inputs begins, shaped [pixel][number].
        length: words of inputs in each segment.
        panel: parameters, shaped [bias, then inputs][channel].
        ahead: memory to ask for in the meantime: where it begins and cache lines for each round of the loop.
    """
    assert not paired or (length % PAIR == 0 and segments[0].numbers == "f32")
    vectors = [v * code.lanes for v in range(wide)]
    # A loop even where it is short (the stem's runs are 9 inputs): written out, LLVM keeps what pixels side by side
    # have in common in more registers than there are, and takes 1.6 times as long.
    unroll = 3 if length % 3 == 0 and length % UNROLL else UNROLL
    numbers = segments[0].numbers
    if paired or code.products_written_out(numbers):
        unroll = 1
    size = in_word(numbers, code.target)
    panel = panel.shaped(*panel.strides, numbers="f32" if numbers == "f32" else "i32")
    biases = panel.shaped(*panel.strides, numbers="i32" if numbers == "u8" else "f32")
    sums = [biases.at(0, v).load() for v in vectors] * high
    single = wide - paired
    alone = _reads_inputs(numbers, code.target, single, len(segments) > 1)

    def multiply(
        sums: "list[Value]", segment: "Pointer", k: "Index", first: int, columns: range, *, pair: bool = False
    ) -> None:
        """Adds to the sums in some columns the products of input k, or of a pair from there on; 0 has row `first`."""
        weights = [panel.at(code.sum(k, first), vectors[v]).load() for v in columns]
        # At an address with an index a multiply-add that reads its input is two instructions; and of a pair that is
        # read here LLVM would take the single inputs apart.
        inputs = segment.at(0, code.product(k, size)).apart().shaped(*segment.strides) if alone or pair else None
        for p in range(high):  # one input at a time: read together they would push the sums out of the registers
            place = inputs.at(p) if inputs else segment.at(p, code.product(k, size))
            x = place.word(pair=pair)
            for v, w in zip(columns, weights, strict=True):
                sums[p * wide + v] = code.dot(numbers, x, w, sums[p * wide + v])

    for number, segment in enumerate(segments):
        first = 1 + number * length

        def accumulate(k: "Index", *sums: "Value", segment: "Pointer" = segment, first: int = first) -> "list[Value]":
            found = list(sums)
            if paired:
                k = code.product(k, PAIR)
                multiply(found, segment, k, first, range(single, wide), pair=True)
            for i in range((PAIR if paired else 1) if single else 0):
                multiply(found, segment, code.sum(k, i), first, range(single))
            return found

        asks = (lambda k: ask(ahead, k, 1 if paired else UNROLL)) if ahead else None
        rounds = length // PAIR if paired else length
        sums = code.unrolled(rounds, unroll, accumulate, sums, asks)
    rows = [sums[p * wide : (p + 1) * wide] for p in range(high)]
    return [[*row[:-1], _folded(code, row[-1])] for row in rows] if paired else rows


def _folded(code: "Code", x: "Value") -> "Value":
    """Returns the sums of neighbouring lanes, zeros behind them."""
    zeros, half = code.constant(0), code.lanes // 2
    halves = [code.shuffled(x, zeros, [*range(odd, code.lanes, 2), *[code.lanes] * half]) for odd in (0, 1)]
    return code.add(*halves)


def completed(
    code: "Code",
    sums: "Sequence[Sequence[Value]]",
    pixels: "Sequence[Sequence[Pointer]]",
    count: int,
    less: "Pointer",
) -> "list[list[Value]]":
    """Returns the sums [pixel][vector] of products with weights of nine bits, which no machine multiplies by the word.

    They are packed as eight bits, all by the same number less: that number times the sum of the inputs is added here.

    Args:
        pixels: for each, where each piece of its inputs begins.
        count: inputs in each piece.
        less: parameters, the number in each of a vector.
    """
    factor = less.shaped(1, numbers="i32").load()
    found = []
    for row, pieces in zip(sums, pixels, strict=True):
        more = code.fixed.times(code.fixed.byte_sum(pieces, count), factor)
        found.append([code.plus(value, more) for value in row])
    return found


def store(
    code: "Code",
    pixels: "Sequence[Sequence[Value]]",
    ending: str,
    panel: "Pointer",
    out: "Pointer",
    shortcut: "Pointer | None" = None,
) -> None:
    """Stores the sums of pixels side by side, as the ending says; bytes four vectors at a time where they lie together.

    Args:
        panel: the ending's parameters, shaped [row][channel].
        out: the first pixel's first channel, shaped [pixel][channel], as is the shortcut.
    """
    names, lanes, wide = rows(ending, shortcut is not None), code.lanes, len(pixels[0])
    places = [(p, v) for p in range(len(pixels)) for v in range(wide)]
    whole = adds_whole_numbers(ending)
    together = wide % 4 == 0 or (wide < 4 and out.strides[0] == wide * lanes)

    def finished(p: int, v: int, added: "Value | None") -> "Value":
        def row(name: str, numbers: str) -> "Value":
            return panel.shaped(*panel.strides, numbers=numbers).at(names.index(name), v * lanes).load()

        return finish(code, pixels[p][v], ending, row, added)

    while places:
        p, v = places[0]
        place, added = out.at(p, v * lanes), shortcut.at(p, v * lanes) if shortcut else None
        if out.numbers == "u8" and len(places) >= 4 and (together or wide - v >= 4):
            four, places = places[:4], places[4:]
            natural = v + 4 > wide // 4 * 4
            others = added.load_four(natural=natural, whole=whole) if added else [None] * 4
            values = [finished(*place_, other) for place_, other in zip(four, others, strict=True)]
            place.store_four(values, natural=natural)
        else:
            places = places[1:]
            place.store(finished(p, v, added.load(whole=whole) if added else None))
