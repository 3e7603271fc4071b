"""Pickles, only when asked for: in a process of its own, which can reach nothing, see `unpickle_child`."""

import contextlib
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ..common.files import shown
from ..errors import ModelError

_SECONDS = 300  # torch's import may take a while on a busy machine
# What makes Python load or write more than it is asked to (coverage, profilers, …) does not reach the child.
_ENVIRONMENT = {"HOME", "LANG", "LD_LIBRARY_PATH", "PATH", "PYTHONPATH", "TMPDIR"}
_CHILD = Path(__file__).with_name("unpickle_child.py")


@contextlib.contextmanager
def unpickled(path: Path) -> Iterator[Path]:
    """Gives a safetensors file, for as long as the context lasts, with the tensors of a .pth file.

    Raises:
        ModelError: names the file, and why torch refused it.
    """
    with tempfile.TemporaryDirectory(prefix="mobilenet-") as folder:
        target = Path(folder) / "tensors.safetensors"
        with _opened(path) as source, open(target, "wb") as out:
            try:
                # -P: the folder of the child's file is not where it looks for torch.
                done = subprocess.run(
                    [sys.executable, "-P", "-W", "ignore", str(_CHILD)],
                    env={name: value for name, value in os.environ.items() if name in _ENVIRONMENT},
                    stdin=source,
                    stdout=out,
                    stderr=subprocess.PIPE,
                    timeout=_SECONDS,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                raise ModelError(f"{shown(path)}: reading it took over {_SECONDS} seconds") from None
        if done.returncode:
            lines = done.stderr.decode(errors="replace").strip().splitlines()
            reason = lines[-1] if lines else f"the process ended with {done.returncode}"
            raise ModelError(f"{shown(path)}: is not read: {shown(reason)}")
        yield target


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise ModelError(f"{shown(path)}: can't be read: {error.strerror}") from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ModelError(f"{shown(path)}: is not a regular file")
        yield descriptor
    finally:
        os.close(descriptor)
