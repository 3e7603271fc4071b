"""From a photo's bytes to a network's pixels: the one preprocessing for training, evaluation and prediction.

A photo is known by its first bytes, its header is checked against limits before any decoder sees it
(`photo_headers.py`), and what cannot be read is a `PhotoError` that names the photo and what was wrong. A file must be
whole: only a JPEG's EOI marker and a GIF's trailer may be missing. All functions may be called from several threads.
"""

import contextlib
import io
import math
import threading
from collections.abc import Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import simplejpeg  # type: ignore[import-untyped]
from numpy.typing import NDArray

from ..common.checks import short
from ..common.files import read_regular, shown
from ..errors import DataError, PhotoError, UsageError
from .headers import read_header
from .limits import MAX_BYTES, MAX_DECODED_PIXELS, Header
from .preprocessing import Preprocessing
from .resampling import Box

if TYPE_CHECKING:  # a JPEG in colour needs no Pillow, which takes 13 ms to load
    from PIL import Image

    Picture = Image.Image | NDArray[np.uint8]
    """As stored, not yet upright: a PIL image of mode L or RGB, or uint8 [H,W] or [H,W,3]."""
    Source = Path | str | bytes | Image.Image | NDArray[np.uint8]

__all__ = ["OVERSAMPLING", "Preprocessing", "Resampler", "decode", "open_bytes", "pixels"]


class Resampler(Protocol):
    """Is what resizes photos to one size, to the same bits as Pillow.

    Attributes:
        size: height and width of what it returns.
    """

    size: tuple[int, int]

    def takes(self, height: int, width: int) -> bool:
        """Whether a photo of this size can be resized."""

    def __call__(self, photo: NDArray[np.uint8], box: Box, interpolation: str) -> NDArray[np.uint8]:
        """Returns the box of a photo, uint8 [H,W,4] of which the last is of no use, as uint8 [height,width,3]."""


OVERSAMPLING = 1.5
"""A JPEG is decoded at 1/2, 3/8, 1/4 or 1/8 only where at least this many times the pixels asked for stay, each way.

The resize that follows then decides what is seen: on 250 photos to 224 pixels the mean difference to a full decode is
0.006 of 255; on 7 megapixels it is 1.3 (3.6 with an oversampling of 1), for 16 ms instead of 44.
"""
_PLUGINS = {"PNG": "Png", "WebP": "WebP", "GIF": "Gif", "BMP": "Bmp"}
"""Pillow's names of the decoders, each loaded with the first photo that needs it: a JPEG starts 5 ms earlier."""
_KEPT = 1 << 23
"""Bytes of memory that a thread keeps for the next JPEG: 2 megapixels."""
_WHITE = 255
"""What is seen through transparent pixels."""
_HARMLESS = "extraneous bytes before marker"
"""A warning of libjpeg after which every pixel is as it was saved."""
_SAMPLING = "subsampling level"
"""In libjpeg-turbo's error for a JPEG of sampling factors it does not know. Pillow would, and read damaged ones too."""


def open_bytes(path: Path | str) -> bytes:
    """Reads a photo's file, at most `MAX_BYTES` of it; raises `PhotoError` that names a path that is no such file."""
    try:
        return read_regular(Path(path), MAX_BYTES)
    except DataError as error:
        raise PhotoError(str(error)) from error


def decode(data: bytes, name: str, minimum: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """Returns a photo as uint8 [H,W,3]: upright as EXIF says, RGB, transparent pixels on white, the first frame.

    With `minimum`, (height, width) in pixels of the upright photo, a larger JPEG may come scaled down, by the same
    factor in both directions, to a size that is still at least `OVERSAMPLING` times that. Of 16-bit samples the high
    byte is kept. Raises `PhotoError` that begins with `name`.
    """
    with _refusals_named(name):
        header = read_header(data)
        stored = np.asarray(_decoded(header, _turned(minimum, header.orientation) if minimum else None))
        colours = stored if stored.ndim == 3 else np.repeat(stored[:, :, np.newaxis], 3, axis=2)
        return np.require(_upright(colours, header.orientation), requirements=["C", "W"])


def pixels(
    source: "Source", preprocessing: Preprocessing, name: str | None = None, resampler: Resampler | None = None
) -> NDArray[np.uint8]:
    """Returns a photo as a network's input, uint8 [height,width,channels]; the engine scales it with mean and std.

    The source is a path, a file's bytes, a PIL image, or uint8 [H,W,3] or [H,W]. One antialiased resampling cuts out
    the area and resizes it; a `resampler` takes less time for that and makes the same of it. Raises `PhotoError` that
    begins with the path, or with `name`; a `UsageError` where the source is none of these.
    """
    if not (isinstance(source, Path | str | bytes | np.ndarray) or hasattr(source, "getexif")):
        raise UsageError(f"photo: got {short(source)}, needed a path, a file's bytes, a PIL image or an array")
    if name is None:
        name = str(source) if isinstance(source, Path | str) else "photo"
    data = open_bytes(source) if isinstance(source, Path | str) else source
    with _refusals_named(name):
        if preprocessing.channels not in (1, 3):
            raise PhotoError(f"can't be made into an input of {preprocessing.channels} channels, only of 1 or 3")
        if isinstance(data, bytes):
            header, quick = read_header(data), None
            minimum = _needed(header, preprocessing)
            if resampler and _suits(resampler, header, minimum, preprocessing):
                quick = resampler
            return _resized(_decoded(header, minimum, bool(quick)), header.orientation, preprocessing, quick)
        if isinstance(data, np.ndarray):
            return _resized(_checked(data), 1, preprocessing)
        return _resized(_flat(data), _orientation(data), preprocessing)


@contextlib.contextmanager
def _refusals_named(name: str) -> Iterator[None]:
    """Puts the photo's name in front of what is wrong, whatever way a decoder has of saying it."""
    try:
        yield
    except PhotoError as error:
        raise PhotoError(f"{shown(name)}: {error}") from None
    # Pillow raises OSError, SyntaxError, ValueError, IndexError, EOFError, struct.error and more on damaged data.
    except Exception as error:
        raise PhotoError(f"{shown(name)}: damaged: {shown(str(error) or type(error).__name__)}") from error


# Geometry


def _turned(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """Swaps height and width where the orientation lays the photo on its side."""
    return size if orientation < 5 else (size[1], size[0])


def _area(height: int, width: int, out: tuple[int, int], preprocessing: Preprocessing) -> tuple[float, float]:
    """Returns height and width of the central area, in pixels of the photo, that becomes the `out` pixels."""
    if preprocessing.resize == "squash":
        return preprocessing.crop * height, preprocessing.crop * width
    # min: the product may be an ulp above the side that it came from.
    scale = min(height / out[0], width / out[1])
    return preprocessing.crop * min(height, scale * out[0]), preprocessing.crop * min(width, scale * out[1])


def _needed(header: Header, preprocessing: Preprocessing) -> tuple[int, int]:
    """Returns the height and width that a photo may be scaled down to so that its area keeps the input's size."""
    out = _turned((preprocessing.height, preprocessing.width), header.orientation)
    area = _area(header.height, header.width, out, preprocessing)
    scale = max(out[0] / area[0], out[1] / area[1])
    return math.ceil(header.height * scale), math.ceil(header.width * scale)


def _suits(resampler: Resampler, header: Header, minimum: tuple[int, int], preprocessing: Preprocessing) -> bool:
    """Whether a resampler can resize a photo: a JPEG in colour, to its own size."""
    out = _turned((preprocessing.height, preprocessing.width), header.orientation)
    colours = header.format.endswith("JPEG") and header.components == preprocessing.channels == 3
    return colours and out == resampler.size and resampler.takes(*_scaled_size(header, minimum))


def _resized(
    stored: "Picture", orientation: int, preprocessing: Preprocessing, resampler: Resampler | None = None
) -> NDArray[np.uint8]:
    """Cuts, resizes and turns; turning comes last, where it is cheapest. A resampler gets uint8 [H,W,4]."""
    columns, rows = stored.shape[1::-1] if isinstance(stored, np.ndarray) else stored.size
    out = _turned((preprocessing.height, preprocessing.width), orientation)
    height, width = _area(rows, columns, out, preprocessing)
    left, top = (columns - width) / 2, (rows - height) / 2
    box = (left, top, left + width, top + height)
    if resampler and isinstance(stored, np.ndarray):
        values = resampler(stored, box, preprocessing.interpolation)
    else:
        from PIL import Image

        image = Image.fromarray(stored) if isinstance(stored, np.ndarray) else stored
        resized = image.resize((out[1], out[0]), Image.Resampling[preprocessing.interpolation.upper()], box)
        values = np.asarray(resized.convert("RGB" if preprocessing.channels == 3 else "L"))
    upright = _upright(values.reshape(*out, preprocessing.channels), orientation)
    return np.require(upright, requirements=["C", "W"])


def _upright(stored: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Returns a view of [H,W,...] as EXIF's orientation says that it is to be seen: 5 to 8 swap rows and columns."""
    if orientation >= 5:
        stored = stored.swapaxes(0, 1)
    rows = slice(None, None, -1 if orientation in (3, 4, 7, 8) else 1)
    columns = slice(None, None, -1 if orientation in (2, 3, 6, 7) else 1)
    return stored[rows, columns]


# Decoding


def _decoded(header: Header, minimum: tuple[int, int] | None, words: bool = False) -> "Picture":
    """Returns a photo; with `words`, which only a JPEG can have, as [H,W,4], and valid until this thread's next one."""
    if header.format not in _PLUGINS:
        return _decoded_jpeg(header, minimum, words)
    name = _PLUGINS[header.format]
    with getattr(import_module(f"PIL.{name}ImagePlugin"), f"{name}ImageFile")(io.BytesIO(header.data)) as image:
        image.load()
        if image.size != (header.width, header.height):
            raise PhotoError(f"damaged: decoded to {image.size} pixels, the header says {header.width, header.height}")
        return _flat(image)


class _Memory(threading.local):
    """Is each thread's memory for a decoded photo: pages that the system has cleared take longer than to decode to."""

    room = bytearray()

    def of(self, size: int) -> bytearray:
        """Returns at least so many bytes."""
        if len(self.room) >= size:
            return self.room
        made = bytearray(size)
        if size <= _KEPT:
            self.room = made
        return made


_memory = _Memory()


def _decoded_jpeg(header: Header, minimum: tuple[int, int] | None, words: bool = False) -> NDArray[np.uint8]:
    height, width = _scaled_size(header, minimum)
    if height * width > MAX_DECODED_PIXELS:
        raise PhotoError(
            f"is {width:,} x {height:,} pixels to decode, at most {MAX_DECODED_PIXELS:,} are allowed; save it smaller"
        )
    colours = "RGBX" if words else "GRAY" if header.components == 1 else "RGB"
    memory = _memory.of(4 * height * width) if words else None
    read = partial(simplejpeg.decode_jpeg, header.data, colours, min_height=height, min_width=width, buffer=memory)
    try:
        decoded = read()
    except ValueError as error:
        if "premature end" in str(error).lower():
            raise PhotoError("truncated: the JPEG's pixel data ends early") from None
        if _SAMPLING in str(error):
            raise PhotoError("is a JPEG with unusual sampling of colours; save it with 4:4:4, 4:2:2 or 4:2:0") from None
        if _HARMLESS not in str(error):
            raise
        decoded = read(strict=False)
    if decoded.shape[:2] != (height, width):
        raise PhotoError(f"damaged: decoded to {decoded.shape[:2]} rows and columns, the header says {height, width}")
    array: NDArray[np.uint8] = decoded[:, :, 0] if header.components == 1 else decoded
    return array


def _scaled_size(header: Header, minimum: tuple[int, int] | None) -> tuple[int, int]:
    """Returns height and width of a JPEG decoded at the smallest of 1/8 to 4/8 that keeps enough, else of the whole.

    libjpeg-turbo has vector code for 1/2 and 1/4; 7/8 to 5/8 take as long as the whole.
    """
    if minimum and header.components in (1, 3):
        least = [OVERSAMPLING * side for side in minimum]
        for eighths in range(1, 5):
            height, width = (-(-side * eighths // 8) for side in (header.height, header.width))
            if height >= least[0] and width >= least[1]:
                return height, width
    return header.height, header.width


def _flat(image: "Image.Image") -> "Image.Image":
    """Returns a PIL image of any mode as L or RGB of 8 bits, transparent pixels on white."""
    if image.mode in ("L", "RGB") and "transparency" not in image.info:
        return image
    from PIL import Image

    if image.mode.startswith("I;16"):
        values = np.asarray(image)
        high = (values >> 8).astype(np.uint8)
        if "transparency" in image.info:
            high[values == image.info["transparency"]] = _WHITE
        return Image.fromarray(high)
    if image.mode in ("I", "F"):
        raise PhotoError(f"is a PIL image of mode {image.mode}, whose range is not known; convert it to L or RGB")
    if "transparency" in image.info or image.has_transparency_data:
        seen = image if image.mode == "RGBA" else image.convert("RGBA")
        flat = Image.new("RGB", image.size, (_WHITE, _WHITE, _WHITE))
        flat.paste(seen, mask=seen)
        return flat
    return image.convert("L" if image.mode == "1" else "RGB")


def _checked(array: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Returns uint8 [H,W,3] as it is, and [H,W,1] as [H,W]."""
    if (
        array.dtype != np.uint8
        or array.ndim not in (2, 3)
        or 0 in array.shape
        or array.shape[2:] not in ((), (1,), (3,))
    ):
        raise PhotoError(f"is an array of {array.dtype} {list(array.shape)}; uint8 [H,W,3] or [H,W] is needed")
    return array[:, :, 0] if array.shape[2:] == (1,) else array


def _orientation(image: "Image.Image") -> int:
    """Returns EXIF's orientation of a PIL image that its caller opened from a file; 1 where it has none."""
    value = image.getexif().get(0x0112, 1)
    return value if isinstance(value, int) and 1 <= value <= 8 else 1
