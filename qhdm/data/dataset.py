"""A whole data set in memory, with its split into train and test."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Literal, cast

import numpy as np

from qhdm import console
from qhdm.config import Config, DataConfig
from qhdm.data.bands import BandImages, Bands, Images, by_name, by_number, scaled_bands
from qhdm.data.cache import cached, described
from qhdm.data.geotiff import import_rasterio, quiet
from qhdm.data.images import Decoded, decode
from qhdm.data.raster import check_channels
from qhdm.data.source import EUROSAT_CLASSES, NAMED_ROOTS, Item, Source, locate, open_source
from qhdm.data.splits import split
from qhdm.data.values import SetValues
from qhdm.errors import DataError, did_you_mean

_MAX_THREADS = 16
#: Images of a digest at a time.
_ROWS = 256


@dataclass(frozen=True)
class Dataset:
    """Labelled images, decoded.

    Attributes:
        name: `bundled`, `eurosat`, or the name of the folder or zip.
        class_names: the classes, by label.
        images: (N, H, W, C) uint8, or uint16 levels of bands, read from a file when indexed.
        labels: (N,) int64.
        names: path of each image within the set, starting with its class.
        is_test: (N,) bool, the images kept out of training.
        skipped: names of the unreadable images that were left out.
        bands: what the channels are; None for pictures.
    """

    name: str
    class_names: tuple[str, ...]
    images: Images
    labels: np.ndarray
    names: tuple[str, ...]
    is_test: np.ndarray
    skipped: tuple[str, ...]
    bands: Bands | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def split(self, part: Literal["train", "test", "all"]) -> Dataset:
        """The images of one part; `all` is the set itself."""
        if part == "all":
            return self
        return self.where(self.is_test if part == "test" else ~self.is_test)

    def digest(self) -> str:
        """16 hexadecimal digits that identify classes, file names, split and decoded pixels."""
        digest = hashlib.sha256()
        for text in (*self.class_names, *self.names):
            digest.update(text.encode("utf-8", "surrogateescape") + b"\0")
        if self.bands is not None:
            digest.update(f"{self.bands}".encode())
        for array in (self.labels, self.is_test, self.images):
            digest.update(f"{array.shape}".encode())
            for start in range(0, len(array), _ROWS):
                digest.update(np.ascontiguousarray(array[start : start + _ROWS]).data)
        return digest.hexdigest()[:16]

    def where(self, chosen: np.ndarray) -> Dataset:
        """The images that `chosen`, (N,) bool, marks."""
        images = self.images
        return replace(
            self,
            images=images.where(chosen) if isinstance(images, BandImages) else images[chosen],
            labels=self.labels[chosen],
            names=tuple(self.names[index] for index in np.flatnonzero(chosen)),
            is_test=self.is_test[chosen],
        )


def class_names(config: DataConfig) -> tuple[str, ...]:
    """The classes, by label, without decoding an image.

    `data.classes` is checked against the set where the set is present. EuroSAT's classes are known
    without it.

    Raises:
        DataError: the set cannot be listed, or has no class of a name in `data.classes`.
    """
    present = os.path.exists(locate(config.root))
    if config.root == "eurosat" and not present:
        return _choose(config.classes, EUROSAT_CLASSES)
    if config.classes is not None and not present:
        return config.classes
    with _opened(config) as source:
        return _choose(config.classes, source.class_names)


def resolved(config: Config) -> Config:
    """`config` as a run keeps it: with the class names found in the data, and the names and ranges
    of bands, so that it needs no data to sample; and with absolute paths, so that it can be resumed
    from anywhere.

    Raises:
        DataError: as `class_names`; of bands whose range is to be measured, as `load`.
    """
    data = replace(config.data, classes=class_names(config.data))
    if by_number(data) and os.path.exists(locate(data.root)):
        with _opened(data) as source:
            data = with_names(data, source, select(data, source)[1])
    if data.bands is not None and data.range is None:
        bands = load(data, progress=True).bands
        assert bands is not None
        data = replace(data, range=bands.range, percentile=None)
    if data.root not in NAMED_ROOTS:
        data = replace(data, root=_absolute(data.root))
    if data.split is not None:
        data = replace(data, split=_absolute(data.split))
    aer = config.quantum.aer
    if aer.noise and aer.noise.endswith(".json"):
        aer = replace(aer, noise=_absolute(aer.noise))
    return replace(config, data=data, quantum=replace(config.quantum, aer=aer))


def _absolute(path: str) -> str:
    return str(Path(os.path.expanduser(path)).resolve())


def select(config: DataConfig, source: Source) -> tuple[tuple[str, ...], tuple[Item, ...]]:
    """The chosen classes, and their images in the order of the classes.

    Raises:
        DataError: the set has no class of a name in `data.classes`; or `data.channels` of pictures
            is neither 1 nor 3.
    """
    if config.bands is None:
        check_channels(config.channels)
    classes = _choose(config.classes, source.class_names)
    members = {
        name: tuple(items) for name, items in groupby(source.items, key=attrgetter("class_name"))
    }
    return classes, tuple(item for name in classes for item in members[name])


def with_names(config: DataConfig, source: Source, items: Sequence[Item]) -> DataConfig:
    """`config` with the names of bands that are chosen by number, if files have them."""
    if not by_number(config):
        return config
    import_rasterio()
    with quiet():
        return by_name(config, described(source, items))


def load(config: DataConfig, *, progress: bool = False) -> Dataset:
    """Read and decode a data set.

    The split is decided by the files that are listed, so that a broken image does not move others
    between its parts. Whether `data.range` is needed is decided by the values of all images.

    Args:
        config: which images, and how they are prepared.
        progress: show a bar on stderr, where that is a terminal.

    Raises:
        DataError: the set is absent or malformed, needs `data.range`, or an image is unreadable
            (unless `data.skip_broken`), or a class has no readable image left.
    """
    with _opened(config) as source:
        classes, items = select(config, source)
        if config.bands is not None:
            return _of_bands(config, source, classes, items, progress=progress)
        used, is_test = split(config, classes, items)
        items = tuple(item for item, chosen in zip(items, used, strict=True) if chosen)
        images = _allocate(config, len(items))
        stored, faults = SetValues(), {}
        for index, image in enumerate(
            read_images(source, items, config, skip_broken=config.skip_broken, progress=progress)
        ):
            if isinstance(image, DataError):
                faults[index] = image
                continue
            if image.values is not None:
                stored.add(image.values)
            if image.pixels is not None:
                images[index] = image.pixels
        stored.check(picture_range(config), str(source.path))
    return _dataset(source, classes, items, is_test[used], images, faults)


def _of_bands(
    config: DataConfig,
    source: Source,
    classes: tuple[str, ...],
    items: tuple[Item, ...],
    *,
    progress: bool,
) -> Dataset:
    """`load` of images with bands, by way of the cache."""
    config = with_names(config, source, items)
    cache = cached(source, items, config, progress=progress)
    used, is_test = split(config, classes, items, cache.centres, cache.faults)
    rows = np.flatnonzero(used)
    faults = {i: cache.faults[r] for i, r in enumerate(rows.tolist()) if r in cache.faults}
    if faults and not config.skip_broken:
        raise next(iter(faults.values()))
    bands = scaled_bands(config, cache.values, cache.readable(used & ~is_test), str(source.path))
    images = BandImages(cache.values, rows, bands)
    chosen = tuple(items[row] for row in rows)
    return _dataset(source, classes, chosen, is_test[used], images, faults, bands)


def _dataset(
    source: Source,
    classes: tuple[str, ...],
    items: tuple[Item, ...],
    is_test: np.ndarray,
    images: Images,
    faults: Mapping[int, DataError],
    bands: Bands | None = None,
) -> Dataset:
    """The data set of images, without those that have faults.

    Raises:
        DataError: no image of a class is left.
    """
    numbers = {name: number for number, name in enumerate(classes)}
    labels = np.array([numbers[item.class_name] for item in items], dtype=np.int64)
    readable = np.array([index not in faults for index in range(len(items))])
    for number, name in enumerate(classes):
        members = np.flatnonzero(labels == number)
        if not readable[members].any():
            raise DataError(
                f"{source.path}: no image of class {name} can be read; repair the images, "
                f"or leave the class out of data.classes (the first: {faults[members[0]]})"
            )
    whole = Dataset(
        name=source.name,
        class_names=classes,
        images=images,
        labels=labels,
        names=tuple(item.name for item in items),
        is_test=is_test,
        skipped=tuple(items[index].name for index in faults),
        bands=bands,
    )
    return whole if readable.all() else whole.where(readable)


def _opened(config: DataConfig) -> Source:
    return open_source(config.root, classes=config.classes, bands=config.bands is not None)


def picture_range(config: DataConfig) -> tuple[float, float] | None:
    """The one range of pictures."""
    return cast("tuple[float, float] | None", config.range)


def read_images(
    source: Source,
    items: Sequence[Item],
    config: DataConfig,
    *,
    skip_broken: bool,
    progress: bool,
    all_values: bool = False,
) -> Iterator[Decoded | DataError]:
    """Read and decode images in threads (Pillow and zlib release the GIL); results in order.

    Args:
        source: holds the images.
        items: which of them.
        config: how they are prepared.
        skip_broken: yield the error of an unreadable image instead of raising it.
        progress: show a bar on stderr, where that is a terminal and the work takes over a second.
        all_values: as for `decode`.

    Raises:
        DataError: the first unreadable image, in the order of `items`.
    """

    def read(item: Item) -> Decoded | DataError:
        try:
            return decode(
                source.read(item),
                size=config.image_size,
                channels=config.channels,
                name=source.place(item),
                value_range=picture_range(config),
                all_values=all_values,
            )
        except DataError as error:
            if skip_broken:
                return error
            raise

    with ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1)) as executor:
        yield from console.bar(
            executor.map(read, items),
            total=len(items),
            desc=f"reading {source.name}",
            unit=" images",
            show=progress,
            in_logs=False,
            delay=1,
            mininterval=0.5,
            leave=False,
        )


def _choose(wanted: tuple[str, ...] | None, known: tuple[str, ...]) -> tuple[str, ...]:
    for name in wanted or ():
        if name not in known:
            raise DataError(
                f"data.classes: unknown class {name!r}; known: {', '.join(known)}"
                f"{did_you_mean(name, known)}"
            )
    return known if wanted is None else wanted


def _allocate(config: DataConfig, count: int) -> np.ndarray:
    shape = (count, config.image_size, config.image_size, config.channels)
    try:
        return np.empty(shape, dtype=np.uint8)
    except MemoryError:
        raise DataError(
            f"data.image_size: {count} images of {config.image_size}x{config.image_size} pixels "
            f"need {np.prod(shape, dtype=float) / 2**30:.1f} GiB of memory; "
            "use smaller images or fewer classes"
        ) from None
