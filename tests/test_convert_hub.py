"""Published weights: fetched from a server that speaks the hub's protocol, cached, checked; and clear words offline."""

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import mobilenet
from mobilenet.convert import hub
from mobilenet.errors import MobileNetError, ModelError, UsageError
from mobilenet.storage import tensors_file
from test_convert_torch import put, timm_folder

COMMIT = "0123456789abcdef0123456789abcdef01234567"
DEEP = os.environ.get("MOBILENET_DEEP") == "1"
needs_hub = pytest.mark.skipif(
    importlib.util.find_spec("huggingface_hub") is None, reason="huggingface_hub is not installed"
)


class Hub:
    """Is a hub with a few files: names them by SHA-256 if they are large files there, else by git's hash."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files, self.asked = files, []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                self.answer(body=False)

            def do_GET(self) -> None:
                self.answer(body=True)

            def answer(self, body: bool) -> None:
                hub.asked.append(self.path)
                name = self.path.partition("?")[0].lstrip("/").replace("/resolve/main/", "/")
                name = name.replace(f"/resolve/{COMMIT}/", "/")
                data = hub.files.get(name)
                self.send_response(200 if data is not None else 404)
                if data is None:
                    self.send_header("X-Error-Code", "EntryNotFound")
                    data = b""
                elif name.endswith(".safetensors"):
                    etag = hub.files.get(f"{name} etag", hashlib.sha256(data).hexdigest().encode()).decode()
                    self.send_header("X-Linked-Etag", f'"{etag}"')
                    self.send_header("X-Linked-Size", str(len(data)))
                    self.send_header("ETag", f'"{etag}"')
                else:
                    blob = b"blob %d\0" % len(data) + data
                    self.send_header("ETag", f'"{hashlib.sha1(blob).hexdigest()}"')
                self.send_header("X-Repo-Commit", COMMIT)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if body:
                    self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                """Is quiet."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()


LABELS = {str(n): f"name {n}" if n else "background" for n in range(6)}


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Hub]:
    """A hub with timm's V2 of alpha 0.5 (really of alpha 0.35: the config's name says nothing of the widths)."""
    folder = timm_folder(tmp_path / "timm")
    repository = hub.REPOSITORIES["v2-0.5-224"]
    found = Hub(
        {
            f"{repository}/config.json": (folder / "config.json").read_bytes(),
            f"{repository}/model.safetensors": (folder / "model.safetensors").read_bytes(),
            f"{hub._LABELS}/config.json": json.dumps({"id2label": LABELS}).encode(),
        }
    )
    yield found
    found.stop()


def run(code: str, home: Path, endpoint: str, **given: str) -> subprocess.CompletedProcess[str]:
    """Runs Python with a cache of its own: the hub's client reads its settings when it is imported."""
    environment = os.environ | {"HF_HOME": str(home), "HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_XET": "1"} | given
    environment |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1"}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)


LOAD = (
    "import mobilenet, numpy\n"
    "try:\n"
    "    model = mobilenet.load('imagenet/v2-0.5-224')\n"
    "    print(model.network, model.labels[0], model.preprocessing.crop)\n"
    "except mobilenet.MobileNetError as error:\n"
    "    print(type(error).__name__, error)\n"
)
LOADED = "MobileNetV2 alpha 0.35 96x64x3 5 classes name 1 0.9\n"


@needs_hub
def test_published_weights_are_fetched_once_and_checked_each_time(served: Hub, tmp_path: Path) -> None:
    home = tmp_path / "home"
    first = run(LOAD, home, served.address)
    assert first.stdout == LOADED, first.stderr
    assert any(path.endswith("model.safetensors") for path in served.asked)
    served.stop()
    offline = run(LOAD, home, served.address, HF_HUB_OFFLINE="1")
    assert offline.stdout == LOADED, offline.stderr
    weights = next(home.rglob("model.safetensors")).resolve()
    damaged = bytearray(weights.read_bytes())
    damaged[-1] ^= 1
    weights.write_bytes(damaged)
    found = run(LOAD, home, served.address, HF_HUB_OFFLINE="1").stdout
    assert found.startswith(f"ModelError {weights}: damaged: its hash is "), found
    assert "remove it and it is fetched anew" in found


@needs_hub
def test_without_the_hub_the_message_is_clear(served: Hub, tmp_path: Path) -> None:
    """Where nothing answers the client tries again for 25 s, which only MOBILENET_DEEP=1 waits for."""
    served.stop()
    found = run(LOAD, tmp_path / "home", served.address, **{} if DEEP else {"HF_HUB_OFFLINE": "1"})
    needed = (
        "MobileNetError timm/mobilenetv2_050.lamb_in1k: the hub can't be reached and config.json is not in its cache"
    )
    assert found.stdout.startswith(needed), found


@needs_hub
def test_a_file_that_the_hub_does_not_have(served: Hub, tmp_path: Path) -> None:
    del served.files[f"{hub.REPOSITORIES['v2-0.5-224']}/model.safetensors"]
    found = run(LOAD, tmp_path / "home", served.address)
    assert "timm/mobilenetv2_050.lamb_in1k: the hub has no model.safetensors there" in found.stdout, found


@needs_hub
def test_a_file_that_is_not_what_the_hub_names_is_refused(served: Hub, tmp_path: Path) -> None:
    served.files[f"{hub.REPOSITORIES['v2-0.5-224']}/model.safetensors etag"] = b"0" * 64
    found = run(LOAD, tmp_path / "home", served.address)
    assert "damaged: its hash is" in found.stdout, found


def test_names_that_are_not_published() -> None:
    with pytest.raises(
        UsageError, match=r"'?imagenet/v2-1-224'? is not published; did you mean imagenet/v2-1.\d-224\?"
    ):
        mobilenet.load("imagenet/v2-1-224")
    with pytest.raises(UsageError, match=r"is not published; known are v1-1.25-224, "):
        mobilenet.convert("imagenet/zzz")


def test_without_the_client_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UsageError, match=r"needs huggingface_hub: pip install 'mobilenet\[hub\]'"):
        mobilenet.load("imagenet/v2-1.0-224")


def test_a_folder_of_that_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from model_makers import random_model

    monkeypatch.chdir(tmp_path)
    model = random_model()
    model.save("imagenet/v2-1.0-224")
    assert mobilenet.load("imagenet/v2-1.0-224").network == model.network


def test_hashes_by_name(tmp_path: Path) -> None:
    data = tensors_file.encode({})
    for name in (hashlib.sha256(data).hexdigest(), hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()):
        hub._check(put(tmp_path / name, {}))
    with pytest.raises(ModelError, match=r"damaged: its hash is .*; remove it and it is fetched anew"):
        hub._check(put(tmp_path / ("0" * 64), {}))
    with pytest.raises(ModelError, match="the cache does not tell its hash"):
        hub._check(put(tmp_path / "name", {}))


def test_labels_come_without_the_background(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in `test_published_weights…`, where the client is not installed."""
    folder = timm_folder(tmp_path / "timm")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "config.json").write_text(json.dumps({"id2label": LABELS}))
    (tmp_path / "processor.json").write_text("{}")
    asked = []

    def download(repository: str, file: str) -> Path:
        asked.append(f"{repository}/{file}")
        return (tmp_path / "labels" if repository == hub._LABELS else folder) / file

    monkeypatch.setattr(hub, "_download", download)
    monkeypatch.setattr(hub, "_check", lambda _: None)
    assert mobilenet.load("imagenet/v2-1.0-224").labels == tuple(f"name {n}" for n in range(1, 6))
    assert mobilenet.convert("imagenet/v2-1.0-224", labels=["a", "b", "c", "d", "e"]).labels[0] == "a"
    assert hub.fetch("imagenet/v1-0.75-192")[1] is None
    assert asked[-1] == "google/mobilenet_v1_0.75_192/preprocessor_config.json"


def test_the_clients_errors_become_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them in words, as far as the client can be had without a network."""
    huggingface_hub = pytest.importorskip("huggingface_hub")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(MobileNetError, match=r"config.json can't be fetched: disk full"):
        hub.fetch("imagenet/v2-1.0-224")
