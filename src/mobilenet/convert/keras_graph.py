"""From the config of a Keras model to layers: what each of Keras' classes means, and nothing that runs.

Classes are taken by an allow-list; a Lambda, a custom or any other class is refused by its layer's name. Each
convolution takes in the batch norm, activation and shortcut that follow it.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ..arch import Activation, Kind, Layer, Pads, Shape
from ..common.checks import short
from ..errors import ModelError
from .keras_config import Op, operations
from .match import NO_PADS, convolved

# Classes that change nothing when a model predicts.
_IDENTITIES = {"Dropout", "SpatialDropout2D", "GaussianNoise", "GaussianDropout", "ActivityRegularization",
               "RandomFlip", "RandomRotation", "RandomZoom", "RandomContrast", "RandomTranslation",
               "RandomBrightness"}  # fmt: skip


@dataclass
class Graph:
    """Is what a config says.

    Attributes:
        layers: in order of computation, under Keras' names.
        weights: for each of them part of our tensor -> (Keras' layer, Keras' name of the weight).
        epsilon: of batch norm.
        momentum: of batch norm.
        dropout: before the classifier.
        scale, offset: what the pixels are multiplied by, then added, before the first layer; None if nothing is.
    """

    layers: list[Layer] = field(default_factory=list)
    weights: list[dict[str, tuple[str, str]]] = field(default_factory=list)
    epsilon: float | None = None
    momentum: float | None = None
    dropout: float = 0.0
    scale: tuple[float, ...] | None = None
    offset: tuple[float, ...] | None = None


class _Value(NamedTuple):
    """Is a tensor on its way.

    Attributes:
        shape: of one image.
        pads: zeros around it that the next convolution reads.
        layer: index of the layer it is from, -1 for the input.
        version: how much the layer had taken in by then.
    """

    shape: Shape
    pads: Pads
    layer: int
    version: int = 0


def graph(config: object, sides: tuple[int, int]) -> Graph:
    """Returns the layers of a model's config.

    Args:
        config: of "model_config" in an .h5 file or config.json in a .keras file, parsed.
        sides: height and width, where the model takes any.

    Raises:
        ModelError: names the layer that no MobileNet has.
    """
    try:
        return _Tracer(sides).trace(*operations(config))
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise ModelError(f"the description of the layers is damaged: {type(error).__name__} {error}") from error


class _Tracer:
    """Follows the layers, and gathers what belongs to each of ours."""

    def __init__(self, sides: tuple[int, int]) -> None:
        self.sides = sides
        self.graph = Graph()
        self.values: dict[str, _Value] = {}
        self.latest: dict[int, _Value] = {}  # what each layer gives with all that it has taken in

    def trace(self, operations: list[Op], output: str) -> Graph:
        for op in operations:
            if op.kind in _IDENTITIES:
                self._keep(op, self._input(op))
                self.graph.dropout = float(op.config.get("rate", 0)) if op.kind == "Dropout" else self.graph.dropout
            elif (handle := _HANDLERS.get(op.kind)) is not None:
                handle(self, op)
            else:
                raise ModelError(f"layer {short(op.name)} is of class {short(op.kind)}, {_why(op)}")
        end = self.values[output]
        if end.pads != NO_PADS or not self._is_last(end):
            raise ModelError(f"not a MobileNet: the model's output, {short(output)}, is not that of its last layer")
        return self.graph

    def _input(self, op: Op) -> _Value:
        if not op.inputs and "batch_input_shape" in op.config:  # the first layer of Keras 2's sequential models
            self._start(op, op.config["batch_input_shape"])
            return self.latest[-1]
        if len(op.inputs) != 1:
            raise ModelError(f"layer {short(op.name)} has {len(op.inputs)} inputs, needed is one")
        return self.values[op.inputs[0]]

    def _keep(self, op: Op, value: _Value) -> None:
        self.values[op.key] = value
        self.latest[value.layer] = value._replace(pads=NO_PADS)

    def _taken_in(self, op: Op, value: _Value) -> Layer:
        """Returns the layer that an operation becomes a part of: the last one."""
        if value.layer < 0 or value.pads != NO_PADS or not self._is_last(value):
            raise ModelError(f"layer {short(op.name)}, {op.kind}, does not follow a convolution, as in a MobileNet")
        return self.graph.layers[value.layer]

    def _is_last(self, value: _Value) -> bool:
        """Tells whether a value is what the last layer gives, with all that it has taken in."""
        return value.layer == len(self.graph.layers) - 1 and value._replace(pads=NO_PADS) == self.latest[value.layer]

    def _change(self, op: Op, value: _Value, **changes: Any) -> None:
        self.graph.layers[value.layer] = dataclasses.replace(self.graph.layers[value.layer], **changes)
        self._keep(op, value._replace(version=value.version + 1))

    def _append(self, op: Op, layer: Layer, weights: dict[str, tuple[str, str]]) -> None:
        if not self._is_last(self._input(op)):
            raise ModelError(f"layer {short(op.name)}, {op.kind}, does not follow the layer before it")
        self.graph.layers.append(layer)
        self.graph.weights.append(weights)
        self._keep(op, _Value(layer.output, NO_PADS, len(self.graph.layers) - 1))

    def input(self, op: Op) -> None:
        """Is where pixels come in, or where the outer model comes in to an inner."""
        if op.inputs:
            self._keep(op, self._input(op))
            return
        if -1 in self.latest:
            raise ModelError(f"layer {short(op.name)} is a second input, needed is one")
        shape = op.config.get("batch_shape") or op.config.get("batch_input_shape") or ()
        self._start(op, shape)
        self.values[op.key] = self.latest[-1]

    def _start(self, op: Op, shape: Any) -> None:
        if len(shape) != 4 or not isinstance(shape[3], int):
            raise ModelError(
                f"layer {short(op.name)}: input shape {short(shape)}, needed is (None, height, width, channels)"
            )
        height, width = (given or ours for given, ours in zip(shape[1:3], self.sides, strict=True))
        self.latest[-1] = _Value(Shape(height, width, shape[3]), NO_PADS, -1)

    def rescale(self, op: Op) -> None:
        """Multiplies and adds before the first layer."""
        scale, offset = _floats(op.config["scale"]), _floats(op.config["offset"])
        self._scale(op, scale, offset)

    def divide(self, op: Op) -> None:
        self._scale(op, (1 / _constant(op),), (0.0,))

    def multiply(self, op: Op) -> None:
        self._scale(op, (_constant(op),), (0.0,))

    def subtract(self, op: Op) -> None:
        self._scale(op, (1.0,), (-_constant(op),))

    def _scale(self, op: Op, scale: tuple[float, ...], offset: tuple[float, ...]) -> None:
        value = self._input(op)
        if value.layer != -1 or value.pads != NO_PADS:
            raise ModelError(f"layer {short(op.name)}, {op.kind}, scales what is not the input")
        before, added = self.graph.scale or (1.0,), self.graph.offset or (0.0,)
        self.graph.scale = _each(lambda a, b: a * b, before, scale)
        self.graph.offset = _each(lambda a, b: a + b, _each(lambda a, b: a * b, added, scale), offset)
        self._keep(op, value)

    def pad(self, op: Op) -> None:
        value, padding = self._input(op), op.config["padding"]
        (top, bottom), (left, right) = padding if isinstance(padding, list | tuple) else ((padding,) * 2,) * 2
        if value.pads != NO_PADS or not all(isinstance(n, int) and 0 <= n < 4 for n in (top, bottom, left, right)):
            raise ModelError(f"layer {short(op.name)} pads by {short(padding)}, which no MobileNet does")
        self.values[op.key] = value._replace(pads=((top, bottom), (left, right)))

    def conv(self, op: Op) -> None:
        _plain(op, dilation_rate=1, groups=1, data_format="channels_last")
        value, kernel = self._input(op), _square(op, "kernel_size")
        if value.shape[:2] == (1, 1) and kernel == 1 and self._pooled(value):
            self._dense(op, int(op.config["filters"]))
        else:
            kind: Kind = "pointwise" if kernel == 1 and _square(op, "strides") == 1 else "conv"
            self._convolve(op, kind, int(op.config["filters"]))

    def depthwise(self, op: Op) -> None:
        _plain(op, dilation_rate=1, depth_multiplier=1, data_format="channels_last")
        self._convolve(op, "depthwise", self._input(op).shape.channels)

    def _pooled(self, value: _Value) -> bool:
        return value.layer >= 0 and self.graph.layers[value.layer].kind == "average_pool"

    def _convolve(self, op: Op, kind: Kind, channels: int) -> None:
        value, kernel, stride = self._input(op), _square(op, "kernel_size"), _square(op, "strides")
        same = op.config["padding"] == "same"
        output, pads = convolved(value.shape, value.pads, kernel, stride, channels, same=same)
        if min(output[:2]) < 1:
            raise ModelError(f"layer {short(op.name)} has no output at this resolution")
        bias = {"bias": (op.name, "bias")} if op.config.get("use_bias", True) else {}
        layer = Layer(
            op.name,
            kind,
            None,
            value.shape,
            output,
            kernel,
            stride,
            pads,
            _activation(op, op.config.get("activation", "linear")),
            bias=bool(bias),
        )
        self._append(op, layer, {"weight": (op.name, "kernel")} | bias)

    def batch_norm(self, op: Op) -> None:
        value = self._input(op)
        layer = self._taken_in(op, value)
        if (
            layer.batch_norm
            or layer.activation != "linear"
            or layer.adds
            or layer.kind not in ("conv", "depthwise", "pointwise")
        ):
            raise ModelError(f"layer {short(op.name)}, BatchNormalization, does not follow a convolution right away")
        _plain(op, center=True, scale=True)
        epsilon = float(op.config["epsilon"])
        if self.graph.epsilon not in (None, epsilon):
            raise ModelError(f"layer {short(op.name)} has epsilon {epsilon}, those before it {self.graph.epsilon}")
        self.graph.epsilon, self.graph.momentum = epsilon, float(op.config.get("momentum", 0.99))
        names = {"gamma": "gamma", "beta": "beta", "mean": "moving_mean", "variance": "moving_variance"}
        self.graph.weights[value.layer] |= {ours: (op.name, theirs) for ours, theirs in names.items()}
        self._change(op, value, batch_norm=True)

    def relu(self, op: Op) -> None:
        if op.config.get("negative_slope") or op.config.get("threshold"):
            raise ModelError(f"layer {short(op.name)} is a ReLU with a slope or a threshold, which no MobileNet has")
        most = op.config.get("max_value")
        if most not in (None, 6):
            raise ModelError(f"layer {short(op.name)} clamps at {most}, needed is 6 or nothing")
        self._activate(op, "relu" if most is None else "relu6")

    def activation(self, op: Op) -> None:
        if _function(op.config["activation"]) == "softmax":
            self.softmax(op)
        else:
            self._activate(op, _activation(op, op.config["activation"]))

    def softmax(self, op: Op) -> None:
        """Leaves the logits, which come before it, as the output."""
        value = self._input(op)
        if self._taken_in(op, value).kind != "dense":
            raise ModelError(f"layer {short(op.name)}, softmax, does not follow the classifier")
        self._keep(op, value)

    def _activate(self, op: Op, activation: Activation) -> None:
        value = self._input(op)
        layer = self._taken_in(op, value)
        if activation == "linear":
            self._keep(op, value)
        elif layer.activation != "linear" or layer.adds or layer.kind == "dense":
            raise ModelError(f"layer {short(op.name)} is an activation that no MobileNet has there")
        else:
            self._change(op, value, activation=activation)

    def add(self, op: Op) -> None:
        if len(op.inputs) != 2:
            raise ModelError(f"layer {short(op.name)} adds {len(op.inputs)} outputs, needed are two")
        early, late = sorted((self.values[each] for each in op.inputs), key=lambda value: value.layer)
        layer = self._taken_in(op, late)
        if early.layer < 0 or early != self.latest[early.layer] or layer.adds or early.shape != late.shape:
            raise ModelError(f"layer {short(op.name)} is no shortcut between bottlenecks")
        self._change(op, late, adds=self.graph.layers[early.layer].name)

    def global_pool(self, op: Op) -> None:
        value = self._input(op)
        if value.pads != NO_PADS:
            raise ModelError(f"layer {short(op.name)} pools a padding")
        kind: Kind = "max_pool" if "Max" in op.kind else "average_pool"
        pooled = Shape(1, 1, value.shape.channels)
        self._append(op, Layer(op.name, kind, None, value.shape, pooled), {})

    def pool(self, op: Op) -> None:
        value = self._input(op)
        if tuple(op.config["pool_size"]) != value.shape[:2]:
            raise ModelError(
                f"layer {short(op.name)} pools {op.config['pool_size']} of {tuple(value.shape)}; needed is all"
            )
        self.global_pool(op)

    def flatten(self, op: Op) -> None:
        value = self._input(op)
        if value.shape[:2] != (1, 1):
            raise ModelError(f"layer {short(op.name)}, {op.kind}, flattens {tuple(value.shape)}; needed is one pixel")
        self._keep(op, value)

    def dense(self, op: Op) -> None:
        self._dense(op, int(op.config["units"]))

    def _dense(self, op: Op, classes: int) -> None:
        value = self._input(op)
        given = op.config.get("activation", "linear")
        activation = "linear" if _function(given) == "softmax" else _activation(op, given)
        bias = {"bias": (op.name, "bias")} if op.config.get("use_bias", True) else {}
        layer = Layer(op.name, "dense", None, value.shape, Shape(1, 1, classes), activation=activation, bias=bool(bias))
        self._append(op, layer, {"weight": (op.name, "kernel")} | bias)


def _why(op: Op) -> str:
    if op.kind == "Lambda":
        return "which holds code; code is never read: build the model without it, or export its weights alone"
    return "which no MobileNet has"


def _floats(value: Any) -> tuple[float, ...]:
    return tuple(float(each) for each in value) if isinstance(value, list | tuple) else (float(value),)


def _each(
    combine: Callable[[float, float], float], one: tuple[float, ...], other: tuple[float, ...]
) -> tuple[float, ...]:
    count = max(len(one), len(other))
    return tuple(combine(a, b) for a, b in zip(one * (count // len(one)), other * (count // len(other)), strict=True))


def _constant(op: Op) -> float:
    if len(op.constants) != 1 or op.constants[0] == 0:
        raise ModelError(f"layer {short(op.name)}, {op.kind}, has {len(op.constants)} numbers, needed is one")
    return op.constants[0]


def _square(op: Op, name: str) -> int:
    value = op.config[name]
    sides = set(value) if isinstance(value, list | tuple) else {value}
    if len(sides) != 1 or not isinstance(side := sides.pop(), int) or not 1 <= side <= 16:
        raise ModelError(f"layer {short(op.name)} has {name} {short(value)}, which no MobileNet has")
    return side


def _plain(op: Op, **needed: object) -> None:
    for name, value in needed.items():
        given = op.config.get(name, value)
        if given != value and given != [value, value] and given is not None:
            raise ModelError(f"layer {short(op.name)} has {name} {short(given)}, needed is {value}")


def _function(given: Any) -> Any:
    """Returns the name of a function, which Keras 3 may write as an object."""
    return given.get("config") if isinstance(given, Mapping) else given


def _activation(op: Op, given: Any) -> Activation:
    name = _function(given)
    known: dict[object, Activation] = {"relu": "relu", "relu6": "relu6", "linear": "linear", None: "linear"}
    if name not in known:
        raise ModelError(
            f"layer {short(op.name)} has activation {short(name)}; needed is relu, relu6, linear or softmax"
        )
    return known[name]


_HANDLERS: dict[str, Callable[[_Tracer, Op], None]] = {
    "InputLayer": _Tracer.input,
    "Rescaling": _Tracer.rescale,
    "TrueDivide": _Tracer.divide,
    "Divide": _Tracer.divide,
    "Multiply": _Tracer.multiply,
    "Subtract": _Tracer.subtract,
    "ZeroPadding2D": _Tracer.pad,
    "Conv2D": _Tracer.conv,
    "DepthwiseConv2D": _Tracer.depthwise,
    "BatchNormalization": _Tracer.batch_norm,
    "BatchNormalizationV1": _Tracer.batch_norm,
    "ReLU": _Tracer.relu,
    "Activation": _Tracer.activation,
    "Softmax": _Tracer.softmax,
    "Add": _Tracer.add,
    "GlobalAveragePooling2D": _Tracer.global_pool,
    "GlobalMaxPooling2D": _Tracer.global_pool,
    "AveragePooling2D": _Tracer.pool,
    "Flatten": _Tracer.flatten,
    "Reshape": _Tracer.flatten,
    "Dense": _Tracer.dense,
}
