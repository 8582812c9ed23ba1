"""Grids of labelled images, one row per class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from qhdm.files import atomic_path

if TYPE_CHECKING:
    from qhdm.data import Bands, Dataset

_BACKGROUND = (250, 250, 248)
_INK = (38, 38, 38)

# In pixels.
_TILE = 96
_MARGIN = 24
_GAP = 4
_ROW_GAP = 10
_LABEL_GAP = 16
_LABEL_SIZE = 15
_TITLE_SIZE = 21
_TITLE_GAP = 18

#: Most images in a line; longer rows are wrapped.
_COLUMNS = 16


def labelled_grid(
    images: np.ndarray,
    labels: Sequence[int] | np.ndarray,
    class_names: Sequence[str],
    *,
    bands: Bands | None = None,
    scale: int | None = None,
    title: str | None = None,
) -> Image.Image:
    """Images side by side, one row per class that occurs, in the order of the classes.

    Args:
        images: (N, H, W, C) uint8, C being 1 or 3, or levels of bands; N at least 1.
        labels: (N,) indices into `class_names`.
        class_names: labels at the left of each row.
        bands: what the channels are. Each class then has a row for each of their composites, and a
            line at the top says how these show values.
        scale: side of a pixel in the picture; by default, small images are magnified to a height of
            96 pixels.
        title: a line at the top.

    Raises:
        ValueError: the arrays have other shapes, or there is nothing to show.
    """
    note = None
    if bands is not None:
        note = bands.stretch
        images, labels, class_names = _composites(images, labels, class_names, bands)
    if images.ndim != 4 or images.shape[3] not in (1, 3) or not 0 < len(images) == len(labels):
        raise ValueError(
            f"expected images (N, H, W, 1 or 3) and N labels, N > 0; "
            f"got {images.shape} and {len(labels)}"
        )
    tiles = [_magnify(image, scale) for image in images]
    width, height = tiles[0].size
    rows = [(label, np.flatnonzero(np.asarray(labels) == label)) for label in np.unique(labels)]
    columns = min(max(len(members) for _, members in rows), _COLUMNS)

    label_font = ImageFont.load_default(_LABEL_SIZE)
    title_font = ImageFont.load_default(_TITLE_SIZE)
    left = _MARGIN + max(_text_width(class_names[label], label_font) for label, _ in rows)
    left += _LABEL_GAP
    lines_above = [(title, title_font, _TITLE_SIZE), (note, label_font, _LABEL_SIZE)]
    heading = [(text, font, size) for text, font, size in lines_above if text]
    top = _MARGIN + sum(size + _TITLE_GAP for _, _, size in heading)
    lines = sum(-(-len(members) // columns) for _, members in rows)
    content = left + columns * (width + _GAP) - _GAP
    title_end = _MARGIN + max((_text_width(text, font) for text, font, _ in heading), default=0)
    sheet = Image.new(
        "RGB",
        (
            max(content, title_end) + _MARGIN,
            top + lines * (height + _GAP) + (len(rows) - 1) * (_ROW_GAP - _GAP) - _GAP + _MARGIN,
        ),
        _BACKGROUND,
    )
    draw = ImageDraw.Draw(sheet)
    line = _MARGIN
    for text, font, size in heading:
        draw.text((_MARGIN, line), text, _INK, font, anchor="lt")
        line += size + _TITLE_GAP
    for label, members in rows:
        middle = (left - _LABEL_GAP, top + height // 2)
        draw.text(middle, class_names[label], _INK, label_font, anchor="rm")
        for start in range(0, len(members), columns):
            for column, member in enumerate(members[start : start + columns]):
                sheet.paste(tiles[member], (left + column * (width + _GAP), top))
            top += height + _GAP
        top += _ROW_GAP - _GAP
    return sheet


def contact_sheet(dataset: Dataset, *, per_class: int = 10) -> Image.Image:
    """Examples of each class, evenly spread over its images.

    Args:
        dataset: with at least one image.
        per_class: images of each class, or all where there are fewer.
    """
    chosen: list[int] = []
    for label in np.unique(dataset.labels):
        members = np.flatnonzero(dataset.labels == label)
        places = np.linspace(0, len(members) - 1, min(per_class, len(members)))
        chosen += members[places.round().astype(int)].tolist()
    return labelled_grid(
        dataset.images[chosen],
        dataset.labels[chosen],
        dataset.class_names,
        bands=dataset.bands,
        title=f"{dataset.name}: {len(dataset)} images, {len(dataset.class_names)} classes",
    )


def save_png(image: Image.Image, path: Path) -> None:
    """Write `image` to `path` atomically."""
    with atomic_path(path) as temporary:
        image.save(temporary, format="PNG")


def to_picture(image: np.ndarray, bands: Bands | None = None, view: int = 0) -> Image.Image:
    """An image (H, W, 1 or 3) uint8, or one of the composites of bands, as a picture."""
    if bands is not None:
        image = bands.composite(image, view)
    return Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)


def _composites(
    images: np.ndarray, labels: Sequence[int] | np.ndarray, names: Sequence[str], bands: Bands
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Each image once in each composite of its bands, of a class for each of these."""
    kinds = [name.partition(" (")[0] for name in bands.composites]
    shown = np.concatenate([bands.composite(images, view) for view in range(len(kinds))])
    rows = len(kinds) * np.asarray(labels) + np.arange(len(kinds))[:, None]
    return shown, rows.ravel(), [f"{name}, {kind}" for name in names for kind in kinds]


def _magnify(image: np.ndarray, scale: int | None) -> Image.Image:
    tile = to_picture(image)
    height = tile.height * scale if scale else max(tile.height, _TILE)
    # Multiples other than whole ones would be uneven without smoothing.
    whole = height % tile.height == 0
    method = Image.Resampling.NEAREST if whole else Image.Resampling.BICUBIC
    return tile.resize((round(tile.width * height / tile.height), height), method)


def _text_width(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> int:
    return int(np.ceil(font.getlength(text)))
