"""A set of images with bands as a memory-mapped file, made once, in the cache folder."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from qhdm import console
from qhdm.config import DataConfig
from qhdm.data.bands import BandError, check_order, evenly, numbers_in
from qhdm.data.geotiff import GeoImage, import_rasterio, quiet, read_raster, reason
from qhdm.data.raster import ImageError
from qhdm.data.source import Item, Source, cache_folder
from qhdm.errors import DataError
from qhdm.files import atomic_path, sweep

_THREADS = min(16, os.cpu_count() or 1)
#: Images by which the order of bands without names is checked.
_CHECKED = 16


@dataclass(frozen=True, eq=False)
class Cached:
    """The values of all images of a set.

    Attributes:
        values: (N, size, size, C) in the type and units of the files, memory-mapped.
        kind: the files' type: `uint16`, `uint16, scaled`.
        faults: what is wrong with images that cannot be read, by index.
        centres: coordinate reference system and centre in metres of each image that has these.
    """

    values: np.ndarray
    kind: str
    faults: dict[int, DataError]
    centres: list[tuple[str, float, float] | None]

    def readable(self, chosen: np.ndarray) -> np.ndarray:
        """The indices of images without faults among those that `chosen`, (N,) bool, marks."""
        return np.setdiff1d(np.flatnonzero(chosen), [*self.faults])


def cached(
    source: Source, items: Sequence[Item], config: DataConfig, *, progress: bool = False
) -> Cached:
    """The values of images, read from the cache folder or, the first time, into it.

    A process that is killed meanwhile leaves nothing that others would use.

    Args:
        source: holds the images.
        items: which of them.
        config: the bands, and the size of images.
        progress: show a bar on stderr, where that is a terminal.

    Raises:
        DataError: no image can be read, they have several types, the order of bands is unclear,
            rasterio is not installed, or the cache folder cannot be written.
    """
    path = cache_folder() / "bands" / _key(source, items, config)
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
                f"{path.parent}: cannot be written ({error.strerror}); make room, or set QHDM_DATA "
                "to another folder for what is computed from data"
            ) from None
    try:
        about = json.loads((path / "about.json").read_text(encoding="utf-8"))
        return Cached(
            values=np.load(path / "values.npy", mmap_mode="r", allow_pickle=False),
            kind=about["kind"],
            faults={int(index): DataError(text) for index, text in about["faults"].items()},
            centres=[centre and tuple(centre) for centre in about["centres"]],
        )
    except (OSError, ValueError, LookupError):
        raise DataError(f"{path}: damaged; delete it, and the images are read again") from None


def _key(source: Source, items: Sequence[Item], config: DataConfig) -> str:
    """A name for the cached values of these files: they are others once a file changes."""
    digest = hashlib.sha256(
        json.dumps([2, config.bands, config.file_bands, config.image_size]).encode()
    )
    for item in items:
        digest.update(f"{item.name}\0{source.version(item)}\0".encode(errors="surrogateescape"))
    return digest.hexdigest()[:24]


@contextmanager
def _turn(path: Path) -> Iterator[None]:
    """Wait while another process makes `path`; the system ends the turn of one that dies."""
    with path.with_name(f"{path.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _fill(
    folder: Path, source: Source, items: Sequence[Item], config: DataConfig, progress: bool
) -> None:
    """Read all images into a new folder."""
    check_order(config, str(source.path), _means(source, items))

    def read(item: Item) -> _Read | DataError:
        try:
            return _read(source, item, config)
        except ImageError as error:
            fault, remedy = error, error.remedy
        except DataError as error:
            return error
        except Exception as error:  # whatever malformed bytes provoke in GDAL
            fault, remedy = ImageError(reason(error)), "repair or remove it"
        skip = "" if isinstance(fault, BandError) else ", or set data.skip_broken: true"
        return DataError(
            f"{source.place(item)}: cannot be read as an image ({fault}); {remedy}{skip}"
        )

    first: _Read | None = None
    faults: dict[int, str] = {}
    centres: list[Any] = []
    with ThreadPoolExecutor(_THREADS) as executor:
        for index, image in enumerate(
            console.bar(
                executor.map(read, items), total=len(items), desc=f"reading {source.name}",
                unit=" images", show=progress, in_logs=False, delay=1, leave=False,
            )
        ):  # fmt: skip
            centres.append(None if isinstance(image, DataError) else image.centre)
            if isinstance(image, DataError):
                faults[index] = str(image)
                continue
            if first is None:
                first, values = image, _allocate(folder, len(items), image.values)
            elif image.kind != first.kind:
                executor.shutdown(cancel_futures=True)
                raise DataError(
                    f"{source.place(items[index])}: values of type {image.kind}, others of this "
                    f"set {first.kind}: their units may differ; save all in one way"
                )
            elif image.count != first.count and any(isinstance(b, int) for b in config.bands or ()):
                executor.shutdown(cancel_futures=True)
                raise DataError(
                    f"data.bands: {source.place(items[index])}: {image.count} bands, others of "
                    f"this set {first.count}: their numbers may differ; save all in one way, or "
                    "give names"
                )
            values[index] = image.values
    if first is None:
        raise DataError(f"{source.path}: no image can be read (the first: {faults[0]})")
    values.flush()
    about = {"kind": first.kind, "faults": faults, "centres": centres}
    (folder / "about.json").write_text(json.dumps(about), encoding="utf-8")


@dataclass(frozen=True, eq=False)
class _Read:
    values: np.ndarray
    kind: str
    count: int
    centre: tuple[str, float, float] | None


def _read(source: Source, item: Item, config: DataConfig) -> _Read:
    image = read_raster(source.read(item))
    scaled = ", scaled" if image.is_scaled else ""
    count = image.values.shape[2]
    return _Read(of_bands(image, config), f"{image.values.dtype}{scaled}", count, image.centre)


def of_bands(image: GeoImage, config: DataConfig) -> np.ndarray:
    """The centre square of an image's `data.bands`, (size, size, C), in physical units.

    Raises:
        ImageError: it has not these bands, or gaps in them.
    """
    numbers = numbers_in(config, image.names, image.values.shape[2])
    height, width = image.values.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = np.s_[top : top + side, left : left + side, np.array(numbers) - 1]
    if missing := int(image.missing[square].sum()):
        count = side * side * len(numbers)
        raise ImageError(
            f"{missing} of {count} values have no data", "fill these gaps, or leave such tiles out"
        )
    return _resized(image.physical[square], config.image_size)


def _resized(values: np.ndarray, size: int) -> np.ndarray:
    """(S, S, C) to (size, size, C), bicubic and antialiased, within each band's limits."""
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
    """A file for `count` arrays; refuses, before they are read, a disk without room for them."""
    needed = count * like.nbytes
    if (free := shutil.disk_usage(folder).free) < needed:
        raise DataError(
            f"{folder.parent}: {needed / 2**30:.1f} GiB are needed, {free / 2**30:.1f} are free; "
            "make room, or set QHDM_DATA to another folder for what is computed from data"
        )
    return np.lib.format.open_memmap(
        folder / "values.npy", mode="w+", dtype=like.dtype, shape=(count, *like.shape)
    )


def _means(
    source: Source, items: Sequence[Item]
) -> Iterator[tuple[Sequence[str | None], np.ndarray]]:
    """The names in some evenly spread files, and the mean of each of their bands without gaps."""
    left = _CHECKED
    for item in dict.fromkeys([*evenly(items, _CHECKED), *items]):
        try:
            image = read_raster(source.read(item))
        except Exception:  # is reported where it is read
            continue
        yield image.names, image.means
        left -= 1
        if not left:
            return
