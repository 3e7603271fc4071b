"""Runs a model with numpy alone: batch norm folded, images one by one, each layer a few calls on memory set aside.

A network is recorded once as a tape: a flat list of numpy calls whose arguments, views of a few buffers, are all bound.
Running an image is playing the tape. A pointwise layer is a matrix product; a depthwise layer one `einsum` over its
nine shifted views (multiply and add, a pass each, took twice as long); a standard convolution a product with copied
patches. Layers are cut into bands of rows, so that bias and activation find a band's product still in cache.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from .arch import Layer, Network, Pads, Shape
from .common.parallel import for_each
from .integer import IntegerNetwork
from .runner import Floats, Runner
from .storage.tensors_file import Tensors
from .weights import fold

if TYPE_CHECKING:
    from .model import Model

_BAND = 1 << 16  # floats, 256 KiB: half of the smallest L2 cache of today's servers
_NO_PADS: Pads = ((0, 0), (0, 0))


class Engine(Runner):
    """Is the engine in numpy alone: slower than `Model.compile`, on any machine, with nothing to compile."""

    def __init__(self, model: "Model", threads: int | None = None) -> None:
        """Prepares a model's weights; later changes of the model do not reach this engine.

        Args:
            model: what to run.
            threads: over which the images of a batch are split, from 1 to 1024; None for one a processor.

        Raises:
            UsageError: names `threads`, its value and the rule.
        """
        super().__init__(model.network, threads)
        self._integer = IntegerNetwork(model.network, dict(model.tensors)) if model.precision == "int8" else None
        self._folded = {} if self._integer else fold(model.network, model.tensors)
        self._scaling = model.preprocessing.mean, model.preprocessing.std
        self._idle: list[_Tape] = []  # list's append and pop are atomic

    def _one(self, image: NDArray[Any], logits: Floats) -> None:
        self._play(image, logits)

    def _run(self, images: NDArray[Any], logits: Floats) -> None:
        for_each(lambda n: self._play(images[n], logits[n]), len(images), self.threads)

    def _play(self, image: NDArray[Any], out: Floats) -> None:
        if self._integer:
            out[...] = self._integer(image[np.newaxis])[0].reshape(out.shape)
            return
        try:
            tape = self._idle.pop()
        except IndexError:
            tape = _Tape(self.network, self._folded, *self._scaling)
        tape.play(image, out)
        self._idle.append(tape)


class _Tape:
    """Is a network laid out in memory for one image at a time."""

    def __init__(self, network: Network, folded: Tensors, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean, self.std = np.array(mean, np.float32), np.array(std, np.float32)
        self.folded = folded
        self.calls: list[Callable[[], object]] = []
        self.products = np.empty(max(map(_product_size, network.layers)), np.float32)
        self.patches = np.empty(max(map(_patches_size, network.layers)), np.float32)
        pads = [layer.padding for layer in network.layers] + [_NO_PADS]
        padded = np.zeros(_padded_size(network.input, pads[0]), np.float32)
        self.image = source = _Map(padded, network.input, pads[0])
        maps: dict[str, _Map] = {}
        for layer, memory, pad in zip(network.layers, _memory(network, pads), pads[1:], strict=True):
            maps[layer.name] = target = _Map(memory, layer.output, pad)
            self.calls += target.clear_border()
            self._record(layer, source, target, maps[layer.adds] if layer.adds else None)
            source = target
        self.result = source

    def play(self, image: NDArray[Any], out: Floats) -> None:
        """Runs one image [height, width, channels] and writes the last layer's output."""
        np.subtract(image, self.mean, out=self.image.inside)
        np.divide(self.image.inside, self.std, out=self.image.inside)
        for call in self.calls:
            call()
        out[...] = self.result.inside.reshape(out.shape)

    def _record(self, layer: Layer, source: "_Map", target: "_Map", shortcut: "_Map | None") -> None:
        if layer.kind == "average_pool":
            self._add(np.mean, source.inside, axis=(0, 1), out=target.inside[0, 0])
        elif layer.kind == "max_pool":
            self._add(np.max, source.inside, axis=(0, 1), out=target.inside[0, 0])
        else:
            bias = np.tile(self.folded[f"{layer.name}.bias"], layer.output.width)
            step = _band_rows(layer)
            for top in range(0, layer.output.height, step):
                rows = slice(top, min(top + step, layer.output.height))
                product = self._product(layer, source, rows)
                self._finish(layer, product, bias, target.rows[rows], shortcut.rows[rows] if shortcut else None)

    def _product(self, layer: Layer, source: "_Map", rows: slice) -> Floats:
        """Records the sums of a band of rows; returns where they will be, [rows, width · channels]."""
        weight = self.folded[f"{layer.name}.weight"]
        count, width, outs = rows.stop - rows.start, layer.output.width, layer.output.channels
        product = self.products[: count * width * outs].reshape(count, width * outs)
        if layer.kind == "depthwise":
            if layer.stride == 1:
                # One run of the inner loop is a row of pixels instead of one pixel's channels.
                windows, weight = source.row_windows(layer, rows), np.tile(weight, width)
                self._add(np.einsum, "hijc,ijc->hc", windows, weight, out=product)
            else:
                product_by_pixel = product.reshape(count, width, outs)
                self._add(np.einsum, "hwijc,ijc->hwc", source.windows(layer, rows), weight, out=product_by_pixel)
            return product
        inputs = weight.size // outs
        if layer.kind == "conv":
            windows = source.windows(layer, rows)
            patches = self.patches[: count * width * inputs]
            self._add(np.copyto, patches.reshape(windows.shape), windows)
        else:
            patches = source.rows[rows]
        self._add(np.matmul, patches.reshape(-1, inputs), weight.reshape(inputs, outs), out=product.reshape(-1, outs))
        return product

    def _finish(self, layer: Layer, product: Floats, bias: Floats, out: Floats, shortcut: Floats | None) -> None:
        self._add(np.add, product, bias, out=out)
        if layer.activation != "linear":
            self._add(np.maximum, out, np.float32(0), out=out)
        if layer.activation == "relu6":
            self._add(np.minimum, out, np.float32(6), out=out)
        if shortcut is not None:
            self._add(np.add, out, shortcut, out=out)

    def _add(self, function: Callable[..., object], *arguments: object, **named: object) -> None:
        self.calls.append(partial(function, *arguments, **named))


class _Map:
    """Is an activation in memory, with the border of zeros that the next layer reads around it."""

    def __init__(self, memory: Floats, shape: Shape, pads: Pads) -> None:
        (top, bottom), (left, right) = pads
        size = (top + shape.height + bottom, left + shape.width + right, shape.channels)
        self.padded = memory[: math.prod(size)].reshape(size)
        self.inside = self.padded[top : top + shape.height, left : left + shape.width]
        self.rows = self.inside.reshape(shape.height, -1)
        self.pads = pads
        assert np.shares_memory(self.rows, memory)

    def clear_border(self) -> list[Callable[[], object]]:
        """Returns the calls that write the zeros: other activations have been in this memory."""
        (top, bottom), (left, right) = self.pads
        height, width = self.padded.shape[:2]
        edges = (
            self.padded[:top],
            self.padded[height - bottom :],
            self.padded[:, :left],
            self.padded[:, width - right :],
        )
        return [partial(edge.fill, 0) for edge in edges if edge.size]

    def windows(self, layer: Layer, rows: slice) -> Floats:
        """Returns a view [rows, width, kernel, kernel, channels] of what each output of a band of rows is made from."""
        row, column, item = self.padded.strides
        shape = (rows.stop - rows.start, layer.output.width, layer.kernel, layer.kernel, layer.input.channels)
        steps = (row * layer.stride, column * layer.stride, row, column, item)
        return as_strided(self.padded[rows.start * layer.stride :], shape, steps, writeable=False)

    def row_windows(self, layer: Layer, rows: slice) -> Floats:
        """Returns the same at stride 1, pixels and channels as one axis: [rows, kernel, kernel, width · channels]."""
        row, column, item = self.padded.strides
        shape = (rows.stop - rows.start, layer.kernel, layer.kernel, layer.output.width * layer.output.channels)
        return as_strided(self.padded[rows.start :], shape, (row, row, column, item), writeable=False)


def _padded_size(shape: Shape, pads: Pads) -> int:
    return (shape.height + sum(pads[0])) * (shape.width + sum(pads[1])) * shape.channels


def _band_rows(layer: Layer) -> int:
    """Returns how many rows of the output, and of a standard convolution's patches, fit in a band."""
    per_row = layer.output.width * max(layer.output.channels, _patch(layer))
    return min(max(_BAND // per_row, 1), layer.output.height)


def _patch(layer: Layer) -> int:
    return layer.kernel**2 * layer.input.channels if layer.kind == "conv" else 0


def _product_size(layer: Layer) -> int:
    return _band_rows(layer) * layer.output.width * layer.output.channels


def _patches_size(layer: Layer) -> int:
    return _band_rows(layer) * layer.output.width * _patch(layer)


def _memory(network: Network, pads: Sequence[Pads]) -> list[Floats]:
    """Returns a buffer for each layer's output; outputs that are never needed at the same time share one."""
    names = [layer.name for layer in network.layers]
    last_use = {name: index + 1 for index, name in enumerate(names)}
    last_use |= {layer.adds: index for index, layer in enumerate(network.layers) if layer.adds}
    sizes: list[int] = []
    busy_until: list[int] = []
    slots: list[int] = []
    for index, layer in enumerate(network.layers):
        free = [slot for slot, until in enumerate(busy_until) if until < index]
        slot = max(free, key=lambda slot: sizes[slot], default=len(sizes))
        if slot == len(sizes):
            sizes.append(0)
            busy_until.append(0)
        sizes[slot] = max(sizes[slot], _padded_size(layer.output, pads[index + 1]))
        busy_until[slot] = last_use[layer.name]
        slots.append(slot)
    buffers = [np.empty(size, np.float32) for size in sizes]
    return [buffers[slot] for slot in slots]
