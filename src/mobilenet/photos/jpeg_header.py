"""A walk over a JPEG's markers: what it is, within which limits, before libjpeg sees it.

Source: ITU-T T.81, annex B. A lossless JPEG (SOF3) makes scaled decoders write past their buffers (found by test in
Pillow 12.3 and simplejpeg 1.9), so the walk lets pass only what it knows: SOF0, SOF1 and SOF2 with Huffman coding,
8 bits and 1, 3 or 4 components. Where libjpeg would search for the next marker in garbage, the walk refuses; so both
see the same segments. What libjpeg warns of in a header that it then reads as everybody does (another revision of JFIF,
Adobe's transforms beyond the known, a sequential scan's bounds) is put right for the decoder, for which a warning is
damage.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from ..errors import PhotoError
from .limits import (
    MAX_ANCILLARY,
    MAX_PARTS,
    MAX_SCAN_PIXELS,
    MAX_SCANS,
    Header,
    check_count,
    check_size,
    exif_orientation,
)

_SOF0, _SOF2, _DHT, _EOI, _SOS, _DQT, _DRI = 0xC0, 0xC2, 0xC4, 0xD9, 0xDA, 0xDB, 0xDD
_APP0, _APP1, _APP14, _APP15, _COM = 0xE0, 0xE1, 0xEE, 0xEF, 0xFE
_REFUSED = (
    dict.fromkeys((0xC3, 0xC7, 0xCB, 0xCF), "a lossless JPEG")
    | dict.fromkeys((0xC9, 0xCA, 0xCC, 0xCD, 0xCE), "a JPEG with arithmetic coding")
    | dict.fromkeys((0xC5, 0xC6, 0xDE, 0xDF), "a hierarchical JPEG")
    | {0xDC: "a JPEG whose height comes after the picture (DNL)"}
)

_WHOLE_SCAN = bytes((0, 63, 0))
"""First and last coefficient and approximation, as a sequential scan has to announce them."""
_TRANSFORMS = {3: 1, 4: 2}
"""By components, the number of Adobe's transform (YCbCr, YCCK) that libjpeg takes for granted where it knows none."""

# Starts with a literal so that `re` searches with memchr: 0.08 ms for 100 kB, a loop of bytes.find takes twice that.
_MARKER_IN_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_MARKER = re.compile(rb"\xff+[^\x00\xff]")


def _truncated(data: bytes) -> PhotoError:
    return PhotoError(f"truncated: the JPEG ends within a segment, after {len(data):,} bytes")


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yields marker, start and end of each segment's contents; at last EOI, or 0 where the file ends without it."""
    position = 2
    while True:
        match = _MARKER.match(data, position)
        if match is None and not data[position : position + 64].strip(b"\xff"):
            raise _truncated(data)
        if match is None:
            raise PhotoError(f"damaged: no marker at byte {position:,} of the JPEG, where a segment ends")
        marker, start = data[match.end() - 1], match.end()
        if marker == _EOI:
            yield _EOI, start, start
            return
        end = start + int.from_bytes(data[start : start + 2])
        if len(data) < max(end, start + 2):
            raise _truncated(data)
        if end < start + 2:
            raise PhotoError(f"damaged: marker {marker:#04x} of the JPEG has a length of {end - start}")
        yield marker, start + 2, end
        position = end
        if marker == _SOS:
            found = _MARKER_IN_SCAN.search(data, position)
            if found is None:
                yield 0, len(data), len(data)
                return
            position = found.start()


@dataclass
class _Frame:
    """Holds what a frame header (SOF) announces, and what the scans have delivered."""

    progressive: bool
    width: int
    height: int
    unfinished: dict[int, set[int]]
    """By component, the coefficients (0 to 63, in zigzag order) whose last bit has not come."""
    kind: str = "JPEG"
    seen: set[int] = field(default_factory=set)

    def scan(self, contents: bytes) -> None:
        """Notes what a scan with this header delivers."""
        count = contents[0] if contents else 0
        if not 1 <= count <= 4 or len(contents) != 4 + 2 * count:
            raise PhotoError("damaged: a scan header of the JPEG has a wrong length")
        components = set(contents[1 : 1 + 2 * count : 2])
        if not components <= self.unfinished.keys():
            raise PhotoError("damaged: a scan of the JPEG is for a component that its frame does not have")
        first, last, approximation = contents[-3:] if self.progressive else _WHOLE_SCAN
        self.seen |= components
        if approximation & 15 == 0:
            for component in components:
                self.unfinished[component].difference_update(range(first, last + 1))
        if self.kind == "JPEG" and (self.progressive or count < len(self.unfinished)):
            # libjpeg keeps the coefficients of the whole picture when these come in several scans.
            self.kind = "progressive JPEG"
            check_size(self.kind, self.width, self.height)


def _frame(marker: int, contents: bytes) -> _Frame:
    if len(contents) < 6 or len(contents) != 6 + 3 * contents[5]:
        raise PhotoError("damaged: the frame header of the JPEG has a wrong length")
    bits, height, width = contents[0], int.from_bytes(contents[1:3]), int.from_bytes(contents[3:5])
    identifiers = contents[6::3]
    if bits != 8:
        raise PhotoError(f"is a JPEG with {bits} bits a sample; save it with 8")
    if len(identifiers) not in (1, 3, 4):
        raise PhotoError(f"is a JPEG with {len(identifiers)} components; 1 (grey), 3 (colour) or 4 (CMYK) are read")
    if len(set(identifiers)) != len(identifiers):
        raise PhotoError("damaged: two components of the JPEG have the same name")
    kind = "CMYK JPEG" if len(identifiers) == 4 else "JPEG"
    check_size(kind, width, height)
    return _Frame(marker == _SOF2, width, height, {name: set(range(64)) for name in identifiers}, kind)


def _with(values: dict[int, bytes], contents: bytes | memoryview) -> bytes | memoryview:
    """Returns a file that has these values at these places, copied only if it has others."""
    others = {place: value for place, value in values.items() if contents[place : place + len(value)] != value}
    if not others:
        return contents
    copy = bytearray(contents)
    for place, value in others.items():
        copy[place : place + len(value)] = value
    return memoryview(copy)


def read_jpeg(data: bytes) -> Header:
    """Reads a JPEG's header and walks over its segments up to EOI; what follows that is left out.

    A file that lacks only EOI, or a part of it, gets one. Raises `PhotoError`, without the photo's name.
    """
    frame: _Frame | None = None
    orientation, ancillary, scans, marker, end = 1, 0, 0, 0, 0
    understood: dict[int, bytes] = {}
    transforms: list[int] = []
    for index, (marker, start, end) in enumerate(_segments(data)):
        check_count(index + 1, MAX_PARTS, "JPEG segments")
        if marker in _REFUSED:
            raise PhotoError(f"is {_REFUSED[marker]}; save it as an ordinary JPEG")
        if _SOF0 <= marker <= _SOF2:
            if frame:
                raise PhotoError("damaged: the JPEG has two frame headers")
            frame = _frame(marker, data[start:end])
        elif marker == _SOS:
            if not frame:
                raise PhotoError("damaged: the JPEG has a scan before its frame header")
            scans += 1
            check_count(scans, MAX_SCANS, "JPEG scans")
            check_count(scans * frame.width * frame.height, MAX_SCAN_PIXELS, "pixels in all JPEG scans together")
            frame.scan(data[start:end])
            if not frame.progressive:
                understood[end - 3] = _WHOLE_SCAN
        elif _APP0 <= marker <= _APP15 or marker == _COM:
            ancillary += end - start
            check_count(ancillary, MAX_ANCILLARY, "bytes of text, profiles and the like")
            if marker == _APP1 and data[start : start + 6] == b"Exif\0\0":
                orientation = exif_orientation(data[start:end])
            elif marker == _APP0 and data[start : start + 5] == b"JFIF\0" and end - start >= 14:
                understood[start + 5] = b"\1"
            elif marker == _APP14 and data[start : start + 5] == b"Adobe" and end - start >= 12:
                transforms.append(start + 11)
        elif marker not in (_DHT, _DQT, _DRI, _EOI, 0):
            raise PhotoError(f"damaged: unknown JPEG marker {marker:#04x}")
    if frame is None or not scans:
        raise PhotoError("damaged: the JPEG has no picture")
    if frame.seen != frame.unfinished.keys():
        raise PhotoError("truncated: the JPEG has no data for some of its components")
    if marker != _EOI and any(frame.unfinished.values()):
        raise PhotoError(f"truncated: the JPEG's last scans are missing, it ends after {len(data):,} bytes")
    # Only the decoder can tell whether the last scan is whole: with the EOI there, it warns when bits are missing.
    contents = memoryview(data)[:end] if marker == _EOI else data + b"\xff\xd9"
    usual = _TRANSFORMS.get(len(frame.unfinished), 0)
    understood |= {place: bytes((usual,)) for place in transforms if data[place] not in (0, usual)}
    contents = _with(understood, contents)
    return Header(frame.kind, frame.width, frame.height, contents, orientation, len(frame.unfinished))
