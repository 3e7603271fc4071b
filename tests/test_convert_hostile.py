"""Hostile files of foreign formats: nothing runs, nothing else is opened, and the message names what is wrong."""

import contextlib
import io
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mobilenet.arch import v1, v2
from mobilenet.convert import convert, unpickle, unpickle_child, write
from mobilenet.errors import ModelError
from mobilenet.formats.protobuf import Fields, encode
from model_makers import random_model, same_tensors

DEEP = os.environ.get("MOBILENET_DEEP") == "1"
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="pickles are read on Linux only")


# --------------------------------------------------------------------------------------------------------- pickles


def attacks(canary: Path) -> dict[str, bytes]:
    """Returns pickles that would make the file `canary`, by every opcode that calls or imports something."""
    path = str(canary).encode()
    command = b"touch " + path
    calls = {
        "os.system": (b"os", b"system", b"X" + struct.pack("<I", len(command)) + command),
        "posix.system": (b"posix", b"system", b"X" + struct.pack("<I", len(command)) + command),
        "subprocess.Popen": (
            b"subprocess",
            b"Popen",
            b"](" + b"".join(b"X" + struct.pack("<I", len(w)) + w for w in (b"touch", path)) + b"e",
        ),
        "builtins.eval": (b"builtins", b"eval", _text(f"open({str(canary)!r}, 'w')".encode())),
        "builtins.exec": (b"builtins", b"exec", _text(f"open({str(canary)!r}, 'w')".encode())),
        "builtins.open": (b"builtins", b"open", _text(path) + _text(b"w")),
        "io.open": (b"io", b"open", _text(path) + _text(b"w")),
        "codecs.open": (b"codecs", b"open", _text(path) + _text(b"w")),
        "os.mkdir": (b"os", b"mkdir", _text(path)),
        "pathlib.Path.touch": (b"pathlib", b"Path.touch", _text(path)),
        "importlib.import_module": (b"importlib", b"import_module", _text(b"antigravity")),
        "runpy.run_path": (b"runpy", b"run_path", _text(path)),
        "torch.load": (b"torch.serialization", b"load", _text(path)),
        "torch.hub.load": (b"torch.hub", b"load", _text(path)),
        "getattr": (b"builtins", b"getattr", _text(path) + _text(b"x")),
        "__import__": (b"builtins", b"__import__", _text(b"this")),
        "webbrowser": (b"webbrowser", b"open", _text(b"http://127.0.0.1:9/")),
        "shutil.rmtree": (b"shutil", b"rmtree", _text(path)),
        "ctypes.CDLL": (b"ctypes", b"CDLL", _text(path)),
        "operator.attrgetter": (b"operator", b"attrgetter", _text(b"system")),
    }
    found = {}
    for name, (module, function, arguments) in calls.items():
        plain = b"c" + module + b"\n" + function + b"\n"
        stacked = _text(module) + _text(function) + b"\x93"
        found |= {
            f"REDUCE {name}": b"\x80\x02" + plain + b"(" + arguments + b"tR.",
            f"STACK_GLOBAL {name}": b"\x80\x04" + stacked + b"(" + arguments + b"tR.",
            f"INST {name}": b"\x80\x02(" + arguments + b"i" + module + b"\n" + function + b"\n.",
            f"OBJ {name}": b"\x80\x02(" + plain + arguments + b"o.",
            f"NEWOBJ {name}": b"\x80\x02" + plain + b"(" + arguments + b"t\x81.",
            f"NEWOBJ_EX {name}": b"\x80\x04" + plain + b"(" + arguments + b"t}\x92.",
            f"BUILD {name}": b"\x80\x02" + plain + b"(t\x81}" + _text(b"__setstate__") + plain + b"sb.",
        }
    return found | {
        "EXT1": b"\x80\x02\x82\x01.",
        "EXT2": b"\x80\x02\x83\x01\x00.",
        "EXT4": b"\x80\x02\x84\x01\x00\x00\x00.",
        "PERSID": b"\x80\x02Pos.system\n.",
        "BINPERSID": b"\x80\x02" + _text(b"os.system") + b"Q.",
        "a text of 2^62 bytes": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 62) + b".",
        "bytes of 2^62 bytes": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 62) + b".",
        "a number of 2^31 bytes": b"\x80\x02\x8b" + struct.pack("<i", (1 << 31) - 1) + b".",
        "a memo of 2^32": b"\x80\x02]r" + struct.pack("<I", (1 << 32) - 1) + b".",
        "a stack of nothing": b"\x80\x02R.",
        "no end": b"\x80\x02]",
        "an unknown opcode": b"\x80\x02\xff.",
        "nesting": b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
    }


def _text(text: bytes) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text


def in_archive(data: bytes) -> bytes:
    """Returns the pickle in a zip archive, as torch saves it today."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
    return out.getvalue()


def test_pickles_are_refused_unless_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("a process was started"))
    monkeypatch.setattr(pickle, "Unpickler", lambda *_, **__: pytest.fail("a pickle was read"))
    found = attacks(tmp_path / "canary")
    assert len(found) >= 150
    for name, data in found.items():
        for form, content in (("bare", data), ("archive", in_archive(data))):
            path = tmp_path / "a.pth"
            path.write_bytes(content)
            with pytest.raises(ModelError, match=r"a.pth: is a pickle, which can run code .* --unpickle"):
                convert(path)
            assert not (tmp_path / "canary").exists(), (name, form)
    folder = tmp_path / "hub"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "mobilenet_v1"}')
    (folder / "pytorch_model.bin").write_bytes(in_archive(b"\x80\x02}."))
    with pytest.raises(ModelError, match=r"pytorch_model.bin: is a pickle, .* there is no model.safetensors"):
        convert(folder)


def test_torch_refuses_every_attack(tmp_path: Path) -> None:
    """What the process of its own does with each, here without the process: torch's own check comes first."""
    torch = pytest.importorskip("torch")
    canary = tmp_path / "canary"
    for name, data in attacks(canary).items():
        if name.startswith(("a memo", "nesting")):  # these are what the limits of the process are for
            continue
        for content in (data, in_archive(data)):
            with pytest.raises(Exception), contextlib.redirect_stdout(io.StringIO()):  # noqa: B017, PT011
                unpickle_child.tensors_of(torch, io.BytesIO(content))
            assert not canary.exists(), name


@LINUX
@pytest.mark.parametrize("name", ["REDUCE os.system", "a text of 2^62 bytes", "nesting"] + ["a memo of 2^32"] * DEEP)
def test_the_process_ends_in_a_refusal(name: str, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    path = tmp_path / "a.pth"
    path.write_bytes(in_archive(attacks(tmp_path / "canary")[name]))
    with pytest.raises(ModelError, match=r"a.pth: is not read: "):
        convert(path, unpickle=True)
    assert {item.name for item in tmp_path.iterdir()} == {"a.pth"}


@LINUX
def test_a_state_dict_is_read_from_a_pickle(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    model = random_model(v2(0.35, 64, 5, conventions="torchvision"))
    write(model, tmp_path / "a.safetensors", "torchvision")
    from mobilenet.storage import tensors_file

    arrays = tensors_file.read(
        tmp_path / "a.safetensors", lambda found: [k for k in found if not k.endswith("tracked")], foreign=True
    )
    state = {f"module.{key}": torch.from_numpy(array) for key, array in arrays.items()}
    state["module.features.0.1.num_batches_tracked"] = torch.tensor(3)
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "a.pth.tar")
    found = convert(tmp_path / "a.pth.tar", resolution=64, unpickle=True)
    assert same_tensors(found.tensors, model.tensors)
    (tmp_path / "hub").mkdir()
    torch.save({"epoch": 3, "numbers": [1.0]}, tmp_path / "hub" / "pytorch_model.bin")
    (tmp_path / "hub" / "config.json").write_text('{"model_type": "mobilenet_v1"}')
    with pytest.raises(ModelError, match=r"pytorch_model.bin: is not read: ValueError: holds no state dict"):
        convert(tmp_path / "hub", unpickle=True)


def test_tensors_become_a_safetensors_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The child's work, in this process: it gives up nothing here."""
    torch = pytest.importorskip("torch")
    tensors = {"a": torch.arange(6.0).reshape(2, 3).T, "h": torch.ones(2, dtype=torch.float16), "n": torch.tensor(1)}
    torch.save(tensors, tmp_path / "a.pth")
    out = io.TextIOWrapper(io.BytesIO())
    monkeypatch.setattr(sys, "stdout", out)
    for what in ("limit", "forbid"):
        monkeypatch.setattr(unpickle_child, what, lambda *_: None)

    def run(path: Path) -> int:
        with open(path, "rb") as file:
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(file))
            return unpickle_child.main()

    assert run(tmp_path / "a.pth") == 0
    from safetensors.torch import load

    found = load(out.buffer.getvalue())  # type: ignore[attr-defined]
    assert set(found) == {"a", "h"}
    assert torch.equal(found["a"], tensors["a"])
    assert found["h"].dtype == torch.float16
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    torch.save([1], tmp_path / "b.pth")
    assert run(tmp_path / "b.pth") == unpickle_child.EXIT_REFUSED

    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(unpickle_child, "tensors_of", full)
    assert run(tmp_path / "a.pth") == unpickle_child.EXIT_REFUSED


TRIES = """
import os, socket, sys
sys.path.insert(0, {folder!r})
import unpickle_child
unpickle_child.limit(0)
unpickle_child.forbid()
def tried(what):
    try:
        what()
    except PermissionError:
        return True
    except MemoryError:
        return "memory"
    return False
def fork():
    if os.fork() == 0:
        os._exit(0)
print([
    tried(lambda: socket.socket()),
    tried(lambda: open({canary!r}, "w")),
    tried(lambda: os.open({canary!r}, os.O_RDWR | os.O_CREAT)),
    tried(lambda: os.mkdir({canary!r})),
    tried(lambda: os.unlink({file!r})),
    tried(lambda: os.chmod({file!r}, 0)),
    tried(lambda: os.symlink({file!r}, {canary!r})),
    tried(lambda: os.execv("/bin/true", ["true"])),
    tried(lambda: os.kill(os.getppid(), 0)),
    tried(fork),
    tried(lambda: bytearray(2 << 30)),
    tried(lambda: open({file!r}, "rb").read()),
])
"""


@LINUX
def test_the_process_can_reach_nothing(tmp_path: Path) -> None:
    """No socket, no file made or changed, no process, no gigabytes; reading is what is left."""
    file = tmp_path / "file"
    file.write_text("content")
    code = TRIES.format(
        folder=str(Path(unpickle_child.__file__).parent), canary=str(tmp_path / "canary"), file=str(file)
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == f"{[True] * 10 + ['memory', False]}", done.stderr
    assert list(tmp_path.iterdir()) == [file]
    assert file.read_text() == "content"


@LINUX
def test_limits_follow_from_the_size_of_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    found: dict[int, int] = {}

    def note(what: int, limits: tuple[int, int]) -> None:
        found[what] = limits[0]
        if what == resource.RLIMIT_CPU:
            raise ValueError("the limit there is, is lower")

    monkeypatch.setattr(resource, "setrlimit", note)
    unpickle_child.limit(10 << 20)
    assert found[resource.RLIMIT_FSIZE] == (20 << 20) + (1 << 20)
    assert found[resource.RLIMIT_CORE] == 0
    assert (1 << 30) + (30 << 20) < found[resource.RLIMIT_AS] < 1 << 46
    assert found[resource.RLIMIT_CPU] == unpickle_child.SECONDS


@LINUX
def test_a_system_without_seccomp_reads_no_pickle(monkeypatch: pytest.MonkeyPatch) -> None:
    import ctypes

    class Library:
        """Is a C library whose kernel knows no filters."""

        def prctl(self, option: int, *_: object) -> int:
            return -1 if option == 22 else 0

    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: Library())
    with pytest.raises(OSError, match="this system can't forbid system calls"):
        unpickle_child.forbid()


def test_other_systems_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "m68k")
    with pytest.raises(OSError, match=r"pickles are read on Linux \(x86-64 or AArch64\) only"):
        unpickle_child.forbid()


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_filter_is_a_whole_program(machine: str) -> None:
    """Each step is eight bytes, no jump leads behind the end, and the end refuses."""
    program = unpickle_child.filter_program(machine)
    steps = [struct.unpack_from("HBBI", program, at) for at in range(0, len(program), 8)]
    assert all(at + 1 + max(yes, no) < len(steps) for at, (code, yes, no, _) in enumerate(steps) if code & 7 == 5)
    assert steps[-1] == (6, 0, 0, 0x00050001)


def test_numbers_of_system_calls_are_the_kernels() -> None:
    headers = {0: "/usr/include/x86_64-linux-gnu/asm/unistd_64.h", 1: "/usr/include/asm-generic/unistd.h"}
    for column, header in headers.items():
        if not Path(header).exists():
            continue
        words = [line.split() for line in Path(header).read_text().splitlines() if line.startswith("#define __NR")]
        known = {
            w[1].removeprefix("__NR3264_").removeprefix("__NR_"): w[2] for w in words if len(w) > 2 and w[2].isdecimal()
        }
        known["newfstatat"] = known.get("newfstatat", known.get("fstatat", ""))
        for name, *numbers in unpickle_child._CALLS:
            assert numbers[column] is None or known[name] == str(numbers[column]), name


def test_what_is_no_file_is_not_unpickled(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"none: can't be read"), unpickle.unpickled(tmp_path / "none"):
        pass
    with pytest.raises(ModelError, match=r"is not a regular file"), unpickle.unpickled(tmp_path):
        pass


def test_a_process_that_does_not_end_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child = tmp_path / "child.py"
    child.write_text("import time\ntime.sleep(600)\n")
    monkeypatch.setattr(unpickle, "_CHILD", child)
    monkeypatch.setattr(unpickle, "_SECONDS", 0.5)
    with pytest.raises(ModelError, match=r"child.py: reading it took over 0.5 seconds"), unpickle.unpickled(child):
        pass
    child.write_text("import os\nos.abort()\n")
    monkeypatch.setattr(unpickle, "_SECONDS", 600)
    with (
        pytest.raises(ModelError, match=r"child.py: is not read: the process ended with -6"),
        unpickle.unpickled(child),
    ):
        pass


# ------------------------------------------------------------------------------------------------- .h5 and .keras


@pytest.fixture
def h5(tmp_path: Path) -> Path:
    pytest.importorskip("h5py")
    path = tmp_path / "a.h5"
    write(random_model(v1(0.25, 32, 3, conventions="keras")), path, "keras")
    return path


@contextlib.contextmanager
def changed(path: Path) -> Iterator[Any]:
    import h5py

    with h5py.File(path, "a") as file:
        yield file


def test_links_out_of_an_h5_file_are_refused(h5: Path) -> None:
    import h5py

    with changed(h5) as file:
        del file["conv1/conv1/kernel:0"]
        file["conv1/conv1/kernel:0"] = h5py.ExternalLink("/etc/passwd", "/x")
    with pytest.raises(ModelError, match=r"a.h5: '/conv1/conv1/kernel:0' is a link; only arrays in the file itself"):
        convert(h5)


def test_names_that_are_there_twice_are_refused(h5: Path) -> None:
    with changed(h5) as file:
        for outer in ("conv1", "conv1_bn"):
            for inner in ("x", "y"):
                file.create_dataset(f"{outer}/{inner}/kernel", (1,), "f4")
    with pytest.raises(ModelError, match=r"a.h5: has two layers 'x'; rename one of them"):
        convert(h5)


def test_models_nested_without_end_are_refused(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.weights.h5", "w") as file:
        file.create_group("/".join(["layers/functional"] * 6))
    with pytest.raises(ModelError, match=r"a.weights.h5: .* is nested too deeply"):
        convert(tmp_path / "a.weights.h5")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "a.h5: "),
        ("[]", r"a.h5: the model is of class \[\]"),
        (7, "a.h5: its model_config is no text"),
        (" " * 700_000, "a.h5: its model_config has 700,000 bytes, at most"),
        ('{"class_name": "Sequential", "class_name": "Model"}', "holds the key 'class_name' twice"),
        ('{"a":' * 3000 + "1" + "}" * 3000, "a.h5: "),
    ],
)
def test_hostile_configs_are_refused(h5: Path, config: Any, message: str) -> None:
    with changed(h5) as file:
        file.attrs["model_config"] = config
    with pytest.raises(ModelError, match=message):
        convert(h5)


def archive_of(path: Path, members: list[tuple[str, bytes]], **given: Any) -> Path:
    import warnings

    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", **given) as archive:
        warnings.simplefilter("ignore")  # of names that are there twice
        for name, data in members:
            archive.writestr(name, data)
    return path


CONFIG = json.dumps({"class_name": "Sequential", "config": {"layers": []}}).encode()


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("../../etc/x", b""), ("config.json", CONFIG)], "holds '../../etc/x', which leads out of the archive"),
        ([("/etc/x", b""), ("config.json", CONFIG)], "holds '/etc/x', which leads out"),
        ([("a\\..\\..\\x", b""), ("config.json", CONFIG)], "which leads out"),
        ([("config.json", CONFIG), ("config.json", CONFIG)], "or two of one name"),
        ([(f"assets/{n}", b"") for n in range(1001)], "holds 1,002 members"),
        ([], "is no .keras file: .*config.json"),
        ([("config.json", b" " * 700_000)], "has 700,000 bytes, at most"),
        ([("config.json", CONFIG)], "the model has no layers"),
    ],
)
def test_hostile_archives_are_refused(tmp_path: Path, members: list[tuple[str, bytes]], message: str) -> None:
    path = archive_of(tmp_path / "a.keras", [*members, ("model.weights.h5", b"no HDF5")])
    with pytest.raises(ModelError, match=f"a.keras: {message}|a.keras: .*{message}"):
        convert(path)
    assert list(tmp_path.iterdir()) == [path]


def test_a_bomb_in_an_archive_is_refused(tmp_path: Path) -> None:
    bomb = [("config.json", CONFIG), ("model.weights.h5", bytes(10 << 20))]
    path = archive_of(tmp_path / "a.keras", bomb, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(ModelError, match=r"a.keras: 'model.weights.h5' would have 10,485,760 bytes"):
        convert(path)


def test_archives_cut_and_changed_are_refused_or_read(tmp_path: Path, h5: Path) -> None:
    """Any byte may change: a refusal by name, or a model; nothing else."""
    import random

    good = archive_of(tmp_path / "a.keras", [("config.json", CONFIG), ("model.weights.h5", h5.read_bytes())])
    data, generator = good.read_bytes(), random.Random(0)
    for _ in range(2000 if DEEP else 60):
        broken = bytearray(data)
        place = generator.choice(
            [generator.randrange(len(data)), generator.randrange(400), -generator.randrange(1, 200)]
        )
        broken[place] = generator.randrange(256)
        good.write_bytes(broken if generator.random() < 0.8 else data[: place % len(data)])
        with pytest.raises(ModelError, match=r"a.keras"):  # the config has no layers
            convert(good)


def test_files_of_weights_with_any_byte_changed(h5: Path) -> None:
    import random

    data, generator = h5.read_bytes(), random.Random(1)
    for _ in range(2000 if DEEP else 25):
        broken = bytearray(data)
        broken[generator.randrange(4000)] ^= 1 << generator.randrange(8)
        h5.write_bytes(broken if generator.random() < 0.8 else data[: generator.randrange(len(data))])
        with contextlib.suppress(ModelError):
            convert(h5)


# ------------------------------------------------------------------------------------------------------------ ONNX

OUT = ("../secret", "/etc/passwd", "./../secret", "a/../../secret", "..\\secret", "file:///etc/passwd", "link", "hard")
OUT += ("/proc/self/environ", "~/secret", "secret\0.bin", "")


@pytest.mark.parametrize("location", OUT)
@pytest.mark.parametrize(("offset", "length"), [("0", "4"), (str(1 << 63), str(1 << 64))])
def test_onnx_is_not_read_and_no_file_that_it_names(
    location: str, offset: str, length: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing here reads ONNX, so that its weights in other files lead nowhere; the refusal says what is read."""
    folder = tmp_path / "in"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(bytes(16))
    (folder / "link").symlink_to(tmp_path / "secret")
    os.link(tmp_path / "secret", folder / "hard")
    where: list[Fields] = [
        {1: key, 2: value} for key, value in (("location", location), ("offset", offset), ("length", length))
    ]
    weight: Fields = {1: 4, 2: 1, 8: "stem.weight", 13: where, 14: 1}  # data_location EXTERNAL
    path = folder / "a.onnx"
    path.write_bytes(encode({1: 7, 2: "mobilenet", 7: {2: "graph", 5: [weight]}, 8: [{1: "", 2: 13}]}))
    opened: list[str] = []
    real = os.open

    def note(file: Any, *arguments: Any, **options: Any) -> int:
        opened.append(str(file))
        return real(file, *arguments, **options)

    monkeypatch.setattr(os, "open", note)
    with pytest.raises(ModelError, match=r"a.onnx: is not recognised; known are TFLite, folder of transformers"):
        convert(path)
    assert opened == [str(path)]
