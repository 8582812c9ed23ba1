"""Evaluations as records: what was compared, by which extractor, and what came out; JSON files."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from qhdm.errors import ConfigError, EvaluationError
from qhdm.quantum.options import Aer, Method
from qhdm.schema import Document, read_json, validate, write_record

#: Of the files; to be raised when a reader of old files would misunderstand new ones.
FORMAT = 1

#: Unknown keys and numbers that are not finite are refused; `class` is a keyword, hence an alias.
_STRICT = ConfigDict(
    extra="forbid", allow_inf_nan=False, validate_by_name=True, validate_by_alias=True
)

MetricName = Literal[
    "FID",
    "KID",
    "precision",
    "recall",
    "density",
    "coverage",
    "class accuracy",
    "CAS",
    "augmentation gain",
    "memorisation",
]
Split = Literal["test", "train"]
Count = Annotated[int, Field(ge=0)]


@dataclass(frozen=True, config=_STRICT)
class Metric:
    """One number, with all that is needed to read it (docs/evaluation.md).

    Attributes:
        name: of the metric.
        label: the name with extractor, N and split: `FID[classifier ab12cd34, N=700, test]`.
        split: the part of the real data that the images were compared with, or tested on.
        class_name: of a value for one class alone (`class` in JSON).
        num: N, generated images that entered.
        value: shares and accuracies are in [0, 1].
        error: its standard error, where there is one.
        baseline: accuracy of real images alone, to which a gain is to be added.
        floor: the same of real images in the place of the generated ones, where it can be had.
        better: whether lower or higher values are better.
        setting: of few-shot trainings: `10 real images per class`.
    """

    name: MetricName
    label: str
    split: Split | None
    num: Count
    value: float
    better: Literal["lower", "higher"] | None
    class_name: Annotated[str | None, Field(alias="class")] = None
    error: float | None = None
    baseline: float | None = None
    floor: float | None = None
    setting: str | None = None


@dataclass(frozen=True, config=_STRICT)
class DataRecord:
    """The real images: name of the set, digest of its images and their split, counts, pixels."""

    name: str
    digest: str
    train: Count
    test: Count
    image_size: Count


@dataclass(frozen=True, config=_STRICT)
class GeneratedRecord:
    """The images that were judged: where they come from, and how they were sampled.

    Of images read from a folder, only source and number are known.

    Attributes:
        source: the run directory, or the folder.
        num: how many, over all classes.
        eta: of DDIM, where it is not 0.
        step: training step of the weights.
        engine, shots, noise, method, device: what evaluated the filters. Older versions did not
            record method and device.
    """

    source: str
    num: Count
    sampler: str | None = None
    steps: int | None = None
    guidance: float | None = None
    seed: int | None = None
    weights: Literal["ema", "model"] | None = None
    step: int | None = None
    engine: str | None = None
    shots: int | None = None
    noise: str | None = None
    method: Method | None = None
    device: Literal["CPU", "GPU"] | None = None
    eta: float | None = None

    @property
    def engine_label(self) -> str | None:
        """For people: `exact`, `aer, fake_torino, 64 shots`; None of images from a folder."""
        if self.engine != "aer":
            return self.engine
        return Aer(
            method=self.method or "auto",
            shots=self.shots,
            noise=self.noise,
            device=self.device or "CPU",
        ).description

    def answers(self, asked: GeneratedRecord) -> bool:
        """Whether these are the images that `asked` describes, apart from where the run lies."""
        known = dataclasses.replace(self, source=asked.source)
        if self.method is None:
            known = dataclasses.replace(known, method=asked.method, device=asked.device)
        return known == asked


@dataclass(frozen=True, config=_STRICT)
class ExtractorRecord:
    """What turned images into features: its name, a digest of its weights, features per image."""

    name: str
    digest: str
    dim: Count


@dataclass(frozen=True, config=_STRICT)
class Evaluation:
    """What `qhdm evaluate` found.

    Attributes:
        groups: of metrics that were computed: `distances`, `classes`, `utility`, `memorisation`.
        notes: what was left out, and why; one sentence each.
    """

    data: DataRecord
    generated: GeneratedRecord
    extractor: ExtractorRecord
    metrics: tuple[Metric, ...]
    groups: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    format: int = FORMAT

    def find(
        self,
        name: MetricName,
        *,
        split: Split | None = None,
        class_name: str | None = None,
        setting: str | None = None,
    ) -> Metric | None:
        """The first metric of that name, split (any if None), class and setting; None if absent."""
        for metric in self.metrics:
            if (
                metric.name == name
                and split in (None, metric.split)
                and metric.class_name == class_name
                and metric.setting == setting
            ):
                return metric
        return None


def write_evaluation(evaluation: Evaluation, path: Path) -> None:
    """Write `evaluation` to a JSON file, whole or not at all."""
    write_record(evaluation, path)


#: It is in the way of the next evaluation.
_AGAIN = "delete it and evaluate again"


def read_evaluation(path: str | Path) -> Evaluation:
    """Read what `write_evaluation` wrote.

    Raises:
        EvaluationError: the file is missing, unreadable, or not an evaluation.
    """
    path = Path(path)
    data = read_json(path, EvaluationError, missing="`qhdm evaluate` makes one", again=_AGAIN)
    if not isinstance(data, dict) or "format" not in data:
        raise EvaluationError(f"{path}: not an evaluation of qhdm")
    if data["format"] != FORMAT:
        raise EvaluationError(
            f"{path}: format {data['format']!r}; this qhdm reads {FORMAT}; {_AGAIN}"
        )
    try:
        return validate(Evaluation, Document(str(path), data, {}))
    except ConfigError as error:
        raise EvaluationError(f"{error}; {_AGAIN}") from None
