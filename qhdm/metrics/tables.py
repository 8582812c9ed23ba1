"""Evaluations as tables."""

from __future__ import annotations

from qhdm.metrics.records import Evaluation, Metric, table_order
from qhdm.tables import Table, number


def provenance(evaluation: Evaluation) -> list[str]:
    """What was compared: the generated images, the real ones, and the extractor of features."""
    real, extractor = evaluation.data, evaluation.extractor
    lines = [
        evaluation.generated.description,
        f"real images: {real.name} (digest {real.digest}), {real.train:,} training and "
        f"{real.test:,} held-out images of {real.image_size}x{real.image_size} pixels",
    ]
    if extractor is not None:
        lines.append(f"features: {extractor.name} {extractor.digest}, {extractor.dim} per image")
    return lines


def metric_table(evaluation: Evaluation) -> Table:
    """The metrics over all classes."""
    rows = [
        [
            m.label,
            number(m.value),
            number(m.error),
            "n/a" if m.floor is None else number(m.floor),
            number(m.baseline),
            m.better or "",
        ]
        for m in _ordered(evaluation)
        if m.class_name is None
    ]
    header = ["metric [extractor, N, split]", "value", "error", "floor", "baseline", "better"]
    return Table(header, rows)


def class_table(evaluation: Evaluation) -> Table | None:
    """The metrics of single classes, a column each, with their floors in brackets."""
    cells = {}
    for metric in _ordered(evaluation):
        if metric.class_name is not None:
            floor = "n/a" if metric.floor is None else number(metric.floor)
            # Not the label: it names N, which differs between classes.
            column = ", ".join(part for part in (metric.name, metric.setting) if part)
            cells[metric.class_name, column] = f"{number(metric.value)} ({floor})"
    if not cells:
        return None
    columns = list(dict.fromkeys(column for _, column in cells))
    names = dict.fromkeys(name for name, _ in cells)
    rows = [[name, *(cells.get((name, column), "") for column in columns)] for name in names]
    return Table(["class (floor)", *columns], rows)


def _ordered(evaluation: Evaluation) -> list[Metric]:
    return sorted(evaluation.metrics, key=lambda metric: table_order(metric.label))


def describe(evaluation: Evaluation) -> str:
    """The evaluation as text for the terminal."""
    parts = ["\n".join(provenance(evaluation)), metric_table(evaluation).markdown()]
    if (classes := class_table(evaluation)) is not None:
        parts.append(classes.markdown())
    parts += [f"note: {note}" for note in evaluation.notes]
    return "\n\n".join(parts)
