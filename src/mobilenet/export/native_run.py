"""Runs exported code before it is written: on this machine as a shared library, emulated, or in Node."""

import ctypes
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..compiler import link
from ..compiler.emulator import Emulator
from ..compiler.pack import aligned
from ..compiler.plan import Plan
from ..compiler.targets import Target, runnable
from ..errors import MobileNetError
from .c_header import output_floats

Photos = NDArray[np.uint8]
Floats = NDArray[np.float32]
Runner = Callable[[Photos], Floats]


@dataclass(frozen=True)
class Code:
    """Is what is exported.

    Attributes:
        target: what it is for.
        plan: what it computes.
        function: the name of what is to be called.
        files: by their paths.
        weights: what the function's fourth argument points to; None where the weights are inside.
    """

    target: Target
    plan: Plan
    function: str
    files: Mapping[str, bytes]
    weights: bytes | None

    def file(self, ending: str) -> bytes:
        """Returns the content of the one file with an ending."""
        (data,) = (content for name, content in self.files.items() if name.endswith(ending))
        return data


def runner(code: Code) -> tuple[str, Runner | None]:
    """Returns how code can be run on this machine, in words, and what runs it on photos [N, height, width, channels]
    and returns [N, outputs]; None if it can't be run."""  # fmt: skip
    if code.target.name == "wasm":
        if shutil.which("node") is None:
            return "not run: node is not here", None
        return "run in node", lambda photos: _in_node(code, photos)
    if code.target in runnable():
        return "run on this machine", lambda photos: _here(code, photos)
    try:
        machine = Emulator(code.target)
    except MobileNetError as error:
        return f"not run: {error}", None
    return "run emulated", lambda photos: _emulated(code, machine, photos)


def _here(code: Code, photos: Photos) -> Floats:
    """Runs the shared library."""
    outputs, scratch = np.full((len(photos), output_floats(code.plan)), np.nan, np.float32), aligned(code.plan.arena)
    scratch[:] = np.nan
    with tempfile.NamedTemporaryFile(suffix=".so") as file:
        file.write(code.file(".so"))
        file.flush()
        library = ctypes.CDLL(file.name)
    run = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 4)((code.function, library))
    weights = aligned(len(code.weights or b""))
    weights.view(np.uint8)[:] = np.frombuffer(code.weights or b"", np.uint8)
    for photo, output in zip(photos, outputs, strict=True):
        run(photo.ctypes.data, output.ctypes.data, scratch.ctypes.data, weights.ctypes.data)
    return outputs


def _emulated(code: Code, machine: Emulator, photos: Photos) -> Floats:
    """Runs the object file."""
    image, (offset,) = link.link([(code.function, code.file(".o"))])
    size, function = 4 * output_floats(code.plan), machine.map(image, "rx") + offset
    given, output = machine.map(photos[0].tobytes(), "r"), machine.map(bytes(size), "rw")
    scratch, weights = machine.map(b"\xff" * code.plan.arena, "rw"), machine.map(code.weights or b"", "r")
    found = []
    for photo in photos:
        machine.write(given, photo.tobytes())
        machine.write(output, b"\xff" * size)
        machine.call(function, given, output, scratch, weights)
        found.append(np.frombuffer(machine.read(output, size), np.float32))
    return np.array(found)


_NODE = """
const [loader, pixels] = process.argv.slice(1);
const { load, height, width, channels } = await import(loader);
const { readFileSync } = await import("node:fs");
const network = await load(), photos = readFileSync(pixels), size = height * width * channels;
for (let begin = 0; begin < photos.length; begin += size) {
  const photo = photos.subarray(begin, begin + size), first = network.run(photo), again = network.run(photo);
  if (Buffer.compare(Buffer.from(first.buffer), Buffer.from(again.buffer))) throw new Error("the second run differs");
  process.stdout.write(Buffer.from(again.buffer));
}
"""


def _in_node(code: Code, photos: Photos) -> Floats:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for path, content in code.files.items():
            (folder / Path(path).name).write_bytes(content)
        (folder / "pixels").write_bytes(photos.tobytes())
        (loader,) = folder.glob("*.mjs")
        command = ["node", "--input-type=module", "--eval", _NODE, str(loader), str(folder / "pixels")]
        done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        raise MobileNetError(f"export: node could not run the module: {done.stderr.decode(errors='replace')[-500:]}")
    return np.frombuffer(done.stdout, np.float32).reshape(len(photos), -1)
