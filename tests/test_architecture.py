"""The invariants of ARCHITECTURE.md, read off the source: who imports what, and that the file map is the tree."""

import ast
import re
import subprocess
import sys
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest

import mobilenet
from mobilenet.compiler.plan import KINDS
from mobilenet.compiler.targets import DEVICES, TARGETS, Target

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "mobilenet"
MODULES = sorted(SOURCE.rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Returns the top-level names of the absolute imports of a module, wherever in it they stand."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.partition(".")[0])
    return found


def test_arch_and_cost_import_the_standard_library_only() -> None:
    code = (
        "import sys, mobilenet.arch, mobilenet.cost, mobilenet.budget\n"
        "extra = {name.partition('.')[0] for name in sys.modules} - sys.stdlib_module_names - {'mobilenet'}\n"
        "print(sorted(name for name in extra if not name.startswith('_') and 'coverage' not in name))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_only_training_imports_torch() -> None:
    users = {path.relative_to(SOURCE).as_posix() for path in MODULES if "torch" in imported(path)}
    assert users
    others = {"doctor.py", "convert/unpickle_child.py"}
    assert all(name.startswith("training/") or name in others for name in users), users


def test_every_import_is_a_declared_dependency() -> None:
    """What is imported is in the base install, or in the extra that the module is for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    def names(requirements: list[str]) -> set[str]:
        found = {re.split(r"[<>=\[]", each)[0] for each in requirements}
        return {{"pillow": "PIL"}.get(name, name).replace("-", "_") for name in found}

    base = names(project["dependencies"])
    extras = project["optional-dependencies"]
    special = {
        "doctor.py": "train",
        "storage/keras_h5.py": "h5",
        "convert/keras.py": "h5",
        "convert/keras_model.py": "keras",
        "convert/unpickle_child.py": "train",
        "convert/hub.py": "hub",
        "compiler/emulator.py": "emulate",
    }
    for path in MODULES:
        place = path.relative_to(SOURCE).as_posix()
        extra = "train" if place.startswith("training/") else special.get(place)
        allowed = base | (names(extras[extra]) if extra else set())
        allowed |= names(extras["onnx"] + extras["litert"]) if place == "export/checked.py" else set()
        assert imported(path) - set(sys.stdlib_module_names) <= allowed, place


def test_only_the_compiler_imports_llvmlite() -> None:
    users = {path.relative_to(SOURCE).as_posix() for path in MODULES if "llvmlite" in imported(path)}
    assert users == {f"compiler/{name}.py" for name in ("build", "fixed", "ir", "matrices", "substitutes")}


def test_importing_mobilenet_and_predicting_need_neither_torch_nor_a_second_compilation() -> None:
    code = (
        "import sys, mobilenet; assert 'numpy' not in sys.modules\n"
        "import numpy; model = mobilenet.create(mobilenet.v2(0.1, 32, 3))\n"
        "model.predict(numpy.zeros((40, 50, 3), numpy.uint8)).top(2)\n"
        "print(*{'torch', 'llvmlite'} & set(sys.modules))"
    )
    command = [sys.executable, "-W", "error", "-c", code]
    runs = [subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(2)]
    assert runs[0].strip() in ("llvmlite", "")  # another test may have compiled it
    assert runs[1].strip() == ""


def test_the_file_map_is_the_tree() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    listed = set(re.findall(r"^\s*`([\w/.]+\.py)`", text, re.MULTILINE))
    tree = {path.relative_to(SOURCE).as_posix() for path in MODULES}
    assert listed == tree, f"only in the map: {listed - tree}; only in the tree: {tree - listed}"


def test_no_layer_names_outside_arch() -> None:
    """Names of layers are made in arch.py alone (the notes' own names of layers in notes.py)."""
    made = re.compile(r"""f["'](block\{|.*\.(depthwise|pointwise|expand|project)["'])""")
    users = {path.name for path in MODULES if made.search(path.read_text())}
    assert users <= {"arch.py", "notes.py"}, users


# What kernels are made with; of these `matrices` writes matrix registers' instructions, and must name those.
BESIDE_KERNELS = ("ending", "matrices", "matrix", "schedule", "stages")


def kernel_modules() -> list[Path]:
    """Returns the compiler's modules that define a kernel, and those that they are helped by."""
    found = []
    for path in (SOURCE / "compiler").glob("*.py"):
        classes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ClassDef)]
        kernels = {kind.__name__ for kind in KINDS.values()} | {"Kernel"}
        if path.stem in BESIDE_KERNELS or any(ast.unparse(base) in kernels for each in classes for base in each.bases):
            found.append(path)
    return sorted(found)


def instruction_sets_named(source: str) -> list[str]:
    """Returns what of a module's code, its texts but for docstrings included, depends on which target it is for.

    A kernel may ask a target for its lanes and registers, and `kernel` for what follows from all else.
    """
    tree = ast.parse(source)
    targets = [*TARGETS.values(), *DEVICES.values()]
    names = {name for t in targets for name in (t.name, t.machine, *t.words)} - {"bf16"}  # also what numbers are
    telling = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, sorted(names)))})(?!\w)")
    told = {ast.get_docstring(node, clean=False) for node in ast.walk(tree)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)}  # fmt: skip
    asked = {field.name for field in fields(Target)} - {"lanes", "registers"}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value not in told:
            found += telling.findall(node.value)
        elif isinstance(node, ast.Attribute) and node.attr in asked and ast.unparse(node.value).endswith("target"):
            found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize("path", kernel_modules(), ids=lambda path: path.stem)
def test_no_kernel_names_an_instruction_set(path: Path) -> None:
    assert instruction_sets_named(path.read_text()) == []
    assert "llvm." not in path.read_text() or path.stem == "matrices"  # what LLVM calls an instruction


def test_the_kernels_are_looked_through() -> None:
    names = {path.stem for path in kernel_modules()}
    assert {kind.__module__.rpartition(".")[2] for kind in KINDS.values()} | {"machine", *BESIDE_KERNELS} == names
    for code in ("code.target.machine", "'tiles' in target.words", "x = f'neon.{y}'", "x = 'riscv64'"):
        assert instruction_sets_named(code)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_modules_are_one_idea(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 560, "split it: a module is one idea"


def test_version_stands_once() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", mobilenet.__version__)
    assert f"## {mobilenet.__version__}" in (ROOT / "CHANGELOG.md").read_text()
