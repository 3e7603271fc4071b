"""How compiled models are used: by default, from the cache, in little time and memory, in threads and in forks."""

import contextlib
import gc
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mobilenet
from mobilenet.arch import Network, v1, v2
from mobilenet.common import progress
from mobilenet.compiler import build, crew, native, schedule, store, targets
from mobilenet.compiler.lower import lower
from mobilenet.compiler.native import NativeEngine
from mobilenet.compiler.scale import Scale
from mobilenet.compiler.stages import stages
from mobilenet.cost import cost
from mobilenet.engine import Engine
from mobilenet.errors import MobileNetError, UsageError
from mobilenet.model import create
from mobilenet.runner import runner
from model_makers import SMALL, random_model, random_pixels

ANY_SCALE = next(kernel for kernel in lower(SMALL, targets.TARGETS["sse"]).kernels if isinstance(kernel, Scale))
SCALES = [replace(ANY_SCALE, length=16 * n) for n in range(1, 21)]  # that are compiled in a moment
PEAK_MEMORY = 90_000_000  # bytes of the whole process, for one photo with V2 1.0 224
NOT_FOR_ONE_PHOTO = {
    *("torch", "llvmlite", "PIL", "numpy.ma", "numpy.random", "numpy.ctypeslib"),
    *("concurrent.futures", "csv", "difflib", "logging", "shutil", "subprocess", "tempfile"),
    *("mobilenet.data", "mobilenet.engine", "mobilenet.training"),
}


def environment(**more: str) -> dict[str, str]:
    """Returns what a fresh process gets: this package, and no measurement of coverage, which takes memory and time."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    paths = os.pathsep.join(str(path.parent) for path in map(Path, mobilenet.__path__))
    return kept | {"PYTHONPATH": paths} | more


def fresh(code: str, **more: str) -> str:
    """Runs code in a process of its own and returns what it prints."""
    # From Python 3.12 on a fork beside threads is warned of: a test here is of just that.
    command = [sys.executable, "-W", "error", "-W", "ignore:This process:DeprecationWarning", "-c", code]
    done = subprocess.run(command, env=environment(**more), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


# ------------------------------------------------------------------------------------------------- which engine runs


def test_a_model_runs_compiled_and_gives_the_numpy_engines_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(targets.ENVIRONMENT, raising=False)
    model, pixels = random_model(), random_pixels(SMALL, 3)
    engine = model.compile(threads=1)
    assert isinstance(engine, NativeEngine)
    assert isinstance(runner(model), NativeEngine)
    assert engine(pixels) == pytest.approx(Engine(model)(pixels), rel=1e-3, abs=1e-3)
    assert [p.top(3) for p in model.predict(pixels)] == [
        mobilenet.Prediction(scores, model.labels).top(3)
        for scores in map(mobilenet.model.softmax, runner(model)(pixels))
    ]


def test_numpy_runs_where_nothing_is_compiled_or_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model()
    monkeypatch.setenv(targets.ENVIRONMENT, "numpy")
    assert isinstance(runner(model, 2), Engine)
    monkeypatch.delenv(targets.ENVIRONMENT)
    monkeypatch.setattr(targets.platform, "system", lambda: "Plan9")
    assert isinstance(runner(model), Engine)
    with pytest.raises(UsageError, match="nothing is compiled for Plan9"):
        model.compile()
    monkeypatch.setenv(targets.ENVIRONMENT, "avx2")
    with pytest.raises(UsageError, match="MOBILENET_TARGET: avx2 does not run here; this machine runs none of them"):
        runner(model)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"precision": "f16"}, "precision: got 'f16', needed one of 'f32'"),
        ({"precision": "int8"}, "the model is not quantised; Model.quantize or `mobilenet quantize` makes one"),
        ({"threads": 0}, "threads: got 0, needed a whole number from 1 to 1024"),
        ({"target": "mmx"}, "target: got 'mmx', needed one of "),
    ],
)
def test_what_can_not_be_compiled_is_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        random_model().compile(**arguments)  # type: ignore[arg-type]


def test_without_llvmlite_and_with_a_cold_cache_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(store.ENVIRONMENT, str(tmp_path / "code"))
    monkeypatch.setitem(sys.modules, "mobilenet.compiler.build", None)
    monkeypatch.delattr(mobilenet.compiler, "build")  # type: ignore[attr-defined]
    with pytest.raises(
        MobileNetError, match=r"needs llvmlite, which can't be imported .*: pip install llvmlite, or set"
    ):
        random_model().compile()


def test_a_cache_that_can_not_be_written_is_told_and_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(store.ENVIRONMENT, str(tmp_path / "file" / "code"))
    model = create(v1(0.1, 32, 3))
    with pytest.warns(UserWarning, match=r"can't be kept for the next start: .*file.code: can't be made"):
        engine = model.compile(threads=1)
    assert engine.made.kept is None
    assert engine(random_pixels(model.network, 1)).shape == (1, 3)


def test_what_an_engine_is_made_of() -> None:
    model = random_model()
    made = model.compile(threads=2).made
    again = model.compile(threads=2).made
    assert (made.precision, made.target) == ("f32", targets.choose().name)
    assert made.kept
    assert made.kept.stat().st_size > made.code > 1000
    assert made.weights > 4 * cost(SMALL).weights
    assert again.kept == made.kept
    assert made.kernels == again.kernels > 5


@pytest.mark.parametrize("kind", [np.uint8, np.float32])
@pytest.mark.parametrize("threads", [1, 2])
def test_pixels_may_be_anywhere_in_memory(kind: type, threads: int) -> None:
    pixels = random_pixels(SMALL, 3).astype(kind)
    engine = random_model().compile(threads=threads)
    expected = [engine(image[None].copy()).tobytes() for image in pixels]
    frozen = pixels.copy()
    frozen.flags.writeable = False
    backwards = np.ascontiguousarray(pixels[:, ::-1, ::-1])[:, ::-1, ::-1]
    for given in (pixels, frozen, np.asfortranarray(pixels), backwards, pixels[::-1][::-1]):
        assert [engine(given[n : n + 1]).tobytes() for n in (0, 1, 2, 0)] == [expected[n] for n in (0, 1, 2, 0)]
        assert [engine.one(image).tobytes() for image in given] == expected
        assert engine(given).tobytes() == b"".join(expected)


# ------------------------------------------------------------------------------------------------------- compiling


def test_compiling_tells_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    build.build(SCALES, targets.runnable()[0], workers=2, progress=lambda done, total: seen.append((done, total)))
    assert sorted(seen) == [(n, 20) for n in range(1, 21)]
    shown: list[str] = []
    monkeypatch.setattr(native, "counter", lambda what: shown.append(what) or progress.counter(what))
    monkeypatch.setattr(store, "read", lambda name: None)
    monkeypatch.setattr(store, "write", lambda name, image: Path(name))
    random_model().compile(threads=1)
    assert shown == ["compiling"]


def test_an_error_of_a_kernel_ends_the_compilation(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = build.compile_kernel

    def broken(kernel: Scale, target: targets.Target) -> bytes:
        if kernel.length == 32:
            raise IndexError("of a kernel")
        return honest(kernel, target)

    monkeypatch.setattr(build, "compile_kernel", broken)
    with pytest.raises(IndexError, match="of a kernel"):
        build.build(SCALES, targets.runnable()[0], workers=1)


def test_ctrl_c_ends_a_compilation_without_a_word_of_its_workers(tmp_path: Path) -> None:
    """On a terminal of its own, where Ctrl-C goes to every process in the foreground."""
    model = tmp_path / "model"
    create(v2(0.35, 96)).save(model)
    process, terminal = pty.fork()
    if not process:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell starts what runs in the background with it ignored
        os.execve(
            sys.executable,
            [sys.executable, "-m", "mobilenet", "compile", str(model)],
            environment(**{store.ENVIRONMENT: str(tmp_path / "code")}),
        )
    shown = b""
    with contextlib.suppress(OSError):  # the terminal is gone when its last process is
        while part := os.read(terminal, 4096):
            if b"compiling" in part and b"compiling" not in shown:
                os.write(terminal, b"\x03")
            shown += part
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 130
    os.close(terminal)
    assert b"mobilenet compile: interrupted" in shown
    assert b"Traceback" not in shown


def test_a_worker_takes_no_module_from_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('from the current folder')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(build, "_environment", lambda: environment())
    assert set(map(repr, SCALES)) <= set(build.build(SCALES, targets.runnable()[0], workers=2)[1])


# ------------------------------------------------------------------------------------------------------- cold start


def test_a_fresh_process_predicts_in_little_memory_without_llvm(tmp_path: Path) -> None:
    create(v2(1.0, 224)).save(tmp_path / "model")
    noise = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "photo.jpg")
    code = (
        "import os, sys\n"
        "os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])\n"  # memory grows with threads
        "from mobilenet.cli import main\n"
        f"code = main(['predict', {str(tmp_path / 'model')!r}, {str(tmp_path / 'photo.jpg')!r}, '--format', 'jsonl'])\n"
        f"print(code, *{NOT_FOR_ONE_PHOTO} & set(sys.modules))\n"
        "print(open('/proc/self/status').read())"
    )
    first, second = (fresh(code) for _ in range(2))
    assert first.splitlines()[0] == second.splitlines()[0]
    assert second.splitlines()[1] == "0"
    peak = re.search(r"VmHWM:\s+(\d+) kB", second)
    assert peak
    assert 1024 * int(peak[1]) <= PEAK_MEMORY


# ------------------------------------------------------------------------------------------------- threads and forks


def test_pythons_lock_is_released_while_an_engine_runs() -> None:
    """Compiled code waits for a number that only another Python thread can write."""
    assert fresh(
        "import threading, numpy, mobilenet\n"
        "from mobilenet.compiler import crew, driver\n"
        "engine = mobilenet.create(mobilenet.v1(0.1, 32, 3)).compile(threads=1)\n"
        "code = engine._alone.marked()._code\n"
        "flags = numpy.array([0, 1, 0], numpy.int64)\n"  # the other's part is begun and not done
        "job = [1, 2, flags.ctypes.data, crew.system_function('sched_yield'), 0, 0, 0, 0]\n"
        "job = numpy.array(job, numpy.int64)\n"
        "waiting = threading.Thread(target=code.function(driver.TOGETHER), args=(job.ctypes.data, 0))\n"
        "waiting.start()\n"
        "while flags[2] == 0: pass\n"
        "assert waiting.is_alive()\n"
        "flags[2] += 1\n"
        "waiting.join()\n"
        "print(flags[2])"
    ).split() == ["2"]


def test_helpers_sleep_between_images_wake_for_the_next_and_end_with_the_engine() -> None:
    model = random_model()
    before = set(threading.enumerate())
    engine = model.compile(threads=3)
    image = random_pixels(SMALL, 1)
    right = model.compile(threads=1)(image)
    for pause in np.random.default_rng(1).uniform(0, 3e-4, 300):  # some shorter, some longer than a helper looks out
        np.testing.assert_array_equal(engine(image), right)
        time.sleep(pause)
    (tape,) = engine._together._idle
    helpers = tape._crew._helpers
    assert len(helpers) == 2
    while (helpers[:, 0] != crew._ASLEEP).any():
        time.sleep(1e-4)
    np.testing.assert_array_equal(engine(image), right)
    threads = set(threading.enumerate()) - before
    assert len(threads) == 2
    del engine, tape
    assert not any(thread.is_alive() for thread in threads)


def test_where_the_system_refuses_a_thread_those_before_it_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Helpers wait in memory of the crew's: one that was left waiting would read it when it is something else."""
    model, image = random_model(), random_pixels(SMALL, 1)
    engine = model.compile(threads=4)
    start, started = threading.Thread.start, []

    def refuse_the_third(thread: threading.Thread) -> None:
        if len(started) == 2:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    with monkeypatch.context() as changed:
        changed.setattr(threading.Thread, "start", refuse_the_third)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            engine(image)
    gc.collect()
    assert len(started) == 2
    assert not any(thread.is_alive() for thread in started)
    np.testing.assert_array_equal(engine(image), model.compile(threads=1)(image))  # when there are threads again


def test_a_process_forks_while_its_threads_use_an_engine() -> None:
    assert (
        fresh(
            "import os, sys, threading, numpy, mobilenet\n"
            "engine = mobilenet.create(mobilenet.v1(0.1, 32, 3)).compile(threads=2)\n"
            "pixels = numpy.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), numpy.uint8)\n"
            "right = engine(pixels)\n"
            "stop, wrong = threading.Event(), []\n"
            "def use():\n"
            "    while not stop.is_set():\n"
            "        for batch in (pixels[:1], pixels):\n"
            "            if not numpy.array_equal(engine(batch), right[:len(batch)]): wrong.append(1)\n"
            "users = [threading.Thread(target=use) for _ in range(3)]\n"
            "for user in users: user.start()\n"
            "codes = []\n"
            "for _ in range(5):\n"
            "    if not (child := os.fork()):\n"
            "        same = all(numpy.array_equal(engine(pixels[:n]), right[:n]) for n in (1, 3, 1))\n"
            "        sys.exit(0 if same else 9)\n"
            "    codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
            "stop.set()\n"
            "for user in users: user.join()\n"
            "print(len(wrong), *codes)"
        ).split()
        == ["0"] * 6
    )


# ----------------------------------------------------------------------------------------------------------- memory

# All channels of these are whole vectors of 4, so that nothing is padded.
MEMBERS = [v2(1.0, 224), v1(1.0, 224), v2(1.4, 192), v1(0.5, 128), v2(1.0, (300, 500)), v2(0.35, 96)]


def beside(network: Network) -> int:
    """Returns the bytes that a plan has beside activations: the scaled image between its columns of zeros, and a row
    of zeros that stands for what is above and below an image."""  # fmt: skip
    scaled = [stage for stage in stages(network, targets.TARGETS["sse"], "f32") if stage.scales]
    row = max(*(layer.input.width * layer.input.channels for layer in network.layers), *(s.pitch for s in scaled))
    return 4 * (row + sum(stage.rows * stage.pitch for stage in scaled))


@pytest.mark.parametrize("network", MEMBERS, ids=str)
def test_activations_take_the_memory_that_cost_predicts(network: Network) -> None:
    """Layer by layer exactly; in strips the input and output of a block and the rows in work, at most 1 MiB."""
    counts, target = cost(network), targets.TARGETS["sse"]
    assert all(layer.output.channels % 4 == 0 for layer in network.layers)
    by_layer = lower(network, target, fuse=False).arena
    rounding = 64 * 8  # bytes: each buffer is whole cache lines
    assert 0 <= by_layer - counts.peak_memory - beside(network) < rounding
    fused = lower(network, target).arena
    assert fused <= min(by_layer, counts.fused_peak_memory + 2 * schedule.CACHE + beside(network)) + rounding
    # The stem and block 0 are one for the compiler, as are blocks of V1: what is between them is never whole. The other
    # blocks of V2 have their input and output whole.
    if network.family == "v2":
        assert fused >= max(block.memory for block in counts.blocks[2:])


@pytest.mark.parametrize(("precision", "size"), [("f32", 4), ("bf16", 2), ("int8", 1)])
@pytest.mark.parametrize("target", targets.TARGETS.values(), ids=lambda target: target.name)
def test_channels_that_are_no_whole_vectors_take_more(target: targets.Target, precision: str, size: int) -> None:
    network = v1(0.1, (70, 50), 3)
    assert lower(network, target, precision=precision, fuse=False).arena >= cost(network, size).peak_memory
