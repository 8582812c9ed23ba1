"""What a data set holds, as plain text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from qhdm.config import DataConfig
from qhdm.data.bands import MEASURED, evenly, scaled_bands
from qhdm.data.cache import cached
from qhdm.data.dataset import picture_range, read_images, select, with_names
from qhdm.data.source import Item, Source, open_source
from qhdm.data.splits import apart, split
from qhdm.data.values import SetValues
from qhdm.errors import DataError

_SHOWN = 5


def describe(config: DataConfig, *, progress: bool = False) -> str:
    """A table of a data set: images, train and test per class, sizes, values, what is unusable.

    Every image is decoded, so that what `load` would refuse is listed here.

    Args:
        config: the set; `skip_broken` makes no difference.
        progress: show a bar on stderr, where that is a terminal.

    Raises:
        DataError: the set is absent or malformed. Broken images are reported in the text.
    """
    with open_source(config.root, classes=config.classes, bands=config.bands is not None) as source:
        classes, items = select(config, source)
        read = _bands if config.bands is not None else _pictures
        faults, used, is_test, about = read(config, source, classes, items, progress)
    parts: Counter[tuple[str, str]] = Counter()
    for index, item in enumerate(items):
        part = "test" if is_test[index] else "train"
        parts[item.class_name, "images"] += 1
        if index in faults or not used[index]:
            part = "broken" if index in faults else "left out"
        parts[item.class_name, part] += 1
    optional = [name for name in ("left out", "broken") if any(part == name for _, part in parts)]
    columns = ["images", "train", "test", *optional]
    rows = [(name, [parts[name, column] for column in columns]) for name in classes]
    totals = [sum(counts) for counts in zip(*(counts for _, counts in rows), strict=True)]
    plural = "" if len(classes) == 1 else "es"
    lines = [
        f"{source.name}: {len(items)} images in {len(classes)} class{plural} ({source.path})",
        "",
        *_table(columns, [*rows, ("total", totals)]),
        "",
        *about,
        *_split(config, items),
    ]
    if source.ignored:
        lines.append(f"images outside class folders, ignored: {source.ignored}")
    if source.others:
        lines.append(f"other files, not read: {source.not_read}")
    if source.links:
        lines.append(f"links to folders or out of the set, not followed: {source.links}")
    if faults:
        lines.append(f"broken images: {len(faults)}")
        lines += [f"  {fault}" for fault in list(faults.values())[:_SHOWN]]
        if len(faults) > _SHOWN:
            lines.append(f"  and {len(faults) - _SHOWN} more")
    return "\n".join(lines)


#: Faults by index, which images are used and held out, and lines about the values.
_Contents = tuple[Mapping[int, DataError], np.ndarray, np.ndarray, list[str]]


def _pictures(
    config: DataConfig,
    source: Source,
    classes: Sequence[str],
    items: Sequence[Item],
    progress: bool,
) -> _Contents:
    used, is_test = split(config, classes, items)
    stored, kinds, faults = SetValues(), Counter[str](), {}
    for index, image in enumerate(
        read_images(source, items, config, skip_broken=True, progress=progress, all_values=True)
    ):
        if isinstance(image, DataError):
            faults[index] = image
        else:
            assert image.values is not None
            stored.add(image.values)
            kinds[image.kind] += 1
    about = [f"stored as: {_kinds(kinds)}", *_values(stored, config, str(source.path))]
    return faults, used, is_test, about


def _bands(
    config: DataConfig,
    source: Source,
    classes: Sequence[str],
    items: Sequence[Item],
    progress: bool,
) -> _Contents:
    config = with_names(config, source, items)
    cache = cached(source, items, config, progress=progress)
    used, is_test = split(config, classes, items, cache.centres, cache.faults)
    about = [f"stored as: {_kinds(cache.kinds)}"]
    scale, problem = None, []
    try:
        training = cache.readable(used & ~is_test)
        scale = scaled_bands(config, cache.values, training, str(source.path))
    except DataError as error:
        problem = [str(error)]
    assert config.bands is not None
    whole = cache.readable(used)
    rows = evenly(whole, MEASURED)
    if len(rows) < len(whole):
        about.append(f"values of {len(rows)} evenly spread images:")
    for number, name in enumerate(scale.names if scale else map(str, config.bands)):
        values = cache.values[rows, :, :, number]
        low, median, high = np.percentile(values, (2, 50, 98))
        line = (
            f"band {name.removeprefix('band ')}: {values.min():g} to {values.max():g}, "
            f"2% {low:g}, median {median:g}, 98% {high:g}"
        )
        if scale is not None:
            line += f"; range {scale.low[number]:g} to {scale.high[number]:g}"
        about.append(line)
    about += problem
    if len(distances := apart([cache.centres[i] for i in whole], is_test[whole]) / 1000):
        about.append(
            f"distance of {len(distances)} held-out images to the nearest training image, centre "
            f"to centre: at least {distances.min():.1f} km, median {np.median(distances):.1f} km"
        )
    return cache.faults, used, is_test, about


def _values(stored: SetValues, config: DataConfig, place: str) -> list[str]:
    """The values that occur, by type, and what they need."""
    lines = [f"values: {text}"] if (text := str(stored)) else []
    if (given := picture_range(config)) is not None:
        low, high = given
        lines.append(f"data.range: {low:g} becomes black, {high:g} white (8 bits stay as they are)")
    try:
        stored.check(given, place)
    except DataError as error:
        lines.append(str(error))
    return lines


def _split(config: DataConfig, items: Sequence[Item]) -> list[str]:
    """How the set is split, where that is not by file names."""
    if config.split is not None:
        return [f"split by the list {config.split}"]
    if config.blocks is not None:
        return [f"split by blocks of {config.blocks:g} m"]
    counts = Counter((item.part, item.is_held_out) for item in items if item.part)
    words = [
        f"{count} in {part} ({'held out' if held else 'training'})"
        for (part, held), count in sorted(counts.items())
    ]
    return [f"split by folders: {', '.join(words)}"] if words else []


def _kinds(kinds: Counter[str]) -> str:
    """The sizes and modes that occur, most frequent first."""
    counts = kinds.most_common()
    text = ", ".join(f"{kind}: {count}" for kind, count in counts[:_SHOWN])
    if len(counts) > _SHOWN:
        text += f", and {len(counts) - _SHOWN} more kinds"
    return text or "nothing that can be read"


def _table(columns: list[str], rows: list[tuple[str, list[int]]]) -> list[str]:
    width = max(len(name) for name, _ in rows)
    lines = [" " * width + "".join(f"{column:>8}" for column in columns)]
    lines += [f"{name:<{width}}" + "".join(f"{count:>8}" for count in row) for name, row in rows]
    return lines
