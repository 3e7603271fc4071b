import json
import re
import subprocess
import sys
from dataclasses import replace

import pytest

from members import random_members
from mobilenet.arch import SCALINGS, Conventions, Network, Shape, conventions, scale_channels, sources, v1, v2
from mobilenet.cost import cost
from mobilenet.errors import UsageError

# Channels of the stem and of the lines of V2's Table 2, then those of the head.
V2_WIDTHS = {
    ("torchvision", 1.4): ([48, 24, 32, 48, 88, 136, 224, 448], 1792),
    ("torchvision", 1.3): ([40, 24, 32, 40, 80, 128, 208, 416], 1664),
    ("torchvision", 1.0): ([32, 16, 24, 32, 64, 96, 160, 320], 1280),
    ("torchvision", 0.75): ([24, 16, 24, 24, 48, 72, 120, 240], 1280),
    ("torchvision", 0.5): ([16, 8, 16, 16, 32, 48, 80, 160], 1280),
    ("torchvision", 0.35): ([16, 8, 8, 16, 24, 32, 56, 112], 1280),
    ("torchvision", 0.25): ([8, 8, 8, 8, 16, 24, 40, 80], 1280),
    ("torchvision", 0.1): ([8, 8, 8, 8, 8, 16, 16, 32], 1280),
    ("tonylins", 1.4): ([32, 16, 40, 48, 96, 136, 224, 448], 1792),
    ("tonylins", 0.35): ([32, 16, 16, 16, 24, 40, 56, 112], 1280),
    ("paddle", 0.25): ([8, 4, 6, 8, 16, 24, 40, 80], 1280),
    ("paddle", 1.5): ([48, 24, 36, 48, 96, 144, 240, 480], 1920),
}
V2_LINE_ENDS = (0, 2, 5, 9, 12, 15, 16)  # the last block of each line of Table 2
PUBLISHED_ALPHAS = (0.35, 0.5, 0.75, 1.0, 1.3, 1.4)


def v2_widths(network: Network) -> tuple[list[int], int]:
    blocks = [network.by_name[f"block{index}.project"] for index in V2_LINE_ENDS]
    return [layer.output.channels for layer in (network.layers[0], *blocks)], network.by_name["head"].output.channels


def widths_of_weights(network: Network) -> set[int]:
    """The output channels of all but the depthwise convolutions, as slim's own tests list them."""
    return {layer.output.channels for layer in network.layers if layer.weight_shape and layer.kind != "depthwise"}


def strided(network: Network) -> list[tuple[int, tuple[int, int]]]:
    """Output height and (top, bottom) padding of every strided layer."""
    return [(layer.output.height, layer.padding[0]) for layer in network.layers if layer.stride == 2]


# ------------------------------------------------------------------------------------------------------ the tables


def test_v1_is_the_papers_table_1() -> None:
    layers = v1().layers
    assert [(x.kind, x.stride, x.output.channels, x.output.height) for x in layers[:5]] == [
        ("conv", 2, 32, 112),
        ("depthwise", 1, 32, 112),
        ("pointwise", 1, 64, 112),
        ("depthwise", 2, 64, 56),
        ("pointwise", 1, 128, 56),
    ]
    pointwise = [x.output.channels for x in layers if x.kind == "pointwise"]
    assert pointwise == [64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024]
    assert [x.name for x in layers if x.stride == 2] == ["stem", *(f"block{n}.depthwise" for n in (1, 3, 5, 11))]
    assert len([x for x in layers if x.weight_shape]) == 28  # "28 layers"
    assert [(x.name, x.kind, tuple(x.output)) for x in layers[-2:]] == [
        ("pool", "average_pool", (1, 1, 1024)),
        ("classifier", "dense", (1, 1, 1000)),
    ]


def test_v2_is_the_papers_table_2() -> None:
    network = v2()
    expansion = [
        network.by_name[f"block{n}.expand"].output.channels / network.by_name[f"block{n}.expand"].input.channels
        for n in range(1, 17)
    ]
    assert expansion == [6.0] * 16
    assert "block0.expand" not in network.by_name
    assert max(x.block for x in network.layers if x.block is not None) == 16  # 17 blocks; the paper's text says 19
    assert [x.name for x in network.layers if x.stride == 2] == [
        "stem",
        *(f"block{n}.depthwise" for n in (1, 3, 6, 13)),  # on the 64 line, not the 96 line of the first preprint
    ]
    linear = [x.name for x in network.layers if x.batch_norm and x.activation == "linear"]
    assert linear == [f"block{n}.project" for n in range(17)]


def test_shortcuts_join_blocks_of_equal_shape() -> None:
    adds = {x.name: x.adds for x in v2().layers if x.adds}
    blocks = (2, 4, 5, 7, 8, 9, 11, 12, 14, 15)
    assert adds == {f"block{n}.project": f"block{n - 1}.project" for n in blocks}
    assert v2(0.25).by_name["block0.project"].adds == "stem"  # 8 channels before and after
    assert not any(x.adds for x in v1().layers)


@pytest.mark.parametrize(("source", "alpha"), V2_WIDTHS)
def test_v2_channels_of_each_source(source: str, alpha: float) -> None:
    assert v2_widths(v2(alpha, conventions=source)) == V2_WIDTHS[source, alpha]


@pytest.mark.parametrize("alpha", PUBLISHED_ALPHAS)
@pytest.mark.parametrize("source", ["paper", "keras", "slim", "timm", "huggingface", "d-li14"])
def test_sources_agree_at_published_alphas(source: str, alpha: float) -> None:
    assert v2_widths(v2(alpha, conventions=source)) == V2_WIDTHS["torchvision", alpha]


def test_where_keras_and_hugging_face_differ_from_slim() -> None:
    channels = (16, 24, 32, 64, 96, 160, 320)
    slim, keras, face = (conventions("v2", name) for name in ("slim", "keras", "huggingface"))
    alphas = [n / 100 for n in range(5, 301)]
    pairs = [(alpha, c, scale_channels(c, alpha, slim)) for alpha in alphas for c in channels]
    differs = {alpha for alpha, c, width in pairs if scale_channels(c, alpha, keras) != width}
    assert differs == {0.14, 0.28, 0.42, 0.56, 0.84, 1.12, 1.49, 1.67, 1.68, 2.23, 2.24}
    rounded = [alpha for alpha, c, width in pairs if scale_channels(c, alpha, face) != width]
    assert len(rounded) == 83
    assert set(rounded) >= {0.27, 0.36, 0.37, 0.54, 0.55, 0.73, 0.74, 0.83}


def test_v1_channels_of_each_source() -> None:
    def stem_and_last(alpha: float, source: str) -> tuple[int, int]:
        network = v1(alpha, conventions=source)
        return network.layers[0].output.channels, network.by_name["block12.pointwise"].output.channels

    assert stem_and_last(0.55, "keras") == (17, 563)  # int(), no rounding to 8
    assert stem_and_last(0.55, "timm") == (16, 560)
    assert stem_and_last(0.1, "keras") == (3, 102)
    assert stem_and_last(0.1, "slim") == (8, 102)  # min_depth 8
    assert stem_and_last(0.001, "paper") == (1, 1)  # every alpha above 0 gives a network


def test_slims_own_test_oracles() -> None:
    slim = conventions("v2", "slim")
    wide = v2(conventions=replace(slim, divisor=16, min_width=32))
    assert widths_of_weights(wide) == {32, 64, 96, 160, 192, 320, 384, 576, 960, 1280, 1001}
    thin = v2(0.1, conventions=replace(slim, min_width=32, scale_head="always"))
    assert widths_of_weights(thin) == {32, 192, 128, 1001}
    assert thin.replace(include_top=False).output == (7, 7, 128)
    assert widths_of_weights(v2(0.01, conventions=slim)) == {8, 48, 1001, 1280}
    half = v2(0.5, conventions=replace(slim, scale_head="always"))
    assert half.by_name["head"].output.channels == 640  # without finegrain_classification_mode


def test_expanded_width_is_rounded_where_the_source_rounds_it() -> None:
    rounds = [conventions("v2", rounding="truncate", round_expansion=choice) for choice in (True, False)]
    widths = [v2(0.35, conventions=conv).by_name["block1.expand"].output.channels for conv in rounds]
    assert widths == [32, 30]  # 6 x 5 channels


def test_keras_truncates_inside_blocks_only() -> None:
    assert v2(0.56, conventions="keras").layers[0].output.channels == 24  # of 17.92: 16 would lose over 10%
    assert v2(0.56, conventions="keras").by_name["block5.project"].output.channels == 16  # of int(17.92) = 17
    assert v2(0.56, conventions="slim").by_name["block5.project"].output.channels == 24


def test_scale_head_never() -> None:
    assert v2(1.4, conventions=conventions("v2", scale_head="never")).by_name["head"].output.channels == 1280


def test_d_li14s_narrowest_needs_divisor_4() -> None:
    network = v2(0.1, conventions=conventions("v2", "d-li14", divisor=4))
    assert v2_widths(network) == ([4, 4, 4, 4, 8, 12, 16, 32], 1280)


def test_expand_first_gives_the_first_block_an_expansion() -> None:
    layer = v2(conventions="paddle").by_name["block0.expand"]
    assert (layer.input, layer.output) == ((112, 112, 32), (112, 112, 32))


# ----------------------------------------------------------------------------------------------- sizes and paddings


@pytest.mark.parametrize(("resolution", "side"), [(224, 7), (192, 6), (160, 5), (128, 4), (96, 3), (64, 2), (32, 1)])
@pytest.mark.parametrize("make", [v1, v2])
def test_last_feature_map(make: type, resolution: int, side: int) -> None:
    shape = make(resolution=resolution, include_top=False).output
    assert (shape.height, shape.width) == (side, side)


SAME_AND_SYMMETRIC = {
    32: [16, 8, 4, 2, 1],
    33: [17, 9, 5, 3, 2],
    35: [18, 9, 5, 3, 2],
    97: [49, 25, 13, 7, 4],
    225: [113, 57, 29, 15, 8],
}


@pytest.mark.parametrize("size", SAME_AND_SYMMETRIC)
@pytest.mark.parametrize("make", [v1, v2])
@pytest.mark.parametrize(("padding", "even"), [("same", (0, 1)), ("symmetric", (1, 0))])
def test_strided_layers_pad_as_their_source(make: type, size: int, padding: str, even: tuple[int, int]) -> None:
    network = make(resolution=size, conventions=conventions(make.__name__, padding=padding))
    heights = SAME_AND_SYMMETRIC[size]
    inputs = [size, *heights[:-1]]
    assert strided(network) == [(h, (1, 1) if n % 2 else even) for h, n in zip(heights, inputs, strict=True)]
    assert all(x.padding == ((1, 1), (1, 1)) for x in network.layers if x.kernel == 3 and x.stride == 1)
    assert all(x.padding == ((0, 0), (0, 0)) for x in network.layers if x.kernel == 1)


# Heights and pads of Keras' V1, whose strided depthwise layers get (0, 1) of which an odd size reads nothing.
KERAS_V1 = {
    33: [(17, (1, 1)), (8, (0, 0)), (4, (0, 1)), (2, (0, 1)), (1, (0, 1))],
    37: [(19, (1, 1)), (9, (0, 0)), (4, (0, 0)), (2, (0, 1)), (1, (0, 1))],
    225: [(113, (1, 1)), (56, (0, 0)), (28, (0, 1)), (14, (0, 1)), (7, (0, 1))],
    224: [(112, (0, 1)), (56, (0, 1)), (28, (0, 1)), (14, (0, 1)), (7, (0, 1))],
}


@pytest.mark.parametrize("size", KERAS_V1)
def test_bottom_right_padding(size: int) -> None:
    assert strided(v1(resolution=size, conventions="keras")) == KERAS_V1[size]


def test_non_square_input_pads_each_direction_by_itself() -> None:
    stem = v2(resolution=(33, 64)).layers[0]
    assert stem.padding == ((1, 1), (0, 1))
    assert stem.output == (17, 32, 32)
    assert v2(resolution=[33, 64]) == v2(resolution=(33, 64))


def test_last_stride_2_as_the_notes_print_it() -> None:
    network = v1(conventions="notes")
    assert network.by_name["block12.depthwise"].stride == 2
    assert network.by_name["pool"].input == (4, 4, 1024)


@pytest.mark.parametrize(("downsampling", "side"), [(32, 1), (16, 2), (8, 4), (4, 8), (2, 16), (1, 32)])
@pytest.mark.parametrize("make", [v1, v2])
def test_downsampling_flattens_the_first_strides(make: type, downsampling: int, side: int) -> None:
    network = make(resolution=32, downsampling=downsampling)
    assert network.by_name["pool"].input[:2] == (side, side)
    kept = [x.name for x in network.layers if x.stride == 2]
    assert kept == [x.name for x in make(resolution=32).layers if x.stride == 2][5 - len(kept) :]
    assert network.tensors == make(resolution=32).tensors  # so weights move between downsamplings


# ------------------------------------------------------------------------------------------------- tops, taps, twins


def test_top_and_pooling() -> None:
    assert v2(include_top=False).layers[-1].name == "head"
    assert v1(include_top=False).output == (7, 7, 1024)
    for pooling, kind in (("avg", "average_pool"), ("max", "max_pool")):
        last = v1(include_top=False, pooling=pooling).layers[-1]
        assert (last.name, last.kind, last.output) == ("pool", kind, (1, 1, 1024))
    assert v2(classes=7, channels=1).output == (1, 1, 7)
    assert v2(channels=1).layers[0].weight_shape == (3, 3, 1, 32)


def test_classes_default_to_the_sources() -> None:
    assert [v1(conventions=source).classes for source in ("paper", "keras", "slim")] == [1000, 1000, 1001]
    assert v2(classes=5, conventions="slim").classes == 5
    assert v2(classes=1_000_000).output == (1, 1, 1_000_000)  # the limit on widths is not one on classes


TAPS_V1 = {n: f"block{index}.pointwise" for n, index in ((2, 0), (4, 2), (8, 4), (16, 10), (32, 12))}
TAPS_V2 = {n: f"block{index}.project" for n, index in ((2, 0), (4, 2), (8, 5), (16, 12), (32, 16))}


@pytest.mark.parametrize(
    ("network", "taps"),
    [
        (v1(), TAPS_V1),
        (v2(), TAPS_V2),
        (v2(include_top=False), TAPS_V2),
        (v1(include_top=False), TAPS_V1),
        (v1(include_top=False, pooling="max"), TAPS_V1),
        (v2(conventions="paddle"), TAPS_V2),
        (v2(downsampling=8), {1: "block2.project", 2: "block5.project", 4: "block12.project", 8: "block16.project"}),
        (v1(downsampling=1), {1: "block12.pointwise"}),
        (v1(conventions="notes"), TAPS_V1 | {32: "block11.pointwise", 64: "block12.pointwise"}),
        (v2(separable=False), {stride: name.replace("project", "conv") for stride, name in TAPS_V2.items()}),
    ],
)
def test_taps(network: Network, taps: dict[int, str]) -> None:
    assert network.taps == taps


def test_standard_twin_puts_one_convolution_for_each_pair() -> None:
    twin = v1(separable=False)
    assert [x.name for x in twin.layers] == ["stem", *(f"block{n}.conv" for n in range(13)), "pool", "classifier"]
    assert {x.kernel for x in twin.layers if x.kind == "conv"} == {3}
    separable = v2()
    twin = separable.replace(separable=False)
    for block in range(17):
        pair, conv = separable.by_name[f"block{block}.project"], twin.by_name[f"block{block}.conv"]
        depthwise = separable.by_name[f"block{block}.depthwise"]
        assert (conv.input, conv.output) == (depthwise.input, pair.output)
        assert (conv.stride, conv.padding) == (depthwise.stride, depthwise.padding)
        assert conv.activation == "linear"
        assert (conv.adds or "").replace("conv", "project") == (pair.adds or "")


# --------------------------------------------------------------------------------------------------------- tensors


def test_names_and_layouts_of_tensors() -> None:
    tensors = v2(conventions=conventions("v2", conv_bias=True)).tensors
    assert list(tensors)[:6] == ["stem." + part for part in ("weight", "bias", "gamma", "beta", "mean", "variance")]
    assert tensors["stem.weight"] == (3, 3, 3, 32)
    assert tensors["block1.expand.weight"] == (16, 96)
    assert tensors["block1.depthwise.weight"] == (3, 3, 96)
    assert tensors["block1.depthwise.bias"] == (96,)
    assert tensors["block1.project.variance"] == (24,)
    assert list(tensors)[-2:] == ["classifier.weight", "classifier.bias"]
    assert tensors["classifier.weight"] == (1280, 1000)
    assert not any(name.startswith("pool") for name in tensors)
    assert "stem.bias" not in v2().tensors


# --------------------------------------------------------------------------------------------- every member at once


def test_shapes_chain_in_random_members() -> None:
    for network in random_members(seed=1):
        outputs = {"": network.input}
        shape = network.input
        for layer in network.layers:
            assert layer.input == shape, f"{network}: {layer.name}"
            assert min(layer.output) >= 1
            if layer.kind == "depthwise":
                assert layer.output.channels == layer.input.channels
            if layer.adds:
                assert outputs[layer.adds] == layer.output
            shape = outputs[layer.name] = layer.output
        assert network.output == shape
        assert len(outputs) == len(network.layers) + 1  # names are unique
        for stride, name in network.taps.items():
            assert outputs[name].height <= -(-network.height // stride)


def test_windows_of_random_members_stay_within_their_padding() -> None:
    """The last window ends within the padded input, the next would not fit, and no row of zeros is unread."""
    for network in random_members(seed=2):
        for layer in network.layers:
            if layer.weight_shape is None:
                continue
            sizes = zip(layer.input[:2], layer.output[:2], layer.padding, strict=True)
            for size, out, (before, after) in sizes:
                end = (out - 1) * layer.stride + layer.kernel
                assert end <= before + size + after
                assert not after or end == before + size + after
                assert 0 <= before <= layer.kernel // 2
                if network.conventions.padding != "bottom_right":
                    assert out == -(-size // layer.stride)


def test_dict_round_trip_of_random_members() -> None:
    for network in random_members(seed=3):
        data = json.loads(json.dumps(network.to_dict()))
        again = Network.from_dict(data)
        assert again == network
        assert hash(again) == hash(network)
        assert again.layers == network.layers


def test_replace_derives_anew() -> None:
    assert v1().replace(height=128, width=128) == v1(resolution=128)
    assert v1().replace(alpha=0.5).layers == v1(0.5).layers


# What each source does, in its own code: padding, activation, epsilon, momentum, dropout, scaling, background class.
PRESETS = {
    ("v1", "paper"): ("same", "relu", 1e-3, 0.99, 0.001, "inception", False),
    ("v1", "notes"): ("same", "relu", 1e-3, 0.99, 0.0, "inception", False),
    ("v1", "keras"): ("bottom_right", "relu6", 1e-3, 0.99, 0.001, "inception", False),
    ("v1", "slim"): ("same", "relu6", 1e-3, 0.9997, 0.001, "inception", True),
    ("v1", "timm"): ("symmetric", "relu6", 1e-5, 0.9, 0.0, "inception", False),
    ("v1", "timm_100h"): ("symmetric", "relu6", 1e-5, 0.9, 0.0, "inception", False),
    ("v1", "huggingface"): ("same", "relu6", 1e-3, 0.9997, 0.001, "inception", True),
    ("v1", "paddle"): ("symmetric", "relu", 1e-5, 0.9, 0.0, "imagenet", False),
    ("v1", "mlperf_tiny"): ("same", "relu", 1e-3, 0.99, 0.0, "unit", False),
    ("v2", "paper"): ("same", "relu6", 1e-3, 0.99, 0.2, "inception", False),
    ("v2", "notes"): ("same", "relu6", 1e-3, 0.999, 0.0, "inception", False),
    ("v2", "keras"): ("same", "relu6", 1e-3, 0.999, 0.0, "inception", False),
    ("v2", "slim"): ("same", "relu6", 1e-3, 0.997, 0.2, "inception", True),
    ("v2", "torchvision"): ("symmetric", "relu6", 1e-5, 0.9, 0.2, "imagenet", False),
    ("v2", "timm"): ("symmetric", "relu6", 1e-5, 0.9, 0.0, "imagenet", False),
    ("v2", "timm_110d"): ("symmetric", "relu6", 1e-5, 0.9, 0.0, "imagenet", False),
    ("v2", "timm_120d"): ("symmetric", "relu6", 1e-5, 0.9, 0.0, "imagenet", False),
    ("v2", "huggingface"): ("same", "relu6", 1e-3, 0.997, 0.2, "inception", True),
    ("v2", "tonylins"): ("symmetric", "relu6", 1e-5, 0.9, 0.0, "imagenet", False),
    ("v2", "d-li14"): ("symmetric", "relu6", 1e-5, 0.9, 0.0, "imagenet", False),
    ("v2", "paddle"): ("symmetric", "relu6", 1e-5, 0.9, 0.0, "imagenet", False),
}


def test_presets_are_what_the_sources_do() -> None:
    names = ("padding", "activation", "batch_norm_epsilon", "batch_norm_momentum", "dropout", "scaling", "background")
    known = [(family, source) for family in ("v1", "v2") for source in sources(family)]  # no V1 in torchvision
    found = {key: conventions(*key) for key in known}
    assert {key: tuple(getattr(conv, name) for name in names) for key, conv in found.items()} == PRESETS
    assert [key for key, conv in found.items() if conv.conv_bias] == [("v1", "mlperf_tiny")]
    assert [key for key, conv in found.items() if conv.round_expansion] == [("v2", "slim"), ("v2", "huggingface")]
    assert [key for key, conv in found.items() if conv.expand_first] == [("v2", "paddle")]
    assert [key[1] for key, conv in found.items() if conv.fixed_stem] == ["timm_110d", "timm_120d", "tonylins"]
    assert [key[1] for key, conv in found.items() if conv.scaled_first] == ["timm_110d", "timm_120d"]
    depths = {key[1]: conv.depth for key, conv in found.items() if conv.depth != 1}
    assert depths == {"timm_110d": 1.2, "timm_120d": 1.4}
    assert [key[1] for key, conv in found.items() if conv.head_conv] == ["timm_100h"]
    assert [key[1] for key, conv in found.items() if not conv.first_shortcut] == ["huggingface"]
    assert [key for key, conv in found.items() if conv.last_stride != 1] == [("v1", "notes")]
    assert [key for key, conv in found.items() if conv.min_width != 1] == [("v1", "slim"), ("v1", "huggingface")]
    assert {conv.divisor for conv in found.values()} == {8}


def test_deeper_members_repeat_all_lines_but_the_first_and_the_last() -> None:
    """timm's mobilenetv2_110d and 120d, and mobilenetv1_100h: millions of parameters as its table has them."""
    deeper = v2(1.1, conventions="timm_110d"), v2(1.2, conventions="timm_120d")
    assert [sum(layer.kind == "depthwise" for layer in network.layers) for network in deeper] == [22, 26]
    assert [network.by_name["stem"].output.channels for network in deeper] == [32, 32]
    assert [network.by_name["block0.project"].output.channels for network in deeper] == [16, 24]
    assert [network.by_name["head"].output.channels for network in deeper] == [1280, 1280]
    assert [round(cost(network).params / 1e6, 2) for network in deeper] == [4.52, 5.83]
    headed = v1(conventions="timm_100h")
    assert round(cost(headed).params / 1e6, 2) == 5.28
    assert headed.by_name["head"].output == (7, 7, 1024)
    assert v1(1.25, conventions="timm_100h").by_name["head"].output.channels == 1280
    assert v1(0.5, conventions="timm_100h").by_name["head"].output.channels == 1024
    assert str(deeper[0]) == "MobileNetV2 alpha 1.1 depth 1.2 224x224x3 1000 classes"


def test_what_is_newer_than_stored_models_is_stored_only_where_it_says_something() -> None:
    plain, deeper = v2(conventions="timm"), v2(conventions="timm_110d")
    assert not {"depth", "head_conv", "first_shortcut"} & set(plain.to_dict()["conventions"])
    assert {name: deeper.to_dict()["conventions"][name] for name in ("depth", "scaled_first")} == {
        "depth": 1.2,
        "scaled_first": True,
    }
    for network in (plain, deeper, v1(conventions="timm_100h"), v2(0.25, conventions="huggingface")):
        assert Network.from_dict(network.to_dict()) == network


def test_pixel_scalings() -> None:
    def scaled(name: str, value: float) -> list[float]:
        mean, std = SCALINGS[name]
        return [(value - m) / s for m, s in zip(mean, std, strict=True)]

    assert (scaled("inception", 0), scaled("inception", 255)) == ([-1], [1])
    assert (scaled("unit", 0), scaled("unit", 255)) == ([0], [1])
    published = zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)  # torchvision's, on the 0..1 scale
    assert scaled("imagenet", 255) == pytest.approx([(1 - mean) / std for mean, std in published])
    assert scaled("imagenet", 0) == pytest.approx([-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225])


def test_text_of_a_network() -> None:
    assert str(v2(0.5, (96, 128), 10)) == "MobileNetV2 alpha 0.5 96x128x3 10 classes"
    assert str(v1(separable=False, include_top=False)) == (
        "MobileNetV1 of standard convolutions alpha 1 224x224x3 no top"
    )


def test_shape_size() -> None:
    assert Shape(2, 3, 5).size == 30


# ---------------------------------------------------------------------------------------------------- bad arguments


def dict_with(**changes: object) -> dict[str, object]:
    return v1().to_dict() | changes


def conventions_dict_with(**changes: object) -> dict[str, object]:
    return dict_with(conventions=v1().to_dict()["conventions"] | changes)


BAD = [
    (lambda: v1(0), "alpha: got 0, needed a number above 0 to 1e+06"),
    (lambda: v1(-1.5), "alpha: got -1.5, needed a number above 0"),
    (lambda: v1(float("nan")), "alpha: got nan, needed a number above 0"),
    (lambda: v1(float("inf")), "alpha: got inf, needed a number above 0"),
    (lambda: v1("1"), "alpha: got '1', needed a number above 0"),
    (lambda: v1(True), "alpha: got True, needed a number above 0"),
    (lambda: v2(1e6), "alpha: 1000000.0 makes layer 'stem' 32000000 channels wide; the limit is 65536"),
    (lambda: v1(1, 31), "resolution: got 31, needed a whole number from 32 to 8192"),
    (lambda: v1(1, 8193), "resolution: got 8193, needed a whole number from 32 to 8192"),
    (lambda: v1(1, True), "resolution: got True, needed a whole number from 32 to 8192"),
    (lambda: v1(1, 224.0), "resolution: got 224.0, needed one side or (height, width) in pixels"),
    (lambda: v1(1, (224, 224, 3)), "resolution: got (224, 224, 3), needed one side or (height, width) in pixels"),
    (lambda: v1(1, (224, 16)), "width: got 16, needed a whole number from 32 to 8192"),
    (lambda: v1(1, ("a", 32)), "height: got 'a', needed a whole number from 32 to 8192"),
    (lambda: v1(classes=0), "classes: got 0, needed a whole number from 1 to 1000000"),
    (lambda: v1(classes=1_000_001), "classes: got 1000001, needed a whole number from 1 to 1000000"),
    (lambda: v1(classes=2.5), "classes: got 2.5, needed a whole number"),
    (lambda: v1(channels=0), "channels: got 0, needed a whole number from 1 to 1024"),
    (lambda: v1(include_top="yes"), "include_top: got 'yes', needed true or false"),
    (lambda: v1(pooling="avg"), "pooling: 'avg' only applies without the top (include_top=False); leave it out"),
    (lambda: v1(include_top=False, pooling="sum"), "pooling: got 'sum', needed one of None, 'avg', 'max'"),
    (lambda: v1(downsampling=3), "downsampling: got 3, needed one of 32, 16, 8, 4, 2, 1"),
    (lambda: v1(separable=1), "separable: got 1, needed true or false"),
    (
        lambda: v1(conventions="torchvision"),
        "conventions: 'torchvision' is not a source of MobileNet V1; known are paper",
    ),
    (lambda: v1(conventions=None), "conventions: got None, needed a Conventions"),
    (
        lambda: v1(1, 32, conventions=conventions("v1", "keras", last_stride=2)),
        "leaves layer 'block12.depthwise' no out",
    ),
    (
        lambda: v1(1, (32, 64), conventions=conventions("v1", "keras", last_stride=2)),
        "height, width: 32x64 leaves layer 'block12.depthwise' no out",
    ),
    (lambda: sources("v3"), "family: got 'v3', needed one of 'v1', 'v2'"),
    (lambda: conventions("v1", padings="same"), "conventions: unknown key 'padings'; did you mean 'padding'?"),
    (lambda: Conventions(padding="valid"), "padding: got 'valid', needed one of 'same', 'symmetric', 'bottom_right'"),
    (lambda: Conventions(activation="swish"), "activation: got 'swish', needed one of 'relu', 'relu6'"),
    (lambda: Conventions(batch_norm_epsilon=0), "batch_norm_epsilon: got 0, needed a number above 0 to 1"),
    (lambda: Conventions(batch_norm_momentum=1.5), "batch_norm_momentum: got 1.5, needed a number from 0 to 1"),
    (lambda: Conventions(rounding="up"), "rounding: got 'up', needed one of 'truncate', 'divisible'"),
    (lambda: Conventions(divisor=0), "divisor: got 0, needed a whole number from 1 to 1024"),
    (lambda: Conventions(min_width=0), "min_width: got 0, needed a whole number from 1 to 1024"),
    (lambda: Conventions(scale_head="no"), "scale_head: got 'no', needed one of 'above_one', 'always', 'never'"),
    (lambda: Conventions(last_stride=3), "last_stride: got 3, needed a whole number from 1 to 2"),
    (lambda: Conventions(dropout=1.0), "dropout: got 1.0, needed a number from 0 to below 1"),
    (lambda: Conventions(scaling="bgr"), "scaling: got 'bgr', needed one of 'inception', 'imagenet', 'unit'"),
    (lambda: Conventions(background=0), "background: got 0, needed true or false"),
    (lambda: Network.from_dict([]), "network: got [], needed an object with the keys family, alpha"),
    (lambda: Network.from_dict(dict_with(colour=1)), "network: unknown key 'colour'; known are family"),
    (lambda: Network.from_dict(dict_with(family="v3")), "family: got 'v3', needed one of 'v1', 'v2'"),
    (lambda: Network.from_dict(dict_with(conventions="paper")), "conventions: got 'paper', needed an object"),
    (lambda: Network.from_dict(conventions_dict_with(divisor=None)), "divisor: got None, needed a whole number"),
    (
        lambda: Network.from_dict({k: v for k, v in v1().to_dict().items() if k != "alpha"}),
        "network: the key 'alpha' is missing",
    ),
    (lambda: v1().replace(alfa=2), "network: unknown key 'alfa'; did you mean 'alpha'?"),
    (lambda: v1().replace(height=8), "height: got 8, needed a whole number from 32 to 8192"),
]


@pytest.mark.parametrize(("call", "message"), BAD, ids=[message[:50] for _, message in BAD])
def test_bad_arguments_are_named_with_value_and_rule(call: object, message: str) -> None:
    assert callable(call)
    with pytest.raises(UsageError, match=re.escape(message)):
        call()


def test_long_values_are_cut_in_messages() -> None:
    with pytest.raises(UsageError) as raised:
        v1("9" * 10_000)
    assert len(str(raised.value)) < 200


def test_architecture_and_cost_import_the_standard_library_only() -> None:
    code = (
        "import sys; before = set(sys.modules); import mobilenet.arch, mobilenet.cost, mobilenet.budget;"
        "print(*sorted({name.split('.')[0] for name in set(sys.modules) - before}))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(run.stdout.split()) <= sys.stdlib_module_names | {"mobilenet"}
