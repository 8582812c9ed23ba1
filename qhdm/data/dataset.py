"""A whole data set in memory, with its split into train and test."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Literal

import numpy as np

from qhdm import console
from qhdm.config import Config, DataConfig
from qhdm.data.images import Decoded, decode
from qhdm.data.raster import check_channels
from qhdm.data.source import EUROSAT_CLASSES, NAMED_ROOTS, Item, Source, locate, open_source
from qhdm.data.values import SetValues
from qhdm.errors import DataError, did_you_mean

_MAX_THREADS = 16


@dataclass(frozen=True)
class Dataset:
    """Labelled images, decoded.

    Attributes:
        name: `bundled`, `eurosat`, or the name of the folder or zip.
        class_names: the classes, by label.
        images: (N, H, W, C) uint8.
        labels: (N,) int64.
        names: path of each image within the set, starting with its class.
        is_test: (N,) bool, the images kept out of training.
        skipped: names of the unreadable images that were left out.
    """

    name: str
    class_names: tuple[str, ...]
    images: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...]
    is_test: np.ndarray
    skipped: tuple[str, ...]

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
        for array in (self.labels, self.is_test, self.images):
            digest.update(f"{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()[:16]

    def where(self, chosen: np.ndarray) -> Dataset:
        """The images that `chosen`, (N,) bool, marks."""
        return Dataset(
            name=self.name,
            class_names=self.class_names,
            images=self.images[chosen],
            labels=self.labels[chosen],
            names=tuple(self.names[index] for index in np.flatnonzero(chosen)),
            is_test=self.is_test[chosen],
            skipped=self.skipped,
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
    with open_source(config.root, classes=config.classes) as source:
        return _choose(config.classes, source.class_names)


def resolved(config: Config) -> Config:
    """`config` as a run keeps it: with the class names found in the data, so that it needs no data
    to sample, and with absolute paths, so that it can be resumed from anywhere.

    Raises:
        DataError: as `class_names`.
    """
    classes, root = class_names(config.data), config.data.root
    if root not in NAMED_ROOTS:
        root = str(Path(os.path.expanduser(root)).resolve())
    aer = config.quantum.aer
    if aer.noise and aer.noise.endswith(".json"):
        aer = dataclasses.replace(aer, noise=str(Path(os.path.expanduser(aer.noise)).resolve()))
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, classes=classes, root=root),
        quantum=dataclasses.replace(config.quantum, aer=aer),
    )


def select(
    config: DataConfig, source: Source
) -> tuple[tuple[str, ...], tuple[Item, ...], np.ndarray]:
    """The chosen classes, their N images in the order of the classes, and which are held out.

    Returns:
        Class names, items, and (N,) bool.

    Raises:
        DataError: the set has no class of a name in `data.classes`, or its split leaves nothing of
            one to train on; or `data.channels` is neither 1 nor 3.
    """
    check_channels(config.channels)
    classes = _choose(config.classes, source.class_names)
    members = {
        name: tuple(items) for name, items in groupby(source.items, key=attrgetter("class_name"))
    }
    items = tuple(item for name in classes for item in members[name])
    is_test = [_is_test(name, members[name], config.test_fraction) for name in classes]
    return classes, items, np.concatenate(is_test)


def _is_test(name: str, items: Sequence[Item], fraction: float) -> np.ndarray:
    """Which images of a class are held out: as its folders say, or else by file names."""
    if not any(item.part for item in items):
        return held_out([item.name for item in items], fraction)
    chosen = np.array([item.is_held_out for item in items])
    if chosen.all():
        raise DataError(
            f"data.classes: all images of class {name} are held out ({items[0].part}); add some to "
            "train on, or leave the class out"
        )
    return chosen


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
    with open_source(config.root, classes=config.classes) as source:
        classes, items, is_test = select(config, source)
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
        stored.check(config.range, str(source.path))
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
    )
    return whole if readable.all() else whole.where(readable)


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
                value_range=config.range,
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


def held_out(names: Sequence[str], fraction: float) -> np.ndarray:
    """Which images of ONE class are kept out of training, by their file names alone.

    Ordered by the SHA-256 of `<class>/<file name>`, the first `fraction` of the images, rounded to
    whole images: at least one (of two or more) when `fraction` is above 0, and never all.

    Args:
        names: paths within the set, `<class>/.../<file name>`.
        fraction: in [0, 1).

    Returns:
        (N,) bool.
    """
    count = 0
    if fraction > 0:
        count = min(max(round(fraction * len(names)), 1), len(names) - 1)
    order = sorted(range(len(names)), key=lambda index: _split_key(names[index]))
    chosen = np.zeros(len(names), dtype=bool)
    chosen[order[:count]] = True
    return chosen


def _split_key(name: str) -> tuple[bytes, str]:
    label, _, rest = name.partition("/")
    text = f"{label}/{rest.rpartition('/')[2]}"
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest(), name


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
