"""The numbers of TFLite's schema and of its metadata's that MobileNets need.

From tensorflow/compiler/mlir/lite/schema/schema.fbs (version 3) and tensorflow_lite_support/metadata/
metadata_schema.fbs. Each class of fields is named for its table, its members are field numbers in the schema's order.
"""

from enum import IntEnum

IDENTIFIER = b"TFL3"
VERSION = 3


class Model(IntEnum):
    VERSION, OPERATOR_CODES, SUBGRAPHS, DESCRIPTION, BUFFERS, METADATA_BUFFER, METADATA = range(7)


class OperatorCode(IntEnum):
    DEPRECATED_BUILTIN_CODE, CUSTOM_CODE, VERSION, BUILTIN_CODE = range(4)


class Subgraph(IntEnum):
    TENSORS, INPUTS, OUTPUTS, OPERATORS, NAME = range(5)


class Tensor(IntEnum):
    SHAPE, TYPE, BUFFER, NAME, QUANTIZATION, IS_VARIABLE, SPARSITY, SHAPE_SIGNATURE = range(8)


class Quantization(IntEnum):
    MIN, MAX, SCALE, ZERO_POINT, DETAILS_TYPE, DETAILS, DIMENSION = range(7)


class Buffer(IntEnum):
    DATA, OFFSET, SIZE = range(3)


class Metadata(IntEnum):
    NAME, BUFFER = range(2)


class Operator(IntEnum):
    OPCODE_INDEX, INPUTS, OUTPUTS, OPTIONS_TYPE, OPTIONS = range(5)


class Conv2D(IntEnum):
    PADDING, STRIDE_W, STRIDE_H, ACTIVATION, DILATION_W, DILATION_H = range(6)


class DepthwiseConv2D(IntEnum):
    PADDING, STRIDE_W, STRIDE_H, DEPTH_MULTIPLIER, ACTIVATION, DILATION_W, DILATION_H = range(7)


class Pool2D(IntEnum):
    PADDING, STRIDE_W, STRIDE_H, FILTER_W, FILTER_H, ACTIVATION = range(6)


class FullyConnected(IntEnum):
    ACTIVATION, WEIGHTS_FORMAT, KEEP_DIMS = range(3)


class Add(IntEnum):
    ACTIVATION, POT_SCALE_INT16 = range(2)


class Softmax(IntEnum):
    BETA = 0


class Reducer(IntEnum):
    KEEP_DIMS = 0


class Op(IntEnum):
    """Is a BuiltinOperator."""

    ADD = 0
    AVERAGE_POOL_2D = 1
    CONV_2D = 3
    DEPTHWISE_CONV_2D = 4
    FULLY_CONNECTED = 9
    MAX_POOL_2D = 17
    RESHAPE = 22
    SOFTMAX = 25
    PAD = 34
    MEAN = 40
    SQUEEZE = 43
    REDUCE_MAX = 82


class Options(IntEnum):
    """Is the type of an operator's options: the union BuiltinOptions."""

    CONV_2D = 1
    DEPTHWISE_CONV_2D = 2
    POOL_2D = 5
    FULLY_CONNECTED = 8
    SOFTMAX = 9
    ADD = 11
    RESHAPE = 17
    PAD = 22
    REDUCER = 27
    SQUEEZE = 30


class Activation(IntEnum):
    """Is an ActivationFunctionType."""

    LINEAR = 0
    RELU = 1
    RELU6 = 3


class Padding(IntEnum):
    SAME, VALID = range(2)


class Type(IntEnum):
    """Is a TensorType."""

    FLOAT32 = 0
    INT32 = 2
    UINT8 = 3
    INT64 = 4
    INT8 = 9


# -------------------------------------------------------------------------------------------------------- metadata

METADATA_IDENTIFIER = b"M001"
METADATA_NAME = "TFLITE_METADATA"
"""Of the entry of `Model.METADATA` whose buffer holds the metadata's own flatbuffer."""


class ModelMetadata(IntEnum):
    NAME, DESCRIPTION, VERSION, SUBGRAPHS, AUTHOR, LICENSE, FILES, MIN_PARSER_VERSION = range(8)


class SubgraphMetadata(IntEnum):
    NAME, DESCRIPTION, INPUTS, OUTPUTS = range(4)


class TensorMetadata(IntEnum):
    NAME, DESCRIPTION, DIMENSION_NAMES, CONTENT, PROCESS_UNITS, STATS, FILES = range(7)


class Content(IntEnum):
    PROPERTIES_TYPE, PROPERTIES = range(2)


class ContentType(IntEnum):
    """Is the type of `Content.PROPERTIES`: the union ContentProperties."""

    FEATURE, IMAGE = 1, 2


class Image(IntEnum):
    COLOR_SPACE, SIZE = range(2)


class ImageSize(IntEnum):
    WIDTH, HEIGHT = range(2)


class ColorSpace(IntEnum):
    UNKNOWN, RGB, GRAYSCALE = range(3)


class Stats(IntEnum):
    MAX, MIN = range(2)


class ProcessUnit(IntEnum):
    OPTIONS_TYPE, OPTIONS = range(2)


NORMALIZATION = 1
"""Type of `ProcessUnit.OPTIONS`."""


class Normalization(IntEnum):
    MEAN, STD = range(2)


class AssociatedFile(IntEnum):
    NAME, DESCRIPTION, TYPE = range(3)


class FileType(IntEnum):
    """Is an AssociatedFileType."""

    DESCRIPTIONS, AXIS_LABELS = 1, 2
