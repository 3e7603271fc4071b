"""Frozen graphs of TensorFlow: the model is read with its very numbers, and what is no MobileNet is named."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mobilenet
from mobilenet.arch import Layer, Network, conventions, v1, v2
from mobilenet.convert.frozen_graph import model_of, read
from mobilenet.errors import DataError, ModelError
from mobilenet.formats.protobuf import Fields, encode
from mobilenet.model import Model
from mobilenet.reference import forward, tolerance
from mobilenet.weights import fold
from model_makers import random_model, same_tensors
from small_members import random_pixels

FLOAT, INT32 = 1, 3


class Graph:
    """Writes a GraphDef as TensorFlow does: a node for each operation, constants behind an Identity."""

    def __init__(self) -> None:
        self.nodes: list[Fields] = []

    def node(self, op: str, name: str, inputs: Sequence[str] = (), **attributes: Fields) -> str:
        entries: list[Fields] = [{1: key, 2: value} for key, value in attributes.items()]
        self.nodes.append({1: name, 2: op, 3: list(inputs), 5: entries})
        return name

    def constant(self, name: str, value: np.ndarray) -> str:
        kind = FLOAT if value.dtype == np.float32 else INT32
        shape: Fields = {2: [{1: side} for side in value.shape]}
        tensor: Fields = {1: kind, 2: shape, 4: value.tobytes()}
        self.node("Const", name, dtype={6: kind}, value={8: tensor})
        return self.node("Identity", f"{name}/read", [name])

    def convolution(self, layer: Layer, model: Model, source: str, fused: bool) -> str:
        part = {name.rpartition(".")[2]: model.tensors[name] for name in layer.tensors}
        weight = part["weight"]
        weight = {"depthwise": weight[..., None], "pointwise": weight[None, None]}.get(layer.kind, weight)
        kept = self.constant(f"{layer.name}/weights", np.ascontiguousarray(weight))
        op = "DepthwiseConv2dNative" if layer.kind == "depthwise" else "Conv2D"
        strides = {1: {3: [1, layer.stride, layer.stride, 1]}}
        found = self.node(op, f"{layer.name}/{op}", [source, kept], strides=strides, padding={2: "SAME"})
        if "bias" in part:
            found = self.node(
                "BiasAdd", f"{layer.name}/BiasAdd", [found, self.constant(f"{layer.name}/b", part["bias"])]
            )
        names = ("gamma", "beta", "mean", "variance")
        norm = [self.constant(f"{layer.name}/{name}", part[name]) for name in names]
        epsilon = model.network.conventions.batch_norm_epsilon
        found = self.fused(layer, found, norm, epsilon) if fused else self.unfused(layer, found, norm, epsilon)
        if layer.activation != "linear":
            found = self.node(layer.activation.capitalize(), f"{layer.name}/act", [found])
        return found

    def fused(self, layer: Layer, source: str, norm: list[str], epsilon: float) -> str:
        facts: dict[str, Fields] = {"epsilon": {4: epsilon}, "is_training": {5: 0}}
        return self.node("FusedBatchNormV3", f"{layer.name}/norm", [f"{source}:0", *norm], **facts)

    def unfused(self, layer: Layer, source: str, norm: list[str], epsilon: float) -> str:
        """tf.nn.batch_normalization: x * (rsqrt(variance + epsilon) * gamma) + (beta - mean * that)."""
        gamma, beta, mean, variance = norm
        small = self.constant(f"{layer.name}/epsilon", np.array([epsilon], np.float32))
        sum_ = self.node("Add", f"{layer.name}/add", [variance, small])
        scale = self.node("Mul", f"{layer.name}/mul", [self.node("Rsqrt", f"{layer.name}/rsqrt", [sum_]), gamma])
        shift = self.node("Sub", f"{layer.name}/sub", [beta, self.node("Mul", f"{layer.name}/mul2", [mean, scale])])
        product = self.node("Mul", f"{layer.name}/mul1", [source, scale])
        return self.node("AddV2", f"{layer.name}/add1", [product, shift])


def frozen(model: Model, *, fused: bool = True, open_size: bool = False, mean: bool = False) -> list[Fields]:
    """Returns the nodes of a model as slim lays them out, its summaries' leftovers too."""
    graph, network = Graph(), model.network
    sides = [-1, -1] if open_size else list(network.input[:2])
    shape: Fields = {2: [{1: side} for side in (-1, *sides, network.channels)]}
    source = graph.node("Placeholder", "input", dtype={6: FLOAT}, shape={7: shape})
    outputs: dict[str, str] = {}
    for layer in network.layers:
        if layer.kind == "average_pool" and mean:
            axes = graph.constant("axes", np.array([1, 2], np.int32))
            source = graph.node("Mean", "pool", [source, axes], keep_dims={5: 1})
        elif layer.kind == "average_pool":
            ksize: Fields = {1: {3: [1, *layer.input[:2], 1]}}
            source = graph.node("AvgPool", "pool", [source], ksize=ksize, padding={2: "VALID"}, strides=ksize)
        elif layer.kind == "dense":
            weight = graph.constant("logits/weights", model.tensors["classifier.weight"][None, None])
            strides: Fields = {1: {3: [1, 1, 1, 1]}}
            dropped = graph.node("Identity", "dropout", [source])
            source = graph.node("Conv2D", "logits", [dropped, weight], strides=strides, padding={2: "SAME"})
            bias = graph.constant("logits/biases", model.tensors["classifier.bias"])
            source = graph.node("BiasAdd", "logits/BiasAdd", [source, bias])
        else:
            source = graph.convolution(layer, model, source, fused)
        if layer.adds is not None:
            source = graph.node("Add", f"{layer.name}/sum", [source, outputs[layer.adds]])
        outputs[layer.name] = source
    flat = graph.node("Squeeze", "squeeze", [source])
    size = graph.node("Shape", "shape", [flat])
    graph.node("Reshape", "predictions", [graph.node("Softmax", "softmax", [flat]), size, "^input"])
    graph.node("Const", "unused", value={8: {1: 7}}, dtype={6: 7})
    return graph.nodes


def data(nodes: list[Fields]) -> bytes:
    return encode({1: nodes, 4: {1: 22}})


MEMBERS = [
    v1(0.25, 32, 1001, conventions="slim"),
    v1(0.5, (45, 38), 7, conventions="slim"),
    v2(0.35, 64, 1001, conventions="slim"),
    v2(0.1, 33, 3, conventions="slim"),
    v1(0.1, 32, 2, conventions=conventions("v1", "mlperf_tiny")),
]


@pytest.mark.parametrize("network", MEMBERS, ids=str)
def test_batch_norm_is_kept_as_it_is(network: Network) -> None:
    model = random_model(network)
    back = model_of(data(frozen(model, mean=network.height == 33)))
    assert back.network.layers == network.layers
    assert back.network.conventions.background == (network.classes == 1001)
    assert same_tensors(back.tensors, model.tensors)
    assert back.preprocessing.mean == (127.5,)


@pytest.mark.parametrize("network", MEMBERS[:4], ids=str)
def test_batch_norm_of_single_operations_is_folded(network: Network) -> None:
    model = random_model(network)
    back = model_of(data(frozen(model, fused=False)))
    ours, theirs = fold(network, model.tensors), fold(back.network, back.tensors)
    pixels = random_pixels(network, 1)
    allowed = tolerance(network, model.tensors, pixels, float(np.finfo(np.float32).eps))
    found = forward(back.network, back.tensors, pixels)
    assert (np.abs(found - forward(network, model.tensors, pixels)) <= allowed).all()
    assert all(np.allclose(ours[name], theirs[name], rtol=1e-5, atol=1e-5) for name in ours)


def test_a_file_is_a_source_whatever_its_name(tmp_path: Path) -> None:
    """Its first node may be small, or a large constant: then more bytes of length stand in front."""
    model, path = random_model(v2(0.35, 64, 7, conventions="slim")), tmp_path / "graph"
    nodes = frozen(model)
    for ordered in (nodes, sorted(nodes, key=lambda node: -len(encode(node)))):
        path.write_bytes(data(ordered))
        found = mobilenet.convert(path, labels=[f"class {n}" for n in range(7)])
        assert same_tensors(found.tensors, model.tensors)
        assert found.labels[6] == "class 6"
        assert found.notes["imported"]["from"] == "TensorFlow frozen graph"
    path.write_bytes(path.read_bytes()[:90])
    with pytest.raises(ModelError, match=r"graph: "):
        mobilenet.convert(path)


def test_an_open_size_is_what_the_pooling_says() -> None:
    model = random_model(v1(0.25, 64, 5, conventions="slim"))
    assert model_of(data(frozen(model, open_size=True))).network.height == 64
    with pytest.raises(ModelError, match=r"node 'input'.*height and width are left open"):
        model_of(data(frozen(model, open_size=True, mean=True)))


def test_the_order_of_the_nodes_does_not_matter() -> None:
    model = random_model(v2(0.1, 32, 3, conventions="slim"))
    nodes = frozen(model)
    random.Random(0).shuffle(nodes)
    assert same_tensors(model_of(data(nodes)).tensors, model.tensors)


def test_padding_before_a_convolution_is_taken_into_account() -> None:
    """As slim's use_explicit_padding has it: torch's symmetric padding."""
    model = random_model(v1(0.1, 32, 3, conventions="slim"))
    nodes = frozen(model)
    padded = Graph()
    pads = padded.constant("pads", np.array([[0, 0], [1, 1], [1, 1], [0, 0]], np.int32))
    node: Any
    for index, node in enumerate(nodes):
        kernel = "stem" in str(node[1]) or "depthwise" in str(node[1])
        if node[2] in ("Conv2D", "DepthwiseConv2dNative") and kernel:
            source, *others = node[3]
            pad = padded.node("Pad", f"{node[1]}/pad", [source, pads])
            entries = [{1: entry[1], 2: {2: "VALID"}} if entry[1] == "padding" else entry for entry in node[5]]
            nodes[index] = {**node, 3: [pad, *others], 5: entries}
    assert model_of(data(padded.nodes + nodes)).network.conventions.padding == "symmetric"


# ---------------------------------------------------------------------------------------------------- what is refused


def changed(name: str, **changes: Any) -> bytes:
    """Returns a graph in which one node has another operation (`op`), other inputs, or other attributes."""
    nodes = frozen(random_model(v1(0.1, 32, 3, conventions="slim")))
    index = next(n for n, node in enumerate(nodes) if node[1] == name)
    node = dict(nodes[index])
    node[2] = changes.pop("op", node[2])
    node[3] = changes.pop("inputs", node[3])
    old: Any = node[5]
    node[5] = [entry for entry in old if entry[1] not in changes] + [{1: k, 2: v} for k, v in changes.items()]
    nodes[index] = node
    return data(nodes)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"name": "stem/act", "op": "Elu"}, r"node 'stem/act' \(Elu\): no MobileNet has that operation"),
        ({"name": "stem/act", "op": "Relu"}, "layer 'block0.depthwise.*' has activation relu6, needed is relu"),
        ({"name": "stem/act", "inputs": ["gone"]}, "node 'stem/act'.*takes 'gone', which is not in the graph"),
        ({"name": "stem/norm", "is_training": {5: 1}}, "node 'stem/norm'.*or is in training"),
        ({"name": "stem/norm", "data_format": {2: "NCHW"}}, "node 'stem/norm'.*data format 'NCHW'"),
        ({"name": "stem/norm", "epsilon": {4: 1e-5}}, "different epsilons"),
        ({"name": "stem/norm", "inputs": ["stem/Conv2D"]}, "node 'stem/norm'.*does not follow a convolution"),
        ({"name": "stem/Conv2D", "padding": {2: "EXPLICIT"}}, "node 'stem/Conv2D'.*its padding is 'EXPLICIT'"),
        ({"name": "stem/Conv2D", "data_format": {2: "NCHW"}}, "node 'stem/Conv2D'.*data format 'NCHW'"),
        ({"name": "stem/Conv2D", "strides": {1: {3: [1, 2, 1, 1]}}}, "node 'stem/Conv2D'.*strides .1, 2, 1, 1."),
        ({"name": "stem/Conv2D", "strides": {1: {3: [1, 0, 0, 1]}}}, "node 'stem/Conv2D'.*its stride is 0"),
        ({"name": "stem/Conv2D", "inputs": ["input", "pool"]}, "nothing is computed from an input|is not a constant"),
        ({"name": "pool", "ksize": {1: {3: [1, 2, 2, 1]}}}, r"node 'pool' \(AvgPool\): its filter is"),
        ({"name": "pool", "op": "Relu6"}, r"node 'pool' \(Relu6\): it does not follow a convolution"),
        ({"name": "softmax", "op": "Relu"}, "node 'softmax'.*does not follow a convolution"),
        ({"name": "squeeze", "op": "Softmax"}, None),
        ({"name": "softmax", "inputs": ["pool"]}, "layers|it does not follow the classifier"),
        ({"name": "input", "shape": {7: {2: [{1: 1}, {1: 32}]}}}, "node 'input'.*the input has shape"),
        ({"name": "input", "op": "VariableV2"}, "nothing is computed from an input"),
        ({"name": "stem/gamma", "value": {8: {1: 2}}}, "constant 'stem/gamma' has type 2"),
        ({"name": "stem/gamma", "value": {8: {1: 1, 2: {2: [{1: 9}]}, 4: bytes(8)}}}, "has 2 values for shape"),
        ({"name": "stem/gamma", "value": {8: {1: 1, 4: bytes(7)}}}, "has 7 bytes, not 4 a value"),
        ({"name": "stem/gamma", "value": {8: {1: 1, 2: {2: [{1: 2}]}, 4: bytes(8)}}}, "for each of the"),
    ],
)
def test_a_node_that_does_not_fit_is_named(edit: dict[str, Any], message: str | None) -> None:
    content = changed(edit.pop("name"), **edit)
    if message is None:
        assert model_of(content).network.classes == 3
        return
    with pytest.raises(ModelError, match=message):
        model_of(content)


def constant(value: np.ndarray) -> dict[str, Fields]:
    kind = FLOAT if value.dtype == np.float32 else INT32
    return {"value": {8: {1: kind, 2: {2: [{1: side} for side in value.shape]}, 4: value.tobytes()}}}


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"name": "block0.depthwise/act", "inputs": ["stem/act"]}, "block0.depthwise/act|does not take the result"),
        (
            {"name": "block0.depthwise/act", "op": "Pad", "inputs": ["block0.depthwise/norm", "axes"]},
            "not in the graph",
        ),
        (
            {"name": "block0.depthwise/act", "op": "Mean", "inputs": ["block0.depthwise/norm", "stem/beta"]},
            "other axes",
        ),
        ({"name": "block0.depthwise/act", "op": "MatMul"}, "does not follow the pooling, or is transposed"),
        ({"name": "block0.depthwise/act", "op": "Squeeze"}, "gives .16, 16, 8. another shape before the pooling"),
        ({"name": "block0.depthwise/act", "op": "Mul", "inputs": ["block0.depthwise/norm", "stem/beta"]}, "not follow"),
        ({"name": "block0.depthwise/act", "op": "Add", "inputs": ["block0.depthwise/norm"] * 2}, "an earlier layer or"),
        (
            {"name": "block0.depthwise/act", "op": "Add", "inputs": ["block0.depthwise/norm", "input"]},
            "an earlier layer",
        ),
        (
            {"name": "block0.depthwise/act", "op": "Sub", "inputs": ["stem/beta", "block0.depthwise/norm"]},
            "else than a",
        ),
        ({"name": "stem/norm", "op": "Relu", "inputs": ["input"]}, "nothing is computed|before the first convolution"),
        ({"name": "softmax", "op": "Softmax", "inputs": ["logits/BiasAdd"]}, None),
        ({"name": "predictions", "op": "BiasAdd", "inputs": ["softmax", "logits/biases/read"]}, "it follows a softmax"),
        (
            {"name": "logits/weights", **constant(np.zeros((1, 1, 5, 3), np.float32))},
            "its weight has shape .1, 1, 5, 3",
        ),
        ({"name": "input", "shape": {7: {2: [{1: 1}, {1: 0}, {1: 32}, {1: 3}]}}}, "the input has shape"),
        ({"name": "input", "shape": {7: {2: [{1: 1}, {1: 32}, {1: 32}, {1: 4}]}}}, "its weight has shape"),
        ({"name": "stem/Conv2D", "padding": {2: "VALID"}}, "layer 'stem/Conv2D' has"),
        ({"name": "input", "shape": {7: {2: [{1: 1}, {1: 2}, {1: 2}, {1: 3}]}}}, "layer|filter|its input is .2, 2, 3."),
    ],
)
def test_a_node_in_the_wrong_place_is_named(edit: dict[str, Any], message: str | None) -> None:
    test_a_node_that_does_not_fit_is_named(edit, message)


def test_constants_that_do_not_fit_each_other_are_named() -> None:
    nodes = frozen(random_model(v1(0.1, 32, 3, conventions="slim")), fused=False)
    five = {"dtype": {6: FLOAT}, **constant(np.ones(5, np.float32))}
    entries: list[Fields] = [{1: key, 2: value} for key, value in five.items()]
    wrong = [{**node, 5: entries} if node[1] == "stem/gamma" else node for node in nodes]
    with pytest.raises(ModelError, match=r"node 'stem/mul'.*constants do not fit each other"):
        model_of(data(wrong))


@pytest.mark.parametrize("name", ["_MAX_PATH", "_MAX_COMPUTED"])
def test_the_work_has_limits(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    from mobilenet.convert import frozen_graph
    from mobilenet.formats import tf_graph

    nodes = data(frozen(random_model(v1(0.1, 32, 3, conventions="slim")), fused=False))
    monkeypatch.setattr(frozen_graph, name, 10)
    with pytest.raises(ModelError, match=r"nodes from input to output|computes with large constants"):
        model_of(nodes)
    monkeypatch.setattr(tf_graph, "_MAX_NODES", 10)
    with pytest.raises(ModelError, match="nodes, at most 10 are allowed"):
        model_of(nodes)


def test_padding_otherwise_or_in_another_place_is_named() -> None:
    model = random_model(v1(0.1, 32, 3, conventions="slim"))
    for rows, after, message in (([17, 0], "stem/Conv2D", "pads otherwise"), ([1, 1], "stem/norm", "as only a convol")):
        graph = Graph()
        pads = graph.constant("pads", np.array([[0, 0], rows, [0, 0], [0, 0]], np.int32))
        nodes: list[Any] = [dict(node) for node in frozen(model)]
        target = next(node for node in nodes if node[1] == after)
        target[3] = [graph.node("Pad", "pad", [target[3][0].removesuffix(":0"), pads]), *target[3][1:]]
        with pytest.raises(ModelError, match=message):
            model_of(data(graph.nodes + nodes))


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([], "it has no nodes"),
        ([{1: "a"}], "node 'a' has no operation"),
        ([{1: "a", 2: "Const"}] * 2, "is there twice"),
        ([{1: "x", 2: "Placeholder"}, {1: "a", 2: "Mul", 3: ["a", "x"]}, {1: "b", 2: "Relu", 3: ["a"]}], "themselves"),
    ],
)
def test_graphs_of_something_else_are_refused_by_name(tmp_path: Path, nodes: list[Fields], message: str) -> None:
    (tmp_path / "x.pb").write_bytes(data(nodes))
    with pytest.raises(ModelError, match=f"x.pb: .*{message}"):
        read(tmp_path / "x.pb")


def test_a_constant_of_one_value_takes_no_memory() -> None:
    """TensorFlow writes a constant of equal values as one; a hostile shape may be any."""
    one = {1: 1, 2: {2: [{1: 1 << 20}, {1: 1 << 11}]}, 5: [0.5]}
    with pytest.raises(ModelError, match="'stem/weights' has 1 values for shape"):
        model_of(changed("stem/weights", value={8: one}))
    model = random_model(v1(0.1, 32, 3, conventions="slim"))
    model.tensors["stem.gamma"][:] = 0.5
    same = {1: 1, 2: {2: [{1: 8}]}, 5: [0.5]}
    assert (model_of(changed("stem/gamma", value={8: same})).tensors["stem.gamma"] == 0.5).all()


def test_weights_that_are_not_finite_are_refused() -> None:
    model = random_model(v1(0.1, 32, 3, conventions="slim"))
    model.tensors["stem.mean"][0] = np.inf
    with pytest.raises(ModelError, match=r"'stem.mean' holds NaN or infinity"):
        model_of(data(frozen(model)))


def test_any_damage_is_a_result_or_a_refusal() -> None:
    good = data(frozen(mobilenet.create(v1(0.1, 32, 2, conventions="slim"))))
    generator = random.Random(0)
    outcomes = set()
    for _ in range(60):
        place = generator.randrange(len(good))
        damaged = good[:place] + bytes([generator.choice((0, 1, 0x7F, 0xFF))]) + good[place + 1 :]
        try:
            model_of(damaged[: generator.choice((None, place))])
            outcomes.add("read")
        except DataError as error:
            outcomes.add(str(error)[:40])
    assert len(outcomes) > 5
