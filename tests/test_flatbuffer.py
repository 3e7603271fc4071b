"""FlatBuffers: what is written is read back, and nothing that a file says is believed."""

import random

import numpy as np
import pytest

from mobilenet.errors import MobileNetError, ModelError
from mobilenet.formats import flatbuffer
from mobilenet.formats.flatbuffer import Fields, Scalar, Table, decode, encode

SAMPLE: Fields = {
    0: Scalar("b", -3),
    3: "schön",
    4: np.array([1, -2, 3], np.int64),
    5: bytes(range(7)),
    6: [{0: Scalar("f", 0.5)}, {}, {1: Scalar("i", 9)}],
    8: {0: Scalar("Q", 1 << 40), 1: Scalar("B", 255)},
    9: ["one", "two"],
    10: np.array([], np.float32),
}


def walk(root: Table) -> list[object]:
    """Returns everything the sample holds."""
    tables = root.tables(6, 10)
    inner = root.table(8)
    assert inner is not None
    long, numbers = root.array(4, "i8"), root.array(5, "u1")
    return [
        root.integer(0, "b"),
        root.text(3),
        None if long is None else long.tolist(),
        None if numbers is None else numbers.tobytes(),
        [(table.scalar(0, "f", 7.0), table.integer(1)) for table in tables],
        (inner.integer(0, "Q"), inner.integer(1, "B")),
        len(root.tables(9, 10)),
        root.array(10, "f4"),
    ]


def test_what_is_written_is_read_back() -> None:
    root = decode(encode(SAMPLE, b"TEST"), b"TEST")
    assert walk(root)[:-1] == [
        -3, "schön", [1, -2, 3], bytes(range(7)), [(0.5, 0), (7.0, 0), (7.0, 9)], (1 << 40, 255), 2,
    ]  # fmt: skip
    assert root.integer(1, default=5) == 5
    assert root.integer(99, default=5) == 5
    assert root.table(2) is None
    assert root.tables(2, 9) == []
    assert root.array(2, "u1") is None
    assert root.text(2) == ""


@pytest.mark.parametrize("padding", range(17))
def test_everything_stands_where_its_size_divides_the_place(padding: int) -> None:
    """Readers in C take numbers and vectors in place; TFLite asks for 16 of a buffer's data."""
    data = encode({0: "x" * padding, 1: bytes([7] * 5), 2: np.array([1.5, 2.5]), 3: Scalar("Q", 3)}, b"TEST")
    root = decode(data, b"TEST")
    assert data.index(bytes([7] * 5)) % 16 == 0
    assert data.index(np.array([1.5, 2.5]).tobytes()) % 8 == 0
    assert root.position % 8 == 0


def test_limits_and_places_beyond_the_end_are_refused() -> None:
    data = encode(SAMPLE, b"TEST")
    with pytest.raises(ModelError, match="no NONE file: bytes 4 to 7 are b'TEST'"):
        decode(data, b"NONE")
    with pytest.raises(ModelError, match=r"3 tables at byte .*, at most 2 are allowed"):
        decode(data, b"TEST").tables(6, 2)
    for end in range(8, len(data) - 8):  # the last may be padding
        with pytest.raises(ModelError, match=r"byte .* is referred to, the file has|reach beyond the file"):
            walk(decode(data[:end], b"TEST"))


def test_a_file_beyond_the_formats_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flatbuffer, "MAX_BYTES", 100)
    with pytest.raises(MobileNetError, match=r"the file would have \d+ bytes, the format allows 100"):
        encode(SAMPLE, b"TEST")


def test_any_damage_is_a_result_or_a_refusal() -> None:
    data = encode(SAMPLE, b"TEST")
    generator = random.Random(0)
    refused = 0
    for place in range(0, len(data) - 3, 4):
        for word in (0, 1, 0xFFFFFFFF, 0x7FFFFFFF, generator.getrandbits(32)):
            damaged = data[:place] + word.to_bytes(4, "little") + data[place + 4 :]
            try:
                walk(decode(damaged, b"TEST"))
            except (ModelError, AssertionError):
                refused += 1
    assert refused > 100
