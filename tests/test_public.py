"""What users see has names that work and says what it does."""

import ast
import importlib
import tomllib
from pathlib import Path

import pytest

import mobilenet

SOURCE = Path(mobilenet.__file__).parent
MODULES = sorted(SOURCE.rglob("*.py"))


def test_every_public_name_is_there_and_is_documented() -> None:
    assert "cost" in mobilenet.__all__
    for name in mobilenet.__all__:
        value = getattr(mobilenet, name)
        assert name in dir(mobilenet)
        assert name == "__version__" or (value.__doc__ or "").strip(), name


def test_the_names_stand_where_type_checkers_look() -> None:
    """Each public name is imported under TYPE_CHECKING as well, from the module it comes from at run time."""
    tree = ast.parse((SOURCE / "__init__.py").read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    imported = {
        alias.asname: (node.module, alias.name)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert {*imported, "__version__"} == set(mobilenet.__all__)
    for name, (module, original) in imported.items():
        assert name == original
        assert getattr(importlib.import_module(f"mobilenet.{module}"), name) is getattr(mobilenet, name)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"module 'mobilenet' has no attribute 'nonsense'"):
        _ = mobilenet.nonsense


def test_the_function_stays_when_its_module_is_imported() -> None:
    importlib.reload(importlib.import_module("mobilenet.cost"))
    assert callable(mobilenet.cost)
    assert str(mobilenet.cost(mobilenet.v1(0.25, 128)))


def test_the_version_is_that_of_the_project() -> None:
    project = SOURCE.parents[1] / "pyproject.toml"
    if not project.exists():
        pytest.skip("the package is installed away from its project")
    assert mobilenet.__version__ == tomllib.loads(project.read_text())["project"]["version"]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_everything_public_has_a_docstring(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), "the module"
    assert [name for name, node in _public(tree) if not ast.get_docstring(node)] == []


def _public(tree: ast.Module | ast.ClassDef, prefix: str = ""):
    """Yields public functions, classes and methods; of overloads and setters only the one with the body."""
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        marks = {ast.unparse(mark).rpartition(".")[2] for mark in node.decorator_list}
        if node.name.startswith("_") or marks & {"overload", "setter", "override"}:
            continue
        yield prefix + node.name, node
        if isinstance(node, ast.ClassDef):
            yield from _public(node, f"{prefix}{node.name}.")
