"""Grids of labelled images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qhdm.config import DataConfig
from qhdm.data import load
from qhdm.pictures import contact_sheet, labelled_grid, save_png, to_picture

CLASSES = ("Forest", "Lake", "River")
MARGIN = 24
COLOURS = np.array([(200, 10, 10), (10, 200, 10), (10, 10, 200), (90, 90, 200)], dtype=np.uint8)


def flat(colours: np.ndarray, side: int = 8) -> np.ndarray:
    return np.broadcast_to(colours[:, None, None], (len(colours), side, side, colours.shape[1]))


def box(picture: Image.Image, colour: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of the pixels of one colour, all of which it must fill."""
    found = (np.asarray(picture.convert("RGB")) == colour).all(axis=2)
    ys, xs = np.nonzero(found)
    left, top, right, bottom = xs.min(), ys.min(), xs.max() + 1, ys.max() + 1
    assert found[top:bottom, left:right].all()
    return left, top, right, bottom


def test_one_row_per_class_that_occurs_in_the_order_of_the_classes() -> None:
    picture = labelled_grid(flat(COLOURS), [2, 0, 2, 0], CLASSES)
    boxes = [box(picture, tuple(colour)) for colour in COLOURS.tolist()]
    assert all(right - left == bottom - top == 96 for left, top, right, bottom in boxes)
    tops = [top for _, top, _, _ in boxes]
    lefts = [left for left, _, _, _ in boxes]
    assert tops[1] == tops[3] < tops[0] == tops[2]
    assert lefts[0] == lefts[1] < lefts[2] == lefts[3]
    assert picture.height < 3 * 96


def test_every_row_has_its_name_at_the_left() -> None:
    picture = labelled_grid(flat(COLOURS[:2]), [0, 1], CLASSES)
    pixels = np.asarray(picture.convert("L"))
    for colour in COLOURS[:2].tolist():
        left, top, _, bottom = box(picture, tuple(colour))
        assert (pixels[top:bottom, :left] < 100).any()


def test_pixels_are_shown_as_squares() -> None:
    image = np.random.default_rng(0).integers(180, size=(1, 5, 5, 3), dtype=np.uint8)
    picture = labelled_grid(image, [0], CLASSES, scale=7)
    shown = np.repeat(np.repeat(image[0], 7, axis=0), 7, axis=1)
    pixels = np.asarray(picture)[MARGIN:-MARGIN, -MARGIN - 35 : -MARGIN]
    np.testing.assert_array_equal(pixels, shown)


def test_grey_and_large_images() -> None:
    grey = np.full((1, 120, 120, 1), 77, dtype=np.uint8)
    pixels = np.asarray(labelled_grid(grey, [1], CLASSES))
    assert (pixels[MARGIN:-MARGIN, -MARGIN - 120 : -MARGIN] == 77).all()
    assert len(pixels) == 120 + 2 * MARGIN


def test_long_rows_go_on_below() -> None:
    picture = labelled_grid(flat(np.repeat(COLOURS[:1], 100, axis=0)), [0] * 100, CLASSES)
    assert picture.width < 20 * 100
    assert picture.height > 6 * 96


def test_a_title_takes_its_room() -> None:
    images = flat(COLOURS[:1])
    plain = labelled_grid(images, [0], CLASSES)
    titled = labelled_grid(images, [0], CLASSES, title="A title that is wider than one image")
    assert titled.height > plain.height
    assert titled.width > plain.width


@pytest.mark.parametrize("shape", [(0, 8, 8, 3), (1, 8, 8), (1, 8, 8, 2), (2, 8, 8, 3)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected images"):
        labelled_grid(np.zeros(shape, np.uint8), [0] * min(shape[0], 1), CLASSES)


def test_contact_sheet_shows_each_class_evenly() -> None:
    dataset = load(DataConfig(root="bundled"))
    few = contact_sheet(dataset, per_class=3)
    all_of_them = contact_sheet(dataset, per_class=100)
    assert few.height == all_of_them.height > 10 * 96
    assert few.width < all_of_them.width


def test_pictures_are_saved_whole(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(256, size=(9, 9, 3), dtype=np.uint8)
    path = tmp_path / "new" / "picture.png"
    save_png(to_picture(image), path)
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        np.testing.assert_array_equal(np.asarray(picture), image)
    assert list(path.parent.iterdir()) == [path]
