"""TFLite's whole-number arithmetic on vectors, and the use of models of integer TFLite files, compiled."""

import os
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import mobilenet
from compiler_tools import UNICORN, guarded_copy, guarded_floats
from int8_makers import random_bytes, random_int8_model
from mobilenet import cli, fixed_point, integer, photos
from mobilenet.arch import v1
from mobilenet.common.frozen import frozen
from mobilenet.compiler import native, pack, store
from mobilenet.compiler.build import build
from mobilenet.compiler.driver import DRIVE
from mobilenet.compiler.emulator import Emulator
from mobilenet.compiler.kernel import Kernel
from mobilenet.compiler.loader import Code as Loaded
from mobilenet.compiler.native import NativeEngine
from mobilenet.compiler.targets import TARGETS, Target, runnable
from mobilenet.convert.tflite import read
from mobilenet.errors import UsageError
from mobilenet.export import export
from mobilenet.quantized import Rescale
from mobilenet.runner import runner

if TYPE_CHECKING:
    from mobilenet.compiler.ir import Code

DATA = os.environ.get("MOBILENET_DATA")
NETWORK = v1(0.1, 32, 5)
TESTED = (*runnable(), *([TARGETS["neon"], TARGETS["neondot"]] if UNICORN else ()))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(store.ENVIRONMENT, str(tmp_path_factory.getbasetemp() / "code"))
    for module in (native, pack):
        monkeypatch.setattr(module, "aligned", guarded_floats)


@pytest.fixture(params=TESTED, ids=lambda target: target.name)
def target(request: pytest.FixtureRequest) -> Target:
    return request.param


# ------------------------------------------------------------------------------------------ arithmetic, on vectors


@frozen
class Arithmetic(Kernel):
    """Is a word of `FixedPoint`, of vectors begin..end of values, each with its rows of parameters."""

    word: str

    @property
    def parameters(self) -> int:
        """None of a network."""
        return 0

    def emit(self, code: "Code") -> None:
        """Writes the kernel."""
        count = {"mean": 0, "rescaled_once": 2}.get(self.word, 3)
        source, out = (part.shaped(code.lanes, numbers="i32") for part in (code.source, code.out))
        rows = code.parameters.shaped(3 * code.lanes, code.lanes, numbers="i32")

        def vector(i: Any) -> None:
            constants = [rows.at(i, n).load() for n in range(count)]
            arguments = [7] if self.word == "mean" else constants
            out.at(i).store(getattr(code.fixed, self.word)(source.at(i).load(), *arguments))

        code.loop(code.begin, code.end, 1, vector)


def computed(word: str, target: Target, values: NDArray[np.int64], rows: list[NDArray[np.int64]]) -> NDArray[np.int32]:
    """Returns what compiled code makes of values with a row of parameters each."""
    kernel, lanes = Arithmetic(word), target.lanes
    image, functions = build([kernel], target, workers=1)
    source = values.astype(np.int32)
    packed = np.stack([*rows, *[values] * (3 - len(rows))]).astype(np.uint32).view(np.int32)
    packed = np.ascontiguousarray(packed.reshape(3, -1, lanes).transpose(1, 0, 2))
    count = len(values) // lanes
    if target not in runnable():
        machine = Emulator(target)
        code = machine.map(image, "rx")
        places = [machine.map(array.tobytes(), "rw") for array in (np.zeros_like(source), source, packed)]
        call = np.array([code + functions[repr(kernel)], *places, 0, 0, count], np.int64)
        machine.call(code + functions[DRIVE], machine.map(call.tobytes(), "r"), 1)
        return np.frombuffer(machine.read(places[0], source.nbytes), np.int32)
    loaded = Loaded(image, functions)
    arrays = [guarded_copy(array) for array in (np.zeros_like(source), source, packed)]
    call = np.array([loaded.address[repr(kernel)], *(array.ctypes.data for array in arrays), 0, 0, count], np.int64)
    loaded.function(DRIVE)(call.ctypes.data, 1)
    return arrays[0]


def every_case() -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Returns values, multipliers and shifts: ties of both roundings, the largest there can be, and random ones."""
    generator = np.random.default_rng(0)
    top = (1 << 31) - 1
    values = np.array([0, 1, -1, 2, -2, 3, -3, 7, -7, 255, -255, 1 << 20, -(1 << 20), 1 << 30, -(1 << 30), top, -top,
                       *generator.integers(-top, top, 20), *generator.integers(-300, 300, 20)])  # fmt: skip
    multipliers = np.array([0, 1 << 30, (1 << 30) + 1, 3 << 29, top, 1387987883])
    grid = np.meshgrid(values, multipliers, np.arange(-31, 31), indexing="ij")
    values, multipliers, shifts = (part.ravel() for part in grid)
    kept = np.abs(values) << np.maximum(shifts, 0) <= top
    return tuple(part[kept][: kept.sum() // 16 * 16] for part in (values, multipliers, shifts))  # type: ignore[return-value]


def test_vectors_are_rescaled_as_numbers_are(target: Target) -> None:
    values, multiplier, shift = every_case()
    left, right = np.maximum(shift, 0), np.maximum(-shift, 0)
    expected = fixed_point.rescaled(values, multiplier, shift)
    np.testing.assert_array_equal(computed("rescaled", target, values, [left, multiplier, right]), expected)
    once = fixed_point.rescaled_once(values, multiplier, shift)
    np.testing.assert_array_equal(computed("rescaled_once", target, values, [multiplier, 30 - shift]), once)
    np.testing.assert_array_equal(computed("mean", target, values, []), fixed_point.mean(values, 7))
    where = np.flatnonzero(shift <= 0)[: (shift <= 0).sum() // 16 * 16]
    rows = [2 * multiplier, (1 << right) >> 1, right]
    up = computed("rescaled_up", target, values[where], [row[where] for row in rows])
    np.testing.assert_array_equal(up, np.maximum(expected[where], 0))


# --------------------------------------------------------------------------------------------------------------- use


@pytest.mark.parametrize("rescale", ["fixed", "full"])
def test_such_models_run_compiled_by_default(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rescale: Rescale
) -> None:
    model = random_int8_model(NETWORK, 1, rescale, labels=[*"abcde"])
    assert isinstance(runner(model), NativeEngine)
    pixels = random_bytes(model.network, 1)
    expected = integer.forward(model.network, model.tensors, pixels)
    np.testing.assert_array_equal(model.compile(precision="int8")(pixels), expected)
    model.save(tmp_path / "model")
    folder = tmp_path / "photos"
    for label in "ab":
        (folder / label).mkdir(parents=True)
        Image.fromarray(pixels[0]).save(folder / label / "photo.png")
    for command in (["compile"], ["bench", "--seconds", "0.1"], ["predict", str(folder)], ["evaluate", str(folder)]):
        assert cli.main([command[0], str(tmp_path / "model"), *command[1:]]) == 0, command
        capsys.readouterr()
    assert [int(each.label == mobilenet.load(tmp_path / "model").labels[expected.argmax()])
            for each in model.predict(pixels)] == [1]  # fmt: skip


@pytest.mark.parametrize(("name", "what"), [("m.onnx", "onnx"), ("m.tflite", "tflite")])
def test_exports_of_such_models_are_refused(tmp_path: Path, name: str, what: str) -> None:
    model = random_int8_model(NETWORK, 1, "fixed")
    with pytest.raises(UsageError, match=f"{what}: the model computes as the TFLite file|{what}: the model is int8"):
        export(model, tmp_path / name)
    assert not (tmp_path / name).exists()


@pytest.mark.skipif(DATA is None, reason="MOBILENET_DATA is not set")
@pytest.mark.parametrize("name", ["mobilenet_v1_0.25_128_quant", "mobilenet_v2_1.0_224_quant", "vww_96_int8"])
@pytest.mark.parametrize("rescale", ["fixed", "full"])
def test_real_files_give_the_references_bits(name: str, rescale: Rescale) -> None:
    model = read(Path(str(DATA)) / "models" / f"{name}.tflite", rescale=rescale)
    with zipfile.ZipFile(Path(str(DATA)) / "photos.zip") as archive:
        names = [name for name in archive.namelist() if name.endswith("JPEG")][::80]
        pixels = np.stack([photos.pixels(archive.read(name), model.preprocessing) for name in names])
    np.testing.assert_array_equal(runner(model)(pixels), integer.forward(model.network, model.tensors, pixels))
