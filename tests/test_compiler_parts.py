"""The compiler's parts by themselves: targets, schedule, memory, linking, the cache on disk, the loader."""

import hashlib
import json
import os
import random
import re
import shutil
import stat
import struct
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from subprocess import CalledProcessError
from types import SimpleNamespace

import numpy as np
import pytest

from arm_linux import QEMU, ArmLinux
from members import random_members
from mobilenet.arch import Layer, Network, v1, v2
from mobilenet.common import files
from mobilenet.compiler import build, link, loader, matrix, native, schedule, store, targets
from mobilenet.compiler.depthwise import Depthwise
from mobilenet.compiler.kernel import SIZES, Kernel
from mobilenet.compiler.lower import lower
from mobilenet.compiler.matrix import tile_shape
from mobilenet.compiler.memory import ALIGNMENT, Buffer, place
from mobilenet.compiler.plan import Integers, Place, Plan, Step
from mobilenet.compiler.pointwise import Pointwise
from mobilenet.compiler.resample import Across, Down
from mobilenet.compiler.scale import Scale
from mobilenet.compiler.shares import split
from mobilenet.compiler.stages import stages
from mobilenet.compiler.targets import TARGETS, choose
from mobilenet.cost import cost
from mobilenet.errors import MobileNetError, UsageError

KERNEL = Pointwise("f32", 5, 8, 32, 2, "relu6", False, False, False, 2, 2, 0)

# Its block 0 adds the stem's output, which must therefore be kept whole.
NARROW = v2(0.05, (500, 480), conventions="torchvision")


# ---------------------------------------------------------------------------------------------------------- targets


def test_a_target_can_be_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(targets.ENVIRONMENT, raising=False)
    here = targets.runnable()
    assert choose() == here[0]
    for target in here:
        assert choose(target.name) == target
        monkeypatch.setenv(targets.ENVIRONMENT, target.name)
        assert choose() == target
    monkeypatch.setenv(targets.ENVIRONMENT, "mmx")
    with pytest.raises(
        UsageError, match=r"MOBILENET_TARGET: got 'mmx', needed one of amx, .*avx512, avxvnni, avx2, sse, .*, or numpy;"
    ):
        choose()
    monkeypatch.setenv(targets.ENVIRONMENT, "numpy")
    with pytest.raises(UsageError, match="got 'numpy', with which nothing is compiled; unset it"):
        choose()


def test_a_target_that_can_not_run_here_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(targets, "_flags", lambda: frozenset({"sse2"}))
    assert [target.name for target in targets.runnable()] == ["sse"]
    with pytest.raises(UsageError, match="target: avx2 does not run here; this machine runs sse"):
        choose("avx2")
    monkeypatch.setattr(targets.platform, "system", lambda: "Plan9")
    with pytest.raises(UsageError, match="nothing is compiled for Plan9"):
        choose("")


def test_an_arm_processor_gets_the_best_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets.platform, "machine", lambda: "aarch64")
    for flags, best in (("asimd", "neon"), ("asimd asimddp", "neondot"), ("asimd asimddp i8mm", "neoni8mm")):
        monkeypatch.setattr(targets, "_flags", lambda flags=flags: frozenset(flags.split()))
        assert choose("").name == best
        assert choose("neon").name == "neon"


@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda target: target.name)
def test_a_tile_fits_in_the_registers(target: targets.Target) -> None:
    for pixels in (1, 2, 7, 49, 12544):
        for vectors in (1, 2, 3, 6, 20):
            for numbers, paired in (("f32", False), ("f32", True), ("bf16", False), ("u8", False)):
                high, wide = tile_shape(target, numbers, pixels, (pixels,), vectors, 96, paired=paired)
                assert 1 <= high <= pixels
                assert 1 <= wide <= vectors
                assert high * wide + wide + 1 <= target.registers


def test_of_tiles_that_are_as_fast_alone_the_one_with_the_fewest_instructions_is_taken() -> None:
    """14 x 2, 9 x 3 and 6 x 4 multiply and add twice a cycle; an input is an instruction, and so is a weight."""
    assert tile_shape(TARGETS["avx512"], "f32", 196, (196,), 32, 512) == (6, 4)
    assert tile_shape(TARGETS["avx2"], "f32", 196, (196,), 66, 512) == (4, 3)
    high, wide = tile_shape(TARGETS["avx512"], "f32", 3136, (3136,), 2, 96)
    assert wide == 1, "read by the multiply-add an input is no instruction"
    assert high > 24
    assert tile_shape(TARGETS["avx512"], "f32", 112, (112,), 2, 27, overlap=True)[1] == 2


def test_a_multiply_add_that_reads_its_input_is_one_instruction() -> None:
    kernel = Pointwise("f32", 96, 96, 16, 1, "linear", False, False, False, 28, 1, 0)
    found = re.findall(r"vfmadd\w+\s+\S*\((.*?)\)\{1to16\}", build.assembly(kernel, TARGETS["avx512"]))
    assert len(found) >= 28 * matrix.UNROLL
    assert not [place for place in found if "," in place]  # a base and an index


def test_a_vector_that_is_half_empty_takes_two_inputs_at_a_time() -> None:
    """Two multiply-adds with one input each and one with both, for each pixel and pair of inputs; all in registers."""
    plan = lower(v2(1.0, 224), TARGETS["avx512"])
    kernels = {name: kernel for name, (kernel, _) in plan.packed.items() if isinstance(kernel, Pointwise)}
    assert [name for name, kernel in kernels.items() if kernel.paired] == ["block1.project", "block2.project"]
    kernel = kernels["block1.project"]
    assembly = build.assembly(kernel, TARGETS["avx512"])
    loops = re.findall(r"^(\.L\w+):\n((?:\t.*\n)+?)\tj\w+\t\1$", assembly, re.MULTILINE)
    assert loops, "a label, instructions, and a jump to it"
    inner = max((body for _, body in loops), key=lambda body: body.count("vfmadd"))
    assert inner.count("vfmadd") == 3 * kernel.high
    assert inner.count("vbroadcastsd") == kernel.high
    assert "rsp" not in inner


# ------------------------------------------------------------------------------------------- schedule and memory


def test_every_row_is_computed_once_and_read_while_it_is_kept() -> None:
    """Plays the calls of every group on rings that remember which row they hold."""
    fused = 0
    for network in (v2(1.0, (224, 190)), v1(0.5, 224), v2(1.0, 160, separable=False), NARROW, *random_members(5, 10)):
        for threads in (1, 2, 3):
            for group in schedule.groups(stages(network, TARGETS["avx512"], "f32"), threads=threads):
                fused += len(group.stages) > 1
                added = {layer.adds for layer in network.layers}
                assert not any(stage.layer.name in added and not stage.scales for stage in group.stages[:-1])
                computed: list[int] = []
                for part in group.parts:
                    held: list[dict[int, int]] = [{} for _ in group.stages]
                    for call in part:
                        stage, ring = group.stages[call.stage], group.rings[call.stage]
                        assert call.begin % ring + call.end - call.begin <= ring, "rows of a call lie together"
                        if call.stage and stage.reads_through:
                            kept = group.rings[call.stage - 1]
                            assert call.begin % kept + call.end - call.begin <= kept, "and so do those that it reads"
                        for row in range(*stage.needs(call.begin, call.end)) if call.stage else ():
                            assert held[call.stage - 1][row % group.rings[call.stage - 1]] == row
                        held[call.stage] |= {row % ring: row for row in range(call.begin, call.end)}
                        if call.stage == len(group.stages) - 1:
                            computed += range(call.begin, call.end)
                assert computed == list(range(group.stages[-1].rows))
                assert group.rings[-1] == group.stages[-1].rows
    assert fused > 5


def test_buffers_alive_together_share_nothing() -> None:
    generator = random.Random(0)
    for _ in range(50):
        buffers = []
        for number in range(generator.randint(1, 30)):
            first = generator.randint(0, 10)
            buffers.append(Buffer(str(number), generator.randint(1, 9999), first, generator.randint(first, 12)))
        offsets, size = place(buffers)
        for one in buffers:
            assert offsets[one.name] % ALIGNMENT == 0
            assert offsets[one.name] + one.bytes <= size
            for other in buffers:
                if one is not other and one.first <= other.last and other.first <= one.last:
                    low, high = offsets[one.name], offsets[other.name]
                    assert low + one.bytes <= high or high + other.bytes <= low
    assert place([Buffer("a", 64, 0, 1), Buffer("b", 64, 2, 3)])[1] == 64


def test_strips_need_less_memory() -> None:
    network = v2(1.0, 224)
    plans = [lower(network, TARGETS["avx512"], fuse=fuse) for fuse in (False, True)]
    assert plans[1].arena < plans[0].arena / 3
    assert max(step.begin for step in plans[0].parts[0] if step) == 0


@pytest.mark.parametrize(
    ("network", "cache", "strips"), [(v1(1.0), 1 << 19, False), (v1(0.5), 1 << 18, True), (v1(1.0), 3 << 17, True)]
)
def test_threads_do_no_strips_where_too_much_would_be_done_twice(network: Network, cache: int, strips: bool) -> None:
    """V1's blocks 3 and 4 have 28 rows, of which each thread would do half and one or two more: too many for V1 1.0, if
    each thread's part of a map fits; a map does not."""  # fmt: skip
    found = [schedule.groups(stages(network, TARGETS["avx512"], "f32"), True, threads, cache) for threads in (1, 2)]
    together = [{stage.name for stage in group.stages} for groups in found for group in groups if len(group.stages) > 1]
    assert sum("block4.pointwise" in names for names in together) == 1 + strips


@pytest.mark.parametrize("network", [v1(0.5, (97, 130)), v2(0.35, 96)], ids=["V1", "V2"])
def test_stages_do_the_multiply_adds_of_their_layers(network: Network) -> None:
    found = stages(network, TARGETS["avx512"], "f32")
    assert sum(stage.rows * stage.macs for stage in found) == cost(network).macs


# ---------------------------------------------------------------------------------------------------------- sharing


def test_threads_share_the_tiles_of_a_pointwise_layer_evenly() -> None:
    """Every pixel of every vector is computed by one thread, with its own weights, in no call that is too small."""
    generator = random.Random(0)
    middle = 0
    for _ in range(2000):
        high, wide, threads = generator.randint(1, 30), generator.randint(1, 6), generator.randint(2, 16)
        pixels, vectors = high * generator.randint(1, 9) + generator.randrange(high), generator.randint(1, 40)
        numbers, paired, adds = generator.choice(["f32", "bf16", "u8"]), *generator.choices([False, True], k=2)
        kernel = replace(KERNEL, outputs=16 * vectors, vectors=vectors, high=high, wide=wide)
        kernel = replace(kernel, numbers=numbers, paired=paired, adds=adds)
        places = Place("arena", 640), Place("arena", 64), Place("weights", 128), Place("arena", 6400)
        step = Step("layer", kernel, *places, 3, 3 + pixels)
        size = 16 * SIZES[numbers]
        done = np.zeros((threads, pixels, vectors), int)
        for thread, share in enumerate(split(step, threads, 16, by_channels=False)):
            for mine in share:
                assert isinstance(mine.kernel, Pointwise)
                skipped, rest = divmod(mine.out.offset - 640, size)
                assert (rest, skipped % wide, mine.source) == (0, 0, step.source)
                assert mine.extra.offset - 6400 == adds * size * skipped
                assert mine.parameters.offset - 128 == 64 * kernel.rows * skipped
                after = skipped + mine.kernel.vectors
                assert mine.kernel == replace(kernel, vectors=after - skipped, paired=paired and after == vectors)
                assert mine.end - mine.begin >= high
                done[thread, mine.begin - 3 : mine.end - 3, skipped:after] += 1
                middle += mine.kernel.vectors < vectors and mine.end - mine.begin < pixels
        assert np.all(done.sum(0) == 1)
        tiles, panels = -(-pixels // high), -(-vectors // wide)
        most = max(np.ceil(each.sum(0) / high).sum() for each in done)
        assert most <= min(-(-panels // threads) * wide, vectors) * tiles
        assert most <= 1.02 * (tiles * vectors / threads + 2 * wide)
    assert middle > 500


@pytest.mark.parametrize(
    ("vectors", "tiles", "calls"),
    [
        (4, 4, [[(2, 16)], [(2, 16)]]),  # as even by channels as by pixels: by channels
        (3, 4, [[(3, 8)], [(3, 8)]]),
        (101, 3, [[(50, 12)], [(51, 12)]]),  # almost even
        (5, 5, [[(2, 20), (1, 8)], [(1, 12), (2, 20)]]),
    ],
)
def test_threads_share_a_panel_only_where_that_is_worth_it(
    vectors: int, tiles: int, calls: list[list[tuple[int, int]]]
) -> None:
    kernel = replace(KERNEL, outputs=16 * vectors, vectors=vectors, high=4, wide=1)
    step = Step("layer", kernel, *[Place("arena", 0)] * 4, 0, 4 * tiles)
    shares = split(step, 2, 16, by_channels=False)
    assert [[(mine.kernel.vectors, mine.end - mine.begin) for mine in share] for share in shares] == calls


@pytest.mark.parametrize(
    ("network", "layer", "rows"),
    [
        (v1(1.0), "block6", [(0, 14), (0, 14)]),  # 7 tiles of rows
        (v1(0.5, 160), "block12", [(0, 5), (0, 5)]),  # 3, of which one is half empty
        (v1(1.0), "block4", [(0, 28), (0, 28)]),  # 14: as even, and a thread reads what it wrote
        (v2(0.35, 96), "block7", [(0, 4), (4, 6)]),  # 3, but the layer before was split by pixels
    ],
)
def test_threads_share_the_channels_of_a_depthwise_layer_after_channels(
    network: Network, layer: str, rows: list[tuple[int, int]]
) -> None:
    parts = lower(network, TARGETS["avx512"], threads=2).parts
    [one], [two] = ([step for step in part if step and step.layer == f"{layer}.depthwise"] for part in parts)
    assert isinstance(one.kernel, Depthwise)
    assert [(step.begin, step.end) for step in (one, two)] == rows
    channels = 2 * one.kernel.channels * (rows[0] == rows[1])  # bytes of half of them
    assert two.out.offset - one.out.offset == two.source.offset - one.source.offset == channels
    assert two.extra.offset - one.extra.offset == channels
    assert two.parameters.offset - one.parameters.offset == channels * 10


# ---------------------------------------------------------------------------------------------------------- linking


def module(text: str) -> bytes:
    header = f'target triple = "{TARGETS["sse"].triple}"\n'
    return build.compile_text(header + text, TARGETS["sse"])


@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda target: target.name)
def test_every_target_links_to_one_image(target: targets.Target) -> None:
    image, functions = build.build([KERNEL, replace(KERNEL, adds=True)], target, workers=1)
    kernels = {repr(KERNEL), repr(replace(KERNEL, adds=True))}
    assert set(functions) == kernels | {"drive", "together", "mark", "lead", "serve", "dismiss"}
    assert len(set(functions.values())) == len(functions)
    assert all(0 <= offset < len(image) for offset in functions.values())


def test_objects_that_need_more_are_refused() -> None:
    cases = {
        "needs sin": "declare double @sin(double)\n"
        "define double @f(double %x) { %y = call double @sin(double %x)\n ret double %y }",
        "data that can be written": "@g = global i32 5\ndefine ptr @f() { ret ptr @g }",
        "its function is missing": "define void @g() { ret void }",
    }
    for message, text in cases.items():
        with pytest.raises(MobileNetError, match=f"the object file of f: .*{message}"):
            link.link([("f", module(text))])


def test_damaged_objects_are_refused() -> None:
    whole = module("define void @f() { ret void }")
    assert link.link([("f", whole)])[1] == [0]
    with pytest.raises(MobileNetError, match="no ELF file"):
        link.link([("f", b"MZ" + whole)])
    for size in (10, 50, len(whole) // 2):
        with pytest.raises(MobileNetError, match="the object file of f"):
            link.link([("f", whole[:size])])


def shapes(network: Network) -> set[Layer]:
    """Returns a network's layers as if they had no names and were in no block."""
    return {replace(layer, name="", block=None, adds=layer.adds and "another") for layer in network.layers}


@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_layers_of_one_shape_share_their_code(precision: str) -> None:
    network = v2(1.0, 224)
    for target in TARGETS.values():
        plan = lower(network, target, precision=precision)
        kernels = [kernel for kernel in plan.kernels if not isinstance(kernel, Scale)]
        assert len(kernels) == len(shapes(network)) == 32
        assert {step.layer for step in plan.parts[0] if step} == {layer.name for layer in network.layers}  # 54


def test_each_distinct_kernel_is_compiled_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """For the plans of one thread and of several together."""
    compiled: list[Kernel] = []
    nothing = module("define void @kernel() { ret void }")

    def compile_nothing(kernel: Kernel, target: targets.Target) -> bytes:
        compiled.append(kernel)
        return nothing

    monkeypatch.setenv(store.ENVIRONMENT, str(tmp_path))
    monkeypatch.setattr(build, "compile_kernel", compile_nothing)
    monkeypatch.setattr(build, "processors", lambda: 1)  # all in this process
    network, target = v2(1.0, 224), targets.runnable()[0]
    code, _, _ = native._load(network, target, "f32", Integers(), True, 2)
    plans = [lower(network, target, threads=threads) for threads in (1, 2)]
    needed = {kernel for plan in plans for kernel in plan.kernels}
    assert len(set.intersection(*(set(plan.kernels) for plan in plans))) >= len(plans[0].kernels) // 2
    assert len(compiled) == len(set(compiled))
    assert set(compiled) == needed | {Across(224), Down()}
    assert {kernel.name for kernel in compiled} < set(code.address)


def test_workers_give_the_same_code() -> None:
    kernels = [replace(KERNEL, inputs=n) for n in range(1, 17)]
    target = targets.runnable()[0]
    assert build.build(kernels, target, workers=2) == build.build(kernels, target, workers=1)


def test_a_worker_that_fails_is_named(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(build, "_environment", lambda: os.environ | {"PYTHONPATH": "/nowhere"})
    monkeypatch.setattr(build.sys, "executable", "/bin/false")
    with pytest.raises(MobileNetError, match="a worker process ended with exit code 1"):
        build.build([replace(KERNEL, inputs=n) for n in range(1, 17)], targets.runnable()[0], workers=2)


def test_assembly_is_there_to_be_read() -> None:
    assert "vfmadd" in build.assembly(KERNEL, TARGETS["avx2"])
    assert "zmm" in build.assembly(KERNEL, TARGETS["avx512"])
    assert "fmla" in build.assembly(KERNEL, TARGETS["neon"])


@pytest.mark.skipif(not QEMU, reason="needs qemu-aarch64")
def test_code_that_leaves_its_memory_is_stopped_under_qemu() -> None:
    machine = ArmLinux()
    code = machine.map(bytes.fromhex("000040f9200000f9c0035fd6"), "rx")  # ldr x0, [x0]; str x0, [x1]; ret
    inside, out = machine.map(bytes(range(64)), "r"), machine.map(bytes(8), "rw")
    machine.call(code, inside + 56, out)
    assert machine.read(out, 8) == bytes(range(56, 64))
    for places in ((inside + 64, out), (inside, out + 8), (inside, inside)):
        with pytest.raises(CalledProcessError):
            machine.call(code, *places)


# ------------------------------------------------------------------------------------------------ cache and loader

IMAGE = store.Image(b"code" * 100, {"a": 0, "b": 17}, {"c": [1, None]})


def test_code_is_kept_and_private(tmp_path: Path) -> None:
    where = tmp_path / "x" / "code"
    assert store.read("k", where) is None
    before = os.umask(0)
    try:
        assert store.write("k", IMAGE, where) == where / "k"
    finally:
        os.umask(before)
    assert store.read("k", where) == IMAGE
    assert stat.S_IMODE(where.stat().st_mode) == 0o700
    assert stat.S_IMODE((where / "k").stat().st_mode) == 0o600


def test_code_that_is_not_as_it_was_written_is_not_used(tmp_path: Path) -> None:
    where = tmp_path / "code"
    store.write("k", IMAGE, where)
    whole = (where / "k").read_bytes()
    for n in range(0, len(whole), 13):
        (where / "k").write_bytes(whole[:n] + bytes([whole[n] ^ 1]) + whole[n + 1 :])
        assert store.read("k", where) is None
    for size in (0, 31, 32, 39, len(whole) - 1):
        (where / "k").write_bytes(whole[:size])
        assert store.read("k", where) is None
    for rest in (b"", b"\xff" * 8, bytes(8), struct.pack("<Q", 2) + b"[]"):  # a hash that is right, and no header
        (where / "k").write_bytes(hashlib.sha256(rest).digest() + rest)
        assert store.read("k", where) is None


def test_code_that_others_could_have_written_is_not_used(tmp_path: Path) -> None:
    where = tmp_path / "code"
    store.write("k", IMAGE, where)
    (where / "k").chmod(0o602)
    assert store.read("k", where) is None
    (where / "k").chmod(0o600)
    assert store.read("k", where) == IMAGE
    where.chmod(0o777)
    assert store.read("k", where) is None
    with pytest.raises(MobileNetError, match="can be written by others; set MOBILENET_CODE"):
        store.write("other", IMAGE, where)
    where.chmod(0o700)
    (where / "link").symlink_to(where / "k")
    assert store.read("link", where) is None
    os.mkfifo(where / "pipe", 0o600)
    assert store.read("pipe", where) is None


def test_a_file_swapped_while_it_is_read_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was checked is what is run: a file of another's put in the place of ours is never looked at."""
    where = tmp_path / "code"
    store.write("k", IMAGE, where)
    honest = store.read_opened

    def swapped(descriptor: int, limit: int, path: Path) -> bytes:
        (where / "other").write_bytes(b"evil" * 500)
        (where / "other").chmod(0o666)
        os.replace(where / "other", where / "k")
        return honest(descriptor, limit, path)

    monkeypatch.setattr(store, "read_opened", swapped)
    assert store.read("k", where) == IMAGE
    assert store.read("k", where) is None


def test_code_of_another_llvmlite_is_not_used_and_without_one_any_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert store._llvmlite() == f"llvmlite-{metadata.version('llvmlite')}.dist-info"
    store.write("k", IMAGE, tmp_path / "code")
    monkeypatch.setattr(store, "_llvmlite", lambda: "llvmlite-9.dist-info")
    assert store.read("k", tmp_path / "code") is None
    monkeypatch.undo()
    monkeypatch.setattr(store.util, "find_spec", lambda name: None)
    store._llvmlite.cache_clear()
    assert store.read("k", tmp_path / "code") == IMAGE
    store._llvmlite.cache_clear()


def test_code_not_used_for_long_makes_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = tmp_path / "code"
    names = [f"{n:064x}" for n in range(4)]
    size = store.write(names[0], IMAGE, where).stat().st_size
    monkeypatch.setattr(store, "LIMIT", 3 * size)
    (where / "notes.txt").write_text("mine")
    for name, age in ((f".{'0' * 16}.tmp", 10_000), (f".{'1' * 16}.tmp", 10)):
        (where / name).write_text("")
        os.utime(where / name, (time.time() - age,) * 2)
    for days, name in enumerate(names[1:3], 1):
        store.write(name, IMAGE, where)
        os.utime(where / name, (time.time() - 90_000 * days,) * 2)
    assert store.read(names[2], where) == IMAGE  # used now: the other one is older
    store.write(names[3], IMAGE, where)
    assert sorted(os.listdir(where)) == sorted([f".{'1' * 16}.tmp", names[0], names[2], names[3], "notes.txt"])


def test_a_cache_that_can_not_be_written_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MobileNetError, match="file: can't be made: File exists"):
        store.write("k", IMAGE, tmp_path / "file")
    monkeypatch.setattr(files.os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError(28, "disk full")))
    with pytest.raises(MobileNetError, match="disk full"):
        store.write("k", IMAGE, tmp_path / "code")
    assert os.listdir(tmp_path / "code") == []


def test_processes_that_compile_the_same_leave_one_whole_file(tmp_path: Path) -> None:
    where = tmp_path / "code"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: store.write("k", IMAGE, where), range(40)))
    assert store.read("k", where) == IMAGE
    assert os.listdir(where) == ["k"]


def test_the_key_is_of_everything_the_code_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    avx2, sse = TARGETS["avx2"], TARGETS["sse"]
    keys = {store.key("ab", avx2), store.key("ab", sse), store.key("ac", avx2)}
    assert len(keys) == 3
    assert store.key("ab", avx2) in keys
    monkeypatch.setattr(store, "_COMPILER", "another")
    assert store.key("ab", avx2) not in keys


def test_the_source_is_of_all_that_the_code_depends_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = Path(store.__file__).parents[1]
    others = {"arch.py", "fixed_point.py", "common/frozen.py", "photos/resampling.py"}
    own = {f"compiler/{path.name}" for path in (package / "compiler").glob("*.py")}
    for name in others | own:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(package / name, tmp_path / name)
    monkeypatch.setattr(store, "__file__", str(tmp_path / "compiler" / "store.py"))
    seen = {store._source()}
    assert seen == {store._COMPILER}
    for name in others | own:
        (tmp_path / name).write_text("# changed")
        seen.add(store._source())
    assert len(seen) == 1 + len(others) + len(own)


@pytest.mark.parametrize("target", ["amx", "avx512vnni", "sse", "neondot"])
def test_a_plan_that_was_kept_as_json_is_the_same(target: str) -> None:
    for number, network in enumerate((v1(0.25, 64), v2(0.35, 96), v2(0.35, 65, separable=False))):
        integers = Integers(zeros={layer.name: (number % 3,) for layer in network.layers})
        for precision, threads in (("f32", 3), ("bf16", 1), ("int8", 2)):
            plan = lower(network, TARGETS[target], precision=precision, threads=threads, integers=integers)
            kept = json.loads(json.dumps(plan.kept()))
            again = Plan.restored(kept, network, TARGETS[target])
            assert again == plan
            assert repr(again) == repr(plan), "the types are the same, too"


def test_the_name_of_a_networks_code_is_of_all_that_its_plans_depend_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_kept_or_made", lambda name, target, make: name)
    network, avx2 = v2(0.35, 96), TARGETS["avx2"]
    asked = network, avx2, "int8", Integers(), True, 1
    others = [
        (v2(0.35, 96, 999), *asked[1:]),
        (network, TARGETS["sse"], *asked[2:]),
        (network, avx2, "bf16", *asked[3:]),
        *((*asked[:3], facts, *asked[4:]) for facts in (Integers({"stem": "relu"}), Integers(zeros={"stem": (1,)}))),
        *((*asked[:3], facts, *asked[4:]) for facts in (Integers(large=frozenset("a")), Integers(nine=frozenset("a")))),
        (*asked[:4], False, 1),
        (*asked[:5], 2),
    ]
    names = [native._load(*each) for each in (asked, *others)]
    assert len(set(names)) == len(names)
    assert native._load(v2(0.35, 96), *asked[1:]) == names[0]


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(store.ENVIRONMENT, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert store.folder() == tmp_path / "mobilenet" / "code"
    monkeypatch.setenv(store.ENVIRONMENT, "/elsewhere")
    assert store.folder() == Path("/elsewhere")
    monkeypatch.delenv(store.ENVIRONMENT)
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert store.folder() == Path.home() / ".cache" / "mobilenet" / "code"
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os, "getuid", lambda: 987654)  # as in a container that runs as a user it does not know
    assert store.read("k") is None
    with pytest.raises(MobileNetError, match="set MOBILENET_CODE"):
        store.folder()


def test_a_function_outside_the_image_is_refused() -> None:
    with pytest.raises(MobileNetError, match="'b' is outside of its 400 bytes"):
        loader.Code(IMAGE[0], {"a": 0, "b": 400})


def test_a_system_that_lets_no_new_code_run_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    refusing = SimpleNamespace(mprotect=lambda *_: -1)
    monkeypatch.setattr(loader.ctypes, "CDLL", lambda *_, **__: refusing)
    with pytest.raises(MobileNetError, match=r"does not let it run: .*MOBILENET_TARGET=numpy runs without"):
        loader.Code(*IMAGE[:2])


def test_code_is_never_writable_and_executable() -> None:
    code = loader.Code(*IMAGE[:2])
    start = code.address["a"]
    for line in Path("/proc/self/maps").read_text().splitlines():
        low, high = (int(part, 16) for part in line.split()[0].split("-"))
        if low <= start < high:
            assert line.split()[1] == "r-xp"
            return
    raise AssertionError("the code is not mapped")
