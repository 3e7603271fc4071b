"""Hostile model folders: each test builds exactly the bytes it names, and gets a refusal that names file and fault."""

import json
import os
import random
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from members import DEEP
from mobilenet.common import strict_json
from mobilenet.errors import ModelError
from mobilenet.model import load
from mobilenet.storage import folder, tensors_file
from model_makers import SMALL, edit_config, random_model, random_tensors
from work import counted

WEIGHTS = tensors_file.encode(random_tensors(SMALL))
LENGTH = int.from_bytes(WEIGHTS[:8], "little")
HEADER: dict[str, Any] = json.loads(WEIGHTS[8 : 8 + LENGTH])
DATA = WEIGHTS[8 + LENGTH :]
FIRST, SECOND = list(HEADER)[:2]  # stem.weight, stem.gamma


@pytest.fixture(autouse=True)
def _no_flushing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)  # it would be most of the time


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder whose config names no hash, so that other weights are looked at for what they are."""
    random_model().save(tmp_path / "m")
    edit_config(tmp_path / "m", sha256=None)
    return tmp_path / "m"


def refused(path: Path, message: str) -> None:
    """Loads the folder: a refusal that says `message`, after little work, with no more memory than is promised."""
    declared = sum(file.stat().st_size for file in path.iterdir() if file.is_file() and not file.is_symlink())
    tracemalloc.start()
    try:
        with pytest.raises(ModelError, match=message) as caught, counted() as work:
            load(path)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert str(path) in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000
    assert peak <= declared + (16 << 20)
    assert work.total() < 200_000
    assert len(os.listdir("/proc/self/fd")) < 200


def refusal(path: Path) -> str:
    """Loads the folder and returns the refusal; anything else that goes wrong is raised."""
    try:
        load(path)
    except ModelError as error:
        return str(error)
    return f"{path / 'model.safetensors'}: was loaded"


def file(header: Any = HEADER, data: bytes = DATA, length: int | None = None) -> bytes:
    """Returns the bytes of a safetensors file with this header, as it is or as JSON."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def changed(name: str = FIRST, **fields: Any) -> dict[str, Any]:
    return HEADER | {name: HEADER[name] | fields}


def without(name: str) -> tuple[dict[str, Any], bytes]:
    """Returns header and data without a tensor, and without a hole."""
    begin, end = HEADER[name]["data_offsets"]
    header = {}
    for other, entry in HEADER.items():
        if other != name:
            shift = end - begin if entry["data_offsets"][0] >= end else 0
            header[other] = entry | {"data_offsets": [offset - shift for offset in entry["data_offsets"]]}
    return header, DATA[:begin] + DATA[end:]


NESTED = b"[" * 100_000 + b"]" * 100_000
TWICE = json.dumps(HEADER).encode()[:-1] + b', "stem.weight": ' + json.dumps(HEADER[FIRST]).encode() + b"}"

FILES: dict[str, tuple[bytes, str]] = {
    "length 0": (file(b""), "the header Expecting value"),
    "empty": (b"", "has 0 bytes, a safetensors file begins with 8"),
    "7 bytes": (WEIGHTS[:7], "has 7 bytes, a safetensors file begins with 8"),
    "8 bytes": (WEIGHTS[:8], f"declares a header of {LENGTH:,} bytes; the file has 0 bytes after the length"),
    "length longer than the file": (file(length=len(file())), "declares a header of"),
    "length one longer than the file": (file(length=len(file()) - 7), "declares a header of"),
    "length 100 MB + 1": (file(length=100_000_001), "declares a header of 100,000,001 bytes"),
    "length 2^63": (file(length=2**63), "declares a header of 9,223,372,036,854,775,808 bytes"),
    "length 2^64 - 1": (file(length=2**64 - 1), "declares a header of 18,446,744,073,709,551,615 bytes"),
    "length of the limit + 1, all there": (
        file(json.dumps(HEADER).encode().ljust(strict_json.LIMIT + 1)),
        "declares a header of 655,361 bytes; .* and the limit is 655,360",
    ),
    "not UTF-8": (file(json.dumps(HEADER).encode().replace(b"stem.", b"ste\xff.", 1)), "the header is not UTF-8 at"),
    "not JSON": (file(b"{" * 50), "the header Expecting property name"),
    "NUL bytes": (file(bytes(50)), "the header Expecting value"),
    "a list": (file([HEADER]), r"the header is \[\{.*, an object is needed"),
    "nested 100,000 deep": (file(NESTED), "the header holds more than 10,000 lists and objects"),
    "nested 4,900 deep": (file(NESTED[95_100:-95_100]), "the header is nested too deeply"),
    "nested objects": (file(b'{"a":' * 4000 + b"1" + b"}" * 4000), "the header is nested too deeply"),
    "100,000 lists": (file(b"[" + b"[]," * 100_000 + b"[]]"), "the header holds more than 10,000 lists and objects"),
    "a number of 10^5 digits": (file(b"[" + b"9" * 100_000 + b"]"), "the header Exceeds the limit .* digits"),
    "NaN": (file(json.dumps(changed(shape=[float("nan")])).encode()), "the header holds NaN, which is not JSON"),
    "duplicate keys": (file(TWICE), "the header holds the key 'stem.weight' twice"),
    "duplicate keys inside": (
        file(json.dumps(HEADER).encode().replace(b'"dtype": "F32"', b'"dtype": "F64", "dtype": "F32"', 1)),
        "the header holds the key 'dtype' twice",
    ),
    "a hole": (
        file({name: entry if name != FIRST else entry | {"data_offsets": [4, 4 + entry["data_offsets"][1]]}
              for name, entry in HEADER.items()}, DATA),
        "tensor 'stem.weight' begins at byte 4, needed is 0: it leaves a hole before it",
    ),
    "an overlap": (
        file(changed(SECOND, data_offsets=[o - 4 for o in HEADER[SECOND]["data_offsets"]])),
        "tensor 'stem.gamma' begins at byte 320, needed is 324: it overlaps the tensor before it",
    ),
    "all at the same place": (
        file(changed(SECOND, data_offsets=[0, 12])),
        "tensor 'stem.weight' begins at byte 0, needed is 12: it overlaps",
    ),
    "trailing bytes": (file(data=DATA + b"\0"), "the header describes .*; the bytes at the end belong to no tensor"),
    "a byte missing": (file(data=DATA[:-1]), "bytes of data, the header describes .*; was it cut"),
    "no data": (file(data=b""), "holds 0 bytes of data, the header describes .*; was it cut"),
    "negative shape": (file(changed(shape=[3, 3, -3, -3])), r"tensor 'stem.weight' has shape \[3, 3, -3, -3\], needed"),
    "float shape": (file(changed(shape=[3.0, 3, 3, 3])), r"tensor 'stem.weight' has shape \[3.0, 3, 3, 3\], needed"),
    "text in shape": (file(changed(shape=["3", 3, 3, 3])), r"tensor 'stem.weight' has shape \['3', 3, 3, 3\], needed"),
    "true in shape": (file(changed(shape=[True, 81])), r"tensor 'stem.weight' has shape \[True, 81\], needed"),
    "huge shape": (file(changed(shape=[2**62, 4])), "tensor 'stem.weight' has shape .*, needed is a list"),
    "a product of sides that is 0 in 64 bits": (
        file(changed(shape=[2**33, 2**33])),
        r"tensor 'stem.weight' of shape \(8589934592, 8589934592\) needs 295,147,905,179,352,825,856 bytes",
    ),
    "too many sides": (file(changed(shape=[1] * 9)), "tensor 'stem.weight' has shape .*, needed is a list"),
    "no list as shape": (file(changed(shape=81)), "tensor 'stem.weight' has shape 81, needed is a list"),
    "shape and data differ": (
        file(changed(shape=[3, 3, 3, 4])),
        r"tensor 'stem.weight' of shape \(3, 3, 3, 4\) needs 432 bytes of data, its data_offsets 0 to 324 do not fit",
    ),
    "offsets backwards": (file(changed(data_offsets=[324, 0])), "data_offsets 324 to 0 do not fit"),
    "negative offsets": (file(changed(data_offsets=[-324, 0])), r"has data_offsets \[-324, 0\], needed are"),
    "one offset": (file(changed(data_offsets=[0])), r"has data_offsets \[0\], needed are \[begin, end\]"),
    "three offsets": (file(changed(data_offsets=[0, 324, 324])), "has data_offsets"),
    "float offsets": (file(changed(data_offsets=[0.0, 324.0])), "has data_offsets"),
    "wrong type": (file(changed(dtype="F16")), "tensor 'stem.weight' has dtype 'F16', needed is 'F32'"),
    "unknown type": (file(changed(dtype=["F32"])), r"tensor 'stem.weight' has dtype \['F32'\], needed is 'F32'"),
    "no entry": (file(HEADER | {FIRST: None}), "tensor 'stem.weight' is None, needed are exactly dtype, shape and"),
    "a field missing": (file(HEADER | {FIRST: {"dtype": "F32", "shape": [81]}}), "tensor 'stem.weight' is {.*, needed"),
    "a field too many": (file(changed(more=1)), "tensor 'stem.weight' is {.*, needed are exactly"),
    "missing tensor": (file(*without("block4.depthwise.beta")), r"'block4.depthwise.beta' of shape \(25,\) is missing"),
    "no tensors": (file({}, b""), "tensor 'stem.weight' .* is missing"),
    "extra tensor": (
        file(HEADER | {"more": {"dtype": "F32", "shape": [0], "data_offsets": [len(DATA), len(DATA)]}}),
        "tensor 'more' does not belong to MobileNetV1",
    ),
    "a name with control characters": (
        file(HEADER | {"\x1b[31m" * 30: {"dtype": "F32", "shape": [0], "data_offsets": [len(DATA)] * 2}}),
        r"tensor '\\x1b\[31m.* does not belong",
    ),
    "a tensor of another shape": (
        file(changed(shape=[3, 3, 9, 1])),
        r"tensor 'stem.weight' has shape \(3, 3, 9, 1\), needed is \(3, 3, 3, 3\) for MobileNetV1 alpha 0.1",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_malformed_file_of_weights_is_refused(model: Path, name: str) -> None:
    data, message = FILES[name]
    (model / "model.safetensors").write_bytes(data)
    refused(model, "model.safetensors: .*" + message)


def test_the_file_that_the_others_are_made_from_is_good(model: Path) -> None:
    (model / "model.safetensors").write_bytes(file())
    load(model)


def test_any_order_and_metadata_are_taken(model: Path) -> None:
    names, header, data, offset = list(HEADER), {"__metadata__": {"by": "hand"}}, b"", 0
    random.Random(1).shuffle(names)
    for name in names:
        begin, end = HEADER[name]["data_offsets"]
        header[name] = HEADER[name] | {"data_offsets": [offset, offset + end - begin]}
        data += DATA[begin:end]
        offset += end - begin
    (model / "model.safetensors").write_bytes(file(header, data))
    expected = random_tensors(SMALL)
    found = load(model).tensors
    assert all(found[name].tobytes() == expected[name].tobytes() for name in expected)


def test_a_huge_sparse_file_is_refused_by_its_header(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its 2 TiB agree with the header; what the network needs decides before a byte of them is read."""
    side = 1 << 39
    header = changed(shape=[side], data_offsets=[0, 4 * side])
    for name, entry in HEADER.items():
        if name != FIRST:
            header[name] = entry | {"data_offsets": [offset + 4 * side - 324 for offset in entry["data_offsets"]]}
    path = model / "model.safetensors"
    path.write_bytes(file(header, b""))
    try:
        os.truncate(path, path.stat().st_size + len(DATA) + 4 * side - 324)
    except OSError:
        pytest.skip("this file system holds no file of 2 TiB")
    monkeypatch.setattr(tensors_file, "_read_part", None)
    monkeypatch.setattr(tensors_file, "_hashed", None)
    with pytest.raises(ModelError, match=r"tensor 'stem.weight' has shape \(549755813888,\), needed is \(3, 3, 3, 3\)"):
        load(model)


def test_loading_takes_the_memory_of_the_file_and_16_mib(tmp_path: Path) -> None:
    network = SMALL.replace(alpha=1.0, classes=3000)
    random_model(network).save(tmp_path)
    size = (tmp_path / "model.safetensors").stat().st_size
    assert size > 20 << 20
    tracemalloc.start()
    try:
        folder.load(tmp_path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert size < peak <= size + (16 << 20)


@pytest.mark.parametrize(
    "text", [b'"\xc4\x81b",', b'"ab",', b"999,", b"1.5,", b"[" * 900 + b"]" * 900 + b",", b"{},", b"[],"]
)
def test_the_largest_json_is_read_in_16_mib(text: bytes) -> None:
    brackets = text.count(b"[") + text.count(b"{")
    count = min(strict_json.LIMIT // len(text) - 1, (strict_json.BRACKETS_LIMIT - 1) // brackets if brackets else 10**9)
    data = b"[" + (text * count)[:-1] + b"]"
    tracemalloc.start()
    try:
        strict_json.parse(data)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("place", [0, 8, 8 + LENGTH // 2, 8 + LENGTH, 8 + LENGTH + 1000, len(WEIGHTS) - 1])
def test_a_file_cut_while_it_is_read_is_refused(model: Path, monkeypatch: pytest.MonkeyPatch, place: int) -> None:
    """A mapped file would end the process with SIGBUS here."""
    path = model / "model.safetensors"
    path.write_bytes(WEIGHTS)
    real = tensors_file._read_header

    def cutting(*arguments: Any) -> Any:
        os.truncate(path, place)  # its size has been seen by now
        return real(*arguments)

    monkeypatch.setattr(tensors_file, "_read_header", cutting)
    refused(model, "model.safetensors: was cut short while it was read")


CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown key": ({"sha265": 1}, "config: unknown key 'sha265'; did you mean 'sha256'"),
    "unknown key of the network": ({"network__alfa": 1}, "network: unknown key 'alfa'; did you mean 'alpha'"),
    "unknown key of the conventions": (
        {"network__conventions__paddin": 1},
        "conventions: unknown key 'paddin'; did you mean 'padding'",
    ),
    "unknown key of the preprocessing": (
        {"preprocessing__crops": 1},
        "preprocessing: unknown key 'crops'; did you mean",
    ),
    "a long unknown key": ({"k" * 500_000: 1}, "config.json: holds a key of 500,000 characters, at most 200"),
    "alpha 0": ({"network__alpha": 0}, "alpha: got 0, needed a number above 0"),
    "alpha -1": ({"network__alpha": -1}, "alpha: got -1, needed a number above 0"),
    "alpha 1e9": ({"network__alpha": 1e9}, "alpha: got 1000000000.0, needed a number above 0 to 1e"),
    "alpha 10,000": ({"network__alpha": 10_000}, "alpha: 10000 makes layer 'stem' .* wide; the limit is 65536"),
    "alpha NaN": ({"network__alpha": float("nan")}, "holds NaN, which is not JSON"),
    "alpha text": ({"network__alpha": "1"}, "alpha: got '1', needed a number"),
    "alpha true": ({"network__alpha": True}, "alpha: got True, needed a number"),
    "resolution 0": ({"network__height": 0}, "height: got 0, needed a whole number from 32"),
    "resolution 31": ({"network__width": 31}, "width: got 31, needed a whole number from 32"),
    "resolution 1e9": ({"network__height": 10**9}, "height: got 1000000000, needed a whole number from 32"),
    "resolution 32.0": ({"network__height": 32.0}, "height: got 32.0, needed a whole number"),
    "classes 0": ({"network__classes": 0}, "classes: got 0, needed a whole number from 1"),
    "classes 2^31": ({"network__classes": 2**31}, "classes: got 2147483648, needed a whole number from 1 to"),
    "classes of 4,000 digits": ({"network__classes": 10**4000}, "classes: got 1000.*, needed a whole number"),
    "channels 0": ({"network__channels": 0}, "channels: got 0, needed a whole number from 1"),
    "another family": ({"network__family": "v3"}, "family: got 'v3', needed one of 'v1', 'v2'"),
    "the other family": (
        {"network__family": "v2"},
        "model.safetensors: tensor 'block0.project.weight' .*fit family v1",
    ),
    "another alpha": ({"network__alpha": 0.2}, "model.safetensors: tensor 'stem.weight' .*; the tensors fit alpha 0.1"),
    "other classes": ({"network__classes": 4, "labels": None}, "'classifier.weight' .*; the tensors fit classes 3"),
    "a pooling with the top": ({"network__pooling": "avg"}, "pooling: 'avg' only applies without the top"),
    "a list as family": ({"network__family": ["v1"]}, r"family: got \['v1'\], needed one of"),
    "no network": ({"network": None}, "network: got None, needed an object with the keys family"),
    "no conventions": ({"network__conventions": []}, r"conventions: got \[\], needed an object"),
    "labels too few": ({"labels": ["a", "b"]}, "labels: there are 2 for 3 classes"),
    "labels too many": ({"labels": ["a"] * 50_000}, "labels: there are 50,000 for 3 classes"),
    "labels of text": ({"labels": "abc"}, "labels: got 'abc', needed a list"),
    "labels of numbers": ({"labels": ["a", 2, "c"]}, "labels: label 1 is 2; needed is a text"),
    "a label with an escape": ({"labels": ["a", "b", "\x1b]0;x\x07"]}, r"labels: label 2 is '\\x1b\]0;x\\x07'; needed"),
    "a label of two lines": ({"labels": ["a", "b\nc", "c"]}, r"labels: label 1 is 'b\\nc'; needed"),
    "a label that is no text": ({"labels": ["a", "\ud800", "c"]}, r"labels: label 1 is '\\ud800'; needed"),
    "a long label": ({"labels": ["a", "b" * 1001, "c"]}, "labels: label 1 is 'bbbb"),
    "an empty label": ({"labels": ["a", "", "c"]}, "labels: label 1 is ''; needed"),
    "another format": ({"format": "pt"}, "is not the config of a model: needed is an object with the format"),
    "a later version": ({"version": 2}, "version: got 2, this program reads version 1"),
    "a path as hash": ({"sha256": "../../../etc/passwd"}, "sha256: got '../../../etc/passwd', needed 64 hexadecimal"),
    "a number as hash": ({"sha256": 5}, "sha256: got 5, needed 64 hexadecimal"),
    "another hash": ({"sha256": "0" * 64}, "model.safetensors: damaged or replaced: its SHA-256 is"),
    "notes of text": ({"notes": "x"}, "notes: got 'x', needed an object"),
    "no preprocessing": ({"preprocessing": None}, "preprocessing: got None, needed an object"),
    "another size of photos": (
        {"preprocessing__height": 64},
        r"preprocessing: makes an input of \(64, 32, 3\), .* needs",
    ),
    "std 0": ({"preprocessing__std": [0]}, "preprocessing.std: got 0, needed a number"),
    "two means": ({"preprocessing__mean": [1, 2]}, r"preprocessing.mean: got \(1, 2\), needed 1 or 3 numbers"),
    "crop NaN": ({"preprocessing__crop": float("nan")}, "holds NaN, which is not JSON"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_wrong_config_is_refused(model: Path, name: str) -> None:
    changes, message = CONFIGS[name]
    edit_config(model, **changes)
    refused(model, message)


def test_each_key_of_the_config_is_needed(model: Path) -> None:
    good = json.loads((model / "config.json").read_text())
    cases = [((), key) for key in good] + [
        ((outer,), key) for outer in ("network", "preprocessing") for key in good[outer]
    ]
    cases += [(("network", "conventions"), key) for key in good["network"]["conventions"]]
    assert len(cases) > 35
    for outer, key in cases:
        config = json.loads(json.dumps(good))
        target = config
        for step in outer:
            target = target[step]
        del target[key]
        (model / "config.json").write_text(json.dumps(config))
        refused(
            model, f"config.json: .*(the key '{key}' is missing|needed is an object with the format|version: got None)"
        )


TEXTS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "config.json: Expecting value"),
    "not JSON": (b"format: pt", "config.json: Expecting value"),
    "not UTF-8": (b'{"format": "\xff"}', "config.json: is not UTF-8 at byte 12"),
    "UTF-16": ('{"format": 1}'.encode("utf-16"), "config.json: is not UTF-8 at byte 0"),
    "a list": (b"[]", "config.json: is not the config of a model"),
    "a number": (b"5", "config.json: is not the config of a model"),
    "nested 100,000 deep": (NESTED, "config.json: holds more than 10,000 lists and objects"),
    "nested 4,900 deep": (NESTED[95_100:-95_100], "config.json: is nested too deeply"),
    "duplicate keys": (b'{"format": "pt", "format": "mobilenet model"}', "config.json: holds the key 'format' twice"),
    "infinity": (b'{"a": Infinity}', "config.json: holds Infinity, which is not JSON"),
    "a number beyond all": (b'{"a": 1e999}', "config.json: holds the number 1e999, which is too large"),
    "too long": (b" " * (strict_json.LIMIT + 1), "config.json: has 655,361 bytes, at most 655,360 are allowed"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_config_that_is_no_config_is_refused(model: Path, name: str) -> None:
    text, message = TEXTS[name]
    (model / "config.json").write_bytes(text)
    refused(model, message)


def _values(generator: random.Random) -> Any:
    return generator.choice(
        [None, True, False, 0, 1, -1, 2**31, 2**63, 2**64, 10**300, 0.0, -0.0, 1e300, 1e-300, "", "v1", "\0", "é", [],
         {}, [0], [[]], {"a": 1}, ["a", "b", "c"], "relu", "same"]
    )  # fmt: skip


def test_any_value_in_any_place_of_the_config_is_a_model_or_a_refusal(model: Path) -> None:
    good = json.loads((model / "config.json").read_text())
    generator = random.Random(3)
    for _ in range(300 if not DEEP else 20_000):
        config = json.loads(json.dumps(good))
        target: Any = config
        while True:
            key = generator.choice(list(target) if isinstance(target, dict) else range(len(target)))
            if isinstance(target[key], dict | list) and target[key] and generator.random() < 0.9:
                target = target[key]
            else:
                break
        target[key] = _values(generator)
        (model / "config.json").write_text(json.dumps(config))
        assert str(model) in refusal(model)


@pytest.mark.parametrize("seed", range(200 if not DEEP else 20_000))
def test_mutated_weights_are_a_model_or_a_refusal(model: Path, seed: int) -> None:
    generator = random.Random(seed)
    data = bytearray(WEIGHTS)
    for _ in range(generator.randrange(1, 4)):
        place = generator.randrange(8 + LENGTH) if generator.random() < 0.8 else generator.randrange(len(data))
        match generator.randrange(4):
            case 0:
                data[place] ^= 1 << generator.randrange(8)
            case 1:
                data[place : place + 1] = bytes([generator.choice(b'0129-"{}[],:.eE \xff\0')])
            case 2:
                del data[place : place + generator.randrange(1, 20)]
            case 3:
                data[place:place] = generator.choice([b"9", b"[", b'"', b"-1", b"\0" * 8, b"1e9"])
    (model / "model.safetensors").write_bytes(data)
    assert "model.safetensors: " in refusal(model)


# Other things in place of the files


def _fifo(path: Path) -> None:
    os.mkfifo(path)


OTHER: dict[str, tuple[Callable[[Path], None], str]] = {
    "nothing": (lambda _: None, "No such file|is missing"),
    "a FIFO": (_fifo, "is a FIFO|is not a regular file"),
    "a folder": (Path.mkdir, "is a folder|is not a regular file"),
    "a link": (lambda path: path.symlink_to("aside"), "symbolic link"),
    "a link to a device": (lambda path: path.symlink_to("/dev/zero"), "symbolic link"),
    "a link to itself": (lambda path: path.symlink_to(path.name), "symbolic link"),
    "a dangling link": (lambda path: path.symlink_to("/nowhere"), "symbolic link"),
}


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("kind", OTHER)
def test_something_else_in_place_of_a_file_is_refused(model: Path, name: str, kind: str) -> None:
    make, message = OTHER[kind]
    (model / name).rename(model / "aside")
    make(model / name)
    refused(model, f"{name}: .*({message})")


@pytest.mark.parametrize("kind", ["a FIFO", "a folder", "a link", "a link to a device"])
def test_something_else_in_place_of_interrupted_weights_is_refused(model: Path, kind: str) -> None:
    edit_config(model, sha256="ab" * 32)
    (model / "aside").write_bytes(WEIGHTS)
    OTHER[kind][0](model / f"model.{'ab' * 8}.safetensors")
    refused(model, f"model.{'ab' * 8}.safetensors: is (a symbolic link|not a regular file)")


def test_no_folder_and_no_model_are_named(tmp_path: Path) -> None:
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(
            ModelError, match=r"config.json: .*No such file.*; a model is a folder with config.json and mod"
        ):
            load(path)
    (tmp_path / "file").write_bytes(WEIGHTS)
    with pytest.raises(ModelError, match=r"config.json: .*Not a directory.*`mobilenet import` makes of another"):
        load(tmp_path / "file")


@pytest.mark.parametrize("name", ["n" * 300, "a\0b", "\ud800", "line\nbreak\x1b[31m"])
def test_a_strange_name_is_refused_in_print(tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelError) as caught:
        load(tmp_path / name)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_file_without_permission_is_named(model: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    real = os.open

    def refusing(path: Any, *arguments: Any, **named: Any) -> int:
        if str(path).endswith(name):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *arguments, **named)

    monkeypatch.setattr(os, "open", refusing)
    refused(model, f"{name}: can't be read: Permission denied")


def test_an_error_of_the_disk_is_named(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(tensors_file, "_fill", failing)
    refused(model, "model.safetensors: can't be read: Input/output error")


def test_the_values_are_checked(model: Path) -> None:
    for name, value, message in (
        ("stem.weight", np.nan, "tensor 'stem.weight' holds NaN or infinity"),
        ("classifier.bias", -np.inf, "tensor 'classifier.bias' holds NaN or infinity"),
        ("stem.mean", np.inf, "tensor 'stem.mean' holds NaN or infinity"),
        (
            "block2.pointwise.variance",
            -1,
            "tensor 'block2.pointwise.variance' holds -1.0, a variance is never negative",
        ),
    ):
        tensors = random_tensors(SMALL)
        tensors[name].flat[0] = value
        (model / "model.safetensors").write_bytes(tensors_file.encode(tensors))
        refused(model, f"model.safetensors: {message}; allow_nonfinite=True")
        load(model, allow_nonfinite=True)
