"""Measuring a compiled engine: whose time is whose, what the machine can do, the table, the picture, the commands."""

import json
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mobilenet import cli
from mobilenet.arch import v1, v2
from mobilenet.compiler import profile, schedule
from mobilenet.compiler.lower import lower
from mobilenet.compiler.machine import CACHE, Machine
from mobilenet.compiler.profile import Profile
from mobilenet.compiler.roofline import picture
from mobilenet.compiler.stages import stages
from mobilenet.compiler.targets import TARGETS, choose, runnable
from mobilenet.cost import cost
from mobilenet.errors import UsageError
from mobilenet.model import Model, create

NETWORK = v1(0.25, (256, 160), 7)


@pytest.fixture(scope="module")
def model() -> Model:
    return create(NETWORK, seed=1)


@pytest.fixture(scope="module")
def found(model: Model) -> Profile:
    return model.compile(threads=2).profile(seconds=0.05)


# --------------------------------------------------------------------------------------------------------- figures


def test_every_layer_has_its_time_and_its_operations(found: Profile) -> None:
    assert [each.layer for each in found.layers] == list(NETWORK.layers)
    assert all(each.seconds > 0 for each in found.layers)
    assert found.flops == sum(each.flops for each in found.layers) == 2 * cost(NETWORK).macs
    low, median, high = found.latency
    assert 0 < low <= median <= high
    assert found.calls >= 5
    assert found.throughput > 0
    assert found.waiting >= 0


def test_one_image_of_the_callers_is_measured(model: Model) -> None:
    engine = model.compile(threads=2)
    pixels = np.zeros((1, *NETWORK.input), np.float32)
    assert engine.profile(pixels, seconds=0.01).calls >= 5
    with pytest.raises(UsageError, match="pixels: got 2 images, needed one"):
        engine.profile(np.concatenate([pixels, pixels]))
    with pytest.raises(UsageError, match="pixels: got float64"):
        engine.profile(pixels.astype(np.float64))
    with pytest.raises(UsageError, match="seconds: got 0"):
        engine.profile(seconds=0)


def test_a_profile_changes_no_result(model: Model) -> None:
    engine = model.compile(threads=2)
    pixels = np.random.default_rng(0).integers(0, 256, (1, *NETWORK.input), np.uint8)
    before = engine(pixels)
    engine.profile(seconds=0.01)
    plan, tape = engine.marked()
    out = np.empty_like(before)
    tape.play(pixels[0], out[0])
    assert np.array_equal(out, before)
    assert np.array_equal(engine(pixels), before)
    assert [len(marks) for marks in tape.marks] == [len(part) + 1 for part in plan.parts]
    assert all((np.diff(marks) > 0).all() for marks in tape.marks)


def test_a_layers_time_is_that_of_its_own_calls() -> None:
    """Ticks made by hand: each call of the n-th layer took n + 1 of them, and each thread waited 1000 before each."""
    network = v2(0.35, (128, 160), 7)
    plan = lower(network, TARGETS["sse"], threads=2)
    number = {layer.name: n + 1 for n, layer in enumerate(network.layers)}
    ticks = [np.array([number[step.layer] if step else 1000 for step in part]) for part in plan.parts]
    layers, waiting = profile._layers(plan, [ticks, ticks, [10 * part for part in ticks]], 100.0, "f32")
    for each in layers:
        calls = sum(step is not None and step.layer == each.layer.name for part in plan.parts for step in part)
        assert each.seconds == pytest.approx(number[each.layer.name] * calls / 2 / 100)
    assert waiting == pytest.approx(sum(step is None for part in plan.parts for step in part) / 2 * 10)


def test_bytes_are_of_weights_and_activations() -> None:
    network = v2(0.35, 96, 7)
    plan = lower(network, TARGETS["sse"])
    ticks = [[np.ones(len(part)) for part in plan.parts]]
    layers = {each.layer.name: each for each in profile._layers(plan, ticks, 1.0, "f32")[0]}
    stem = network.layers[0]
    assert layers["stem"].bytes == 96 * 96 * 3 + 4 * (
        27 * stem.output.channels + stem.output.channels + stem.output.size
    )
    adding = next(layer for layer in network.layers if layer.adds)
    moved = adding.input.size + 2 * adding.output.size + (adding.input.channels + 1) * adding.output.channels
    assert layers[adding.name].bytes == 4 * moved
    halved = {each.layer.name: each for each in profile._layers(plan, ticks, 1.0, "bf16")[0]}
    assert halved[adding.name].bytes == 2 * moved
    assert layers["pool"].bytes == 4 * (network.layers[-2].input.size + network.layers[-2].output.size)


@pytest.mark.parametrize("network", [v2(1.0, 224), v1(0.5, 224), v2(0.35, 64)], ids=str)
@pytest.mark.parametrize("threads", [1, 3])
def test_layers_in_strips_are_those_of_the_schedule(network, threads: int) -> None:
    groups = profile.strips(lower(network, TARGETS["avx512"], threads=threads))
    expected = []
    for group in schedule.groups(stages(network, TARGETS["avx512"], "f32"), threads=threads):
        names = list(dict.fromkeys(stage.layer.name for stage in group.stages))
        expected += [names] if len(group.stages) > 1 else [[name] for name in names]
    expected = [names for n, names in enumerate(expected) if names != expected[n - 1] or not n]
    assert list(dict.fromkeys(map(tuple, groups.values()))) == [tuple(names) for names in expected]


@pytest.mark.parametrize("target", runnable(), ids=lambda target: target.name)
def test_the_machine_is_measured(target) -> None:
    machine = Machine(target, 2)
    assert 1e8 < machine.flops() < 1e14
    assert 1e7 < machine.bandwidth(1 << 20) < 1e13
    assert machine.bandwidth(CACHE, 10) > 1e7


def test_wider_vectors_do_more() -> None:
    names = [target.name for target in runnable()]
    if not {"avx2", "sse"} <= set(names):
        pytest.skip("this machine has one width only")
    assert max(Machine(TARGETS["avx2"], 1).flops() for _ in range(5)) > 1.3 * max(
        Machine(TARGETS["sse"], 1).flops() for _ in range(5)
    )


# ------------------------------------------------------------------------------------------------ table and picture


def test_the_table_shows_layers_in_strips_joined(found: Profile) -> None:
    lines = str(found).splitlines()
    assert lines[0] == str(NETWORK)
    rows = lines[3 : 3 + len(found.layers)]
    assert [row[2:].split()[0] for row in rows] == [layer.name for layer in NETWORK.layers]
    drawn = "".join(row[0] for row in rows)
    for piece in drawn.split():
        assert piece.strip("╭│╰") == ""
    assert drawn.count("╭") == drawn.count("╰") == sum(each.first and each.group > 1 for each in found.layers) > 0
    assert any(line.strip().startswith("waiting") for line in lines)
    for name in ("latency", "throughput", "speed", "peak", "memory", "cache"):
        assert any(line.startswith(name) for line in lines)
    alone = replace(found, threads=1)
    assert not any(line.strip().startswith("waiting") for line in str(alone).splitlines())


def test_the_picture_is_an_svg_with_a_dot_a_layer(found: Profile) -> None:
    root = ElementTree.fromstring(picture(found))
    space = "{http://www.w3.org/2000/svg}"
    assert root.tag == f"{space}svg"
    titles = [title.text for title in root.iter(f"{space}title")]
    counted = [each.layer.name for each in found.layers if each.flops]
    assert sorted(str(title).split(":")[0] for title in titles) == sorted(counted)
    width, height = map(float, root.attrib["viewBox"].split()[2:])
    for dot in root.iter(f"{space}circle"):
        assert 0 < float(dot.attrib["cx"]) < width
        assert 0 < float(dot.attrib["cy"]) < height
    assert len(list(root.iter(f"{space}path"))) == 2


def test_a_faster_layer_stands_higher_and_a_longer_one_is_larger(found: Profile) -> None:
    first = found.layers[0]
    slow = replace(found, layers=(first, replace(found.layers[1], seconds=100 * found.layers[1].seconds)))
    quick = replace(found, layers=(first, found.layers[1]))
    name = found.layers[1].layer.name

    def dot(of: Profile) -> dict[str, str]:
        root = ElementTree.fromstring(picture(of))
        return next(
            each.attrib for each in root.iter("{http://www.w3.org/2000/svg}circle")
            if any(str(title.text).startswith(f"{name}:") for title in each)
        )  # fmt: skip

    assert float(dot(slow)["r"]) > float(dot(quick)["r"])
    assert dot(slow)["cx"] == dot(quick)["cx"]


# --------------------------------------------------------------------------------------------------------- commands


def run(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, str, str]:
    code = cli.main([str(word) for word in argv])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture(scope="module")
def folder(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "model"
    model.save(path)
    return path


def test_compile_says_what_it_made(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "compile", folder, "--threads", 2, "--json")
    made = json.loads(out)
    assert code == 0
    assert (made["precision"], made["threads"], made["target"]) == ("f32", 2, choose().name)
    assert Path(made["kept"]).stat().st_size > made["code"] > 0
    assert min(made["kernels"], made["weights"], made["arena"], made["seconds"]) > 0
    code, out, _ = run(capsys, "compile", folder, "--threads", 2)
    assert code == 0
    assert f"{made['kernels']} kernels" in out
    assert made["kept"] in out


def test_compile_fails_where_nothing_can_be_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    create(v1(0.1, 32, 3)).save(tmp_path / "model")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MOBILENET_CODE", str(tmp_path / "file"))
    code, out, err = run(capsys, "compile", tmp_path / "model", "--threads", 1, "--json")
    assert code == 1
    assert json.loads(out)["error"] in err
    assert err.endswith(
        f"kept for the next start: {tmp_path / 'file'}: can't be made: File exists; set MOBILENET_CODE\n"
    )


def test_bench_prints_figures_and_draws(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "bench", folder, "--threads", 2, "--seconds", 0.02, "--json")
    figures = json.loads(out)
    assert code == 0
    assert figures["picture"] == str(folder / "roofline.svg")
    ElementTree.parse(folder / "roofline.svg")
    assert len(figures["layers"]) == len(NETWORK.layers)
    assert figures["share_of_peak"] == pytest.approx(figures["flops_per_second"] / figures["peak_flops_per_second"])
    code, out, _ = run(capsys, "bench", folder, "--threads", 2, "--seconds", 0.02, "--no-picture")
    assert code == 0
    assert "roofline" not in out
    assert "of peak" in out


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["--precision", "f16"], 2, "precision: got 'f16'"),
        (["--threads", "0"], 2, "threads: got 0"),
        (["--target", "mmx"], 2, "invalid choice: 'mmx'"),
    ],
)
@pytest.mark.parametrize("command", ["compile", "bench"])
def test_bad_arguments_get_a_clear_error(
    command: str, words: list[str], code: int, text: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found, out, err = run(capsys, command, folder, *words)
    assert (found, out) == (code, "")
    assert text in err
