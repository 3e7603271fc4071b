"""TFLite files of MobileNets, as converters write them: batch norm folded, activations fused; float32, uint8 or int8.

The graph must be a chain: each operator takes the result of the one before, and additions also an earlier one. It
becomes a list of steps, which `recognise` compares with the families.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import quantized
from ..arch import Activation, Network, Pads, Shape
from ..common.files import read_regular, shown
from ..errors import DataError, ModelError
from ..formats import tflite_graph, tflite_schema
from ..formats.flatbuffer import MAX_BYTES
from ..formats.tflite_graph import Graph, Operator
from ..formats.tflite_schema import Op, Padding, Type
from ..model import Model, usual_preprocessing
from ..quantized import Rescale
from ..weights import check
from . import tflite_integer, tflite_metadata
from .match import NO_PADS, convolved
from .recognise import Step, network_of, tensors_of, with_scaling
from .tflite_core import core
from .tflite_integer import Place

# By the type of the input: those of weight and bias.
_WEIGHTS = {
    Type.FLOAT32: (np.dtype(np.float32), np.dtype(np.float32)),
    Type.UINT8: (np.dtype(np.uint8), np.dtype(np.int32)),
    Type.INT8: (np.dtype(np.int8), np.dtype(np.int32)),
}
_ACTIVATIONS: dict[tflite_schema.Activation, Activation] = {
    tflite_schema.Activation.LINEAR: "linear",
    tflite_schema.Activation.RELU: "relu",
    tflite_schema.Activation.RELU6: "relu6",
}


def read(path: Path, *, allow_nonfinite: bool = False, rescale: Rescale = "fixed") -> Model:
    """Reads a TFLite file of a MobileNet: float32, or of whole numbers between its ends, which gives an int8 model.

    Labels and preprocessing come from the file's metadata where it has them. Else the classes have numbers, and pixels
    are scaled as the source with the nearest conventions scales them, which the model's notes say. To a network of
    whole numbers the pixels' bytes are the input itself; where floats are, those that they are quantised to.

    Args:
        allow_nonfinite: takes weights with NaN and infinities.
        rescale: of a file of whole numbers: "fixed", TFLite's reference kernels', or "full", LiteRT's usual ones'.

    Raises:
        ModelError: names the file and the first operator or layer that is not a MobileNet's.
    """
    try:
        return model_of(read_regular(path, MAX_BYTES), allow_nonfinite=allow_nonfinite, rescale=rescale)
    except DataError as error:
        raise ModelError(str(error) if str(error).startswith(shown(path)) else f"{shown(path)}: {error}") from None


def model_of(data: bytes, *, allow_nonfinite: bool = False, rescale: Rescale = "fixed") -> Model:
    """Returns the model of a file's bytes; errors as `read`, without the file's name."""
    whole = tflite_graph.read(data)
    graph = core(whole)
    chain = _Chain(graph)
    steps = chain.steps
    network = network_of(steps)
    if chain.source.type != Type.FLOAT32:
        given = whole.tensors[whole.inputs[0]].type
        return _integer_model(chain, network, data, rescale, floats=given == Type.FLOAT32)
    tensors = tensors_of(network, steps)
    check(network, tensors, allow_nonfinite=allow_nonfinite)
    labels, preprocessing = tflite_metadata.read(graph.metadata, data, network)
    if preprocessing is not None:
        network = network.replace(conventions=with_scaling(network.conventions, preprocessing))
    scaling = "in the file" if preprocessing else f"{network.conventions.scaling}, assumed: the file does not say"
    facts = {"format": "tflite", "pixel scaling": scaling}
    return Model(network, tensors, labels, preprocessing or usual_preprocessing(network), {"imported": facts})


def _integer_model(chain: "_Chain", network: Network, data: bytes, rescale: Rescale, *, floats: bool) -> Model:
    graph = chain.graph
    tensors = tflite_integer.tensors_of(network, graph, chain.places, rescale)
    quantized.check(network, tensors, rescale)
    labels, told = tflite_metadata.read(graph.metadata, data, network)
    preprocessing = tflite_integer.preprocessing_of(network, chain.source, told, floats=floats)
    facts = {"format": f"tflite, {chain.source.type.name.lower()}", "pixel scaling": "none: the bytes are the input"}
    return Model(network, tensors, labels, preprocessing, {"imported": facts}, "int8", rescale)


class _Chain:
    """Follows the operators from the input.

    Attributes:
        source: the input.
        steps: the layers so far, in the order of computation.
        places: of each step its operator, and that of its addition.

    Raises:
        ModelError: names the first operator that does not continue the chain, or that no MobileNet has.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.steps: list[Step] = []
        self.places: list[Place] = []
        if len(graph.inputs) != 1 or len(graph.outputs) != 1:
            raise ModelError(f"not a MobileNet: {len(graph.inputs)} inputs and {len(graph.outputs)} outputs")
        source = self.source = graph.tensors[graph.inputs[0]]
        if source.type not in _WEIGHTS:
            raise ModelError(f"the input {source.name!r} is {source.type.name}, needed is FLOAT32, UINT8 or INT8")
        if len(source.shape) != 4 or source.shape[0] > 1 or min(source.shape[1:]) < 1:
            raise ModelError(f"not a MobileNet: the input {source.name!r} has shape {source.shape}")
        self.shape = Shape(*source.shape[1:])
        self.current = graph.inputs[0]
        self.made: dict[int, int] = {}  # tensor -> the step that made it
        self.pads: Pads | None = None  # of a PAD before the next convolution
        self.written = {self.current}
        self.ended = False
        for operator in graph.operators:
            self._follow(operator)
        if self.current != graph.outputs[0] or self.pads is not None:
            raise ModelError("not a MobileNet: its output is not what the last operator gives")

    def _follow(self, operator: Operator) -> None:
        readers: Mapping[Op | int, Callable[[Operator], None]] = {
            Op.ADD: self._add,
            Op.AVERAGE_POOL_2D: self._pool,
            Op.MAX_POOL_2D: self._pool,
            Op.MEAN: self._reduce,
            Op.REDUCE_MAX: self._reduce,
            Op.CONV_2D: self._convolution,
            Op.DEPTHWISE_CONV_2D: self._convolution,
            Op.FULLY_CONNECTED: self._dense,
            Op.PAD: self._pad,
            Op.RESHAPE: self._flatten,
            Op.SQUEEZE: self._flatten,
            Op.SOFTMAX: self._softmax,
        }
        self.operator = operator
        if operator.op not in readers:
            raise self._error("no MobileNet has that operator")
        if len(operator.outputs) != 1:
            raise self._error(f"it has {len(operator.outputs)} outputs")
        if self.current not in operator.inputs[: 2 if operator.op == Op.ADD else 1]:
            raise self._error("it does not take the result of the operator before")
        target = operator.outputs[0]
        if target in self.written or self.graph.tensors[target].data is not None:
            raise self._error("its result was there before")
        self.written.add(target)
        if self.source.type != Type.FLOAT32:
            tflite_integer.check_operator(self.graph, operator, self.source.type)
        if self.ended:
            raise self._error("it follows a softmax")
        if self.pads is not None and operator.op not in (Op.CONV_2D, Op.DEPTHWISE_CONV_2D):
            raise self._error("it follows a padding, as only a convolution may")
        readers[operator.op](operator)
        self.current = operator.outputs[0]
        if operator.op != Op.PAD and self.steps:
            self.made[self.current] = len(self.steps) - 1

    def _error(self, text: str) -> ModelError:
        operator = self.operator
        name = self.graph.tensors[operator.outputs[0]].name if operator.outputs else ""
        # The converter joins the names of what it fused with ";": the first is the operator's own.
        return ModelError(f"not a MobileNet: operator {operator.place}, {operator.name} {_short(name)!r}: {text}")

    def _append(self, step: Step, flat: bool = False) -> None:
        """Adds a step whose output must have the shape that the file gives it."""
        given = self.graph.tensors[self.operator.outputs[0]].shape
        if given != (1, *step.output) and not (flat and given == (1, step.output.channels)):
            raise self._error(f"its result has shape {given}, by its inputs it is {(1, *step.output)}")
        self.steps.append(step)
        self.places.append(Place(self.operator))
        self.shape = step.output

    def _constant(self, index: int, what: str, dimensions: int) -> NDArray[Any]:
        inputs = self.operator.inputs
        tensor = self.graph.tensors[inputs[index]] if index < len(inputs) and inputs[index] >= 0 else None
        if tensor is None or tensor.data is None or len(tensor.shape) != dimensions or not tensor.data.size:
            raise self._error(f"its {what} is not a constant of {dimensions} dimensions")
        return tensor.data

    def _numbers(self, index: int, what: str, dimensions: int) -> NDArray[Any]:
        found = self._constant(index, what, dimensions)
        needed = _WEIGHTS[self.source.type][what == "bias"]
        if found.dtype != needed:
            hint = (
                ": only its weights are quantised, and the outputs depend on how a runtime quantises activations; "
                "convert it to float or to whole numbers"
            )
            hybrid = self.source.type == Type.FLOAT32 and found.dtype == np.int8
            raise self._error(f"its {what} is {found.dtype}, needed is {needed}{hint if hybrid else ''}")
        return found

    def _bias(self, channels: int) -> NDArray[Any]:
        inputs = self.operator.inputs
        if len(inputs) < 3 or inputs[2] < 0:
            return np.zeros(channels, _WEIGHTS[self.source.type][1])
        found = self._numbers(2, "bias", 1)
        if found.shape != (channels,):
            raise self._error(f"its bias has {found.size} values for {channels} channels")
        return found

    def _pad(self, operator: Operator) -> None:
        pads = self._constant(1, "padding", 2)
        if pads.shape != (4, 2) or pads.dtype.kind != "i" or pads.min() < 0 or pads.max() > 16 or pads[[0, 3]].any():
            raise self._error("it pads otherwise than a few rows and columns")
        _, (top, bottom), (left, right), _ = pads.tolist()
        self.pads = (top, bottom), (left, right)

    def _convolution(self, operator: Operator) -> None:
        weight = self._numbers(1, "weight", 4)
        depthwise = operator.op == Op.DEPTHWISE_CONV_2D
        outs, height, width, ins = weight.shape
        channels = ins if depthwise else outs
        if height != width or ins != self.shape.channels or (depthwise and outs != 1):
            raise self._error(f"its weight has shape {weight.shape}, its input {self.shape.channels} channels")
        if depthwise and operator.depth_multiplier not in (0, 1):  # 0: some converters leave it to the shapes
            raise self._error(f"its depth multiplier is {operator.depth_multiplier}")
        if operator.dilation != (1, 1) or operator.stride[0] != operator.stride[1]:
            raise self._error(f"its dilation is {operator.dilation}, its stride {operator.stride}")
        if operator.activation not in _ACTIVATIONS:
            raise self._error(f"its activation is {operator.activation.name}")
        bias = self._bias(channels)
        if not depthwise and self.steps and self.steps[-1].kind in ("average_pool", "max_pool"):
            self._classifier(weight.reshape(outs, -1).T, bias, operator)
            return
        same = operator.padding == Padding.SAME
        output, pads = convolved(self.shape, self.pads or NO_PADS, height, operator.stride[0], channels, same=same)
        if min(output[:2]) < 1:
            raise self._error(f"its kernel of {height} is larger than its input {tuple(self.shape)}")
        step = Step(
            self._name(),
            "depthwise" if depthwise else "pointwise" if height == operator.stride[0] == 1 else "conv",
            self.shape,
            output,
            height,
            operator.stride[0],
            pads,
            _ACTIVATIONS[operator.activation],
            parts={"weight": _layout(weight, depthwise), "bias": bias},
        )
        self.pads = None
        self._append(step)

    def _dense(self, operator: Operator) -> None:
        weight = self._numbers(1, "weight", 2)
        if not self.steps or self.steps[-1].kind not in ("average_pool", "max_pool"):
            raise self._error("it does not follow the pooling")
        self._classifier(weight.T, self._bias(len(weight)), operator)

    def _classifier(self, weight: NDArray[Any], bias: NDArray[Any], operator: Operator) -> None:
        if len(weight) != self.shape.channels or operator.activation != tflite_schema.Activation.LINEAR:
            raise self._error(f"it takes {len(weight)} channels of {self.shape.channels}, or has an activation")
        parts = {"weight": weight, "bias": bias}
        self._append(Step(self._name(), "dense", self.shape, Shape(1, 1, bias.size), parts=parts), flat=True)

    def _pool(self, operator: Operator) -> None:
        whole = operator.filter == self.shape[:2] and operator.padding == Padding.VALID
        # A filter of the whole map gives one output under SAME too only where the stride is as large.
        same = operator.filter == self.shape[:2] and operator.stride >= self.shape[:2]
        if not (whole or same) or operator.activation != tflite_schema.Activation.LINEAR:
            raise self._error(
                f"its filter is {operator.filter}, its input {tuple(self.shape)}: not one value a channel"
            )
        self._pooled("average_pool" if operator.op == Op.AVERAGE_POOL_2D else "max_pool")

    def _reduce(self, operator: Operator) -> None:
        axes = self._constant(1, "axes", 1)
        if sorted(int(axis) % 4 for axis in axes[:4]) != [1, 2] or axes.size != 2:
            raise self._error(f"it reduces axes {axes[:4].tolist()}, not height and width")
        self._pooled("average_pool" if operator.op == Op.MEAN else "max_pool")

    def _pooled(self, kind: Any) -> None:
        if not self.steps:
            raise self._error("it pools the input")
        self._append(Step(self._name(), kind, self.shape, Shape(1, 1, self.shape.channels)), flat=True)

    def _flatten(self, operator: Operator) -> None:
        given = self.graph.tensors[operator.outputs[0]].shape
        if not self.steps or self.shape[:2] != (1, 1) or given[-1:] != self.shape[2:] or math.prod(given[:-1]) != 1:
            raise self._error(f"it gives {tuple(self.shape)} the shape {given}, not that of one value a channel")

    def _softmax(self, operator: Operator) -> None:
        if not self.steps or self.steps[-1].kind != "dense" or operator.beta != 1:
            raise self._error("it does not follow the classifier, or its beta is not 1")
        self.ended = True

    def _add(self, operator: Operator) -> None:
        others = [index for index in operator.inputs if index != self.current]
        if len(operator.inputs) != 2 or len(others) != 1 or others[0] not in self.made:
            raise self._error("it does not add the result of an earlier layer")
        last, other = self.steps[-1], self.made[others[0]]
        if last.adds is not None or self.steps[other].output != last.output or operator.activation != 0:
            raise self._error(f"it adds {tuple(self.steps[other].output)} to {tuple(last.output)}")
        del self.made[self.current]  # nothing may take the layer's result without the sum
        self.steps[-1] = dataclasses.replace(last, adds=other)
        self.places[-1] = Place(self.places[-1].operator, operator, self.places[other].result)

    def _name(self) -> str:
        return _short(self.graph.tensors[self.operator.outputs[0]].name)


def _short(name: str) -> str:
    # The converter joins the names of what it fused with ";": the first is the operator's own.
    return shown(name.partition(";")[0])


def _layout(weight: NDArray[Any], depthwise: bool) -> NDArray[Any]:
    """Returns the weight in our layout: conv [k, k, in, out], depthwise [k, k, channels], pointwise [in, out]."""
    if depthwise:
        return weight.squeeze(0)
    return weight.squeeze((1, 2)).T if weight.shape[1] == 1 else weight.transpose(1, 2, 3, 0)
