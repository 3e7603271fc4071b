"""Hostile TFLite files get a result or a refusal: never another error, never a crash, never more than a moment."""

import random
import zipfile
from collections.abc import Iterator
from io import BytesIO

import numpy as np
import pytest

import mobilenet
from integer_tflite import Maker, Options8
from members import DEEP
from mobilenet.convert.tflite import model_of
from mobilenet.errors import DataError, ModelError
from mobilenet.export.tflite import tflite
from mobilenet.formats import tflite_schema as schema
from mobilenet.formats.flatbuffer import decode
from mobilenet.quantized import Rescale
from test_tflite_converter import converted
from work import counted

WORDS = (0, 1, 0xFFFFFFFF, 0x7FFFFFFF)
SMALL = tflite(mobilenet.create(mobilenet.v2(0.1, 32, 3)), softmax=True)
WHOLE = Maker(mobilenet.v2(0.1, 32, 3), Options8(schema.Type.INT8, True, False, True)).data  # whole numbers alone


def table_words(data: bytes) -> list[int]:
    """Returns the places of the 4-byte words that are no weights."""
    weights = np.zeros(len(data), bool)
    whole = np.frombuffer(data, np.uint8)
    for buffer in decode(data, schema.IDENTIFIER).tables(schema.Model.BUFFERS, 999):
        found = buffer.array(schema.Buffer.DATA, "u1")
        if found is not None and found.size > 32:  # the axes of the pooling are as good as a table
            start = found.__array_interface__["data"][0] - whole.__array_interface__["data"][0]
            weights[start : start + found.size] = True
    return [place for place in range(0, len(data) - 3, 4) if not weights[place : place + 4].any()]


def read(data: bytes, rescale: Rescale = "fixed") -> str:
    """Returns "read" or the refusal; anything else, or much more work than for a good file, fails the test."""
    try:
        with counted() as work:
            model_of(data, rescale=rescale)
        return "read"
    except DataError as error:
        return str(error)
    finally:
        assert work.total() < 1_000_000  # good files take 66,000 to 137,000


def damaged(data: bytes) -> Iterator[bytes]:
    places = table_words(data)
    assert len(places) > 3000
    cases = [(place, word) for place in places for word in WORDS]
    for place, word in cases if DEEP else random.Random(0).sample(cases, 100):
        yield data[:place] + word.to_bytes(4, "little") + data[place + 4 :]


@pytest.mark.parametrize(
    ("data", "rescale"),
    [(SMALL, "fixed"), (WHOLE, "fixed"), (WHOLE, "full"), (converted("int8_float32_ends"), "full")],
    ids=["float", "whole", "full", "ends"],
)
def test_every_word_of_the_tables_may_be_anything(data: bytes, rescale: Rescale) -> None:
    outcomes = [read(changed, rescale) for changed in damaged(data)]
    assert outcomes.count("read") > len(outcomes) // 20  # names, padding
    assert len(set(outcomes)) > 25


def test_a_file_cut_anywhere_is_refused() -> None:
    for end in range(0, len(SMALL), len(SMALL) // 200):
        assert read(SMALL[:end]) != "read"


@pytest.mark.parametrize("what", ["tensors", "operators"])
def test_a_vector_of_a_table_again_and_again_is_refused_at_once(what: str) -> None:
    """A million entries of four bytes, all of one table, would be a million tables of some hundred bytes."""
    field = {"tensors": schema.Subgraph.TENSORS, "operators": schema.Subgraph.OPERATORS}[what]
    subgraph = decode(SMALL, schema.IDENTIFIER).tables(schema.Model.SUBGRAPHS, 1)[0]
    place = subgraph._place(field)
    assert place is not None
    grown = bytearray(SMALL) + (1 << 20).to_bytes(4, "little") + bytes(4 << 20)
    grown[place : place + 4] = (len(SMALL) - place).to_bytes(4, "little")
    assert "1,048,576 tables" in read(bytes(grown))


def test_an_archive_that_unpacks_to_much_is_refused() -> None:
    """Its 32 MB are 32 kB in the file; more would not take longer to refuse."""
    with zipfile.ZipFile(packed := BytesIO(SMALL[: SMALL.index(b"PK\3\4")]), "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("labels.txt", bytes(32 << 20))
    with pytest.raises(ModelError, match=r"'labels.txt' has more than 16,777,216 bytes"):
        model_of(packed.getvalue())


def test_every_word_of_the_archive_may_be_anything() -> None:
    """Its directory says where files begin and how long they are: zipfile has many ways to be surprised."""
    outcomes = set()
    for place in range(SMALL.index(b"PK\3\4") // 4 * 4, len(SMALL) - 3, 4 if DEEP else 20):
        for word in WORDS[::2]:
            outcomes.add(read(SMALL[:place] + word.to_bytes(4, "little") + SMALL[place + 4 :])[:80])
    assert len(outcomes) > 5


def test_rare_compressions_are_refused() -> None:
    with zipfile.ZipFile(packed := BytesIO(SMALL[: SMALL.index(b"PK\3\4")]), "a", zipfile.ZIP_LZMA) as archive:
        archive.writestr("labels.txt", b"a\nb\nc\n")
    assert "'labels.txt' is compressed otherwise" in read(packed.getvalue())


def test_names_that_lead_out_of_a_folder_are_only_names() -> None:
    with zipfile.ZipFile(packed := BytesIO(SMALL), "a") as archive:
        archive.writestr("../../labels.txt", "x")
    assert read(packed.getvalue()) == "read"


@pytest.mark.parametrize("option", ["labels.txt", "preprocessing.json"])
def test_a_wrong_file_in_the_archive_is_refused(option: str) -> None:
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(packed := BytesIO(SMALL), "a") as archive:
        archive.writestr(option, b"\xff{")
    assert read(packed.getvalue()) != "read"
