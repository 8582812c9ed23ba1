"""The utility of generated images as training data: classifiers trained with them.

Each accuracy, on real images, is that of a small network trained from scratch with a fixed number
of steps, with several seeds. All are kept in the cache folder: those of real images alone are the
same for every evaluated model, and an interruption loses one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
from tqdm import tqdm

from qhdm import console
from qhdm.data import Dataset, cache_folder
from qhdm.files import write_text
from qhdm.metrics.classifier import ClassifierSettings
from qhdm.metrics.groups import FEWEST_TESTED
from qhdm.metrics.records import Metric
from qhdm.metrics.training import predicted, train_network
from qhdm.seeds import Stream, derive_seed

#: Coarser than the extractor and with fewer steps, as many are trained.
RETRAINED = ClassifierSettings(resolution=16, steps=200)
SEEDS = 3
FEW_SHOTS = (10, 50, 100)

#: The parts of a training set for a seed.
Parts = Callable[[int], list[Dataset]]


def utility(
    training: Dataset,
    test: Dataset,
    generated: Dataset,
    *,
    device: torch.device,
    progress: bool = False,
) -> tuple[list[Metric], list[str]]:
    """The classification accuracy score, and gains from adding generated images to real ones.

    Every class is in both sets of real images.

    Returns:
        Of each metric, overall and per class, the mean over seeds and its standard error; and
        notes on what was left out and why.
    """
    sizes = np.bincount(training.labels, minlength=len(training.class_names))
    counts: list[int | None] = [None, *(count for count in FEW_SHOTS if count < sizes.min())]
    notes = [
        f"augmentation gain with {count} real images per class: left out, "
        f"{training.class_names[sizes.argmin()]} has {sizes.min()} training images"
        for count in FEW_SHOTS
        if count not in counts
    ]
    with console.bar(
        total=SEEDS * (2 + sum(2 if count is None else 3 for count in counts)),
        desc="training classifiers",
        unit="training",
        show=progress,
    ) as bar:
        trainings = _Trainings(training, test, device, bar)
        metrics = list(_score(trainings, generated))
        for count in counts:
            metrics += _gain(trainings, generated, count)
    return metrics, notes


class _Trainings:
    """Trains networks on parts of the data, and keeps their accuracies in the cache folder."""

    def __init__(self, training: Dataset, test: Dataset, device: torch.device, bar: tqdm) -> None:
        self.training, self.test = training, test
        self._device, self._bar = device, bar
        self._real = f"{training.digest()} {test.digest()}"

    def accuracies(self, what: str, parts: Parts) -> np.ndarray:
        """Accuracies (SEEDS, classes + 1) per class and, in the last column, over all test images.

        Args:
            what: names the training set in the cache.
            parts: of the training set, which have equal shares of each batch.
        """
        return np.array([self._kept(what, seed, parts) for seed in range(SEEDS)])

    def _kept(self, what: str, seed: int, parts: Parts) -> list[float]:
        settings = dataclasses.asdict(RETRAINED)
        request = json.dumps([self._real, what, seed, settings], sort_keys=True)
        key = hashlib.sha256(request.encode()).hexdigest()[:16]
        path = cache_folder() / "accuracies" / f"{self.training.name}-{key}.json"
        try:
            accuracies: list[float] = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):  # absent or damaged: computed
            accuracies = self._trained(parts(seed), seed)
            write_text(path, json.dumps(accuracies))
        self._bar.update()
        return accuracies

    def _trained(self, parts: Sequence[Dataset], seed: int) -> list[float]:
        settings = dataclasses.replace(RETRAINED, seed=seed)
        network = train_network(parts, settings, device=self._device)
        right = predicted(network, self.test.images, self._device) == self.test.labels
        classes = [self.test.labels == label for label in range(len(self.test.class_names))]
        return [float(right[members].mean()) for members in (*classes, np.full(len(right), True))]


def _score(trainings: _Trainings, generated: Dataset) -> Iterator[Metric]:
    """CAS (Ravuri & Vinyals 2019): trained on generated images, tested on real ones.

    The floor is of as many real images.
    """
    real, num = trainings.training, len(generated)
    score = trainings.accuracies(
        f"0 of each class and generated {generated.digest()}", lambda _: [generated]
    )
    floor = None
    if num <= len(real):
        floor = trainings.accuracies(f"{num} images", lambda seed: [some_of(real, num, seed)])
    label = f"CAS[retrained network, N={num}, test]"
    metric = partial(Metric, name="CAS", label=label, split="test", num=num, better="higher")
    yield from _by_class(trainings.test, score, floor, metric)


def _gain(trainings: _Trainings, generated: Dataset, count: int | None) -> Iterator[Metric]:
    """Accuracy with generated images minus accuracy without, seed by seed.

    Args:
        count: how many real images of each class are used; None for all. With a number, the floor
            is the gain from as many further real images, if there are.
    """
    real, num = trainings.training, len(generated)

    def few(seed: int) -> Dataset:
        return real if count is None else real.where(few_of_each(real, count, seed))

    def few_and_others(seed: int) -> list[Dataset]:
        return [few(seed), some_of(real.where(~few_of_each(real, count or 0, seed)), num, seed)]

    what = f"{count} of each class"
    alone = trainings.accuracies(what, lambda seed: [few(seed)])
    gain = (
        trainings.accuracies(
            f"{what} and generated {generated.digest()}", lambda seed: [few(seed), generated]
        )
        - alone
    )
    floor = None
    if count is not None and num <= len(real) - count * len(real.class_names):
        floor = trainings.accuracies(f"{what} and {num} others", few_and_others) - alone
    used = f"all {len(real)} real" if count is None else f"{count} real per class"
    metric = partial(
        Metric,
        name="augmentation gain",
        label=f"augmentation gain[retrained network, {used}, N={num}, test]",
        split="test",
        num=num,
        better="higher",
        setting=None if count is None else f"{count} real images per class",
    )
    yield from _by_class(trainings.test, gain, floor, metric, baseline=alone)


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
        tested = len(test) if name is None else int((test.labels == column).sum())
        yield metric(
            class_name=name,
            value=float(values[:, column].mean()),
            error=float(values[:, column].std(ddof=1) / SEEDS**0.5),
            floor=None
            if floor is None or tested < FEWEST_TESTED
            else float(floor[:, column].mean()),
            baseline=None if baseline is None else float(baseline[:, column].mean()),
        )


def few_of_each(images: Dataset, count: int, seed: int) -> np.ndarray:
    """Mark `count` random images of each class."""
    rng = np.random.default_rng(derive_seed(seed, Stream.SUBSET, 2))
    chosen = np.zeros(len(images), dtype=bool)
    for label in range(len(images.class_names)):
        chosen[rng.permutation(np.flatnonzero(images.labels == label))[:count]] = True
    return chosen


def some_of(images: Dataset, num: int, seed: int) -> Dataset:
    """`num` random images."""
    rng = np.random.default_rng(derive_seed(seed, Stream.SUBSET, 3))
    chosen = np.zeros(len(images), dtype=bool)
    chosen[rng.permutation(len(images))[:num]] = True
    return images.where(chosen)
