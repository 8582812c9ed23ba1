"""Evaluations as tables."""

from __future__ import annotations

from qhdm.metrics.records import Evaluation, Metric, Replaced, Use, table_order
from qhdm.tables import Table, number, signed

#: Titles of the columns of tables of use: of filters, and of the label.
_USES: tuple[dict[Replaced, str], ...] = (
    {
        "filters": "filters at their mean",
        "angles": "angles drawn anew",
        "channels": "as many classical channels at theirs",
    },
    {"hidden labels": "label hidden", "shuffled labels": "label of another image"},
)
#: How to read the tables of use.
READ_USE = (
    "Change of the held-out denoising loss where a part of the network is replaced, with its "
    "standard error, and in brackets the change of the prediction, in units of its spread: the "
    "network depends on its filters as far as the first columns exceed their errors, and more than "
    "on ordinary channels where they exceed the last one."
)


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
    """The metrics over all classes, with the baseline of those that have one."""
    shown = [m for m in _ordered(evaluation) if m.class_name is None]
    gains = any(m.baseline is not None for m in shown)
    rows = [
        [
            m.label,
            number(m.value),
            number(m.error),
            "n/a" if m.floor is None else number(m.floor),
            *[number(m.baseline)] * gains,
            m.better or "",
        ]
        for m in shown
    ]
    header = ["metric [extractor, N, split]", "value", "error", "floor", *["baseline"] * gains]
    return Table([*header, "better"], rows)


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


def use_tables(evaluation: Evaluation) -> list[Table]:
    """What the network uses: a row for each place, a column for each kind of replacement."""
    tables = []
    cells = {(use.place, use.replaced): _change(use) for use in evaluation.use}
    for titles in _USES:
        columns = {k: title for k, title in titles.items() if any(k == kind for _, kind in cells)}
        places = dict.fromkeys(use.place for use in evaluation.use if use.replaced in columns)
        rows = [[place, *(cells.get((place, kind), "") for kind in columns)] for place in places]
        if rows:
            tables.append(Table(["replaced", *columns.values()], rows))
    return tables


def _change(use: Use) -> str:
    """`+2.12 ± 0.11 % (0.131)`."""
    error = "" if use.error is None else f" ± {100 * use.error:.2g}"
    return f"{signed(100 * use.loss)}{error} % ({use.prediction:.2g})"


def _ordered(evaluation: Evaluation) -> list[Metric]:
    return sorted(evaluation.metrics, key=lambda metric: table_order(metric.label))


def describe(evaluation: Evaluation) -> str:
    """The evaluation as text for the terminal."""
    parts = ["\n".join(provenance(evaluation)), metric_table(evaluation).markdown()]
    if (classes := class_table(evaluation)) is not None:
        parts.append(classes.markdown())
    if uses := use_tables(evaluation):
        parts += [READ_USE, *(table.markdown() for table in uses)]
    parts += [f"note: {note}" for note in evaluation.notes]
    return "\n\n".join(parts)
