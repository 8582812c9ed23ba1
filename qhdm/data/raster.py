"""Images as arrays of the values that their files store, and as pixels of 8 bits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from qhdm.errors import DataError

#: Values are scaled in blocks of this many, since each takes eight bytes in between.
_BLOCK = 2**20


class ImageError(Exception):
    """Why an image cannot be used, and the remedy; `decode` adds the name of the image."""

    def __init__(self, reason: str, remedy: str = "repair or remove it") -> None:
        super().__init__(reason)
        self.remedy = remedy


@dataclass(frozen=True)
class Raster:
    """An upright image as values of the type that its file stores.

    Attributes:
        values: (H, W, 1 or 3), finite; a third axis of 3 is red, green, blue.
        bits: how many bits of a value are used.
    """

    values: np.ndarray
    bits: int = 8

    @property
    def type_name(self) -> str:
        """The type of the values: `uint16`, `float32`, or `12-bit` where it does not fill bytes."""
        dtype = self.values.dtype
        return dtype.name if self.bits == 8 * dtype.itemsize else f"{self.bits}-bit"

    @property
    def is_scaled(self) -> bool:
        """Whether grey levels are computed from the values; values of 8 bits are grey levels."""
        return self.values.dtype != np.uint8

    @property
    def bounded(self) -> bool:
        """Whether the type itself says which values are black and white."""
        return self.values.dtype.kind == "u" and self.bits <= 16

    def levels(self, value_range: tuple[float, float] | None) -> np.ndarray:
        """Compute the grey levels, (H, W, 1 or 3) uint8.

        Args:
            value_range: what becomes 0 and 255 unless the values have 8 bits; values beyond are
                clipped. None keeps the upper 8 bits, and needs a bounded type.
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

    def pixels(
        self, *, size: int, channels: int, value_range: tuple[float, float] | None = None
    ) -> np.ndarray:
        """Crop to the centre square, convert to 8 bits, and resize (bicubic, antialiased).

        An image that has the size already is not resampled.

        Args:
            size: side of the result.
            channels: 3 (RGB) or 1 (grey).
            value_range: as for `levels`.

        Returns:
            (size, size, channels) uint8.
        """
        height, width, bands = self.values.shape
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        square = Raster(self.values[top : top + side, left : left + side], self.bits)
        pixels = square.levels(value_range)
        if bands != channels or side != size:
            picture = Image.fromarray(pixels if bands == 3 else pixels[:, :, 0])
            picture = picture.convert("RGB" if channels == 3 else "L")
            if side != size:
                picture = picture.resize((size, size), Image.Resampling.BICUBIC)
            pixels = np.asarray(picture).reshape(size, size, channels)
        return pixels


def check_channels(channels: int) -> None:
    """Raise `DataError` unless image files can give this number of channels."""
    if channels not in (1, 3):
        raise DataError(
            f"data.channels: {channels} channels cannot be read from image files; "
            "use 3 (RGB) or 1 (grey)"
        )


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


def upright(values: np.ndarray, orientation: int) -> np.ndarray:
    """A view of an image (H, W, C), turned upright from how it lies as EXIF numbers it."""
    if orientation in (5, 6, 7, 8):
        values = values.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    return values
