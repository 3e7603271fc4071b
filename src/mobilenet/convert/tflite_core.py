"""The operators of a TFLite graph that compute its network, without those that converters leave around them.

An int8 network has float32 or uint8 at its ends unless the converter is told otherwise: QUANTIZE is the first operator
then, DEQUANTIZE or QUANTIZE the last. Weights of float16 each have a DEQUANTIZE of their own. Keras' Reshape of V1 asks
for the size of the batch: SHAPE, STRIDED_SLICE and PACK compute the second input of a RESHAPE.
"""

import dataclasses

import numpy as np

from ..errors import ModelError
from ..formats.tflite_graph import Graph, Operator, Quantization
from ..formats.tflite_schema import Op, Type

_OF_SHAPES = (Op.SHAPE, Op.STRIDED_SLICE, Op.PACK)
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
    return graph


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
