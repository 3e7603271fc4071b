"""Where each library keeps each layer: one table of names and one layout per source.

A layer of ours is two modules of theirs, the convolution and its batch norm. In the names, {block} counts blocks from
0 and {next} from 1, {stage} and {repeat} are the line of the paper's table and the place in it, {even} and {odd} are
twice the block's number and one more, {before} is the block's number less one.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .. import notes as listing
from ..arch import BATCH_NORM, V1_TABLE, V2_TABLE, Conventions, Family, Layer, Network, blocks, conventions, v1, v2

Modules = tuple[str, str]  # the convolution, its batch norm
_MAX_SIZE = 1 << 40  # elements: beyond it a shape is not worth turning round


@dataclass(frozen=True)
class Source:
    """Is one library's version of one family.

    Attributes:
        name: of the library, as `mobilenet export --format` takes it.
        title: what it is called in messages.
        family: "v1" or "v2".
        preset: whose `conventions`.
        layout: "torch", output channels first, or "keras", output channels last.
        stem, head: modules; the head is V2's, and of timm's V1 with one.
        blocks: modules of each layer of a block.
        first: modules of V2's first block, which has no expansion.
        classifier: its module.
        older: the classifier's module in older files.
        variants: other conventions that are tried where the preset's do not fit.
        convolved_top: the classifier is stored as a 1x1 convolution.
        crop, interpolation: of the library's own preprocessing.
        unsupported: begin of a name that tells a relative we can't describe -> what it is.
    """

    name: str
    title: str
    family: Family
    preset: str
    layout: Literal["torch", "keras"]
    stem: Modules = ("", "")
    blocks: Mapping[str, Modules] = field(default_factory=dict)
    classifier: str = ""
    first: Mapping[str, Modules] = field(default_factory=dict)
    head: Modules = ("", "")
    older: str = ""
    variants: tuple[Conventions, ...] = ()
    convolved_top: bool = False
    crop: float = 0.875
    interpolation: str = "bilinear"
    unsupported: Mapping[str, str] = field(default_factory=dict)

    def network(self, alpha: float = 1.0, **arguments: Any) -> Network:
        """Returns a member of the family with the source's conventions; arguments as `mobilenet.v1`."""
        arguments = {"conventions": self.preset} | arguments
        return {"v1": v1, "v2": v2}[self.family](alpha, **arguments)


TORCHVISION = Source(
    "torchvision",
    "torchvision's mobilenet_v2",
    "v2",
    "torchvision",
    "torch",
    stem=("features.0.0", "features.0.1"),
    first={
        "depthwise": ("features.1.conv.0.0", "features.1.conv.0.1"),
        "project": ("features.1.conv.1", "features.1.conv.2"),
    },
    blocks={
        "expand": ("features.{next}.conv.0.0", "features.{next}.conv.0.1"),
        "depthwise": ("features.{next}.conv.1.0", "features.{next}.conv.1.1"),
        "project": ("features.{next}.conv.2", "features.{next}.conv.3"),
    },
    head=("features.18.0", "features.18.1"),
    classifier="classifier.1",
)

_FLAT: dict[str, Any] = {
    "stem": ("features.0.0", "features.0.1"),
    "first": {
        "depthwise": ("features.1.conv.0", "features.1.conv.1"),
        "project": ("features.1.conv.3", "features.1.conv.4"),
    },
    "blocks": {
        "expand": ("features.{next}.conv.0", "features.{next}.conv.1"),
        "depthwise": ("features.{next}.conv.3", "features.{next}.conv.4"),
        "project": ("features.{next}.conv.6", "features.{next}.conv.7"),
    },
    "classifier": "classifier",
}
D_LI14 = Source(
    "d-li14",
    "d-li14's mobilenetv2.pytorch",
    "v2",
    "d-li14",
    "torch",
    **_FLAT,
    head=("conv.0", "conv.1"),
    variants=(conventions("v2", "d-li14", divisor=4),),  # of alpha 0.1
)
TONYLINS = Source(
    "tonylins",
    "tonylins' pytorch-mobilenet-v2",
    "v2",
    "tonylins",
    "torch",
    **_FLAT,
    head=("features.18.0", "features.18.1"),
    older="classifier.1",
)

TIMM_V1 = Source(
    "timm",
    "timm's mobilenetv1",
    "v1",
    "timm",
    "torch",
    stem=("conv_stem", "bn1"),
    blocks={
        "depthwise": ("blocks.{stage}.{repeat}.conv_dw", "blocks.{stage}.{repeat}.bn1"),
        "pointwise": ("blocks.{stage}.{repeat}.conv_pw", "blocks.{stage}.{repeat}.bn2"),
    },
    classifier="classifier",
    head=("conv_head", "bn2"),
    interpolation="bicubic",
    variants=(conventions("v1", "timm_100h"),),
    unsupported={"blocks.": "a member of another depth"},
)
TIMM_V2 = Source(
    "timm",
    "timm's mobilenetv2",
    "v2",
    "timm",
    "torch",
    stem=("conv_stem", "bn1"),
    first={
        "depthwise": ("blocks.0.0.conv_dw", "blocks.0.0.bn1"),
        "project": ("blocks.0.0.conv_pw", "blocks.0.0.bn2"),
    },
    blocks={
        "expand": ("blocks.{stage}.{repeat}.conv_pw", "blocks.{stage}.{repeat}.bn1"),
        "depthwise": ("blocks.{stage}.{repeat}.conv_dw", "blocks.{stage}.{repeat}.bn2"),
        "project": ("blocks.{stage}.{repeat}.conv_pwl", "blocks.{stage}.{repeat}.bn3"),
    },
    head=("conv_head", "bn2"),
    classifier="classifier",
    interpolation="bicubic",
    variants=(conventions("v2", "timm_110d"), conventions("v2", "timm_120d")),
    unsupported={"blocks.": "a member of another depth than 100, 110d and 120d"},
)


def _hugging(path: str) -> Modules:
    return f"{path}.convolution", f"{path}.normalization"


HUGGINGFACE_V1 = Source(
    "huggingface",
    "transformers' MobileNetV1ForImageClassification",
    "v1",
    "huggingface",
    "torch",
    stem=_hugging("mobilenet_v1.conv_stem"),
    blocks={
        "depthwise": _hugging("mobilenet_v1.layer.{even}"),
        "pointwise": _hugging("mobilenet_v1.layer.{odd}"),
    },
    classifier="classifier",
)
HUGGINGFACE_V2 = Source(
    "huggingface",
    "transformers' MobileNetV2ForImageClassification",
    "v2",
    "huggingface",
    "torch",
    stem=_hugging("mobilenet_v2.conv_stem.first_conv"),
    first={
        "expand": _hugging("mobilenet_v2.conv_stem.expand_1x1"),
        "depthwise": _hugging("mobilenet_v2.conv_stem.conv_3x3"),
        "project": _hugging("mobilenet_v2.conv_stem.reduce_1x1"),
    },
    blocks={
        "expand": _hugging("mobilenet_v2.layer.{before}.expand_1x1"),
        "depthwise": _hugging("mobilenet_v2.layer.{before}.conv_3x3"),
        "project": _hugging("mobilenet_v2.layer.{before}.reduce_1x1"),
    },
    head=_hugging("mobilenet_v2.conv_1x1"),
    classifier="classifier",
    unsupported={"segmentation_head.": "a network for segmentation"},
)

KERAS_V1 = Source(
    "keras",
    "keras.applications.MobileNet",
    "v1",
    "keras",
    "keras",
    stem=("conv1", "conv1_bn"),
    blocks={
        "depthwise": ("conv_dw_{next}", "conv_dw_{next}_bn"),
        "pointwise": ("conv_pw_{next}", "conv_pw_{next}_bn"),
    },
    classifier="conv_preds",
    convolved_top=True,
)
KERAS_V2 = Source(
    "keras",
    "keras.applications.MobileNetV2",
    "v2",
    "keras",
    "keras",
    stem=("Conv1", "bn_Conv1"),
    first={
        "depthwise": ("expanded_conv_depthwise", "expanded_conv_depthwise_BN"),
        "project": ("expanded_conv_project", "expanded_conv_project_BN"),
    },
    blocks={
        "expand": ("block_{block}_expand", "block_{block}_expand_BN"),
        "depthwise": ("block_{block}_depthwise", "block_{block}_depthwise_BN"),
        "project": ("block_{block}_project", "block_{block}_project_BN"),
    },
    head=("Conv_1", "Conv_1_bn"),
    classifier="predictions",
    older="Logits",
)
# Their names are made where the listing is: `notes.rows`.
NOTES_V1 = Source("notes", "the source notes' MobileNet", "v1", "notes", "keras", classifier="softmax")
NOTES_V2 = Source("notes", "MobileNetV2 by the source notes' names", "v2", "notes", "keras", classifier="softmax")

TORCH = (TORCHVISION, D_LI14, TONYLINS, TIMM_V1, TIMM_V2, HUGGINGFACE_V1, HUGGINGFACE_V2)
KERAS = (KERAS_V1, KERAS_V2, NOTES_V1, NOTES_V2)

_TORCH_PARTS = dict(zip(BATCH_NORM, ("weight", "bias", "running_mean", "running_var"), strict=True))
_KERAS_PARTS = dict(zip(BATCH_NORM, ("gamma", "beta", "moving_mean", "moving_variance"), strict=True))


def modules(source: Source, layer: Layer, rules: Conventions) -> Modules:
    """Returns the names of the modules that hold a layer; the second is "" where there is no batch norm.

    Args:
        rules: of the layer's network.
    """
    if layer.kind == "dense":
        return source.classifier, ""
    if layer.block is None:
        return source.head if layer.kind == "pointwise" else source.stem
    table = source.first if layer.block == 0 and source.first else source.blocks
    conv, norm = table[layer.name.rpartition(".")[2]]
    places = _places(source.family, layer.block, rules)
    return conv.format(**places), norm.format(**places)


def _places(family: Family, block: int, rules: Conventions) -> dict[str, int]:
    found = blocks(V1_TABLE, rules) if family == "v1" else blocks(V2_TABLE, rules)
    stage, repeat, _ = found[block]
    numbers = {"block": block, "next": block + 1, "before": block - 1, "even": 2 * block, "odd": 2 * block + 1}
    return numbers | {"stage": stage, "repeat": repeat}


def keys(source: Source, network: Network) -> dict[str, str]:
    """Returns for each tensor of ours the key of theirs: "features.0.0.weight", or for Keras "conv1/kernel"."""
    if source.preset == "notes":
        return {tensor: f"{row.name}/{part}" for row in listing.rows(network) for part, tensor in row.tensors.items()}
    dot, parts, weight = (".", _TORCH_PARTS, "weight") if source.layout == "torch" else ("/", _KERAS_PARTS, "kernel")
    found = {}
    for layer in network.layers:
        conv, norm = modules(source, layer, network.conventions) if layer.tensors else ("", "")
        for tensor in layer.tensors:
            part = tensor.rpartition(".")[2]
            if part in parts:
                found[tensor] = f"{norm}{dot}{parts[part]}"
            else:
                found[tensor] = f"{conv}{dot}{weight if part == 'weight' else part}"
    return found


def ours(source: Source, layer: Layer, array: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns a weight of theirs in our layout; one that has another number of axes as it is."""
    if source.layout == "torch":
        match layer.kind, array.ndim:
            case "conv", 4:
                return array.transpose(2, 3, 1, 0)
            case "depthwise", 4:
                return array.transpose(2, 3, 0, 1).reshape(_merged(array.shape[2:], array.shape[:2]))
            case "pointwise" | "dense", 4:
                return _matrix(array.transpose(2, 3, 1, 0))
            case "dense", 2:
                return array.T
        return array
    match layer.kind, array.ndim:
        case "depthwise", 4:
            return array.reshape(_merged(array.shape[:2], array.shape[2:]))
        case "pointwise" | "dense", 4:
            return _matrix(array)
    return array


def _merged(kernel: tuple[int, ...], channels: tuple[int, ...]) -> tuple[int, ...]:
    return (*kernel, math.prod(channels)) if channels[1] == 1 else (*kernel, *channels)


def _matrix(array: NDArray[np.float32]) -> NDArray[np.float32]:
    return array[0, 0] if array.shape[:2] == (1, 1) else array


def our_shape(source: Source, layer: Layer, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape that `ours` gives a weight of that shape."""
    if math.prod(shape) > _MAX_SIZE:
        return shape
    return ours(source, layer, np.broadcast_to(np.float32(0), shape)).shape


def theirs(source: Source, layer: Layer, array: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns a weight of ours in their layout, the inverse of `ours`."""
    if source.layout == "torch":
        match layer.kind:
            case "conv":
                array = array.transpose(3, 2, 0, 1)
            case "depthwise":
                array = array.transpose(2, 0, 1)[:, None]
            case "pointwise":
                array = array.T[:, :, None, None]
            case "dense":
                array = array.T
    elif layer.kind == "depthwise":
        array = array[..., None]
    elif layer.kind == "pointwise" or (layer.kind == "dense" and source.convolved_top):
        array = array[None, None]
    return np.ascontiguousarray(array)


def candidates(source: Source, *, include_top: bool = True) -> Iterator[Network]:
    """Yields networks of a source, alpha 1, one for each of its variants of conventions."""
    for rules in (conventions(source.family, source.preset), *source.variants):
        yield source.network(include_top=include_top, conventions=rules)
