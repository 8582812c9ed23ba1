"""Evaluations as records: what was compared, by which extractor, and the metrics; JSON files."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from qhdm.config.sampling import Interval, Weights, guidance_label
from qhdm.errors import EvaluationError
from qhdm.quantum.options import ENGINES, Aer, EngineOptions, Method
from qhdm.schema import read_record

if TYPE_CHECKING:
    from qhdm.data import Dataset

#: Unknown keys and numbers that are not finite are refused; `class` is a keyword, hence an alias.
STRICT = ConfigDict(
    extra="forbid", allow_inf_nan=False, validate_by_name=True, validate_by_alias=True
)

#: In the order of tables: first what a model cannot raise by fewer kinds of images. Class accuracy,
#: which guidance raises above that of real images, is never first.
MetricName = Literal[
    "denoising loss",
    "recall",
    "coverage",
    "CAS",
    "augmentation gain",
    "FID",
    "KID",
    "spectral angle",
    "band correlation",
    "NDVI",
    "NDWI",
    "precision",
    "density",
    "class accuracy",
    "memorisation",
    "circuit use",
    "label use",
]
_METRICS: tuple[str, ...] = get_args(MetricName)
Split = Literal["test", "train"]
Better = Literal["lower", "higher"]
Count = Annotated[int, Field(ge=0)]


@dataclass(frozen=True, config=STRICT)
class Metric:
    """One value of a metric (docs/evaluation.md).

    Attributes:
        name: of the metric.
        label: the name with extractor, N and split: `FID[classifier ab12cd34, N=700, test]`.
        split: the part of the real images that was compared with, or tested on.
        num: N, the number of generated images; of a network's metrics, of held-out images.
        value: in [0, 1] for shares and accuracies.
        better: whether lower or higher values are better.
        class_name: for a value of a single class (`class` in JSON).
        error: the standard error, if there is one.
        baseline: the accuracy with real images alone, to which a gain is added; of circuit use,
            that of as many classical channels.
        floor: the value for real images in the place of generated ones, if it can be computed.
        setting: of few-shot trainings: `10 real images per class`.
    """

    name: MetricName
    label: str
    split: Split | None
    num: Count
    value: float
    better: Better | None
    class_name: Annotated[str | None, Field(alias="class")] = None
    error: float | None = None
    baseline: float | None = None
    floor: float | None = None
    setting: str | None = None


#: What is replaced to see how much a network uses it (use.py).
Replaced = Literal["filters", "angles", "channels", "hidden labels", "shuffled labels"]


@dataclass(frozen=True, config=STRICT)
class Use:
    """What changes in a network where a part of it is replaced (`qhdm.metrics.use`).

    Attributes:
        place: a layer of filters, `all` of them, or `label`.
        replaced: what.
        loss: relative change of the held-out denoising loss; 0.02 is two per cent more.
        error: its standard error over images, paired.
        prediction: root mean square change of the network's output, over its standard deviation.
    """

    place: str
    replaced: Replaced
    loss: float
    error: float | None
    prediction: Annotated[float, Field(ge=0)]


@dataclass(frozen=True, config=STRICT)
class DataRecord:
    """The real images: name of the set, digest of its images and their split, counts, pixels."""

    name: str
    digest: str
    train: Count
    test: Count
    image_size: Count

    @classmethod
    def of(cls, images: Dataset) -> DataRecord:
        test = int(images.is_test.sum())
        size = images.images.shape[1]
        return cls(images.name, images.digest(), len(images) - test, test, size)


@dataclass(frozen=True, config=STRICT)
class GeneratedRecord:
    """The generated images: where they come from, and how they were sampled.

    Of images that were not sampled from a run, only source and number are known.

    Attributes:
        source: the run directory, or the folder.
        num: over all classes. Where no sampler is known, but weights are, the network alone was
            measured, on at most so many held-out images.
        step: training step of the weights.
        guidance_interval, guide: of guidance (`qhdm.Sampling`), if they are not null.
        engine, shots, noise, method, device: what evaluated the filters (`engine_options`). Older
            versions did not record method and device.
        eta: of DDIM, if it is not 0.
        start: `mean` where sampling starts around the mean of images. Older versions started around
            zero (`qhdm.diffusion.samplers.states`).
        digest: of the weights; of images that were not sampled from a run, of these. Older versions
            did not record it.
    """

    source: str
    num: Count
    sampler: str | None = None
    steps: int | None = None
    guidance: float | None = None
    seed: int | None = None
    weights: Weights | None = None
    step: int | None = None
    engine: str | None = None
    shots: int | None = None
    noise: str | None = None
    method: Method | None = None
    device: Literal["CPU", "GPU"] | None = None
    eta: float | None = None
    guidance_interval: Interval | None = None
    guide: Weights | None = None
    start: Literal["mean"] | None = None
    digest: str | None = None

    @staticmethod
    def engine_fields(engine: EngineOptions) -> dict[str, Any]:
        """The fields that record an engine."""
        aer = vars(engine) if isinstance(engine, Aer) else {}
        names = ("shots", "noise", "method", "device")
        return {"engine": engine.name, **{name: aer.get(name) for name in names}}

    @property
    def engine_options(self) -> EngineOptions | None:
        """What evaluated the filters; None for images that were not sampled from a run."""
        if self.engine != "aer":
            return ENGINES.get(self.engine or "")
        return Aer(
            method=self.method or "auto",
            shots=self.shots,
            noise=self.noise,
            device=self.device or "CPU",
        )

    @property
    def engine_label(self) -> str | None:
        """`exact`, or `aer, fake_torino, 64 shots`; None as `engine_options`."""
        return self.engine_options.description if self.engine_options else self.engine

    @property
    def description(self) -> str:
        """How the images were made, in a line."""
        if self.sampler is None and self.weights is not None:
            return (
                f"the network of {self.source}; {self.weights} weights of step {self.step:,}; "
                f"engine {self.engine_label}"
            )
        parts = [f"{self.num:,} generated images from {self.source}"]
        if self.engine is not None:
            assert self.guidance is not None
            guidance = guidance_label(self.guidance, self.guidance_interval, self.guide)
            parts += [
                f"{self.weights} weights of step {self.step:,}",
                f"{self.sampler}, {self.steps} steps",
                f"{guidance}, seed {self.seed}",
                f"engine {self.engine_label}",
            ]
            if self.start is None:
                parts.append("started around zero, by an older version")
        return "; ".join(parts)

    def answers(self, asked: GeneratedRecord) -> bool:
        """Whether these are the images that `asked` describes, wherever the run was."""
        known = dataclasses.replace(self, source=asked.source, digest=self.digest or asked.digest)
        if self.method is None:
            known = dataclasses.replace(known, method=asked.method, device=asked.device)
        return known == asked


@dataclass(frozen=True, config=STRICT)
class ExtractorRecord:
    """The network that extracted features: name, digest of its weights, features per image."""

    name: str
    digest: str
    dim: Count


@dataclass(frozen=True, config=STRICT)
class Evaluation:
    """The results of an evaluation.

    Attributes:
        extractor: None where no metric needs features.
        groups: the groups of metrics that were computed, such as `distances`.
        notes: what was left out and why, one sentence each.
        use: of the network, if the group `use` was computed.
        format: version of the file, raised when older readers would misunderstand it.
    """

    data: DataRecord
    generated: GeneratedRecord
    extractor: ExtractorRecord | None
    metrics: tuple[Metric, ...]
    groups: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    use: tuple[Use, ...] = ()
    format: Literal[1] = 1

    def __str__(self) -> str:
        from qhdm.metrics.tables import describe

        return describe(self)

    def find(
        self,
        name: MetricName,
        *,
        split: Split | None = None,
        class_name: str | None = None,
        setting: str | None = None,
    ) -> Metric | None:
        """The first metric of that name, split (any if None), class and setting; None if absent."""
        wanted = (name, class_name, setting)
        for metric in self.metrics:
            known = (metric.name, metric.class_name, metric.setting)
            if known == wanted and split in (None, metric.split):
                return metric
        return None


def table_order(label: str) -> int:
    """A key that sorts the labels of metrics as tables show them; unknown ones come last."""
    name = label.partition("[")[0]
    return _METRICS.index(name) if name in _METRICS else len(_METRICS)


def read_evaluation(path: str | Path) -> Evaluation:
    """Read the JSON file of an evaluation.

    Raises:
        EvaluationError: the file is missing, unreadable, or not an evaluation.
    """
    return read_record(
        Evaluation,
        Path(path),
        EvaluationError,
        missing="`qhdm evaluate` makes one",
        again="delete it and evaluate again",
    )
