"""Image files of every mode, size and state of repair."""

from __future__ import annotations

import zlib
from collections.abc import Callable

import numpy as np
import pytest
from image_sets import encode, tiff
from imagecodecs import png_encode
from PIL import ExifTags, Image

from qhdm.data import decode
from qhdm.errors import DataError


def rgb(height: int = 8, width: int = 8) -> np.ndarray:
    return np.random.default_rng(0).integers(256, size=(height, width, 3), dtype=np.uint8)


def read(data: bytes, size: int = 8, channels: int = 3) -> np.ndarray:
    pixels = decode(data, size=size, channels=channels, name="Forest/a.png").pixels
    assert pixels is not None
    assert pixels.shape == (size, size, channels)
    assert pixels.dtype == np.uint8
    return pixels


GREY = rgb()[:, :, 0]
GREYS = np.stack([GREY] * 3, axis=2)
GREY_16 = (GREY.astype(np.uint16) << 8) + 200
BITS = GREY > 127
PALETTE = Image.fromarray(rgb()).quantize(256)
COLOURS = np.array(PALETTE.convert("RGB"))
CMYK = Image.fromarray(rgb()).convert("CMYK")

MODES = {
    "RGB": (encode(rgb()), rgb()),
    "L": (encode(GREY), GREYS),
    "LA": (encode(Image.fromarray(GREY).convert("LA")), GREYS),
    "RGBA": (encode(np.dstack([rgb(), GREY])), rgb()),
    "P": (encode(PALETTE), COLOURS),
    "P, transparent colour": (encode(PALETTE, transparency=0), COLOURS),
    "P, alpha per colour": (encode(PALETTE, transparency=bytes(range(256))), COLOURS),
    "1": (encode(BITS), np.stack([np.where(BITS, 255, 0)] * 3, axis=2)),
    "I;16": (encode(GREY_16), GREYS),
    "I;16 TIFF": (encode(GREY_16, "TIFF"), GREYS),
    "I;16B": (
        encode(Image.frombytes("I;16B", (8, 8), GREY_16.astype(">u2").tobytes()), "TIFF"),
        GREYS,
    ),
    "CMYK": (encode(CMYK, "TIFF"), np.array(CMYK.convert("RGB"))),
    "GIF": (encode(PALETTE, "GIF"), COLOURS),
    "BMP": (encode(rgb(), "BMP"), rgb()),
    "WEBP": (encode(rgb(), "WEBP", lossless=True), rgb()),
}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_becomes_rgb_and_grey(mode: str) -> None:
    data, expected = MODES[mode]
    np.testing.assert_array_equal(read(data), expected)
    grey = np.array(Image.fromarray(expected.astype(np.uint8)).convert("L"))
    np.testing.assert_array_equal(read(data, channels=1)[:, :, 0], grey)


@pytest.mark.parametrize(("height", "width", "top", "left"), [(8, 20, 0, 6), (11, 8, 1, 0)])
def test_the_centre_is_cropped_without_resampling(
    height: int, width: int, top: int, left: int
) -> None:
    whole = rgb(height, width)
    np.testing.assert_array_equal(read(encode(whole)), whole[top : top + 8, left : left + 8])


def test_cropped_images_are_resized_as_by_pillow() -> None:
    whole = rgb(40, 30)
    centre = Image.fromarray(whole[5:35])
    for channels, mode in ((3, "RGB"), (1, "L")):
        expected = np.array(centre.convert(mode).resize((8, 8), Image.Resampling.BICUBIC))
        resized = read(encode(whole), channels=channels)
        np.testing.assert_array_equal(resized, expected.reshape(8, 8, channels))


def test_shrinking_averages_over_what_it_drops() -> None:
    checkers = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)
    small = read(encode(checkers), size=8, channels=1)
    assert np.abs(small.astype(int) - 128).max() <= 2


def test_small_images_are_enlarged() -> None:
    flat = Image.new("RGB", (2, 3), (7, 8, 9))
    np.testing.assert_array_equal(read(encode(flat)), np.full((8, 8, 3), (7, 8, 9)))


JPEG = encode(rgb(64, 64), "JPEG")
BROKEN = {
    "empty": b"",
    "text": b"this is no image",
    "truncated JPEG": JPEG[:-400],
    "truncated PNG": encode(rgb(64, 64))[:-2000],
    "damaged PNG": encode(rgb()).replace(b"IDAT", b"IDAX"),
    "header alone": JPEG[:30],
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_files_are_refused_by_name(kind: str) -> None:
    with pytest.raises(DataError, match=r"^Forest/a\.png: .*data\.skip_broken"):
        read(BROKEN[kind])


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_values_without_a_known_range_give_no_pixels(kind: type) -> None:
    data = encode(Image.fromarray(np.ones((8, 8), dtype=kind)), "TIFF")
    image = decode(data, size=8, channels=3, name="x")
    assert image.pixels is None
    assert image.kind == f"8x8 {np.dtype(kind).name} grey"
    assert image.values is not None
    assert (image.values.low, image.values.high, image.values.bounded) == (1, 1, False)


#: How the pixels of an upright image are stored, by EXIF's number of the orientation.
STORED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: np.rot90(upright),
    7: lambda upright: upright[::-1, ::-1].swapaxes(0, 1),
    8: lambda upright: np.rot90(upright, -1),
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP", "JPEG", "16-bit TIFF", "16-bit PNG"])
def test_images_are_turned_upright(form: str, orientation: int) -> None:
    upright = np.kron(rgb(2, 3), np.ones((8, 8, 1), np.uint8))  # blocks, which JPEG keeps
    stored = np.ascontiguousarray(STORED[orientation](upright))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    if form == "16-bit TIFF":
        data = tiff(stored * np.uint16(256), extratags=[(274, "H", 1, orientation, True)])
    elif form == "16-bit PNG":
        data = with_chunk(png_encode(stored * np.uint16(256)), b"eXIf", exif.tobytes()[6:])
    else:
        options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}
        data = encode(stored, form, exif=exif, **options.get(form, {}))
    difference = read(data, size=16).astype(int) - read(encode(upright), size=16)
    assert np.abs(difference).max() <= (12 if form == "JPEG" else 0)


def with_chunk(png: bytes, name: bytes, content: bytes) -> bytes:
    """A PNG with one more chunk after its header."""
    chunk = len(content).to_bytes(4, "big") + name + content
    chunk += zlib.crc32(name + content).to_bytes(4, "big")
    return png[:33] + chunk + png[33:]


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0", b"Exif\0\0rubbish", b"Exif\0\0II*\0\xff\xff\xff\x7f"]
)
def test_odd_metadata_are_no_reason_to_refuse_an_image(exif: bytes) -> None:
    data = encode(rgb(64, 64), "JPEG", exif=exif)
    np.testing.assert_array_equal(read(data), read(JPEG))


@pytest.mark.parametrize("factor", [1.5, 3])
def test_decompression_bombs_are_refused(factor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    # Pillow warns above its limit and raises above twice the limit; both are refused here.
    data = encode(rgb(30, 30))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", int(900 / factor))
    with pytest.raises(DataError, match="bomb"):
        read(data)


def test_other_channel_counts_are_refused() -> None:
    with pytest.raises(DataError, match=r"^data\.channels: 4"):
        read(MODES["RGB"][0], channels=4)
