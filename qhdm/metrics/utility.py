"""Whether generated images are of use: classifiers trained with them, tested on real images.

Each accuracy is of a small network trained from scratch with a fixed number of steps, several times
with other seeds. All are kept in the cache folder: those on real images alone are the same for
every model that is judged, and an interruption loses one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from tqdm import tqdm

from qhdm import console
from qhdm.data import Dataset, cache_folder
from qhdm.files import write_text
from qhdm.metrics.classifier import ClassifierSettings, predicted, train_network
from qhdm.metrics.records import Metric
from qhdm.seeds import Stream, derive_seed

#: Trained many times: coarser than the extractor, and for fewer steps.
RETRAINED = ClassifierSettings(resolution=16, steps=200)
SEEDS = 3
FEW_SHOTS = (10, 50, 100)


@dataclass(frozen=True)
class Utility:
    """Metrics, and what was left out and why."""

    metrics: tuple[Metric, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Setting:
    """One set of real images to augment: how many of each class (None: all), and its names."""

    per_class: int | None
    name: str | None
    label: str


class _Trainings:
    """Accuracies per class of networks trained on parts of the data, each (SEEDS, classes + 1):
    the last column is over all test images.

    Args:
        training, test: real images.
        generated: what is judged, labelled alike.
        device: where to train.
        bar: advanced by one for each training.
    """

    def __init__(
        self,
        training: Dataset,
        test: Dataset,
        generated: Dataset,
        *,
        device: torch.device,
        bar: tqdm,
    ) -> None:
        self.training, self.test, self.generated = training, test, generated
        self._device, self._bar = device, bar
        self._real = f"{training.digest()} {test.digest()}"
        self._generated = generated.digest()

    def with_generated(self, per_class: int | None) -> np.ndarray:
        """Trained on generated images, and on real ones of each class (0: none; None: all)."""
        what = f"{per_class} of each class and generated {self._generated}"
        return self._each(what, lambda seed: self._parts(per_class, seed))

    def real(self, per_class: int | None) -> np.ndarray:
        """Trained on so many real images of each class (None: all)."""
        return self._each(
            f"{per_class} of each class",
            lambda seed: [self.training if per_class is None else self._few(per_class, seed)[0]],
        )

    def real_with_others(self, per_class: int, num: int) -> np.ndarray:
        """Trained on so many real images of each class, and on `num` others in the place of
        generated ones."""

        def parts(seed: int) -> list[Dataset]:
            few, others = self._few(per_class, seed)
            return [few, _some(others, num, seed)]

        return self._each(f"{per_class} of each class and {num} others", parts)

    def real_of(self, num: int) -> np.ndarray:
        """Trained on `num` real images in the place of generated ones."""
        return self._each(f"{num} images", lambda seed: [_some(self.training, num, seed)])

    def _parts(self, per_class: int | None, seed: int) -> list[Dataset]:
        if per_class is None:
            return [self.training, self.generated]
        if per_class == 0:
            return [self.generated]
        return [self._few(per_class, seed)[0], self.generated]

    def _few(self, per_class: int, seed: int) -> tuple[Dataset, Dataset]:
        """So many training images of each class, drawn at random, and the others."""
        rng = np.random.default_rng(derive_seed(seed, Stream.SUBSET, 2))
        chosen = np.zeros(len(self.training), dtype=bool)
        for label in range(len(self.training.class_names)):
            members = np.flatnonzero(self.training.labels == label)
            chosen[rng.permutation(members)[:per_class]] = True
        return self.training.where(chosen), self.training.where(~chosen)

    def _accuracies(self, parts: Sequence[Dataset], seed: int) -> list[float]:
        settings = dataclasses.replace(RETRAINED, seed=seed)
        network = train_network(parts, settings, device=self._device)
        right = predicted(network, self.test.images, self._device) == self.test.labels
        classes = [self.test.labels == label for label in range(len(self.test.class_names))]
        return [float(right[members].mean()) for members in (*classes, np.full(len(right), True))]

    def _each(self, what: str, parts: Callable[[int], list[Dataset]]) -> np.ndarray:
        """The accuracies of each seed, from the cache where they are there."""
        return np.array([self._kept(what, seed, parts) for seed in range(SEEDS)])

    def _kept(self, what: str, seed: int, parts: Callable[[int], list[Dataset]]) -> list[float]:
        settings = dataclasses.asdict(RETRAINED)
        request = json.dumps([self._real, what, seed, settings], sort_keys=True)
        key = hashlib.sha256(request.encode()).hexdigest()[:16]
        path = cache_folder() / "accuracies" / f"{self.training.name}-{key}.json"
        try:
            found: list[float] = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):  # absent, or damaged: made anew
            found = self._accuracies(parts(seed), seed)
            write_text(path, json.dumps(found))
        self._bar.update()
        return found


def utility(
    training: Dataset,
    test: Dataset,
    generated: Dataset,
    *,
    device: torch.device,
    progress: bool = False,
) -> Utility:
    """Classification accuracy score, and the gain from augmenting real images with generated ones.

    Args:
        training, test: real images; every class is in both.
        generated: N images of the same classes.
        device: where to train.
        progress: show a bar on stderr.

    Returns:
        Of each metric, overall and per class: means over seeds and their standard errors.
    """
    num = len(generated)
    smallest = int(np.bincount(training.labels, minlength=len(training.class_names)).min())
    settings = [_Setting(None, None, f"all {len(training)} real")]
    notes = []
    for count in FEW_SHOTS:
        name = f"{count} real images per class"
        if count < smallest:
            settings.append(_Setting(count, name, f"{count} real per class"))
        else:
            scarce = training.class_names[int(np.bincount(training.labels).argmin())]
            notes.append(
                f"augmentation gain with {name}: left out, {scarce} has {smallest} training images"
            )
    with console.bar(
        total=SEEDS * (2 + sum(2 if s.per_class is None else 3 for s in settings)),
        desc="training classifiers",
        unit="training",
        show=progress,
    ) as bar:
        trainings = _Trainings(training, test, generated, device=device, bar=bar)
        found = list(_score(trainings, num))
        for setting in settings:
            found += _gain(trainings, setting, num)
    return Utility(tuple(found), tuple(notes))


def _score(trainings: _Trainings, num: int) -> Iterator[Metric]:
    """CAS (Ravuri & Vinyals 2019): trained on generated images, tested on real ones."""
    score = trainings.with_generated(0)
    floor = trainings.real_of(num) if num <= len(trainings.training) else None
    yield from _by_class(
        trainings.test,
        score,
        floor,
        partial(
            Metric,
            name="CAS",
            label=f"CAS[retrained network, N={num}, test]",
            split="test",
            num=num,
            better="higher",
        ),
    )


def _gain(trainings: _Trainings, setting: _Setting, num: int) -> Iterator[Metric]:
    """Accuracy with generated images minus without, seed by seed; the floor adds real ones."""
    alone = trainings.real(setting.per_class)
    gain = trainings.with_generated(setting.per_class) - alone
    floor = None
    if setting.per_class is not None:
        used = setting.per_class * len(trainings.training.class_names)
        if num <= len(trainings.training) - used:
            floor = trainings.real_with_others(setting.per_class, num) - alone
    yield from _by_class(
        trainings.test,
        gain,
        floor,
        partial(
            Metric,
            name="augmentation gain",
            label=f"augmentation gain[retrained network, {setting.label}, N={num}, test]",
            split="test",
            num=num,
            better="higher",
            setting=setting.name,
        ),
        baseline=alone,
    )


def _by_class(
    test: Dataset,
    values: np.ndarray,
    floor: np.ndarray | None,
    metric: Callable[..., Metric],
    *,
    baseline: np.ndarray | None = None,
) -> Iterator[Metric]:
    """The metric overall, then of each class, from (SEEDS, classes + 1) values."""
    for column, name in [(-1, None), *enumerate(test.class_names)]:
        yield metric(
            class_name=name,
            value=float(values[:, column].mean()),
            error=float(values[:, column].std(ddof=1) / SEEDS**0.5),
            floor=None if floor is None else float(floor[:, column].mean()),
            baseline=None if baseline is None else float(baseline[:, column].mean()),
        )


def _some(images: Dataset, num: int, seed: int) -> Dataset:
    """`num` of the images, drawn at random."""
    rng = np.random.default_rng(derive_seed(seed, Stream.SUBSET, 3))
    chosen = np.zeros(len(images), dtype=bool)
    chosen[rng.permutation(len(images))[:num]] = True
    return images.where(chosen)
