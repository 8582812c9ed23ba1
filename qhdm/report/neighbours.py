"""Generated images above the training images nearest to them: whether a model copies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from qhdm.metrics.groups import Neighbours
from qhdm.pictures import labelled_grid, save_png


def save_neighbours(pairs: Neighbours, class_names: Sequence[str], path: Path) -> None:
    """Write a PNG with two rows for each class, nearest pairs first.

    Args:
        pairs: the images; at least one pair.
        class_names: of the labels.
        path: the file.
    """
    rows = [row for name in class_names for row in (f"{name}, generated", "nearest in training")]
    images = np.concatenate([pairs.generated, pairs.real])
    labels = np.concatenate([2 * pairs.labels, 2 * pairs.labels + 1])
    title = "generated images and the training images nearest to them"
    save_png(labelled_grid(images, labels, rows, title=title), path)
