"""Data sets that a program hands over: any torch `Dataset` of (image, label)."""

from __future__ import annotations

from dataclasses import replace
from operator import index
from typing import Any

import numpy as np
from PIL import Image

from qhdm.config import DataConfig
from qhdm.data.dataset import Dataset
from qhdm.data.images import from_picture
from qhdm.data.raster import Raster, check_channels
from qhdm.data.splits import held_out
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
            "data.image_size and data.channels to these"
        )
    return dataset


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
    name = type(items).__name__
    check_channels(config.channels)
    try:
        count = len(items)
    except TypeError:
        raise DataError(f"{name}: has no length; give a map-style data set, or a list") from None
    if not count:
        raise DataError(f"{name}: holds no images")
    images = np.empty((count, config.image_size, config.image_size, config.channels), np.uint8)
    labels = np.empty(count, dtype=np.int64)
    for i in range(count):
        where = f"{name}[{i}]"
        try:
            image, label = items[i]
            labels[i] = index(label)
        except (TypeError, ValueError):
            raise DataError(f"{where}: is not an (image, label), the label an integer") from None
        raster = _raster(image, where)
        images[i] = raster.pixels(size=config.image_size, channels=config.channels)
    most = int(labels.max())
    names = (
        config.classes or tuple(getattr(items, "classes", ())) or tuple(map(str, range(most + 1)))
    )
    if labels.min() < 0 or most >= len(names):
        raise DataError(
            f"{name}: labels from {labels.min()} to {most} for {len(names)} classes; labels count "
            "the classes from 0 (data.classes)"
        )
    is_test = np.zeros(count, dtype=bool)
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        is_test[own] = held_out([f"{label}/{i}" for i in own], config.test_fraction)
    return Dataset(
        name=name,
        class_names=tuple(map(str, names)),
        images=images,
        labels=labels,
        names=tuple(f"{names[label]}/{i}" for i, label in enumerate(labels)),
        is_test=is_test,
        skipped=(),
    )


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
        raise DataError(f"{where}: an image of shape {np.shape(image)}; grey or RGB are read")
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
