"""Protocol Buffers: what is written is read back, and nothing that a file says is believed."""

import random

import numpy as np
import pytest

from mobilenet.errors import MobileNetError, ModelError
from mobilenet.formats import protobuf
from mobilenet.formats.protobuf import Fields, Message, encode

SAMPLE: Fields = {
    1: 300,
    2: -1,
    3: "schön",
    4: [1, 1 << 62, -5],
    5: [{1: 2.5}, {}],
    900: b"\0\xff",
    7: ["a", "b"],
    8: [1.5, -2.0],
}


def message(data: bytes) -> Message:
    return Message(memoryview(data))


def walk(found: Message) -> list[object]:
    return [
        found.integer(1),
        found.integer(2),
        found.text(3),
        found.integers(4),
        [inner.floats(1).tolist() for inner in found.messages(5)],
        bytes(found.contents(900)),
        found.texts(7),
        found.floats(8).tolist(),
    ]


def test_what_is_written_is_read_back() -> None:
    found = message(encode(SAMPLE))
    assert walk(found) == [300, -1, "schön", [1, 1 << 62, -5], [[2.5], []], b"\0\xff", ["a", "b"], [1.5, -2.0]]
    assert found.integer(99, 7) == 7
    assert found.message(99).fields == {}
    assert found.text(99) == ""
    assert found.floats(99).size == 0


def test_packed_numbers_and_eight_bytes_are_read() -> None:
    packed = encode({1: b"\x01\xac\x02", 2: np.array([1.5, 2.5], "<f4").tobytes()}) + b"\x19" + bytes(8)
    assert message(packed).integers(1) == [1, 300]
    assert message(packed).floats(2).tolist() == [1.5, 2.5]
    assert bytes(message(packed).contents(3)) == bytes(8)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\x08", "the message ends within a number"),
        (b"\x08" + b"\xff" * 10, "a number at byte 1 has more than 10 bytes"),
        (b"\x0a\x05abc", "5 bytes at byte 2 of a message of 5"),
        (b"\x0d\x00", "4 bytes at byte 1 of a message of 2"),
        (b"\x0b", "wire type 3 at byte 1"),
    ],
)
def test_what_reaches_beyond_the_end_is_refused(data: bytes, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        message(data).integer(1)


def test_fields_of_another_type_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match="field 1 is a varint, needed are bytes"):
        message(encode(SAMPLE)).text(1)
    with pytest.raises(ModelError, match="field 3 has 6 bytes, needed is a multiple of 4"):
        message(encode(SAMPLE)).floats(3)
    monkeypatch.setattr(protobuf, "_MAX_FIELDS", 3)
    with pytest.raises(ModelError, match="more than 3 fields"):
        message(encode(SAMPLE)).integer(1)


def test_a_file_beyond_the_formats_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protobuf, "MAX_BYTES", 10)
    with pytest.raises(MobileNetError, match=r"the file would have \d\d bytes, the format allows 10"):
        encode(SAMPLE)


def test_any_damage_is_a_result_or_a_refusal() -> None:
    data, generator, refused = encode(SAMPLE), random.Random(0), 0
    for place in range(len(data)):
        for byte in (0, 1, 0x7F, 0xFF, generator.randrange(256)):
            try:
                walk(message(data[:place] + bytes([byte]) + data[place + 1 :]))
            except ModelError:
                refused += 1
    assert refused > 50
