"""GeoTIFF and JPEG 2000 files, by rasterio (extra `geo`)."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from qhdm.data.bands import LEVELS, Bands
from qhdm.data.raster import ImageError, check_bomb
from qhdm.data.source import MASK, NO_MASK
from qhdm.errors import DataError, one_line
from qhdm.files import atomic_path

#: GDAL's drivers to use; others follow references to further files.
_DRIVERS = ["GTiff", "JP2OpenJPEG"]
#: The name of a file that is read from memory.
_IN_MEMORY = "qhdm-image"

# It logs errors that it raises anyway.
logging.getLogger("rasterio").addHandler(logging.NullHandler())


@dataclass(frozen=True, eq=False)
class GeoImage:
    """An image as a file stores it.

    Attributes:
        values: (H, W, C), of any type.
        names: the names of the bands; None for a band without one.
        crs, transform: rasterio's coordinate reference system, and its affine transform from pixels
            to coordinates; None without georeference.
        nodata: the value that marks missing data.
        valid: (H, W) bool, the mask in the file; None without one.
        scales, offsets: for each band; scale x value + offset is in physical units.
    """

    values: np.ndarray
    names: tuple[str | None, ...]
    crs: Any = None
    transform: Any = None
    nodata: float | None = None
    valid: np.ndarray | None = None
    scales: tuple[float, ...] | None = None
    offsets: tuple[float, ...] | None = None

    @property
    def is_scaled(self) -> bool:
        """Whether scales and offsets change any value."""
        return {*(self.scales or ()), 1.0} != {1.0} or {*(self.offsets or ()), 0.0} != {0.0}

    @property
    def physical(self) -> np.ndarray:
        """(H, W, C) in physical units: float32 if they are scaled, or else the values as stored."""
        if not self.is_scaled:
            return self.values
        scales, offsets = np.array(self.scales or 1.0), np.array(self.offsets or 0.0)
        return (self.values * scales + offsets).astype(np.float32)

    @property
    def missing(self) -> np.ndarray:
        """(H, W, C) bool: which values are missing, by nodata or mask, or not finite."""
        missing = ~np.isfinite(self.values)
        if self.nodata is not None:
            missing |= self.values == self.nodata
        if self.valid is not None:
            missing |= ~self.valid[:, :, None]
        return missing

    @property
    def means(self) -> np.ndarray:
        """(C,) float64: the mean of each band in physical units, without gaps; NaN if all are."""
        present = ~self.missing
        total = np.where(present, self.physical, 0).sum(axis=(0, 1), dtype=np.float64)
        count = present.sum(axis=(0, 1))
        return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)

    @property
    def centre(self) -> tuple[str, float, float] | None:
        """The projected coordinate reference system and the centre in metres; None without."""
        if self.crs is None or not self.crs.is_projected or self.crs.linear_units_factor[1] != 1:
            return None
        height, width = self.values.shape[:2]
        a, b, c, d, e, f = self.transform[:6]
        x, y = width / 2, height / 2
        return self.crs.to_string(), a * x + b * y + c, d * x + e * y + f


def import_rasterio(key: str = "data.bands") -> ModuleType:
    """Import rasterio.

    Raises:
        DataError: it is not installed; `key` names what needs it.
    """
    try:
        import rasterio.io
        import rasterio.shutil
    except ImportError:
        raise DataError(f"{key}: needs rasterio: pip install 'qhdm[geo]'") from None
    return rasterio


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress rasterio's warnings about missing georeference, in the whole process."""
    from rasterio.errors import NotGeoreferencedWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield


def read_geotiff(file: str | Path | bytes) -> GeoImage:
    """Read a GeoTIFF or JPEG 2000 file, given by its path or its bytes.

    Raises:
        DataError: rasterio is not installed, or the file cannot be read.
    """
    import_rasterio("read_geotiff")
    name = "bytes" if isinstance(file, bytes) else str(file)
    if not isinstance(file, bytes) and Path(f"{file}{MASK}").exists():
        raise DataError(f"{file}{MASK}: {NO_MASK}")
    try:
        content = file if isinstance(file, bytes) else Path(file).read_bytes()
        with quiet():
            return read_raster(content)
    except ImageError as error:
        raise DataError(f"{name}: cannot be read ({error}); {error.remedy}") from None
    except Exception as error:  # whatever malformed bytes provoke in GDAL
        raise DataError(f"{name}: cannot be read ({reason(error)}); check the file") from None


def reason(error: Exception) -> str:
    """The message of an error of reading, without the file's path in memory."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return re.sub(rf"'?(/vsimem/[^\s':]*)?{_IN_MEMORY}'?", "file", one_line(error))


def read_raster(content: bytes) -> GeoImage:
    """Read the bytes of a file, within `quiet`; safe to call from several threads.

    Raises:
        ImageError: the file has several images, a palette, complex values or invalid scales, or it
            may be a decompression bomb.
        Exception: whatever malformed bytes provoke in rasterio.
    """
    rasterio = import_rasterio()
    if not content:
        raise ImageError("empty file")
    with (
        rasterio.io.MemoryFile(content, filename=_IN_MEMORY) as memory,
        memory.open(driver=_DRIVERS) as dataset,
    ):
        if (pages := len(dataset.subdatasets)) > 1:
            raise ImageError(f"{pages} pages", "save the page to use, or all as bands of one image")
        if rasterio.enums.ColorInterp.palette in dataset.colorinterp:
            raise ImageError("palette indices", "save the colours, or measured values")
        if any(name.startswith("complex") for name in dataset.dtypes):
            raise ImageError("complex values", "save amplitudes, or real and imaginary bands")
        if not (np.isfinite([*dataset.scales, *dataset.offsets]).all() and all(dataset.scales)):
            raise ImageError(
                f"invalid scales {dataset.scales} or offsets {dataset.offsets}",
                "correct these tags",
            )
        size = sum(np.dtype(name).itemsize for name in dataset.dtypes)
        check_bomb(dataset.width, dataset.height, dataset.width * dataset.height * size)
        flags = dataset.mask_flag_enums[0]
        masked = rasterio.enums.MaskFlags.per_dataset in flags
        identity = dataset.transform.is_identity and dataset.crs is None
        return GeoImage(
            values=np.moveaxis(dataset.read(), 0, -1),
            names=dataset.descriptions,
            crs=dataset.crs,
            transform=None if identity else dataset.transform,
            nodata=dataset.nodata,
            valid=dataset.dataset_mask() > 0 if masked else None,
            scales=dataset.scales,
            offsets=dataset.offsets,
        )


def write_geotiff(path: str | Path, image: GeoImage) -> None:
    """Write a GeoTIFF file atomically, compressed without loss; `read_geotiff` restores the image.

    Raises:
        DataError: rasterio is not installed, GeoTIFF does not support the type of the image, or
            names, scales or offsets do not match its bands.
        OSError: the file cannot be written.
    """
    rasterio = import_rasterio("write_geotiff")
    if image.values.ndim != 3 or not image.values.size:
        raise DataError(
            f"write_geotiff: {path}: values of shape {image.values.shape}; give (H, W, C)"
        )
    height, width, count = image.values.shape
    for kind in ("names", "scales", "offsets"):
        given = getattr(image, kind)
        if given is not None and len(given) != count:
            raise DataError(f"write_geotiff: {path}: {len(given)} {kind} for {count} bands")
    if image.values.dtype.kind not in "iuf" or image.values.dtype == np.float16:
        raise DataError(
            f"write_geotiff: {path}: values of type {image.values.dtype}; convert them to uint8, "
            "uint16, int16 or float32"
        )
    # In memory first, since GDAL chooses drivers and side-car files by the path.
    with quiet(), rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.io.MemoryFile() as memory:
        with memory.open(
            driver="GTiff",
            height=height,
            width=width,
            count=count,
            dtype=image.values.dtype,
            crs=image.crs,
            transform=image.transform,
            nodata=image.nodata,
            photometric="minisblack",
            compress="deflate",
        ) as dataset:
            dataset.write(np.moveaxis(image.values, -1, 0))
            for number, name in enumerate(image.names, 1):
                if name:
                    dataset.set_band_description(number, name)
            if image.is_scaled:
                dataset.scales = image.scales or (1.0,) * count
                dataset.offsets = image.offsets or (0.0,) * count
            if image.valid is not None:
                dataset.write_mask(image.valid)
        with atomic_path(Path(path)) as temporary:
            temporary.write_bytes(memory.read())


def of_levels(
    levels: np.ndarray, bands: Bands, whole: bool = False, like: GeoImage | None = None
) -> GeoImage:
    """A generated image as it is written to a file.

    Args:
        levels: (H, W, C).
        bands: their names and ranges.
        whole: uint16 instead of float32. Float32 has the units of the training files; so have
            whole numbers of bands whose range is 500 or more. Other bands get scale and offset
            tags.
        like: gives its georeference to the image; None for none.
    """
    values = bands.values(levels)
    crs, transform = (like.crs, like.transform) if like else (None, None)
    image = GeoImage(values.astype(np.float32), bands.names, crs, transform)
    if not whole:
        return image
    low, high = np.array(bands.low), np.array(bands.high)
    fine = (low >= 0) & (high <= LEVELS) & (high - low >= 500)
    scales = np.where(fine, 1, (high - low) / LEVELS)
    offsets = np.where(fine, 0, low)
    return replace(
        image,
        values=np.rint((values - offsets) / scales).astype(np.uint16),
        scales=tuple(scales.tolist()),
        offsets=tuple(offsets.tolist()),
    )
