"""What a data set holds, as plain text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from qhdm.config import DataConfig
from qhdm.data.dataset import read_images, select
from qhdm.data.source import Item, open_source
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
    with open_source(config.root, classes=config.classes) as source:
        classes, items, is_test = select(config, source)

        stored, kinds, faults = SetValues(), Counter[str](), []
        parts: Counter[tuple[str, str]] = Counter()
        for item, held, image in zip(
            items,
            is_test,
            read_images(
                source, items, config, skip_broken=True, progress=progress, all_values=True
            ),
            strict=True,
        ):
            if isinstance(image, DataError):
                part = "broken"
                faults.append(image)
            else:
                part = "test" if held else "train"
                assert image.values is not None
                stored.add(image.values)
                kinds[image.kind] += 1
            parts[item.class_name, "images"] += 1
            parts[item.class_name, part] += 1
    columns = ["images", "train", "test", *(["broken"] if faults else [])]
    rows = [(name, [parts[name, column] for column in columns]) for name in classes]
    totals = [sum(counts) for counts in zip(*(counts for _, counts in rows), strict=True)]
    plural = "" if len(classes) == 1 else "es"
    lines = [
        f"{source.name}: {len(items)} images in {len(classes)} class{plural} ({source.path})",
        "",
        *_table(columns, [*rows, ("total", totals)]),
        "",
        f"stored as: {_kinds(kinds)}",
        *_values(stored, config, str(source.path)),
        *_split(items),
    ]
    if source.ignored:
        lines.append(f"images outside class folders, ignored: {source.ignored}")
    if source.others:
        lines.append(f"other files, not read: {source.not_read}")
    if source.links:
        lines.append(f"links to folders or out of the set, not followed: {source.links}")
    if faults:
        lines.append(f"broken images: {len(faults)}")
        lines += [f"  {fault}" for fault in faults[:_SHOWN]]
        if len(faults) > _SHOWN:
            lines.append(f"  and {len(faults) - _SHOWN} more")
    return "\n".join(lines)


def _values(stored: SetValues, config: DataConfig, place: str) -> list[str]:
    """The values that occur, by type, and what they need."""
    lines = [f"values: {text}"] if (text := str(stored)) else []
    if config.range is not None:
        low, high = config.range
        lines.append(f"data.range: {low:g} becomes black, {high:g} white (8 bits stay as they are)")
    try:
        stored.check(config.range, place)
    except DataError as error:
        lines.append(str(error))
    return lines


def _split(items: Sequence[Item]) -> list[str]:
    """The images in each folder of the split, where the set has these."""
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
