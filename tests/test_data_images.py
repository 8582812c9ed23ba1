"""Image files of every mode, size and state of repair."""

from __future__ import annotations

import io
import zlib

import numpy as np
import pytest
import tifffile
from imagecodecs import png_encode
from PIL import ExifTags, Image

from qhdm.data import decode
from qhdm.errors import DataError


def encode(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def rgb(height: int = 8, width: int = 8) -> np.ndarray:
    return np.random.default_rng(0).integers(256, size=(height, width, 3), dtype=np.uint8)


def read(data: bytes, size: int = 8, channels: int = 3) -> np.ndarray:
    array = decode(data, size=size, channels=channels, name="Forest/a.png")
    assert array.shape == (size, size, channels)
    assert array.dtype == np.uint8
    return array


def refusal(data: bytes, channels: int = 3) -> str:
    with pytest.raises(DataError) as caught:
        decode(data, size=8, channels=channels, name="Forest/a.png")
    message = str(caught.value)
    assert "\n" not in message
    return message


GREY = rgb()[:, :, 0]
GREY_16 = (GREY.astype(np.uint16) << 8) + 200


def palette() -> Image.Image:
    return Image.fromarray(rgb()).quantize(256)


MODES = {
    "RGB": (encode(Image.fromarray(rgb())), rgb()),
    "L": (encode(Image.fromarray(GREY)), np.stack([GREY] * 3, axis=2)),
    "LA": (encode(Image.fromarray(GREY).convert("LA")), np.stack([GREY] * 3, axis=2)),
    "RGBA": (encode(Image.fromarray(np.dstack([rgb(), GREY]))), rgb()),
    "P": (encode(palette()), np.array(palette().convert("RGB"))),
    "P, transparent colour": (
        encode(palette(), transparency=0),
        np.array(palette().convert("RGB")),
    ),
    "P, alpha per colour": (
        encode(palette(), transparency=bytes(range(256))),
        np.array(palette().convert("RGB")),
    ),
    "1": (
        encode(Image.fromarray(GREY > 127)),
        np.stack([np.where(GREY > 127, 255, 0)] * 3, axis=2),
    ),
    "I;16": (encode(Image.fromarray(GREY_16)), np.stack([GREY] * 3, axis=2)),
    "I;16 TIFF": (encode(Image.fromarray(GREY_16), "TIFF"), np.stack([GREY] * 3, axis=2)),
    "I;16B": (
        encode(Image.frombytes("I;16B", (8, 8), GREY_16.astype(">u2").tobytes()), "TIFF"),
        np.stack([GREY] * 3, axis=2),
    ),
    "CMYK": (
        encode(Image.fromarray(rgb()).convert("CMYK"), "TIFF"),
        np.array(Image.fromarray(rgb()).convert("CMYK").convert("RGB")),
    ),
    "GIF": (encode(palette(), "GIF"), np.array(palette().convert("RGB"))),
    "BMP": (encode(Image.fromarray(rgb()), "BMP"), rgb()),
    "WEBP": (encode(Image.fromarray(rgb()), "WEBP", lossless=True), rgb()),
}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_becomes_rgb_and_grey(mode: str) -> None:
    data, expected = MODES[mode]
    np.testing.assert_array_equal(read(data), expected)
    grey = np.array(Image.fromarray(expected.astype(np.uint8)).convert("L"))
    np.testing.assert_array_equal(read(data, channels=1)[:, :, 0], grey)


def test_the_centre_is_cropped_without_resampling() -> None:
    wide = rgb(8, 20)
    np.testing.assert_array_equal(read(encode(Image.fromarray(wide))), wide[:, 6:14])
    tall = rgb(11, 8)
    np.testing.assert_array_equal(read(encode(Image.fromarray(tall))), tall[1:9])


def test_shrinking_averages_over_what_it_drops() -> None:
    checkers = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)
    small = read(encode(Image.fromarray(checkers)), size=8, channels=1)
    assert np.abs(small.astype(int) - 128).max() <= 2


def test_small_images_are_enlarged() -> None:
    flat = Image.new("RGB", (2, 3), (7, 8, 9))
    np.testing.assert_array_equal(read(encode(flat)), np.full((8, 8, 3), (7, 8, 9)))


def noisy_jpeg() -> bytes:
    return encode(Image.fromarray(rgb(64, 64)), "JPEG")


BROKEN = {
    "empty": b"",
    "text": b"this is no image",
    "truncated JPEG": noisy_jpeg()[:-400],
    "truncated PNG": encode(Image.fromarray(rgb(64, 64)))[:-2000],
    "damaged PNG": encode(Image.fromarray(rgb())).replace(b"IDAT", b"IDAX"),
    "header alone": noisy_jpeg()[:30],
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_files_are_refused(kind: str) -> None:
    message = refusal(BROKEN[kind])
    assert message.startswith("Forest/a.png: cannot be read as an image (")
    assert message.endswith("); repair or remove it, or set data.skip_broken: true")


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_pixels_without_a_known_range_are_refused(dtype: type) -> None:
    data = encode(Image.fromarray(np.ones((8, 8), dtype=dtype)), "TIFF")
    assert f"{np.dtype(dtype).name} values need a range; set data.range" in refusal(data)


#: How the pixels of an upright image are stored, by EXIF's number of the orientation.
STORED = {
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
        file = io.BytesIO()
        tags = [(274, "H", 1, orientation, True)]
        tifffile.imwrite(file, stored * np.uint16(256), photometric="rgb", extratags=tags)
        data = file.getvalue()
    elif form == "16-bit PNG":
        data = with_chunk(png_encode(stored * np.uint16(256)), b"eXIf", exif.tobytes()[6:])
    else:
        options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}
        data = encode(Image.fromarray(stored), form, exif=exif, **options.get(form, {}))
    found = read(data, size=16)
    expected = read(encode(Image.fromarray(upright)), size=16)
    assert np.abs(found.astype(int) - expected).max() <= (12 if form == "JPEG" else 0)


def with_chunk(png: bytes, name: bytes, content: bytes) -> bytes:
    """A PNG with one more chunk after its header."""
    chunk = len(content).to_bytes(4, "big") + name + content
    chunk += zlib.crc32(name + content).to_bytes(4, "big")
    return png[:33] + chunk + png[33:]


def test_odd_metadata_are_no_reason_to_refuse_an_image() -> None:
    for exif in (b"Exif\0\0", b"Exif\0\0rubbish", b"Exif\0\0II*\0\xff\xff\xff\x7f"):
        data = encode(Image.fromarray(rgb(64, 64)), "JPEG", exif=exif)
        np.testing.assert_array_equal(
            read(data), read(encode(Image.fromarray(rgb(64, 64)), "JPEG"))
        )


@pytest.mark.parametrize("factor", [1.5, 3])
def test_decompression_bombs_are_refused(factor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    # Pillow warns above its limit and raises above twice the limit; both are refused here.
    data = encode(Image.fromarray(rgb(30, 30)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", int(900 / factor))
    assert "decompression bomb" in refusal(data)


def test_other_channel_counts_are_refused() -> None:
    message = refusal(MODES["RGB"][0], channels=4)
    assert message.startswith("data.channels: 4 channels")
