"""The groups of metrics that features and classifiers give; utility.py has the fourth."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from qhdm.data import Dataset
from qhdm.errors import EvaluationError
from qhdm.metrics.distances import (
    FEWEST_IMAGES,
    check_counts,
    density_coverage,
    frechet_distance,
    frechet_distance_error,
    kernel_distance,
    memorised,
    nearest,
    precision_recall,
)
from qhdm.metrics.features import Extractor
from qhdm.metrics.records import Metric, MetricName, Split
from qhdm.metrics.trained import TrainedClassifier
from qhdm.seeds import Stream, derive_seed

_SPLITS: tuple[Split, ...] = ("test", "train")

#: Of the random subsets that bring sets to the same N: part of what a metric is.
_SEED = 0


@dataclass(frozen=True)
class Neighbours:
    """Generated images and the training images nearest to them, nearest pairs first.

    Attributes:
        generated, real: (N, H, W, C) uint8, pair by pair.
        labels: classes of the generated images, (N,).
        distances: between the features of each pair, (N,).
    """

    generated: np.ndarray
    real: np.ndarray
    labels: np.ndarray
    distances: np.ndarray


def check_size(num: int, training: int, test: int, dim: int, *, more: str) -> None:
    """Refuse what would make distances meaningless, before anything is sampled.

    Args:
        num: generated images.
        training, test: real images of each split.
        dim: features per image.
        more: how to have more generated images, with {} for a number.

    Raises:
        EvaluationError: a set is too small.
    """
    least = max(dim + 1, FEWEST_IMAGES)
    leave = "or leave distances out: --metrics classes utility memorisation"
    check_counts(num, dim, what="generated", remedy=f"{more.format(least)}, {leave}")
    for count, split in ((test, "test split"), (training, "training split")):
        check_counts(count, dim, what=split, remedy=f"evaluate on a larger set, {leave}")


def distances(
    extractor: Extractor, generated: np.ndarray, real: dict[Split, np.ndarray]
) -> Iterator[Metric]:
    """FID, KID, precision, recall, density and coverage against each split.

    N is the size of the smaller set, and as many images of the larger are drawn. The floor puts N
    real images in the place of the generated ones: of the other split, or, where that has fewer,
    the split is cut into two sets of N. None where neither is possible.

    Args:
        extractor: that the features are of.
        generated: (N, D) features.
        real: features of each split.
    """
    for split in _SPLITS:
        other = real["train" if split == "test" else "test"]
        num = min(len(generated), len(real[split]))
        found = _compared(_drawn(real[split], num, 0), _drawn(generated, num, 1))
        floor: dict[MetricName, tuple[float, float | None]] = {}
        if len(other) >= num:
            floor = _compared(_drawn(real[split], num, 0), _drawn(other, num, 1), errors=False)
        elif len(real[split]) >= 2 * num:
            both = _drawn(real[split], 2 * num, 0)
            floor = _compared(both[:num], both[num:], errors=False)
        for name, (value, error) in found.items():
            yield Metric(
                name=name,
                label=_label(name, extractor, num, split),
                split=split,
                num=num,
                value=value,
                error=error,
                floor=floor[name][0] if floor else None,
                better="lower" if name in ("FID", "KID") else "higher",
            )


def class_accuracy(
    classifier: TrainedClassifier, generated: Dataset, test: Dataset
) -> Iterator[Metric]:
    """Whether a classifier of real images sees the class that was asked for, overall and per class.

    The floor (here an upper bound) is its accuracy on the test split.
    """
    right = classifier.predict(generated.images) == generated.labels
    real = classifier.predict(test.images) == test.labels
    for label, name in [(None, None), *enumerate(generated.class_names)]:
        chosen = right if label is None else right[generated.labels == label]
        held_out = real if label is None else real[test.labels == label]
        if not len(chosen):  # a folder of images may lack classes
            continue
        share = float(chosen.mean())
        yield Metric(
            name="class accuracy",
            label=f"class accuracy[classifier {classifier.digest}, N={len(chosen)}]",
            split=None,
            class_name=name,
            num=len(chosen),
            value=share,
            error=_share_error(share, len(chosen)),
            floor=float(held_out.mean()) if len(held_out) else None,
            better="higher",
        )


def memorisation(
    extractor: Extractor, generated: np.ndarray, real: dict[Split, np.ndarray]
) -> Metric:
    """The share of images nearer to a training image than that one is to any other; its floor is
    that of the test split.

    Raises:
        EvaluationError: there are fewer than two training images.
    """
    if len(real["train"]) < 2:
        raise EvaluationError("memorisation: takes two training images or more")
    share = float(memorised(generated, real["train"]).mean())
    num = len(generated)
    return Metric(
        name="memorisation",
        label=_label("memorisation", extractor, num, "train"),
        split="train",
        num=num,
        value=share,
        error=_share_error(share, num),
        floor=float(memorised(real["test"], real["train"]).mean()),
        better="lower",
    )


def neighbours(
    generated: Dataset,
    features: np.ndarray,
    training: Dataset,
    training_features: np.ndarray,
    *,
    per_class: int,
) -> Neighbours:
    """Of each class, the generated images nearest to a training image, with that one.

    Args:
        generated, training: the images.
        features, training_features: theirs, (N, D) and (M, D).
        per_class: pairs of each class.
    """
    apart, places = nearest(features, training_features)
    chosen: list[int] = []
    for label in range(len(generated.class_names)):
        members = np.flatnonzero(generated.labels == label)
        chosen += members[np.argsort(apart[members], kind="stable")[:per_class]].tolist()
    return Neighbours(
        generated=generated.images[chosen],
        real=training.images[places[chosen]],
        labels=generated.labels[chosen],
        distances=apart[chosen],
    )


def _compared(
    real: np.ndarray, images: np.ndarray, *, errors: bool = True
) -> dict[MetricName, tuple[float, float | None]]:
    kernel = kernel_distance(real, images, seed=_SEED)
    precision, recall = precision_recall(real, images)
    density, coverage = density_coverage(real, images)
    error = frechet_distance_error(real, images, seed=_SEED) if errors else None
    return {
        "FID": (frechet_distance(real, images), error),
        "KID": (kernel.value, kernel.error),
        "precision": (precision, None),
        "recall": (recall, None),
        "density": (density, None),
        "coverage": (coverage, None),
    }


def _drawn(features: np.ndarray, num: int, part: int) -> np.ndarray:
    """`num` of the images, drawn at random; `part` tells the draws of a comparison apart."""
    rng = np.random.default_rng(derive_seed(_SEED, Stream.SUBSET, 4, part))
    return features[rng.permutation(len(features))[:num]]


def _label(name: str, extractor: Extractor, num: int, split: Split) -> str:
    record = extractor.record
    return f"{name}[{record.name} {record.digest}, N={num}, {split}]"


def _share_error(share: float, num: int) -> float:
    """The standard error of a share of N independent images."""
    return float((share * (1 - share) / num) ** 0.5)
