"""What a photo's header says, read before any decoder sees the data, and the parts of the file that a decoder gets.

Five formats are read, known by their first bytes, never by the file's name. Each walk checks the structure of the
whole file, counts what could be a bomb, and keeps only the parts that make the first picture: no text, no colour
profile, no further frames reach a decoder. Every refusal is a `PhotoError` without the photo's name, which the caller
puts in front.
"""

import struct
import zlib
from collections.abc import Callable, Iterator

from ..errors import PhotoError
from .jpeg_header import read_jpeg
from .limits import (
    MAX_ANCILLARY,
    MAX_BYTES,
    MAX_FRAMES,
    MAX_PARTS,
    MAX_SUB_BLOCKS,
    MAX_WEBP_BYTES,
    Header,
    check_count,
    check_length,
    check_size,
    exif_orientation,
)


def read_header(data: bytes) -> Header:
    """Reads a photo's header and checks the file's structure against every limit; no decoder runs.

    Raises `PhotoError`, without the photo's name, when the format is not one of the five, a limit is exceeded, or the
    file is damaged or truncated.
    """
    if not data:
        raise PhotoError("is empty")
    if len(data) > MAX_BYTES:
        raise PhotoError(f"has {len(data):,} bytes, at most {MAX_BYTES:,} are allowed")
    for matches, read in _READERS:
        if matches(data[:16]):
            return read(data)
    kind = next((kind for magic, at, kind in _OTHER_FORMATS if data[at : at + len(magic)] == magic), None)
    raise PhotoError(f"is not a JPEG, PNG, WebP, GIF or BMP photo{f'; it begins like {kind}' if kind else ''}")


_OTHER_FORMATS = [
    (b"8BPS", 0, "a Photoshop file"),
    (b"%PDF", 0, "a PDF"),
    (b"%!PS", 0, "PostScript"),
    (b"SIMPLE  =", 0, "a FITS file"),
    (b"II*\0", 0, "a TIFF or raw file"),
    (b"MM\0*", 0, "a TIFF file"),
    (b"ftyp", 4, "a HEIC or AVIF photo, or a video"),
    (b"\0\0\0\x0cjP  ", 0, "a JPEG 2000 photo"),
    (b"<", 0, "HTML, SVG or XML"),
]


# PNG: https://www.w3.org/TR/png-3/

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_KEPT = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_PNG_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yields type, start and end of each chunk's contents, IEND the last."""
    position, kind = 8, b""
    while kind != b"IEND":
        check_length(data, position + 12)
        length, kind = struct.unpack_from(">I4s", data, position)
        start, end = position + 8, position + 8 + length
        check_length(data, end + 4)
        yield kind, start, end
        position = end + 4


def _read_png(data: bytes) -> Header:
    view = memoryview(data)
    kept: list[bytes | memoryview] = [_PNG_SIGNATURE]
    width = height = depth = colour = ancillary = 0
    orientation = 1
    for index, (kind, start, end) in enumerate(_png_chunks(data)):
        check_count(index + 1, MAX_PARTS, "PNG chunks")
        if (kind == b"IHDR") != (index == 0):
            raise PhotoError("damaged: IHDR is not the first of the PNG's chunks, or not the only one")
        if kind == b"IHDR":
            width, height, depth, colour = _png_ihdr(view[start:end])
        elif kind == b"acTL" and end - start >= 4:
            check_count(int.from_bytes(view[start : start + 4]), MAX_FRAMES, "frames")
        elif kind == b"eXIf":
            orientation = exif_orientation(view[start:end])
        if kind in _PNG_KEPT:
            if zlib.crc32(view[start - 4 : end]) != int.from_bytes(view[end : end + 4]):
                raise PhotoError(f"damaged: the checksum of the PNG's {kind.decode()} chunk is wrong")
            kept.append(_png_trns(view[start:end], depth, colour) if kind == b"tRNS" else view[start - 8 : end + 4])
        elif not kind[0] & 0x20:
            raise PhotoError(f"damaged: unknown critical PNG chunk {kind!r}")
        elif kind != b"fdAT":
            ancillary += end - start
            check_count(ancillary, MAX_ANCILLARY, "bytes of text, profiles and the like")
    return Header("PNG", width, height, b"".join(kept), orientation)


def _png_ihdr(ihdr: memoryview) -> tuple[int, int, int, int]:
    """Returns width, height, bit depth and colour type."""
    if len(ihdr) != 13:
        raise PhotoError(f"damaged: the PNG's IHDR has {len(ihdr)} bytes, not 13")
    width, height, depth, colour, compression, filtering, interlacing = struct.unpack(">IIBBBBB", ihdr)
    if depth not in _PNG_DEPTHS.get(colour, ()) or compression or filtering or interlacing > 1:
        raise PhotoError(f"damaged: no PNG has colour type {colour}, {depth} bits and methods {bytes(ihdr[10:])!r}")
    check_size("PNG", width, height)
    return width, height, depth, colour


def _png_trns(trns: memoryview, depth: int, colour: int) -> bytes:
    """Returns a tRNS chunk whose grey or colour is in the units of Pillow's pixels.

    Pillow widens 2 and 4 bits of grey to 8 and cuts 16 bits of colour to 8, and leaves the transparent value as it was.
    """
    contents = bytes(trns)
    if colour == 0 and depth in (2, 4) and len(contents) == 2:
        contents = (int.from_bytes(contents) * 255 // (2**depth - 1) & 0xFFFF).to_bytes(2)
    elif colour == 2 and depth == 16 and len(contents) == 6:
        contents = b"".join(b"\0" + contents[i : i + 1] for i in (0, 2, 4))
    return len(contents).to_bytes(4) + b"tRNS" + contents + zlib.crc32(b"tRNS" + contents).to_bytes(4)


# WebP: RFC 9649

_WEBP_KEPT = (b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF")


def _webp_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yields type, start and end of each chunk's contents; a chunk of odd length is followed by one byte."""
    limit = 8 + int.from_bytes(data[4:8], "little")
    check_length(data, limit)
    position = 12
    while position + 8 <= limit:
        kind, length = struct.unpack_from("<4sI", data, position)
        start, end = position + 8, position + 8 + length
        if end > limit:
            raise PhotoError(f"truncated: the WebP's {kind!r} chunk goes {end - limit:,} bytes beyond the end")
        yield kind, start, end
        position = end + (length & 1)


def _read_webp(data: bytes) -> Header:
    check_count(len(data), MAX_WEBP_BYTES, "bytes, which a WebP may have")
    view = memoryview(data)
    kept: list[bytes | memoryview] = []
    size: tuple[int, int] | None = None
    frames = ancillary = 0
    orientation = 1
    for index, (kind, start, end) in enumerate(_webp_chunks(data)):
        check_count(index + 1, MAX_PARTS, "WebP chunks")
        contents = view[start:end]
        if index == 0:
            size = _webp_size(kind, bytes(contents[:10]))
        if kind == b"EXIF":
            orientation = exif_orientation(contents)
        frames += kind == b"ANMF"
        check_count(frames, MAX_FRAMES, "frames")
        if kind == b"VP8X" and index == 0:
            kept.append(_riff_chunk(kind, bytes([contents[0] & 0b0001_0010]) + contents[1:10]))
        elif kind in _WEBP_KEPT and frames < 2:
            kept.append(_riff_chunk(kind, contents))
        elif kind != b"ANMF":
            ancillary += end - start
            check_count(ancillary, MAX_ANCILLARY, "bytes of text, profiles and the like")
    if size is None:
        raise PhotoError("truncated: a WebP without a picture")
    return Header("WebP", *size, _riff_chunk(b"RIFF", b"".join([b"WEBP", *kept])), orientation)


def _riff_chunk(kind: bytes, contents: bytes | memoryview) -> bytes:
    return b"".join([kind, len(contents).to_bytes(4, "little"), contents, b"\0" * (len(contents) & 1)])


def _webp_size(kind: bytes, contents: bytes) -> tuple[int, int]:
    """Returns width and height from a WebP's first chunk; libwebp itself refuses frames that do not fit into them."""
    if kind == b"VP8X" and len(contents) >= 10:
        width, height = (1 + int.from_bytes(contents[at : at + 3], "little") for at in (4, 7))
    elif kind == b"VP8 " and contents[3:6] == b"\x9d\x01\x2a" and len(contents) >= 10:
        width, height = (int.from_bytes(contents[at : at + 2], "little") & 0x3FFF for at in (6, 8))
    elif kind == b"VP8L" and contents[:1] == b"\x2f" and len(contents) >= 5:
        bits = int.from_bytes(contents[1:5], "little")
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    else:
        raise PhotoError(f"damaged: a WebP can't begin with this {kind!r} chunk")
    check_size("WebP", width, height)
    return width, height


# GIF: https://www.w3.org/Graphics/GIF/spec-gif89a.txt


def _gif_sub_blocks(data: bytes, position: int) -> tuple[int, int]:
    """Returns where the data's sub-blocks end, and how many there are; each has its length in front, the last has 0."""
    for count in range(MAX_SUB_BLOCKS):
        if position >= len(data):
            break
        length = data[position]
        position += 1 + length
        if length == 0:
            return position, count
    check_length(data, position + 1)
    raise PhotoError(f"has more than {MAX_SUB_BLOCKS:,} GIF blocks")


def _colours(flags: int) -> int:
    """Returns the bytes of the colour table that a descriptor's flags announce."""
    return 3 << (1 + (flags & 7)) if flags & 0x80 else 0


def _read_gif(data: bytes) -> Header:
    check_length(data, 13)
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    check_size("GIF", width, height)
    position = 13 + _colours(flags)
    kept = [data[:position]]
    frames = sub_blocks = ancillary = 0
    # Many writers leave out the last byte, the trailer; nothing else may be missing.
    while position < len(data) and data[position : position + 1] != b";":
        start, introducer = position, data[position]
        if introducer == 0x21:
            check_length(data, start + 2)
            position, blocks = _gif_sub_blocks(data, start + 2)
            if data[start + 1] == 0xF9 and not frames:  # graphic control: which colour is transparent
                kept[1:] = [data[start:position]]
            else:
                ancillary += position - start
        elif introducer == 0x2C:
            check_length(data, start + 11)
            left, top, columns, rows, flags = struct.unpack_from("<HHHHB", data, start + 1)
            position, blocks = _gif_sub_blocks(data, start + 11 + _colours(flags))
            frames += 1
            if frames == 1:
                # Pillow enlarges the picture when a frame goes beyond it.
                width, height = max(width, left + columns), max(height, top + rows)
                check_size("GIF", width, height)
                kept += [data[start:position], b";"]
        else:
            raise PhotoError(f"damaged: no GIF block begins with {introducer:#04x}")
        sub_blocks += blocks
        check_count(sub_blocks, MAX_SUB_BLOCKS, "GIF blocks")
        check_count(frames, MAX_FRAMES, "frames")
        check_count(ancillary, MAX_ANCILLARY, "bytes of comments and the like")
    if not frames:
        raise PhotoError("truncated: a GIF without a picture")
    return Header("GIF", width, height, b"".join(kept))


# BMP: https://learn.microsoft.com/windows/win32/gdi/bitmap-header-types


def _read_bmp(data: bytes) -> Header:
    check_length(data, 26)
    offset, header_size = struct.unpack_from("<II", data, 10)
    compression = 0
    if header_size == 12:
        width, height, bits = struct.unpack_from("<HH2xH", data, 18)
    elif header_size in (40, 52, 56, 64, 108, 124):
        check_length(data, 14 + header_size)
        width, height, bits, compression = struct.unpack_from("<ii2xHI", data, 18)
    else:
        raise PhotoError(f"damaged: no BMP header has {header_size} bytes")
    height = abs(height)  # negative: the top row comes first
    check_size("BMP", width, height)
    if compression not in (0, 3):
        raise PhotoError(f"is a BMP with compression {compression}; save it without, or as PNG")
    if bits not in (1, 4, 8, 16, 24, 32):
        raise PhotoError(f"damaged: no BMP has {bits} bits a pixel")
    check_length(data, max(offset, 14 + header_size) + height * ((width * bits + 31) // 32 * 4))
    return Header("BMP", width, height, data)


_READERS: list[tuple[Callable[[bytes], bool], Callable[[bytes], Header]]] = [
    (lambda head: head.startswith(b"\xff\xd8\xff"), read_jpeg),
    (lambda head: head.startswith(_PNG_SIGNATURE), _read_png),
    (lambda head: head.startswith(b"RIFF") and head[8:12] == b"WEBP", _read_webp),
    (lambda head: head.startswith((b"GIF87a", b"GIF89a")), _read_gif),
    (lambda head: head.startswith(b"BM"), _read_bmp),
]
