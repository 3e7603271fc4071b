"""Makes photos by script, good and bad, for the tests of reading them."""

import functools
import io
import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[np.uint8]


@functools.cache
def scene(height: int, width: int, seed: int = 0) -> Array:
    """Returns uint8 [height,width,3], read-only, that resembles a photo: soft areas, edges, a little noise."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    waves = [np.sin(random.uniform(2, 30) * (x * np.cos(a) + y * np.sin(a)) + a) for a in random.uniform(0, 6, 9)]
    values = np.stack([sum(waves[c::3]) for c in range(3)], axis=2) * 40 + 128
    values[(x - 0.5) ** 2 + (y - 0.4) ** 2 < 0.03] += (60, -30, 20)
    picture = (values + random.normal(0, 2, values.shape)).clip(0, 255).astype(np.uint8)
    picture.setflags(write=False)
    return picture


def saved(image: Image.Image | Array, kind: str, **options: Any) -> bytes:
    """Returns an image as the bytes of a file of this kind."""
    file = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(file, kind, **options)
    return file.getvalue()


def chunk(kind: bytes, contents: bytes) -> bytes:
    """Returns a PNG chunk."""
    return struct.pack(">I", len(contents)) + kind + contents + struct.pack(">I", zlib.crc32(kind + contents))


def png(values: NDArray[Any], depth: int, colour: int, *extra: bytes) -> bytes:
    """Returns a PNG of samples [H,W] or [H,W,C] of this bit depth and colour type; `extra` chunks precede IDAT."""
    height, width = values.shape[:2]
    samples = values.reshape(height, -1)
    if depth == 16:
        rows = [row.astype(">u2").tobytes() for row in samples]
    else:
        bits = np.unpackbits(samples.astype(np.uint8)[:, :, np.newaxis], axis=2)[:, :, 8 - depth :]
        rows = [np.packbits(row.ravel()).tobytes() for row in bits]
    ihdr = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    idat = zlib.compress(b"".join(b"\0" + row for row in rows), 1)
    return b"".join(
        [b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", ihdr), *extra, chunk(b"IDAT", idat), chunk(b"IEND", b"")],
    )


def exif(orientation: int, order: str = "<", kind: int = 3) -> bytes:
    """Returns an EXIF block whose only entry is the orientation."""
    head = b"II*\0" if order == "<" else b"MM\0*"
    return b"Exif\0\0" + head + struct.pack(order + "IHHHIHHI", 8, 1, 0x0112, kind, 1, orientation, 0, 0)


def jpeg_segment(marker: int, contents: bytes) -> bytes:
    """Returns a JPEG segment with its marker and length."""
    return struct.pack(">BBH", 0xFF, marker, len(contents) + 2) + contents


def after_soi(jpeg: bytes, *segments: bytes) -> bytes:
    """Returns a JPEG with segments put in at its beginning."""
    return jpeg[:2] + b"".join(segments) + jpeg[2:]


def jpeg_parts(jpeg: bytes) -> list[bytes]:
    """Returns a JPEG's SOI, segments (a scan with its data as one) and EOI."""
    parts, position = [jpeg[:2]], 2
    while jpeg[position + 1] != 0xD9:
        end = position + 2 + int.from_bytes(jpeg[position + 2 : position + 4])
        if jpeg[position + 1] == 0xDA:
            while jpeg[end] != 0xFF or jpeg[end + 1] == 0 or 0xD0 <= jpeg[end + 1] <= 0xD7:
                end += 1
        parts.append(jpeg[position:end])
        position = end
    return [*parts, jpeg[position : position + 2]]


def with_frame(jpeg: bytes, marker: int | None = None, bits: int | None = None, size: Sequence[int] = ()) -> bytes:
    """Returns a JPEG whose frame header has another marker, precision, or (height, width)."""
    parts = jpeg_parts(jpeg)
    index = next(i for i, part in enumerate(parts) if part[:1] == b"\xff" and part[1] in (0xC0, 0xC1, 0xC2))
    frame = bytearray(parts[index])
    if marker is not None:
        frame[1] = marker
    if bits is not None:
        frame[4] = bits
    if size:
        frame[5:9] = struct.pack(">HH", *size)
    return b"".join([*parts[:index], bytes(frame), *parts[index + 1 :]])


def gif(width: int, height: int, frames: int = 1, frame: tuple[int, int, int, int] = (0, 0, 1, 1)) -> bytes:
    """Returns a GIF with this screen whose frames (left, top, width, height) all have one pixel of data."""
    picture = struct.pack("<BHHHHB", 0x2C, *frame, 0) + b"\x02\x02\x44\x01\0"
    table = bytes(range(12))
    return b"".join([b"GIF89a", struct.pack("<HHBBB", width, height, 0x81, 0, 0), table, picture * frames, b";"])


def riff(*chunks: tuple[bytes, bytes]) -> bytes:
    """Returns a WebP file of these chunks."""
    body = b"".join(
        kind + struct.pack("<I", len(contents)) + contents + b"\0" * (len(contents) & 1) for kind, contents in chunks
    )
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def vp8x(width: int, height: int, flags: int = 0) -> tuple[bytes, bytes]:
    """Returns the WebP chunk that gives the canvas."""
    return b"VP8X", bytes([flags, 0, 0, 0]) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")


def bmp(width: int, height: int, bits: int = 24, compression: int = 0, data: bytes = b"") -> bytes:
    """Returns a BMP with this header."""
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(data), 0, 0, 0, 0)
    return struct.pack("<2sIHHI", b"BM", 54 + len(data), 0, 0, 54) + header + data


def small_photos() -> Iterator[tuple[str, bytes]]:
    """Yields the name and bytes of good photos of every kind that is read, a few hundred bytes each."""
    image = Image.fromarray(scene(20, 24))
    alpha = image.copy()
    alpha.putalpha(Image.fromarray(scene(20, 24, 1)[:, :, 0]))
    palette = image.quantize(16)
    other = [Image.fromarray(scene(20, 24, seed)) for seed in (2, 3)]
    yield "JPEG", saved(image, "JPEG", quality=60)
    yield "JPEG progressive", saved(image, "JPEG", quality=60, progressive=True)
    yield "JPEG grey", saved(image.convert("L"), "JPEG", quality=60)
    yield "JPEG restart", saved(image, "JPEG", quality=60, subsampling=0, restart_marker_blocks=1, exif=exif(6)[6:])
    yield "JPEG CMYK", saved(image.convert("CMYK"), "JPEG", quality=60)
    yield "PNG", saved(image, "PNG")
    yield "PNG palette", saved(palette, "PNG", transparency=bytes(range(0, 256, 16)))
    yield "PNG alpha", saved(alpha, "PNG", exif=exif(3)[6:])
    yield "PNG 16 bits", png(scene(20, 24)[:, :, 0].astype(int) * 257, 16, 0, chunk(b"tRNS", b"\x80\x80"))
    yield "PNG animated", saved(image, "PNG", save_all=True, append_images=other)
    yield "WebP", saved(image, "WEBP", quality=60)
    yield "WebP lossless", saved(palette.convert("RGB"), "WEBP", lossless=True)
    yield "WebP alpha", saved(alpha, "WEBP", quality=60, exif=exif(8))
    yield "WebP animated", saved(image, "WEBP", quality=60, save_all=True, append_images=other)
    yield "GIF", saved(palette, "GIF")
    yield "GIF animated", saved(palette, "GIF", save_all=True, append_images=other, transparency=3, comment=b"hello")
    yield "BMP", saved(image, "BMP")
    yield "BMP palette", saved(palette, "BMP")
    yield "BMP alpha", saved(alpha, "BMP")
