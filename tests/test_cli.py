"""The command line: every command's output, its JSON document, its exit codes, and what it costs to start."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mobilenet
from mobilenet import cli
from mobilenet.convert import write
from mobilenet.demo import write_photos
from mobilenet.errors import MobileNetError


def run(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, str, str]:
    code = cli.main([str(word) for word in argv])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes that differ in brightness, 12 photos each, split by the trainer."""
    root = tmp_path_factory.mktemp("cli") / "photos"
    rng = np.random.default_rng(0)
    for name, level in (("dark", 40), ("light", 200)):
        (root / name).mkdir(parents=True)
        for n in range(12):
            noise = rng.integers(-30, 30, (36, 40, 3))
            Image.fromarray((level + noise).astype(np.uint8)).save(root / name / f"{n}.png")
    return root


@pytest.fixture(scope="module")
def model(photos: Path) -> Path:
    folder = photos.parent / "model"
    argv = ["train", photos, "-o", folder, "--alpha", 0.1, "--resolution", 32, "--downsampling", 32, "--epochs", 2]
    assert cli.main([str(word) for word in [*argv, "--batch", 10, "--precision", "f32", "--threads", 1]]) == 0
    return folder


# ---------------------------------------------------------------------------------------------- cost and choose


def test_cost_prints_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "cost", "v2")
    assert (code, err) == (0, "")
    assert "300,774,272" in out
    assert "block16.project" in out


def test_cost_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "cost", "v1", "--json")
    document = json.loads(out)
    assert code == 0
    assert (document["macs"], document["params"]) == (568_740_352, 4_231_976)


def test_cost_takes_every_argument_of_the_architecture(capsys: pytest.CaptureFixture[str]) -> None:
    argv = "v1 --alpha 0.5 --resolution 97x64 --channels 1 --no-top --pooling max --downsampling 16 --standard"
    code, out, _ = run(capsys, "cost", *argv.split(), "--source", "timm", "--json")
    network = mobilenet.v1(
        0.5,
        (97, 64),
        channels=1,
        include_top=False,
        pooling="max",
        downsampling=16,
        separable=False,
        conventions="timm",
    )
    assert code == 0
    assert json.loads(out)["macs"] == mobilenet.cost(network).macs


def test_choose(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "choose", "--macs", "100M", "--params", "3M", "--memory", "1MB", "--limit", 3)
    assert code == 0
    assert "v2 0.5 128" in out
    code, out, _ = run(capsys, "choose", "--macs", "100M", "--family", "v1", "--json")
    assert code == 0
    assert {candidate["family"] for candidate in json.loads(out)} == {"v1"}


# ---------------------------------------------------------------------------------------------- the main road


def test_evaluate_writes_figures_and_report(model: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "evaluate", model, photos, "--json")
    document = json.loads(out)
    assert code == 0
    assert document["split"] == "val"
    report = Path(document["report"])
    assert report == model / "report.html"
    assert "<svg" in report.read_text()


@pytest.fixture(scope="module")
def mixed(photos: Path) -> Path:
    """The photos with half of each class in the other."""
    root = photos.parent / "mixed"
    for path in photos.rglob("*.png"):
        name = path.parent.name if int(path.stem) % 2 else {"dark": "light", "light": "dark"}[path.parent.name]
        (root / name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, root / name / f"{path.parent.name}{path.name}")
    return root


def test_evaluate_gate(model: Path, mixed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "evaluate", model, mixed, "--split", "all", "--no-report", "--min-top1", 0.75)
    assert code == 4
    assert "below the 0.75" in err
    assert "top-1" in out
    assert run(capsys, "evaluate", model, mixed, "--split", "all", "--no-report", "--min-top1", 0.25)[0] == 0


def test_evaluate_gate_is_one_document(model: Path, mixed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ("evaluate", model, mixed, "--split", "all", "--no-report", "--min-top1", 0.75, "--json")
    code, out, err = run(capsys, *argv)
    assert code == 4
    assert json.loads(out)["split"] == "all"
    assert "below the 0.75" in err


@pytest.mark.parametrize("limit", ["nan", "-0.1", "60"])
def test_a_gate_that_nothing_can_miss_or_pass_is_refused(
    model: Path, photos: Path, capsys: pytest.CaptureFixture[str], limit: str
) -> None:
    code, out, err = run(capsys, "evaluate", model, photos, f"--min-top1={limit}")
    assert (code, out) == (2, "")
    assert f"min-top1: got {float(limit)}, needed a number from 0 to 1" in err


@pytest.mark.parametrize("command", ["evaluate {model} {photos} --report", "bench {model} --picture"])
def test_where_a_report_goes_is_looked_at_before_the_work(
    model: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    argv = command.format(model=model, photos=photos).split()
    os.mkfifo(tmp_path / "pipe")
    for name, why in (("none/x", f"the folder {tmp_path / 'none'} is missing; make it"), ("pipe", "is a FIFO")):
        code, out, err = run(capsys, *argv, tmp_path / name)
        assert (code, out) == (1, "")
        assert f"{tmp_path / name}: can't be written: {why}" in err
        assert "evaluating" not in err
    assert (tmp_path / "pipe").is_fifo()


def test_an_int8_model_is_not_made_in_its_photos(model: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "quantize", model, "--photos", photos, "-o", photos / "int8")
    assert (code, out) == (2, "")
    assert f"output: {photos / 'int8'} lies in the data set and would become a class" in err
    assert sorted(path.name for path in photos.iterdir()) == ["dark", "light"]


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        ("demo -o {file}", 2, "{file}: is no folder; name one"),
        ("import {file} -o {file}/new", 2, "output: {file}/new can't be made: there is no folder {file}"),
        ("export {model} -o {taken}.o --target sse", 1, "{taken}.h: can't be written: is a folder"),
        ("import {file} -o {file}", 2, "output: {file} is no folder"),
        (
            "quantize {model} --photos {file}s -o {file}8",
            3,
            "{file}s: no such folder; give one with a few dozen photos",
        ),
        ("cost v2 --source nosuch", 2, "source: got 'nosuch'"),
        ("export {model} -o {file}.onnx --format tflite", 2, "whose ending means onnx; change one of them"),
    ],
)
def test_mistakes_are_told(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, code: int, said: str
) -> None:
    (tmp_path / "file").write_text("x")
    names = {"file": tmp_path / "file", "taken": tmp_path / "taken"}
    names["taken"].with_suffix(".h").mkdir()
    words = [word.format(model=model, **names) for word in command.split()]
    found, out, err = run(capsys, *words)
    assert (found, out) == (code, "")
    assert said.format(**names) in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "taken.h"]


@pytest.mark.parametrize(
    "argv",
    [("predict", ""), ("predict", "model", ""), ("train", "", "-o", "x"), ("import", "", "-o", "x")],
)
def test_an_empty_path_is_not_the_current_folder(argv: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, *argv, *([""] if len(argv) == 2 else []))
    assert code == 2
    assert "got an empty path, needed the name of a file or folder" in err


def test_an_error_in_the_stream_of_paths_ends_the_document(
    model: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, "predict", model, photos / "dark" / "0.png", f"@{tmp_path / 'none.txt'}", "--json")
    assert code != 0
    assert "none.txt" in err
    assert "none.txt" in json.loads(out)["error"]


def test_a_model_folder_within_the_photos_is_refused(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "train", photos, "-o", photos / "model")
    assert code == 2
    assert "lies in the data set" in err
    assert not (photos / "model").exists()


@pytest.mark.parametrize("command", ["train", "demo"])
def test_without_torch_it_says_what_to_install(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    argv = ["train", tmp_path, "-o", tmp_path / "m"] if command == "train" else ["demo", "-o", tmp_path / "d"]
    code, _, err = run(capsys, *argv)
    assert code == 1
    assert "pip install 'mobilenet[train]'" in err


def test_the_demo_leaves_other_peoples_folders_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "photos" / "mine").mkdir(parents=True)
    code, _, err = run(capsys, "demo", "-o", tmp_path)
    assert code == 3
    assert "--output" in err
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["mine"]


def test_predict(model: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "predict", model, photos / "dark", "--format", "jsonl", "--top", 1)
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert len(rows) == 12


def test_predict_goes_on_after_a_broken_photo(
    model: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff no photo")
    code, out, _ = run(capsys, "predict", model, broken, photos / "light" / "0.png", "--json")
    document = json.loads(out)
    assert code == 3
    assert document["failed"] == 1
    assert [row.get("error") is None for row in document["photos"]] == [False, True]


def test_data_check(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "data", "check", photos, "--json")
    assert code == 0
    assert json.loads(out)
    for split in ("train", "test"):
        for name in ("dark", "light"):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            (folder / "a.png").write_bytes((photos / name / "0.png").read_bytes())
    code, out, _ = run(capsys, "data", "check", tmp_path)
    assert code == 3


def test_training_into_a_taken_folder_is_refused(model: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (model / "model.safetensors").read_bytes()
    code, _, err = run(capsys, "train", photos, "-o", model)
    assert code in (1, 2)
    assert "--resume" in err
    assert (model / "model.safetensors").read_bytes() == before
    code, out, _ = run(capsys, "train", photos, "-o", model, "--resume", "--json")
    assert code == 0
    assert json.loads(out)["epochs"] == 2


def test_the_digits_of_the_demo_are_whole(tmp_path: Path) -> None:
    """1,797 digits as scikit-learn has them: counts a class, and a zero that is dark in its middle."""
    assert write_photos(tmp_path) == 1797
    counts = [len(list(tmp_path.glob(f"*/{digit}/*.png"))) for digit in range(10)]
    assert counts == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    zero = np.asarray(Image.open(tmp_path / "train" / "0" / "0000.png"))
    assert zero.shape == (32, 32)
    assert zero[14:18, 14:18].mean() < 30 < zero.max()


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "doctor")
    assert code == 0
    assert f"numpy         {np.__version__}" in out
    facts = json.loads(run(capsys, "doctor", "--json")[1])
    assert facts["cores"] >= 1
    assert facts["memory_bytes"] > 1 << 28


# ---------------------------------------------------------------------------------------------- errors and exit codes


@pytest.mark.parametrize(
    ("argv", "code", "text"),
    [
        (["cost", "v3"], 2, "invalid choice: 'v3'"),
        (["cost", "v2", "--alpha", "-1"], 2, "alpha: got -1.0"),
        (["cost", "v2", "--resolution", "31"], 2, "resolution: got 31"),
        (["cost", "v2", "--resolution", "1x2x3"], 2, "got '1x2x3', needed N or HxW in pixels"),
        (["choose", "--limit", "0"], 2, "limit: got 0"),
        (["predict", "m", "p", "--csv"], 2, "--csv"),
        (["cost", "v2", "--source", "kears"], 2, "kears"),
        (["choose", "--macs", "lots"], 2, "lots"),
        (["choose", "--macs", "1"], 4, "MobileNetV1 alpha 0.1"),
        (["predict", "no-such-folder", "x.jpg"], 3, "no-such-folder"),
        (["data", "check", "no-such-folder"], 3, "no-such-folder"),
        (["train", "no-such-folder", "-o", "out"], 3, "no-such-folder"),
        (["trian"], 2, "invalid choice: 'trian'"),
        ([], 2, "COMMAND"),
    ],
)
def test_bad_input_gets_a_clear_error(
    argv: list[str],
    code: int,
    text: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    found, out, err = run(capsys, *argv)
    assert (found, out) == (code, "")
    assert text in err
    assert "Traceback" not in err


def test_an_error_with_json_is_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "cost", "v2", "--alpha", "0", "--json")
    assert json.loads(out) == {"error": json.loads(out)["error"], "exit_code": code}
    assert code == 2
    assert json.loads(out)["error"] in err


@pytest.mark.parametrize(
    "argv", [["predict", "--json"], ["cost", "v3", "--json"], ["cost", "v2", "--json", "--alhpa", "0"]]
)
def test_a_usage_error_with_json_is_one_document(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, *argv)
    assert code == 2
    document = json.loads(out)
    assert document["exit_code"] == 2
    assert document["error"] in err
    assert "usage:" not in document["error"]


@pytest.mark.parametrize(
    ("error", "code"),
    [(KeyboardInterrupt(), 130), (MemoryError("x"), 1), (OSError(28, "disk full"), 1), (MobileNetError("x"), 1)],
)
def test_exit_codes_of_what_can_happen(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr("mobilenet.doctor.examine", fail)
    assert run(capsys, "doctor")[0] == code


def test_a_warning_is_a_line_without_our_source(model: Path, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    argv = [sys.executable, "-m", "mobilenet", "predict", model, photos / "dark" / "0.png", "--format", "csv"]
    env = os.environ | {"MOBILENET_CODE": str(tmp_path / "file")}
    done = subprocess.run(argv, capture_output=True, text=True, check=True, env=env)
    told = f"compiled code can't be kept for the next start: {tmp_path / 'file'}: can't be made: File exists"
    assert done.stderr.splitlines()[-1] == f"mobilenet: {told}; set MOBILENET_CODE"


def test_a_closed_pipe_is_no_error() -> None:
    command = f"{sys.executable} -m mobilenet choose | head -1"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    ("argv", "stdout", "code"),
    [
        ("choose", "> /dev/full", 1),
        ("choose --macs 1 --json", "> /dev/full", 4),
        ("choose --limit", "--json > /dev/full", 2),
        ("choose", "| (exec <&-; sleep 1)", 0),
        ("choose --macs 1 --json", ">&-", 4),
        ("choose", ">&- 2>&-", 0),
        ("choose --limit", "2>&-", 2),
        ("choose --limit", "2> /dev/full", 2),
        ("predict nothing photo", "2> /dev/full", 3),
        ("choose --macs 1", "2> /dev/full", 4),
        ("predict nothing -", "<&- 2>&-", 3),
    ],
)
def test_an_output_that_can_not_be_written_has_an_exit_code_of_ours(
    argv: str, stdout: str, code: int, unbuffered: str
) -> None:
    command = f"set -o pipefail; {sys.executable} -m mobilenet {argv} {stdout}"
    done = subprocess.run(
        ["bash", "-c", command],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_messages_for_a_closed_standard_error_do_not_go_to_stdout() -> None:
    command = f"{sys.executable} -m mobilenet choose --macs 1 --json 2>&-"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert json.loads(done.stdout)["exit_code"] == 4


def test_photos_of_a_closed_standard_input_are_none(model: Path) -> None:
    command = f"{sys.executable} -m mobilenet predict {model} - <&-"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "photo  label  probability\n", "")


def test_an_import_leaves_a_folder_of_photos_alone(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = mobilenet.create(mobilenet.v2(0.1, 32, 3, conventions="torchvision"))
    write(source, tmp_path / "x.safetensors", "torchvision")
    for output in (photos, photos / "dark"):
        before = {path: path.stat() for path in output.rglob("*")}
        code, out, err = run(capsys, "import", tmp_path / "x.safetensors", "-o", output, "--resolution", 32)
        assert (code, out) == (2, "")
        assert f"output: {output} holds '" in err
        assert "and no model; choose a folder of its own" in err
        assert {path: path.stat() for path in output.rglob("*")} == before


def test_an_import_looks_where_its_model_goes_before_it_reads_anything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "README.md").write_text("ours")
    code, _, err = run(capsys, "import", tmp_path / "missing.h5", "-o", tmp_path)
    assert code == 3
    assert f"{tmp_path / 'README.md'}: would be overwritten" in err


def test_an_import_refuses_no_folder_but_one_of_photos(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "x.safetensors"
    write(mobilenet.create(mobilenet.v2(0.1, 32, 3, conventions="torchvision")), source, "torchvision")
    command = ("import", source, "--resolution", 32, "-o")
    for name, said in (("photo.JPG", "photo.JPG"), ("cats/photo", "cats"), ("a\x1b.png", r"a\x1b.png")):
        output = tmp_path / f"of {Path(name).parts[0]}"
        (output / name).parent.mkdir(parents=True)
        (output / name).write_bytes(b"")
        code, _, err = run(capsys, *command, output)
        assert code == 2
        assert f"{said} holds '{said}' and no model; choose a folder of its own" in err
    output = tmp_path / "out"
    (output / ".git").mkdir(parents=True)
    left = (f"model.{'0' * 16}.safetensors", f".{'0' * 16}.tmp", ".DS_Store", ".x.png", "labels.txt", "report.html")
    for name in left:
        (output / name).write_bytes(b"")
    assert run(capsys, *command, output)[0] == 0
    assert (output / "config.json").exists()
    (output / "photos").mkdir()
    assert run(capsys, *command, output)[0] == 0  # the model's


def test_an_error_names_the_command_once(tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = mobilenet.create(mobilenet.v1(0.1, 32, 3))
    model.quantize(np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)).save(tmp_path / "m")
    code, _, err = run(capsys, "quantize", tmp_path / "m", "--photos", photos, "-o", tmp_path / "q")
    assert code == 2
    assert err.startswith("mobilenet quantize: <Model ")


# ---------------------------------------------------------------------------------------------- the door


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "--version") == (0, f"mobilenet {mobilenet.__version__}\n", "")


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_teaches(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, name, "--help")
    assert code == 0
    assert cli.COMMANDS[name].example in out


def test_every_example_in_the_help_parses() -> None:
    for command in cli.COMMANDS.values():
        argv = command.example.split()[1:]
        assert cli._parser(argv).parse_args(argv).run is command.run


def test_starting_imports_no_more_than_it_needs() -> None:
    code = (
        "import sys; from mobilenet.cli import main; main(['cost', 'v2']); print(sorted(sys.modules), file=sys.stderr)"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr
    assert "'mobilenet.cost'" in loaded
    assert not any(f"'{name}'" in loaded for name in ("numpy", "PIL", "torch", "asyncio"))
