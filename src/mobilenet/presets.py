"""The points in which published MobileNets differ, each a named field, and the choices of the sources people have.

Standard library only; `arch` passes the names on.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

from .common.checks import boolean, choice, fields, integer, number, refuse_unknown
from .common.frozen import frozen
from .errors import UsageError

Family = Literal["v1", "v2"]
Padding = Literal["same", "symmetric", "bottom_right"]
Rounding = Literal["truncate", "divisible", "truncated_divisible", "rounded_divisible", "ceil"]

# Pixel scaling: (pixel - mean) / std on the 0..255 scale, one value for all channels or one each for red, green, blue.
SCALINGS: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "inception": ((127.5,), (127.5,)),  # to -1..1: slim, Keras, timm's V1
    "imagenet": ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),  # torchvision, timm's V2
    "unit": ((0.0,), (255.0,)),  # to 0..1: MLPerf Tiny
}


@frozen
class Conventions:
    """Names every choice in which published MobileNets differ, so that imported weights give the source's outputs.

    Attributes:
        padding: "same" as TensorFlow (the odd pixel of padding goes to the bottom right), "symmetric" as torch, or
            "bottom_right" as Keras' V1 (strided depthwise layers always get (0, 1): the same as "same" on even sizes,
            one output row less on odd ones).
        activation: "relu" or "relu6". V2's projections are linear whatever this says.
        batch_norm_epsilon: added to the variance: 1e-3 in TensorFlow, 1e-5 in torch.
        batch_norm_momentum: share of the old running statistics that one training step keeps (torch's is 1 - this).
        rounding: how `channels * alpha` becomes a whole number; see `scale_channels`.
        divisor: what the "divisible" and "ceil" roundings round to.
        min_width: least number of channels of a scaled layer.
        fixed_stem: stem and, in V2, first block keep their width whatever alpha is (tonylins).
        scaled_first: with a fixed stem, V2's first block is scaled all the same (timm's 110d and 120d).
        scale_head: V2's 1280 channels (1024 of `head_conv`) are scaled for alpha "above_one" only (the paper), "always"
            (slim without `finegrain_classification_mode`) or "never".
        expand_first: V2's first block (expansion 1) has a 1x1 expansion all the same (PaddleClas; 314M MACs, not 301M).
        round_expansion: V2's expanded width is rounded to the divisor too (slim, Hugging Face).
        first_shortcut: V2's first block adds its input where both have the same width (alpha 0.25 and below): sources
            add wherever shapes allow, Hugging Face but there.
        depth: each line of the table but the first and the last has that many times the repeats, rounded up (timm's
            110d and 120d: 1.2 and 1.4).
        head_conv: V1 has a 1x1 convolution to 1024 channels ahead of the pooling, as V2 has to 1280 (timm's 100h).
        last_stride: stride of V1's last depthwise layer: 1, or 2 as the paper's table and the source notes print it.
        conv_bias: convolutions have a bias before batch norm (MLPerf Tiny).
        dropout: probability that training drops a feature before the classifier.
        scaling: pixel scaling, a key of `SCALINGS`.
        background: class 0 is "background", so ImageNet has 1001 classes (slim, TFLite, Hugging Face).
    """

    padding: Padding = "same"
    activation: Literal["relu", "relu6"] = "relu6"
    batch_norm_epsilon: float = 1e-3
    batch_norm_momentum: float = 0.99
    rounding: Rounding = "truncate"
    divisor: int = 8
    min_width: int = 1
    fixed_stem: bool = False
    scaled_first: bool = False
    scale_head: Literal["above_one", "always", "never"] = "above_one"
    expand_first: bool = False
    round_expansion: bool = False
    first_shortcut: bool = True
    depth: float = 1.0
    head_conv: bool = False
    last_stride: int = 1
    conv_bias: bool = False
    dropout: float = 0.0
    scaling: str = "inception"
    background: bool = False

    def __post_init__(self) -> None:
        choice("padding", self.padding, get_args(Padding))
        choice("activation", self.activation, ("relu", "relu6"))
        number("batch_norm_epsilon", self.batch_norm_epsilon, 0.0, 1.0, open_low=True)
        number("batch_norm_momentum", self.batch_norm_momentum, 0.0, 1.0)
        choice("rounding", self.rounding, get_args(Rounding))
        integer("divisor", self.divisor, 1, 1024)
        integer("min_width", self.min_width, 1, 1024)
        choice("scale_head", self.scale_head, ("above_one", "always", "never"))
        number("depth", self.depth, 0.0, 10.0, open_low=True)
        integer("last_stride", self.last_stride, 1, 2)
        number("dropout", self.dropout, 0.0, 1.0, open_high=True)
        choice("scaling", self.scaling, tuple(SCALINGS))
        for field in dataclasses.fields(self):
            if isinstance(field.default, bool):
                boolean(field.name, getattr(self, field.name))


# What stored models that are older than these fields have; it is not stored, so that readers of before can read it.
NOT_STORED: Mapping[str, Any] = {"first_shortcut": True, "scaled_first": False, "depth": 1.0, "head_conv": False}

_TORCH: dict[str, Any] = {"padding": "symmetric", "batch_norm_epsilon": 1e-5, "batch_norm_momentum": 0.9}
_DEEPER = Conventions(
    **_TORCH, rounding="divisible", fixed_stem=True, scaled_first=True, scale_head="never", scaling="imagenet"
)

_PRESETS: Mapping[Family, Mapping[str, Conventions]] = {
    "v1": {
        "paper": Conventions(activation="relu", dropout=0.001),
        "notes": Conventions(activation="relu", last_stride=2),
        "keras": Conventions(padding="bottom_right", dropout=0.001),
        "slim": Conventions(min_width=8, batch_norm_momentum=0.9997, dropout=0.001, background=True),
        "timm": Conventions(**_TORCH, rounding="divisible"),
        "timm_100h": Conventions(**_TORCH, rounding="divisible", head_conv=True),
        "huggingface": Conventions(min_width=8, batch_norm_momentum=0.9997, dropout=0.001, background=True),
        "paddle": Conventions(**_TORCH, activation="relu", scaling="imagenet"),
        "mlperf_tiny": Conventions(activation="relu", conv_bias=True, scaling="unit"),
    },
    "v2": {
        "paper": Conventions(rounding="divisible", dropout=0.2),
        "notes": Conventions(rounding="truncated_divisible", batch_norm_momentum=0.999),
        "keras": Conventions(rounding="truncated_divisible", batch_norm_momentum=0.999),
        "slim": Conventions(
            rounding="divisible", round_expansion=True, batch_norm_momentum=0.997, dropout=0.2, background=True
        ),
        "torchvision": Conventions(**_TORCH, rounding="divisible", dropout=0.2, scaling="imagenet"),
        "timm": Conventions(**_TORCH, rounding="divisible", scaling="imagenet"),
        "timm_110d": dataclasses.replace(_DEEPER, depth=1.2),
        "timm_120d": dataclasses.replace(_DEEPER, depth=1.4),
        "huggingface": Conventions(
            rounding="rounded_divisible",
            round_expansion=True,
            first_shortcut=False,
            batch_norm_momentum=0.997,
            dropout=0.2,
            background=True,
        ),
        "tonylins": Conventions(**_TORCH, rounding="ceil", fixed_stem=True, scaling="imagenet"),
        "d-li14": Conventions(**_TORCH, rounding="divisible", scaling="imagenet"),
        "paddle": Conventions(**_TORCH, rounding="truncate", expand_first=True, scaling="imagenet"),
    },
}


def sources(family: Family) -> tuple[str, ...]:
    """Returns the names of the sources whose conventions are known for `family` ("v1" or "v2")."""
    choice("family", family, ("v1", "v2"))
    return tuple(_PRESETS[family])


def conventions(family: Family, source: str = "paper", **changes: Any) -> Conventions:
    """Returns the conventions of a source ("paper", "keras", "torchvision", …), with single fields replaced.

    Raises:
        UsageError: names the unknown source or field, with the nearest known one, or the value outside its rule.
    """
    known = sources(family)
    if source not in known:
        raise UsageError(
            f"conventions: {source!r} is not a source of MobileNet {family.upper()}; known are {', '.join(known)}"
        )
    refuse_unknown("conventions", changes, fields(Conventions))
    return dataclasses.replace(_PRESETS[family][source], **changes)


def scale_channels(channels: int, alpha: float, conv: Conventions, *, in_block: bool = True) -> int:
    """Returns the width of a layer of `channels` channels under the width multiplier alpha.

    The rules, by name: "truncate" `int(c·alpha)` (the V1 papers' code, Keras' V1); "divisible" the multiple of
    `divisor` nearest to `c·alpha`, one more if that loses over 10% (V2, torchvision, timm); "truncated_divisible" the
    same of `int(c·alpha)` inside blocks (Keras' V2); "rounded_divisible" the same of `round(c·alpha)` (Hugging Face);
    "ceil" the next multiple up (tonylins).
    """
    value = channels * alpha
    if conv.rounding == "truncate":
        return max(int(value), conv.min_width)
    if conv.rounding == "ceil":
        return max(math.ceil(value / conv.divisor) * conv.divisor, conv.min_width)
    if conv.rounding == "truncated_divisible" and in_block:
        value = int(value)
    elif conv.rounding == "rounded_divisible":
        value = round(value)
    return nearest_multiple(value, conv)


def nearest_multiple(value: float, conv: Conventions) -> int:
    """Returns the multiple of the divisor nearest to `value`, or one more if that would lose over 10% (V2's rule)."""
    nearest = max(conv.divisor, conv.min_width, int(value + conv.divisor / 2) // conv.divisor * conv.divisor)
    return nearest + conv.divisor if nearest < 0.9 * value else nearest
