"""`qhdm augment`: what is rejected, what is chosen, and what is written."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import Cli, Done
from PIL import Image

from qhdm import console, data
from qhdm.augmentation import AugmentSettings, augment, choice, read_augmentation
from qhdm.augmentation.candidates import Judged
from qhdm.augmentation.choice import CrossValidation, choose, effects, first_of_each, folds_of
from qhdm.config import DataConfig
from qhdm.data import Dataset
from qhdm.errors import DataError, EvaluationError
from qhdm.metrics.classifier import ClassifierSettings
from qhdm.runs.directory import RunDirectory

CLASSES = ("Forest", "SeaLake")


SMALL = ClassifierSettings(resolution=8, width=8, dim=8, steps=40, batch_size=32, lr=0.02)


@pytest.fixture(autouse=True)
def small_classifiers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "RETRAINED", dataclasses.replace(SMALL, steps=2))


@pytest.fixture
def able_classifiers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "RETRAINED", SMALL)


def noisy_set(per_class: int, seed: int, *, swapped: bool = False) -> Dataset:
    """Two classes of noise that differ slightly in colour."""
    rng = np.random.default_rng(seed)
    labels = np.repeat([0, 1], per_class)
    shift = 3 * np.where(labels == 0, 1, -1)[:, None, None, None] * np.array([1, 0, -1])
    images = (128 + shift + 60 * rng.standard_normal((len(labels), 8, 8, 3))).clip(0, 255)
    return Dataset(
        name="noise",
        class_names=CLASSES,
        images=images.astype(np.uint8),
        labels=1 - labels if swapped else labels,
        names=tuple(f"{CLASSES[label]}/{i}" for i, label in enumerate(labels)),
        is_test=np.zeros(len(labels), dtype=bool),
        skipped=(),
    )


def chosen_of(candidates: Dataset) -> choice.Choice:
    with console.bar(total=1, show=False) as bar:
        return choose(
            CrossValidation(
                noisy_set(20, seed=1), candidates, seed=0, device=torch.device("cpu"), bar=bar
            )
        )


def test_folds_have_equal_shares_of_each_class() -> None:
    labels = np.repeat([0, 1, 2], (5, 11, 30))
    folds = folds_of(labels, seed=3)
    for label in range(3):
        shares = np.bincount(folds[labels == label], minlength=choice.FOLDS)
        assert shares.max() - shares.min() <= 1
    assert (folds != folds_of(labels, seed=4)).any()


def test_the_first_usable_images_of_each_class() -> None:
    labels = np.array([0, 1, 0, 1, 0, 1])
    usable = np.array([False, True, True, True, True, True])
    assert np.flatnonzero(first_of_each(labels, usable, (1, 2))).tolist() == [1, 2, 3]


def test_the_effects_of_classes_add_up_to_the_gain() -> None:
    """Of three images, the first is recognised by half of the views more, the second confused."""
    labels = np.array([0, 1, 2])
    alone = np.array([[0.5, 0.5, 0], [0, 1, 0], [0, 0, 1]])
    more = np.array([[1.0, 0, 0], [0, 0, 1], [0, 0, 1]])
    of_class, errors = effects(labels, alone, more)
    np.testing.assert_allclose(of_class, [0.25 / 3, 0.25 / 3 - 0.5 / 3, -0.5 / 3])
    assert of_class.sum() == pytest.approx((0.5 - 1) / 3)
    assert (errors > 0).all()


def test_unlike_images_copies_and_duplicates_are_found() -> None:
    real = np.random.default_rng(0).standard_normal((10, 4))
    far = real[:3] + 50
    judged = Judged(
        real_labels=np.zeros(10, dtype=int),
        labels=np.zeros(5, dtype=int),
        real_scores=np.linspace(0.1, 1, 10),
        scores=np.array([[0.05, 0.5, 0.5, 0.5, 0.5]]),
        real_features=real,
        features=np.concatenate([far, real[4:5] + 1e-6, far[1:2] + 1e-6]),
    )
    assert judged.like(judged.scores).tolist() == [[False, True, True, True, True]]
    copies, duplicates = judged.copies_and_duplicates()
    assert copies.tolist() == [False, False, False, True, False]
    assert duplicates.tolist() == [False, False, False, False, True]


def test_real_images_that_are_there_twice_do_not_hide_copies() -> None:
    real = np.random.default_rng(0).standard_normal((10, 4))
    real[9] = real[8]
    judged = Judged(
        real_labels=np.zeros(10, dtype=int),
        labels=np.zeros(4, dtype=int),
        real_scores=np.ones(10),
        scores=np.ones((1, 4)),
        real_features=real,
        features=np.concatenate([real[8:9], real[:1] + 1e-6, real[:2] + 50]),
    )
    copies, duplicates = judged.copies_and_duplicates()
    assert copies.tolist() == [True, True, False, False]
    assert not duplicates.any()
    alike = dataclasses.replace(judged, real_features=np.zeros((10, 4)), features=np.zeros((4, 4)))
    assert alike.copies_and_duplicates()[0].all()


@pytest.mark.usefixtures("able_classifiers")
def test_images_that_help_are_chosen() -> None:
    good = chosen_of(noisy_set(200, seed=2))
    assert min(good.counts) > 0
    assert good.best.lower > 0
    assert good.best in good.trials


@pytest.mark.usefixtures("able_classifiers")
def test_images_of_the_wrong_class_are_not_chosen() -> None:
    bad = chosen_of(noisy_set(200, seed=2, swapped=True))
    assert bad.counts == (0, 0)
    assert all(trial.lower <= 0 for trial in bad.trials)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six bundled patches of each of two classes."""
    folder = tmp_path_factory.mktemp("real")
    whole = data.load(DataConfig(root="bundled", image_size=16, classes=CLASSES))
    for label, name in enumerate(CLASSES):
        (folder / name).mkdir()
        for number, image in enumerate(whole.images[whole.labels == label][:6]):
            Image.fromarray(image).save(folder / name / f"{number}.png")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_the_command(cli: Cli, tiny_run: Path, real: Path, tmp_path: Path) -> None:
    request = ("augment", real, "--run", tiny_run, "--num", 3, "--steps", 1, "--seed", 5)
    done = cli(*request, "--out", tmp_path / "a")
    assert done.returncode == 0, done.stderr
    record = read_augmentation(tmp_path / "a")
    assert [own.class_name for own in record.classes] == list(CLASSES)
    for own in record.classes:
        assert (own.real, own.sampled) == (6, 3)
        assert own.unlike + own.copies + own.duplicates + own.chosen <= own.sampled
        names = {f"{own.class_name}_{number:05d}.png" for number in own.numbers}
        assert {path.name for path in (tmp_path / "a" / own.class_name).iterdir()} == names
        assert own.class_name in done.stdout
    assert record.generated.seed == record.seed == 5
    with Image.open(tmp_path / "a" / "augment.png") as picture:
        assert picture.height > 100
    assert cli(*request, "--out", tmp_path / "b").returncode == 0
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}


def test_files_are_the_images_of_sample(
    cli: Cli, tiny_run: Path, real: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that is sampled is chosen, if a gain of any size is enough."""
    monkeypatch.setattr(choice.Trial, "lower", property(lambda trial: 1.0))
    settings = AugmentSettings(num=2, steps=1)
    record = augment(real, tiny_run, tmp_path / "out", settings)
    sample = ("sample", tiny_run, "--num", 2, "--steps", 1, "--batch", 25)
    assert cli(*sample, "--out", tmp_path / "all", "--grid", tmp_path / "g.png").returncode == 0
    assert sum(record.chosen.values()) > 0
    for path in (tmp_path / "out").glob("*/*.png"):
        same = tmp_path / "all" / path.relative_to(tmp_path / "out")
        assert np.abs(pixels(path) - pixels(same)).max() <= 1  # batches of other sizes


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture).astype(int)


def refused(done: Done, *words: str) -> None:
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in last


def test_refusals(cli: Cli, tiny_run: Path, real: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    request = ("--run", tiny_run, "--out", out, "--num", 1, "--steps", 1)

    unknown = shutil.copytree(real, tmp_path / "unknown")
    (unknown / "SeaLake").rename(unknown / "Sealake")
    refused(cli("augment", unknown, *request), "Sealake", "SeaLake")
    few = shutil.copytree(real, tmp_path / "few")
    for number in (0, 1):
        (few / "Forest" / f"{number}.png").unlink()
    refused(cli("augment", few, *request), "few", "Forest", "5")
    one = shutil.copytree(real, tmp_path / "one")
    shutil.rmtree(one / "Forest")
    refused(cli("augment", one, *request), "one class")
    refused(cli("augment", tmp_path / "absent", *request), "absent")
    refused(cli("augment", real, "--run", real, "--out", out), str(real))
    assert not out.exists()
    out.mkdir()
    refused(cli("augment", real, *request), "--out", str(out))
    assert list(out.iterdir()) == []
    file = tmp_path / "file"
    file.touch()
    refused(cli("augment", real, "--run", tiny_run, "--out", file / "out"), "--out", str(file))


class Named:
    """Some images of a set, with labels that count other class names."""

    def __init__(self, whole: Dataset, indices: list[int], classes: tuple[str, ...]) -> None:
        self.classes, self._images = classes, whole.images[indices]
        self._labels = np.unique(whole.labels[indices], return_inverse=True)[1].tolist()

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return self._images[index], self._labels[index]


def test_data_sets_may_lack_classes_of_the_run_but_have_no_others(
    tiny_run: Path, tmp_path: Path
) -> None:
    config = RunDirectory.open(tiny_run).config.data
    whole = data.load(dataclasses.replace(config, test_fraction=0.0))
    settings = AugmentSettings(num=2, steps=1)
    names = whole.class_names
    pairs = [
        (image, label)
        for image, label in zip(whole.images, whole.labels.tolist(), strict=True)
        if label != names.index("River")
    ]
    record = augment(pairs, tiny_run, tmp_path / "pairs", settings)
    assert [own.class_name for own in record.classes] == [n for n in names if n != "River"]
    assert all(own.sampled == 2 for own in record.classes)
    some = [index for index, label in enumerate(whole.labels) if names[label] in CLASSES]
    record = augment(Named(whole, some, CLASSES), tiny_run, tmp_path / "named", settings)
    assert record.data.train == len(some)
    assert [own.class_name for own in record.classes] == list(CLASSES)
    with pytest.raises(DataError, match=r"Lake is not a class of the generator"):
        augment(Named(whole, some, ("Forest", "Lake")), tiny_run, tmp_path / "lake", settings)
    renamed = tuple(name.upper() if name == "River" else name for name in names)
    other = dataclasses.replace(whole, class_names=renamed)
    with pytest.raises(DataError, match=r"RIVER is not a class of the generator"):
        augment(other, tiny_run, tmp_path / "renamed", settings)


def test_a_damaged_record_is_refused(tmp_path: Path) -> None:
    (tmp_path / "augment.json").write_text(json.dumps({"format": 1}))
    with pytest.raises(EvaluationError, match="augment"):
        read_augmentation(tmp_path)
