"""The numbers of TFLite's schema and of its metadata's that MobileNets need.

From tensorflow/compiler/mlir/lite/schema/schema.fbs (version 3) and tensorflow_lite_support/metadata/
metadata_schema.fbs. An enumeration with a table's name has its field numbers, in the schema's order.
"""

from enum import IntEnum

IDENTIFIER = b"TFL3"
VERSION = 3

Model = IntEnum("Model", "VERSION OPERATOR_CODES SUBGRAPHS DESCRIPTION BUFFERS METADATA_BUFFER METADATA", start=0)
OperatorCode = IntEnum("OperatorCode", "DEPRECATED_BUILTIN_CODE CUSTOM_CODE VERSION BUILTIN_CODE", start=0)
Subgraph = IntEnum("Subgraph", "TENSORS INPUTS OUTPUTS OPERATORS NAME", start=0)
Tensor = IntEnum("Tensor", "SHAPE TYPE BUFFER NAME QUANTIZATION IS_VARIABLE SPARSITY SHAPE_SIGNATURE", start=0)
Quantization = IntEnum("Quantization", "MIN MAX SCALE ZERO_POINT DETAILS_TYPE DETAILS DIMENSION", start=0)
Buffer = IntEnum("Buffer", "DATA OFFSET SIZE", start=0)
Metadata = IntEnum("Metadata", "NAME BUFFER", start=0)
Operator = IntEnum("Operator", "OPCODE_INDEX INPUTS OUTPUTS OPTIONS_TYPE OPTIONS", start=0)
Conv2D = IntEnum("Conv2D", "PADDING STRIDE_W STRIDE_H ACTIVATION DILATION_W DILATION_H", start=0)
DepthwiseConv2D = IntEnum(
    "DepthwiseConv2D", "PADDING STRIDE_W STRIDE_H DEPTH_MULTIPLIER ACTIVATION DILATION_W DILATION_H", start=0
)
Pool2D = IntEnum("Pool2D", "PADDING STRIDE_W STRIDE_H FILTER_W FILTER_H ACTIVATION", start=0)
FullyConnected = IntEnum("FullyConnected", "ACTIVATION WEIGHTS_FORMAT KEEP_DIMS ASYMMETRIC_INPUTS", start=0)
Add = IntEnum("Add", "ACTIVATION POT_SCALE_INT16", start=0)
Softmax = IntEnum("Softmax", "BETA", start=0)
Reducer = IntEnum("Reducer", "KEEP_DIMS", start=0)
Concatenation = IntEnum("Concatenation", "AXIS ACTIVATION", start=0)


class Op(IntEnum):
    """Is a BuiltinOperator."""

    ADD = 0
    AVERAGE_POOL_2D = 1
    CONCATENATION = 2
    CONV_2D = 3
    DEPTHWISE_CONV_2D = 4
    DEQUANTIZE = 6
    FULLY_CONNECTED = 9
    MAX_POOL_2D = 17
    MUL = 18
    RESHAPE = 22
    SOFTMAX = 25
    PAD = 34
    MEAN = 40
    SQUEEZE = 43
    STRIDED_SLICE = 45
    CAST = 53
    SHAPE = 77
    REDUCE_MAX = 82
    PACK = 83
    QUANTIZE = 114


class Options(IntEnum):
    """Is the type of an operator's options: the union BuiltinOptions."""

    NONE = 0
    CONV_2D = 1
    DEPTHWISE_CONV_2D = 2
    POOL_2D = 5
    FULLY_CONNECTED = 8
    SOFTMAX = 9
    CONCATENATION = 10
    ADD = 11
    RESHAPE = 17
    MUL = 21
    PAD = 22
    REDUCER = 27
    SQUEEZE = 30


class Activation(IntEnum):
    """Is an ActivationFunctionType."""

    LINEAR = 0
    RELU = 1
    RELU6 = 3


Padding = IntEnum("Padding", "SAME VALID", start=0)


class Type(IntEnum):
    """Is a TensorType."""

    FLOAT32 = 0
    FLOAT16 = 1
    INT32 = 2
    UINT8 = 3
    INT64 = 4
    INT8 = 9


# -------------------------------------------------------------------------------------------------------- metadata

METADATA_IDENTIFIER = b"M001"
METADATA_NAME = "TFLITE_METADATA"
"""Of the entry of `Model.METADATA` whose buffer holds the metadata's own flatbuffer."""


ModelMetadata = IntEnum(
    "ModelMetadata", "NAME DESCRIPTION VERSION SUBGRAPHS AUTHOR LICENSE FILES MIN_PARSER_VERSION", start=0
)
SubgraphMetadata = IntEnum("SubgraphMetadata", "NAME DESCRIPTION INPUTS OUTPUTS", start=0)
TensorMetadata = IntEnum(
    "TensorMetadata", "NAME DESCRIPTION DIMENSION_NAMES CONTENT PROCESS_UNITS STATS FILES", start=0
)
Content = IntEnum("Content", "PROPERTIES_TYPE PROPERTIES", start=0)


class ContentType(IntEnum):
    """Is the type of `Content.PROPERTIES`: the union ContentProperties."""

    FEATURE, IMAGE = 1, 2


Image = IntEnum("Image", "COLOR_SPACE SIZE", start=0)
ImageSize = IntEnum("ImageSize", "WIDTH HEIGHT", start=0)
ColorSpace = IntEnum("ColorSpace", "UNKNOWN RGB GRAYSCALE", start=0)
Stats = IntEnum("Stats", "MAX MIN", start=0)
ProcessUnit = IntEnum("ProcessUnit", "OPTIONS_TYPE OPTIONS", start=0)


NORMALIZATION = 1
"""Type of `ProcessUnit.OPTIONS`."""


Normalization = IntEnum("Normalization", "MEAN STD", start=0)
AssociatedFile = IntEnum("AssociatedFile", "NAME DESCRIPTION TYPE", start=0)


class FileType(IntEnum):
    """Is an AssociatedFileType."""

    DESCRIPTIONS, AXIS_LABELS = 1, 2
