import json
import math
from itertools import product

import pytest

import mobilenet
from members import random_members
from mobilenet.arch import Layer, Network, conventions, v1, v2
from mobilenet.cost import VIEWS, cost, depthwise_separable, saving, standard_convolution
from mobilenet.errors import UsageError

V1 = cost(v1())
V2 = cost(v2())

# --------------------------------------------------------------------------------------------- counted one by one


def counted_macs(layer: Layer) -> int:
    """Counts each multiply-add of a layer by walking its loops."""
    (height, width, outs), ins, taps = layer.output, layer.input.channels, range(layer.kernel**2)
    if layer.kind == "depthwise":
        return sum(1 for _ in product(range(height), range(width), range(outs), taps))
    if layer.kind in ("conv", "pointwise", "dense"):
        return sum(1 for _ in product(range(height), range(width), range(outs), taps, range(ins)))
    return 0


def counted_peak(network: Network, *, fused: bool) -> int:
    """Runs the network on a heap of named tensors, each freed after its last reader; returns the most elements held.

    Fused, the outputs of all but the last layer of a block take no room.
    """
    names = ["input", *(layer.name for layer in network.layers)]
    readers = {name: index for index, name in enumerate(names)}  # the layer at `index` reads the tensor before it
    readers |= {names[index]: index for index in range(len(network.layers))}
    for index, layer in enumerate(network.layers):
        if layer.adds:
            readers[layer.adds] = index
    ends = {layer.block: layer.name for layer in network.layers if layer.block is not None}
    if fused:  # the first layer of a block allocates the block's output, and its input stays until the last is done
        for index, layer in enumerate(network.layers):
            if layer.block is not None and network.layers[index - 1].block != layer.block:
                last = next(n for n, other in enumerate(network.layers) if other.name == ends[layer.block])
                readers[names[index]] = max(readers[names[index]], last)
    heap, peak = {"input": network.input.size}, 0
    for index, layer in enumerate(network.layers):
        inside = fused and layer.block is not None
        made = network.by_name[ends[layer.block]] if inside else layer
        heap[made.name] = made.output.size
        peak = max(peak, sum(heap.values()))
        heap = {name: size for name, size in heap.items() if readers.get(name, index + 1) > index}
    return peak


TINY = [
    v1(0.04, (32, 35), 3),
    v1(0.04, (33, 40), 3, channels=1, separable=False),
    v1(0.05, 32, 2, downsampling=8, conventions=conventions("v1", "notes", conv_bias=True)),
    v2(0.07, (37, 32), 3, conventions=conventions("v2", rounding="truncate", scale_head="always")),
    v2(0.07, 32, 3, separable=False, conventions=conventions("v2", "paddle", scale_head="always")),
    v2(0.05, 32, include_top=False, pooling="max", conventions=conventions("v2", "keras", divisor=2)),
]


@pytest.mark.parametrize("network", TINY, ids=str)
def test_closed_forms_equal_a_count_one_by_one(network: Network) -> None:
    counted = cost(network)
    assert [row.macs for row in counted.layers] == [counted_macs(layer) for layer in network.layers]
    assert counted.macs == sum(counted_macs(layer) for layer in network.layers)
    assert counted.macs < 3_000_000  # else the loops above take minutes


def test_parameters_of_random_members_equal_their_tensors() -> None:
    for network in random_members(seed=11):
        counted = cost(network)
        sizes = {name: math.prod(shape) for name, shape in network.tensors.items()}
        moving = sum(size for name, size in sizes.items() if name.endswith((".mean", ".variance")))
        weights = sum(size for name, size in sizes.items() if name.endswith(".weight"))
        assert counted.total_params == sum(sizes.values())
        assert counted.statistics == moving
        assert counted.params == counted.total_params - moving
        assert counted.weights == weights


def test_memory_of_random_members_equals_a_walk_over_a_heap() -> None:
    for network in random_members(seed=12):
        counted = cost(network, 1)
        assert counted.peak_memory == counted_peak(network, fused=False), str(network)
        assert counted.fused_peak_memory == counted_peak(network, fused=True), str(network)


def test_parts_of_random_members_sum_to_the_whole() -> None:
    for network in random_members(seed=13):
        counted = cost(network)
        whole = (counted.macs, counted.weights, counted.params, counted.statistics)
        for parts in (counted.layers, counted.blocks, counted.kinds.values()):
            rows = [(part.macs, part.weights, part.params, part.statistics) for part in parts]
            assert tuple(map(sum, zip(*rows, strict=True))) == whole
        assert tuple(row.layer for row in counted.layers) == network.layers
        assert counted.activations == sum(layer.output.size for layer in network.layers)
        for block in counted.blocks:
            if block.ratio is not None:
                assert block.ratio == pytest.approx(saving(3, block.layers[-1].layer.output.channels), rel=1e-12)


# --------------------------------------------------------------------------------------- the standard twin


def test_the_source_notes_example() -> None:
    assert round(saving(3, 512), 3) == 0.113
    assert saving(1, 1) == 2  # a 1x1 kernel and one output: separating costs
    assert depthwise_separable(3, 512, 512, 14, 14) / standard_convolution(3, 512, 512, 14, 14) == saving(3, 512)


def test_ratio_depends_on_kernel_and_outputs_alone() -> None:
    for kernel, ins, outs, height, width in product((1, 3, 5), (1, 7, 512), (1, 8, 1000), (1, 14), (3, 112)):
        separable = depthwise_separable(kernel, ins, outs, height, width)
        standard = standard_convolution(kernel, ins, outs, height, width)
        assert separable / standard == pytest.approx(1 / outs + 1 / kernel**2, rel=1e-12)


@pytest.mark.parametrize(("kernel", "outs", "name"), [(0, 8, "kernel: got 0"), (3, 0, "outs: got 0"), (3, 1.5, "outs")])
def test_saving_refuses_what_is_no_size(kernel: int, outs: int, name: str) -> None:
    with pytest.raises(UsageError, match=name):
        saving(kernel, outs)


def test_every_pair_stands_beside_its_twins_layer() -> None:
    for counted in (V1, V2, cost(v2(0.35, (97, 60), conventions="torchvision"))):
        assert counted.standard is not None
        twins = {row.name: row.macs for row in counted.standard.layers}
        for block in counted.blocks:
            assert block.standard == twins.get(f"{block.name}.conv")
            if block.standard:
                depthwise, pointwise = block.layers[-2:]
                assert block.separable == depthwise.macs + pointwise.macs
                shape = pointwise.layer.output
                form = depthwise_separable(3, depthwise.layer.input.channels, shape.channels, *shape[:2])
                assert block.separable == form
        assert [block.name for block in counted.blocks if block.ratio is None] == [
            name for name in ("stem", "head", "pool", "classifier") if name in counted.network.by_name
        ]


def test_the_twin_has_no_twin() -> None:
    twin = V1.standard
    assert twin is not None
    assert twin.standard is None
    assert all(block.ratio is None for block in twin.blocks)
    assert twin.bytes_per_element == 4
    assert cost(v1(), 2).standard == cost(v1(separable=False), 2)


# ------------------------------------------------------------------------------------------------------- memory


def test_memory_layer_by_layer_and_fused() -> None:
    assert V1.peak_layer.name == "block0.pointwise"
    assert V1.peak_memory == 112 * 112 * (32 + 64) * 4
    assert V2.peak_layer.name == "block1.depthwise"
    assert V2.peak_memory == (112 * 112 * 96 + 56 * 56 * 96) * 4
    assert V2.fused_peak_block.name == "block0"
    assert V2.fused_peak_memory == 112 * 112 * (32 + 16) * 4
    # V1's strided blocks hold input and output together when fused, which layer by layer need not meet.
    strided = V1.blocks[2]
    assert strided.memory == (112 * 112 * 64 + 56 * 56 * 128) * 4 > max(layer.memory for layer in strided.layers)
    assert cost(v2(), 1).peak_memory * 4 == V2.peak_memory
    assert V2.activation_memory == V2.activations * 4


def test_a_waiting_shortcut_is_held() -> None:
    rows = {row.name: row.memory // 4 for row in V2.layers}
    shortcut, inside = 56 * 56 * 24, 56 * 56 * 144
    assert rows["block2.expand"] == shortcut + inside  # its input is the shortcut
    assert rows["block2.depthwise"] == inside + inside + shortcut
    assert rows["block2.project"] == inside + shortcut + shortcut
    assert rows["block3.depthwise"] == inside + 28 * 28 * 144  # no shortcut over a stride


def test_what_is_no_network_is_refused() -> None:
    for call in (cost, mobilenet.create):
        with pytest.raises(UsageError, match=r"network: got 'v1', needed a Network, as v1\(\.\.\.\) and v2"):
            call("v1")  # type: ignore[operator]


@pytest.mark.parametrize("size", [0, 9, 1.5, True, "4"])
def test_bytes_per_element_is_checked(size: object) -> None:
    with pytest.raises(UsageError, match=r"bytes_per_element: got .*, needed a whole number from 1 to 8"):
        cost(v1(), size)  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------------- text and data


def test_tables_hold_the_figures() -> None:
    lines = {line.split()[0]: line.split() for line in V1.table("layers").splitlines()}
    assert len(lines) == 1 + len(V1.layers)
    assert lines["stem"] == ["stem", "conv", "3x3", "/2", "112x112x32", "10,838,016", "1.91%", "928", "2.21", "MB"]
    assert lines["block12.pointwise"][-7:] == ["7x7x1024", "51,380,224", "9.03%", "1,050,624", "401", "kB", "0.112"]
    blocks = {line.split()[0]: line.split() for line in V1.table("blocks").splitlines()}
    assert len(blocks) == 1 + len(V1.blocks)
    assert blocks["block6"][-3:] == ["52,283,392", "462,422,016", "0.113"]
    kinds = V1.table("kinds").splitlines()
    assert kinds[1].split() == ["pointwise", "539,492,352", "94.86%", "3,151,488", "3,139,584", "74.59%"]
    assert [line.split()[0] for line in kinds[1:]] == ["pointwise", "depthwise", "conv", "dense"]


def test_totals_name_what_they_count() -> None:
    assert V2.table("total").splitlines() == [
        "multiply-adds       300,774,272",
        "parameters            3,504,872  3,469,760 weights; 3,538,984 with moving statistics",
        "activations           6,680,392  26.7 MB if all are kept",
        "peak memory             6.02 MB  layer by layer, at block1.depthwise",
        "                        2.41 MB  with fused blocks, at block0",
        "standard twin     1,224,972,288  multiply-adds; this network needs 0.246 of them",
        "                     11,131,976  parameters; this network has 0.315 of them",
    ]
    assert "standard twin" not in cost(v2(separable=False)).table("total")


def test_text_is_title_layers_and_totals() -> None:
    assert str(V2) == f"{V2.network}\n\n{V2.table('layers')}\n\n{V2.table('total')}"


def test_no_line_of_a_table_is_wider_than_120() -> None:
    for network in [v1(), v2(1.4), v1(4.0, 2048, 100_000), v2(separable=False), *random_members(seed=14, count=5)]:
        for view in VIEWS:
            assert max(map(len, cost(network).table(view).splitlines())) <= 120, (str(network), view)


def test_an_unknown_view_is_named() -> None:
    with pytest.raises(UsageError, match="view: got 'tree', needed one of 'layers', 'blocks', 'kinds', 'total'"):
        V1.table("tree")  # type: ignore[arg-type]


def test_plain_data_holds_every_figure() -> None:
    data = V2.to_dict()
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert (data["macs"], data["params"], data["total_params"]) == (300_774_272, 3_504_872, 3_538_984)
    assert (data["peak_memory"], data["peak_layer"]) == (V2.peak_memory, "block1.depthwise")
    assert (data["fused_peak_memory"], data["fused_peak_block"]) == (V2.fused_peak_memory, "block0")
    assert data["activation_memory"] == data["activations"] * data["bytes_per_element"]
    assert data["standard"]["macs"] == 1_224_972_288
    assert data["standard"]["ratio"] == 300_774_272 / 1_224_972_288
    assert Network.from_dict(data["network"]) == v2()
    assert sum(row["macs"] for row in data["layers"]) == data["macs"]
    assert sum(row["macs"] for row in data["blocks"]) == data["macs"]
    assert sum(row["macs"] for row in data["kinds"].values()) == data["macs"]
    assert [name for row in data["blocks"] for name in row["layers"]] == [row["name"] for row in data["layers"]]
    assert data["blocks"][1]["ratio"] == saving(3, 16)
    assert data["layers"][1] == {
        "name": "block0.depthwise",
        "kind": "depthwise",
        "input": [112, 112, 32],
        "output": [112, 112, 32],
        "kernel": 3,
        "stride": 1,
        "macs": 3_612_672,
        "weights": 288,
        "params": 352,
        "statistics": 64,
        "total_params": 416,
        "activations": 401_408,
        "memory": 3_211_264,
    }
    assert cost(v2(separable=False)).to_dict()["standard"] is None
