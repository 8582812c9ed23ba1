"""Groups of metrics of generated images; the fourth, `utility`, is in utility.py."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from qhdm.data import Dataset
from qhdm.errors import EvaluationError
from qhdm.metrics.distances import (
    frechet_distance,
    frechet_distance_error,
    kernel_distance,
    memorised,
    nearest,
    neighbourhoods,
)
from qhdm.metrics.features import Extractor
from qhdm.metrics.records import Better, Metric, MetricName, Split
from qhdm.metrics.trained import TrainedClassifier
from qhdm.pictures import labelled_grid, save_png
from qhdm.seeds import Stream, derive_seed

#: Of the random subsets that bring sets to the same N. Metrics are defined by it.
_SEED = 0
#: A share of fewer test images is no floor.
FEWEST_TESTED = 10
#: Pairs of each class in the picture of nearest neighbours.
_PAIRS = 8


def distances(
    extractor: Extractor, generated: np.ndarray, real: Mapping[Split, np.ndarray]
) -> Iterator[Metric]:
    """FID, KID, precision, recall, density and coverage of features (N, D) against each split.

    N is the size of the smaller set, and as many images of the larger are drawn. The floor puts N
    real images in the place of the generated ones: those of the other split or, if that has fewer,
    half of 2 N images of the same split. It is None if neither has enough.
    """
    others: tuple[tuple[Split, Split], ...] = (("test", "train"), ("train", "test"))
    for split, other in others:
        num = min(len(generated), len(real[split]))
        own = drawn(real[split], num, 0)
        values = _compared(own, drawn(generated, num, 1))
        floor: dict[MetricName, tuple[float, float | None]] = {}
        if len(real[other]) >= num:
            floor = _compared(own, drawn(real[other], num, 1), errors=False)
        elif len(real[split]) >= 2 * num:
            both = drawn(real[split], 2 * num, 0)
            floor = _compared(both[:num], both[num:], errors=False)
        for name, (value, error) in values.items():
            better: Better = "lower" if name in ("FID", "KID") else "higher"
            reference = floor[name][0] if floor else None
            yield _metric(name, extractor, num, split, value, error, reference, better)


def class_accuracy(
    classifier: TrainedClassifier, generated: Dataset, test: Dataset
) -> Iterator[Metric]:
    """How often a classifier of real images sees the requested class, overall and per class.

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
            label=f"class accuracy[{classifier.name} {classifier.digest}, N={len(chosen)}]",
            split=None,
            class_name=name,
            num=len(chosen),
            value=share,
            error=_share_error(share, len(chosen)),
            floor=float(held_out.mean()) if len(held_out) >= FEWEST_TESTED else None,
            better="higher",
        )


def memorisation(
    extractor: Extractor, generated: np.ndarray, real: Mapping[Split, np.ndarray]
) -> Metric:
    """The share of images that are memorised (`memorised`); the floor is that of the test split.

    Raises:
        EvaluationError: there are fewer than two training images.
    """
    if len(real["train"]) < 2:
        raise EvaluationError("memorisation: takes two training images or more")
    share, floor = (
        float(memorised(images, real["train"]).mean()) for images in (generated, real["test"])
    )
    num = len(generated)
    error = _share_error(share, num)
    return _metric("memorisation", extractor, num, "train", share, error, floor, "lower")


def save_neighbours(
    path: Path,
    generated: Dataset,
    features: np.ndarray,
    training: Dataset,
    training_features: np.ndarray,
) -> None:
    """Write a PNG of the generated images whose features are nearest to those of training images.

    Each is above that training image, nearest pairs first, in two rows for each class.
    """
    apart, indices = nearest(features, training_features)
    chosen: list[int] = []
    for label in range(len(generated.class_names)):
        members = np.flatnonzero(generated.labels == label)
        chosen += members[np.argsort(apart[members], kind="stable")[:_PAIRS]].tolist()
    images = np.concatenate([generated.images[chosen], training.images[indices[chosen]]])
    labels = np.concatenate([2 * generated.labels[chosen], 2 * generated.labels[chosen] + 1])
    names = generated.class_names
    rows = [row for name in names for row in (f"{name}, generated", "nearest in training")]
    title = "generated images and the training images nearest to them"
    save_png(labelled_grid(images, labels, rows, bands=training.bands, title=title), path)


def _compared(
    real: np.ndarray, images: np.ndarray, *, errors: bool = True
) -> dict[MetricName, tuple[float, float | None]]:
    """Values and standard errors of all distances."""
    neighbours = neighbourhoods(real, images)
    return {
        "FID": (
            frechet_distance(real, images),
            frechet_distance_error(real, images, seed=_SEED) if errors else None,
        ),
        "KID": kernel_distance(real, images, seed=_SEED),
        "precision": (neighbours["precision"], None),
        "recall": (neighbours["recall"], None),
        "density": (neighbours["density"], None),
        "coverage": (neighbours["coverage"], None),
    }


def drawn(features: np.ndarray, num: int, part: int) -> np.ndarray:
    """`num` random images; each `part` of a comparison has a stream of its own."""
    rng = np.random.default_rng(derive_seed(_SEED, Stream.SUBSET, 4, part))
    return features[rng.permutation(len(features))[:num]]


def _metric(
    name: MetricName,
    extractor: Extractor,
    num: int,
    split: Split,
    value: float,
    error: float | None,
    floor: float | None,
    better: Better,
) -> Metric:
    record = extractor.record
    label = f"{name}[{record.name} {record.digest}, N={num}, {split}]"
    return Metric(name, label, split, num, value, better, error=error, floor=floor)


def _share_error(share: float, num: int) -> float:
    """The standard error of a share of N independent images."""
    return float((share * (1 - share) / num) ** 0.5)
