"""The WebAssembly export in a browser: headless Chromium, where it is installed, gives the engine's outputs.

MOBILENET_CHROMIUM names the program where it is none of the usual names.
"""

import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Empty, Queue
from typing import Any

import numpy as np
import pytest

import mobilenet
from mobilenet import photos, reference
from mobilenet.arch import v1, v2
from model_makers import random_model, random_pixels

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER = os.environ.get("MOBILENET_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
DATA = os.environ.get("MOBILENET_DATA")
SECONDS = 120  # until the page must have answered: a browser's first start takes some on a slow machine
KINDS = {".html": "text/html", ".mjs": "text/javascript", ".wasm": "application/wasm"}
PAGE = """<!doctype html><meta charset="utf-8"><script type="module">
const answer = (found) => fetch("/answer", { method: "POST", body: JSON.stringify(found) });
try {
  const { load, labels } = await import("./model.mjs");
  const network = await load();
  const pixels = new Uint8Array(await (await fetch("./pixels.bin")).arrayBuffer());
  const outputs = [...network.run(pixels)];
  await answer({ outputs, again: [...network.run(pixels)], labels });
} catch (error) {
  await answer({ error: String(error) });
}
</script>"""


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[Path, str, "Queue[Any]"]]:
    """A folder, the address that it is served at, and what pages there answer."""
    answers: Queue[Any] = Queue()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            file = tmp_path / Path(self.path).name
            data = file.read_bytes() if file.is_file() else b""
            self.send_response(200 if file.is_file() else 404)
            self.send_header("Content-Type", KINDS.get(file.suffix, "application/octet-stream"))
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_POST(self) -> None:
            answers.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Is quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield tmp_path, f"http://127.0.0.1:{server.server_address[1]}", answers
    server.shutdown()
    server.server_close()


def browsed(address: str, answers: "Queue[Any]", profile: Path) -> Any:
    """Returns what the page answers in a browser with a profile of its own."""
    assert BROWSER is not None
    options = ["--headless=new", "--disable-gpu", "--no-first-run", "--disable-extensions", "--mute-audio"]
    options += ["--no-sandbox"] if os.geteuid() == 0 else []  # which Chromium does not start with as root
    with subprocess.Popen(
        [BROWSER, *options, f"--user-data-dir={profile}", address], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        try:
            return answers.get(timeout=SECONDS)
        except Empty:
            process.kill()
            pytest.fail(f"the browser gave no answer in {SECONDS} s: {process.communicate()[1][-2000:]!r}")
        finally:
            process.terminate()


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
@pytest.mark.parametrize("family", [v1, v2])
def test_a_browser_gives_the_engine_s_outputs(
    family: Any, site: tuple[Path, str, "Queue[Any]"], tmp_path_factory: pytest.TempPathFactory
) -> None:
    network = family(0.25, (64, 72), 7)
    model = random_model(network, labels=[f"étiquette {n}" for n in range(7)])
    check(model, random_pixels(network, 1), site, tmp_path_factory.mktemp("profile"))


@pytest.mark.skipif(BROWSER is None or DATA is None, reason="no Chromium is installed, or MOBILENET_DATA is not set")
def test_a_browser_gives_the_engine_s_outputs_of_a_real_photo(
    site: tuple[Path, str, "Queue[Any]"], tmp_path_factory: pytest.TempPathFactory
) -> None:
    model = mobilenet.convert(Path(str(DATA)) / "models" / "mobilenet_v1_0.25_224_float.tflite")
    photo = photos.pixels((Path(str(DATA)) / "cat.bmp").read_bytes(), model.preprocessing)
    check(model, photo[None], site, tmp_path_factory.mktemp("profile"))


def check(model: mobilenet.Model, pixels: Any, site: tuple[Path, str, "Queue[Any]"], profile: Path) -> None:
    folder, address, answers = site
    network = model.network
    mobilenet.export(model, folder / "model.wasm")
    (folder / "pixels.bin").write_bytes(pixels.tobytes())
    (folder / "index.html").write_text(PAGE)
    found = browsed(f"{address}/index.html", answers, profile)
    assert "error" not in found, found
    assert found["labels"] == list(model.labels)
    assert found["again"] == found["outputs"]
    scaling = model.preprocessing.mean, model.preprocessing.std
    expected = reference.forward(network, model.tensors, pixels, scaling=scaling)
    epsilon = float(np.finfo(np.float32).eps)
    tolerance = reference.tolerance(network, model.tensors, pixels, epsilon, scaling=scaling)
    assert (np.abs(np.array(found["outputs"]) - expected.reshape(-1)) <= tolerance.reshape(-1)).all()
    assert np.ptp(expected) > 3 * tolerance.max(), "outputs that tell nothing"
