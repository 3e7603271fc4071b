"""For all tests: compiled code is kept in a folder of this run, which its processes share."""

import os

import pytest

from mobilenet.compiler import store


@pytest.fixture(autouse=True, scope="session")
def _code_of_this_run(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ.setdefault(store.ENVIRONMENT, str(tmp_path_factory.mktemp("code") / "private"))
