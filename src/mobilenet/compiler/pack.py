"""Lays folded weights out in the order in which a plan's kernels read them."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from . import depthwise, matrix
from .dense import Dense
from .depthwise import Depthwise
from .kernel import Floats, Kernel, pad
from .lower import Plan
from .memory import ALIGNMENT
from .scale import Scale


def pack(plan: Plan, folded: Mapping[str, NDArray[np.float32]], mean: Sequence[float], std: Sequence[float]) -> Floats:
    """Returns the parameters of all stages as one aligned array.

    Args:
        folded: as `weights.fold` returns.
        mean, std: of the pixels, one value or one for each channel.
    """
    packed = aligned(plan.weights)
    for name, (kernel, offset) in plan.packed.items():
        layer = name.partition(":")[0]
        if isinstance(kernel, Scale):
            scaling = (mean, std) if kernel.bytes else ((0.0,), (1.0,))
            parameters = _scaling(kernel, plan.network.channels, *scaling)
        else:
            parameters = _parameters(kernel, folded[f"{layer}.weight"], folded[f"{layer}.bias"], plan.target.lanes)
        packed[offset // 4 : offset // 4 + kernel.parameters] = parameters
    return packed


def aligned(size: int) -> Floats:
    """Returns zeros of `size` bytes that begin at a whole vector of the widest kind."""
    memory = np.zeros(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size // 4 * 4].view(np.float32)


def _parameters(kernel: Kernel, weight: Floats, bias: Floats, lanes: int) -> Floats:
    if isinstance(kernel, Depthwise):
        return depthwise.pack(weight, bias, lanes)
    if isinstance(kernel, Dense):
        weight, bias = pad(weight, 1, kernel.outputs), pad(bias, 0, kernel.outputs)
    elif weight.ndim == 4:  # the channels that are stored of each pixel, though the image has fewer
        weight = pad(weight, 2, kernel.channels)  # type: ignore[attr-defined]
    return matrix.pack(weight.reshape(-1, bias.size), bias, lanes, kernel.wide)  # type: ignore[attr-defined]


def _scaling(kernel: Scale, channels: int, mean: Sequence[float], std: Sequence[float]) -> Floats:
    """Returns what makes x·scale + shift of (x - mean) / std, for each value of a row."""
    scale = 1 / np.broadcast_to(np.asarray(std, np.float64), channels if kernel.bytes else 1)
    shift = -np.broadcast_to(np.asarray(mean, np.float64), scale.shape) * scale
    return np.concatenate([np.resize(scale, kernel.length), np.resize(shift, kernel.length)]).astype(np.float32)
