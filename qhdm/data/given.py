"""Data sets that a program hands over: any torch `Dataset` of (image, label)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from operator import index as as_index
from typing import Any

import numpy as np
from PIL import Image

from qhdm.config import DataConfig
from qhdm.data.bands import (
    DESCRIBED,
    BandImages,
    Bands,
    Described,
    Images,
    bands_of,
    by_name,
    check_order,
    scaled_bands,
)
from qhdm.data.cache import of_bands
from qhdm.data.dataset import Dataset
from qhdm.data.geotiff import GeoImage
from qhdm.data.images import from_picture
from qhdm.data.layout import Item
from qhdm.data.raster import ImageError, Raster, check_channels
from qhdm.data.source import GIVEN
from qhdm.data.splits import split
from qhdm.errors import ConfigError, DataError


def given(dataset: Any, config: DataConfig) -> Dataset:
    """A data set that a program hands over, as one of this package.

    Args:
        dataset: a `Dataset` of this package, with the split that it has; or anything with a
            length whose items are (image, label), such as a torch or torchvision `Dataset`. Images
            are PIL images, uint8 arrays or tensors, or floating-point ones in [0, 1], of shape
            (H, W), (H, W, C) or (C, H, W). Labels count the classes from 0. Classes are named by
            `config.classes`, by the `classes` of the data set, or by their numbers.
        config: how images are cropped and resized, and the `test_fraction` of each class that is
            held out, chosen by label and index.

    Raises:
        DataError: an item, its image or its label cannot be used, or the classes are others than
            `config.classes`.
    """
    named = dataset.class_names if isinstance(dataset, Dataset) else getattr(dataset, "classes", ())
    _check_classes(type(dataset).__name__, tuple(map(str, named)), config)
    if not isinstance(dataset, Dataset):
        dataset = _converted(dataset, config)
    if dataset.images.shape[1:] != (config.image_size, config.image_size, config.channels):
        height, width, channels = dataset.images.shape[1:]
        raise DataError(
            f"{dataset.name}: images of {height}x{width} pixels and {channels} channels; set "
            "data.image_size and data.channels (of bands, data.bands) to these"
        )
    if dataset.bands is not None and config.bands is not None:
        config = _with_bands(config, dataset.bands)
    if dataset.bands != bands_of(config):
        raise DataError(
            f"{dataset.name}: data.bands or data.range differ from its bands, {dataset.bands}"
        )
    return dataset


def of_given(dataset: Dataset, config: DataConfig) -> DataConfig:
    """`config` as a run on a data set that was handed over keeps it."""
    config = replace(config, root=GIVEN, classes=dataset.class_names)
    return config if dataset.bands is None else _with_bands(config, dataset.bands)


def _with_bands(config: DataConfig, bands: Bands) -> DataConfig:
    """`config` with the names and ranges of the bands of a data set where it leaves them open."""
    own = config.bands or ()
    if config.file_bands is None and len(own) == len(bands.names):
        pairs = zip(own, bands.names, strict=True)
        own = tuple(b if isinstance(b, str) or name == f"band {b}" else name for b, name in pairs)
    if config.range is None:
        config = replace(config, range=bands.range, percentile=None)
    return replace(config, bands=own)


def from_torchgeo(dataset: Any) -> Pairs:
    """Adapt a data set of mappings with `image` and `label`, such as torchgeo's.

    Args:
        dataset: has a length, and items with an `image` tensor (C, H, W) and an integer `label`;
            optionally `classes`, and `bands`, the names of the channels.

    Returns:
        A data set of (image, label) for `qhdm.train` and `qhdm.evaluate`. `data.bands` chooses
        bands by these names or by number; their values are those of the tensors.

    Example:
        >>> qhdm.data.from_torchgeo([{"image": torch.zeros(13, 64, 64), "label": 3}])[0][1]
        3
    """
    return Pairs(dataset)


class Pairs:
    """Items with `image` and `label` as (image, label); see `from_torchgeo`."""

    def __init__(self, items: Any) -> None:
        self._items = items
        self.name = type(items).__name__
        self.classes = tuple(getattr(items, "classes", ()))
        self.bands = tuple(map(str, getattr(items, "bands", ())))

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        import torch

        item, where = self._items[index], f"{self.name}[{index}]"
        try:
            image, label = item["image"], as_index(item["label"])
        except (TypeError, LookupError, ValueError):
            raise DataError(
                f"{where}: lacks `image` or an integer `label`; give a classification data set"
            ) from None
        if not isinstance(image, torch.Tensor) or image.ndim != 3:
            kind = f"{type(image).__name__} of shape {np.shape(image)}"
            raise DataError(f"{where}: `image` is a {kind}; give a tensor (C, H, W)")
        count, height, width = image.shape
        if self.bands and len(self.bands) != count:
            raise DataError(
                f"{where}: {count} bands, but `bands` of the data set names {len(self.bands)}; "
                "correct it"
            )
        if not self.bands and width < min(count, height):
            raise DataError(
                f"{where}: `image` of shape {tuple(image.shape)} looks like (H, W, C); give "
                "(C, H, W), or names of the channels as `bands` of the data set"
            )
        image = image.detach()
        return (image.float() if image.dtype in (torch.bfloat16, torch.float16) else image), label


def shape_of(dataset: Any) -> tuple[int, ...]:
    """(H, W, C) of the first image of a data set that a program hands over.

    Raises:
        DataError: it has none.
    """
    if isinstance(dataset, Dataset):
        return dataset.images.shape[1:]
    name = type(dataset).__name__
    try:
        image, _ = dataset[0]
    except (TypeError, ValueError, LookupError):
        raise DataError(f"{name}: its first item is not an (image, label)") from None
    return _raster(image, f"{name}[0]").values.shape


def _check_classes(name: str, classes: tuple[str, ...], config: DataConfig) -> None:
    """Refuse class names that no folder can have, or that are not those of the configuration."""
    expected = config.classes
    if expected and classes:
        if len(classes) != len(expected) or (classes != expected and {*classes} == {*expected}):
            raise DataError(
                f"{name}: has the classes {', '.join(classes)}, in this order; data.classes are "
                f"{', '.join(expected)}"
            )
        return
    try:
        replace(config, classes=classes or None)
    except ConfigError as error:
        raise DataError(f"{name}: set data.classes to names of folders ({error})") from None


def _converted(items: Any, config: DataConfig) -> Dataset:
    name = getattr(items, "name", type(items).__name__)
    if config.bands is None:
        check_channels(config.channels)
    try:
        count = len(items)
    except TypeError:
        raise DataError(f"{name}: has no length; give a map-style data set, or a list") from None
    if not count:
        raise DataError(f"{name}: holds no images")
    images, labels, files = _read(items, name, count, config)
    most = int(labels.max())
    names = (
        config.classes or tuple(getattr(items, "classes", ())) or tuple(map(str, range(most + 1)))
    )
    if labels.min() < 0 or most >= len(names):
        raise DataError(
            f"{name}: labels from {labels.min()} to {most} for {len(names)} classes; labels count "
            "the classes from 0 (data.classes)"
        )
    names = tuple(map(str, names))
    members = [Item(names[label], f"{label}/{i}", f"{label}/{i}") for i, label in enumerate(labels)]
    used, is_test = split(config, [names[label] for label in np.unique(labels)], members)
    bands = None
    levels: Images = images
    if config.bands is not None:
        config = by_name(config, files)
        bands = scaled_bands(config, images, np.flatnonzero(used & ~is_test), name)
        levels = BandImages(images, np.arange(count), bands)
    whole = Dataset(
        name=name,
        class_names=names,
        images=levels,
        labels=labels,
        names=tuple(f"{names[label]}/{i}" for i, label in enumerate(labels)),
        is_test=is_test,
        skipped=(),
        bands=bands,
    )
    return whole if used.all() else whole.where(used)


def _read(
    items: Any, name: str, count: int, config: DataConfig
) -> tuple[np.ndarray, np.ndarray, list[Described]]:
    """Images (N, H, W, C), as levels of pictures or values of bands, labels (N,), and the bands of
    some items."""
    images: np.ndarray | None = None
    checked: list[Described] = []
    count_of_bands = 0
    labels = np.empty(count, dtype=np.int64)
    for i in range(count):
        where = f"{name}[{i}]"
        try:
            image, label = items[i]
            labels[i] = as_index(label)
        except (TypeError, ValueError):
            raise DataError(f"{where}: is not an (image, label), the label an integer") from None
        if config.bands is None:
            raster = _raster(image, where)
            pixels = raster.pixels(size=config.image_size, channels=config.channels)
        else:
            source = _geo_image(image, where, getattr(items, "bands", ()))
            count_of_bands = count_of_bands or source.values.shape[2]
            if source.values.shape[2] != count_of_bands:
                raise DataError(
                    f"{where}: {source.values.shape[2]} bands, but others have {count_of_bands}; "
                    "give items of one kind"
                )
            if len(checked) < DESCRIBED:
                checked.append((source.names, source.means))
            pixels = _values(source, where, config)
        if images is None:
            images = np.empty((count, *pixels.shape), pixels.dtype)
        elif pixels.dtype != images.dtype:
            raise DataError(
                f"{where}: values of type {pixels.dtype}, but others are {images.dtype}; convert"
            )
        images[i] = pixels
    assert images is not None
    check_order(config, name, checked)
    return images, labels, checked


def _geo_image(image: Any, where: str, names: Sequence[str]) -> GeoImage:
    """An item's image: a tensor (C, H, W) or an array (H, W, C)."""
    array = np.asarray(image)
    if array.ndim != 3 or array.dtype.kind not in "iuf":
        raise DataError(
            f"{where}: values of type {array.dtype} and shape {array.shape}; with data.bands, give "
            "integers or floats as tensors (C, H, W) or arrays (H, W, C)"
        )
    if not isinstance(image, np.ndarray):
        array = array.transpose(1, 2, 0)
    return GeoImage(array, tuple(names) or (None,) * array.shape[2])


def _values(image: GeoImage, where: str, config: DataConfig) -> np.ndarray:
    """The bands of an item, (size, size, C), in its own type."""
    try:
        return of_bands(image, config)
    except ImageError as error:
        raise DataError(f"{where}: {error}; {error.remedy}") from None


def _raster(image: Any, where: str) -> Raster:
    """An item's image, 8 bits per value."""
    if isinstance(image, Image.Image) and not image.mode.startswith(("I", "F")):
        return from_picture(image)
    array = np.asarray(image)
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim == 3 and array.shape[2] not in (1, 3) and array.shape[0] in (1, 3):
        array = array.transpose(1, 2, 0)
    if array.ndim != 3 or array.shape[2] not in (1, 3):
        raise DataError(f"{where}: an image of shape {np.shape(image)}; give grey or RGB images")
    if array.dtype.kind == "f":
        if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
            raise DataError(
                f"{where}: floating-point values from {array.min():.4g} to {array.max():.4g}; "
                "scale them to [0, 1]"
            )
        array = np.rint(255 * array).astype(np.uint8)
    if array.dtype != np.uint8:
        raise DataError(f"{where}: values of type {array.dtype}; give uint8 or floats in [0, 1]")
    return Raster(array)
