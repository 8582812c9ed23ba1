"""Which folders are classes, which split a set, and what is neither."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from image_sets import MAKERS

from qhdm.config import DataConfig
from qhdm.data import load, open_source
from qhdm.data.info import describe
from qhdm.errors import DataError

CLASSES = ("Forest", "River")


def images(*folders: str) -> list[str]:
    """Two images in each folder."""
    return [f"{folder}/{number}.png" for folder in folders for number in range(2)]


def classes(*folders: str) -> list[str]:
    """Two images of each class in each folder."""
    return images(*(f"{folder}/{name}" for folder in folders for name in CLASSES))


@pytest.fixture(params=MAKERS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def make(kind: str, root: Path, names: list[str]) -> DataConfig:
    path = root / ("set" if kind == "folder" else "set.zip")
    return DataConfig(root=str(MAKERS[kind](path, names)), image_size=8)


def refusal(config: DataConfig) -> str:
    messages = set()
    for use in (load, describe):
        with pytest.raises(DataError) as refused:
            use(config)
        messages.add(str(refused.value))
    (message,) = messages
    assert "\n" not in message
    return message


#: Layouts, and how many of each class are for training and held out.
SPLITS = {
    "train, val, test": (classes("train", "val", "test"), 2, 4),
    "train, test": (classes("train", "test"), 2, 2),
    "train, valid": (classes("train", "valid"), 2, 2),
    "Training, Validation": (classes("Training", "Validation"), 2, 2),
    "train, dev": (classes("train", "dev"), 2, 2),
    "Train, TEST": (classes("Train", "TEST"), 2, 2),
    "train2017, val2017": (classes("train2017", "val2017"), 2, 2),
    "wrapped": (classes("Set/train", "Set/test"), 2, 2),
    "wrapped inside": (classes("train/Set", "test/Set"), 2, 2),
    "wrapped by its own name": (classes("seg_train/seg_train", "seg_test/seg_test"), 2, 2),
    "below the classes": (
        images(*(f"{name}/{part}" for name in CLASSES for part in ("train", "test"))),
        2,
        2,
    ),
    "beside stray files": ([*classes("train", "test"), "map.png", "train/overview.png"], 2, 2),
    "with a Mac's files": (
        [*classes("train", "test"), "__MACOSX/train/Forest/._0.png", "val/.DS_Store"],
        2,
        2,
    ),
}


@pytest.mark.parametrize("layout", SPLITS)
def test_the_folders_of_a_split_are_the_split(layout: str, kind: str, tmp_path: Path) -> None:
    names, training, held_out = SPLITS[layout]
    config = make(kind, tmp_path, names)
    dataset = load(config)
    assert dataset.class_names == CLASSES
    train, test = dataset.split("train"), dataset.split("test")
    assert np.bincount(train.labels).tolist() == [training] * 2
    assert np.bincount(test.labels).tolist() == [held_out] * 2
    assert all("train" in name.lower() for name in train.names)
    assert not any("train" in name.lower() for name in test.names)
    assert len({*dataset.names}) == len(dataset)
    assert "split by folders: " in describe(config)


def test_info_shows_the_split_of_the_folders(tmp_path: Path) -> None:
    text = describe(make("folder", tmp_path, classes("train", "val", "test")))
    words = "4 in test (held out), 4 in train (training), 4 in val (held out)"
    assert f"split by folders: {words}" in text
    assert text.splitlines()[4].split() == ["River", "6", "2", "4"]


def test_held_out_images_without_classes_are_left_aside(kind: str, tmp_path: Path) -> None:
    # As contests give them. The training images are then split like those of any set.
    names = [f"train/{name}/{number}.png" for name in CLASSES for number in range(20)]
    config = make(kind, tmp_path, [*names, *images("test")])
    dataset = load(config)
    assert dataset.class_names == CLASSES
    assert len(dataset) == 40
    assert dataset.is_test.sum() == 4
    assert "images outside class folders, ignored: 2" in describe(config)
    plain = make(kind, tmp_path / "plain", [name.removeprefix("train/") for name in names])
    np.testing.assert_array_equal(load(plain).is_test, dataset.is_test)


CLASSES_OF_SUCH_NAMES = {
    "a class called test": images("river", "test"),
    "a class called train": images("bus", "car", "train"),
    "years in each class": images("Forest/2019", "Forest/2020", "River/2019", "River/2020"),
    "one folder in each class": images("Forest/images", "River/images"),
    "kinds of each class": images("land/field", "land/forest", "water/lake", "water/river"),
    "one part alone": classes("train"),
}


@pytest.mark.parametrize("layout", CLASSES_OF_SUCH_NAMES)
def test_classes_may_be_called_so_and_hold_folders(layout: str, kind: str, tmp_path: Path) -> None:
    names = CLASSES_OF_SUCH_NAMES[layout]
    dataset = load(make(kind, tmp_path, names))
    top = 1 if layout == "one part alone" else 0
    assert dataset.class_names == tuple(sorted({name.split("/")[top] for name in names}))
    assert len(dataset) == len(names)


#: Layouts that have no classes where classes should be, what the refusal names, and a folder that
#: it suggests.
REFUSED = {
    "two sets": (classes("EuroSAT", "EuroSATallBands"), "Forest", "EuroSAT"),
    "two sets, wrapped": (classes("Set/EuroSAT", "Set/EuroSATallBands"), "Forest", "Set/EuroSAT"),
    "years of classes": (classes("2019", "2020"), "Forest", "2019"),
    "a copy beside the classes": (
        [*images(*CLASSES), *classes("augmented")],
        "Forest",
        "augmented",
    ),
    "images and labels": (classes("images", "labels"), "labels", "images"),
    "images and masks, flat": (images("Images", "Masks"), "Masks", None),
    "images and masks of a split": (
        images("train/images", "train/masks", "val/images", "val/masks"),
        "masks",
        None,
    ),
    "images and masks of classes": (
        images("Forest/images", "Forest/masks", "River/images", "River/masks"),
        "masks",
        None,
    ),
    "nothing to train on": (classes("test", "val"), "test, val", "test"),
    "a split without classes": (images("train", "test"), "4 image(s)", None),
    "one part without classes": (images("train"), "train", None),
    "a third folder": (classes("train", "test", "extra"), "extra", "train"),
    "a folder of figures": ([*classes("train", "test"), *images("docs")], "docs", "train"),
    "parts among classes": (images("bus", "train", "test"), "test, train", None),
    "a class outside the split": (
        images("Forest/train", "Forest/test", "River"),
        "River/0.png",
        None,
    ),
    "training images without classes": ([*images("train"), *classes("test")], "test", None),
    "a class that is held out": (
        [*classes("train", "test"), *images("test/Lake")],
        "class Lake",
        None,
    ),
}


@pytest.mark.parametrize("layout", REFUSED)
def test_folders_that_are_no_classes_are_refused(layout: str, kind: str, tmp_path: Path) -> None:
    names, what, remedy = REFUSED[layout]
    config = make(kind, tmp_path, names)
    message = refusal(config)
    key = "data.classes" if layout == "a class that is held out" else config.root
    assert message.removeprefix("data.root: ").startswith(f"{key}: ")
    assert what in message
    if remedy is None:
        return
    assert remedy in message
    if kind == "folder":  # the remedy as it stands
        given = f"{config.root}/{remedy}"
        assert f"data.root: {given})" in message
        assert set(load(DataConfig(root=given, image_size=8)).class_names) <= {*CLASSES, remedy}


def test_classes_that_are_named_are_classes(kind: str, tmp_path: Path) -> None:
    names = [f"{name}/{part}" for name in CLASSES for part in ("summer", "winter")]
    config = make(kind, tmp_path, images(*names))
    assert "data.classes" in refusal(config)
    named = DataConfig(root=config.root, image_size=8, classes=CLASSES)
    assert len(load(named)) == 8
    assert "River" in describe(named)


def test_no_names_make_parts_of_a_split_classes(kind: str, tmp_path: Path) -> None:
    # As runs have them that took these for classes.
    config = make(kind, tmp_path, classes("train", "test"))
    named = DataConfig(root=config.root, image_size=8, classes=("test", "train"))
    message = refusal(named)
    assert message.startswith("data.classes: ")
    assert "'test'" in message


def test_other_formats_are_counted_by_name(kind: str, tmp_path: Path) -> None:
    others = ["A/0.jp2", "A/1.JP2", "B/0.jp2", "B/0.npy", "notes.txt", "A/LICENSE", "A/.hidden"]
    config = make(kind, tmp_path / "with", ["A/0.png", "B/0.png", *others])
    with open_source(config.root) as source:
        assert source.others == {".jp2": 3, "": 1, ".npy": 1, ".txt": 1}
    listed = "3 .jp2, 1 without suffix, 1 .npy, 1 .txt"
    assert f"other files, not read: {listed}" in describe(config)
    bare = make(kind, tmp_path / "without", others)
    assert listed in refusal(bare)


def test_many_folders_are_checked_quickly(tmp_path: Path) -> None:
    names = [f"class {number}/part {number}/0.png" for number in range(5000)]
    with open_source(make("zip", tmp_path, names).root) as source:
        assert len(source.class_names) == 5000
