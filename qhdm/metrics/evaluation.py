"""The evaluation of generated images by real ones (docs/evaluation.md)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qhdm import console, data
from qhdm.config import DataConfig
from qhdm.data import Dataset
from qhdm.device import resolve_device
from qhdm.errors import EvaluationError
from qhdm.metrics.bands import band_metrics
from qhdm.metrics.denoising import denoising_loss, held_out
from qhdm.metrics.distances import fewest_images
from qhdm.metrics.features import Extractor, make_extractor
from qhdm.metrics.groups import class_accuracy, distances, memorisation, save_neighbours
from qhdm.metrics.records import (
    DataRecord,
    Evaluation,
    ExtractorRecord,
    GeneratedRecord,
    Metric,
    MetricName,
    Split,
    Use,
    read_evaluation,
)
from qhdm.metrics.resnet import ResNetSettings
from qhdm.metrics.samples import described, from_arrays, from_folder, real_set, sampled
from qhdm.metrics.settings import NETWORK_GROUPS, EvaluationSettings, Group
from qhdm.metrics.trained import TrainedClassifier, trained_classifier
from qhdm.metrics.use import network_use
from qhdm.metrics.utility import utility
from qhdm.run import Run
from qhdm.runs.directory import RunDirectory
from qhdm.schema import write_record
from qhdm.shipped import results_path, run_path

#: Groups that need no labels.
_UNLABELLED: tuple[Group, ...] = ("distances", "memorisation")
#: What the groups of the network alone measure.
_OF_NETWORK: tuple[MetricName, ...] = ("denoising loss", "circuit use", "label use")


def evaluate(
    generated: Any,
    real: Any = None,
    settings: EvaluationSettings | None = None,
    *,
    labels: Sequence[int | str] | None = None,
    out: str | Path | None = None,
    progress: bool = False,
) -> Evaluation:
    """Evaluate generated images by real ones.

    Groups of metrics that the file already holds are read from it.

    Args:
        generated: uint8 images (N, H, W, C), as `Run.sample` returns them; a data set; a `Run`, the
            path of its directory or the name of a shipped model, which is then sampled; or a folder
            or zip of class folders.
        real: the real images: any torch `Dataset` of (image, label), of which a tenth of each
            class is held out as `train` does by default; a `qhdm.data.Dataset` with its own split;
            or a `DataConfig`, as for folders. A run has its own; if they have moved, give its
            `DataConfig` with another `root`, and the data set if it was trained on one.
        settings: metrics, extractor and device; of runs, also how they are sampled. By default all
            metrics that the images allow.
        labels: classes of the images of an array, by number or name. Without them, only distances
            and memorisation are computed.
        out: the JSON file, of these images with these labels; by default none or, of a run, one in
            its `evaluations/`. A picture of nearest neighbours is written beside it.
        progress: show bars and messages on stderr.

    Returns:
        The metrics, each with its feature extractor and the numbers of images.

    Raises:
        EvaluationError: there are too few images for the metrics that are asked for, weights
            cannot be used, or the file is of another request.
        DataError, RunError, ConfigError, SamplingError, EngineError: images, run or settings
            cannot be used.

    Example:
        >>> images = np.random.default_rng(0).integers(0, 255, (20, 16, 16, 3), dtype=np.uint8)
        >>> result = qhdm.evaluate(images, DATASET)
        >>> [metric.name for metric in result.metrics]
        ['memorisation']
    """
    if isinstance(generated, Run):
        if generated.path is None:
            raise EvaluationError("evaluate: this network is of no run directory; give images")
        generated = generated.path
    if not isinstance(generated, str | Path):
        subject, labelled = _of_arrays(generated, real, labels)
        settings = settings or EvaluationSettings(metrics=_possible(subject, labelled))
        if not labelled and (
            more := set(settings.groups(of_run=False, bands=subject.real.bands is not None))
            - set(_UNLABELLED)
        ):
            raise EvaluationError(f"labels: needed by the metrics {', '.join(sorted(more))}")
    else:
        settings = settings or EvaluationSettings()
        of_path = _of_run if (run_path(generated) / "config.yaml").is_file() else _of_folder
        subject = (_of_run if real is None else of_path)(generated, real, settings, progress)
    return _evaluate(subject, settings, None if out is None else Path(out), progress)


@dataclasses.dataclass(frozen=True)
class _Subject:
    """The images to evaluate.

    Attributes:
        real: the whole set of real images.
        record: of the generated images.
        generated: samples or returns them.
        more: how to have more of them, with {} for a number.
        run: that they are sampled from.
    """

    real: Dataset
    record: GeneratedRecord
    generated: Callable[[], Dataset]
    more: str = "give {} or more"
    run: RunDirectory | None = None


def _of_arrays(
    generated: Any, real: Any, labels: Sequence[int | str] | None
) -> tuple[_Subject, bool]:
    """The subject, and whether its labels are known."""
    whole = real_set(real, generated)
    images, labelled = from_arrays(generated, whole, labels)
    record = GeneratedRecord(source="array", num=len(images), digest=images.digest())
    return _Subject(whole, record, lambda: images), labelled


def _possible(subject: _Subject, labelled: bool) -> tuple[Group, ...]:
    """The metrics that so many images allow, without the costly ones (`utility`)."""
    groups: list[Group] = ["classes"] if labelled else []
    if labelled and subject.real.bands is not None:
        groups.append("bands")
    test = int(subject.real.is_test.sum())
    fewest = min(subject.record.num, test, len(subject.real) - test)
    if fewest >= fewest_images(ResNetSettings.dim):
        groups.append("distances")
    return (*groups, "memorisation")


def _of_folder(
    path: str | Path, real: Any, settings: EvaluationSettings, progress: bool
) -> _Subject:
    if not isinstance(real, DataConfig):
        raise EvaluationError("evaluate: real images for a folder are given as a DataConfig")
    settings.groups(of_run=False, bands=real.bands is not None)  # refuses those of a network
    real = dataclasses.replace(real, classes=data.class_names(real))
    whole = data.load(real, progress=progress)
    if whole.bands is not None:  # the generated images get the range that the real ones have
        real = dataclasses.replace(real, range=whole.bands.range, percentile=None)
    images = from_folder(Path(path), real)
    record = GeneratedRecord(source=str(path), num=len(images), digest=images.digest())
    return _Subject(whole, record, lambda: images)


def _of_run(path: str | Path, real: Any, settings: EvaluationSettings, progress: bool) -> _Subject:
    run = RunDirectory.open(path)
    own = run.config.data
    real = own if real is None else real
    handed_over = own.root == data.GIVEN and not isinstance(real, DataConfig)
    if not handed_over and (
        not isinstance(real, DataConfig)
        or own
        != dataclasses.replace(real, root=own.root, split=own.split, skip_broken=own.skip_broken)
    ):
        raise EvaluationError(
            "evaluate: a run is evaluated with its own data; only root, split and skip_broken may "
            "change"
        )

    def generated() -> Dataset:
        images, present = sampled(run, settings, progress=progress)
        if present and progress:
            console.message(f"{present} of the {settings.num} images were sampled before")
        return images

    record = described(run, settings)
    whole = data.given(real, own) if handed_over else data.load(real, progress=progress)
    return _Subject(whole, record, generated, "give --num {} or more", run)


def _evaluate(
    subject: _Subject, settings: EvaluationSettings, path: Path | None, progress: bool
) -> Evaluation:
    """Compute the groups of metrics that are not in the file yet."""
    real, record = subject.real, subject.record
    groups = settings.groups(of_run=subject.run is not None, bands=real.bands is not None)
    settings = dataclasses.replace(settings, metrics=groups)
    for split in ("training", "test"):
        present = real.labels[real.is_test == (split == "test")]
        for label in np.setdiff1d(np.arange(len(real.class_names)), present)[:1]:
            raise EvaluationError(
                f"{real.name}: class {real.class_names[label]} has no image in the {split} split, "
                "and an evaluation needs both; train with data.test_fraction above 0 and two "
                "images or more of each class"
            )
    device = resolve_device(settings.device, key="device")
    extractor = None
    if settings.needs_features:
        extractor = make_extractor(
            settings, real, num=record.num, more=subject.more, device=device, progress=progress
        )
    features = extractor.record if extractor else None
    if path is None and subject.run is not None:
        path = evaluation_path(subject.run, record, features)
    evaluation = Evaluation(DataRecord.of(real), record, features, metrics=())
    if path and path.exists():
        present = _matching(path, evaluation)
        if present.generated.start == record.start:
            evaluation = present
        else:
            evaluation = _without_images(present, evaluation)
            if progress:
                console.message(f"{path}: measured anew, as an older version sampled its images")
        if evaluation.groups and progress:
            console.message(f"{', '.join(evaluation.groups)}: read from {path}")
    comparison = _Comparison(subject, extractor, device, progress)
    for group in [group for group in groups if group not in evaluation.groups]:
        metrics: Iterable[Metric]
        notes: Sequence[str] = ()
        uses: Sequence[Use] = ()
        if group in NETWORK_GROUPS:
            metrics, uses = _of_network(group, subject, settings, device, progress)
        else:
            metrics, notes = comparison.group(group)
        evaluation = dataclasses.replace(
            evaluation,
            groups=(*evaluation.groups, group),
            metrics=(*evaluation.metrics, *metrics),
            notes=(*evaluation.notes, *notes),
            use=(*evaluation.use, *uses),
        )
        if path:  # after each group: an interruption loses one
            write_record(evaluation, path)
            if group == "memorisation":
                comparison.picture(path.with_name(f"{path.stem}_neighbours.png"))
    if path and progress:
        console.message(f"results: {path}")
    return evaluation


def _of_network(
    group: Group,
    subject: _Subject,
    settings: EvaluationSettings,
    device: torch.device,
    progress: bool,
) -> tuple[Sequence[Metric], Sequence[Use]]:
    """A group of metrics of the network of a run."""
    assert subject.run is not None
    run = Run.open(subject.run.path, device=str(device))
    network = run.with_engine(settings.engine_of(run.config.quantum), weights=settings.weights)
    test = held_out(subject.real.split("test"), settings.num)
    if group == "use":
        return network_use(network, run.config, run.preconditioning, test, progress=progress)
    return [denoising_loss(network, run.config, run.preconditioning, test, progress=progress)], ()


@dataclasses.dataclass(frozen=True)
class _Comparison:
    """Real and generated images, and their features once they are needed."""

    subject: _Subject
    known: Extractor | None
    device: torch.device
    progress: bool

    def group(self, group: Group) -> tuple[Iterable[Metric], Sequence[str]]:
        """The metrics of a group, and notes on what was left out."""
        if group == "distances":
            return distances(self.extractor, self._features, self._real_features), ()
        if group == "bands":
            parts: dict[Split, Dataset] = {
                "train": self.real.split("train"), "test": self.real.split("test")
            }  # fmt: skip
            return band_metrics(self.generated, parts)
        if group == "memorisation":
            return [memorisation(self.extractor, self._features, self._real_features)], ()
        training, test = self.real.split("train"), self.real.split("test")
        if group == "utility":
            return utility(
                training, test, self.generated, device=self.device, progress=self.progress
            )
        classifier = self.extractor.network
        if not isinstance(classifier, TrainedClassifier):
            classifier = trained_classifier(
                training, ResNetSettings(), device=self.device, progress=self.progress
            )
        return class_accuracy(classifier, self.generated, test), ()

    def picture(self, path: Path) -> None:
        """Draw the generated images that are nearest to training images."""
        training = self.real.split("train")
        features = self._real_features["train"]
        save_neighbours(path, self.generated, self._features, training, features)
        if self.progress:
            console.message(f"nearest training images: {path}")

    @property
    def extractor(self) -> Extractor:
        assert self.known is not None  # as `EvaluationSettings.needs_features` says
        return self.known

    @property
    def real(self) -> Dataset:
        return self.subject.real

    @cached_property
    def generated(self) -> Dataset:
        return self.subject.generated()

    @cached_property
    def _features(self) -> np.ndarray:
        return self.extractor.features(self.generated.images)

    @cached_property
    def _real_features(self) -> dict[Split, np.ndarray]:
        features, is_test = self.extractor.reference(self.real), self.real.is_test
        return {"train": features[~is_test], "test": features[is_test]}


def evaluation_path(
    run: RunDirectory, generated: GeneratedRecord, extractor: ExtractorRecord | None
) -> Path:
    """The default file of an evaluation, named after the request."""
    parts = [f"{generated.num}images"]
    if generated.sampler is None:
        parts.append("network")
    else:
        parts += [
            f"{generated.sampler}-{generated.steps}steps",
            f"guidance{generated.guidance:g}",
            f"seed{generated.seed}",
        ]
    parts += [
        f"{generated.weights}-step{generated.step}".replace(":", "-"),
        str(generated.engine).replace(":", "-"),
    ]
    if generated.guidance_interval:
        parts.append("sigma{:g}-{:g}".format(*generated.guidance_interval))
    if generated.guide:
        parts.append(f"by-{generated.guide}".replace(":", "-"))
    if generated.eta:
        parts.append(f"eta{generated.eta:g}")
    if generated.method not in (None, "auto"):
        parts.append(str(generated.method))
    if generated.device not in (None, "CPU"):
        parts.append(str(generated.device))
    if generated.shots:
        parts.append(f"{generated.shots}shots")
    if generated.noise:
        parts.append(Path(generated.noise).stem)
    if extractor:
        parts.append(f"{extractor.name}-{extractor.digest}")
    return results_path(run.path) / "evaluations" / ("_".join(parts).replace("+", "p") + ".json")


def _without_images(present: Evaluation, request: Evaluation) -> Evaluation:
    """What an evaluation of other images says of the network alone."""
    groups = tuple(group for group in present.groups if group in NETWORK_GROUPS)
    metrics = tuple(metric for metric in present.metrics if metric.name in _OF_NETWORK)
    return dataclasses.replace(request, groups=groups, metrics=metrics, use=present.use)


def _matching(path: Path, request: Evaluation) -> Evaluation:
    """The evaluation in a file, which must be of this request, if of images of any version."""
    present = read_evaluation(path)
    same = present.data == request.data and present.extractor == request.extractor
    generated = dataclasses.replace(present.generated, start=request.generated.start)
    if not (same and generated.answers(request.generated)):
        raise EvaluationError(
            f"{path}: is the evaluation of other data or another request; name another file with "
            "--out, or delete it"
        )
    return present
