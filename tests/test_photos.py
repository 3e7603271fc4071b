"""Every kind of photo becomes the pixels that it shows, the same from a file, bytes, a PIL image or an array."""

import concurrent.futures
import dataclasses
import io
import json
import os
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

import photo_makers as make
from mobilenet.errors import ModelError, PhotoError, UsageError
from mobilenet.photos import OVERSAMPLING, Preprocessing, decode, open_bytes, pixels
from mobilenet.photos.headers import read_header

WHOLE = Preprocessing(20, 24, crop=1.0)


def difference(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> tuple[float, int]:
    """Returns the mean and the largest difference between two pictures, in levels of 255."""
    assert a.shape == b.shape
    distance = np.abs(a.astype(int) - b.astype(int))
    return float(distance.mean()), int(distance.max())


# Preprocessing as data


def test_preprocessing_goes_through_json() -> None:
    for given in (
        Preprocessing(224, 192),
        Preprocessing(32, 64, 1, 1.0, "squash", "bicubic", (120.0,), (60,)),
        Preprocessing(1, 4096, 3, 0.5, mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375)),
    ):
        assert Preprocessing.from_dict(json.loads(json.dumps(given.to_dict()))) == given


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("height", 0),
        ("height", 4097),
        ("width", 2.0),
        ("width", True),
        ("channels", 0),
        ("crop", 0),
        ("crop", 1.01),
        ("crop", float("nan")),
        ("resize", "stretch"),
        ("interpolation", "nearest"),
        ("mean", (1, 2)),
        ("mean", [1.0]),
        ("mean", (float("inf"),)),
        ("mean", ("1",)),
        ("std", (0.0,)),
        ("std", ()),
    ],
)
def test_a_field_outside_its_rule_is_named(field: str, value: Any) -> None:
    fields: dict[str, Any] = {"height": 32, "width": 32, field: value}
    with pytest.raises(UsageError, match=f"preprocessing.{field}"):
        Preprocessing(**fields)
    if not isinstance(value, list):
        with pytest.raises(ModelError, match=f"preprocessing.{field}"):
            Preprocessing.from_dict(Preprocessing(32, 32).to_dict() | {field: value})


def test_a_config_with_other_fields_is_refused() -> None:
    good = Preprocessing(32, 32).to_dict()
    with pytest.raises(ModelError, match=r"'heigth'.*'height'"):
        Preprocessing.from_dict(good | {"heigth": 32})
    with pytest.raises(ModelError, match="'std' is missing"):
        Preprocessing.from_dict({key: value for key, value in good.items() if key != "std"})
    with pytest.raises(ModelError, match="preprocessing"):
        Preprocessing.from_dict([32, 32])


# Formats


@pytest.mark.parametrize(
    ("kind", "options"),
    [("PNG", {}), ("BMP", {}), ("WEBP", {"lossless": True}), ("PNG", {"compress_level": 0})],
)
def test_lossless_formats_give_the_pixels_that_were_saved(kind: str, options: dict[str, Any]) -> None:
    image = make.scene(37, 53)
    decoded = decode(make.saved(image, kind, **options), "a")
    assert np.array_equal(decoded, image)
    assert decoded.flags.c_contiguous
    assert decoded.flags.writeable


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 2}, {"optimize": True}])
def test_a_jpeg_is_as_pillow_shows_it(subsampling: int, options: dict[str, Any]) -> None:
    data = make.saved(make.scene(37, 53), "JPEG", subsampling=subsampling, **options)
    # The two libjpeg-turbos may differ in version, not in their arithmetic.
    assert difference(decode(data, "a"), np.asarray(Image.open(io.BytesIO(data))))[1] <= 1


def test_grey_has_three_equal_channels_in_every_format() -> None:
    grey = make.scene(37, 53)[:, :, 0]
    for kind in ("PNG", "BMP", "GIF", "JPEG"):
        decoded = decode(make.saved(grey, kind, **({"quality": 100} if kind == "JPEG" else {})), kind)
        assert decoded.shape == (37, 53, 3)
        assert (decoded == decoded[:, :, :1]).all()
        assert difference(decoded[:, :, 0], grey)[1] <= (2 if kind == "JPEG" else 0)


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    ramp = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    colours = np.stack([ramp, ramp.T, ramp[::-1]], axis=2)
    assert np.array_equal(decode(make.png(ramp, 16, 0), "a")[:, :, 1], ramp >> 8)
    assert np.array_equal(decode(make.png(colours, 16, 2), "a"), colours >> 8)


def on_white(colour: Any, alpha: Any) -> Any:
    return colour * (alpha / 255) + 255 * (1 - alpha / 255)


def test_transparent_pixels_are_on_white() -> None:
    image, alpha = make.scene(37, 53), make.scene(37, 53, 1)[:, :, :1]
    wanted = on_white(image, alpha)
    rgba = np.concatenate([image, alpha], axis=2)
    for data in (
        make.saved(rgba, "PNG"),
        make.saved(rgba, "WEBP", lossless=True, exact=True),
        make.png(rgba.astype(int) * 257, 16, 6),
    ):
        assert np.abs(decode(data, "a") - wanted).max() <= 1
    grey = make.png(rgba[:, :, 2:], 8, 4)
    assert np.abs(decode(grey, "a") - on_white(image[:, :, 2:], alpha)).max() <= 1


def test_a_palette_may_have_transparent_colours() -> None:
    palette, indices = make.scene(1, 16)[0], make.scene(37, 53)[:, :, 0] >> 4
    alpha = np.arange(0, 256, 16)
    data = make.png(
        indices, 4, 3, make.chunk(b"PLTE", palette.tobytes()), make.chunk(b"tRNS", alpha.astype(np.uint8).tobytes())
    )
    assert np.abs(decode(data, "a") - on_white(palette, alpha[:, np.newaxis])[indices]).max() <= 1
    image = Image.fromarray(indices)
    image.putpalette(palette.tobytes())
    assert np.array_equal(decode(make.saved(image, "PNG"), "a"), palette[indices])
    assert np.array_equal(decode(make.saved(image, "BMP"), "a"), palette[indices])
    white_at_3 = np.where((indices == 3)[:, :, np.newaxis], 255, palette[indices])
    assert np.array_equal(decode(make.saved(image, "PNG", transparency=3), "a"), white_at_3)
    assert np.array_equal(decode(make.saved(image, "GIF", transparency=3), "a"), white_at_3)


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_one_grey_may_be_transparent(depth: int) -> None:
    top = 2**depth - 1
    values = (make.scene(37, 53)[:, :, 0] >> max(8 - depth, 0)).astype(int) * (257 if depth == 16 else 1)
    clear = int(values[0, 0])
    assert clear != top
    grey = values * 255 // top if depth < 16 else values >> 8
    data = make.png(values, depth, 0, make.chunk(b"tRNS", struct.pack(">H", clear)))
    assert np.array_equal(decode(data, "a")[:, :, 2], np.where(values == clear, 255, grey))


@pytest.mark.parametrize("depth", [8, 16])
def test_one_colour_may_be_transparent(depth: int) -> None:
    values = make.scene(37, 53).astype(int) * 256 + 17 if depth == 16 else make.scene(37, 53)
    clear = values[5, 7]
    data = make.png(values, depth, 2, make.chunk(b"tRNS", struct.pack(">HHH", *clear)))
    wanted = np.where((values == clear).all(axis=2, keepdims=True), 255, values >> (depth - 8))
    assert np.array_equal(decode(data, "a"), wanted)


@pytest.mark.parametrize("transform", [0, 2])
def test_cmyk_and_ycck_are_as_pillow_shows_them(transform: int) -> None:
    data = make.saved(Image.fromarray(make.scene(37, 53)).convert("CMYK"), "JPEG", quality=95)
    adobe = data.index(b"Adobe")
    data = data[: adobe + 11] + bytes([transform]) + data[adobe + 12 :]
    shown = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert difference(decode(data, "a"), shown)[1] <= 2  # two roundings of (255-C)(255-K)/255
    assert difference(decode(data, "a", minimum=(1, 1)), shown)[1] <= 2  # never scaled


def headed(data: bytes, components: int) -> Iterator[tuple[str, bytes, bytes]]:
    """Yields the name of what libjpeg warns of in a header, a JPEG with it, and the same without it."""
    jfif, adobe = data.find(b"JFIF"), data.find(b"Adobe")
    if jfif > 0:
        yield "JFIF", data[: jfif + 5] + b"\x09" + data[jfif + 6 :], data
        segment = make.jpeg_segment(0xEE, b"Adobe" + bytes((0, 100, 0, 0, 0, 0, 7)))
        data = make.jpeg_parts(data)[0] + b"".join(make.jpeg_parts(data)[2:])
        yield "Adobe", make.after_soi(data, segment), data
    else:
        usual = bytes((1 if components == 3 else 2,))
        yield "Adobe", *(data[: adobe + 11] + value + data[adobe + 12 :] for value in (b"\7", usual))
    scan = data.index(b"\xff\xda") + 5 + 2 * components
    yield "scan", data[:scan] + b"\1\2\3" + data[scan + 3 :], data


@pytest.mark.parametrize("mode", ["RGB", "CMYK", "L"])
def test_what_libjpeg_only_warns_of_in_a_header_does_no_harm(mode: str) -> None:
    data = make.saved(Image.fromarray(make.scene(37, 53)).convert(mode), "JPEG", quality=95)
    cases = list(headed(data, len(mode)))
    assert [name for name, _, _ in cases][-2:] == ["Adobe", "scan"]
    for name, odd, usual in cases:
        assert np.array_equal(decode(odd, name), decode(usual, name)), name
        shown = np.asarray(Image.open(io.BytesIO(odd)).convert("RGB"))
        assert difference(decode(odd, name), shown)[1] <= 2, name
        with pytest.raises(PhotoError, match=f"{name}: truncated"):
            decode(odd[:-99] + b"\xff\xd9", name)


def test_a_jpeg_of_unusual_sampling_is_not_called_damaged() -> None:
    data = make.saved(make.scene(37, 53), "JPEG", subsampling=0)
    place = data.index(b"\xff\xc0") + 11
    odd = data[:place] + b"\x31" + data[place + 1 :]
    with pytest.raises(PhotoError, match="a: is a JPEG with unusual sampling of colours; save it with 4:4:4"):
        decode(odd, "a")


def test_the_first_frame_of_an_animation_is_shown() -> None:
    frames = [Image.fromarray(make.scene(37, 53, seed)).quantize(32) for seed in range(3)]
    for kind in ("GIF", "PNG", "WEBP"):
        options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
        data = make.saved(frames[0], kind, save_all=True, append_images=frames[1:], duration=50, **options)
        assert np.array_equal(decode(data, kind), np.asarray(frames[0].convert("RGB"))), kind


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 60000), (60000, 1), (3, 2)])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP"])
def test_odd_sizes(kind: str, height: int, width: int) -> None:
    data = make.saved(np.full((height, width, 3), 200, np.uint8), kind)
    assert decode(data, kind).shape == (height, width, 3)
    assert decode(data, kind, minimum=(1, 1)).shape == (height, width, 3)
    assert np.abs(pixels(data, Preprocessing(32, 48)).astype(int) - 200).max() <= 1


def test_a_bmp_may_begin_with_its_top_row() -> None:
    image = make.scene(6, 8)
    below = make.bmp(8, 6, data=image[::-1, :, ::-1].tobytes())
    above = make.bmp(8, -6, data=image[:, :, ::-1].tobytes())
    assert np.array_equal(decode(below, "a"), image)
    assert np.array_equal(decode(above, "a"), image)


def test_an_old_bmp_header() -> None:
    data = struct.pack("<2sIHHIIHHHH", b"BM", 0, 0, 0, 26, 12, 2, 1, 1, 24) + bytes([1, 2, 3, 4, 5, 6, 0, 0])
    assert decode(data, "a").tolist() == [[[3, 2, 1], [6, 5, 4]]]


def test_a_jpeg_of_one_pixel_is_that_pixel() -> None:
    # At 1/8 a decoder would give the mean of the block of 8 x 8 that is stored, in the same size.
    data = make.with_frame(make.saved(make.scene(8, 8)[:, :, 0], "JPEG", quality=95), size=(1, 1))
    assert np.array_equal(decode(data, "a")[:, :, 0], np.asarray(Image.open(io.BytesIO(data))))


# Orientation


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_is_applied(orientation: int) -> None:
    image = Image.fromarray(make.scene(24, 40))
    for order in "<>":
        block = make.exif(orientation, order)
        for data in (
            make.after_soi(make.saved(image, "JPEG"), make.jpeg_segment(0xE1, block)),
            make.saved(image, "PNG", exif=block),
            make.saved(image, "WEBP", lossless=True, exif=block),
            make.saved(image, "WEBP", lossless=True, exif=block[6:]),
        ):
            shown = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
            assert difference(decode(data, "a"), np.asarray(shown))[1] <= 1
            # Upright, then resized, against resized, then turned: two roundings on the way, in the other order.
            how = Preprocessing(16, 28, crop=0.8)
            assert difference(pixels(data, how), pixels(np.array(shown), how))[1] <= 2
            assert difference(pixels(Image.open(io.BytesIO(data)), how), pixels(data, how))[1] <= 1


@pytest.mark.parametrize("orientation", [6, 3])
def test_the_minimum_is_of_the_upright_photo(orientation: int) -> None:
    data = make.after_soi(make.saved(make.scene(400, 1600), "JPEG"), make.jpeg_segment(0xE1, make.exif(orientation)))
    minimum = (200, 50) if orientation == 6 else (50, 200)
    assert decode(data, "a", minimum).shape[:2] == ((400, 100) if orientation == 6 else (100, 400))


def _exif_variants() -> list[bytes]:
    good = make.exif(6)
    entry = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
    return [
        b"",
        b"Exif",
        b"Exif\0\0XX*\0" + good[10:],
        good[:13],
        good[:15],
        b"Exif\0\0II*\0\xff\xff\xff\xff\xff\xff" + entry,
        make.exif(0),
        make.exif(9),
        make.exif(6, kind=4),
        b"Exif\0\0II*\0" + struct.pack("<IH", 8, 65535) + struct.pack("<HHIHH", 1, 3, 1, 6, 0) * 3,
    ]


@pytest.mark.parametrize("block", _exif_variants())
def test_exif_that_can_not_be_read_means_upright(block: bytes) -> None:
    data = make.after_soi(make.saved(make.scene(16, 24), "JPEG"), make.jpeg_segment(0xE1, block))
    assert decode(data, "a").shape == (16, 24, 3)


# The way to the network's input


def test_a_photo_of_the_right_size_is_untouched() -> None:
    image = make.scene(20, 24)
    for resize in ("crop", "squash"):
        for interpolation in ("bilinear", "bicubic"):
            how = dataclasses.replace(WHOLE, resize=resize, interpolation=interpolation)
            assert np.array_equal(pixels(image, how), image)


@pytest.mark.parametrize(
    ("size", "out", "resize", "crop", "box"),
    [
        ((100, 200), (50, 50), "crop", 1.0, (50, 0, 150, 100)),
        ((200, 100), (50, 50), "crop", 1.0, (0, 50, 100, 150)),
        ((100, 200), (50, 50), "crop", 0.5, (75, 25, 125, 75)),
        ((100, 200), (50, 25), "crop", 1.0, (75, 0, 125, 100)),
        ((100, 200), (20, 80), "crop", 0.8, (20, 30, 180, 70)),
        ((100, 200), (50, 50), "squash", 1.0, (0, 0, 200, 100)),
        ((100, 200), (50, 50), "squash", 0.5, (50, 25, 150, 75)),
        ((30, 40), (60, 60), "crop", 1.0, (5, 0, 35, 30)),
    ],
)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_the_central_area_is_resized(
    size: tuple[int, int],
    out: tuple[int, int],
    resize: str,
    crop: float,
    box: tuple[float, float, float, float],
    interpolation: str,
) -> None:
    image = Image.fromarray(make.scene(*size))
    how = Preprocessing(*out, crop=crop, resize=resize, interpolation=interpolation)
    kind = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[interpolation]
    assert np.array_equal(pixels(image, how), np.asarray(image.resize(out[::-1], kind, box)))


def test_one_channel_is_the_luma() -> None:
    image = make.scene(20, 24)
    grey = pixels(image, dataclasses.replace(WHOLE, channels=1))
    assert grey.shape == (20, 24, 1)
    assert np.abs(grey[:, :, 0] - image @ (0.299, 0.587, 0.114)).max() <= 1
    assert np.array_equal(pixels(grey, WHOLE), np.repeat(grey, 3, axis=2))


def test_all_kinds_of_source_give_the_same(tmp_path: Path) -> None:
    image = make.scene(90, 120)
    how = Preprocessing(32, 40)
    data = make.saved(image, "PNG")
    (tmp_path / "a.png").write_bytes(data)
    wanted = pixels(image, how)
    assert wanted.dtype == np.uint8
    assert wanted.shape == (32, 40, 3)
    assert wanted.flags.writeable
    assert wanted.flags.c_contiguous
    for source in (tmp_path / "a.png", str(tmp_path / "a.png"), data, Image.fromarray(image), image[:, ::-1][:, ::-1]):
        assert np.array_equal(pixels(source, how), wanted)
    assert open_bytes(tmp_path / "a.png") == data


def test_pil_images_of_all_modes() -> None:
    image = Image.fromarray(make.scene(20, 24))
    for mode in ("1", "L", "P", "CMYK", "YCbCr", "HSV", "RGBX"):
        shown = np.asarray(image.convert(mode).convert("RGB"))
        assert difference(pixels(image.convert(mode), WHOLE), shown)[1] == 0, mode
    clear = Image.new("RGBA", (24, 20), (10, 20, 30, 0))
    for mode in ("RGBA", "LA", "PA"):
        assert (pixels(clear.convert(mode), WHOLE) == 255).all()
    for mode in ("I", "F"):
        with pytest.raises(PhotoError, match=f"photo: is a PIL image of mode {mode}"):
            pixels(image.convert("L").convert(mode), WHOLE)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4,), np.uint8),
        np.zeros((1, 4, 4, 3), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_other_arrays_are_refused(array: Any) -> None:
    with pytest.raises(PhotoError, match=r"cat: is an array of .*; uint8 \[H,W,3\] or \[H,W\] is needed"):
        pixels(array, WHOLE, name="cat")


def test_photos_have_one_or_three_channels() -> None:
    with pytest.raises(PhotoError, match="input of 4 channels"):
        pixels(make.scene(20, 24), dataclasses.replace(WHOLE, channels=4))


# Scaled decoding


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
@pytest.mark.parametrize("minimum", [(1, 1), (100, 100), (151, 100), (100, 201), (300, 10), (1000, 1000)])
def test_a_scaled_jpeg_keeps_enough(minimum: tuple[int, int], options: dict[str, Any]) -> None:
    data = make.saved(make.scene(900, 1203), "JPEG", **options)
    height, width = decode(data, "a", minimum).shape[:2]
    assert height >= min(900, OVERSAMPLING * minimum[0])
    assert width >= min(1203, OVERSAMPLING * minimum[1])
    assert abs(height / 900 - width / 1203) < 1 / 900
    if max(minimum) <= 100:
        assert height < 900


@pytest.mark.parametrize("kind", ["RGB", "L"])
@pytest.mark.parametrize("options", [{}, {"progressive": True, "subsampling": 0}])
def test_scaled_decoding_changes_little(kind: str, options: dict[str, Any]) -> None:
    how = Preprocessing(96, 128)
    for seed in range(3):
        data = make.saved(Image.fromarray(make.scene(1000, 1200, seed)).convert(kind), "JPEG", quality=90, **options)
        scaled = decode(data, "a", minimum=(110, 147))
        assert scaled.shape[0] < 500
        whole = pixels(decode(data, "a"), how)
        # What a pixel of the scaled picture holds is the mean of its block, so what differs is the filter's flank.
        assert difference(pixels(data, how), whole)[0] < 1.0
        assert difference(pixels(scaled, how), whole)[0] < 1.0
        # The scaled picture has no shift: moving it by one of its pixels would be seen.
        assert difference(np.roll(pixels(data, how), 1, axis=1), whole)[0] > 2.0


def test_a_jpeg_too_large_to_decode_whole_is_refused_and_scaled_it_is_read() -> None:
    data = make.with_frame(make.saved(np.full((8, 8), 90, np.uint8), "JPEG"), size=(6000, 6000))
    with pytest.raises(PhotoError, match="a: is 6,000 x 6,000 pixels to decode, at most 33,554,432"):
        decode(data, "a")
    assert read_header(data).height == 6000


# Damage


@pytest.mark.parametrize("kind", [kind for kind, _ in make.small_photos()])
def test_a_truncated_photo_is_refused_or_whole(kind: str) -> None:
    data = dict(make.small_photos())[kind]
    whole = decode(data, kind)
    # JPEG: EOI of two bytes. GIF: the trailer of one. BMP as Pillow writes it, PNG and WebP: nothing.
    spare = {"JPEG": 2, "GIF": 1}.get(kind.split()[0], 0)
    for missing in [*range(1, 20), *range(20, len(data), 7)]:
        cut = data[:-missing]
        if missing <= spare:
            assert np.array_equal(decode(cut, kind), whole), missing
        else:
            with pytest.raises(PhotoError, match=f"{kind}: .*(truncated|not a JPEG)"):
                decode(cut, kind)


def test_a_progressive_jpeg_without_its_last_scans_is_refused() -> None:
    parts = make.jpeg_parts(make.saved(make.scene(40, 40), "JPEG", progressive=True))
    scans = [i for i, part in enumerate(parts) if part[1] == 0xDA]
    assert len(scans) > 5
    for last in scans[:-1]:
        with pytest.raises(PhotoError, match="truncated"):
            decode(b"".join(parts[: last + 1]), "a")


def test_the_data_of_a_component_may_not_be_missing() -> None:
    parts = make.jpeg_parts(make.saved(make.scene(40, 40), "JPEG", progressive=True))
    first = next(i for i, part in enumerate(parts) if part[1] == 0xDA)
    only_luma = [part for part in parts[first:-1] if part[1] == 0xC4 or part[4:6] == b"\x01\x01"]
    assert any(part[1] == 0xDA for part in only_luma)
    with pytest.raises(PhotoError, match="no data for some of its components"):
        decode(b"".join([*parts[:first], *only_luma, parts[-1]]), "a")


def test_what_comes_after_the_picture_is_left_out() -> None:
    for kind, data in make.small_photos():
        assert np.array_equal(decode(data + b"\xff\xd8 trailing \xff\xd9" * 99, kind), decode(data, kind)), kind


def test_a_decoder_gets_only_the_first_picture() -> None:
    image, others = Image.fromarray(make.scene(20, 24)), [Image.fromarray(make.scene(20, 24, seed)) for seed in (1, 2)]
    animated: dict[str, Any] = {"save_all": True, "append_images": others}
    extra = {"exif": make.exif(6), "icc_profile": b"profile" * 50}

    jpeg = make.saved(image, "JPEG", **extra)
    assert bytes(read_header(jpeg + b"trailing\xff\xd9").data) == jpeg
    assert bytes(read_header(jpeg[:-1]).data)[:-3] == jpeg[:-2]

    kept = bytes(read_header(make.saved(image, "PNG", **extra, **animated)).data)
    assert kept[12:16] + kept[37:41] + kept[-8:-4] == b"IHDRIDATIEND"
    assert kept.count(b"IDAT") == 1
    assert not any(kind in kept for kind in (b"iCCP", b"eXIf", b"acTL", b"fcTL", b"fdAT"))

    kept = bytes(read_header(make.saved(image, "WEBP", **extra, **animated)).data)
    assert int.from_bytes(kept[4:8], "little") == len(kept) - 8
    assert kept[20] == 0b0000_0010  # animated, without profile and EXIF
    assert kept.count(b"ANMF") == 1
    assert not any(kind in kept for kind in (b"ICCP", b"EXIF", b"XMP "))

    gif = make.gif(20, 24, frames=9)
    assert bytes(read_header(gif).data) == make.gif(20, 24)


def test_bytes_before_a_jpegs_end_do_no_harm() -> None:
    data = make.saved(make.scene(40, 40), "JPEG")
    assert np.array_equal(decode(data[:-2] + bytes(7) + data[-2:], "a"), decode(data, "a"))
    assert np.array_equal(decode(data[:-2] + b"\xff\xff\xff" + data[-2:], "a"), decode(data, "a"))


def test_damaged_pixel_data_is_refused() -> None:
    data = make.saved(make.scene(64, 64), "JPEG", quality=95)
    parts = make.jpeg_parts(data)
    scan = parts[-2]
    broken = b"".join([*parts[:-2], scan[: len(scan) // 2], b"\x55" * 30, scan[len(scan) // 2 + 300 :], parts[-1]])
    with pytest.raises(PhotoError, match=r"a: (truncated|damaged)"):
        decode(broken, "a")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\xff\xd8\xff\xd9", "the JPEG has no picture"),
        (b"\xff\xd8\xff\xfe\x00\x01", "marker 0xfe of the JPEG has a length of 1"),
        (b"\xff\xd8\xff\xfe\x00", "truncated"),
        (b"\xff\xd8\xff\xff\xff", "truncated"),
        (b"\xff\xd8\xff\xfe\x00\x02garbage", "no marker at byte 6"),
        (b"\xff\xd8\xff\x01\x00\x02\xff\xd9", "unknown JPEG marker 0x01"),
        (b"\xff\xd8" + make.jpeg_segment(0xDA, b"\x01\x01\x00\x00\x3f\x00"), "a scan before its frame"),
        (b"\xff\xd8" + make.jpeg_segment(0xC0, b"\x08\0\x01\0\x01\x01"), "frame header of the JPEG has a wrong length"),
        (b"\xff\xd8" + make.jpeg_segment(0xC0, b"\x08\0\0\0\x01\x01\x01\x11\0"), "a JPEG of 1 x 0 pixels"),
        (b"\x89PNG\r\n\x1a\n" + make.chunk(b"IEND", b""), "IHDR is not the first"),
        (b"\x89PNG\r\n\x1a\n" + make.chunk(b"IHDR", b""), "IHDR has 0 bytes"),
        (b"\x89PNG\r\n\x1a\n" + make.chunk(b"IHDR", b"\0\0\0\x01\0\0\0\x01\x09\x09\0\0\0"), "no PNG has colour type 9"),
        (make.png(np.zeros((2, 2)), 8, 0, make.chunk(b"XxXx", b"")), "unknown critical PNG chunk"),
        (make.riff(), "a WebP without a picture"),
        (make.riff((b"ICCP", b"1234")), "can't begin with this b'ICCP' chunk"),
        (make.riff((b"VP8X", b"")), "can't begin with this b'VP8X' chunk"),
        (make.riff(make.vp8x(8, 8)), "decoder"),
        (make.riff(make.vp8x(8, 8))[:-1], "truncated"),
        (make.riff((b"VP8X", b"1"))[:-6] + b"\xff\0\0\0\1\0", "goes 253 bytes beyond the end"),
        (make.gif(4, 4, 0), "a GIF without a picture"),
        (make.gif(4, 4)[:25] + b"?", "no GIF block begins with 0x3f"),
        (make.bmp(0, 1), "a BMP of 0 x 1 pixels"),
        (make.bmp(-4, 1), "a BMP of -4 x 1 pixels"),
        (make.bmp(4, 4, compression=1), "BMP with compression 1"),
        (make.bmp(4, 4, bits=7), "no BMP has 7 bits"),
        (make.bmp(4, 4, bits=16, compression=3, data=bytes(64)), "damaged: Unsupported BMP bitfields layout"),
        (make.bmp(4, 4)[:14] + b"\x99" + make.bmp(4, 4)[15:], "no BMP header has 153 bytes"),
        (make.bmp(4, 4), "truncated: has 54 bytes"),
        (b"BM" + bytes(12), "truncated: has 14 bytes"),
        (b"", "is empty"),
    ],
)
def test_each_kind_of_damage_is_named(data: bytes, reason: str) -> None:
    with pytest.raises(PhotoError, match=f"^a.jpg: .*{reason}"):
        decode(data, "a.jpg")


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_picture_that_is_not_as_its_header_says_is_refused(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    data = make.saved(make.scene(20, 24), kind)
    other = dataclasses.replace(read_header(data), height=21)
    monkeypatch.setattr("mobilenet.photos.read_header", lambda _: other)
    with pytest.raises(PhotoError, match=r"a: damaged: decoded to .*, the header says"):
        decode(data, "a")


def test_a_png_whose_checksum_is_wrong_is_refused() -> None:
    data = bytearray(make.saved(make.scene(20, 24), "PNG"))
    data[len(data) // 2] ^= 4
    with pytest.raises(PhotoError, match="a: damaged: the checksum of the PNG's IDAT chunk is wrong"):
        decode(bytes(data), "a")


def test_threads_give_the_same_as_one_after_the_other() -> None:
    photos = [data for _, data in make.small_photos()] * 8
    how = Preprocessing(16, 16)
    one = [pixels(data, how) for data in photos]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        several = list(pool.map(lambda data: pixels(data, how), photos))
    assert all(np.array_equal(a, b) for a, b in zip(one, several, strict=True))


@pytest.mark.skipif("MOBILENET_DATA" not in os.environ, reason="needs the folder of real photos")
def test_real_photos_are_close_to_a_full_decode() -> None:
    how = Preprocessing(224, 224)
    with zipfile.ZipFile(Path(os.environ["MOBILENET_DATA"]) / "photos.zip") as photos:
        for name in photos.namelist()[:200:4]:
            if name.endswith("JPEG"):
                data = photos.read(name)
                whole = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
                assert difference(pixels(data, how), pixels(np.array(whole), how))[0] < 1.0, name
