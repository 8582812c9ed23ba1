"""Which images are held out of training: by folders, file names, a list, or coordinates."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qhdm.config import DataConfig
from qhdm.data.layout import Item, held_out_word
from qhdm.errors import DataError, did_you_mean

_MAX_BYTES = 256 * 2**20
#: Columns of a list in CSV: the path of an image, and its part of the split.
_PATH, _PART = ("path", "file", "filename", "image"), ("split", "part", "subset", "set")

#: Coordinate reference system of an image and its centre in metres, None without.
Centre = tuple[str, float, float] | None


def split(
    config: DataConfig,
    classes: Sequence[str],
    items: Sequence[Item],
    centres: Sequence[Centre] | None = None,
    broken: Collection[int] = (),
) -> tuple[np.ndarray, np.ndarray]:
    """Decide which images are used, and which of them are held out.

    Args:
        config: `split`, `blocks`, `test_fraction` and `per_class`.
        classes: the classes of the set.
        items: its N images.
        centres: the coordinates of all images, for `blocks`.
        broken: indices of images that cannot be read and need no coordinates.

    Returns:
        (N,) bool both.

    Raises:
        DataError: the list cannot be read or names no image of the set, files have no coordinates,
            or a class has no training image left.
    """
    names = np.array([item.class_name for item in items])
    used = np.ones(len(items), dtype=bool)
    if config.split is not None:
        used, is_test = _by_list(Path(os.path.expanduser(config.split)), items)
    elif config.blocks is not None:
        is_test = _by_blocks(config, items, centres or [], broken)
    else:
        is_test = np.zeros(len(items), dtype=bool)
        for name in classes:
            own = np.flatnonzero(names == name).tolist()
            is_test[own] = _of_class([items[i] for i in own], config.test_fraction)
    for name in classes:
        if not (used & ~is_test & (names == name)).any():
            raise _nothing_to_train_on(config, name, bool((used & (names == name)).any()))
    if config.per_class is not None:
        used &= is_test | _first(config, classes, items, used & ~is_test)
    return used, is_test


def _nothing_to_train_on(config: DataConfig, name: str, is_held_out: bool) -> DataError:
    """Why a class has no training images, and what to do about it."""
    remedy = "put some into the training folder"
    if config.split is not None:
        remedy = f"list some in {config.split} to train on"
    elif config.blocks is not None:
        remedy = "give a smaller data.blocks or data.test_fraction"
    what = "held out" if is_held_out else "left out"
    return DataError(
        f"data.classes: all images of class {name} are {what}; {remedy}, or leave the class out"
    )


def held_out(names: Sequence[str], fraction: float) -> np.ndarray:
    """Choose the images of ONE class to hold out, by their file names alone.

    Ordered by the SHA-256 of `<class>/<file name>`, the first `fraction` of the images, rounded to
    whole images: at least one (of two or more) when `fraction` is above 0, and never all.

    Args:
        names: paths within the set, `<class>/.../<file name>`.
        fraction: in [0, 1).

    Returns:
        (N,) bool.
    """
    order = sorted(range(len(names)), key=lambda index: _by_digest(names[index]))
    chosen = np.zeros(len(names), dtype=bool)
    chosen[order[: _share(len(names), fraction)]] = True
    return chosen


def apart(centres: Sequence[Centre], is_test: np.ndarray) -> np.ndarray:
    """Metres from the centre of each held-out image to that of the nearest training image.

    Images without a centre are skipped. Only images in the same coordinate reference system (UTM
    zone) are compared.
    """
    from scipy.spatial import KDTree

    distances: list[float] = []
    by_crs: defaultdict[str, list[int]] = defaultdict(list)
    for index, centre in enumerate(centres):
        if centre is not None:
            by_crs[centre[0]].append(index)
    for members in by_crs.values():
        points = np.array([centre[1:] for i in members if (centre := centres[i])])
        test = is_test[members]
        if test.any() and not test.all():
            distances += KDTree(points[~test]).query(points[test])[0].tolist()
    return np.array(distances)


def _share(count: int, fraction: float) -> int:
    """How many of `count` images of a class are held out."""
    return min(max(round(fraction * count), 1), count - 1) if fraction > 0 else 0


def _of_class(items: Sequence[Item], fraction: float) -> np.ndarray:
    """Which images of a class are held out: by its folders, or else by file names."""
    if not any(item.part for item in items):
        return held_out([item.name for item in items], fraction)
    return np.array([item.is_held_out for item in items])


def _by_list(path: Path, items: Sequence[Item]) -> tuple[np.ndarray, np.ndarray]:
    """Which images a list names, and which of them it holds out.

    A path matches the image with the same folder and file name, whatever its suffix, so that lists
    of EuroSAT's JPEGs also hold for its GeoTIFFs.
    """
    parts: dict[str, bool] = {}
    for name, kind in _listed(path):
        if parts.setdefault(_folder_and_stem(name), kind) != kind:
            raise DataError(f"data.split: {path}: {name} is listed both to train on and held out")
    names = [_folder_and_stem(item.entry) for item in items]
    kinds = [parts.get(name) for name in names]
    for name, count in Counter(names).items():
        if count > 1 and name in parts:
            raise DataError(f"data.split: {path}: several images are called {name}; rename them")
    used = np.array([kind is not None for kind in kinds])
    if not used.any():
        raise DataError(
            f"data.split: {path}: lists no image of this data set, but {next(iter(parts), 'none')} "
            f"where the data set has {names[0]}; give its list"
        )
    return used, np.array([kind is True for kind in kinds])


def _folder_and_stem(path: str) -> str:
    """`Forest/Forest_1` of `2750/Forest/Forest_1.jpg`."""
    folder, _, file = path.replace("\\", "/").rpartition("/")
    return f"{folder.rpartition('/')[2]}/{os.path.splitext(file)[0]}"


def _listed(path: Path) -> Iterator[tuple[str, bool]]:
    """The images of a list, and whether each is held out."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise DataError(f"data.split: {path}: larger than 256 MiB; give a list of images")
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise DataError(f"data.split: {path}: cannot be read ({reason}); check the file") from None
    rows = _of_json(path, text) if path.suffix.lower() == ".json" else _of_csv(path, text)
    for name, part in rows:
        kind = held_out_word(part)
        if kind is None:
            raise DataError(f"data.split: {path}: unknown part {part!r}; use train, val and test")
        yield name, kind


def _of_json(path: Path, text: str) -> Iterator[tuple[str, str]]:
    """The rows of `{"train": [[path, label, class], ...], "val": ...}`; or rows of just a path."""
    wrong = DataError(
        f'data.split: {path}: not a JSON object of lists, {{"train": [[path, label, class], ...], '
        '"val": [...], "test": [...]}'
    )
    try:
        parts: Any = json.loads(text)
    except (ValueError, RecursionError):
        raise wrong from None
    if not isinstance(parts, dict) or not all(isinstance(rows, list) for rows in parts.values()):
        raise wrong
    for part, rows in parts.items():
        for row in rows:
            name = row[0] if isinstance(row, list) and row else row
            if not isinstance(name, str):
                raise wrong
            yield name, part


def _of_csv(path: Path, text: str) -> Iterator[tuple[str, str]]:
    """The rows of a table with the columns `path` and `split`."""
    rows = csv.DictReader(text.splitlines())
    header = {(name or "").strip().casefold(): name for name in rows.fieldnames or ()}
    try:
        name = next(header[column] for column in _PATH if column in header)
        part = next(header[column] for column in _PART if column in header)
        for row in rows:
            yield row[name] or "", row[part] or ""
    except (StopIteration, csv.Error, RuntimeError):
        raise DataError(
            f"data.split: {path}: not a CSV table with the columns `path` and `split` "
            "(Forest/Forest_1.tif,train), nor a .json file"
        ) from None


def _by_blocks(
    config: DataConfig,
    items: Sequence[Item],
    centres: Sequence[Centre],
    broken: Collection[int],
) -> np.ndarray:
    """Hold out whole squares of the map until about `test_fraction` of each class is held out.

    Squares are taken in the order of their SHA-256. A square is held out if most of its images are
    of classes that still need some.
    """
    side = config.blocks
    assert side is not None
    squares: defaultdict[str, list[int]] = defaultdict(list)
    for index, item in enumerate(items):
        if index in broken:
            continue
        if index >= len(centres) or (centre := centres[index]) is None:
            raise DataError(
                f"data.blocks: {item.entry}: no projected coordinates in metres (such as UTM); add "
                "them, or split by data.test_fraction or data.split"
            )
        crs, x, y = centre
        squares[f"{crs} {math.floor(x / side)} {math.floor(y / side)}"].append(index)
    total = Counter(item.class_name for item in items)
    wanted = {name: _share(count, config.test_fraction) for name, count in total.items()}
    is_test = np.zeros(len(items), dtype=bool)
    for square in sorted(squares, key=lambda text: hashlib.sha256(text.encode()).digest()):
        counts = Counter(items[index].class_name for index in squares[square])
        useful = sum(min(count, max(wanted[name], 0)) for name, count in counts.items())
        if 2 * useful > counts.total():
            is_test[squares[square]] = True
            for name, count in counts.items():
                wanted[name] -= count
    if any(_share(count, config.test_fraction) for count in total.values()) and not is_test.any():
        raise DataError(
            f"data.blocks: the images lie in {len(squares)} square(s) of {side:.12g} m, too few to "
            f"hold out {config.test_fraction:g} of them; give smaller blocks"
        )
    return is_test


def _first(
    config: DataConfig, classes: Sequence[str], items: Sequence[Item], training: np.ndarray
) -> np.ndarray:
    """Which training images `data.per_class` keeps, (N,) bool: the last by SHA-256."""
    limits = config.per_class
    assert limits is not None
    for name in limits if isinstance(limits, dict) else ():
        if name not in classes:
            raise DataError(
                f"data.per_class: unknown class {name!r}; known: {', '.join(classes)}"
                f"{did_you_mean(name, classes)}"
            )
    chosen = np.zeros(len(items), dtype=bool)
    for name in classes:
        own = [i for i in np.flatnonzero(training).tolist() if items[i].class_name == name]
        own.sort(key=lambda index: _by_digest(items[index].name), reverse=True)
        limit = limits.get(name) if isinstance(limits, dict) else limits
        chosen[own[:limit]] = True
    return chosen


def _by_digest(name: str) -> tuple[bytes, str]:
    """The sort key of an image: the SHA-256 of its class and file name."""
    label, _, rest = name.partition("/")
    text = f"{label}/{rest.rpartition('/')[2]}"
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest(), name
