"""How many generated images of each class help a classifier, by cross-validation."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import softmax
from tqdm import tqdm

from qhdm.augmentation.candidates import Judged
from qhdm.augmentation.records import Trial
from qhdm.data import Dataset
from qhdm.data.batches import symmetries
from qhdm.metrics.training import Network, in_batches, predicted, train_network
from qhdm.metrics.utility import RETRAINED
from qhdm.seeds import Stream, derive_seed

FOLDS = 5
#: Shares that are tried of the usable images of the class with the fewest.
SHARES = (1.0, 0.25)
#: Standard errors by which a single class must differ to be treated differently.
EVIDENCE = 2.0
#: Folds are drawn up to so often, until there are so many predictions.
_REPEATS, _PREDICTIONS = 2, 300
#: Real images are also tested flipped and turned, unless they are more than this.
_FEW = 3000


def joined(first: Dataset, second: Dataset) -> Dataset:
    """The images of two sets with the same classes."""
    return dataclasses.replace(
        first,
        images=np.concatenate([np.asarray(first.images), np.asarray(second.images)]),
        labels=np.concatenate([first.labels, second.labels]),
        names=first.names + second.names,
        is_test=np.concatenate([first.is_test, second.is_test]),
    )


def first_of_each(labels: np.ndarray, usable: np.ndarray, counts: Sequence[int]) -> np.ndarray:
    """Mark the first `counts[label]` usable images of each class, (M,) bool."""
    chosen = np.zeros(len(labels), dtype=bool)
    for label, count in enumerate(counts):
        chosen[np.flatnonzero(usable & (labels == label))[:count]] = True
    return chosen


def folds_of(labels: np.ndarray, seed: int) -> np.ndarray:
    """The fold of each image, (N,), in equal shares of each class."""
    rng = np.random.default_rng(seed)
    folds = np.empty(len(labels), dtype=int)
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        folds[members] = (np.arange(len(members)) + rng.integers(FOLDS)) % FOLDS
    return folds


def trainings(num: int) -> int:
    """Trainings of a trial with `num` real images."""
    return FOLDS * min(math.ceil(_PREDICTIONS / num), _REPEATS)


@dataclass(frozen=True, eq=False)
class Choice:
    """The outcome.

    Attributes:
        counts: images of each class, by label.
        usable: which images may be used, (M,) bool.
        unlike, copies, duplicates: why others may not, (M,) bool; the first reason counts.
        baseline: accuracy on held-out folds with real images alone.
        trials: in the order in which they were made.
        best: the trial of the chosen counts, or the best one if none are chosen.
        effects, errors: of each class in the best trial that all classes share (`effects`).
    """

    counts: tuple[int, ...]
    usable: np.ndarray
    unlike: np.ndarray
    copies: np.ndarray
    duplicates: np.ndarray
    baseline: float
    trials: tuple[Trial, ...]
    best: Trial
    effects: np.ndarray
    errors: np.ndarray


class CrossValidation:
    """Accuracies of classifiers on real images that these have not seen.

    Args:
        real: N images, `FOLDS` or more of each class.
        candidates: M generated images of the same classes.
        seed: of folds and classifiers; those of all trials are paired.
        device: where to train.
        bar: is updated after each training.
    """

    def __init__(
        self, real: Dataset, candidates: Dataset, *, seed: int, device: torch.device, bar: tqdm
    ) -> None:
        self.real, self.candidates = real, candidates
        self.bar, self._device, self._seed = bar, device, seed
        repeats = range(trainings(len(real)) // FOLDS)
        self.folds = np.array(
            [folds_of(real.labels, derive_seed(seed, Stream.SUBSET, 8, r)) for r in repeats]
        )
        self._views = 8 if len(real) <= _FEW else 1

    def held_out(self) -> Iterator[tuple[int, int, np.ndarray]]:
        """Number, repeat, and held-out images (N,) bool, of each training."""
        for repeat, folds in enumerate(self.folds):
            for fold in range(FOLDS):
                yield repeat * FOLDS + fold, repeat, folds == fold

    def alone(self) -> tuple[np.ndarray, Judged]:
        """Predictions with real images alone (see `predictions`), and what the classifiers say."""
        real, made = self.real, self.candidates
        real_scores, scores, features = np.zeros(len(real)), [], []

        def judge(network: Network, repeat: int, held: np.ndarray) -> None:
            if repeat == 0:
                sets = real.images, made.images
                features.append([in_batches(network.features, x, self._device) for x in sets])
            of_real = _probabilities(network, real.where(held), self._device)
            real_scores[held] += of_real / len(self.folds)
            scores.append(_probabilities(network, made, self._device))

        predictions = self.predictions(lambda _: None, judge)
        joint = [np.concatenate(parts, axis=1) for parts in zip(*features, strict=True)]
        judged = Judged(real.labels, made.labels, real_scores, np.array(scores), *joint)
        return predictions, judged

    def predictions(
        self,
        added: Callable[[int], Dataset | None],
        then: Callable[[Network, int, np.ndarray], None] | None = None,
    ) -> np.ndarray:
        """How often each real image is predicted to be of each class, (N, C), in shares.

        Args:
            added: the generated images of a training, by its number.
            then: called with each network, its repeat and its held-out images.
        """
        real = self.real
        shares = np.zeros((len(real), len(real.class_names)))
        for number, repeat, held in self.held_out():
            training, more = real.where(~held), added(number)
            settings = dataclasses.replace(
                RETRAINED, seed=derive_seed(self._seed, Stream.CLASSIFIER, number)
            )
            network = train_network(
                [joined(training, more) if more else training], settings, device=self._device
            )
            for view in range(self._views):
                images = symmetries(real.images[held], np.full(held.sum(), view))
                labels = predicted(network, images, self._device)
                shares[np.flatnonzero(held), labels] += 1 / self._views / len(self.folds)
            if then:
                then(network, repeat, held)
            self.bar.update()
        return shares

    def trial(
        self, counts: Sequence[int], usable: np.ndarray, alone: np.ndarray
    ) -> tuple[Trial, np.ndarray]:
        """Try `counts` of each class.

        Args:
            counts: by label.
            usable: images that each training may use, (trainings, M) bool.
            alone: predictions without generated images, (N, C).

        Returns:
            The trial, and its predictions.
        """
        made = self.candidates
        shares = self.predictions(
            lambda number: made.where(first_of_each(made.labels, usable[number], counts))
        )
        gains = (shares - alone)[np.arange(len(self.real)), self.real.labels]
        # Of the images; and of the trainings, whose randomness all images of a fold share.
        by_fold = [gains[held].mean() for _, _, held in self.held_out()]
        error = max(_error(gains), _error(np.array(by_fold[:FOLDS])))
        return Trial(tuple(counts), float(gains.mean()), error), shares


def effects(
    labels: np.ndarray, alone: np.ndarray, with_more: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The gain of accuracy, divided among the classes, and standard errors; (C,) each.

    A confusion counts half for the class that is not recognised and half for the one that is seen
    in its place; the sum over the classes is the gain.

    Args:
        labels: of real images, (N,).
        alone, with_more: their predictions without and with generated images, (N, C).
    """
    signs = np.eye(alone.shape[1])[labels] - 0.5
    parts = (with_more - alone) * signs
    return parts.mean(axis=0), np.array([_error(part) for part in parts.T])


def choose(validation: CrossValidation) -> Choice:
    """Choose how many images of each class help, if any do.

    All classes share a count at first: as many as each has usable images, or a quarter of that. The
    better one, by gain minus standard error, is chosen if that is above 0. Classes whose images
    harm by two standard errors are then left out; or, where no count is chosen, only classes whose
    images help by as much are tried. Such a choice has to be better in a trial of its own.
    """
    labels, names = validation.candidates.labels, validation.real.class_names
    alone, judged = validation.alone()
    copies, duplicates = judged.copies_and_duplicates()
    fresh = ~copies & ~duplicates
    like = judged.like(judged.scores)  # by classifiers that have not seen the fold
    usable = judged.like(judged.scores.mean(axis=0)) & fresh
    accepted = np.bincount(labels[usable], minlength=len(names))
    # Unequal counts would shift how often classes are seen.
    most = accepted[accepted > 0].min(initial=len(labels))
    tried = []
    for share in SHARES:
        counts = np.minimum(accepted, math.ceil(share * most)).tolist()
        tried.append(validation.trial(counts, like & fresh, alone))
    best, shares = max(tried, key=lambda pair: pair[0].lower)
    trials = [trial for trial, _ in tried]
    of_class, errors = effects(validation.real.labels, alone, shares)
    helps = best.lower > 0
    kept = of_class > -EVIDENCE * errors if helps else of_class > EVIDENCE * errors
    counts = np.where(kept, best.counts, 0).tolist()
    if any(counts) and not kept.all():
        validation.bar.total = (validation.bar.total or 0) + trainings(len(validation.real))
        refined, _ = validation.trial(counts, like & fresh, alone)
        trials.append(refined)
        if refined.lower > max(best.lower, 0):
            best, helps = refined, True
    baseline = alone[np.arange(len(alone)), validation.real.labels].mean()
    return Choice(
        counts=best.counts if helps else (0,) * len(names),
        usable=usable,
        unlike=~usable & fresh,
        copies=copies,
        duplicates=duplicates,
        baseline=float(baseline),
        trials=tuple(trials),
        best=best,
        effects=of_class,
        errors=errors,
    )


def _probabilities(network: Network, images: Dataset, device: torch.device) -> np.ndarray:
    """The probability of the own class of each image, (N,)."""
    every = softmax(in_batches(network, images.images, device), axis=1)
    probabilities: np.ndarray = every[np.arange(len(images)), images.labels]
    return probabilities


def _error(values: np.ndarray) -> float:
    """The standard error of a mean."""
    return float(values.std(ddof=1) / len(values) ** 0.5)
