"""What a kernel is to the rest of the compiler: frozen facts that name it, and a function that writes its code."""

from abc import ABC, abstractmethod
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..common.frozen import frozen
from .targets import Target

if TYPE_CHECKING:
    from .ir import Code

Floats = NDArray[np.float32]
Words = NDArray[np.int32]  # parameters: floats, whole numbers, or inputs' weights by the word

SIZES = {"f32": 4, "bf16": 2, "u8": 1, "i32": 4}  # bytes of a number in memory


def in_word(numbers: str, target: Target) -> int:
    """Returns the inputs in a word of 32 bits, which a machine multiplies at a time."""
    return {"f32": 1, "bf16": 2}.get(numbers) or (
        4 if target.compact or target.words & {"vnni", "usdot", "sdot"} else 2
    )


def multiplies_bytes_together(target: Target) -> bool:
    """Whether a machine multiplies bytes several at a time, as they are or widened; else it does so one by one."""
    return target.machine != "riscv64"


def multiplies_matrices(numbers: str, target: Target) -> bool:
    """Whether products of these numbers are made of whole matrices."""
    return numbers != "f32" and "tiles" in target.words


def fuses(numbers: str, target: Target) -> bool:
    """Whether a multiply-add is one instruction, and two of them a cycle are known to be done."""
    return numbers == "f32" and target.machine == "x86_64" and target.lanes > 4


def repeats_words(numbers: str, target: Target) -> bool:
    """Whether a multiply-add takes a word from memory for all of its lanes; else that is an instruction of its own."""
    return fuses(numbers, target) and target.lanes == 16


def takes_pairs(numbers: str, target: Target, inputs: int, outputs: int) -> bool:
    """Whether the last vector of a pointwise layer's outputs, half empty or more, takes two inputs at a time.

    With as many lanes as this is worth it for: fewer are seldom half empty, channels being multiples of 8.
    """
    return repeats_words(numbers, target) and inputs % 2 == 0 and 0 < outputs % target.lanes <= target.lanes // 2


def byte_offset(target: Target) -> int:
    """Returns what is taken from each of four bytes before a machine multiplies them: 128 makes signed bytes of them,
    where it multiplies no others. Biases make up for it."""  # fmt: skip
    return 128 if "sdot" in target.words else 0


def four_order(target: Target, lanes: int | None = None) -> tuple[int, ...]:
    """Returns which channel is where in four vectors that are stored as bytes at a time."""
    lanes = lanes or target.lanes
    if target.machine != "x86_64":
        return tuple(range(4 * lanes))
    return tuple(16 * (lane // 4) + 4 * vector + lane % 4 for vector in range(4) for lane in range(lanes))


@frozen
class Kernel(ABC):
    """Is the constants of one kernel. Equal kernels share their code."""

    @cached_property
    def name(self) -> str:
        """Its code's name: what it is and its constants."""
        return repr(self)

    @property
    @abstractmethod
    def parameters(self) -> int:
        """Words of 32 bits that it reads of its parameters."""

    @abstractmethod
    def emit(self, code: "Code") -> None:
        """Writes the kernel."""


def whole(channels: int, lanes: int) -> int:
    """Returns the channels that are stored: whole vectors, so that no kernel has a rest of channels to deal with.

    The channels beyond are zeros from the weights on: padded weights and biases are zeros, every activation of 0 is 0,
    and a sum of zeros is 0.
    """
    return -(-channels // lanes) * lanes


def pad(array: Floats, axis: int, size: int) -> Floats:
    """Returns the array with zeros behind it up to `size` in one axis; itself where there are none."""
    if array.shape[axis] == size:
        return array
    pads = [(0, 0)] * array.ndim
    pads[axis] = (0, size - array.shape[axis])
    return np.pad(array, pads)
