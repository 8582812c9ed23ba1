"""What is asked of an augmentation, and its record, a JSON file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from qhdm.config import SamplerOptions
from qhdm.config.fields import STRICT as STRICT_SETTINGS
from qhdm.config.fields import Positive
from qhdm.errors import EvaluationError
from qhdm.metrics.records import STRICT, Count, DataRecord, GeneratedRecord
from qhdm.schema import one_line_errors, read_record
from qhdm.tables import Table, signed

#: Of the record in the folder of images.
FILE_NAME = "augment.json"


@one_line_errors
@dataclass(frozen=True, config=STRICT_SETTINGS)
class AugmentSettings(SamplerOptions):
    """A request to augment real images.

    Attributes:
        num: images of each class to sample, of which some are chosen.
        sampler, steps, guidance, guidance_interval, guide, eta, weights: of sampling; see
            `qhdm.Sampling`.
        seed: of the images, and of the classifiers that choose.
        device: where to sample and to train classifiers.

    Example:
        >>> qhdm.AugmentSettings(num=50, guidance=1.5).seed
        0
    """

    num: Positive = 100
    device: Literal["auto", "cpu", "cuda"] = "auto"


@dataclass(frozen=True, config=STRICT)
class Trial:
    """Classifiers trained with generated images, against ones trained without.

    Attributes:
        counts: generated images of each class, in the order of the classes.
        gain: of the accuracy on held-out folds of the real images; 0.02 is two points.
        error: its standard error, paired.
    """

    counts: tuple[Count, ...]
    gain: float
    error: Annotated[float, Field(ge=0)]

    @property
    def lower(self) -> float:
        """The lower end of an interval of one standard error, by which trials are compared."""
        return self.gain - self.error


@dataclass(frozen=True, config=STRICT)
class ClassRecord:
    """The images of a class.

    Attributes:
        class_name: (`class` in JSON).
        real, sampled: how many there are.
        unlike: sampled ones in which classifiers do not see the class.
        copies: those that are nearer to a real image than real images are to each other.
        duplicates: those twice as near to another sampled image.
        chosen: those in the folder.
        numbers: of the chosen images, as `qhdm sample` counts them.
        effect: what the images of this class did to the accuracy in the trial of the counts that
            were chosen for all classes, or else in the best; see `choice.effects`.
        error: its standard error.
    """

    class_name: Annotated[str, Field(alias="class")]
    real: Count
    sampled: Count
    unlike: Count
    copies: Count
    duplicates: Count
    chosen: Count
    numbers: tuple[Count, ...]
    effect: float
    error: float


@dataclass(frozen=True, config=STRICT)
class Augmentation:
    """The record of an augmentation.

    Attributes:
        data, generated: the real images, and the sampled ones.
        classes: one by one.
        baseline: accuracy on held-out folds with real images alone.
        trials: in the order in which they were made; the chosen counts are those of one of them, or
            none of any class.
        gain, error: of the chosen counts.
        folds: of the real images.
        seed: of the classifiers.
        notes: what to know, one sentence each.
        format: version of the file.
    """

    data: DataRecord
    generated: GeneratedRecord
    classes: tuple[ClassRecord, ...]
    baseline: float
    trials: tuple[Trial, ...]
    gain: float
    error: float
    folds: Count
    seed: Count
    notes: tuple[str, ...] = ()
    format: Literal[1] = 1

    @property
    def chosen(self) -> dict[str, int]:
        """How many images of each class were chosen."""
        return {record.class_name: record.chosen for record in self.classes}


def read_augmentation(path: Path) -> Augmentation:
    """Read the record of an augmentation, or that in its folder.

    Raises:
        EvaluationError: the file is missing or damaged.
    """
    path = path / FILE_NAME if path.is_dir() else path
    remedy = "make it with `qhdm augment`"
    return read_record(Augmentation, path, EvaluationError, missing=remedy, again=remedy)


def describe(record: Augmentation) -> str:
    """The augmentation as text for the terminal."""
    rows: list[list[Any]] = [
        [
            own.class_name,
            own.real,
            own.sampled,
            own.unlike,
            own.copies,
            own.duplicates,
            own.chosen or "none",
        ]
        for own in record.classes
    ]
    header = ["class", "real", "sampled", "other class", "copies", "duplicates", "chosen"]
    lines = [Table(header, [list(map(str, row)) for row in rows]).markdown(), ""]
    lines.append(
        f"accuracy on held-out folds of the real images: {100 * record.baseline:.1f} % without "
        "generated images"
    )
    for trial in record.trials:
        most, fewest = max(trial.counts), min(trial.counts)
        counts = f"{most}" if most == fewest else f"{fewest} to {most}"
        gain = f"{signed(100 * trial.gain)} ± {100 * trial.error:.1f} points"
        lines.append(f"with {counts} generated images of each class: {gain}")
    return "\n".join([*lines, *(f"note: {note}" for note in record.notes)])
