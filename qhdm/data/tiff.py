"""TIFF files of which Pillow drops something, read by tifffile.

Of 16-bit RGB, Pillow keeps the upper byte, in which reflectances are black; it takes signed bytes
for unsigned ones, and the first page for the whole file.
"""

from __future__ import annotations

import io
import logging
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from qhdm.data.raster import ImageError, Raster, check_bomb, upright

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPage

#: TIFF's photometric interpretations: white is zero, black is zero, RGB.
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB = 0, 1, 2
#: Samples per pixel of other interpretations: palette, CMYK, YCbCr, CIELAB.
_SAMPLES = {3: (1,), 5: (4,), 6: (3,), 8: (3,)}
#: TIFF's extra samples that are alpha channels: associated and unassociated.
_ALPHA = (1, 2)
_ORIENTATION = 274

_MOST_PAGES = 1000

# It logs what is odd about a file, which without a handler goes to stderr.
logging.getLogger("tifffile").addHandler(logging.NullHandler())


def tiff_page(data: bytes) -> TiffPage | None:
    """The one image of a TIFF file, not yet decoded; None where Pillow reads all there is of it.

    Smaller copies of the image (overviews) and masks do not count as images.

    Raises:
        ImageError: there are several images, bands that are neither grey nor RGB, values of an
            unknown kind, or so many that it may be a decompression bomb.
        Exception: tifffile raises whatever malformed bytes provoke.
    """
    from tifffile import TiffFile  # only here: most data sets have no TIFF

    file = TiffFile(io.BytesIO(data), is_ome=False)  # OME's metadata name other files to read
    pages = [page.aspage() for page in islice(file.pages, _MOST_PAGES)]
    whole = [page for page in pages if not (page.is_reduced or page.is_mask)] or pages[:1]
    if (count := _images(file, whole)) > 1:
        raise ImageError(
            f"{count} pages",
            "save the page to use, or all as bands of one image and choose them in data.bands",
        )
    page = whole[0]
    bands, photometric, bits = _bands(page), int(page.photometric), page.bitspersample
    if bands not in _SAMPLES.get(photometric, (1, 3)):
        raise ImageError(
            f"{bands} bands, neither grey nor RGB",
            "choose bands in data.bands (B04, B03, B02 are red, green and blue in Sentinel-2), or "
            "save one or three",
        )
    known_to_pillow = bands == 1 or photometric != _BLACK_IS_ZERO or bits < 8
    if bits <= 8 and page.sampleformat in (1, 4) and known_to_pillow:
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
        raise ImageError(f"{odd} of {values.size} values are not finite", "fill these gaps")
    orientation = int(page.tags.valueof(_ORIENTATION, default=1))
    return Raster(upright(values, orientation), page.bitspersample)


def _images(file: TiffFile, pages: list[TiffPage]) -> int:
    """How many images the pages are, with those that have no directory of their own."""
    described = int((file.imagej_metadata or {}).get("images", 1))
    truncated = '"truncated": true' in pages[0].description  # by tifffile, after the first
    return max(len(pages), described, pages[0].imagedepth, 1 + truncated)


def _bands(page: TiffPage) -> int:
    """Samples of a pixel besides an alpha channel."""
    has_alpha = bool(page.extrasamples) and page.extrasamples[-1] in _ALPHA
    return page.samplesperpixel - has_alpha
