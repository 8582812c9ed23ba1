"""Real and generated images side by side, one row per class.

    qhdm sample RUN --num 4 --out generated
    python benchmarks/gallery.py DATA generated --out docs/samples.png

The first four held-out images of each class of DATA, and the first four of each IMAGES, 64 pixels
high or more. All are class folders, or zips of them. Values are rounded to multiples of four, which
makes the file smaller by a third.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from qhdm import data
from qhdm.config import DataConfig
from qhdm.data import Dataset
from qhdm.pictures import labelled_grid, save_png


def first(dataset: Dataset, count: int) -> np.ndarray:
    """Places of the first images of each class."""
    members = (np.flatnonzero(dataset.labels == label) for label in np.unique(dataset.labels))
    return np.concatenate([places[:count] for places in members])


def gallery(datasets: Sequence[tuple[str, Dataset]], count: int) -> Image.Image:
    """`count` images a class of each under its title, with the names of the classes at the left."""
    sheets = []
    for title, dataset in datasets:
        names = [""] * len(dataset.class_names) if sheets else dataset.class_names
        chosen = first(dataset, count)
        images, labels = dataset.images[chosen], dataset.labels[chosen]
        scale = max(1, 64 // images.shape[1])
        sheets.append(labelled_grid(images, labels, names, scale=scale, title=title))
    whole = Image.new("RGB", (sum(s.width for s in sheets), max(s.height for s in sheets)))
    left = 0
    for sheet in sheets:
        whole.paste(sheet, (left, 0))
        left += sheet.width
    return whole.point(lambda value: min(round(value / 4) * 4, 255))


def beside_real(root: str, folders: Sequence[str], *, size: int, count: int) -> Image.Image:
    """The picture of held-out images of `root` and of the images in `folders`."""
    real = data.load(DataConfig(root=root, image_size=size))
    datasets = [("real, held out", real.split("test"))]
    for folder in folders:
        made = DataConfig(root=folder, image_size=size, classes=real.class_names, test_fraction=0)
        datasets.append((Path(folder).stem, data.load(made)))
    return gallery(datasets, count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", metavar="DATA", help="real images: class folders, or a zip of them")
    parser.add_argument(
        "images", metavar="IMAGES", nargs="+", help="generated ones, whose folder is their title"
    )
    parser.add_argument("--size", type=int, default=64, help="of the images, in pixels")
    parser.add_argument("--count", type=int, default=4, help="images of each class on each side")
    parser.add_argument("--out", type=Path, default=Path("gallery.png"))
    arguments = parser.parse_args()
    size, count = arguments.size, arguments.count
    picture = beside_real(arguments.data, arguments.images, size=size, count=count)
    save_png(picture, arguments.out)


if __name__ == "__main__":
    main()
