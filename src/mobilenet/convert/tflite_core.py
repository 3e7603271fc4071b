"""The operators of a TFLite graph that compute its network, without what converters leave around them.

An int8 network has float32 or uint8 at its ends unless the converter is told otherwise: QUANTIZE is the first operator
then, DEQUANTIZE or QUANTIZE the last. Weights of float16 each have a DEQUANTIZE of their own. Keras' Reshape of V1 asks
for the size of the batch: SHAPE, STRIDED_SLICE and PACK compute the second input of a RESHAPE. Where one pixel is left,
the pooling of Keras' V1 is missing, and put back here.
"""

import dataclasses

import numpy as np

from ..errors import ModelError
from ..formats.tflite_graph import Graph, Operator, Quantization
from ..formats.tflite_schema import Activation, Op, Type

_OF_SHAPES = (Op.SHAPE, Op.STRIDED_SLICE, Op.PACK)
_AFTER_CLASSIFIER = (Op.RESHAPE, Op.SQUEEZE, Op.SOFTMAX)
_POOLINGS = (Op.AVERAGE_POOL_2D, Op.MAX_POOL_2D, Op.MEAN, Op.REDUCE_MAX)
_WHOLE = {Type.UINT8: 0, Type.INT8: 128}  # and what makes a byte of a number of that type


def core(graph: Graph) -> Graph:
    """Returns the graph from behind a first QUANTIZE to ahead of a last one or a DEQUANTIZE, with float32 constants.

    Raises:
        ModelError: names the operator that changes a byte, not only its type.
    """
    graph = _widened(graph)
    if graph.operators:
        first = graph.operators[0]
        if first.op == Op.QUANTIZE and first.inputs == graph.inputs and len(first.outputs) == 1:
            _check(graph, first)
            graph = dataclasses.replace(graph, operators=graph.operators[1:], inputs=first.outputs)
    if graph.operators:
        last = graph.operators[-1]
        if last.op in (Op.QUANTIZE, Op.DEQUANTIZE) and last.outputs == graph.outputs and len(last.inputs) == 1:
            _check(graph, last)
            graph = dataclasses.replace(graph, operators=graph.operators[:-1], outputs=last.inputs)
    return _pooled(graph)


def _widened(graph: Graph) -> Graph:
    """Returns the graph without operators on shapes, and with the results of those on float16 constants."""
    tensors, operators = list(graph.tensors), []
    for operator in graph.operators:
        if operator.op in _OF_SHAPES and all(tensors[index].type == Type.INT32 for index in operator.outputs):
            continue
        source = tensors[operator.inputs[0]] if operator.op == Op.DEQUANTIZE and operator.inputs else None
        if source is None or source.data is None or source.type != Type.FLOAT16 or len(operator.outputs) != 1:
            operators.append(operator)
            continue
        target = tensors[operator.outputs[0]]
        if target.data is not None or target.type != Type.FLOAT32 or target.shape != source.shape:
            raise _error(operator, f"makes {target.type.name} {target.shape} of FLOAT16 {source.shape}")
        tensors[operator.outputs[0]] = dataclasses.replace(target, data=source.data.astype(np.float32))
    return dataclasses.replace(graph, tensors=tuple(tensors), operators=tuple(operators))


def _pooled(graph: Graph) -> Graph:
    """Returns the graph with a pooling ahead of a last convolution of one pixel: without activation it classifies."""
    operators = list(graph.operators)
    last = len(operators) - 1
    while last > 0 and operators[last].op in _AFTER_CLASSIFIER:
        last -= 1
    if not 0 < last < len(operators) - 1 or operators[last - 1].op in _POOLINGS:
        return graph
    classifier = operators[last]
    if (
        classifier.op != Op.CONV_2D
        or classifier.activation != Activation.LINEAR
        or min(classifier.inputs, default=-1) < 0
    ):
        return graph
    source, *parts = classifier.inputs
    pixel = graph.tensors[source]
    if pixel.data is not None or pixel.shape[1:3] != (1, 1):
        return graph
    pooled = len(graph.tensors)
    pooling = Operator(classifier.place, Op.AVERAGE_POOL_2D, (source,), (pooled,))
    operators[last : last + 1] = [pooling, dataclasses.replace(classifier, inputs=(pooled, *parts))]
    return dataclasses.replace(graph, tensors=(*graph.tensors, pixel), operators=tuple(operators))


def _check(graph: Graph, operator: Operator) -> None:
    """Raises unless a conversion leaves the shape, and the byte and what it stands for, as they are."""
    if operator.inputs[0] < 0:
        raise _error(operator, "has no input")
    source, target = (graph.tensors[index] for index in (operator.inputs[0], operator.outputs[0]))
    if source.shape != target.shape or source.data is not None or target.data is not None:
        raise _error(operator, f"makes {target.shape} of {source.shape}")
    if source.type in _WHOLE and target.type in _WHOLE:
        one, other = source.quantization, target.quantization
        same = one and other and one.scale.tolist() == other.scale.tolist()
        if not same or _zeros(one, source.type) != _zeros(other, target.type):
            raise _error(operator, "changes the scale: its input and output are other bytes")


def _zeros(found: Quantization | None, kind: Type) -> list[int]:
    return [] if found is None else (found.zero_point + _WHOLE[kind]).tolist()


def _error(operator: Operator, text: str) -> ModelError:
    return ModelError(f"not a MobileNet: operator {operator.place}, {operator.name}, {text}")
