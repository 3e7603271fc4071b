"""A TFLite file as a graph: tensors with their data and quantisation, operators with their options.

Everything is checked on the way in: an index names a tensor that is there, data has exactly the bytes its shape and
type say, numbers of options are such that a convolution can have them. What the operators mean is for the caller.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import ModelError
from . import tflite_schema as schema
from .flatbuffer import Table, decode
from .tflite_schema import Activation, Op, Options, Padding, Type

_LIMIT = 8192  # of tensors, operators and buffers; the largest MobileNet has some 180
_MAX_SIDE = 1 << 24  # of a shape: keeps every product of four within Python's fast integers
_KNOWN_TYPES = ", ".join(f"{kind} ({kind.name})" for kind in Type)
_DTYPES = {Type.FLOAT32: "<f4", Type.FLOAT16: "<f2", Type.INT32: "<i4", Type.INT64: "<i8"}
_DTYPES |= {Type.UINT8: "u1", Type.INT8: "i1"}


@dataclass(frozen=True, eq=False)
class Quantization:
    """Is how a tensor's integers stand for real numbers: scale * (integer - zero_point).

    Attributes:
        scale: float32 [1], or one for each index of `axis`; finite, above 0.
        zero_point: int64, as many.
        axis: of the shape, where there are several scales.
    """

    scale: NDArray[np.float32]
    zero_point: NDArray[np.int64]
    axis: int


@dataclass(frozen=True, eq=False)
class Tensor:
    """Is a tensor of the graph: `data` in its shape if the file has it, None if it is computed."""

    name: str
    shape: tuple[int, ...]
    type: Type
    data: NDArray[np.generic] | None
    quantization: Quantization | None


@dataclass(frozen=True)
class Operator:
    """Is an operator: indices of its tensors, and the options of its kind (of other kinds the defaults).

    Attributes:
        place: in the order of computation, from 0.
        op: which operator; a plain number if it is none that MobileNets have.
        inputs, outputs: indices of tensors; -1 for an optional input that is absent.
        activation: fused into the operator.
        padding: of convolutions and poolings.
        stride, dilation, filter: (vertical, horizontal).
        depth_multiplier: of depthwise convolutions.
        keep_dims: of reductions and the fully connected layer.
        beta: of softmax.
    """

    place: int
    op: Op | int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    activation: Activation = Activation.LINEAR
    padding: Padding = Padding.VALID
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    filter: tuple[int, int] = (1, 1)
    depth_multiplier: int = 1
    keep_dims: bool = False
    beta: float = 1.0

    @property
    def name(self) -> str:
        """The schema's name of the operator, or its number."""
        return self.op.name if isinstance(self.op, Op) else f"operator code {self.op}"


@dataclass(frozen=True)
class Graph:
    """Is the file's one subgraph, its inputs and outputs, and the flatbuffer with its metadata, if there is one."""

    tensors: tuple[Tensor, ...]
    operators: tuple[Operator, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    description: str = ""
    metadata: bytes = b""


def read(data: bytes) -> Graph:
    """Returns the graph of a TFLite file.

    Raises:
        ModelError: says what in the file is wrong: a place beyond its end, an index without its tensor, data of another
            size than its shape's.
    """
    model = decode(data, schema.IDENTIFIER)
    version = model.integer(schema.Model.VERSION, "I")
    if version != schema.VERSION:
        raise ModelError(f"TFLite: schema version {version}, needed is {schema.VERSION}")
    subgraphs = model.tables(schema.Model.SUBGRAPHS, _LIMIT)
    if len(subgraphs) != 1:
        raise ModelError(f"TFLite: {len(subgraphs)} subgraphs, a MobileNet has one")
    subgraph = subgraphs[0]
    buffers = [_buffer(table) for table in model.tables(schema.Model.BUFFERS, _LIMIT)]
    tensors = tuple(_tensor(table, buffers) for table in subgraph.tables(schema.Subgraph.TENSORS, _LIMIT))
    codes = [_code(table) for table in model.tables(schema.Model.OPERATOR_CODES, _LIMIT)]
    operators = enumerate(subgraph.tables(schema.Subgraph.OPERATORS, _LIMIT))
    return Graph(
        tensors,
        tuple(_operator(place, table, codes, len(tensors)) for place, table in operators),
        _indices(subgraph, schema.Subgraph.INPUTS, 0, len(tensors)),
        _indices(subgraph, schema.Subgraph.OUTPUTS, 0, len(tensors)),
        model.text(schema.Model.DESCRIPTION),
        _metadata(model, buffers),
    )


def _buffer(table: Table) -> NDArray[np.uint8]:
    if table.integer(schema.Buffer.OFFSET, "Q") > 1:  # 1 is a placeholder of files whose data is in place
        raise ModelError("TFLite: a buffer lies outside the tables, as files over 2 GB have it; not supported")
    found = table.array(schema.Buffer.DATA, "u1")
    return np.empty(0, np.uint8) if found is None else found


def _code(table: Table) -> Op | int:
    # Files before TensorFlow 2.4 have the first field alone; later ones have both, the first capped at 127.
    old = table.integer(schema.OperatorCode.DEPRECATED_BUILTIN_CODE, "b")
    code = max(old, table.integer(schema.OperatorCode.BUILTIN_CODE))
    return Op(code) if code in set(Op) else code


def _tensor(table: Table, buffers: list[NDArray[np.uint8]]) -> Tensor:
    name = table.text(schema.Tensor.NAME)
    number = table.integer(schema.Tensor.TYPE, "b")
    if number not in set(Type):
        raise ModelError(f"TFLite: tensor {name!r} has type {number}, a MobileNet's are {_KNOWN_TYPES}")
    found = table.array(schema.Tensor.SHAPE, "i4")
    shape = () if found is None else tuple(found[:9].tolist())
    if len(shape) > 8 or not all(0 <= side < _MAX_SIDE for side in shape):
        raise ModelError(f"TFLite: tensor {name!r} has shape {shape}")
    if table.table(schema.Tensor.SPARSITY) is not None:
        raise ModelError(f"TFLite: tensor {name!r} is sparse, which is not supported")
    index = table.integer(schema.Tensor.BUFFER, "I")
    if index >= len(buffers):
        raise ModelError(f"TFLite: tensor {name!r} has buffer {index}, there are {len(buffers)}")
    kind = Type(number)
    data = _data(name, shape, np.dtype(_DTYPES[kind]), buffers[index]) if len(buffers[index]) else None
    return Tensor(name, shape, kind, data, _quantization(name, table.table(schema.Tensor.QUANTIZATION), shape))


def _data(
    name: str, shape: tuple[int, ...], dtype: np.dtype[np.generic], raw: NDArray[np.uint8]
) -> NDArray[np.generic]:
    needed = math.prod(shape) * dtype.itemsize
    if raw.nbytes != needed:
        raise ModelError(
            f"TFLite: tensor {name!r} has {raw.nbytes:,} bytes of data, its shape {shape} needs {needed:,}"
        )
    return np.frombuffer(raw, dtype).reshape(shape)


def _quantization(name: str, table: Table | None, shape: tuple[int, ...]) -> Quantization | None:
    scale = None if table is None else table.array(schema.Quantization.SCALE, "f4")
    if table is None or scale is None or not scale.size:
        return None
    zero_point = table.array(schema.Quantization.ZERO_POINT, "i8")
    zero_point = np.zeros(scale.size, np.int64) if zero_point is None else zero_point
    axis = table.integer(schema.Quantization.DIMENSION)
    if scale.size > 1 and not (0 <= axis < len(shape) and shape[axis] == scale.size):
        raise ModelError(f"TFLite: tensor {name!r} of shape {shape} has {scale.size:,} scales for its axis {axis}")
    if zero_point.size == 1:
        zero_point = np.repeat(zero_point, scale.size)
    if zero_point.size != scale.size or not (np.isfinite(scale).all() and (scale > 0).all()):
        raise ModelError(f"TFLite: tensor {name!r} has a scale that is not above 0, or not a zero point for each scale")
    return Quantization(scale, zero_point, axis)


def _operator(place: int, table: Table, codes: list[Op | int], tensors: int) -> Operator:
    index = table.integer(schema.Operator.OPCODE_INDEX, "I")
    if index >= len(codes):
        raise ModelError(f"TFLite: operator {place} has code {index}, there are {len(codes)}")
    inputs = _indices(table, schema.Operator.INPUTS, -1, tensors)
    outputs = _indices(table, schema.Operator.OUTPUTS, 0, tensors)
    operator = Operator(place, codes[index], inputs, outputs)
    options, kind = table.table(schema.Operator.OPTIONS), _OPTIONS.get(operator.op)
    if options is None or kind is None:
        return operator
    if table.integer(schema.Operator.OPTIONS_TYPE, "B") != kind.type:
        raise ModelError(f"TFLite: operator {place} ({operator.name}) has options of another operator")
    try:
        return dataclasses.replace(operator, **kind.read(options))
    except ValueError as error:
        raise ModelError(f"TFLite: operator {place} ({operator.name}): {error}") from None


class _Kind(NamedTuple):
    """Is where a kind of operator has its options: field numbers, (vertical, horizontal) where there are two."""

    type: Options
    activation: int | None = None
    padding: int | None = None
    stride: tuple[int, int] | None = None
    dilation: tuple[int, int] | None = None
    filter: tuple[int, int] | None = None
    depth_multiplier: int | None = None
    keep_dims: int | None = None
    beta: int | None = None

    def read(self, table: Table) -> dict[str, Any]:
        """Returns the options by the names of `Operator`; a ValueError says which number no operator can have."""
        found: dict[str, Any] = {}
        if self.activation is not None:
            found["activation"] = Activation(table.integer(self.activation, "b"))
        if self.padding is not None:
            found["padding"] = Padding(table.integer(self.padding, "b"))
        for name, default in (("stride", 0), ("dilation", 1), ("filter", 0)):
            if (places := getattr(self, name)) is not None:
                found[name] = tuple(table.integer(place, default=default) for place in places)
                if not all(0 < side < _MAX_SIDE for side in found[name]):
                    raise ValueError(f"{found[name]} is not a valid {name}")
        if self.depth_multiplier is not None:
            found["depth_multiplier"] = table.integer(self.depth_multiplier)
        if self.keep_dims is not None:
            found["keep_dims"] = bool(table.integer(self.keep_dims, "b"))
        if self.beta is not None:
            found["beta"] = float(table.scalar(self.beta, "f"))
        return found


_POOL = _Kind(
    Options.POOL_2D,
    schema.Pool2D.ACTIVATION,
    schema.Pool2D.PADDING,
    (schema.Pool2D.STRIDE_H, schema.Pool2D.STRIDE_W),
    filter=(schema.Pool2D.FILTER_H, schema.Pool2D.FILTER_W),
)
_REDUCER = _Kind(Options.REDUCER, keep_dims=schema.Reducer.KEEP_DIMS)
_OPTIONS: dict[Op | int, _Kind] = {
    Op.ADD: _Kind(Options.ADD, schema.Add.ACTIVATION),
    Op.AVERAGE_POOL_2D: _POOL,
    Op.CONV_2D: _Kind(
        Options.CONV_2D,
        schema.Conv2D.ACTIVATION,
        schema.Conv2D.PADDING,
        (schema.Conv2D.STRIDE_H, schema.Conv2D.STRIDE_W),
        (schema.Conv2D.DILATION_H, schema.Conv2D.DILATION_W),
    ),
    Op.DEPTHWISE_CONV_2D: _Kind(
        Options.DEPTHWISE_CONV_2D,
        schema.DepthwiseConv2D.ACTIVATION,
        schema.DepthwiseConv2D.PADDING,
        (schema.DepthwiseConv2D.STRIDE_H, schema.DepthwiseConv2D.STRIDE_W),
        (schema.DepthwiseConv2D.DILATION_H, schema.DepthwiseConv2D.DILATION_W),
        depth_multiplier=schema.DepthwiseConv2D.DEPTH_MULTIPLIER,
    ),
    Op.FULLY_CONNECTED: _Kind(
        Options.FULLY_CONNECTED, schema.FullyConnected.ACTIVATION, keep_dims=schema.FullyConnected.KEEP_DIMS
    ),
    Op.MAX_POOL_2D: _POOL,
    Op.MEAN: _REDUCER,
    Op.REDUCE_MAX: _REDUCER,
    Op.SOFTMAX: _Kind(Options.SOFTMAX, beta=schema.Softmax.BETA),
}


def _indices(table: Table, place: int, low: int, high: int) -> tuple[int, ...]:
    """Returns a vector of at most 16 indices from `low` to below `high`."""
    found = table.array(place, "i4")
    indices = () if found is None else tuple(found[:17].tolist())
    if len(indices) > 16 or not all(low <= index < high for index in indices):
        raise ModelError(f"TFLite: inputs or outputs {indices[:16]}, needed are at most 16 from {low} to {high - 1}")
    return indices


def _metadata(model: Table, buffers: list[NDArray[np.uint8]]) -> bytes:
    for table in model.tables(schema.Model.METADATA, _LIMIT):
        index = table.integer(schema.Metadata.BUFFER, "I")
        if index < len(buffers) and table.text(schema.Metadata.NAME) == schema.METADATA_NAME:
            return buffers[index].tobytes()
    return b""
