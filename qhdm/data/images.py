"""Image files of any mode to square uint8 arrays."""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from qhdm.data.raster import (
    ImageError,
    Raster,
    check_bomb,
    is_deep_png,
    read_page,
    read_png,
    tiff_page,
)
from qhdm.errors import DataError, one_line

_BANDS = {1: "L", 3: "RGB"}

#: Formats that are read, whatever the file name. Pillow passes others to external programs (EPS to
#: Ghostscript).
_FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP", "GIF")

_ANIMATED = ("PNG", "WEBP", "GIF")

#: The transposition that turns an image upright, by its EXIF orientation.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

#: Pixels of an image that is decoded while no other such one is: threads would add up their memory.
_LARGE = 8 * 2**20
_ALONE = threading.Lock()

# Turning warnings into errors changes state of the whole process, hence one thread at a time.
_OPENING = threading.Lock()


def decode(
    data: bytes,
    *,
    size: int,
    channels: int,
    name: str,
    value_range: tuple[float, float] | None = None,
) -> np.ndarray:
    """An image file as an array.

    Args:
        data: the bytes of the file.
        size: side of the result in pixels.
        channels: 3 (RGB) or 1 (grey).
        name: what to call the image in an error.
        value_range: what becomes 0 and 255 of values of more than 8 bits, signed or floating-point
            ones; values beyond are clipped. None keeps the upper 8 bits of 16.

    Returns:
        (size, size, channels) uint8.

    Raises:
        DataError: the file cannot be read as an image, needs a range, or `channels` is neither 1
            nor 3.
    """
    with opened(data, name=name) as image:
        picture = to_picture(image, channels=channels, name=name, value_range=value_range)
        return to_square(picture, size=size)


@contextmanager
def opened(data: bytes, *, name: str) -> Iterator[Image.Image | Raster]:
    """Decode an image file completely, as it is stored: an 8-bit picture, or other values.

    Only one thread at a time decodes a large image.

    Raises:
        DataError: it cannot be decoded, is one of several in its file, has bands that are neither
            grey nor RGB, or is so large that it may be a decompression bomb.
    """
    load: Callable[[], Image.Image | Raster]
    with _faults(name):
        page = tiff_page(data) if data.startswith((b"II", b"MM")) else None
        if page:
            load = partial(read_page, page)
            pixels = page.imagewidth * page.imagelength
        else:
            picture = _open(data)
            load = partial(_load, picture, data)
            pixels = picture.width * picture.height
    with _ALONE if pixels > _LARGE else nullcontext():
        with _faults(name):
            image = load()
        yield image


def to_picture(
    image: Image.Image | Raster,
    *,
    channels: int,
    name: str,
    value_range: tuple[float, float] | None = None,
) -> Image.Image:
    """Convert to 8-bit RGB or grey, and turn upright as EXIF says.

    Transparency is dropped.

    Args:
        image: from `opened`.
        channels, name, value_range: as in `decode`.

    Raises:
        DataError: as in `decode`.
    """
    check_channels(channels)
    if isinstance(image, Raster):
        if lacks_range(image, value_range):
            raise DataError(f"{name}: {image.type_name} values need a range; set data.range")
        orientation = image.orientation
        levels = image.levels(value_range)
        picture = Image.fromarray(levels if levels.shape[2] == 3 else levels[:, :, 0])
    else:
        orientation, picture = _orientation(image), image
    try:
        if picture.mode == "P":
            picture = picture.convert("RGBA")  # Palettes may carry transparency as bytes.
        if picture.mode != _BANDS[channels]:
            # Some modes convert to grey by way of RGB alone; for grey images the detour is exact.
            picture = picture.convert("RGB").convert(_BANDS[channels])
    except ValueError as error:
        raise _unreadable(name, ImageError(one_line(error))) from None
    turn = _TURNS.get(orientation)
    return picture if turn is None else picture.transpose(turn)


def lacks_range(image: Image.Image | Raster, value_range: tuple[float, float] | None) -> bool:
    """Whether an image cannot become a picture because black and white are unknown."""
    return isinstance(image, Raster) and not image.bounded and value_range is None


def to_square(picture: Image.Image, *, size: int) -> np.ndarray:
    """Crop to the centre square, and resize (bicubic, antialiased).

    A picture that has the size already is not resampled.

    Args:
        picture: grey or RGB.
        size: side of the result in pixels.

    Returns:
        (size, size, 1 or 3) uint8.
    """
    width, height = picture.size
    side = min(width, height)
    if width != height:
        left, top = (width - side) // 2, (height - side) // 2
        picture = picture.crop((left, top, left + side, top + side))
    if side != size:
        picture = picture.resize((size, size), Image.Resampling.BICUBIC)
    return np.array(picture, dtype=np.uint8).reshape(size, size, -1)


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


def _open(data: bytes) -> Image.Image:
    """The header of an image that Pillow reads."""
    with _OPENING, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of odd metadata
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        return Image.open(io.BytesIO(data), formats=_FORMATS)


def _load(image: Image.Image, data: bytes) -> Image.Image | Raster:
    """Decode what `_open` has opened."""
    # TIFF's pages are counted already; what follows the first image of a JPEG is a preview of it.
    if image.format in _ANIMATED and (frames := getattr(image, "n_frames", 1)) > 1:
        raise ImageError(f"{frames} frames", "save the frame to use")
    deep = image.format == "PNG" and is_deep_png(data)
    if deep:
        check_bomb(*image.size, image.width * image.height * 2 * len(image.getbands()))
    image.load()
    if not deep:
        return image
    orientation = _orientation(image)
    image.close()  # large ones need the memory
    return read_png(data, orientation)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation of a decoded image; 1 (upright) if it cannot be read."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # of malformed metadata; the image itself is whole
        return 1


@contextmanager
def _faults(name: str) -> Iterator[None]:
    """Turn any exception of a decoder into a `DataError`."""
    try:
        yield
    except UnidentifiedImageError:
        known = ", ".join(_FORMATS)
        reason = f"not an image, or of another format than {known}"
        raise _unreadable(name, ImageError(reason)) from None
    except ImageError as fault:
        raise _unreadable(name, fault) from None
    except Exception as error:
        raise _unreadable(name, ImageError(one_line(error))) from None


def _unreadable(name: str, fault: ImageError) -> DataError:
    return DataError(
        f"{name}: cannot be read as an image ({fault}); {fault.remedy}, "
        "or set data.skip_broken: true"
    )
