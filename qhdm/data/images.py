"""Image files of any kind as pixels of 8 bits."""

from __future__ import annotations

import io
import logging
import threading
import warnings
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from qhdm.data.raster import ImageError, Raster, check_bomb, check_channels, upright
from qhdm.data.tiff import read_page, tiff_page
from qhdm.data.values import Values, values_of
from qhdm.errors import DataError, one_line

#: What is read, whatever a file is called. Others that Pillow knows are passed to other programs
#: (EPS, to Ghostscript).
_FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP", "GIF")
_ANIMATED = ("PNG", "WEBP", "GIF")

#: Images of more pixels are decoded one at a time: threads would add up their memory.
_LARGE = 8 * 2**20
_ONE_LARGE = threading.Lock()

# Turning warnings into errors changes state of the whole process, hence one thread at a time.
_OPENING = threading.Lock()

# It logs what is odd about a file, which without a handler goes to stderr.
logging.getLogger("PIL").addHandler(logging.NullHandler())


@dataclass(frozen=True)
class Decoded:
    """An image file that has been read.

    Attributes:
        kind: size and type as stored: `64x64 RGB`, `64x64 uint16 grey`.
        values: the values that are stored; None for 8 bits, unless they were asked for.
        pixels: (size, size, channels) uint8; None where the values need a range and have none.
    """

    kind: str
    values: Values | None
    pixels: np.ndarray | None


def decode(
    data: bytes,
    *,
    size: int,
    channels: int,
    name: str,
    value_range: tuple[float, float] | None = None,
    all_values: bool = False,
) -> Decoded:
    """Read an image file, turn it upright as EXIF says, drop transparency, and resize it.

    Args:
        data: the bytes of the file.
        size: side of the pixels; the centre square is cropped.
        channels: 3 (RGB) or 1 (grey).
        name: what to call the image in an error.
        value_range: what becomes 0 and 255 of values of more than 8 bits, signed or floating-point
            ones; values beyond are clipped. None keeps the upper 8 bits of 16.
        all_values: also measure the values of 8 bits, which never need a range.

    Raises:
        DataError: the file cannot be decoded, holds several images, has bands that are neither grey
            nor RGB, or is so large that it may be a decompression bomb; or `channels` is neither 1
            nor 3.
    """
    check_channels(channels)
    try:
        page = tiff_page(data) if data.startswith((b"II", b"MM")) else None
        if page is not None:
            width, height = page.imagewidth, page.imagelength
        else:
            picture = _open(data)
            width, height = picture.size
        with _ONE_LARGE if width * height > _LARGE else nullcontext():
            if page is not None:
                mode, raster = None, read_page(page)
            else:
                mode, raster = _read(picture, data)
            pixels = None
            if raster.bounded or value_range is not None:
                pixels = raster.pixels(size=size, channels=channels, value_range=value_range)
            measured = all_values or raster.is_scaled
            values = values_of(raster, value_range) if measured else None
        if mode is None:
            mode = f"{raster.type_name} {'RGB' if raster.values.shape[2] == 3 else 'grey'}"
        return Decoded(f"{width}x{height} {mode}", values, pixels)
    except UnidentifiedImageError:
        fault = ImageError(f"not an image, or of another format than {', '.join(_FORMATS)}")
    except ImageError as error:
        fault = error
    except Exception as error:  # whatever malformed bytes provoke in decoders
        fault = ImageError(one_line(error))
    raise DataError(
        f"{name}: cannot be read as an image ({fault}); {fault.remedy}, "
        "or set data.skip_broken: true"
    )


def from_picture(picture: Image.Image) -> Raster:
    """A picture of 8 bits that Pillow has decoded, turned upright, without transparency."""
    orientation = _orientation(picture)
    if picture.mode == "P":
        picture = picture.convert("RGBA")  # Palettes may carry transparency as bytes.
    if picture.mode not in ("L", "RGB"):
        picture = picture.convert("RGB")  # Some modes convert to grey by way of RGB alone.
    return Raster(upright(np.atleast_3d(np.asarray(picture)), orientation))


def _open(data: bytes) -> Image.Image:
    """The header of an image that Pillow reads."""
    with _OPENING, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of odd metadata
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        return Image.open(io.BytesIO(data), formats=_FORMATS)


def _read(picture: Image.Image, data: bytes) -> tuple[str | None, Raster]:
    """Decode what `_open` has opened; also Pillow's mode, except for PNG of 16 bits per value.

    Of these Pillow would drop 8 bits; imagecodecs keeps them.
    """
    # TIFF's pages are counted already; what follows the first image of a JPEG is a preview of it.
    if picture.format in _ANIMATED and (frames := getattr(picture, "n_frames", 1)) > 1:
        raise ImageError(f"{frames} frames", "save the frame to use")
    deep = picture.format == "PNG" and data[12:16] == b"IHDR" and data[24] == 16
    if deep:
        check_bomb(*picture.size, picture.width * picture.height * 2 * len(picture.getbands()))
    picture.load()
    if not deep:
        raster = from_picture(picture)
        picture.close()  # large ones need the memory
        return picture.mode, raster
    from imagecodecs import png_decode

    orientation = _orientation(picture)
    picture.close()
    values = png_decode(data)
    bands = 3 if data[25] & 2 else 1  # an alpha channel may follow
    values = values.reshape(*values.shape[:2], -1)[:, :, :bands]
    return None, Raster(upright(values, orientation), bits=16)


def _orientation(picture: Image.Image) -> int:
    """How a decoded picture lies, as EXIF numbers it; 1, upright, where that cannot be read."""
    try:
        return int(picture.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # of malformed metadata; the image itself is whole
        return 1
