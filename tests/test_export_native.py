"""Exported machine code: run by the exporter, then linked into C programs and run under QEMU, and in Node."""

import ctypes
import dataclasses
import importlib.util
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import mobilenet
from c_programs import BOARDS, LINUX, needs_zig, run_on_board, run_on_linux, zig
from compiler_tools import EPSILON
from members import DEEP, random_members
from mobilenet import reference
from mobilenet.arch import SCALINGS, Network, v1
from mobilenet.cli import main
from mobilenet.compiler import build, softmax, targets
from mobilenet.compiler.emulator import Emulator
from mobilenet.compiler.targets import DEVICES, TARGETS
from mobilenet.cost import cost
from mobilenet.errors import GateError, MobileNetError, UsageError
from mobilenet.export import native, native_run, wasm
from mobilenet.export.c_header import header, quoted
from mobilenet.export.checked import through_softmax
from mobilenet.export.native import ExportedCode, export
from mobilenet.model import Model, create
from small_members import random_tensors

UNICORN = importlib.util.find_spec("unicorn") is not None
LABELS = ('"quoted" \\', "??/ trigraph", "naïve 猫")


def model_of(network: Network, seed: int = 0, labels: tuple[str, ...] | None = None) -> Model:
    model = create(network, seed, labels)
    model.tensors |= random_tensors(network, seed)
    return model


def small(include_top: bool = True) -> Model:
    network = v1(0.1, (33, 40), 3 if include_top else None, downsampling=8, include_top=include_top, channels=3)
    return model_of(network, labels=LABELS if include_top else None)


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Returns what exports the small model as "model" for a target, once for all tests, and returns the folder."""

    @cache
    def folder(target: str) -> Path:
        path = tmp_path_factory.mktemp(target)
        found = export(small(), path / "model.x", target=target)
        endings = {"wasm": ("wasm", "mjs"), "armv7": ("o", "h"), "cortex-m": ("o", "h")}.get(target, ("o", "h", "so"))
        assert set(found.files) == {str(path / f"model.{ending}") for ending in endings}
        assert all(Path(name).stat().st_size == size for name, size in found.files.items())
        assert (found.difference is not None) == can_run(target)
        if found.difference is None:
            assert found.checked.startswith("not run: ")
        else:
            assert 0 < found.difference < 1e-3
        return path

    return folder


def can_run(target: str) -> bool:
    if target == "wasm":
        return shutil.which("node") is not None
    return target in ("host", "sse") or UNICORN


def check(model: Model, pixels: np.ndarray, found: np.ndarray) -> None:
    expected = reference.forward(model.network, model.tensors, pixels[None]).ravel()
    allowed = reference.tolerance(model.network, model.tensors, pixels[None], EPSILON).ravel()
    assert np.abs(allowed).max() < 1e-2 * np.abs(expected).max(), "a tolerance that would let anything pass"
    assert (np.abs(found - expected) <= allowed + EPSILON * np.abs(expected)).all()


def pixels_of(model: Model) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, model.network.input, dtype=np.uint8)


@pytest.mark.parametrize("target", ["host", *DEVICES])
def test_what_is_exported_has_been_run(target: str, folder_of: Callable[[str], Path]) -> None:
    assert folder_of(target)


@pytest.mark.parametrize("target", ["armv7", "cortex-m", "riscv64", "wasm"])
def test_random_members(target: str, tmp_path: Path) -> None:
    if not can_run(target):
        pytest.skip("what runs it is not installed")
    members = [
        member
        for member in random_members(77, 60)
        if cost(member).macs < 5e6 and len(SCALINGS[member.conventions.scaling][0]) in (1, member.channels)
    ]
    for seed, member in enumerate(members[: 20 if DEEP else 1]):
        assert export(model_of(member, seed), tmp_path / "m", target=target).difference is not None


def test_features_come_without_the_channels_between(tmp_path: Path) -> None:
    """7 channels are stored as 16: the output has 7 a pixel."""
    network = v1(0.05, (40, 33), include_top=False, downsampling=4)
    assert network.output.channels % 4
    assert export(model_of(network), tmp_path / "m").difference is not None


# ------------------------------------------------------------------------------------------------- C programs, QEMU


@needs_zig
@pytest.mark.parametrize("target", LINUX)
def test_linked_into_a_c_program(target: str, tmp_path: Path, folder_of: Callable[[str], Path]) -> None:
    pixels = pixels_of(small())
    check(small(), pixels, run_on_linux(target, folder_of(target), tmp_path / "run", pixels))


@needs_zig
@pytest.mark.parametrize("board", BOARDS)
def test_on_a_microcontroller(board: str, tmp_path: Path, folder_of: Callable[[str], Path]) -> None:
    pixels = pixels_of(small())
    check(small(), pixels, run_on_board(board, folder_of("cortex-m"), tmp_path, pixels))


@needs_zig
def test_labels_in_the_header_are_the_labels(tmp_path: Path, folder_of: Callable[[str], Path]) -> None:
    source = (
        '#define MOBILENET_LABELS\n#include "model.h"\n'
        "const char *get(int n) { return mobilenet_labels[n]; }\n"
        "unsigned sizes(void) { return sizeof mobilenet_labels / sizeof *mobilenet_labels; }\n"
    )
    (tmp_path / "labels.c").write_text(source)
    zig("-shared", "-std=c99", f"-I{folder_of('host')}", tmp_path / "labels.c", "-o", tmp_path / "labels.so")
    library = ctypes.CDLL(str(tmp_path / "labels.so"))
    library.get.restype = ctypes.c_char_p
    assert tuple(library.get(n).decode() for n in range(library.sizes())) == LABELS


def test_a_library_is_what_readelf_says(folder_of: Callable[[str], Path]) -> None:
    """The one symbol, its type, and no relocation, as binutils see them."""
    if not shutil.which("readelf"):
        pytest.skip("needs readelf")
    for target, machine in (("sse", "X86-64"), ("riscv64", "RISC-V"), ("android-aarch64", "AArch64")):
        path = folder_of(target) / "model.so"
        command = ["readelf", "-W", "--file-header", "--dynamic", "--dyn-syms", "--relocs", "--segments", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        text = re.sub(" +", " ", done.stdout)
        assert not done.stderr, done.stderr
        assert machine in text
        assert "FUNC GLOBAL DEFAULT 4 mobilenet_run" in text
        assert "There are no relocations in this file." in text
        assert "Library soname: [model.so]" in text
        assert re.search("GNU_STACK .* RW ", text)
        assert "RWE" not in text


def test_arm_objects_say_that_floats_are_passed_in_registers(folder_of: Callable[[str], Path]) -> None:
    """GNU ld refuses one that does not in a program that does, though no float is passed."""
    if not shutil.which("readelf"):
        pytest.skip("needs readelf")
    for target in ("armv7", "cortex-m"):
        command = ["readelf", "--arch-specific", "--syms", "--wide", str(folder_of(target) / "model.o")]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert "Tag_ABI_VFP_args: VFP registers" in text
        assert text.count(" UND ") == 1, "nothing is needed from elsewhere"


def test_literals_are_plain() -> None:
    assert quoted('a"b\\c?d\n1é') == r'"a\042b\134c\077d\0121\303\251"'
    plan = native._plan(small(), TARGETS["sse"])
    text = header(small(), plan, "flowers", "any x86-64 Linux")
    assert text.isascii()
    assert "void flowers_run(const uint8_t *input, float *output, void *scratch);" in text
    assert f"#define FLOWERS_SCRATCH_BYTES {plan.arena}\n" in text
    assert "#define FLOWERS_INPUT_BYTES 3960\n" in text
    assert "#define FLOWERS_OUTPUT_FLOATS 3\n" in text


# ----------------------------------------------------------------------------------------------------------- softmax


@pytest.mark.parametrize("target", ["host", "riscv64", "wasm"])
def test_probabilities(target: str, tmp_path: Path, folder_of: Callable[[str], Path]) -> None:
    found = mobilenet.export(small(), tmp_path / ("m.wasm" if target == "wasm" else "m.o"), target=target, softmax=True)
    assert (found.difference is not None) == can_run(target)
    said = "the probability of each class"
    for folder, name, is_said in ((tmp_path, "m", True), (folder_of(target), "model", False)):
        text = (folder / name).with_suffix(".mjs" if target == "wasm" else ".h").read_text()
        assert (said in text, "the logit of each class" in text) == (is_said, not is_said)


@needs_zig
@pytest.mark.parametrize("where", ["sse", "mps2-an386"])
def test_probabilities_in_a_c_program(where: str, tmp_path: Path) -> None:
    model, pixels = small(), pixels_of(small())
    mobilenet.export(model, tmp_path / "model.o", target="cortex-m" if where in BOARDS else where, softmax=True)
    if where in BOARDS:
        found = run_on_board(where, tmp_path, tmp_path, pixels)
    else:
        found = run_on_linux(where, tmp_path, tmp_path / "run", pixels)
    logits = reference.forward(model.network, model.tensors, pixels[None])
    expected, allowed = through_softmax(
        logits, reference.tolerance(model.network, model.tensors, pixels[None], EPSILON) + EPSILON * np.abs(logits)
    )
    assert allowed.max() < 1e-3
    assert (np.abs(found - expected[0]) <= allowed[0]).all()


def test_an_exp_that_is_a_little_off_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(softmax, "_DEGREE", 2)
    with pytest.raises(GateError, match=r"away from the reference at output \d of test image 0; rounding explains"):
        export(small(), tmp_path / "m", softmax=True)
    monkeypatch.setattr(softmax, "_LN2", (np.nan, 0))
    with pytest.raises(GateError, match="is nan away from the reference at output 0 of test image 0"):
        export(small(), tmp_path / "m", softmax=True)
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------------------------------------------- refusals


def test_wrong_arguments_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="target: got 'z80', needed one of host, android-aarch64"):
        export(small(), tmp_path / "m", target="z80")
    monkeypatch.setattr(native, "runnable", lambda: ())
    monkeypatch.setattr(targets.platform, "system", lambda: "Plan9")
    with pytest.raises(UsageError, match="nothing is compiled for Plan9"):
        export(small(), tmp_path / "m")
    with pytest.raises(UsageError, match="weights: got 'outside', needed one of 'inside', 'beside'"):
        mobilenet.export(small(), tmp_path / "m.o", weights="outside")
    with pytest.raises(UsageError, match="symbol: got 'a b', needed small letters"):
        export(small(), tmp_path / "m", target="sse", symbol="a b")


@pytest.mark.parametrize("target", ["sse", "cortex-m", "wasm"])
def test_code_that_differs_is_not_written(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder_of: Callable[[str], Path]
) -> None:
    if not can_run(target):
        pytest.skip("what runs it is not installed")
    whole = (folder_of(target) / ("model.wasm" if target == "wasm" else "model.o")).read_bytes()
    weights = native._packed(small(), native._plan(small(), native._target(target, "f32")))
    damaged = np.frombuffer(weights, np.float32).copy()
    damaged[len(damaged) // 2 :] *= 1.001
    assert weights in whole
    monkeypatch.setattr(build, "program", lambda *_: whole.replace(weights, damaged.tobytes()))
    monkeypatch.setattr(wasm, "module", lambda data, *_: data)
    with pytest.raises(GateError, match=r"away from the reference at output \d"):
        export(small(), tmp_path / "m", target=target)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("target", "reason"), [("cortex-m", r"pip install 'mobilenet\[emulate\]'"), ("wasm", "node is not here")]
)
def test_code_that_can_not_be_run_is_written_and_told(
    target: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder_of: Callable[[str], Path]
) -> None:
    monkeypatch.setitem(sys.modules, "unicorn", None)
    monkeypatch.setattr(native_run.shutil, "which", lambda name: None)
    whole = (folder_of(target) / ("model.wasm" if target == "wasm" else "model.o")).read_bytes()
    monkeypatch.setattr(build, "program", lambda *_: whole)
    monkeypatch.setattr(wasm, "module", lambda data, *_: data)
    found = export(small(), tmp_path / "m", target=target)
    assert found.difference is None
    assert re.search(f"not run: .*{reason}", str(found))
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.skipif(not UNICORN, reason="needs unicorn")
def test_emulated_code_that_leaves_its_memory_is_stopped() -> None:
    machine = Emulator(TARGETS["neon"])
    code = machine.map(bytes.fromhex("000040f9c0035fd6"), "rx")  # ldr x0, [x0]; ret
    inside = machine.map(bytes(64), "r")
    machine.call(code, inside + 56)
    with pytest.raises(MobileNetError, match="emulated code: Invalid memory read"):
        machine.call(code, inside + 64)
    with pytest.raises(MobileNetError, match="unicorn has no such aarch64 processor"):
        Emulator(TARGETS["neoni8mm"])
    with pytest.raises(MobileNetError, match="unicorn has no such s390x"):
        Emulator(dataclasses.replace(TARGETS["neon"], machine="s390x"))


# ------------------------------------------------------------------------------------------------------ WebAssembly


def wasm_object(text: str) -> bytes:
    target = DEVICES["wasm"]
    return build.compile_text(f'target triple = "{target.triple}"\n{text}', target)


def test_a_module_of_an_object() -> None:
    text = "@g = constant i64 5\ndefine i64 @a() { %x = load volatile i64, ptr @g\n ret i64 %x }\n"
    data = wasm_object(text + "define void @b() { ret void }")
    made = wasm.module(data, "b", 200_000)
    assert made.startswith(b"\0asm\1\0\0\0")
    assert b"\x06memory\x02\x00\x03run\x00\x01" in made  # its second function
    assert b"\x05\x03\x01\x00\x04" in made  # four pages of 64 KiB
    assert b"linking" not in made


def test_objects_that_need_more_are_refused() -> None:
    cases = {
        "needs something from elsewhere": "declare double @sin(double)\n"
        "define double @a(double %x) { %y = call double @sin(double %x)\n ret double %y }",
        "lacks the function a": "define void @b() { ret void }",
        "from elsewhere.*indirect_function_table": "define void @a(ptr %f) { call void %f()\n ret void }",
    }
    for message, text in cases.items():
        with pytest.raises(MobileNetError, match=message):
            wasm.module(wasm_object(text), "a", 1)
    with pytest.raises(MobileNetError, match="no WebAssembly object"):
        wasm.module(b"\x7fELF", "a", 1)


def test_the_loader_refuses_wrong_pixels(folder_of: Callable[[str], Path]) -> None:
    if not can_run("wasm"):
        pytest.skip("needs node")
    script = (
        "const m = await import(process.argv[1]); console.log(m.labels[2], m.height, m.width, m.channels);"
        "try { (await m.load()).run(new Uint8Array(5)) } catch (e) { console.log(e.name, e.message) }"
    )
    command = ["node", "--input-type=module", "--eval", script, str(folder_of("wasm") / "model.mjs")]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert out == f"{LABELS[2]} 33 40 3\nRangeError pixels: got 5 values, needed 3960\n"


def test_a_module_that_node_does_not_load_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not can_run("wasm"):
        pytest.skip("needs node")
    monkeypatch.setattr(build, "program", lambda *_: b"")
    monkeypatch.setattr(wasm, "module", lambda *_: b"\0asm\1\0\0\0broken")
    with pytest.raises(MobileNetError, match=r"(?s)node could not run the module: .*CompileError"):
        export(small(), tmp_path / "m.wasm")


def test_what_was_exported_in_words() -> None:
    found = ExportedCode({"m.o": 2_000_000}, "native", "run emulated: fine", 1e-6, "AArch64 Linux", 1, 680_000)
    assert str(found) == "m.o: 2.00 MB\nrun emulated: fine\nfor AArch64 Linux; scratch memory 680 kB"
    assert found.to_dict()["scratch"] == 680_000


def test_the_command(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    folder_of: Callable[[str], Path],
) -> None:
    whole = (folder_of("cortex-m") / "model.o").read_bytes()
    monkeypatch.setattr(build, "program", lambda *_: whole)
    small().save(tmp_path / "model")
    command = ["export", str(tmp_path / "model"), "-o", str(tmp_path / "m.o"), "--target", "cortex-m"]
    assert main(command) == 0
    assert "for Cortex-M4F" in capsys.readouterr().out
    assert "void mobilenet_run(" in (tmp_path / "m.h").read_text()
    assert main([*command, "--softmax", "--no-check"]) == 0
    assert "Output: 3 floats, the probability of each class." in (tmp_path / "m.h").read_text()
    assert main([*command, "--target", "z80"]) == 2
