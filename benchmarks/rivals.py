"""What is compared: our engine and six rivals, each at its best setting, all on the same weights and pixels.

A side is made for a `Job` and called without arguments. Its input lies where it wants it before it is called, scaled;
only our engine scales the pixels itself within its time. Shapes are fixed for every rival. Where a rival has a choice,
the one that was faster here is taken; what was tried stands beside it.
"""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mobilenet import arch
from mobilenet.errors import UsageError
from mobilenet.export.onnx import onnx
from mobilenet.export.tflite import tflite
from mobilenet.model import Model
from mobilenet.quantization.quantize import quantize
from mobilenet.quantization.sweep import Choices

Logits = NDArray[np.float32]


class Unavailable(Exception):
    """Says why a side can't do a job here."""


@dataclass(frozen=True)
class Job:
    """Is what a side is to do: a batch of a network's images, on a number of threads.

    Attributes:
        precision: "f32", "bf16" or "int8".
    """

    network: arch.Network
    threads: int = 1
    batch: int = 1
    precision: str = "f32"

    @cached_property
    def model(self) -> Model:
        """The network with random weights that keep activations of one size, and reach the activations' clamps.

        For int8 it is quantised on the two images, the quick way: speed does not depend on how weights were rounded.
        Its rescale is the default, so that rivals run what users export.
        """
        model = Model(self.network, tensors(self.network))
        if self.precision != "int8":
            return model
        return quantize(model, _images(self.network), Choices("minmax", compensate=False)).model

    @cached_property
    def pixels(self) -> NDArray[np.uint8]:
        """uint8 [batch, height, width, channels]: two images in turns."""
        return np.resize(_images(self.network), (self.batch, *self.network.input))

    @cached_property
    def scaled(self) -> NDArray[Any]:
        """The pixels as the rivals' first layer sees them, [batch, height, width, channels]; as they are for int8."""
        if self.precision == "int8":
            return self.pixels
        mean, std = (np.asarray(part, np.float32) for part in arch.SCALINGS[self.network.conventions.scaling])
        return np.asarray((self.pixels - mean) / std, np.float32)

    @cached_property
    def planes(self) -> NDArray[Any]:
        """The scaled pixels as [batch, channels, height, width]."""
        return np.ascontiguousarray(self.scaled.transpose(0, 3, 1, 2))


def _images(network: arch.Network) -> NDArray[np.uint8]:
    return np.random.default_rng(1).integers(0, 256, (2, *network.input), np.uint8)


def tensors(network: arch.Network) -> dict[str, NDArray[np.float32]]:
    """Returns random tensors with batch norms far from the identity; the same for a network on every machine."""
    random = np.random.default_rng(0)
    draw: dict[str, Callable[[tuple[int, ...]], NDArray[Any]]] = {
        "weight": lambda shape: random.normal(0, np.prod(shape[:-1]) ** -0.5, shape),
        "gamma": lambda shape: random.uniform(1.5, 3, shape),
        "variance": lambda shape: random.uniform(1, 5, shape),
        "beta": lambda shape: random.normal(1, 1, shape),
        "mean": lambda shape: random.normal(0, 1, shape),
        "bias": lambda shape: random.normal(0, 1, shape),
    }
    return {name: draw[name.rpartition(".")[2]](shape).astype(np.float32) for name, shape in network.tensors.items()}


class Side:
    """Is what takes part: made for a job, called to do it.

    Attributes:
        package: what runs, as pip knows it.
        precisions: that it can do.
        slow_to_make: it takes so long that not all batches are tried.
        settings: what was chosen, for the results.
    """

    package: ClassVar[str]
    precisions: ClassVar[tuple[str, ...]] = ("f32",)
    slow_to_make: ClassVar[bool] = False
    settings: Mapping[str, object]

    def __init__(self, job: Job) -> None:
        """Makes everything ready; raises `Unavailable` where it can't do the job."""
        raise NotImplementedError

    def __call__(self) -> Logits:
        """Returns the logits [batch, classes]; valid until the next call."""
        raise NotImplementedError


class Ours(Side):
    """Is the compiled engine; its time includes scaling the uint8 pixels."""

    package = "mobilenet"
    precisions = ("f32", "bf16", "int8")

    def __init__(self, job: Job) -> None:
        from mobilenet.compiler.native import NativeEngine
        from mobilenet.compiler.targets import choose

        self._engine: Callable[[NDArray[np.uint8]], Logits]
        if hasattr(job.model, "compile"):
            try:
                self._engine = job.model.compile(precision=job.precision, threads=job.threads)
            except UsageError as error:
                raise Unavailable(str(error)) from None
        elif job.precision == "f32":
            self._engine = NativeEngine(job.model, job.threads)
        else:
            raise Unavailable(f"no {job.precision} engine yet")
        self._pixels = job.pixels
        self.settings = {"target": choose(None).name}

    def __call__(self) -> Logits:
        return np.asarray(self._engine(self._pixels))


class OnnxRuntime(Side):
    """Is ONNX Runtime with all graph optimisations, which lay tensors out in blocks of channels; its threads spin."""

    package = "onnxruntime"
    precisions = ("f32", "int8")

    def __init__(self, job: Job) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = job.threads, 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.add_session_config_entry("session.intra_op.allow_spinning", "1")
        options.add_free_dimension_override_by_name("N", job.batch)
        file = onnx(job.model)
        self._session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        self._inputs = {"image": job.planes}
        self.settings = {"graph_optimization_level": "all", "allow_spinning": 1}

    def __call__(self) -> Logits:
        return np.asarray(self._session.run(None, self._inputs)[0])


class OpenVino(Side):
    """Is OpenVINO with the latency hint, one stream and the precision forced; it reads ONNX.

    Of int8 it makes integer layers whatever the hint, which is for the rest.
    """

    package = "openvino"
    precisions = ("f32", "bf16", "int8")

    def __init__(self, job: Job) -> None:
        import openvino

        core = openvino.Core()
        wanted = "bf16" if job.precision == "bf16" else "f32"
        properties = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            "INFERENCE_NUM_THREADS": str(job.threads),
            "INFERENCE_PRECISION_HINT": wanted,
        }
        read = core.read_model(onnx(job.model))
        read.reshape(list(job.planes.shape))
        compiled = core.compile_model(read, "CPU", properties)
        found = str(compiled.get_property("INFERENCE_PRECISION_HINT").to_string())
        if found != wanted:
            raise Unavailable(f"computes in {found} here")
        self._request = compiled.create_infer_request()
        self._pixels = job.planes  # shared with the request, not copied
        self._request.set_input_tensor(openvino.Tensor(self._pixels, shared_memory=True))
        self._logits = self._request.get_output_tensor().data
        self.settings = properties

    def __call__(self) -> Logits:
        self._request.infer()
        return np.asarray(self._logits)


class LiteRt(Side):
    """Is LiteRT with its default delegate, XNNPACK."""

    package = "ai-edge-litert"
    precisions = ("f32", "int8")

    def __init__(self, job: Job) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self._interpreter = Interpreter(model_content=tflite(job.model), num_threads=job.threads)
        image = self._interpreter.get_input_details()[0]["index"]
        self._interpreter.resize_tensor_input(image, job.scaled.shape)
        self._interpreter.allocate_tensors()
        self._interpreter.set_tensor(image, job.scaled)
        self._output = self._interpreter.get_output_details()[0]["index"]
        self.settings = {"delegate": "XNNPACK"}

    def __call__(self) -> Logits:
        self._interpreter.invoke()
        return np.asarray(self._interpreter.get_tensor(self._output))


class Ncnn(Side):
    """Is ncnn on the processor; a batch is one image after the other."""

    package = "ncnn"
    precisions = ("f32", "bf16")

    def __init__(self, job: Job) -> None:
        import ncnn
        from formats import ncnn_files

        self._net = ncnn.Net()
        self._blobs, self._workspace = ncnn.UnlockedPoolAllocator(), ncnn.PoolAllocator()  # as its own benchmark does
        self._net.opt.blob_allocator, self._net.opt.workspace_allocator = self._blobs, self._workspace
        self._net.opt.num_threads = job.threads
        self._net.opt.use_vulkan_compute = False
        self._net.opt.use_bf16_storage = job.precision == "bf16"
        for name in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic"):
            setattr(self._net.opt, name, False)
        text, data = ncnn_files(job.model)
        with tempfile.TemporaryDirectory() as folder:
            param, weights = Path(folder, "net.param"), Path(folder, "net.bin")
            param.write_text(text)
            weights.write_bytes(data)
            if self._net.load_param(str(param)) or self._net.load_model(str(weights)):
                raise Unavailable("ncnn can't read its own format as written by formats.py")
        self._images = [ncnn.Mat(image).clone() for image in job.planes]
        self.settings = {"winograd": True, "sgemm": True, "packing_layout": True, "allocators": "pools"}

    def __call__(self) -> Logits:
        return np.stack([self._run(image) for image in self._images])

    def _run(self, image: Any) -> Logits:
        extractor = self._net.create_extractor()
        extractor.input("pixels", image)
        return np.array(extractor.extract("logits")[1], np.float32)


class TorchEager(Side):
    """Is PyTorch as it stands: batch norm folded, channels_last, inference mode.

    The papers' padding is no padding of its convolutions, and a pass of its own at each strided layer: 2% of V2 1.0 224
    at most, measured against the same network with torch's padding.
    """

    package = "torch"
    precisions = ("f32", "bf16")

    def __init__(self, job: Job) -> None:
        import torch
        from torch_folded import Folded

        self._torch, self._threads = torch, job.threads
        torch.set_num_threads(job.threads)
        kind = {"f32": torch.float32, "bf16": torch.bfloat16}[job.precision]
        module: Any = Folded(job.model).eval().to(kind)
        self._module = module.to(memory_format=torch.channels_last)
        pixels = torch.from_numpy(job.planes)
        self._pixels = pixels.to(memory_format=torch.channels_last, dtype=kind)
        self._mode = torch.inference_mode
        self._run: Callable[[Any], Any] = torch.fx.symbolic_trace(self._module)
        self.settings = {"memory_format": "channels_last", "inference_mode": True}

    def __call__(self) -> Logits:
        with self._mode():
            return np.asarray(self._run(self._pixels).float().numpy())


class TorchCompiled(TorchEager):
    """Is torch.compile with inductor: freezing, which lays the weights out once, and calls from C++, not Python.

    Measured for V2 1.0 224: 14.8 ms with both, 16.8 without freezing; for V2 0.35 96: 4.1 ms with both, 6.1 without the
    calls from C++. No difference: channels first, pointwise layers as matrix products.
    """

    slow_to_make = True

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        inductor: Any = self._torch._inductor.config
        inductor.freezing = inductor.cpp_wrapper = True
        self._mode = self._torch.no_grad  # freezing knows no other
        self._torch._dynamo.reset()
        self._run = self._torch.compile(self._run, dynamic=False)
        self.settings = {**self.settings, "backend": "inductor", "freezing": True, "cpp_wrapper": True}
        self()


SIDES: dict[str, type[Side]] = {
    "ours": Ours,
    "ONNX Runtime": OnnxRuntime,
    "OpenVINO": OpenVino,
    "LiteRT": LiteRt,
    "ncnn": Ncnn,
    "PyTorch": TorchEager,
    "PyTorch compiled": TorchCompiled,
}
