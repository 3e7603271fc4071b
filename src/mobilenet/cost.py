"""What a network costs, in closed form: multiply-adds, parameters, activations and peak memory.

Multiply-adds are those of convolutions and classifier, as both papers count: batch norm, biases, activations, shortcuts
and pooling are none. A weight is used once for each position of the output, so a layer costs its weights times those;
positions where the kernel hangs over the border count like any other.

Memory is counted for one image, in two ways. *Layer by layer*: every tensor is materialised; while a layer runs its
input, its output and a shortcut that waits to be added are live; batch norm, activation and addition are in place.
*Fused*: the layers of a block run together, so that the inside of a block is never materialised whole and only the
block's input and output are live (V2 paper, section 5.1; the slice of the inside in work, which an implementation may
make as small as it likes, is not counted). That is a gain for V2, whose blocks are widest inside; a strided block of
V1 needs more, since layer by layer its input is gone before its output is made.

The compiled engine's memory plan has both. Computed layer by layer it needs the first figure exactly, and beside it the
scaled image, a row of zeros and what fills channels up to whole vectors. As it is run, a block takes its input, its
output and at most 1 MiB in work: rows of its inside, or the inside where that is small; the stem is one with block 0.
A test compares them.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any, Literal, get_args

from .arch import Layer, Network, need_network
from .common.checks import choice, integer
from .common.text import bytes_text, table_text

View = Literal["layers", "blocks", "kinds", "total"]
VIEWS: tuple[View, ...] = get_args(View)


def standard_convolution(kernel: int, ins: int, outs: int, out_height: int, out_width: int) -> int:
    """Returns the multiply-adds of a standard convolution, k²·M·N·D² (V1 paper, equation 2; D is the output's side)."""
    return kernel**2 * ins * outs * out_height * out_width


def depthwise_separable(kernel: int, ins: int, outs: int, out_height: int, out_width: int) -> int:
    """Returns the multiply-adds of a depthwise and a pointwise convolution, k²·M·D² + M·N·D² (V1 paper, equation 5)."""
    return (kernel**2 * ins + ins * outs) * out_height * out_width


def saving(kernel: int, outs: int) -> float:
    """Returns the cost of a depthwise separable convolution over its standard twin's, 1/N + 1/k² (V1 paper, 3.1)."""
    integer("kernel", kernel, 1, 1 << 16)
    integer("outs", outs, 1, 1 << 16)
    return 1 / outs + 1 / kernel**2


@dataclass(frozen=True)
class Counts:
    """Is what every layer, block, kind of layer and network has.

    Attributes:
        macs: multiply-adds of one image.
        weights: elements of kernels and matrices alone.
        params: what training learns: weights, biases, batch norm's gamma and beta.
        statistics: batch norm's moving means and variances.
    """

    macs: int
    weights: int
    params: int
    statistics: int

    @property
    def total_params(self) -> int:
        """All stored numbers, trained or not, as Keras counts parameters."""
        return self.params + self.statistics

    def to_dict(self) -> dict[str, Any]:
        """Returns the figures as plain data."""
        return {
            "macs": self.macs,
            "weights": self.weights,
            "params": self.params,
            "statistics": self.statistics,
            "total_params": self.total_params,
        }


@dataclass(frozen=True)
class LayerCost(Counts):
    """Is the cost of one layer.

    Attributes:
        layer: the layer, with its shapes.
        memory: bytes live while it runs: its input, its output and a waiting shortcut.
    """

    layer: Layer
    memory: int

    @property
    def name(self) -> str:
        """The layer's name."""
        return self.layer.name

    @property
    def activations(self) -> int:
        """Elements of the output."""
        return self.layer.output.size

    def to_dict(self) -> dict[str, Any]:
        """Returns the figures as plain data, memory in bytes."""
        return {
            "name": self.name,
            "kind": self.layer.kind,
            "input": list(self.layer.input),
            "output": list(self.layer.output),
            "kernel": self.layer.kernel,
            "stride": self.layer.stride,
            **super().to_dict(),
            "activations": self.activations,
            "memory": self.memory,
        }


@dataclass(frozen=True)
class BlockCost(Counts):
    """Is the cost of one block; stem, head, pool and classifier are blocks of one layer.

    Attributes:
        name: "stem", "block0", …, "head", "pool", "classifier".
        layers: the costs of its layers.
        memory: bytes live while it runs fused: its input and its output.
        standard: multiply-adds of the standard convolution that its depthwise and pointwise layers stand for, with the
            same kernel, stride and channels; None for a block without them.
    """

    name: str
    layers: tuple[LayerCost, ...]
    memory: int
    standard: int | None

    @property
    def separable(self) -> int | None:
        """Multiply-adds of its depthwise layer and the pointwise layer after it, if it has them."""
        return None if self.standard is None else self.layers[-2].macs + self.layers[-1].macs

    @property
    def ratio(self) -> float | None:
        """`separable` over `standard`: 1/N + 1/k², whatever the input channels and the resolution."""
        return self.separable / self.standard if self.separable and self.standard else None

    def to_dict(self) -> dict[str, Any]:
        """Returns the figures as plain data, memory in bytes."""
        return {
            "name": self.name,
            "layers": [layer.name for layer in self.layers],
            **super().to_dict(),
            "memory": self.memory,
            "separable": self.separable,
            "standard": self.standard,
            "ratio": self.ratio,
        }


@dataclass(frozen=True)
class Cost(Counts):
    """Is what a network costs for one image; `str` of it is a table by layer with the totals.

    Attributes:
        network: the network.
        blocks: the costs of its blocks, in the order of computation.
        bytes_per_element: of an activation, for the figures of memory.
    """

    network: Network
    blocks: tuple[BlockCost, ...]
    bytes_per_element: int

    @cached_property
    def layers(self) -> tuple[LayerCost, ...]:
        """The costs of the layers, in the order of computation."""
        return tuple(layer for block in self.blocks for layer in block.layers)

    @cached_property
    def kinds(self) -> dict[str, Counts]:
        """Counts by kind of layer ("conv", "depthwise", "pointwise", "dense"; V1 paper, Table 2), dearest first."""
        kinds = sorted({layer.layer.kind for layer in self.layers if layer.weights})
        sums = {kind: Counts(*_sum(layer for layer in self.layers if layer.layer.kind == kind)) for kind in kinds}
        return dict(sorted(sums.items(), key=lambda item: -item[1].macs))

    @cached_property
    def standard(self) -> "Cost | None":
        """The cost of the twin made of standard convolutions (V1 paper, Table 4); None if the network is that twin."""
        if not self.network.separable:
            return None
        return cost(self.network.replace(separable=False), self.bytes_per_element)

    @property
    def activations(self) -> int:
        """Elements of all layers' outputs together."""
        return sum(layer.activations for layer in self.layers)

    @property
    def activation_memory(self) -> int:
        """Bytes of all layers' outputs together: what a run that keeps every one of them needs."""
        return self.activations * self.bytes_per_element

    @property
    def peak_layer(self) -> LayerCost:
        """The (first) layer that needs the most memory when every tensor is materialised."""
        return max(self.layers, key=lambda layer: layer.memory)

    @property
    def peak_memory(self) -> int:
        """Bytes of activations live at once, layer by layer: input, output and a waiting shortcut."""
        return self.peak_layer.memory

    @property
    def fused_peak_block(self) -> BlockCost:
        """The (first) block that needs the most memory when blocks run fused."""
        return max(self.blocks, key=lambda block: block.memory)

    @property
    def fused_peak_memory(self) -> int:
        """Bytes of activations live at once with fused blocks: a block's input and output (V2 paper, 5.1)."""
        return self.fused_peak_block.memory

    def table(self, view: View = "layers") -> str:
        """Returns a plain table by layer, by block, by kind of layer, or of the totals alone.

        Raises:
            UsageError: names an unknown view.
        """
        choice("view", view, VIEWS)
        return {"layers": _by_layer, "blocks": _by_block, "kinds": _by_kind, "total": _totals}[view](self)

    def __str__(self) -> str:
        return f"{self.network}\n\n{self.table('layers')}\n\n{self.table('total')}"

    def to_dict(self) -> dict[str, Any]:
        """Returns every figure as plain data, memory in bytes."""
        twin = self.standard
        return {
            "network": self.network.to_dict(),
            **super().to_dict(),
            "bytes_per_element": self.bytes_per_element,
            "activations": self.activations,
            "activation_memory": self.activation_memory,
            "peak_memory": self.peak_memory,
            "peak_layer": self.peak_layer.name,
            "fused_peak_memory": self.fused_peak_memory,
            "fused_peak_block": self.fused_peak_block.name,
            "standard": twin and Counts.to_dict(twin) | {"ratio": self.macs / twin.macs},
            "kinds": {kind: counts.to_dict() for kind, counts in self.kinds.items()},
            "blocks": [block.to_dict() for block in self.blocks],
            "layers": [layer.to_dict() for layer in self.layers],
        }


def cost(network: Network, bytes_per_element: int = 4) -> Cost:
    """Counts what a network costs for one image.

    Args:
        network: from `v1` or `v2`.
        bytes_per_element: of an activation: 4 for float32, 2 for 16 bits, 1 for int8.

    Raises:
        UsageError: names the argument, its value and the rule.
    """
    need_network(network)
    integer("bytes_per_element", bytes_per_element, 1, 8)
    groups = groupby(network.layers, key=lambda layer: layer.group)
    blocks = tuple(_block(name, list(layers), bytes_per_element) for name, layers in groups)
    return Cost(*_sum(blocks), network, blocks, bytes_per_element)


def _block(name: str, layers: Sequence[Layer], size: int) -> BlockCost:
    first, last = layers[0], layers[-1]
    waiting = first.input.size if last.adds else 0  # a shortcut is its block's input: the first layer reads it anyway
    costs = tuple(
        LayerCost(*_counts(x), x, (x.input.size + x.output.size + (waiting if x is not first else 0)) * size)
        for x in layers
    )
    standard = None
    if len(layers) > 1 and layers[-2].kind == "depthwise":
        height, width, outs = last.output
        standard = standard_convolution(layers[-2].kernel, last.input.channels, outs, height, width)
    return BlockCost(*_sum(costs), name, costs, (first.input.size + last.output.size) * size, standard)


def _counts(layer: Layer) -> tuple[int, int, int, int]:
    """Returns multiply-adds, weights, parameters and statistics of one layer."""
    weights = math.prod(layer.weight_shape) if layer.weight_shape else 0
    norm = 2 * layer.output.channels if layer.batch_norm else 0  # gamma and beta; as many moving means and variances
    bias = layer.output.channels if layer.bias else 0
    return weights * layer.output.height * layer.output.width, weights, weights + norm + bias, norm


def _sum(parts: Iterable[Counts]) -> tuple[int, int, int, int]:
    rows = [(part.macs, part.weights, part.params, part.statistics) for part in parts]
    macs, weights, params, statistics = (sum(column) for column in zip(*rows, strict=True))
    return macs, weights, params, statistics


# ---------------------------------------------------------------------------------------------------------- as text


def _by_layer(cost: Cost) -> str:
    ratios = {block.layers[-1].name: block.ratio for block in cost.blocks}
    rows = [
        (
            row.name,
            _kind(row.layer),
            _shape(row.layer),
            *_figures(row, cost),
            bytes_text(row.memory),
            _ratio(ratios.get(row.name)),
        )
        for row in cost.layers
    ]
    columns = ("<layer", "<kind", "output", "multiply-adds", "share", "parameters", "memory", "of standard")
    return table_text(columns, rows)


def _by_block(cost: Cost) -> str:
    rows = [
        (
            block.name,
            _shape(block.layers[-1].layer),
            *_figures(block, cost),
            bytes_text(block.memory),
            "" if block.standard is None else f"{block.separable:,}",
            "" if block.standard is None else f"{block.standard:,}",
            _ratio(block.ratio),
        )
        for block in cost.blocks
    ]
    columns = ("<block", "output", "multiply-adds", "share", "parameters", "fused memory")
    return table_text((*columns, "separable", "standard", "ratio"), rows)


def _by_kind(cost: Cost) -> str:
    rows = [
        (kind, *_figures(counts, cost), f"{counts.weights:,}", f"{100 * counts.weights / cost.weights:.2f}%")
        for kind, counts in cost.kinds.items()
    ]
    return table_text(("<kind", "multiply-adds", "share", "parameters", "weights alone", "share"), rows)


def _totals(cost: Cost) -> str:
    rows = [
        ("multiply-adds", f"{cost.macs:,}", ""),
        ("parameters", f"{cost.params:,}", f"{cost.weights:,} weights; {cost.total_params:,} with moving statistics"),
        ("activations", f"{cost.activations:,}", f"{bytes_text(cost.activation_memory)} if all are kept"),
        ("peak memory", bytes_text(cost.peak_memory), f"layer by layer, at {cost.peak_layer.name}"),
        ("", bytes_text(cost.fused_peak_memory), f"with fused blocks, at {cost.fused_peak_block.name}"),
    ]
    if twin := cost.standard:
        macs, params = cost.macs / twin.macs, cost.params / twin.params
        rows.append(("standard twin", f"{twin.macs:,}", f"multiply-adds; this network needs {macs:.3f} of them"))
        rows.append(("", f"{twin.params:,}", f"parameters; this network has {params:.3f} of them"))
    return "\n".join(f"{name:<15}{figure:>16}  {remark}".rstrip() for name, figure, remark in rows)


def _kind(layer: Layer) -> str:
    name = layer.kind.replace("_", " ")
    if layer.kind in ("conv", "depthwise"):
        name += f" {layer.kernel}x{layer.kernel}"
    return name if layer.stride == 1 else f"{name} /{layer.stride}"


def _shape(layer: Layer) -> str:
    return "x".join(str(size) for size in layer.output)


def _figures(part: Counts, whole: Cost) -> tuple[str, str, str]:
    share = 100 * part.macs / whole.macs
    return f"{part.macs:,}", f"{share:.2f}%", f"{part.params:,}"


def _ratio(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.3f}"
