"""Lays folded weights out in the order in which a plan's kernels read them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arch import Layer
from ..quantized import centred_weight, lower_clamp, rescale_of
from . import depthwise, depthwise_bytes, ending, matrix
from .conv import Conv
from .dense import Dense
from .depthwise import Depthwise
from .depthwise_bytes import DepthwiseBytes
from .kernel import Floats, Words, byte_offset, four_order, in_word, pad
from .memory import ALIGNMENT
from .plan import Plan
from .pointwise import Pointwise
from .pool import Pool
from .scale import Scale

Arrays = Mapping[str, NDArray[Any]]


def pack(plan: Plan, tensors: Arrays, mean: Sequence[float], std: Sequence[float]) -> Words:
    """Returns the parameters of all stages as one aligned array.

    Args:
        tensors: as `weights.fold` returns; with int8 those of the quantised model.
        mean, std: of the pixels, one value or one for each channel.
    """
    packed: Words = aligned(plan.weights).view(np.int32)
    for name, (kernel, offset) in plan.packed.items():
        layer = name.partition(":")[0]
        # Written in place: each copy of all weights would take a tenth of an engine's start.
        place = packed[offset // 4 : offset // 4 + kernel.parameters]
        if isinstance(kernel, Scale):
            place[...] = _scaling(kernel, plan.network.channels, mean, std)
        elif plan.precision == "int8":
            _pack(place, plan, kernel, _whole_numbers(plan, tensors, layer, kernel))
        else:
            weight, bias = tensors[f"{layer}.weight"], tensors[f"{layer}.bias"]
            _pack(place, plan, kernel, (bias, weight, []))
    return packed


def aligned(size: int) -> Floats:
    """Returns zeros of `size` bytes that begin at a whole vector of the widest kind."""
    memory = np.zeros(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size // 4 * 4].view(np.float32)


def _pack(place: Words, plan: Plan, kernel: Any, rows: tuple[NDArray[Any], NDArray[Any], list[NDArray[Any]]]) -> None:
    """Writes the bias, the weights and the ending's rows of one kernel in its order."""
    bias, weight, last = rows
    lanes, stored = plan.target.lanes, kernel.channels if isinstance(kernel, Depthwise | Pool) else kernel.outputs
    if isinstance(kernel, DepthwiseBytes):
        place[...] = depthwise_bytes.pack(kernel, plan.target, bias, weight, last)
        return
    if isinstance(kernel, Depthwise | Pool):
        place[...] = depthwise.pack([bias, weight, *last], stored, lanes)
        return
    size = in_word(kernel.numbers, plan.target)
    if isinstance(kernel, Pointwise) and kernel.paired:
        bias, weight = matrix.in_pairs(bias[None], lanes, 1)[0], matrix.in_pairs(weight, lanes, 2)
    if isinstance(kernel, Conv):  # the channels that are stored of each pixel, though the image has fewer
        weight = pad(weight, 2, kernel.channels)
        weight = weight.reshape(kernel.kernel, -1, weight.shape[-1])
    weight = matrix.words(weight, kernel.numbers, size)
    if weight.ndim == 2:  # with those that fill matrices
        weight = pad(weight, 0, kernel.inputs)  # type: ignore[arg-type]
    fours = four_order(plan.target) if kernel.numbers == "u8" and not isinstance(kernel, Dense) else ()
    matrix.pack(place, [bias, weight, *last], stored, kernel.wide * lanes, fours)


def _whole_numbers(
    plan: Plan, tensors: Arrays, name: str, kernel: Any
) -> tuple[NDArray[Any], NDArray[Any], list[NDArray[Any]]]:
    """Returns bias, weights and ending's rows of a quantised layer; what zero is in its input goes into the bias."""
    position, layer = next((n, layer) for n, layer in enumerate(plan.network.layers) if layer.name == name)
    before = plan.network.layers[position - 1].name if position else "pixels"
    zero = tensors[f"{before}.zero"].astype(np.int64)
    outputs = layer.output.channels
    constants = (_fixed_rows if rescale_of(layer, tensors) == "fixed" else _float_rows)(layer, tensors)
    names = ending.rows(kernel.ending, getattr(kernel, "adds", False))
    last = [np.broadcast_to(constants[row], (outputs,)) for row in names]
    if isinstance(kernel, Pool):
        subtracted = int((constants["origin"] if kernel.ending == "fixed+mean" else zero)[0])
        return np.full(outputs, -kernel.pixels * subtracted, np.int32), np.zeros((0, outputs), np.float32), last
    weight = centred_weight(layer, tensors).astype(np.int64)
    terms = weight * (zero if weight.ndim == 3 or len(zero) == 1 else zero[:, None])
    bias = tensors[f"{name}.bias"] - terms.reshape(-1, outputs).sum(0)
    if getattr(kernel, "nine", False):
        less = 128 - tensors[f"{name}.weight_zero"]
        weight = weight - less
        last.append(np.broadcast_to(less, (outputs,)))
    if not isinstance(kernel, Depthwise) or (isinstance(kernel, DepthwiseBytes) and kernel.words == 1):
        bias = bias + byte_offset(plan.target) * weight.reshape(-1, outputs).sum(0)
    in_floats = isinstance(kernel, Depthwise) and not isinstance(kernel, DepthwiseBytes) and not kernel.large
    return bias.astype(np.float32 if in_floats else np.int32), weight.astype(np.float32), last


def _float_rows(layer: Layer, tensors: Arrays) -> dict[str, NDArray[Any]]:
    """Returns the rows of the endings of the rescales "float" and "full" by their names."""
    full = rescale_of(layer, tensors) == "full"
    rows = {"float_multiplier": tensors[f"{layer.name}.multiplier"]}
    if layer.kind != "dense" or full:
        rows |= {name: tensors[f"{layer.name}.{name}"] for name in ("zero", "high", "scale")}
        rows["low"] = np.array([lower_clamp(layer, tensors)], np.int32)
    if layer.kind == "dense" and full:  # logits are above their zero point
        rows |= {name: rows[name] - rows["zero"] for name in ("low", "high")}
    if layer.adds and full:
        rows |= _sum_rows(layer, tensors)
    elif layer.adds:
        rows["shortcut"] = tensors[f"{layer.name}.shortcut"]
        rows["shortcut_zero"] = -tensors[f"{layer.adds}.zero"].astype(np.float32)
    return rows


def _sum_rows(layer: Layer, tensors: Arrays) -> dict[str, NDArray[Any]]:
    """Returns the rows with which the rescale "full" adds a shortcut; what is added more takes its zero point off."""
    zero, right, multipliers = (tensors[f"{layer.name}.sum_{part}"] for part in ("zero", "shift", "multiplier"))
    own, shortcut, taken = multipliers[:1], multipliers[1:], tensors[f"{layer.adds}.zero"]
    return {
        "own_low": -zero,
        "own_high": 255 - zero,
        "own_multiplier": own,
        "shortcut_multiplier": shortcut,
        "sum_more": ((1 << right) >> 1) - shortcut * taken,
        "same_more": tensors[f"{layer.name}.zero"] - taken,
        "sum_right": right,
    }


def _fixed_rows(layer: Layer, tensors: Arrays) -> dict[str, NDArray[Any]]:
    """Returns the rows of the endings of the rescale "fixed" by their names."""

    def part(name: str) -> NDArray[np.int64]:
        return np.asarray(tensors.get(f"{layer.name}.{name}", np.zeros(1)), np.int64)

    shift, right = part("shift"), np.maximum(-part("shift"), 0)
    floor = part("zero") if layer.kind == "dense" else 0  # logits are above it
    rows = {
        "left": np.maximum(shift, 0),
        "multiplier": part("multiplier"),
        "right": right,
        "doubled": 2 * part("multiplier"),
        "half": (1 << right) >> 1,
        "places": 30 - shift,
        "origin": part("origin"),
        "zero": part("zero"),
        "low": part("low") - floor,
        "high": part("high") - floor,
    }
    if layer.adds:
        rows |= {"own_low": -part("sum_zero"), "own_high": 255 - part("sum_zero")}
        for n, term in enumerate(("own", "shortcut", "sum")):
            rows[f"{term}_multiplier"], rows[f"{term}_right"] = part("sum_multiplier")[[n]], -part("sum_shift")[[n]]
        rows["shortcut_zero"] = -np.asarray(tensors[f"{layer.adds}.zero"], np.int64)
    whole = {name: row.astype(np.uint32).view(np.int32) for name, row in rows.items()}
    return whole | {"scale": tensors[f"{layer.name}.scale"]}


def _scaling(kernel: Scale, channels: int, mean: Sequence[float], std: Sequence[float]) -> Words:
    """Returns what makes x·scale + shift of (x - mean) / std, for each value of a row."""
    scale = 1 / np.broadcast_to(np.asarray(std, np.float64), channels)
    shift = -np.broadcast_to(np.asarray(mean, np.float64), channels) * scale
    both = np.concatenate([np.resize(scale, kernel.length), np.resize(shift, kernel.length)])
    return both.astype(np.float32).view(np.int32)
