"""For all tests: compiled code is kept in a folder of this run, which its processes share."""

import os

import pytest

from mobilenet.compiler import store


@pytest.fixture(autouse=True, scope="session")
def _code_of_this_run(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # one of several, each with a folder of its own beside the others'
        folder = folder.parent
    os.environ.setdefault(store.ENVIRONMENT, str(folder / "code" / "private"))
