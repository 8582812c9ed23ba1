"""Evaluation as a library call: runs, folders, data sets or arrays in, metrics out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qhdm import data
from qhdm.config import DataConfig
from qhdm.data import Dataset
from qhdm.errors import EvaluationError
from qhdm.metrics.classifier import ClassifierSettings
from qhdm.metrics.evaluation import Judge, Reporting, evaluate_folder, evaluate_run
from qhdm.metrics.groups import check_size
from qhdm.metrics.records import Evaluation, GeneratedRecord
from qhdm.metrics.samples import as_dataset
from qhdm.metrics.settings import EvaluationSettings, Group
from qhdm.run import Run

#: Groups that need no labels.
_UNLABELLED: tuple[Group, ...] = ("distances", "memorisation")


def evaluate(
    generated: Any,
    real: Any = None,
    settings: EvaluationSettings | None = None,
    *,
    labels: Sequence[int | str] | None = None,
    out: str | Path | None = None,
) -> Evaluation:
    """Judge generated images by real ones.

    Args:
        generated: uint8 images (N, H, W, C), as `Run.sample` returns them; a data set; a `Run` or
            the path of its directory, which is then sampled; or a folder of class folders.
        real: the real images: any torch `Dataset` of (image, label), a `qhdm.data.Dataset`, or a
            `DataConfig`. A set without a split of its own is split by `held_out`, a tenth of each
            class being the test images. A run has its own, and needs none.
        settings: metrics, extractor and device; of runs, also how they are sampled. By default all
            metrics that the images allow.
        labels: classes of the images of an array, by number or name. Without them, only distances
            and memorisation are computed.
        out: a JSON file to write.

    Returns:
        The metrics, each with its feature extractor and the numbers of images.

    Raises:
        EvaluationError: there are too few images for the metrics that are asked for.
        DataError, RunError, ConfigError: images, run or settings cannot be used.

    Example:
        >>> images = np.random.default_rng(0).integers(0, 255, (20, 16, 16, 3), dtype=np.uint8)
        >>> result = qhdm.evaluate(images, DATASET)
        >>> [metric.name for metric in result.metrics]
        ['memorisation']
    """
    path = Path(out) if out is not None else None
    if isinstance(generated, Run):
        if generated.path is None:
            raise EvaluationError("evaluate: this network is of no run directory; give images")
        generated = generated.path
    if isinstance(generated, str | Path):
        if (Path(generated) / "config.yaml").is_file():
            return evaluate_run(generated, settings, out=path)
        if not isinstance(real, DataConfig):
            raise EvaluationError("evaluate: real images for a folder are given as a DataConfig")
        return evaluate_folder(Path(generated), real, settings, out=path)
    whole = _real(real, generated)
    made, labelled = _generated(generated, whole, labels)
    wanted = settings or EvaluationSettings(metrics=_possible(whole, len(made), labelled=labelled))
    if not labelled and (more := set(wanted.metrics) - set(_UNLABELLED)):
        raise EvaluationError(f"labels: needed by the metrics {', '.join(sorted(more))}")
    judge = Judge(whole, wanted, Reporting(), num=len(made), more="give {} or more")
    return judge.evaluate(GeneratedRecord(source="array", num=len(made)), lambda: made, path)


def _real(real: Any, generated: Any) -> Dataset:
    if isinstance(real, DataConfig):
        return data.load(real)
    if real is None:
        raise EvaluationError("evaluate: give the real images to compare with")
    height, _, channels = (
        np.shape(generated)[1:] if isinstance(generated, np.ndarray) else generated.images.shape[1:]
    )
    if not isinstance(real, Dataset):
        real = data.given(real, DataConfig(image_size=height, channels=channels))
    if not real.is_test.any():
        test = np.zeros(len(real), dtype=bool)
        for label in range(len(real.class_names)):
            own = np.flatnonzero(real.labels == label)
            test[own] = data.held_out([real.names[i] for i in own], DataConfig.test_fraction)
        real = dataclasses.replace(real, is_test=test)
    return real


def _generated(
    generated: Any, real: Dataset, labels: Sequence[int | str] | None
) -> tuple[Dataset, bool]:
    """The generated images as a data set, and whether their labels mean something."""
    if isinstance(generated, Dataset):
        return generated, True
    images = np.asarray(generated)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != real.images.shape[1:]:
        raise EvaluationError(
            f"evaluate: images of type {images.dtype} and shape {images.shape}; give uint8 "
            f"(N, {', '.join(map(str, real.images.shape[1:]))}), as the real ones are"
        )
    if labels is None:
        return as_dataset(images, np.zeros(len(images), int), real.class_names, "array"), False
    numbers = [real.class_names.index(x) if isinstance(x, str) else int(x) for x in labels]
    if len(numbers) != len(images) or not all(0 <= n < len(real.class_names) for n in numbers):
        raise EvaluationError("labels: give one class for each image")
    return as_dataset(images, np.asarray(numbers), real.class_names, "array"), True


def _possible(real: Dataset, num: int, *, labelled: bool) -> tuple[Group, ...]:
    """The metrics that so many images allow, without the costly ones (`utility`)."""
    groups: list[Group] = ["classes"] if labelled else []
    test = int(real.is_test.sum())
    try:
        check_size(num, len(real) - test, test, ClassifierSettings.dim, more="")
        groups.append("distances")
    except EvaluationError:
        pass  # too few for a distance to mean anything
    return (*groups, "memorisation")
