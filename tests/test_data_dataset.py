"""Data sets in memory: labels, the split, broken images."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from qhdm.config import DataConfig
from qhdm.data import EUROSAT_CLASSES, Dataset, class_names, held_out, load
from qhdm.errors import DataError

BUNDLED = DataConfig(root="bundled", image_size=16)


def make_set(root: Path, counts: dict[str, int]) -> DataConfig:
    """A folder whose images are flat, with their number in the class as grey value."""
    for name, count in counts.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            Image.new("L", (8, 8), number).save(root / name / f"{name}_{number}.png")
    return DataConfig(root=str(root), image_size=8, channels=1, test_fraction=0.2)


def test_bundled_patches_are_decoded_and_labelled() -> None:
    dataset = load(DataConfig(root="bundled"))
    assert dataset.images.shape == (103, 64, 64, 3)
    assert dataset.images.dtype == np.uint8
    assert dataset.labels.dtype == np.int64
    assert dataset.class_names == EUROSAT_CLASSES
    for name, label in zip(dataset.names, dataset.labels, strict=True):
        assert name.startswith(f"{EUROSAT_CLASSES[label]}/")
    assert dataset.skipped == ()


def test_images_stay_with_their_names(tmp_path: Path) -> None:
    dataset = load(make_set(tmp_path, {"Forest": 20, "River": 3}))
    numbers = [int(Path(name).stem.rpartition("_")[2]) for name in dataset.names]
    assert dataset.images[:, 0, 0, 0].tolist() == numbers


def test_classes_choose_and_order_the_labels() -> None:
    chosen = dataclasses.replace(BUNDLED, classes=("River", "Forest"))
    dataset = load(chosen)
    assert dataset.class_names == class_names(chosen) == ("River", "Forest")
    assert len(dataset) == 22
    assert {name.split("/")[0] for name in dataset.split("all").names} == {"River", "Forest"}
    assert all(
        name.startswith("River/") == (label == 0)
        for name, label in zip(dataset.names, dataset.labels, strict=True)
    )


def test_unknown_classes_are_refused_with_a_guess() -> None:
    for use in (load, class_names):
        with pytest.raises(DataError, match=r"data\.classes: .*'Forrest'.*\bForest\b"):
            use(dataclasses.replace(BUNDLED, classes=("Forrest",)))


def test_class_names_without_the_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QHDM_DATA", str(tmp_path))
    assert class_names(DataConfig(root="eurosat")) == EUROSAT_CLASSES
    assert class_names(DataConfig(root="eurosat", classes=("River",))) == ("River",)
    with pytest.raises(DataError, match=r"^data\.classes: .*'Sea'"):
        class_names(DataConfig(root="eurosat", classes=("Sea",)))
    absent = str(tmp_path / "none")
    assert class_names(DataConfig(root=absent, classes=("Moor", "Bog"))) == ("Moor", "Bog")
    with pytest.raises(DataError, match=rf"^data\.root: {absent}: "):
        class_names(DataConfig(root=absent))


def split_of(dataset: Dataset) -> dict[str, bool]:
    return dict(zip(dataset.names, dataset.is_test.tolist(), strict=True))


def test_the_split_is_that_of_the_names_wherever_they_lie(tmp_path: Path) -> None:
    folder = make_set(tmp_path / "set", {"Forest": 30, "River": 12})
    splits = [split_of(load(folder))]
    for prefix in ("", "Top/", "A/B/"):
        path = tmp_path / f"{len(splits)}.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for file in sorted((tmp_path / "set").rglob("*.png"), reverse=True):
                archive.write(file, prefix + str(file.relative_to(tmp_path / "set")))
        splits.append(split_of(load(dataclasses.replace(folder, root=str(path)))))
    assert splits[0] == splits[1] == splits[2] == splits[3]


def test_the_split_of_a_class_does_not_see_other_classes(tmp_path: Path) -> None:
    config = make_set(tmp_path, {"Forest": 30, "River": 12})
    before = split_of(load(config))
    make_set(tmp_path, {"River": 40, "Alp": 9})
    after = split_of(load(config))
    assert {k: v for k, v in after.items() if k.startswith("Forest/")} == {
        k: v for k, v in before.items() if k.startswith("Forest/")
    }


def test_the_split_is_stratified_and_its_parts_are_disjoint(tmp_path: Path) -> None:
    dataset = load(make_set(tmp_path, {"Forest": 30, "River": 10, "Alp": 2, "Moor": 1}))
    train, test = dataset.split("train"), dataset.split("test")
    assert dict(zip(dataset.class_names, np.bincount(test.labels, minlength=4), strict=True)) == {
        "Alp": 1,
        "Forest": 6,
        "Moor": 0,
        "River": 2,
    }
    assert sorted(train.names + test.names) == sorted(dataset.names)
    assert test.is_test.all()
    assert not train.is_test.any()
    assert len(train.images) == len(train.labels) == len(train.names) == len(train)
    assert dataset.split("all") is dataset


def test_the_split_of_the_bundled_patches_never_changes() -> None:
    # Published models name their test images by this rule.
    assert load(BUNDLED).split("test").names == (
        "AnnualCrop/AnnualCrop_6.jpg",
        "Forest/Forest_55.jpg",
        "HerbaceousVegetation/HerbaceousVegetation_15.jpg",
        "Highway/Highway_3.jpg",
        "Industrial/Industrial_15.jpg",
        "Pasture/Pasture_19.jpg",
        "PermanentCrop/PermanentCrop_30.jpg",
        "Residential/Residential_4.jpg",
        "River/River_11.jpg",
        "SeaLake/SeaLake_4.jpg",
    )


@given(count=st.integers(0, 60), fraction=st.floats(0, 0.999))
def test_held_out_counts(count: int, fraction: float) -> None:
    chosen = held_out([f"Forest/{number}.jpg" for number in range(count)], fraction)
    assert chosen.shape == (count,)
    assert chosen.sum() <= max(count - 1, 0)
    if fraction == 0 or count < 2:
        assert not chosen.any()
    else:
        assert abs(chosen.sum() - fraction * count) <= 0.5 or chosen.sum() in (1, count - 1)


@given(fractions=st.tuples(st.floats(0, 0.999), st.floats(0, 0.999)))
def test_a_larger_test_part_contains_the_smaller(fractions: tuple[float, float]) -> None:
    names = [f"Forest/{number}.jpg" for number in range(40)]
    small, large = (held_out(names, fraction) for fraction in sorted(fractions))
    assert (small <= large).all()


def test_held_out_goes_by_file_names_alone() -> None:
    names = [f"Forest/{number}.jpg" for number in range(40)]
    chosen = {names[index] for index in np.flatnonzero(held_out(names, 0.25))}
    backwards = names[::-1]
    assert chosen == {backwards[index] for index in np.flatnonzero(held_out(backwards, 0.25))}
    deeper = [name.replace("Forest/", "Forest/2019/") for name in names]
    np.testing.assert_array_equal(held_out(deeper, 0.25), held_out(names, 0.25))


def break_image(config: DataConfig, name: str) -> None:
    path = Path(config.root) / name
    path.write_bytes(path.read_bytes()[:40])


def test_broken_images_are_refused_by_name(tmp_path: Path) -> None:
    config = make_set(tmp_path, {"Forest": 5})
    break_image(config, "Forest/Forest_3.png")
    with pytest.raises(DataError, match=rf"^{tmp_path}/Forest/Forest_3\.png: .*data\.skip_broken"):
        load(config)


def test_skipped_images_are_counted_and_move_no_other(tmp_path: Path) -> None:
    config = make_set(tmp_path, {"Forest": 20, "River": 10})
    whole = split_of(load(config))
    broken = ("Forest/Forest_3.png", "River/River_0.png")
    for name in broken:
        break_image(config, name)
    dataset = load(dataclasses.replace(config, skip_broken=True))
    assert dataset.skipped == broken
    assert len(dataset.images) == len(dataset) == 28
    assert split_of(dataset) == {k: v for k, v in whole.items() if k not in broken}
    assert dataset.split("train").skipped == broken


def test_a_class_without_readable_images_is_refused(tmp_path: Path) -> None:
    config = make_set(tmp_path, {"Forest": 5, "River": 1})
    break_image(config, "River/River_0.png")
    with pytest.raises(DataError, match=r"class River .*data\.classes"):
        load(dataclasses.replace(config, skip_broken=True))


def test_wrong_channels_are_not_taken_for_broken_images() -> None:
    with pytest.raises(DataError, match=r"^data\.channels: 4 "):
        load(dataclasses.replace(BUNDLED, channels=4, skip_broken=True))


def test_sets_beyond_the_memory_are_refused(tmp_path: Path) -> None:
    make_set(tmp_path, {"Forest": 100})
    code = f"""
import resource
from qhdm.config import DataConfig
from qhdm.data import load
from qhdm.errors import DataError

resource.setrlimit(resource.RLIMIT_AS, (2**32, 2**32))
try:
    load(DataConfig(root={str(tmp_path)!r}, image_size=4096))
except DataError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("data.image_size: ")
    assert "4.7 GiB" in done.stdout


def test_neither_torch_nor_requests_is_needed() -> None:
    code = "import sys, qhdm.data.info, qhdm.pictures; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "qiskit", "requests"} & set(done.stdout.split())
