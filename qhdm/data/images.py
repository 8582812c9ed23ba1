"""Image files of any mode to square uint8 arrays."""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
from PIL import Image, UnidentifiedImageError

from qhdm.errors import DataError, one_line

_BANDS = {1: "L", 3: "RGB"}

#: What is read, whatever a file is called. Others that Pillow knows are passed to other programs
#: (EPS, to Ghostscript).
_FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP", "GIF")

#: Pixels of an image that is decoded while no other such one is: threads would add up their memory.
_LARGE = 8 * 2**20
_ALONE = threading.Lock()

# Turning warnings into errors changes state of the whole process, hence one thread at a time.
_OPENING = threading.Lock()


def decode(data: bytes, *, size: int, channels: int, name: str) -> np.ndarray:
    """An image file as an array.

    Args:
        data: the bytes of the file.
        size: side of the result in pixels.
        channels: 3 (RGB) or 1 (grey).
        name: what to call the image in an error.

    Returns:
        (size, size, channels) uint8.

    Raises:
        DataError: the file cannot be read as an image, or `channels` is neither 1 nor 3.
    """
    with opened(data, name=name) as image:
        return to_array(image, size=size, channels=channels, name=name)


@contextmanager
def opened(data: bytes, *, name: str) -> Iterator[Image.Image]:
    """An image file, decoded to its end, in the size and mode it was stored in.

    Of several threads, one at a time has a large image.

    Raises:
        DataError: it cannot be decoded, or is so large that it may be a decompression bomb.
    """
    try:
        with _OPENING, warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except UnidentifiedImageError:
        known = ", ".join(_FORMATS)
        raise _unreadable(name, f"not an image, or of another format than {known}") from None
    except Exception as error:  # Pillow's decoders raise whatever malformed bytes provoke.
        raise _unreadable(name, one_line(error)) from None
    with _ALONE if image.width * image.height > _LARGE else nullcontext():
        try:
            image.load()
        except Exception as error:
            raise _unreadable(name, one_line(error)) from None
        yield image


def to_array(image: Image.Image, *, size: int, channels: int, name: str) -> np.ndarray:
    """Convert to 8-bit RGB or grey, crop to the centre square, and resize (bicubic, antialiased).

    16-bit grey keeps its upper 8 bits; transparency is dropped. An image that has the size already
    is not resampled.

    Args:
        image: of any mode but floating point.
        size, channels, name: as in `decode`.

    Returns:
        (size, size, channels) uint8.

    Raises:
        DataError: as in `decode`.
    """
    check_channels(channels)
    image = _to_8_bit(image, name)
    try:
        if image.mode == "P":
            image = image.convert("RGBA")  # Palettes may carry transparency as bytes.
        if image.mode != _BANDS[channels]:
            # Some modes convert to grey by way of RGB alone; for grey images the detour is exact.
            image = image.convert("RGB").convert(_BANDS[channels])
    except ValueError as error:
        raise _unreadable(name, one_line(error)) from None
    width, height = image.size
    side = min(width, height)
    if width != height:
        left, top = (width - side) // 2, (height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    if side != size:
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    return np.array(image, dtype=np.uint8).reshape(size, size, channels)


def check_channels(channels: int) -> None:
    """Refuse a number of channels that image files cannot give.

    Raises:
        DataError: `channels` is neither 1 nor 3.
    """
    if channels not in _BANDS:
        raise DataError(
            f"data.channels: {channels} channels cannot be read from image files; "
            "use 3 (RGB) or 1 (grey)"
        )


def _to_8_bit(image: Image.Image, name: str) -> Image.Image:
    """Scale 16-bit grey, also where it is stored in 32-bit integers, to 8 bits."""
    if image.mode == "F":
        raise _unreadable(name, "floating-point pixels have no known range; save 8 or 16 bits")
    if image.mode != "I" and not image.mode.startswith("I;16"):
        return image
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 0xFFFF:
        raise _unreadable(name, "pixel values beyond 16 bits; save 8 or 16 bits")
    return Image.fromarray((values >> 8).astype(np.uint8))


def _unreadable(name: str, reason: str) -> DataError:
    return DataError(
        f"{name}: cannot be read as an image ({reason}); mend or remove it, "
        "or set data.skip_broken: true"
    )
