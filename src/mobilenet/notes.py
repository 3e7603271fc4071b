"""A network as the source notes' Keras listing prints it: one row a Keras layer, `initial_conv`, `block0_dw`, …

The names of V1 are the notes'; V2 and the twins of standard convolutions have names after the same pattern.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from .arch import BATCH_NORM, Layer, Network
from .common.text import table_text
from .cost import cost

_STANDS = {"stem": "initial", "pool": "global_avg", "classifier": "softmax"}
_PARTS = {"depthwise": "dw", "pointwise": "pw"}
_KINDS = {
    "conv": "Conv2D",
    "depthwise": "DepthwiseConv2D",
    "pointwise": "Conv2D",
    "average_pool": "GlobalAveragePooling2D",
    "max_pool": "GlobalMaxPooling2D",
    "dense": "Dense",
}
_KERAS = {"weight": "kernel", "bias": "bias"} | dict(
    zip(BATCH_NORM, ("gamma", "beta", "moving_mean", "moving_variance"), strict=True)
)


@dataclass(frozen=True)
class Row:
    """Is one layer as Keras counts layers.

    Attributes:
        name: as in the notes.
        kind: Keras' class.
        output: shape, without the batch.
        tensors: Keras' name of a weight -> the name of our tensor, in Keras' order.
        shapes: Keras' name of a weight -> its shape in Keras, of which ours is a reshape.
        macs: multiply-adds of one image.
    """

    name: str
    kind: str
    output: tuple[int, ...]
    tensors: dict[str, str] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    macs: int = 0

    @property
    def trainable(self) -> int:
        """Number of parameters that training learns."""
        return sum(math.prod(shape) for part, shape in self.shapes.items() if not part.startswith("moving_"))

    @property
    def params(self) -> int:
        """Number of stored parameters."""
        return sum(map(math.prod, self.shapes.values()))


def rows(network: Network) -> tuple[Row, ...]:
    """Returns the rows in the order of the listing."""
    macs = {part.name: part.macs for part in cost(network).layers}
    found: list[Row] = [Row("input", "InputLayer", network.input)]
    for layer in network.layers:
        base, number = _base(layer, found)
        if layer.batch_norm:
            found += _convolution(layer, base, number, macs[layer.name])
        else:
            name = "global_max" if layer.kind == "max_pool" else base
            found.append(_row(layer, name, layer.output[2:], ("weight", "bias"), macs[layer.name]))
    return tuple(found)


def text(network: Network) -> str:
    """Returns the listing as a table with totals: layer, output shape, parameters, multiply-adds."""
    listed = rows(network)
    total, trainable = (sum(getattr(row, name) for row in listed) for name in ("params", "trainable"))
    table = table_text(
        ("<Layer", "<Type", "<Output shape", "Parameters", "Multiply-adds"),
        [
            (row.name, row.kind, str((None, *row.output)), f"{row.params:,}", f"{row.macs:,}" if row.macs else "")
            for row in listed
        ],
    )
    return "\n".join(
        [
            f"{network}",
            table,
            f"Total parameters: {total:,}",
            f"Trainable parameters: {trainable:,}",
            f"Non-trainable parameters: {total - trainable:,}",
            f"Multiply-adds: {sum(row.macs for row in listed):,}",
        ]
    )


def _base(layer: Layer, before: list[Row]) -> tuple[str, int | None]:
    """Returns what the names of a layer's rows begin with, and the number that its batch norm has in the block."""
    if layer.block is None:
        return _STANDS.get(layer.name, layer.name), None
    base = f"block{layer.block}"
    return base, 1 + sum(row.name.startswith(f"{base}_bn") for row in before)


def _convolution(layer: Layer, base: str, number: int | None, macs: int) -> Iterator[Row]:
    part = layer.name.rpartition(".")[2] if number else "conv"
    count = number or ""
    yield _row(layer, f"{base}_{_PARTS.get(part, part)}", layer.output, ("weight", "bias"), macs)
    yield _row(layer, f"{base}_bn{count}", layer.output, BATCH_NORM)
    if layer.activation != "linear":
        yield Row(f"{base}_act{count}", "Activation", layer.output)
    if layer.adds:
        yield Row(f"{base}_add", "Add", layer.output)


def _row(layer: Layer, name: str, output: tuple[int, ...], parts: tuple[str, ...], macs: int = 0) -> Row:
    held = [part for part in parts if f"{layer.name}.{part}" in layer.tensors]
    return Row(
        name,
        "BatchNormalization" if parts == BATCH_NORM else _KINDS[layer.kind],
        output,
        {_KERAS[part]: f"{layer.name}.{part}" for part in held},
        {_KERAS[part]: _keras_shape(layer, part) for part in held},
        macs,
    )


def _keras_shape(layer: Layer, part: str) -> tuple[int, ...]:
    shape = layer.tensors[f"{layer.name}.{part}"]
    if part != "weight":
        return shape
    return {"depthwise": (*shape, 1), "pointwise": (1, 1, *shape)}.get(layer.kind, shape)
