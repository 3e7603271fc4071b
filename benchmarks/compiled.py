"""Times the compiled engine against ONNX Runtime on the same weights, in one process, in turns.

    python benchmarks/compiled.py [--family v2] [--alpha 1] [--resolution 224] [--threads 1] [--rounds 9] [--json FILE]

Both are checked against each other before anything is timed. Every round times one after the other, and beside them a
loop of multiply-adds in registers: the share of the machine's peak is of what it does at that moment. The figure of a
round is the fastest of its calls; the result is the median over the rounds.
"""

import argparse
import ctypes
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from mobilenet import arch, weights
from mobilenet.compiler import ir
from mobilenet.compiler.build import compile_text
from mobilenet.compiler.link import link
from mobilenet.compiler.loader import Code
from mobilenet.compiler.native import NativeEngine
from mobilenet.compiler.targets import Target, choose
from mobilenet.cost import cost
from mobilenet.model import Model, create

Pixels = NDArray[np.float32]


def onnx_model(model: Model) -> bytes:
    """Returns the model as ONNX, [N, C, H, W] scaled pixels to logits, batch norm folded."""
    network, folded = model.network, weights.fold(model.network, model.tensors)
    nodes, constants, name = [], [], "pixels"

    def constant(label: str, array: NDArray[Any]) -> str:
        constants.append(numpy_helper.from_array(np.ascontiguousarray(array), label))
        return label

    for layer in network.layers:
        out = layer.name
        if layer.kind in ("average_pool", "max_pool"):
            kind = "GlobalAveragePool" if layer.kind == "average_pool" else "GlobalMaxPool"
            nodes += [
                helper.make_node(kind, [name], [f"{out}:map"]),
                helper.make_node("Flatten", [f"{out}:map"], [out]),
            ]
            name = out
            continue
        weight, bias = folded[f"{out}.weight"], constant(f"{out}.bias", folded[f"{out}.bias"])
        if layer.kind == "dense":
            nodes.append(helper.make_node("Gemm", [name, constant(f"{out}.weight", weight), bias], [out]))
            name = out
            continue
        if layer.kind == "depthwise":
            weight = weight.transpose(2, 0, 1)[:, None]
        else:
            weight = weight.reshape(layer.kernel, layer.kernel, *weight.shape[-2:]).transpose(3, 2, 0, 1)
        (top, bottom), (left, right) = layer.padding
        group = layer.output.channels if layer.kind == "depthwise" else 1
        inputs = [name, constant(f"{out}.weight", weight), bias]
        attributes = {
            "group": group,
            "strides": [layer.stride] * 2,
            "pads": [top, left, bottom, right],
            "kernel_shape": [layer.kernel] * 2,
        }
        name = f"{out}:sum"
        nodes.append(helper.make_node("Conv", inputs, [name], **attributes))
        if layer.activation == "relu6":
            limits = [constant(f"{out}:{x}", np.float32(x)) for x in (0, 6)]
            nodes.append(helper.make_node("Clip", [name, *limits], [f"{out}:act"]))
            name = f"{out}:act"
        elif layer.activation == "relu":
            nodes.append(helper.make_node("Relu", [name], [f"{out}:act"]))
            name = f"{out}:act"
        last = (
            helper.make_node("Add", [name, layer.adds], [out])
            if layer.adds
            else helper.make_node("Identity", [name], [out])
        )
        nodes.append(last)
        name = out
    shape = ["N", network.channels, network.height, network.width]
    pixels = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, shape)
    result = helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", network.output.channels])
    graph = helper.make_graph(nodes, "mobilenet", [pixels], [result], constants)
    built = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(built)
    return bytes(built.SerializeToString())


def rival(model: Model, threads: int) -> Callable[[Pixels], NDArray[np.float32]]:
    """Returns ONNX Runtime's function of scaled pixels."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(onnx_model(model), options, providers=["CPUExecutionProvider"])
    return lambda pixels: session.run(None, {"pixels": pixels})[0]


def peak(target: Target) -> Callable[[], float]:
    """Returns a function that measures multiply-adds per second of one thread: chains in registers, no memory."""
    chains, rounds = target.registers - 4, 20000
    code = ir.Code("peak", target)
    sums = [code.out.at(n * target.lanes).load() for n in range(chains)]
    factor = code.source.broadcast()
    sums = code.loop(0, code.end, 1, lambda i, *values: [code.fma(v, factor, factor) for v in values], sums)
    for n, value in enumerate(sums):
        code.out.at(n * target.lanes).store(value)
    image, (offset,) = link([("peak", compile_text(code.finish(), target))])
    loaded = Code(image, {"peak": offset})
    function = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 4, *[ctypes.c_int64] * 2)(loaded.address["peak"])
    memory = np.zeros(4096, np.float32)
    start = memory.ctypes.data + -memory.ctypes.data % 64

    def measure() -> float:
        assert loaded
        assert memory.size
        seconds = best(lambda: function(start, start, start, start, 0, rounds), 5, time.thread_time)
        return chains * target.lanes * rounds / seconds

    return measure


def best(call: Callable[[], object], times: int, clock: Callable[[], float] = time.perf_counter) -> float:
    """Returns the seconds of the fastest of some calls."""
    found = float("inf")
    for _ in range(times):
        start = clock()
        call()
        found = min(found, clock() - start)
    return found


def main() -> None:
    """Runs the benchmark and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", choices=("v1", "v2"), default="v2")
    parser.add_argument("--alpha", type=float, default=1.0)
    parser.add_argument("--resolution", type=int, default=224)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--calls", type=int, default=10)
    parser.add_argument("--target")
    parser.add_argument("--no-fusion", action="store_true")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    make = arch.v1 if given.family == "v1" else arch.v2
    model = create(make(given.alpha, given.resolution), seed=0)
    ours = NativeEngine(model, given.threads, target=given.target, fuse=not given.no_fusion)
    theirs = rival(model, given.threads)
    pixels = np.random.default_rng(0).integers(0, 256, (1, *model.network.input), dtype=np.uint8)
    mean, std = (np.asarray(part, np.float32) for part in (model.preprocessing.mean, model.preprocessing.std))
    scaled = np.ascontiguousarray(((pixels - mean) / std).transpose(0, 3, 1, 2))
    expected, found = theirs(scaled), ours(pixels)
    if np.abs(expected - found).max() > 1e-4 * np.abs(expected).max():
        raise SystemExit(f"wrong by {np.abs(expected - found).max()}: nothing is timed")
    # One thread's own processor time is the same however busy the machine is; several must be timed by the wall.
    clock = time.thread_time if given.threads == 1 else time.perf_counter
    measure = peak(choose(given.target))
    rounds = [
        (best(lambda: ours(pixels), given.calls, clock), best(lambda: theirs(scaled), given.calls, clock), measure())
        for _ in range(given.rounds)
    ]
    mine, other, peaks = (statistics.median(column) for column in zip(*rounds, strict=True))
    macs = cost(model.network).macs
    result = {
        "network": str(model.network),
        "machine": f"{platform.processor() or platform.machine()}, target {ours.plan.target.name}",
        "threads": given.threads,
        "ours_ms": 1e3 * mine,
        "onnxruntime_ms": 1e3 * other,
        "ratio": statistics.median(a / b for a, b, _ in rounds),
        "ratio_spread": [min(a / b for a, b, _ in rounds), max(a / b for a, b, _ in rounds)],
        "peak_gmacs": peaks / 1e9,
        "share_of_peak": statistics.median(macs / a / p / given.threads for a, _, p in rounds),
    }
    for key, value in result.items():
        print(f"{key:16} {value if not isinstance(value, float) else round(value, 4)}")
    if given.json:
        given.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
