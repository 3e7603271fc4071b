"""Published figures of MobileNets, as printed: what `cost` is tested against and what `budget` ranks by.

Multiply-adds and parameters are in millions with the digits of the print. Where a figure differs from the formula, the
convention (or the slip of the print) that explains it stands beside the row and is computed in tests/test_published.py.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from .arch import Family

SLIM_V1 = "tensorflow/models slim, mobilenet_v1.md"  # ImageNet, 1001 classes, checkpoints of 2018_02_22
SLIM_V2 = "tensorflow/models slim, mobilenet/README.md"  # ImageNet, 1001 classes
V1_PAPER = "arXiv 1704.04861"
V2_PAPER = "arXiv 1801.04381"


class Row(NamedTuple):
    """Is the published cost and ImageNet accuracy of one member: an alpha at a resolution.

    `macs` and `params` are in millions, accuracies in percent, `None` where the source prints nothing. `quantised` is
    the (top-1, top-5) of the 8-bit checkpoint beside it, `milliseconds` one image on a Google Pixel 1.
    """

    source: str
    family: Family
    alpha: float
    resolution: int
    macs: int
    params: float | None = None
    top1: float | None = None
    top5: float | None = None
    quantised: tuple[float, float] | None = None
    milliseconds: float | None = None


# params: weights, the classifier's bias and three batch-norm vectors a channel. The macs of the 0.75 rows leave out the
# stem; 0.5 at 224 is 149.4976 rounded twice; 0.25 at 192 is 30.21 by the formula and a slip in the print.
SLIM_V1_ROWS = (
    Row(SLIM_V1, "v1", 1.0, 224, 569, 4.24, 70.9, 89.9, (69.7, 89.5)),
    Row(SLIM_V1, "v1", 1.0, 192, 418, 4.24, 70.0, 89.2, (69.0, 88.9)),
    Row(SLIM_V1, "v1", 1.0, 160, 291, 4.24, 68.0, 87.7, (67.3, 87.7)),
    Row(SLIM_V1, "v1", 1.0, 128, 186, 4.24, 65.2, 85.8, (64.0, 85.5)),
    Row(SLIM_V1, "v1", 0.75, 224, 317, 2.59, 68.4, 88.2, (67.9, 88.1)),
    Row(SLIM_V1, "v1", 0.75, 192, 233, 2.59, 67.2, 87.3, (66.2, 87.1)),
    Row(SLIM_V1, "v1", 0.75, 160, 162, 2.59, 65.3, 86.0, (63.9, 85.5)),
    Row(SLIM_V1, "v1", 0.75, 128, 104, 2.59, 62.1, 83.9, (59.8, 82.8)),
    Row(SLIM_V1, "v1", 0.5, 224, 150, 1.34, 63.3, 84.9, (62.2, 84.5)),
    Row(SLIM_V1, "v1", 0.5, 192, 110, 1.34, 61.7, 83.6, (60.4, 83.2)),
    Row(SLIM_V1, "v1", 0.5, 160, 77, 1.34, 59.1, 81.9, (57.7, 81.3)),
    Row(SLIM_V1, "v1", 0.5, 128, 49, 1.34, 56.3, 79.4, (54.9, 78.9)),
    Row(SLIM_V1, "v1", 0.25, 224, 41, 0.47, 49.8, 74.2, (48.2, 73.8)),
    Row(SLIM_V1, "v1", 0.25, 192, 34, 0.47, 47.7, 72.3, (45.8, 71.9)),
    Row(SLIM_V1, "v1", 0.25, 160, 21, 0.47, 45.5, 70.3, (43.5, 69.1)),
    Row(SLIM_V1, "v1", 0.25, 128, 14, 0.47, 41.5, 66.3, (39.9, 65.8)),
)

# macs are truncated, not rounded; params are the weights alone, printed at 224 only.
SLIM_V2_ROWS = (
    Row(SLIM_V2, "v2", 1.4, 224, 582, 6.06, 75.0, 92.5, milliseconds=138.0),
    Row(SLIM_V2, "v2", 1.3, 224, 509, 5.34, 74.4, 92.1, milliseconds=123.0),
    Row(SLIM_V2, "v2", 1.0, 224, 300, 3.47, 71.8, 91.0, milliseconds=73.8),
    Row(SLIM_V2, "v2", 1.0, 192, 221, None, 70.7, 90.1, milliseconds=55.1),
    Row(SLIM_V2, "v2", 1.0, 160, 154, None, 68.8, 89.0, milliseconds=40.2),
    Row(SLIM_V2, "v2", 1.0, 128, 99, None, 65.3, 86.9, milliseconds=27.6),
    Row(SLIM_V2, "v2", 1.0, 96, 56, None, 60.3, 83.2, milliseconds=17.6),
    Row(SLIM_V2, "v2", 0.75, 224, 209, 2.61, 69.8, 89.6, milliseconds=55.8),
    Row(SLIM_V2, "v2", 0.75, 192, 153, None, 68.7, 88.9, milliseconds=41.6),
    Row(SLIM_V2, "v2", 0.75, 160, 107, None, 66.4, 87.3, milliseconds=30.4),
    Row(SLIM_V2, "v2", 0.75, 128, 69, None, 63.2, 85.3, milliseconds=21.9),
    Row(SLIM_V2, "v2", 0.75, 96, 39, None, 58.8, 81.6, milliseconds=14.2),
    Row(SLIM_V2, "v2", 0.5, 224, 97, 1.95, 65.4, 86.4, milliseconds=28.7),
    Row(SLIM_V2, "v2", 0.5, 192, 71, None, 63.9, 85.4, milliseconds=21.1),
    Row(SLIM_V2, "v2", 0.5, 160, 50, None, 61.0, 83.2, milliseconds=14.9),
    Row(SLIM_V2, "v2", 0.5, 128, 32, None, 57.7, 80.8, milliseconds=9.9),
    Row(SLIM_V2, "v2", 0.5, 96, 18, None, 51.2, 75.8, milliseconds=6.4),
    Row(SLIM_V2, "v2", 0.35, 224, 59, 1.66, 60.3, 82.9, milliseconds=19.7),
    Row(SLIM_V2, "v2", 0.35, 192, 43, None, 58.2, 81.2, milliseconds=14.6),
    Row(SLIM_V2, "v2", 0.35, 160, 30, None, 55.7, 79.1, milliseconds=10.5),
    Row(SLIM_V2, "v2", 0.35, 128, 20, None, 50.8, 75.0, milliseconds=6.9),
    Row(SLIM_V2, "v2", 0.35, 96, 11, None, 45.5, 70.4, milliseconds=4.5),
)

# macs are rounded at 224 (568.74) and truncated at 160 (290.68, and 76.52 in Table 9).
V1_TABLE_6 = (
    Row(f"{V1_PAPER}, Table 6", "v1", 1.0, 224, 569, 4.2, 70.6),
    Row(f"{V1_PAPER}, Table 6", "v1", 0.75, 224, 325, 2.6, 68.4),
    Row(f"{V1_PAPER}, Table 6", "v1", 0.5, 224, 149, 1.3, 63.7),
    Row(f"{V1_PAPER}, Table 6", "v1", 0.25, 224, 41, 0.5, 50.6),
)
V1_TABLE_7 = (
    Row(f"{V1_PAPER}, Table 7", "v1", 1.0, 224, 569, 4.2, 70.6),
    Row(f"{V1_PAPER}, Table 7", "v1", 1.0, 192, 418, 4.2, 69.1),
    Row(f"{V1_PAPER}, Table 7", "v1", 1.0, 160, 290, 4.2, 67.2),
    Row(f"{V1_PAPER}, Table 7", "v1", 1.0, 128, 186, 4.2, 64.4),
)
V1_TABLE_9 = (Row(f"{V1_PAPER}, Table 9", "v1", 0.5, 160, 76, 1.32, 60.2),)

# 575M for V1 and 585M and 6.9M for V2 1.4 are given by no convention known here; 3.4M is 3.47M of weights, truncated.
V2_TABLE_4 = (
    Row(f"{V2_PAPER}, Table 4", "v1", 1.0, 224, 575, 4.2, 70.6, milliseconds=113),
    Row(f"{V2_PAPER}, Table 4", "v2", 1.0, 224, 300, 3.4, 72.0, milliseconds=75),
    Row(f"{V2_PAPER}, Table 4", "v2", 1.4, 224, 585, 6.9, 74.7, milliseconds=143),
)

# The V1 paper's two other bodies: every layer a standard convolution (4866 leaves out the classifier; 4867.29 with it),
# and the five 14x14x512 blocks removed.
CONV_MOBILENET = Row(f"{V1_PAPER}, Table 4", "v1", 1.0, 224, 4866, 29.3, 71.7)
SHALLOW_MOBILENET = Row(f"{V1_PAPER}, Table 5", "v1", 1.0, 224, 307, 2.9, 65.3)


class Share(NamedTuple):
    """Is a row of the V1 paper's Table 2: percent of the multiply-adds and of the weights in one kind of layer."""

    kind: str
    macs: float
    params: float


# 1.19 is a slip for 1.91: as printed the column sums to 99.29. params count the weights alone.
V1_TABLE_2 = (
    Share("pointwise", 94.86, 74.59),
    Share("depthwise", 3.06, 1.06),
    Share("conv", 1.19, 0.02),
    Share("dense", 0.18, 24.33),
)


class OneLayer(NamedTuple):
    """Is a row of the V1 paper's Table 3, one layer at a 3x3 kernel: cost in millions under alpha and resolution."""

    separable: bool
    channels: int
    side: int
    macs: float
    params: float


V1_TABLE_3 = (
    OneLayer(False, 512, 14, 462, 2.36),
    OneLayer(True, 512, 14, 52.3, 0.27),
    OneLayer(True, 384, 14, 29.6, 0.15),  # alpha 0.75
    OneLayer(True, 384, 10, 15.1, 0.15),  # resolution x 0.714
)


class Materialised(NamedTuple):
    """Is a cell of the V2 paper's Table 3: most channels at one resolution, and their memory in kB at 16 bits."""

    family: Family
    side: int
    channels: int
    kilobytes: int


# 1024 x 7 x 7 at 16 bits is 100 kB, half of the 199 printed. A V2 cell takes the channels that the lines of Table 2
# which begin at its resolution put out, though the last of them has a stride of 2 and puts them out at half of it.
V2_TABLE_3 = (
    Materialised("v1", 56, 128, 800),
    Materialised("v1", 28, 256, 400),
    Materialised("v1", 14, 512, 200),
    Materialised("v1", 7, 1024, 199),
    Materialised("v1", 1, 1024, 2),
    Materialised("v2", 56, 32, 200),
    Materialised("v2", 28, 64, 100),
    Materialised("v2", 14, 160, 62),
    Materialised("v2", 7, 320, 32),
    Materialised("v2", 1, 1280, 2),
)

_CHECKPOINTS: Mapping[tuple[str, float, int], Row] = MappingProxyType(
    {(row.family, row.alpha, row.resolution): row for row in (*SLIM_V1_ROWS, *SLIM_V2_ROWS)}
)


def checkpoint(family: Family, alpha: float, resolution: int) -> Row | None:
    """Returns the published row of slim's ImageNet checkpoint of this alpha and resolution, None where there is none.

    One source for both families, so that their accuracies compare.
    """
    return _CHECKPOINTS.get((family, alpha, resolution))
