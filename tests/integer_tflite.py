"""TFLite files of whole numbers with random quantisation, as converters write them, for tests."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mobilenet.arch import Layer, Network
from mobilenet.export import tflite as writer
from mobilenet.formats import tflite_schema as schema
from mobilenet.formats.flatbuffer import Fields, Scalar
from mobilenet.formats.tflite_schema import Op, Options, Padding, Type

_FUSED = {"linear": 0, "relu": 1, "relu6": 3}
_KINDS = {np.dtype(np.uint8): Type.UINT8, np.dtype(np.int8): Type.INT8, np.dtype(np.int32): Type.INT32}


@dataclass(frozen=True)
class Options8:
    """Is what converters differ in.

    Attributes:
        kind: of the numbers: uint8 with one scale and zero point a weight, or int8 with a scale a channel.
        mean: whether the pooling is MEAN instead of AVERAGE_POOL_2D.
        convolution: whether the classifier is a convolution, then squeezed, instead of FULLY_CONNECTED.
        channels: whether int8 weights have a scale a channel, the fully connected one's too.
        softmax: whether the last operator is one.
        bias: whether a fully connected classifier has one; TFLite's convolutions of whole numbers must.
    """

    kind: Type = Type.UINT8
    mean: bool = False
    convolution: bool = True
    channels: bool = False
    softmax: bool = True
    bias: bool = True


class Maker:
    """Makes the file of a network: `data`, and `tensors`, the graph's by the layers' names."""

    def __init__(self, network: Network, options: Options8, seed: int = 0) -> None:
        self.network, self.options = network, options
        self.generator = np.random.default_rng(seed)
        self.graph = writer._Graph({})
        self.scales: dict[int, tuple[float, int]] = {}
        self.tensors: dict[str, int] = {}
        source = self.activation("image", (1, *network.input), float(self.generator.uniform(0.005, 0.02)))
        for layer in network.layers:
            source = self._layer(layer, source)
            self.tensors[layer.name] = source
        if network.include_top:
            source = self._end(source)
        self.output = source

    @property
    def data(self) -> bytes:
        """The file."""
        return self.graph.encoded(self.network, self.output, b"")

    def activation(self, name: str, shape: tuple[int, ...], scale: float, zero: int | None = None) -> int:
        """Adds a tensor; `zero` is of bytes, None for anything."""
        zero = int(self.generator.integers(0, 256)) if zero is None else zero
        index = self.graph._tensor(name, shape, self.options.kind)
        self._quantised(index, [scale], zero - self._less)
        self.scales[index] = float(np.float32(scale)), zero
        return index

    @property
    def _less(self) -> int:
        return 128 if self.options.kind == Type.INT8 else 0

    def _quantised(self, index: int, scale: Any, zero: int, axis: int = 0) -> None:
        quantisation: Fields = {
            schema.Quantization.SCALE: np.array(scale, np.float32),
            schema.Quantization.ZERO_POINT: np.full(len(scale), zero, np.int64),
            schema.Quantization.DIMENSION: Scalar("i", axis if len(scale) > 1 else 0),
        }
        self.graph.tensors[index] = {**self.graph.tensors[index], schema.Tensor.QUANTIZATION: quantisation}

    def _constant(self, name: str, data: NDArray[Any], scale: Any, zero: int = 0, axis: int = 0) -> int:
        index = self.graph._tensor(name, data.shape, _KINDS[data.dtype], self.graph.buffer(data.tobytes()))
        self._quantised(index, scale, zero, axis)
        return index

    def _layer(self, layer: Layer, source: int) -> int:
        if layer.kind in ("average_pool", "max_pool"):
            return self._pool(layer, source)
        dense = layer.kind == "dense" and not self.options.convolution
        if layer.kind == "dense" and self.options.convolution and self.options.mean:
            source = self._flat(source, (1, 1, 1, layer.input.channels), "unflat", Op.RESHAPE, Options.RESHAPE)
        source, padding = self._padded(layer, source)
        shape = (1, layer.output.channels) if dense else (1, *layer.output)
        relu = layer.activation != "linear"
        # TFLite's softmax aborts where 512 logits are at the upper clamp: they lie in the middle.
        lowest, highest = (0, 40) if relu else (60, 196) if layer.kind == "dense" else (0, 256)
        zero = int(self.generator.integers(lowest, highest))
        top = self.generator.uniform(100, 250)  # bytes that 6 is above 0
        target = self.activation(layer.name, shape, 6 / top if relu else float(self.generator.uniform(0.02, 0.1)), zero)
        inputs = [source, *self._weights(layer, source, target, dense)]
        if dense:
            self.graph.add(Op.FULLY_CONNECTED, inputs, target, Options.FULLY_CONNECTED, {})
            return target
        places = (Scalar("b", padding), Scalar("i", layer.stride), Scalar("i", layer.stride))
        fields: dict[int, Scalar] = dict(enumerate(places))  # the same places in both tables
        fused = Scalar("b", _FUSED[layer.activation])
        if layer.kind == "depthwise":
            fields |= {schema.DepthwiseConv2D.DEPTH_MULTIPLIER: Scalar("i", 1)}
            fields |= {schema.DepthwiseConv2D.ACTIVATION: fused}
            self.graph.add(Op.DEPTHWISE_CONV_2D, inputs, target, Options.DEPTHWISE_CONV_2D, fields)
        else:
            fields |= {schema.Conv2D.ACTIVATION: fused}
            self.graph.add(Op.CONV_2D, inputs, target, Options.CONV_2D, fields)
        return self._added(layer, target) if layer.adds else target

    def _weights(self, layer: Layer, source: int, target: int, dense: bool) -> list[int]:
        """Adds weight and bias such that the sums spread over the output's range."""
        assert layer.weight_shape is not None
        shape = layer.weight_shape
        if (layer.kind == "dense" and not dense) or layer.kind == "pointwise":
            shape = (1, 1, *shape)
        legacy, channels, dense_like = self.options.kind == Type.UINT8, layer.output.channels, layer.kind == "dense"
        low = 0 if legacy else -127
        numbers = self.generator.integers(low, low + (256 if legacy else 255), shape)
        zero = int(self.generator.integers(*((124, 132) if dense_like else (100, 140)))) if legacy else 0
        terms = int(np.prod(layer.weight_shape)) // channels
        deviation = 40 * self.scales[target][0] / (60 * 75 * np.sqrt(terms) * self.scales[source][0])
        count = channels if self.options.channels else 1
        scale = np.float32(deviation * self.generator.uniform(0.5, 2, count))
        whole = numbers.astype(np.uint8 if legacy else np.int8)
        depthwise = layer.kind == "depthwise"
        whole = whole[None] if depthwise else np.ascontiguousarray(np.moveaxis(whole, -1, 0))
        weight = self._constant(f"{layer.name}.weight", whole, scale, zero, 3 if depthwise else 0)
        if dense and not self.options.bias:
            return [weight]
        sums = np.float32(np.float32(self.scales[source][0]) * scale)
        spread = 0.3 * 128 * self.scales[target][0] / float(sums.max())
        bias = self.generator.uniform(0, 2 * spread, channels).astype(np.int32)  # else whole layers stay below 0
        return [weight, self._constant(f"{layer.name}.bias", bias, sums)]

    def _padded(self, layer: Layer, source: int) -> tuple[int, Padding]:
        if layer.padding == ((0, 0), (0, 0)):
            return source, Padding.VALID
        if layer.padding == tuple(writer._same(size, layer) for size in layer.input[:2]):
            return source, Padding.SAME
        (top, bottom), (left, right) = layer.padding
        height, width, channels = layer.input
        pads = self.graph.constant(f"{layer.name}.pads", np.array([(0, 0), *layer.padding, (0, 0)], np.int32))
        shape = (1, top + height + bottom, left + width + right, channels)
        padded = self.activation(f"{layer.name}.padded", shape, *self.scales[source])
        self.graph.add(Op.PAD, [source, pads], padded, Options.PAD, {})
        return padded, Padding.VALID

    def _added(self, layer: Layer, own: int) -> int:
        assert layer.adds is not None
        other = self.tensors[layer.adds]
        scale = (self.scales[own][0] + self.scales[other][0]) * float(self.generator.uniform(0.4, 1))
        target = self.activation(f"{layer.name}.sum", (1, *layer.output), scale)
        pair = [own, other] if self.generator.integers(2) else [other, own]
        self.graph.add(Op.ADD, pair, target, Options.ADD, {})
        return target

    def _pool(self, layer: Layer, source: int) -> int:
        channels, (height, width) = layer.output.channels, layer.input[:2]
        scale, zero = self.scales[source]
        if self.options.mean:
            axes = self.graph.constant(f"{layer.name}.axes", np.array([1, 2], np.int32))
            average = layer.kind == "average_pool"
            if average:
                scale, zero = scale * float(self.generator.uniform(0.5, 1)), int(self.generator.integers(0, 100))
            target = self.activation(layer.name, (1, channels), scale, zero)
            keep: Fields = {schema.Reducer.KEEP_DIMS: Scalar("b", 0)}
            self.graph.add(Op.MEAN if average else Op.REDUCE_MAX, [source, axes], target, Options.REDUCER, keep)
            return target
        target = self.activation(layer.name, (1, 1, 1, channels), scale, zero)
        sizes = {"PADDING": 1, "STRIDE_W": 1, "STRIDE_H": 1, "FILTER_W": width, "FILTER_H": height}
        fields: Fields = {
            schema.Pool2D[name]: Scalar("b" if name == "PADDING" else "i", n) for name, n in sizes.items()
        }
        op = Op.AVERAGE_POOL_2D if layer.kind == "average_pool" else Op.MAX_POOL_2D
        self.graph.add(op, [source], target, Options.POOL_2D, fields)
        return target

    def _flat(self, source: int, shape: tuple[int, ...], name: str, op: Op, kind: Options) -> int:
        target = self.activation(name, shape, *self.scales[source])
        inputs = [source]
        if op == Op.RESHAPE:
            inputs.append(self.graph.constant(f"{name}.shape", np.array(shape, np.int32)))
        self.graph.add(op, inputs, target, kind, {})
        return target

    def _end(self, source: int) -> int:
        shape = (1, self.network.classes)
        if self.options.convolution:
            source = self._flat(source, shape, "flat", Op.SQUEEZE, Options.SQUEEZE)
        if self.options.softmax:
            target = self.activation("probabilities", shape, 1 / 256, 0)
            self.graph.add(Op.SOFTMAX, [source], target, Options.SOFTMAX, {schema.Softmax.BETA: Scalar("f", 1)})
            return target
        return source
