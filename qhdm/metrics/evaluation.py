"""The evaluation: images against the real ones they should look like (docs/evaluation.md)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from qhdm import data
from qhdm.config import DataConfig
from qhdm.data import Dataset
from qhdm.device import resolve_device
from qhdm.errors import ConfigError, EvaluationError
from qhdm.metrics.classifier import ClassifierSettings
from qhdm.metrics.features import Extractor, make_extractor
from qhdm.metrics.groups import (
    Neighbours,
    check_size,
    class_accuracy,
    distances,
    memorisation,
    neighbours,
)
from qhdm.metrics.records import (
    DataRecord,
    Evaluation,
    GeneratedRecord,
    Metric,
    Split,
    read_evaluation,
    write_evaluation,
)
from qhdm.metrics.samples import described, from_folder, sampled
from qhdm.metrics.settings import GROUPS, EvaluationSettings, Group
from qhdm.metrics.trained import TrainedClassifier, trained_classifier
from qhdm.metrics.utility import utility
from qhdm.runs.config import load_run_config
from qhdm.runs.directory import RunDirectory

#: What of the data a run may be given anew: the same images may lie elsewhere by now.
_MOVABLE = ("data.root", "data.skip_broken")
#: Pairs of each class in the picture of nearest neighbours.
_PAIRS = 8


@dataclasses.dataclass(frozen=True)
class Reporting:
    """What happens beside the numbers.

    Attributes:
        progress: show bars on stderr.
        say: receives a sentence about what is done or found done already.
        picture: draws generated images beside their nearest training images, to a PNG file, given
            the names of the classes.
    """

    progress: bool = False
    say: Callable[[str], None] = lambda _: None
    picture: Callable[[Neighbours, Sequence[str], Path], None] | None = None


def evaluate_run(
    run: str | Path,
    settings: EvaluationSettings | None = None,
    *,
    out: Path | None = None,
    overrides: Sequence[str] = (),
    reporting: Reporting | None = None,
) -> Evaluation:
    """Sample a run and judge its images; a request that is done already is read.

    Args:
        run: a run directory with a checkpoint.
        settings: what to evaluate, and how.
        out: the JSON file; by default in the run's `evaluations/`, named after the request.
        overrides: `data.root=PATH`, where the data have moved.
        reporting: progress, messages and the picture.

    Returns:
        What is in the file.

    Raises:
        EvaluationError: too few images, weights that cannot be used, a file that is in the way.
        RunError, ConfigError, DataError, SamplingError, EngineError: of run, data and sampling.

    Example:
        >>> settings = EvaluationSettings(metrics=("classes",))
        >>> evaluate_run("runs/quickstart", settings).find("class accuracy").value  # doctest: +SKIP
        0.43
    """
    settings, reporting = settings or EvaluationSettings(), reporting or Reporting()
    _check_overrides(overrides)
    opened = RunDirectory.open(run)
    real = load_run_config(opened.path, overrides).data
    generated = described(opened, settings)
    more = "give --num {} or more"
    whole = data.load(real, progress=reporting.progress)
    judge = Judge(whole, settings, reporting, num=generated.num, more=more)
    path = out or evaluation_path(opened, generated, judge.extractor)

    def images() -> Dataset:
        found, present = sampled(opened, settings, progress=reporting.progress)
        if present:
            reporting.say(f"{present} of the {settings.num} images were sampled before")
        return found

    return judge.evaluate(generated, images, path)


def evaluate_folder(
    images: Path,
    real: DataConfig,
    settings: EvaluationSettings | None = None,
    *,
    out: Path | None = None,
    reporting: Reporting | None = None,
) -> Evaluation:
    """Judge images of a folder, whoever made them.

    Args:
        images: class folders, or a zip of them; all are used.
        real: the real images.
        settings: extractor, metrics and device; what is about sampling is not read.
        out: the JSON file; none is written without.
        reporting: progress, messages and the picture.

    Returns:
        What is in the file.

    Raises:
        EvaluationError, DataError: as `evaluate`; or the folder has other classes.
    """
    settings, reporting = settings or EvaluationSettings(), reporting or Reporting()
    real = dataclasses.replace(real, classes=data.class_names(real))
    found = from_folder(images, real)
    whole = data.load(real, progress=reporting.progress)
    judge = Judge(whole, settings, reporting, num=len(found), more="give {} or more")
    record = GeneratedRecord(source=str(images), num=len(found))
    return judge.evaluate(record, lambda: found, out)


def evaluation_path(run: RunDirectory, generated: GeneratedRecord, extractor: Extractor) -> Path:
    """Where the evaluation of a request is kept."""
    parts = [
        f"{generated.num}images",
        f"{generated.sampler}-{generated.steps}steps",
        f"guidance{generated.guidance:g}",
        f"seed{generated.seed}",
        f"{generated.weights}-step{generated.step}",
        str(generated.engine).replace(":", "-"),
    ]
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
    parts.append(f"{extractor.record.name}-{extractor.record.digest}")
    return run.path / "evaluations" / ("_".join(parts).replace("+", "p") + ".json")


class Judge:
    """Real images, extractor and settings: what generated images are judged by.

    Raises:
        EvaluationError: the wanted metrics cannot use `num` images (`more` says how to have more),
            or a split.
    """

    def __init__(
        self,
        real: Dataset,
        settings: EvaluationSettings,
        reporting: Reporting,
        *,
        num: int,
        more: str,
    ) -> None:
        self._settings, self._reporting = settings, reporting
        self._device = resolve_device(settings.device, key="device")
        self._real = real
        self._training, self._test = self._real.split("train"), self._real.split("test")
        for part, name in ((self._training, "training"), (self._test, "test")):
            _check_classes(part, name)

        def check(dim: int) -> None:
            if "distances" in settings.metrics:
                check_size(num, len(self._training), len(self._test), dim, more=more)

        if settings.extractor == "classifier" and settings.extractor_weights is None:
            check(ClassifierSettings.dim)  # before it is trained
        self.extractor = make_extractor(
            settings, self._training, device=self._device, progress=reporting.progress
        )
        check(self.extractor.record.dim)

    def evaluate(
        self, generated: GeneratedRecord, images: Callable[[], Dataset], path: Path | None
    ) -> Evaluation:
        """The evaluation of `images`, written to `path`; groups that are there are not redone."""
        found = Evaluation(
            data=DataRecord(
                name=self._real.name,
                digest=self._real.digest(),
                train=len(self._training),
                test=len(self._test),
                image_size=self._real.images.shape[1],
            ),
            generated=generated,
            extractor=self.extractor.record,
            metrics=(),
        )
        if path and path.exists():
            found = _matching(path, found)
            if found.groups:
                self._reporting.say(f"{', '.join(found.groups)}: read from {path}")
        wanted = [group for group in GROUPS if group in self._settings.metrics]
        missing = [group for group in wanted if group not in found.groups]
        if not missing:
            return found
        judged = images()
        for group in missing:
            metrics, notes = self._group(group, judged, path)
            found = dataclasses.replace(
                found,
                groups=(*found.groups, group),
                metrics=(*found.metrics, *metrics),
                notes=(*found.notes, *notes),
            )
            if path:  # group by group: an interruption loses one
                write_evaluation(found, path)
        return found

    def _group(
        self, group: Group, images: Dataset, path: Path | None
    ) -> tuple[list[Metric], Sequence[str]]:
        if group == "classes":
            return list(class_accuracy(self._classifier(), images, self._test)), ()
        if group == "utility":
            found = utility(
                self._training,
                self._test,
                images,
                device=self._device,
                progress=self._reporting.progress,
            )
            return list(found.metrics), found.notes
        features = self.extractor.features(images.images)
        whole = self.extractor.reference(self._real)
        real: dict[Split, np.ndarray] = {
            "train": whole[~self._real.is_test],
            "test": whole[self._real.is_test],
        }
        if group == "distances":
            return list(distances(self.extractor, features, real)), ()
        if self._reporting.picture and path:
            pairs = neighbours(images, features, self._training, real["train"], per_class=_PAIRS)
            picture = path.with_name(f"{path.stem}_neighbours.png")
            self._reporting.picture(pairs, self._real.class_names, picture)
            self._reporting.say(f"nearest training images: {picture}")
        return [memorisation(self.extractor, features, real)], ()

    def _classifier(self) -> TrainedClassifier:
        """The extractor, where it is a classifier; else the one of the training split."""
        network = self.extractor.network
        if isinstance(network, TrainedClassifier):
            return network
        return trained_classifier(
            self._training,
            ClassifierSettings(),
            device=self._device,
            progress=self._reporting.progress,
        )


def _check_classes(part: Dataset, name: str) -> None:
    """Refuse a split that lacks a class."""
    for label, class_name in enumerate(part.class_names):
        if not (part.labels == label).any():
            raise EvaluationError(
                f"{part.name}: class {class_name} has no image in the {name} split, and an "
                "evaluation needs both; train with data.test_fraction above 0 and two images or "
                "more of each class"
            )


def _matching(path: Path, request: Evaluation) -> Evaluation:
    """The evaluation in a file, if it is of this request."""
    found = read_evaluation(path)

    same = found.data == request.data and found.extractor == request.extractor
    if not (same and found.generated.answers(request.generated)):
        raise EvaluationError(
            f"{path}: is the evaluation of other data or another request; name another file with "
            "--out, or delete it"
        )
    return found


def _check_overrides(overrides: Sequence[str]) -> None:
    """Refuse changes beyond where the data lie: they would mix training and test images."""
    for override in overrides:
        key = override.partition("=")[0].strip()
        if key not in _MOVABLE:
            raise ConfigError(
                f"--set {key}: an evaluation keeps the run's configuration; only "
                f"{' and '.join(_MOVABLE)} may be given anew"
            )
