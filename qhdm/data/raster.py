"""Images that Pillow reads with loss: TIFF by tifffile, 16-bit PNG by imagecodecs.

Of 16-bit RGB, Pillow keeps the upper byte, in which reflectances are black; it takes signed bytes
for unsigned ones, and the first page for the whole file.
"""

from __future__ import annotations

import io
import logging
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPage

#: Of TIFF's photometric interpretations: white is zero, black is zero, RGB.
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB = 0, 1, 2
#: Samples of a pixel where another interpretation decides it: palette, CMYK, YCbCr, CIELAB.
_SAMPLES = {3: 1, 5: 4, 6: 3, 8: 3}
#: TIFF's extra samples that are alpha channels: associated and unassociated.
_ALPHA = (1, 2)
_ORIENTATION = 274

_MOST_PAGES = 1000
#: Values are scaled so many at a time, as each takes eight bytes meanwhile.
_BLOCK = 2**20

# Both libraries log what is odd about a file, which without a handler goes to stderr.
for _library in ("PIL", "tifffile"):
    logging.getLogger(_library).addHandler(logging.NullHandler())


class ImageError(Exception):
    """Reason why an image cannot be used, and the remedy; `opened` adds its name."""

    def __init__(self, reason: str, remedy: str = "repair or remove it") -> None:
        super().__init__(reason)
        self.remedy = remedy


@dataclass(frozen=True)
class Raster:
    """An image as values of the type that its file stores.

    Attributes:
        values: (H, W, 1 or 3), finite; a third axis of 3 is red, green, blue.
        bits: how many bits of a value are used.
        orientation: the EXIF orientation; 1 is upright.
    """

    values: np.ndarray
    bits: int
    orientation: int = 1

    @property
    def type_name(self) -> str:
        """The type of the values: `uint16`, `float32`, or `12-bit` where it does not fill bytes."""
        dtype = self.values.dtype
        return dtype.name if self.bits == 8 * dtype.itemsize else f"{self.bits}-bit"

    @property
    def is_scaled(self) -> bool:
        """Whether the values must be scaled to grey levels; 8-bit values are grey levels."""
        return self.values.dtype != np.uint8

    @property
    def bounded(self) -> bool:
        """Whether the type itself says which values are black and white."""
        return self.values.dtype.kind == "u" and self.bits <= 16

    def levels(self, value_range: tuple[float, float] | None) -> np.ndarray:
        """The values as grey levels, (H, W, 1 or 3) uint8; of 8-bit values, themselves.

        Args:
            value_range: what becomes 0 and 255; values beyond are clipped. None keeps the upper 8
                bits, and needs a bounded type.
        """
        if not self.is_scaled:
            return self.values
        if value_range is None:
            return (self.values >> (self.bits - 8)).astype(np.uint8)
        low, high = value_range
        levels = np.empty(self.values.shape, dtype=np.uint8)
        rows = max(_BLOCK // self.values[0].size, 1)
        for start in range(0, len(levels), rows):
            block = self.values[start : start + rows].astype(np.float64)
            share = np.clip((block - low) / (high - low), 0, 1)
            levels[start : start + rows] = np.rint(255 * share)
        return levels


def tiff_page(data: bytes) -> TiffPage | None:
    """The one image of a TIFF file, not yet decoded; None where Pillow reads all there is of it.

    Smaller copies of the image (overviews) and masks do not count as images.

    Raises:
        ImageError: there are several images, bands that are neither grey nor RGB, values of an
            unknown kind, or so many that it may be a decompression bomb.
        Exception: tifffile raises whatever malformed bytes provoke.
    """
    from tifffile import TiffFile  # only here: most sets have no TIFF

    file = TiffFile(io.BytesIO(data), is_ome=False)  # OME's metadata name other files to read
    pages = [page.aspage() for page in islice(file.pages, _MOST_PAGES)]
    whole = [page for page in pages if not (page.is_reduced or page.is_mask)] or pages[:1]
    if (count := _images(file, whole)) > 1:
        raise ImageError(
            f"{count} pages", "save the page to use, or three of them as the bands of one RGB image"
        )
    page = whole[0]
    bands, photometric = _bands(page), int(page.photometric)
    expected = _SAMPLES.get(photometric)
    if bands not in ((1, 3) if expected is None else (expected,)):
        raise ImageError(
            f"{bands} bands, neither grey nor RGB",
            "save the one or three bands to use (of Sentinel-2, 4, 3, 2 are red, green, blue)",
        )
    bits = page.bitspersample
    as_pillow_knows = bands == 1 or photometric != _BLACK_IS_ZERO or bits < 8
    if bits <= 8 and page.sampleformat in (1, 4) and as_pillow_knows:
        if page is not pages[0]:
            raise ImageError("its first page is a smaller copy", "save the page to use")
        return None
    if page.dtype is None or page.dtype.kind not in "uif":
        kind = page.dtype or f"{bits}-bit"
        raise ImageError(f"{kind} values", "save integers or floating-point numbers")
    if photometric not in (_BLACK_IS_ZERO, _RGB):
        meaning = "white being zero" if photometric == _WHITE_IS_ZERO else "neither grey nor RGB"
        raise ImageError(
            f"{page.dtype} values, {meaning}", "save grey values, black being zero, or RGB"
        )
    check_bomb(page.imagewidth, page.imagelength, page.nbytes)
    return page


def read_page(page: TiffPage) -> Raster:
    """Decode a page that `tiff_page` returned.

    Raises:
        ImageError: a value is not finite.
        Exception: as `tiff_page`.
    """
    values = page.asarray(maxworkers=1)
    if page.axes.startswith("S"):  # band after band
        values = np.moveaxis(values, 0, -1)
    values = values.reshape(page.imagelength, page.imagewidth, -1)[:, :, : _bands(page)]
    if values.dtype.kind == "f" and (odd := int((~np.isfinite(values)).sum())):
        raise ImageError(f"{odd} of {values.size} values are no finite numbers", "fill these gaps")
    orientation = page.tags.valueof(_ORIENTATION, default=1)
    return Raster(values, page.bitspersample, int(orientation))


def is_deep_png(data: bytes) -> bool:
    """Whether a PNG file stores 16 bits per value."""
    return data[12:16] == b"IHDR" and data[24] == 16


def read_png(data: bytes, orientation: int) -> Raster:
    """Decode a PNG file of 16 bits per value, which Pillow has found to be whole.

    Raises:
        Exception: whatever malformed bytes provoke.
    """
    from imagecodecs import png_decode

    values = png_decode(data)
    bands = 3 if data[25] & 2 else 1  # an alpha channel may follow
    return Raster(values.reshape(*values.shape[:2], -1)[:, :, :bands], 16, orientation)


def check_bomb(width: int, height: int, size: int) -> None:
    """Refuse more pixels than Pillow reads, or more bytes than these have as RGB of 8 bits.

    Args:
        width, height: in pixels.
        size: of all values, in bytes.

    Raises:
        ImageError: it may be a decompression bomb.
    """
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and (width * height > limit or size > 3 * limit):
        raise ImageError(
            f"{width}x{height} pixels, {size} bytes: could be a decompression bomb", "shrink it"
        )


def _images(file: TiffFile, pages: list[TiffPage]) -> int:
    """The number of images in the pages, including those without their own directory."""
    described = int((file.imagej_metadata or {}).get("images", 1))
    truncated = '"truncated": true' in pages[0].description  # by tifffile, after the first
    return max(len(pages), described, pages[0].imagedepth, 1 + truncated)


def _bands(page: TiffPage) -> int:
    """Samples of a pixel besides an alpha channel."""
    has_alpha = bool(page.extrasamples) and page.extrasamples[-1] in _ALPHA
    return page.samplesperpixel - has_alpha
