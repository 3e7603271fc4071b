"""TensorFlow's frozen graphs of slim's MobileNets, read without TensorFlow.

A layer is several nodes here: convolution, batch norm (FusedBatchNorm, or multiplications and additions of constants),
activation. The nodes between input and output are followed in order; a constant may be computed from others.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arch import MAX_WIDTH, Pads, Shape
from ..common.files import read_regular, shown
from ..errors import DataError, ModelError
from ..formats import tf_graph
from ..formats.protobuf import MAX_BYTES
from ..formats.tf_graph import Node
from ..model import Model, usual_preprocessing
from ..weights import check
from .match import NO_PADS, convolved
from .recognise import Step, network_of, tensors_of

_ADDS = ("Add", "AddV2", "BiasAdd")
_BATCH_NORMS = ("FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3")
_POOLS = ("average_pool", "max_pool")
_MAX_DEPTH = 32  # steps in which a constant is computed: slim's have 4
_MAX_PATH = 2000  # nodes from input to output
_MAX_COMPUTED = 1 << 24  # elements of all constants that are computed from others
_COMPUTED: Mapping[str, Callable[..., Any]] = {
    "Identity": lambda value: value,
    "Add": np.add,
    "AddV2": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "RealDiv": np.divide,
    "Rsqrt": lambda value: 1 / np.sqrt(value),
    "Sqrt": np.sqrt,
}


def read(path: Path, *, allow_nonfinite: bool = False) -> Model:
    """Reads a frozen graph of slim's mobilenet_v1 or mobilenet_v2. Pixels are scaled as slim does, to -1..1.

    Args:
        allow_nonfinite: takes weights with NaN and infinities.

    Raises:
        ModelError: names the file and the first node or layer that is not a MobileNet's.
    """
    try:
        return model_of(read_regular(path, MAX_BYTES), allow_nonfinite=allow_nonfinite)
    except DataError as error:
        raise ModelError(str(error) if str(error).startswith(shown(path)) else f"{shown(path)}: {error}") from None


def model_of(data: bytes, *, allow_nonfinite: bool = False) -> Model:
    """Returns the model of a file's bytes; errors as `read`, without the file's name."""
    with np.errstate(all="ignore"):  # `check` refuses what is not finite
        steps = _Walk(tf_graph.read(data)).steps
    network = network_of(steps)
    network = network.replace(conventions=dataclasses.replace(network.conventions, scaling="inception"))
    tensors = tensors_of(network, steps)
    check(network, tensors, allow_nonfinite=allow_nonfinite)
    facts = {"format": "frozen graph", "pixel scaling": "inception, assumed: slim's"}
    return Model(network, tensors, None, usual_preprocessing(network), {"imported": facts})


class _Walk:
    """Follows the nodes from the input to the output; `steps` are the layers so far."""

    def __init__(self, nodes: Mapping[str, Node]) -> None:
        self.nodes = nodes
        self.constants: dict[str, NDArray[Any] | None] = {}
        self.steps: list[Step] = []
        self.pads: Pads | None = None
        self.computed = 0
        self.ended = False
        readers: Mapping[str, Callable[[Node], None]] = {
            "Conv2D": self._convolution,
            "DepthwiseConv2dNative": self._convolution,
            "AvgPool": self._pool,
            "MaxPool": self._pool,
            "Mean": self._reduce,
            "Max": self._reduce,
            "MatMul": self._dense,
            "Pad": self._pad,
            "Relu": self._activation,
            "Relu6": self._activation,
            "Sub": self._affine,
            "Mul": self._affine,
            **dict.fromkeys(_ADDS, self._add),
            **dict.fromkeys(_BATCH_NORMS, self._batch_norm),
            **dict.fromkeys(("Identity", "Squeeze", "Reshape", "Softmax", "Placeholder"), self._pass),
        }
        path = self._path()
        self.shape = self._input(path[0], path)
        self.made = {path[0].name: -1}  # node -> the step whose output it is, so far
        self.current = path[0].name
        for node in path[1:]:
            if node.op not in readers:
                raise self._error(node, "no MobileNet has that operation")
            if self.current not in node.inputs:
                raise self._error(node, "it does not take the result of the node before")
            if self.ended and readers[node.op] != self._pass:
                raise self._error(node, "it follows a softmax")
            if self.pads is not None and node.op not in ("Conv2D", "DepthwiseConv2dNative"):
                raise self._error(node, "it follows a padding, as only a convolution may")
            readers[node.op](node)
            self.current = node.name
            self.made[node.name] = len(self.steps) - 1

    def _error(self, node: Node, text: str) -> ModelError:
        return ModelError(f"not a MobileNet: node {shown(node.name)!r} ({shown(node.op)}): {text}")

    # ------------------------------------------------------------------------------------------- which nodes there are

    def _data(self, node: Node) -> list[str]:
        """Returns the inputs that are not constants; of a new shape it does not matter how it is computed."""
        inputs = node.inputs[:1] if node.op in ("Reshape", "Squeeze") else node.inputs
        for name in inputs:
            if name not in self.nodes:
                raise self._error(node, f"it takes {shown(name)!r}, which is not in the graph")
        return [name for name in inputs if self._value(name) is None]

    def _value(self, name: str, depth: int = 0) -> NDArray[Any] | None:
        """Returns the value of a node that depends on no input, None of others."""
        if name not in self.constants:
            node = self.nodes.get(name)
            if node is not None and depth > _MAX_DEPTH:
                raise self._error(node, "its constants are computed in too many steps, or from themselves")
            self.constants[name] = None if node is None else self._computed(node, depth)
        return self.constants[name]

    def _computed(self, node: Node, depth: int) -> NDArray[Any] | None:
        if node.op == "Const":
            # Other types are of no use to a MobileNet: strings of summaries, booleans of training.
            kind = node.attributes.get("dtype")
            return node.constant() if kind is None or kind.integer(6) in (1, 3) else np.empty(0)
        if node.op not in _COMPUTED or not 1 <= len(node.inputs) <= 2:
            return None
        values = [self._value(name, depth + 1) for name in node.inputs]
        if any(value is None for value in values):
            return None
        self.computed += 0 if node.op == "Identity" else sum(value.size for value in values if value is not None)
        if self.computed > _MAX_COMPUTED:
            raise self._error(node, "the graph computes with large constants")
        try:
            return np.asarray(_COMPUTED[node.op](*values))
        except (TypeError, ValueError):
            raise self._error(node, "its constants do not fit each other") from None

    def _path(self) -> list[Node]:
        """Returns the nodes from the input to the output, each after those that it takes."""
        taken = {name for node in self.nodes.values() for name in node.inputs}
        ends = [node for node in self.nodes.values() if node.name not in taken and node.op not in ("Const", "NoOp")]
        paths = [path for node in ends[:100] if (path := self._behind(node))]
        if not paths:
            raise ModelError("not a MobileNet: nothing is computed from an input (a Placeholder)")
        return max(paths, key=len)

    def _behind(self, end: Node) -> list[Node]:
        """Returns the nodes that a node's value depends on, in order; [] if they do not begin with one input."""
        found: dict[str, Node] = {}
        entered: set[str] = set()
        stack = [(end, False)]
        while stack:
            node, done = stack.pop()
            if done:
                found[node.name] = node
            elif node.name not in entered:
                entered.add(node.name)
                stack.append((node, True))
                stack += [(self.nodes[name], False) for name in self._data(node)]
        path = list(found.values())
        if len(path) > _MAX_PATH:
            raise ModelError(f"not a MobileNet: {len(path):,} nodes from input to output")
        return path if [node.op for node in path].count("Placeholder") == 1 and path[0].op == "Placeholder" else []

    def _input(self, node: Node, path: list[Node]) -> Shape:
        shape = node.shape("shape")
        if shape is None or len(shape) != 4 or not 1 <= shape[3] <= MAX_WIDTH:
            raise self._error(node, f"the input has shape {shape}, needed is [N, height, width, channels]")
        height, width, channels = shape[1:]
        if -1 in (height, width):  # the pooling's filter is what 5 strides leave of them
            filters = [found for other in path if other.op == "AvgPool" if len(found := other.integers("ksize")) == 4]
            if not filters:
                raise self._error(node, "the input's height and width are left open")
            height, width = 32 * filters[-1][1], 32 * filters[-1][2]
        if not (1 <= height <= MAX_WIDTH and 1 <= width <= MAX_WIDTH):
            raise self._error(node, f"the input has shape {shape}")
        return Shape(height, width, channels)

    # ---------------------------------------------------------------------------------------------- what each one does

    def _constant(self, node: Node, index: int, dimensions: int) -> NDArray[Any]:
        value = self._value(node.inputs[index]) if index < len(node.inputs) else None
        if value is None or value.ndim != dimensions or not value.size:
            raise self._error(node, f"its input {index} is not a constant of {dimensions} dimensions")
        return value

    def _channels(self, node: Node, value: NDArray[Any] | None) -> NDArray[Any]:
        """Returns a constant as one value a channel of the last step."""
        channels = self.shape.channels
        if value is None or value.size not in (1, channels) or value.shape[-1:] not in ((), (value.size,)):
            raise self._error(node, f"it takes something else than a constant for each of the {channels} channels")
        return np.broadcast_to(value.reshape(-1), (channels,))

    def _last(self, node: Node) -> Step:
        if not self.steps:
            raise self._error(node, "it comes before the first convolution")
        return self.steps[-1]

    def _replace(self, **changes: Any) -> None:
        self.steps[-1] = dataclasses.replace(self.steps[-1], **changes)

    def _append(self, step: Step) -> None:
        self.steps.append(step)
        self.shape = step.output

    def _pad(self, node: Node) -> None:
        pads = self._constant(node, 1, 2)
        if pads.shape != (4, 2) or pads.dtype.kind != "i" or pads.min() < 0 or pads.max() > 16 or pads[[0, 3]].any():
            raise self._error(node, "it pads otherwise than a few rows and columns")
        _, (top, bottom), (left, right), _ = pads.tolist()
        self.pads = (top, bottom), (left, right)

    def _convolution(self, node: Node) -> None:
        weight = self._constant(node, 1, 4)
        height, width, ins, outs = weight.shape
        depthwise = node.op != "Conv2D"
        strides, dilations = node.integers("strides"), node.integers("dilations")
        if node.text("data_format") not in ("", "NHWC") or len(strides) != 4 or set(dilations) - {1}:
            raise self._error(node, f"data format {node.text('data_format')!r}, strides {strides}, {dilations=}")
        stride = strides[1]
        if (
            height != width
            or ins != self.shape.channels
            or (depthwise and outs != 1)
            or strides != [1, stride, stride, 1]
        ):
            raise self._error(node, f"its weight has shape {weight.shape} and strides {strides}")
        if not 1 <= stride <= 16:
            raise self._error(node, f"its stride is {stride}")
        if not depthwise and self.steps and self.steps[-1].kind in _POOLS:
            self._classifier(node, weight.reshape(-1, outs))
            return
        if (padding := node.text("padding")) not in ("SAME", "VALID"):
            raise self._error(node, f"its padding is {padding!r}")
        channels, same = ins if depthwise else outs, padding == "SAME"
        output, pads = convolved(self.shape, self.pads or NO_PADS, height, stride, channels, same=same)
        if min(output[:2]) < 1:
            raise self._error(node, f"its kernel of {height} is larger than its input {tuple(self.shape)}")
        self.pads = None
        kind: Any = "depthwise" if depthwise else "pointwise" if height == stride == 1 else "conv"
        layout = weight[..., 0] if depthwise else weight[0, 0] if kind == "pointwise" else weight
        self._append(Step(node.name, kind, self.shape, output, height, stride, pads, parts={"weight": layout}))

    def _dense(self, node: Node) -> None:
        if node.flag("transpose_a") or node.flag("transpose_b") or self._last(node).kind not in _POOLS:
            raise self._error(node, "it does not follow the pooling, or is transposed")
        self._classifier(node, self._constant(node, 1, 2))

    def _classifier(self, node: Node, weight: NDArray[Any]) -> None:
        if len(weight) != self.shape.channels:
            raise self._error(node, f"it takes {len(weight)} channels of {self.shape.channels}")
        output = Shape(1, 1, weight.shape[1])
        self._append(Step(node.name, "dense", self.shape, output, parts={"weight": weight}))

    def _pool(self, node: Node) -> None:
        filter_, padding = node.integers("ksize"), node.text("padding")
        if filter_ != [1, *self.shape[:2], 1] or padding != "VALID":
            raise self._error(node, f"its filter is {filter_} ({padding}), its input {tuple(self.shape)}")
        self._pooled(node, "average_pool" if node.op == "AvgPool" else "max_pool")

    def _reduce(self, node: Node) -> None:
        axes = self._constant(node, 1, 1)
        if axes.size != 2 or sorted(int(axis) % 4 for axis in axes) != [1, 2]:
            raise self._error(node, "it reduces other axes than height and width")
        self._pooled(node, "average_pool" if node.op == "Mean" else "max_pool")

    def _pooled(self, node: Node, kind: Any) -> None:
        self._last(node)
        self._append(Step(node.name, kind, self.shape, Shape(1, 1, self.shape.channels)))

    def _batch_norm(self, node: Node) -> None:
        last = self._last(node)
        if (
            last.epsilon is not None
            or last.activation != "linear"
            or last.adds is not None
            or node.flag("is_training", True)
        ):
            raise self._error(node, "it does not follow a convolution, or is in training")
        if last.kind in (*_POOLS, "dense") or len(node.inputs) != 5 or node.inputs[0] != self.current:
            raise self._error(node, "it does not follow a convolution")
        if node.text("data_format") not in ("", "NHWC"):
            raise self._error(node, f"data format {node.text('data_format')!r}")
        names = ("gamma", "beta", "mean", "variance")
        found = {name: self._channels(node, self._value(node.inputs[1 + n])) for n, name in enumerate(names)}
        epsilon = float(str(np.float32(node.number("epsilon", 1e-4))))
        self._replace(parts={**last.parts, **found}, epsilon=epsilon)

    def _activation(self, node: Node) -> None:
        last = self._last(node)
        if last.activation != "linear" or last.kind in (*_POOLS, "dense") or last.adds is not None:
            raise self._error(node, "it does not follow a convolution")
        self._replace(activation="relu" if node.op == "Relu" else "relu6")

    def _add(self, node: Node) -> None:
        others = [name for name in node.inputs if name != self.current]
        if len(node.inputs) != 2 or len(others) != 1:
            raise self._error(node, "it does not add the result of an earlier layer or a constant")
        if self._value(others[0]) is not None:
            self._affine(node)
            return
        last, other = self._last(node), self.made.get(others[0], -1)
        if other < 0 or other == len(self.steps) - 1 or last.adds is not None or last.activation != "linear":
            raise self._error(node, "it does not add the result of an earlier layer")
        if (
            last.kind in (*_POOLS, "dense")
            or self.steps[other].output != last.output
            or not self._final(others[0], other)
        ):
            raise self._error(node, "it does not add the result of an earlier layer")
        self._replace(adds=other)

    def _final(self, name: str, index: int) -> bool:
        """Tells whether a node is the last one of its step."""
        return name == [node for node, step in self.made.items() if step == index][-1]

    def _affine(self, node: Node) -> None:
        """Takes a product, sum or difference with constants into weight and bias."""
        last = self._last(node)
        others = [name for name in node.inputs if name != self.current]
        if len(others) != 1 or (node.op == "Sub" and node.inputs[0] != self.current):
            raise self._error(node, "it computes with something else than a constant")
        value = self._channels(node, self._value(others[0])).astype(np.float64)
        if last.kind in _POOLS or last.activation != "linear" or last.adds is not None or last.epsilon is not None:
            raise self._error(node, "it does not follow a convolution")
        bias = last.parts.get("bias", np.zeros(self.shape.channels))
        if node.op == "Mul":
            # The output channel is the last axis in every layout.
            self._replace(parts={"weight": last.parts["weight"] * value, "bias": bias * value})
        else:
            self._replace(parts={**last.parts, "bias": bias - value if node.op == "Sub" else bias + value})

    def _pass(self, node: Node) -> None:
        if node.op == "Softmax":
            self.ended = True
            if self._last(node).kind != "dense":
                raise self._error(node, "it does not follow the classifier")
        if node.op in ("Reshape", "Squeeze") and self.shape[:2] != (1, 1):
            raise self._error(node, f"it gives {tuple(self.shape)} another shape before the pooling")
