"""For all tests: compiled code is kept in a folder of this run, which its processes share.

With `MOBILENET_GUARDED=1` the memory, weights and pixels of engines that a test makes in its own process lie between
pages that can't be read or written, so that a step too far ends the run.
"""

import os
from collections.abc import Iterator
from typing import Any

import pytest

import compiler_tools
from mobilenet.compiler import native, pack, store


@pytest.fixture(autouse=True, scope="session")
def _code_of_this_run(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # one of several, each with a folder of its own beside the others'
        folder = folder.parent
    os.environ.setdefault(store.ENVIRONMENT, str(folder / "code" / "private"))


@pytest.fixture(autouse=True)
def _guarded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if os.environ.get("MOBILENET_GUARDED") != "1":
        yield
        return
    play = native._Tape.play

    def play_guarded(tape: native._Tape, image: Any, out: Any) -> None:
        play(tape, compiler_tools.guarded_copy(image), out)

    monkeypatch.setattr(native, "aligned", compiler_tools.guarded_floats)
    monkeypatch.setattr(pack, "aligned", compiler_tools.guarded_floats)
    monkeypatch.setattr(native._Tape, "play", play_guarded)
    kept = len(compiler_tools._kept)
    yield
    del compiler_tools._kept[kept:]
