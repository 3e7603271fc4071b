"""The limits for photos, what a header says, and the checks that the formats' header walks share."""

import struct

from ..common.frozen import frozen
from ..errors import PhotoError

MAX_BYTES = 64 << 20
"""A file. With the limits below, one photo takes less than 512 MiB in all, the interpreter's 60 MiB counted."""
MAX_WEBP_BYTES = 32 << 20
"""Pillow holds a WebP file three times while it decodes."""
MAX_SIDE = 65_500
"""Width and height; libjpeg's own limit."""
MAX_PIXELS = {
    "JPEG": 1 << 28,  # decoded row by row, scaled down on the way: a phone's 200 megapixels are fine
    "progressive JPEG": 1 << 25,  # 6 bytes a pixel for coefficients, then 3 for the picture
    "CMYK JPEG": 1 << 24,  # never scaled; 8 bytes a pixel for coefficients, then 7
    "PNG": 1 << 25,  # 8 bytes a pixel
    "WebP": 1 << 24,  # 18 bytes a pixel, measured
    "GIF": 1 << 25,  # 8 bytes a pixel
    "BMP": 1 << 25,
}
MAX_DECODED_PIXELS = 1 << 25
"""A JPEG after scaling; 3 bytes a pixel, and 4 more while it is resized."""
MAX_SCANS = 64
"""Of a JPEG. Encoders write 1 to 20."""
MAX_SCAN_PIXELS = 1 << 29
"""Scans times pixels of a JPEG: each scan is a pass over the whole picture, 0.1 s for the 33 million pixels allowed."""
MAX_FRAMES = 4_096
"""Of an animation, of which only the first is used."""
MAX_ANCILLARY = 16 << 20
"""Bytes of text, profiles, thumbnails and the like; phones store up to some megabytes of depth maps."""
MAX_PARTS = 1 << 14
"""Segments of a JPEG, chunks of a PNG or WebP; 64 MiB of PNG in the usual chunks of 8 KiB have 8,192."""
MAX_SUB_BLOCKS = 1 << 18
"""Of a GIF; 64 MiB have 263,000 of the full 255 bytes."""


@frozen
class Header:
    """Holds what the decoders need to know of a photo; sizes are as stored, before the orientation is applied."""

    format: str
    """A key of `MAX_PIXELS`."""
    width: int
    height: int
    data: bytes | memoryview
    """What the decoder gets: a complete file of the same format with the needed parts only."""
    orientation: int = 1
    """EXIF's, 1 to 8; 1 is upright."""
    components: int = 3
    """Of a JPEG: 1 grey, 3 colour, 4 CMYK."""


def check_size(kind: str, width: int, height: int) -> None:
    """Raises `PhotoError` unless a picture of a kind in `MAX_PIXELS` may have this size."""
    if width < 1 or height < 1:
        raise PhotoError(f"damaged: a {kind} of {width} x {height} pixels")
    if max(width, height) > MAX_SIDE:
        raise PhotoError(f"is {width:,} x {height:,} pixels, at most {MAX_SIDE:,} a side are allowed")
    if width * height > MAX_PIXELS[kind]:
        raise PhotoError(f"is {width:,} x {height:,} pixels, a {kind} may have {MAX_PIXELS[kind]:,} in all")


def check_count(count: int, limit: int, what: str) -> None:
    """Raises `PhotoError` when there are more of something than its limit."""
    if count > limit:
        raise PhotoError(f"has more than {limit:,} {what}")


def check_length(data: bytes | memoryview, needed: int) -> None:
    """Raises `PhotoError` when a file ends before what it announces."""
    if len(data) < needed:
        raise PhotoError(f"truncated: has {len(data):,} bytes, what it announces needs at least {needed:,}")


def exif_orientation(exif: bytes | memoryview) -> int:
    """Returns the orientation 1 to 8 from an EXIF block's first directory; 1 where there is none or it can't be read.

    Source: EXIF 2.32, section 4.6.4, tag 0x0112. Follows no offset but the first, so its time is bounded by the length.
    """
    if exif[:6] == b"Exif\0\0":
        exif = exif[6:]
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(bytes(exif[:4]))
    if order is None or len(exif) < 8:
        return 1
    (start,) = struct.unpack_from(order + "I", exif, 4)
    if start + 2 > len(exif):
        return 1
    (count,) = struct.unpack_from(order + "H", exif, start)
    entries = exif[start + 2 : start + 2 + 12 * count]
    for tag, kind, _, value in struct.iter_unpack(order + "HHIHxx", entries[: len(entries) // 12 * 12]):
        if tag == 0x0112:
            return value if kind == 3 and 1 <= value <= 8 else 1
    return 1
