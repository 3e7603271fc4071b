"""Lays folded weights out in the order in which a plan's kernels read them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import depthwise, depthwise_bytes, ending, matrix
from .conv import Conv
from .dense import Dense
from .depthwise import Depthwise
from .depthwise_bytes import DepthwiseBytes
from .kernel import Floats, Kernel, Words, byte_offset, four_order, in_word, pad
from .lower import Plan
from .memory import ALIGNMENT
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
        if isinstance(kernel, Scale):
            parameters = _scaling(kernel, plan.network.channels, mean, std)
        elif plan.precision == "int8":
            parameters = _packed(plan, kernel, _whole_numbers(plan, tensors, layer, kernel))
        else:
            weight, bias = tensors[f"{layer}.weight"], tensors[f"{layer}.bias"]
            parameters = _packed(plan, kernel, (bias, weight, []))
        packed[offset // 4 : offset // 4 + kernel.parameters] = parameters
    return packed


def aligned(size: int) -> Floats:
    """Returns zeros of `size` bytes that begin at a whole vector of the widest kind."""
    memory = np.zeros(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size // 4 * 4].view(np.float32)


def _packed(plan: Plan, kernel: Any, rows: tuple[NDArray[Any], NDArray[Any], list[NDArray[Any]]]) -> Words:
    """Returns the bias, the weights and the ending's rows of one kernel in its order."""
    bias, weight, last = rows
    lanes, stored = plan.target.lanes, kernel.channels if isinstance(kernel, Depthwise | Pool) else kernel.outputs
    if isinstance(kernel, DepthwiseBytes):
        return depthwise_bytes.pack(kernel, plan.target, bias, weight, last)
    if isinstance(kernel, Depthwise | Pool):
        return depthwise.pack([bias, weight, *last], stored, lanes)
    size = in_word(kernel.numbers, plan.target)
    if isinstance(kernel, Conv):  # the channels that are stored of each pixel, though the image has fewer
        weight = pad(weight, 2, kernel.channels)
        weight = weight.reshape(kernel.kernel, -1, weight.shape[-1])
    weight = matrix.words(weight, kernel.numbers, size)
    if weight.ndim == 2:  # with those that fill matrices
        weight = pad(weight, 0, kernel.inputs)  # type: ignore[arg-type]
    fours = four_order(plan.target) if kernel.numbers == "u8" and not isinstance(kernel, Dense) else ()
    return matrix.pack([bias, weight, *last], stored, kernel.wide * lanes, fours)


def _whole_numbers(
    plan: Plan, tensors: Arrays, layer: str, kernel: Kernel
) -> tuple[NDArray[Any], NDArray[Any], list[NDArray[Any]]]:
    """Returns bias, weights and ending's rows of a quantised layer; what zero is in its input goes into the bias."""
    position = next(n for n, other in enumerate(plan.network.layers) if other.name == layer)
    before = plan.network.layers[position - 1].name if position else "pixels"
    zero = tensors[f"{before}.zero"].astype(np.int64)
    outputs = plan.network.layers[position].output.channels
    if isinstance(kernel, Pool):
        bias, weight = np.full(outputs, -kernel.pixels * int(zero[0]), np.float32), np.zeros((0, outputs), np.float32)
    else:
        weight = tensors[f"{layer}.weight"].astype(np.int64)
        terms = weight * (zero if weight.ndim == 3 or len(zero) == 1 else zero[:, None])
        bias = tensors[f"{layer}.bias"] - terms.reshape(-1, outputs).sum(0)
        if not isinstance(kernel, Depthwise) or (isinstance(kernel, DepthwiseBytes) and kernel.words == 1):
            bias += byte_offset(plan.target) * weight.reshape(-1, outputs).sum(0)
        in_floats = isinstance(kernel, Depthwise) and not isinstance(kernel, DepthwiseBytes) and not kernel.large
        exact = np.float32 if in_floats else np.int32
        bias, weight = bias.astype(exact), weight.astype(np.float32)
    if isinstance(kernel, Dense):
        return bias, weight, [_row(tensors[f"{layer}.multiplier"], outputs, np.float32)]
    facts = {"zero": f"{layer}.zero", "high": f"{layer}.high", "multiplier": f"{layer}.multiplier"}
    facts["shortcut"] = f"{layer}.shortcut"
    found = []
    for name in ending.rows(kernel.ending, getattr(kernel, "adds", False)):  # type: ignore[attr-defined]
        if name == "low":
            value = tensors[f"{layer}.zero"] if plan.network.layers[position].activation != "linear" else np.zeros(1)
        elif name == "shortcut_zero":
            value = -tensors[f"{plan.network.layers[position].adds}.zero"]
        else:
            value = tensors[facts[name]]
        found.append(_row(value, outputs, np.float32 if name in ending.FLOATS else np.int32))
    return bias, weight, found


def _row(value: NDArray[Any], outputs: int, kind: Any) -> NDArray[Any]:
    return np.broadcast_to(np.asarray(value, kind).reshape(-1), (outputs,))


def _scaling(kernel: Scale, channels: int, mean: Sequence[float], std: Sequence[float]) -> Words:
    """Returns what makes x·scale + shift of (x - mean) / std, for each value of a row."""
    scale = 1 / np.broadcast_to(np.asarray(std, np.float64), channels)
    shift = -np.broadcast_to(np.asarray(mean, np.float64), channels) * scale
    both = np.concatenate([np.resize(scale, kernel.length), np.resize(shift, kernel.length)])
    return both.astype(np.float32).view(np.int32)
