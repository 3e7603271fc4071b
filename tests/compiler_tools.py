"""What the compiler's tests share: chains of layers that are no network, memory between pages that can't be touched.

Code for another processor's instructions runs emulated where the package unicorn or QEMU is there.
"""

import ctypes
import importlib.util
import mmap
import random
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from arm_linux import QEMU, ArmLinux
from members import DEEP
from mobilenet import reference
from mobilenet.arch import Conventions, Layer, Shape
from mobilenet.compiler import native
from mobilenet.compiler.build import build
from mobilenet.compiler.driver import DRIVE
from mobilenet.compiler.emulator import Emulator
from mobilenet.compiler.kernel import SIZES
from mobilenet.compiler.loader import Code
from mobilenet.compiler.lower import lower
from mobilenet.compiler.pack import pack
from mobilenet.compiler.plan import Plan, Step, for_floats
from mobilenet.compiler.targets import TARGETS, Target, runnable
from mobilenet.weights import fold

UNICORN = importlib.util.find_spec("unicorn") is not None
EMULATED = tuple(
    target
    for target in TARGETS.values()
    if target.machine == "aarch64" and target not in runnable() and (QEMU if "usdot" in target.words else UNICORN)
)


class Machine(NamedTuple):
    """Is an instruction set, and what numbers it computes with."""

    target: Target
    precision: str

    def __str__(self) -> str:
        return f"{self.target.name}-{self.precision}"

    @property
    def storage(self) -> float:
        """The type's epsilon that activations and weights are rounded to."""
        return 2.0**-7 if self.precision == "bf16" else 0.0


def machines() -> list[Machine]:
    """Returns those that run here, or emulated, and differ in the code that is made for floats."""
    tested = (*runnable(), *EMULATED)
    found = [Machine(target, "f32") for target in tested if not target.words]
    without = ("avx2", "neon", "avx512", "sse") if DEEP else ("avx2", "neon")  # instructions for bfloat16
    return found + [Machine(t, "bf16") for t in tested if "bf16" in t.words or t.name in without]


EPSILON = float(np.finfo(np.float32).eps)
SCALING = ((127.5,), (60.0,))
_PAGE = mmap.PAGESIZE
_kept: list[mmap.mmap] = []


def protect(memory: mmap.mmap, offset: int) -> None:
    """Lets no program read or write a page of memory."""
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory)) + offset
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(start), ctypes.c_size_t(_PAGE), 0) == 0


def guarded(size: int) -> np.ndarray:
    """Returns zeros of `size` bytes with a page on both sides that no program can read or write."""
    pages = -(-size // _PAGE)
    memory = mmap.mmap(-1, (pages + 2) * _PAGE)
    _kept.append(memory)
    for page in (0, pages + 1):
        protect(memory, page * _PAGE)
    offset = (1 + pages) * _PAGE - size
    return np.frombuffer(memory, np.uint8, size, offset)


def guarded_floats(size: int) -> np.ndarray:
    """Stands for `pack.aligned`."""
    assert size % 64 == 0
    return guarded(size).view(np.float32)


def guarded_copy(array: np.ndarray) -> np.ndarray:
    """Returns a copy that ends where a page begins that can't be read."""
    memory = guarded(array.nbytes).view(array.dtype).reshape(array.shape)
    memory[...] = array
    return memory


def conv(name: str, kind: str, source: Shape, outs: int, kernel: int, stride: int, padding: str, **more: Any) -> Layer:
    """Returns a layer of any shape, its padding "same" or "symmetric"."""
    sizes, pads = [], []
    for size in source[:2]:
        if padding == "same":
            out = -(-size // stride)
            before = max((out - 1) * stride + kernel - size, 0) // 2
        else:
            before = kernel // 2
            out = (size + 2 * before - kernel) // stride + 1
        sizes.append(out)
        pads.append((before, max((out - 1) * stride + kernel - size - before, 0)))
    return Layer(name, kind, None, source, Shape(*sizes, outs), kernel, stride, tuple(pads), bias=True, **more)


def chain(layers: Sequence[Layer]) -> Any:
    """Returns what the compiler and the reference need of a network."""
    first = layers[0].input
    return SimpleNamespace(
        layers=tuple(layers), input=first, channels=first.channels, conventions=Conventions(scaling="inception")
    )


def random_tensors(network: Any, seed: int, spread: float = 1.0) -> dict[str, np.ndarray]:
    """Returns weights whose sums keep about the size of the inputs times `spread`, and biases."""
    generator = np.random.default_rng(seed)
    tensors = {}
    for layer in network.layers:
        for name, shape in layer.tensors.items():
            fan = np.prod(shape[:2]) if layer.kind == "depthwise" else np.prod(shape[:-1])
            scale = 0.5 if name.endswith("bias") else spread / np.sqrt(fan)
            tensors[name] = (generator.standard_normal(shape) * scale).astype(np.float32)
    return tensors


class EmulatedTape:
    """Stands for `native._Tape`: a plan in guarded memory of an emulated processor.

    Of several threads' calls those of one after the other are made up to the place where they wait for each other.
    """

    def __init__(self, plan: Plan, image: bytes, functions: dict[str, int], weights: np.ndarray, decode: Any) -> None:
        self.plan, self.decode = plan, decode
        self.machine = machine = ArmLinux() if "usdot" in plan.target.words else Emulator(plan.target)
        code = machine.map(image, "rx")
        self.address = {name: code + offset for name, offset in functions.items()}
        self.bases = {
            "arena": machine.map(native.arena(plan).tobytes(), "rw"),
            "weights": machine.map(weights.tobytes(), "r"),
        }

    def play(self, image: np.ndarray, out: np.ndarray) -> None:
        plan, machine = self.plan, self.machine
        pixels = machine.map(image.tobytes(), "r")
        for group in zip(*map(_until_waits, plan.parts), strict=True):
            for steps in group:
                rows = [self._call(step, image.itemsize, pixels) for step in steps]
                if rows:
                    machine.call(self.address[DRIVE], machine.map(np.array(rows, np.int64).tobytes(), "r"), len(rows))
        size = plan.stored.size * SIZES[plan.numbers]
        stored = np.frombuffer(machine.read(self.bases["arena"] + plan.result, size), native._KINDS[plan.numbers])
        channels = plan.network.layers[-1].output.channels
        out[...] = self.decode(stored.reshape(plan.stored)[..., :channels]).reshape(out.shape)

    def _call(self, step: Step, itemsize: int, pixels: int) -> list[int]:
        reads = step.source.region == "pixels"
        kernel = for_floats(step.kernel) if reads and itemsize > 1 else step.kernel
        row = native._call(step, self.address[repr(kernel)], self.bases | {"pixels": 0})
        if reads:
            row[2] = pixels + step.source.offset * itemsize
        return row


def _until_waits(steps: Sequence[Step | None]) -> list[list[Step]]:
    """Returns the steps cut at those at which threads wait."""
    found: list[list[Step]] = [[]]
    for step in steps:
        if step is None:
            found.append([])
        else:
            found[-1].append(step)
    return found


def tape(
    plan: Plan, image: bytes, functions: dict[str, int], weights: np.ndarray, last: tuple[float, float] = (1.0, 0.0)
) -> Any:
    """Returns a plan ready to run, here or emulated; `last` is scale and zero point of the last layer's bytes."""
    decode = native._decoder(plan.numbers, last)
    if plan.target in runnable():
        return native._Tape(plan, Code(image, functions), weights, decode)
    return EmulatedTape(plan, image, functions, weights, decode)


def run_chain(network: Any, tensors: Any, pixels: np.ndarray, machine: Machine, fuse: bool) -> np.ndarray:
    """Compiles a chain here and runs it in guarded memory."""
    plan = lower(network, machine.target, precision=machine.precision, fuse=fuse)
    image, functions = build(plan.kernels, machine.target, workers=1)
    played = tape(plan, image, functions, pack(plan, fold(network, tensors), *SCALING))
    last = network.layers[-1].output
    results = []
    for image in pixels:
        out = np.full(last, np.nan, np.float32)
        played.play(guarded_copy(image), out)
        results.append(out)
    return np.array(results)


def check_chain(layers: Sequence[Layer], machine: Machine, fuse: bool, seed: int, pixels: str = "uint8") -> np.ndarray:
    """Compares a chain of layers with the reference; returns the reference's last output before the comparison."""
    network, tensors = chain(layers), random_tensors(chain(layers), seed, spread=3.0)
    images = np.random.default_rng(seed).integers(0, 256, (2, *network.input)).astype(pixels)
    expected = reference.forward(network, tensors, images, scaling=SCALING)
    allowed = reference.tolerance(network, tensors, images, EPSILON, storage=machine.storage, scaling=SCALING)
    allowed += (
        max(EPSILON, machine.storage) * np.abs(expected) * (layers[-1].adds is not None)
    )  # should all but the sum be exact
    found = run_chain(network, tensors, images, machine, fuse).reshape(expected.shape)
    assert np.abs(allowed).max() < (0.9 if machine.storage else 1e-2) * max(np.abs(expected).max(), 1.0), (
        "a tolerance that would let anything pass"
    )
    wrong = ~(np.abs(found - expected) <= allowed)
    where = np.argwhere(wrong)
    assert not wrong.any(), (
        f"{len(where)} of {wrong.size} wrong, at {where[:3].tolist()}: {found[wrong][:3]} for {expected[wrong][:3]}, "
        f"{allowed[wrong][:3]} allowed"
    )
    return expected


def pick(seed: int) -> random.Random:
    """Returns a generator of choices."""
    return random.Random(seed)
