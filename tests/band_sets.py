"""Small sets of GeoTIFF files with 13 bands, for tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from qhdm.config.fields import BAND_ORDERS
from qhdm.data import GeoImage, write_geotiff

#: A genuine 13-band patch of EuroSAT, its bytes as published.
RIVER = Path(__file__).parent / "golden" / "River_84.tif"
EUROSAT = BAND_ORDERS["eurosat"]
#: Made-up values of each band, B10 (cirrus) being the darkest.
LEVEL = {name: 10 if name == "B10" else 1000 + 100 * i for i, name in enumerate(EUROSAT)}


def patch(number: int = 0, order: Sequence[str] = EUROSAT, size: int = 8) -> np.ndarray:
    """uint16 (size, size, 13): the level of each band, plus a ramp and `number`."""
    ramp = np.arange(size * size).reshape(size, size, 1)
    return (np.array([LEVEL[name] for name in order]) + ramp + number).astype(np.uint16)


def band_set(
    root: Path,
    counts: dict[str, int],
    *,
    named: bool = False,
    order: Sequence[str] = EUROSAT,
    place: bool = False,
    apart: int = 640,
) -> Path:
    """A folder of class folders, the images of a class numbered in their file names.

    `place` lays them out, so many metres `apart`, on a line from west to east, class after class.
    """
    from rasterio.crs import CRS
    from rasterio.transform import from_origin

    east = 0
    for name, count in counts.items():
        for number in range(count):
            crs = CRS.from_epsg(32631) if place else None
            transform = from_origin(500_000 + apart * east, 5_000_000, 80, 80) if place else None
            names = tuple(order) if named else (None,) * len(order)
            image = GeoImage(patch(number, order), names, crs, transform)
            write_geotiff(root / name / f"{name}_{number}.tif", image)
            east += 1
    return root


def scene(folder: Path) -> None:
    """Bands of a scene of 1,300 m, a JPEG 2000 file each; B11 has pixels of 20 m."""
    import rasterio
    from rasterio.transform import from_origin

    folder.mkdir(parents=True)
    for name in ("B02", "B03", "B04", "B08", "B11"):
        metres = 20 if name == "B11" else 10
        side = 1300 // metres
        with rasterio.open(
            folder / f"{name}.jp2", "w", driver="JP2OpenJPEG", width=side, height=side, count=1,
            dtype="uint16", crs="EPSG:32631", quality=100, reversible=True,
            transform=from_origin(500_000, 5_000_000, metres, metres),
        ) as file:  # fmt: skip
            file.write(np.full((1, side, side), LEVEL[name], np.uint16))
