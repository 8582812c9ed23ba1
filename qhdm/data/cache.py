"""The bands of a data set in a memory-mapped file, made once, in the cache folder."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from qhdm import console
from qhdm.config import DataConfig
from qhdm.data.bands import (
    DESCRIBED,
    BandError,
    Described,
    by_number,
    check_order,
    evenly,
    numbers_in,
    same_numbers,
)
from qhdm.data.geotiff import GeoImage, import_rasterio, quiet, read_raster, reason
from qhdm.data.raster import ImageError
from qhdm.data.source import Item, Source, cache_folder
from qhdm.errors import DataError
from qhdm.files import atomic_path, sweep

_THREADS = min(16, os.cpu_count() or 1)
_ROOM = "free some space, or set QHDM_DATA to another folder for cached data"


@dataclass(frozen=True, eq=False)
class Cached:
    """The values of all images of a set.

    Attributes:
        values: (N, size, size, C) in the type and units of the files, memory-mapped.
        kinds: how many files are `64x64 uint16`, or `64x64 uint16, scaled`.
        faults: the errors of images that cannot be read, by index.
        centres: the coordinate reference system of each image and its centre in metres; None
            without.
    """

    values: np.ndarray
    kinds: Counter[str]
    faults: dict[int, DataError]
    centres: list[tuple[str, float, float] | None]

    def readable(self, chosen: np.ndarray) -> np.ndarray:
        """The indices of the images without faults that `chosen`, (N,) bool, marks."""
        return np.setdiff1d(np.flatnonzero(chosen), [*self.faults])


def cached(
    source: Source, items: Sequence[Item], config: DataConfig, *, progress: bool = False
) -> Cached:
    """The values of images, from the cache folder; they are read into it the first time.

    A process that is killed while it does so leaves nothing that others would use.

    Args:
        source: holds the images.
        items: the images to read.
        config: their bands and size.
        progress: show a bar on stderr, where that is a terminal.

    Raises:
        DataError: no image can be read, they have several types, the order of bands is unclear,
            rasterio is not installed, or the cache folder cannot be written.
    """
    path = cache_folder() / "bands" / _cache_name(source, items, config)
    if not path.exists():
        import_rasterio()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with _turn(path):
                if not path.exists():
                    sweep(path.parent, path.name)
                    with quiet(), atomic_path(path) as temporary:
                        temporary.mkdir()
                        _fill(temporary, source, items, config, progress)
        except OSError as error:
            raise DataError(
                f"{path.parent}: cannot be written ({error.strerror}); {_ROOM}"
            ) from None
    try:
        about = json.loads((path / "about.json").read_text(encoding="utf-8"))
        return Cached(
            values=np.load(path / "values.npy", mmap_mode="r", allow_pickle=False),
            kinds=Counter(about["kinds"]),
            faults={int(index): DataError(text) for index, text in about["faults"].items()},
            centres=[centre and tuple(centre) for centre in about["centres"]],
        )
    except (OSError, ValueError, LookupError):
        raise DataError(f"{path}: damaged; delete it to read the images again") from None


def _cache_name(source: Source, items: Sequence[Item], config: DataConfig) -> str:
    """A name for the cached values of these files, which changes with each of them."""
    digest = hashlib.sha256(
        json.dumps([3, config.bands, config.file_bands, config.image_size]).encode()
    )
    for item in items:
        digest.update(f"{item.name}\0{source.version(item)}\0".encode(errors="surrogateescape"))
    return digest.hexdigest()[:24]


@contextmanager
def _turn(path: Path) -> Iterator[None]:
    """Hold a lock on `path`; the system releases that of a process that dies."""
    with path.with_name(f"{path.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _fill(
    folder: Path, source: Source, items: Sequence[Item], config: DataConfig, progress: bool
) -> None:
    """Read all images into a new folder."""
    check_order(config, str(source.path), described(source, items))
    first: _Read | None = None
    faults: dict[int, str] = {}
    kinds: Counter[str] = Counter()
    centres: list[Any] = []
    with ThreadPoolExecutor(_THREADS) as executor:
        images = console.bar(
            executor.map(partial(_read, source, config=config), items), total=len(items),
            desc=f"reading {source.name}", unit=" images",
            show=progress, in_logs=False, delay=1, leave=False,
        )  # fmt: skip
        try:
            for index, image in enumerate(images):
                if isinstance(image, DataError):
                    faults[index] = str(image)
                    centres.append(None)
                    continue
                if first is None:
                    first, values = image, _allocate(folder, len(items), image.values)
                image.check(first, config, source.place(items[index]))
                kinds[image.kind] += 1
                centres.append(image.centre)
                values[index] = image.values
        except BaseException:  # without waiting for the images that are not read yet
            executor.shutdown(cancel_futures=True)
            raise
    if first is None:
        raise DataError(f"{source.path}: no image can be read; the first: {faults[0]}")
    values.flush()
    about = {"kinds": kinds, "faults": faults, "centres": centres}
    (folder / "about.json").write_text(json.dumps(about), encoding="utf-8")


@dataclass(frozen=True, eq=False)
class _Read:
    """An image that has been read.

    Attributes:
        values: (size, size, C).
        size: of the file: `64x64`.
        type_name: `uint16`, or `uint16, scaled`.
        names: of all bands in the file.
        centre: see `GeoImage`.
    """

    values: np.ndarray
    size: str
    type_name: str
    names: tuple[str | None, ...]
    centre: tuple[str, float, float] | None

    @property
    def kind(self) -> str:
        return f"{self.size} {self.type_name}"

    def check(self, first: _Read, config: DataConfig, place: str) -> None:
        """Raise `DataError` unless the image at `place` belongs to a data set with `first`."""
        if self.type_name != first.type_name:
            raise DataError(
                f"{place}: values of type {self.type_name}, but {first.type_name} in other files "
                "of this data set: the units may differ; save all in one way"
            )
        if by_number(config) and not same_numbers(self.names, first.names):
            raise DataError(
                f"data.bands: {place}: its bands differ from those of other files in number or "
                "names; choose them by name"
            )


def _read(source: Source, item: Item, config: DataConfig) -> _Read | DataError:
    """An image, or why it cannot be read."""
    try:
        image = read_raster(source.read(item))
        height, width = image.values.shape[:2]
        return _Read(
            values=of_bands(image, config),
            size=f"{width}x{height}",
            type_name=f"{image.values.dtype}{', scaled' if image.is_scaled else ''}",
            names=image.names,
            centre=image.centre,
        )
    except DataError as error:
        return error
    except BandError as error:
        return DataError(f"data.bands: {source.place(item)}: {error}; {error.remedy}")
    except ImageError as error:
        fault, remedy = f"{error}", error.remedy
    except Exception as error:  # whatever malformed bytes provoke in GDAL
        fault, remedy = reason(error), "repair or remove it"
    return DataError(
        f"{source.place(item)}: cannot be read as an image ({fault}); {remedy}, or set "
        "data.skip_broken: true"
    )


def of_bands(image: GeoImage, config: DataConfig) -> np.ndarray:
    """The centre square of an image's `data.bands`, (size, size, C), in physical units.

    Raises:
        ImageError: the image lacks one of the bands, or one has gaps.
    """
    numbers = numbers_in(config, image.names, image.values.shape[2])
    height, width = image.values.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = np.s_[top : top + side, left : left + side, np.array(numbers) - 1]
    if missing := int(image.missing[square].sum()):
        count = side * side * len(numbers)
        raise ImageError(
            f"{missing} of {count} values are missing", "fill the gaps, or leave such tiles out"
        )
    return _resized(image.physical[square], config.image_size)


def _resized(values: np.ndarray, size: int) -> np.ndarray:
    """Resize (S, S, C) to (size, size, C), bicubic, antialiased, within the limits of each band."""
    if len(values) == size:
        return values
    bands = [
        np.asarray(
            Image.fromarray(band.astype(np.float32)).resize((size, size), Image.Resampling.BICUBIC)
        ).clip(band.min(), band.max())
        for band in np.moveaxis(values, -1, 0)
    ]
    resized = np.stack(bands, axis=-1)
    return (np.rint(resized) if values.dtype.kind in "iu" else resized).astype(values.dtype)


def _allocate(folder: Path, count: int, like: np.ndarray) -> np.memmap:
    """Create the file for `count` arrays, if the disk has room for them."""
    needed = count * like.nbytes
    if (free := shutil.disk_usage(folder).free) < needed:
        raise DataError(
            f"{folder.parent}: needs {needed / 2**30:.1f} GiB, {free / 2**30:.1f} are free; {_ROOM}"
        )
    return np.lib.format.open_memmap(
        folder / "values.npy", mode="w+", dtype=like.dtype, shape=(count, *like.shape)
    )


def described(source: Source, items: Sequence[Item]) -> Iterator[Described]:
    """The names of bands in some evenly spread files, and the mean of each band without gaps."""
    left = DESCRIBED
    for item in dict.fromkeys([*evenly(items, DESCRIBED), *items]):
        try:
            image = read_raster(source.read(item))
        except Exception:  # reported when the whole set is read
            continue
        yield image.names, image.means
        left -= 1
        if not left:
            return
