"""Exported machine code of int8 models: the integer reference's bits, on every kind of processor; weights beside it."""

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import pytest

import mobilenet
from c_programs import BOARDS, LINUX, needs_zig, run_on_board, run_on_linux
from int8_makers import random_bytes, random_int8_model
from members import DEEP, random_members
from mobilenet import integer, photos
from mobilenet.arch import SCALINGS, v1, v2
from mobilenet.common.frozen import frozen
from mobilenet.compiler import build, link
from mobilenet.compiler.emulator import Emulator
from mobilenet.compiler.kernel import Kernel
from mobilenet.compiler.native import integers
from mobilenet.compiler.targets import DEVICES, TARGETS, Target
from mobilenet.cost import cost
from mobilenet.errors import GateError, UsageError
from mobilenet.export import native, native_run
from mobilenet.export.native import NAMES, export
from mobilenet.model import Model
from mobilenet.quantized import Rescale

UNICORN = importlib.util.find_spec("unicorn") is not None
NODE = shutil.which("node") is not None


@cache
def small() -> Model:
    """A model with shortcuts, three zero points of the pixels, and channels that don't fill a word."""
    return random_int8_model(v2(0.1, (33, 40), 3), 3)


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Returns what exports the small model as "model" for a target, once for all tests, and returns the folder."""

    @cache
    def folder(target: str, weights: str = "inside") -> Path:
        path = tmp_path_factory.mktemp(target)
        found = export(small(), path / "model", target=target, weights=weights)
        assert (path / "model.weights").exists() == (weights == "beside")
        assert all(Path(name).stat().st_size == size for name, size in found.files.items())
        can_run = NODE if target == "wasm" else UNICORN or target in ("host", "sse")
        assert found.difference == (0.0 if can_run else None)
        assert ("bit by bit" in found.checked) == can_run
        return path

    return folder


def check(found: np.ndarray, pixels: np.ndarray) -> None:
    expected = integer.forward(small().network, small().tensors, pixels[None])[0]
    np.testing.assert_array_equal(found, expected)


def pixels_of(seed: int) -> np.ndarray:
    return random_bytes(small().network, 1, seed)[0]


@pytest.mark.parametrize("target", ["host", "aarch64", "cortex-m", "riscv64", "wasm"])
def test_what_is_exported_has_been_run(target: str, folder_of: Callable[..., Path]) -> None:
    assert folder_of(target)


@pytest.mark.parametrize("target", NAMES if DEEP else ["sse", "armv7", "cortex-m", "wasm"])
@pytest.mark.parametrize("rescale", ["fixed", "full"] if DEEP else ["fixed"])
def test_models_that_compute_as_tflite_does(target: str, rescale: Rescale, tmp_path: Path) -> None:
    """Their sums of 64 bits stay so where addresses have 32; weights of nine bits are packed as eight."""
    model = random_int8_model(v2(0.1, (33, 40), 3), 3, rescale)
    assert integers(model.network, model.tensors).nine
    ending = "wasm" if target == "wasm" else "o"
    found = mobilenet.export(model, tmp_path / f"model.{ending}", target=target)
    assert ("bit by bit" in found.checked) == (NODE if target == "wasm" else UNICORN or target in ("host", "sse"))


@pytest.mark.parametrize("target", NAMES if DEEP else ["sse", "cortex-m"])
@pytest.mark.parametrize("rescale", ["fixed", "full"] if DEEP else ["full"])
def test_probabilities(target: str, rescale: Rescale, tmp_path: Path) -> None:
    """Logits are the same bits, so only the roundings of exp, its argument and the sum remain."""
    model = random_int8_model(v1(0.1, 32, 9), 3, rescale)
    found = mobilenet.export(model, tmp_path / "model", "native", target=target, softmax=True)
    if found.difference is None:
        pytest.skip("what runs it is not installed")
    assert 0 < found.difference < 1e-6


@needs_zig
@pytest.mark.parametrize("target", LINUX if DEEP else ["sse", "aarch64", "riscv64"])
def test_linked_into_a_c_program(target: str, tmp_path: Path, folder_of: Callable[..., Path]) -> None:
    check(run_on_linux(target, folder_of(target), tmp_path / "run", pixels_of(1)), pixels_of(1))


@needs_zig
@pytest.mark.parametrize("target", ["sse", "armv7"])
def test_a_c_program_that_says_where_the_weights_are(
    target: str, tmp_path: Path, folder_of: Callable[..., Path]
) -> None:
    check(run_on_linux(target, folder_of(target, "beside"), tmp_path / "run", pixels_of(2)), pixels_of(2))


@needs_zig
@pytest.mark.parametrize("board", BOARDS)
def test_on_a_microcontroller(board: str, tmp_path: Path, folder_of: Callable[..., Path]) -> None:
    check(run_on_board(board, folder_of("cortex-m"), tmp_path, pixels_of(3)), pixels_of(3))


def test_weights_beside_are_in_no_other_file(folder_of: Callable[..., Path]) -> None:
    folder = folder_of("sse", "beside")
    weights, whole = (folder / "model.weights").read_bytes(), folder_of("sse") / "model.o"
    assert weights in whole.read_bytes()
    assert whole.stat().st_size > len(weights) + (folder / "model.o").stat().st_size - 1000
    header = (folder / "model.h").read_text()
    assert f"#define MOBILENET_WEIGHTS_BYTES {len(weights)}\n#define MOBILENET_WEIGHTS_ALIGNMENT 64\n" in header
    assert "mobilenet_run(const uint8_t *input, float *output, void *scratch, const void *weights);" in header
    assert ", int8, for any x86-64 Linux" in header
    assert "weights" not in (folder_of("sse") / "model.h").read_text()


@pytest.mark.skipif(not NODE, reason="needs node")
def test_the_loader_fetches_the_weights(folder_of: Callable[..., Path]) -> None:
    folder = folder_of("wasm", "beside")
    assert (folder / "model.wasm").stat().st_size < (folder_of("wasm") / "model.wasm").stat().st_size
    script = (
        "const m = await import(process.argv[1]); const other = new Uint8Array(5);"
        "try { await m.load(undefined, other) } catch (e) { console.log(e.name, e.message) }"
    )
    command = ["node", "--input-type=module", "--eval", script, str(folder / "model.mjs")]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert out == f"RangeError weights: got 5 bytes, needed {(folder / 'model.weights').stat().st_size}\n"


@pytest.mark.parametrize("target", ["cortex-m", "riscv64", "aarch64"])
def test_nothing_is_needed_from_elsewhere(target: str, folder_of: Callable[..., Path]) -> None:
    """The linker refuses what is; binutils see no undefined symbol but the empty first one."""
    data = (folder_of(target) / "model.o").read_bytes()
    assert link.link([("mobilenet_run", data)])
    if shutil.which("readelf"):
        command = ["readelf", "--symbols", "--wide", str(folder_of(target) / "model.o")]
        assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.count(" UND ") == 1


@pytest.mark.parametrize("target", ["sse", *DEVICES] if DEEP else ["armv7"])
def test_random_members(target: str, tmp_path: Path) -> None:
    if not (NODE if target == "wasm" else UNICORN or target == "sse"):
        pytest.skip("what runs it is not installed")
    members = [
        member
        for member in random_members(78, 60)
        if cost(member).macs < 5e6
        and (member.separable or member.family == "v1")
        and len(SCALINGS[member.conventions.scaling][0]) in (1, member.channels)
    ]
    for seed, member in enumerate(members[: 20 if DEEP else 1]):
        assert export(random_int8_model(member, seed), tmp_path / "m", target=target).difference == 0


@pytest.mark.parametrize("pooling", [None, "max"])
def test_features_come_as_floats(pooling: str | None, tmp_path: Path) -> None:
    network = v1(0.05, (40, 33), include_top=False, downsampling=4, pooling=pooling)
    assert export(random_int8_model(network), tmp_path / "m").difference == 0


def test_the_widest_instructions_for_bytes_are_taken_by_int8_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "runnable", lambda: tuple(TARGETS[name] for name in ("amx", "avx512vnni", "avx512")))
    assert native._target("host", "int8").name == "avx512vnni"
    assert native._target("host", "f32").name == "avx512"
    with pytest.raises(UsageError, match="got 'amx', needed one of"):
        native._target("amx", "int8")


def test_without_a_check_nothing_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "program", lambda *_: (tmp_path / "x").read_bytes())
    monkeypatch.setattr(native, "runner", lambda _: pytest.fail("it was run"))
    (tmp_path / "x").write_bytes(build.compile_text("define void @mobilenet_run() { ret void }", TARGETS["sse"]))
    found = mobilenet.export(small(), tmp_path / "m.o", target="sse", check=False)
    assert found.difference is None
    assert found.checked == "not checked: it was not run"


# ------------------------------------------------------------------------------------------------------------ checks


def test_a_wrong_weight_of_any_layer_is_noticed(folder_of: Callable[..., Path]) -> None:
    model, target = small(), native._target("host", "int8")
    plan = native._plan(model, target)
    contents = {path.name: path.read_bytes() for path in folder_of("host", "beside").iterdir()}
    code = native_run.Code(target, plan, "mobilenet_run", contents, None)
    generator = np.random.default_rng(5)
    for layer in model.network.layers:
        name = f"{layer.name}.weight"
        if name not in model.tensors:
            continue
        weight = model.tensors[name].copy()
        place = generator.integers(weight.size)
        weight.flat[place] += 64 if weight.flat[place] < 0 else -64
        wrong = Model(model.network, {**model.tensors, name: weight}, precision="int8")
        _, run = native_run.runner(replace(code, weights=native._packed(wrong, plan)))
        assert run
        with pytest.raises(GateError, match=r"gives \S+ at output \d of test image \d, the reference"):
            native._check(model, run, f"run with {name} wrong")
    _, run = native_run.runner(replace(code, weights=contents["model.weights"]))
    assert run
    assert native._check(model, run, "run as it is") == 0


@pytest.mark.parametrize("target", ["sse", "armv7", "wasm"])
def test_code_that_differs_is_not_written(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder_of: Callable[..., Path]
) -> None:
    if not (NODE if target == "wasm" else UNICORN or target == "sse"):
        pytest.skip("what runs it is not installed")
    whole = (folder_of(target, "beside") / ("model.wasm" if target == "wasm" else "model.o")).read_bytes()
    packed = native._packed(small(), native._plan(small(), native._target(target, "int8")))
    wrong = np.frombuffer(packed, np.uint8).copy()
    wrong[len(wrong) // 2 :: 97] ^= 0x20
    monkeypatch.setattr(build, "program", lambda *_: whole)
    monkeypatch.setattr(native.wasm, "module", lambda data, *_: data)
    monkeypatch.setattr(native, "_packed", lambda *_: wrong.tobytes())
    with pytest.raises(GateError, match=r"of int8 models every bit must be the same. Nothing was written"):
        export(small(), tmp_path / "m", target=target, weights="beside")
    assert not list(tmp_path.iterdir())


@frozen
class Rounded(Kernel):
    """Rounds so many vectors of floats to whole numbers."""

    vectors: int

    @property
    def parameters(self) -> int:
        """None."""
        return 0

    def emit(self, code: Any) -> None:
        """Writes the kernel."""
        source, out = code.source.shaped(code.lanes), code.out.shaped(code.lanes, numbers="i32")
        code.loop(0, self.vectors, 1, lambda i: out.at(i).store(code.rounded(source.at(i).load())))


@pytest.mark.skipif(not UNICORN, reason="needs unicorn")
@pytest.mark.parametrize("target", [*(DEVICES[name] for name in ("armv7", "cortex-m", "riscv64")), TARGETS["neon"]])
def test_rounding_to_the_even_one_of_two(target: Target) -> None:
    ties = np.arange(-300.5, 300, dtype=np.float32)
    near = np.concatenate([np.nextafter(ties, np.float32(side)) for side in (-1e9, 1e9)])
    large = np.array([2**22, 2**22 - 0.5, 2**22 - 1.5, 8.5, 2**21 + 0.5, 0.49999997, 1e-30, 0.0], np.float32)
    far = np.array([2**22 + 1, 2**23 - 1, 2**23 + 1, 2**24 + 2, 3 * 2**22, 2**25, 1e9, 2**30 - 64], np.float32)
    near = np.concatenate([ties, near, large, -large, ties[:1]])
    both = np.concatenate([near, far, -far])
    assert both.size % 4 == 0
    kernel = Rounded(both.size // target.lanes)
    image, (begin,) = link.link([("kernel", build.compile_kernel(kernel, target))])
    machine = Emulator(target)
    out = machine.map(bytes(both.nbytes), "rw")
    machine.call(machine.map(image, "rx") + begin, out, machine.map(both.tobytes(), "r"))
    found = np.frombuffer(machine.read(out, both.nbytes), np.int32)
    np.testing.assert_array_equal(found[: near.size], np.rint(near).astype(np.int32))
    assert (np.abs(found[near.size :].astype(np.int64)) >= 2**22).all()
    np.testing.assert_array_equal(np.sign(found[near.size :]), np.sign(both[near.size :]))


@needs_zig
@pytest.mark.skipif("MOBILENET_DATA" not in os.environ, reason="needs real models and photos")
@pytest.mark.parametrize("target", ["sse", "aarch64", "armv7"])
def test_a_real_model_on_real_photos(target: str, tmp_path: Path) -> None:
    data = Path(os.environ["MOBILENET_DATA"])
    with ZipFile(data / "photos.zip") as archive:
        for name in sorted(archive.namelist())[:25]:
            archive.extract(name, tmp_path)
    model = mobilenet.convert(data / "models" / "vww_96.h5").quantize(tmp_path / "photos")
    assert export(model, tmp_path / "model", target=target).difference == 0
    for path in sorted((tmp_path / "photos").iterdir())[:5]:
        pixels = photos.pixels(path, model.preprocessing)
        expected = integer.forward(model.network, model.tensors, pixels[None])[0]
        np.testing.assert_array_equal(run_on_linux(target, tmp_path, tmp_path / "run", pixels), expected)
