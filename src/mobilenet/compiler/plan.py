"""A plan: which kernel computes which rows when, and where everything lies; as an object, and as data that is kept."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, Literal, NamedTuple

from ..arch import Network, Shape
from ..common.frozen import frozen
from .conv import Conv
from .dense import Dense
from .depthwise import Depthwise
from .depthwise_bytes import DepthwiseBytes
from .kernel import Kernel
from .pointwise import Pointwise
from .pool import Pool
from .resample import Across, Down
from .scale import Scale
from .shortcut import Shortcut
from .softmax import Softmax
from .targets import Target
from .tiled import Tiled, TiledConv

KINDS: dict[str, type[Kernel]] = {
    kind.__name__: kind
    for kind in (
        Across,
        Conv,
        Dense,
        Depthwise,
        DepthwiseBytes,
        Down,
        Pointwise,
        Pool,
        Scale,
        Shortcut,
        Softmax,
        Tiled,
        TiledConv,
    )
}
Region = Literal["arena", "weights", "pixels"]


class Place(NamedTuple):
    """Is an address: bytes from the beginning of a region; in "pixels" the number of values before it."""

    region: Region
    offset: int


class Step(NamedTuple):
    """Is one call of a kernel, for the layer `layer`."""

    layer: str
    kernel: Kernel
    out: Place
    source: Place
    parameters: Place
    extra: Place
    begin: int
    end: int


class Integers(NamedTuple):
    """Is what the code for whole numbers depends on of a model's numbers.

    Attributes:
        endings: of each layer that rescales its sums, as `ending` says.
        zeros: of each layer, what zero is in its input: for each channel, or one for all.
        large: depthwise layers with sums that floats can't hold exactly.
        nine: layers with weights that no signed byte is.
    """

    endings: Mapping[str, str] = {}
    zeros: Mapping[str, tuple[int, ...]] = {}
    large: frozenset[str] = frozenset()
    nine: frozenset[str] = frozenset()


class Fill(NamedTuple):
    """Is bytes of the arena that are a pattern, again and again, before the first image."""

    offset: int
    bytes: int
    pattern: tuple[int, ...]


@frozen
class Plan:
    """Is a network laid out for a target.

    Attributes:
        network, target, precision: what it is for.
        parts: for each thread the calls for one image in their order; the first ones read pixels, as uint8. None is
            where it waits for the others.
        kernels: each distinct one, those for float32 pixels included.
        packed: for each stage with parameters its kernel and their offset in bytes.
        weights, arena: bytes of the parameters and of all activations; the arena is zeros at first, but for the fills.
        fills: what is not.
        zeroed: the parts of the arena, offset and bytes, that must be zeros or fills before each image.
        result: where in the arena the last layer's output is, or its softmax.
        stored: its shape there, channels in whole vectors.
        numbers: what it is there.
    """

    network: Network
    target: Target
    precision: str
    parts: tuple[tuple[Step | None, ...], ...]
    kernels: tuple[Kernel, ...]
    packed: dict[str, tuple[Kernel, int]]
    weights: int
    arena: int
    fills: tuple[Fill, ...]
    zeroed: tuple[tuple[int, int], ...]
    result: int
    stored: Shape
    numbers: str

    @property
    def probabilities(self) -> bool:
        """Whether the output is the softmax of the logits."""
        return any(isinstance(kernel, Softmax) for kernel in self.kernels)

    def kept(self) -> dict[str, Any]:
        """Returns the plan without its network and target as plain data, from which `restored` makes it again."""
        kernels = list(dict.fromkeys((*self.kernels, *(kernel for kernel, _ in self.packed.values()))))
        number = {kernel: n for n, kernel in enumerate(kernels)}
        parts = [[step and (step.layer, number[step.kernel], *step[2:]) for step in part] for part in self.parts]
        return {
            **{name: getattr(self, name) for name in _PLAIN},
            "parts": parts,
            "kernels": [(type(kernel).__name__, asdict(kernel)) for kernel in kernels],
            "called": len(self.kernels),
            "packed": {name: (number[kernel], offset) for name, (kernel, offset) in self.packed.items()},
        }

    @classmethod
    def restored(cls, kept: Mapping[str, Any], network: Network, target: Target) -> "Plan":
        """Returns the plan of which `kept` is the data, also if it comes from JSON, which has lists only."""
        kernels = [KINDS[kind](**constants) for kind, constants in kept["kernels"]]
        return cls(
            network,
            target,
            parts=tuple(tuple(step and _step(kernels, *step) for step in part) for part in kept["parts"]),
            kernels=tuple(kernels[: kept["called"]]),
            packed={name: (kernels[number], offset) for name, (number, offset) in kept["packed"].items()},
            fills=tuple(Fill(offset, size, tuple(pattern)) for offset, size, pattern in kept["fills"]),
            zeroed=tuple((offset, size) for offset, size in kept["zeroed"]),
            stored=Shape(*kept["stored"]),
            **{name: kept[name] for name in ("precision", "weights", "arena", "result", "numbers")},
        )


_PLAIN = ("precision", "weights", "arena", "fills", "zeroed", "result", "stored", "numbers")


def _step(
    kernels: Sequence[Kernel], layer: str, number: int, out: Any, source: Any, parameters: Any, extra: Any, *rows: int
) -> Step:
    return Step(layer, kernels[number], Place(*out), Place(*source), Place(*parameters), Place(*extra), *rows)


def for_floats(kernel: Kernel) -> Kernel:
    """Returns the kernel that reads float32 pixels where `kernel` reads bytes."""
    return replace(kernel, reads="f32") if isinstance(kernel, Scale) else kernel
