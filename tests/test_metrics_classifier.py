"""The classifier: learns, repeats itself, lasts, and refuses what it was not made for."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from qhdm import data
from qhdm.config import DataConfig
from qhdm.data import Dataset
from qhdm.errors import EvaluationError
from qhdm.metrics import utility as utility_module
from qhdm.metrics.classifier import ClassifierSettings, PatchClassifier
from qhdm.metrics.features import Extractor
from qhdm.metrics.records import Metric
from qhdm.metrics.resnet import ResNetSettings
from qhdm.metrics.trained import (
    classifier_path,
    load_classifier,
    trained_classifier,
)
from qhdm.metrics.training import (
    Settings,
    make_network,
    predicted,
    train_network,
    weights_digest,
)
from qhdm.metrics.utility import utility

CPU = torch.device("cpu")
QUICK = ClassifierSettings(width=8, dim=16, steps=30, batch_size=16, lr=1e-2)
QUICK_RESNET = ResNetSettings(widths=(8, 16), dim=16, steps=40, batch_size=16, destroyed=4, lr=1e-2)


@pytest.fixture(scope="module")
def whole() -> Dataset:
    """Forest, industry and lakes at 16x16, half of each held out."""
    classes = ("Forest", "Industrial", "SeaLake")
    return data.load(DataConfig(root="bundled", image_size=16, classes=classes, test_fraction=0.5))


@pytest.fixture(scope="module")
def training(whole: Dataset) -> Dataset:
    return whole.split("train")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QHDM_DATA", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("size", [2, 8, 16, 32, 50, 64, 128])
@pytest.mark.parametrize("channels", [1, 3])
def test_features_have_one_size(whole: Dataset, size: int, channels: int) -> None:
    images = np.zeros((1, size, size, channels), np.uint8)
    like = dataclasses.replace(whole, images=images, class_names=tuple("abcde"))
    x = torch.rand(2, channels, size, size) * 2 - 1
    older, newer = (
        make_network(settings, like).eval() for settings in (ClassifierSettings(), ResNetSettings())
    )
    for network in (older, newer):
        assert network.features(x).shape == (2, 64)
    assert (older.features(x) >= 0).all()
    assert older(x).shape == (2, 5)
    assert newer(x).shape == (2, 6)  # one for images without shapes


@pytest.mark.parametrize("settings", [QUICK, QUICK_RESNET], ids=["classifier", "resnet"])
def test_training_learns_and_repeats_itself(
    whole: Dataset, training: Dataset, settings: Settings
) -> None:
    network = train_network([training], settings, device=CPU)
    test = whole.split("test")
    assert (predicted(network, test.images, CPU) == test.labels).mean() > 0.6
    again = train_network([training], settings, device=CPU)
    other = train_network([training], dataclasses.replace(settings, seed=1), device=CPU)
    digest = weights_digest(network.state_dict())
    assert digest == weights_digest(again.state_dict())
    assert digest != weights_digest(other.state_dict())


def test_the_older_classifier_stays(training: Dataset) -> None:
    """The cached ones of earlier versions, on which their results rest, are found and read."""
    assert classifier_path(training, ClassifierSettings()).stem == "bundled-dfddf11dbba72a6a"
    assert classifier_path(training, utility_module.RETRAINED).stem == "bundled-6732df1d1de70f2f"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = make_network(QUICK, training)
    assert weights_digest(network.state_dict()) == "bb160641"


def test_steps_grow_with_the_images() -> None:
    settings = ResNetSettings()
    assert settings.steps_for(83) == settings.fewest_steps
    assert settings.steps_for(24_300) == 2468
    assert dataclasses.replace(settings, steps=7).steps_for(24_300) == 7
    assert ClassifierSettings().steps_for(24_300) == ClassifierSettings().steps_for(83) == 600


def test_training_leaves_the_global_generator_alone(training: Dataset) -> None:
    state = torch.random.get_rng_state()
    train_network([training], dataclasses.replace(QUICK, steps=1), device=CPU)
    assert torch.equal(state, torch.random.get_rng_state())


def test_parts_share_the_batches_evenly(training: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nine black images beside fifteen others make half of every batch."""
    black = dataclasses.replace(
        training.where(np.arange(len(training)) < 9), images=np.zeros((9, 16, 16, 3), np.uint8)
    )
    seen = []
    forward = PatchClassifier.forward

    def watched(self: PatchClassifier, x: torch.Tensor) -> torch.Tensor:
        seen.append(int((x == -1).all(dim=(1, 2, 3)).sum()))
        return forward(self, x)

    monkeypatch.setattr(PatchClassifier, "forward", watched)
    train_network([training, black], dataclasses.replace(QUICK, steps=3), device=CPU)
    assert seen == [8, 8, 8]


def test_trained_once(training: Dataset, cache: Path) -> None:
    first = trained_classifier(training, QUICK, device=CPU)
    assert first.path.parent == cache / "classifiers"
    changed = first.path.stat().st_mtime_ns
    second = trained_classifier(training, QUICK, device=CPU)
    assert second.digest == first.digest
    assert first.path.stat().st_mtime_ns == changed
    assert np.array_equal(first.features(training.images), second.features(training.images))
    # Other settings and other images are other classifiers.
    assert classifier_path(training, dataclasses.replace(QUICK, steps=31)) != first.path
    fewer = training.where(np.arange(len(training)) > 0)
    assert classifier_path(fewer, QUICK) != first.path
    touched = training.images.copy()
    touched[0, 0, 0, 0] ^= 1
    assert classifier_path(dataclasses.replace(training, images=touched), QUICK) != first.path


def test_files_of_others_are_refused(training: Dataset, tmp_path: Path) -> None:
    path = trained_classifier(training, QUICK, device=CPU).path
    names = dataclasses.replace(training, class_names=("Forest", "Industrial", "Sea"))
    with pytest.raises(EvaluationError, match=rf"{path}: .*SeaLake"):
        load_classifier(path, names, "classifier", device=CPU)
    larger = dataclasses.replace(training, images=np.zeros((len(training), 32, 32, 3), np.uint8))
    with pytest.raises(EvaluationError, match=r"image size 16 .* 32"):
        load_classifier(path, larger, "classifier", device=CPU)
    with pytest.raises(EvaluationError, match=r"the extractor classifier"):
        load_classifier(path, training, "resnet", device=CPU)
    (tmp_path / "damaged.safetensors").write_bytes(path.read_bytes()[:1000])
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    for name in ("absent", "damaged", "other"):
        path = tmp_path / f"{name}.safetensors"
        with pytest.raises(EvaluationError, match=str(path)) as refused:
            load_classifier(path, training, "classifier", device=CPU)
        assert "\n" not in str(refused.value)


def test_reference_features_are_kept(whole: Dataset, training: Dataset, cache: Path) -> None:
    extractor = Extractor("classifier", trained_classifier(training, QUICK, device=CPU))
    found = extractor.reference(whole)
    (kept,) = (cache / "features").iterdir()
    assert whole.digest() in kept.name
    assert extractor.record.digest in kept.name
    changed = kept.stat().st_mtime_ns
    assert np.array_equal(extractor.reference(whole), found)
    assert kept.stat().st_mtime_ns == changed
    kept.write_bytes(b"damaged")
    assert np.array_equal(extractor.reference(whole), found)


@pytest.fixture
def quick_utility(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(utility_module, "RETRAINED", QUICK)
    monkeypatch.setattr(utility_module, "FEW_SHOTS", (3, 50))
    monkeypatch.setattr(utility_module, "SEEDS", 2)


@pytest.mark.usefixtures("quick_utility")
def test_utility_tells_useful_images_from_useless(whole: Dataset, training: Dataset) -> None:
    test = whole.split("test")
    wrong = dataclasses.replace(training, labels=(training.labels + 1) % 3)
    few = training.where(np.arange(len(training)) % 2 == 0)
    good, bad = (utility(training, test, made, device=CPU) for made in (few, wrong))

    def value(
        found: tuple[list[Metric], list[str]], name: str, setting: str | None = None
    ) -> float:
        (metric,) = (
            m for m in found[0] if (m.name, m.setting, m.class_name) == (name, setting, None)
        )
        return metric.value

    assert value(good, "CAS") > 0.6 > 0.4 > value(bad, "CAS")
    setting = "3 real images per class"
    assert value(bad, "augmentation gain") < -0.1
    assert value(bad, "augmentation gain", setting) < value(good, "augmentation gain", setting)


@pytest.mark.usefixtures("quick_utility")
def test_utility_says_what_it_is(whole: Dataset, training: Dataset, cache: Path) -> None:
    test = whole.split("test")
    made = training.where(np.arange(len(training)) % 2 == 0)
    metrics, notes = utility(training, test, made, device=CPU)
    num = len(made)
    overall = [metric for metric in metrics if metric.class_name is None]
    assert [metric.label for metric in overall] == [
        f"CAS[retrained network, N={num}, test]",
        f"augmentation gain[retrained network, all {len(training)} real, N={num}, test]",
        f"augmentation gain[retrained network, 3 real per class, N={num}, test]",
    ]
    assert [metric.floor is not None for metric in overall] == [True, False, False]
    assert len(metrics) == 3 * (1 + 3)
    (note,) = notes
    assert "50 real images per class: left out" in note
    for metric in overall:  # classes are even, so that the whole is the mean of its classes
        classes = [m.value for m in metrics if m.label == metric.label and m.class_name is not None]
        counts = np.bincount(test.labels)
        assert metric.value == pytest.approx(np.average(classes, weights=counts))

    kept = sorted((cache / "accuracies").iterdir())
    # Two seeds of CAS and its floor, and of each setting alone and with generated images.
    assert len(kept) == 2 * (2 + 2 * 2)
    stamps = [path.stat().st_mtime_ns for path in kept]
    kept[0].write_text("damaged")
    assert utility(training, test, made, device=CPU)[0] == metrics
    assert [path.stat().st_mtime_ns for path in kept][1:] == stamps[1:]
