"""The register tile that every convolution but the depthwise one is made of: pixels x vectors of output channels.

The sums of a tile stay in registers while the input channels go by; each input is read once a tile and multiplied with
`vectors` vectors of weights, each vector of weights with `pixels` inputs. Weights are packed in the order in which they
are read, panel by panel of `vectors` vectors: [panel][bias, then inputs, then the ending's][vectors · lanes]. Inputs go
by in words of 32 bits, a float, two bfloat16 or two or four bytes, and so do their weights.
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


def tile_shape(
    target: Target,
    numbers: str,
    pixels: int,
    counts: tuple[int, ...],
    vectors: int,
    inputs: int,
    *,
    overlap: bool = False,
) -> tuple[int, int]:
    """Returns the (pixels, vectors) of the tile that takes the fewest cycles, by the model that is written here.

    Args:
        target, numbers: what multiplies, and what inputs are.
        pixels: of the layer. They alone decide the vectors, so that weights are packed the same for every schedule.
        counts: of pixels that calls have; no tile is larger than the smallest.
        vectors: of output channels.
        inputs: words of inputs of each sum.
        overlap: whether pixels side by side have inputs in common.
    """
    facts = target, numbers, vectors, inputs, overlap
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
        count, rest = divmod(vectors, wide)
        row = count * _tile_cycles(target, numbers, high, wide, inputs, overlap)
        row += _tile_cycles(target, numbers, high, rest, inputs, overlap) if rest else 0
        return sum(-(-pixels // high) for pixels in counts) * row, -wide

    return min(shapes, key=cycles)


def _tile_cycles(target: Target, numbers: str, high: int, wide: int, inputs: int, overlap: bool) -> float:
    """Returns the cycles of a tile: two multiply-adds and two loads a cycle, sums that wait 4 cycles for themselves.

    Weights of a panel that is larger than L1 come from L2, 24 bytes a cycle. Where a multiply-add is one instruction
    this is the mean of a core alone and of one whose other thread is at work too. It takes some 2.15 instructions a
    cycle then, 1.55 of them loads, and tiles that are as fast alone differ by 15% (measured with AVX-512).
    """
    products, loads, size = high * wide, high + wide, 4 * target.lanes * wide
    cycles = max(products / 2, loads / 2, 4.0, size / 24 if inputs * size > _L1 else 0.0)
    if fuses(numbers, target):
        read = wide if wide == 1 and not overlap and repeats_words(numbers, target) else loads
        cycles = (cycles + max(cycles, products / 1.55, (products + read) / 2.15, loads / 1.55)) / 2
    return inputs * cycles + products + 10


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


def for_panels(code: "Code", vectors: int, wide: int, rows: int, body: "Callable[[Index, Pointer, int], None]") -> None:
    """Calls the body for each panel, of `rows` rows, with its first output channel, its parameters, and its vectors."""
    step = wide * code.lanes
    count, rest = divmod(vectors, wide)
    parameters = code.parameters.shaped(rows * step)
    if count == 1:
        body(0, parameters.at(0).shaped(step, 1), wide)
    elif count > 1:
        code.loop(0, count, 1, lambda i: body(code.product(i, step), parameters.at(i).shaped(step, 1), wide))
    if rest:
        body(count * step, parameters.at(count).shaped(rest * code.lanes, 1), rest)


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
) -> "list[list[Value]]":
    """Returns the sums [high][wide] of a tile, bias included.

    Args:
        segments: where each piece of the inputs begins, shaped [pixel][number].
        length: words of inputs in each segment.
        panel: parameters, shaped [bias, then inputs][channel].
        ahead: memory to ask for in the meantime: where it begins and cache lines for each round of the loop.
    """
    vectors = [v * code.lanes for v in range(wide)]
    # A loop even where it is short (the stem's runs are 9 inputs): written out, LLVM keeps what pixels side by side
    # have in common in more registers than there are, and takes 1.6 times as long.
    unroll = 3 if length % 3 == 0 and length % UNROLL else UNROLL
    numbers = segments[0].numbers
    if code.products_written_out(numbers):
        unroll = 1
    size = in_word(numbers, code.target)
    panel = panel.shaped(*panel.strides, numbers="f32" if numbers == "f32" else "i32")
    biases = panel.shaped(*panel.strides, numbers="i32" if numbers == "u8" else "f32")
    sums = [biases.at(0, v).load() for v in vectors] * high
    alone = wide == 1 and len(segments) == 1 and repeats_words(numbers, code.target)
    for number, segment in enumerate(segments):
        first = 1 + number * length

        def accumulate(k: "Index", *sums: "Value", segment: "Pointer" = segment, first: int = first) -> "list[Value]":
            weights = [panel.at(code.sum(k, first), v).load() for v in vectors]
            found = []
            # At an address with an index a multiply-add that reads its input is two instructions.
            inputs = segment.at(0, code.product(k, size)).apart().shaped(*segment.strides) if alone else None
            for p in range(high):  # one input at a time: read together they would push the sums out of the registers
                x = (inputs.at(p) if inputs else segment.at(p, code.product(k, size))).word()
                found += [code.dot(numbers, x, w, sums[p * wide + v]) for v, w in enumerate(weights)]
            return found

        sums = code.unrolled(length, unroll, accumulate, sums, (lambda k: ask(ahead, k, UNROLL)) if ahead else None)
    return [sums[p * wide : (p + 1) * wide] for p in range(high)]


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
