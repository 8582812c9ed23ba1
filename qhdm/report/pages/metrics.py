"""Evaluations as tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from PIL import Image

from qhdm.errors import EvaluationError
from qhdm.metrics.records import Evaluation, Metric, read_evaluation
from qhdm.report.pages.html import data_uri

#: Standard errors on each side of a 95 % interval.
_WIDTH = 1.96


@dataclass(frozen=True)
class MetricRow:
    """A metric over all classes, and the ends of its 95 % interval where it has an error."""

    metric: Metric
    low: float | None
    high: float | None


@dataclass(frozen=True)
class ClassTable:
    """Metrics that have a value for each class: a column each."""

    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Metric | None]]]


@dataclass(frozen=True)
class EvaluationTables:
    """One evaluation, ready to be shown.

    Attributes:
        name: of its file.
        generated: how the images were made, in a line.
        neighbours: picture of those nearest to training images, where `qhdm evaluate` left one.
    """

    name: str
    evaluation: Evaluation
    generated: str
    rows: Sequence[MetricRow]
    by_class: ClassTable | None
    neighbours: str | None


def evaluation_tables(file: Path) -> EvaluationTables:
    """What an evaluation file holds, and the picture beside it.

    Raises:
        EvaluationError: one of them is damaged.
    """
    evaluation = read_evaluation(file)
    rows = [
        MetricRow(
            metric,
            None if metric.error is None else metric.value - _WIDTH * metric.error,
            None if metric.error is None else metric.value + _WIDTH * metric.error,
        )
        for metric in evaluation.metrics
        if metric.class_name is None
    ]
    return EvaluationTables(
        file.stem,
        evaluation,
        _generated(evaluation),
        rows,
        _by_class(evaluation),
        _picture(file.with_name(f"{file.stem}_neighbours.png")),
    )


def _picture(file: Path) -> str | None:
    if not file.exists():
        return None
    content = file.read_bytes()
    try:
        with Image.open(BytesIO(content), formats=["PNG"]) as picture:
            picture.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        raise EvaluationError(f"{file}: not a PNG, or damaged; delete it") from None
    return data_uri(content, "image/png")


def _generated(evaluation: Evaluation) -> str:
    found = evaluation.generated
    parts = [f"{found.num:,} generated images"]
    if found.step is not None:
        parts.append(f"{found.weights} weights of step {found.step:,}")
    if found.sampler is not None:
        parts.append(f"{found.sampler}, {found.steps} steps")
    if found.guidance is not None:
        parts.append(f"guidance {found.guidance:g}")
    if found.seed is not None:
        parts.append(f"seed {found.seed}")
    if found.engine_label is not None:
        parts.append(f"engine {found.engine_label}")
    return "; ".join(parts)


def _by_class(evaluation: Evaluation) -> ClassTable | None:
    found = [metric for metric in evaluation.metrics if metric.class_name is not None]
    if not found:
        return None
    columns = list(dict.fromkeys(_column(metric) for metric in found))
    classes = list(dict.fromkeys(str(metric.class_name) for metric in found))
    by_place = {(metric.class_name, _column(metric)): metric for metric in found}
    rows = [(name, [by_place.get((name, column)) for column in columns]) for name in classes]
    return ClassTable(columns, rows)


def _column(metric: Metric) -> str:
    # Labels name N, which differs between classes: not part of what makes a column.
    parts = [metric.name, metric.split, metric.setting]
    return ", ".join(part for part in parts if part)
