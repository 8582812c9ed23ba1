"""The page of a comparison: variants beside each other, with what is known of their differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from qhdm.comparison.results import (
    CellResult,
    Paired,
    Parameters,
    Results,
    Summary,
    read_results,
)
from qhdm.comparison.spec import Specification, load_grid, variant_settings
from qhdm.comparison.statistics import CONFIDENCE
from qhdm.config import Sampling
from qhdm.data import Dataset
from qhdm.files import write_text
from qhdm.metrics.records import Evaluation, read_evaluation
from qhdm.quantum.options import Exact
from qhdm.report.pages.charts import Row, inference_chart, interval_chart, line_chart
from qhdm.report.pages.html import render, tiles
from qhdm.report.pages.reading import loss_line, read_log, read_versions, real_images
from qhdm.report.pages.samples import SEED, sampling_words
from qhdm.run import Run

#: Images of each class and variant.
_PER_CLASS = 4
#: Metrics in the overview: the first that have no special setting.
_OVERVIEW = 6


@dataclass(frozen=True)
class MetricBlock:
    """One metric over all classes: a chart, and the mean and test of every variant."""

    label: str
    setting: str | None
    better: Literal["lower", "higher"] | None
    floor: float | None
    chart: str
    rows: Sequence[tuple[Summary, Paired | None]]


@dataclass(frozen=True)
class VariantRow:
    """A variant in the overview.

    Attributes:
        settings: what makes it, in one line.
        seconds: mean time of training of its cells; None where none is begun.
        trained, evaluated, cells: how many.
        means: for each metric of the overview; None where it has no value.
    """

    name: str
    settings: str
    parameters: Parameters
    seconds: float | None
    trained: int
    evaluated: int
    cells: int
    means: Sequence[Summary | None]


@dataclass(frozen=True)
class ImageGrid:
    """Images of a variant, or real ones: addresses, class by class."""

    name: str
    rows: Sequence[tuple[str, Sequence[str]]]


def write_comparison_page(path: Path, out: Path) -> list[str]:
    """Write the page of the comparison directory `path` to the file `out`, whole or not at all.

    Returns:
        What the page lacks and why, a sentence each.

    Raises:
        ComparisonError: its results are missing or damaged.
        ConfigError: its specification cannot be used.
        RunError, EvaluationError: a cell is damaged.
    """
    results = read_results(path / "results.json")
    grid = load_grid(path / "comparison.yaml")
    config = next(iter(grid.configs.values()))
    evaluations = {
        (cell.variant, cell.seed): read_evaluation(path / cell.evaluation)
        for cell in results.cells
        if cell.evaluation is not None
    }
    begun = [cell for cell in results.cells if cell.step > 0]
    blocks = _blocks(results, evaluations)
    overview = [block for block in blocks if block.setting is None][:_OVERVIEW]
    real, missing = real_images(config.data)
    content = render(
        "comparison.html",
        name=results.name,
        results=results,
        config=config,
        seeds=grid.specification.seeds,
        confidence=f"{CONFIDENCE:.0%}",
        judged=next(iter(evaluations.values()), None),
        missing=missing,
        overview=overview,
        variants=_variants(results, grid.specification, overview),
        blocks=blocks,
        samples=_samples(path, begun, real),
        sampling=sampling_words(config),
        losses=_losses(path, begun),
        studies=_studies(results),
        seconds=sum(cell.train_seconds for cell in begun),
        versions=read_versions(path / begun[0].run) if begun else {},
        specification=(path / "comparison.yaml").read_text(encoding="utf-8"),
        base=(path / "base.yaml").read_text(encoding="utf-8"),
    )
    write_text(out, content)
    return missing


def _blocks(
    results: Results, evaluations: Mapping[tuple[str, int], Evaluation]
) -> list[MetricBlock]:
    tests = {
        (test.variant, test.label, test.setting): test
        for test in results.paired
        if test.class_name is None
    }
    overall = [row for row in results.summary if row.class_name is None]
    blocks = []
    for label, setting in dict.fromkeys((row.label, row.setting) for row in overall):
        own = [row for row in overall if (row.label, row.setting) == (label, setting)]
        means = {row.variant: row.mean for row in own}
        floors = [row.floor for row in own if row.floor is not None]
        floor = float(np.mean(floors)) if floors else None
        chart = interval_chart(
            [
                Row(
                    row.variant,
                    row.mean,
                    row.low,
                    row.high,
                    _points(evaluations, row.variant, label, setting),
                )
                for row in own
            ],
            x=label.partition("[")[0],
            baseline=means.get(results.baseline),
            floor=floor,
        )
        rows = [(row, tests.get((row.variant, label, setting))) for row in own]
        blocks.append(MetricBlock(label, setting, own[0].better, floor, chart, rows))
    return blocks


def _points(
    evaluations: Mapping[tuple[str, int], Evaluation],
    variant: str,
    label: str,
    setting: str | None,
) -> list[float]:
    """The value of each seed."""
    return [
        metric.value
        for (name, _), evaluation in evaluations.items()
        if name == variant
        for metric in evaluation.metrics
        if (metric.label, metric.setting, metric.class_name) == (label, setting, None)
    ]


def _variants(
    results: Results, specification: Specification, overview: Sequence[MetricBlock]
) -> list[VariantRow]:
    rows = []
    for name in specification.variants:
        cells = [cell for cell in results.cells if cell.variant == name]
        seconds = [cell.train_seconds for cell in cells if cell.step > 0]
        means = [{row.variant: row for row, _ in block.rows} for block in overview]
        rows.append(
            VariantRow(
                name,
                variant_settings(specification, name),
                cells[0].parameters,
                float(np.mean(seconds)) if seconds else None,
                sum(cell.step == cell.steps for cell in cells),
                sum(cell.evaluation is not None for cell in cells),
                len(cells),
                [of_block.get(name) for of_block in means],
            )
        )
    return rows


def _samples(path: Path, cells: Sequence[CellResult], real: Dataset | None) -> list[ImageGrid]:
    """Images of the first cell of each variant, all from the same noise; real ones before them."""
    grids = []
    if real is not None:
        rows = [
            (name, tiles(real.images[real.is_test & (real.labels == label)][:_PER_CLASS]))
            for label, name in enumerate(real.class_names)
        ]
        grids.append(ImageGrid("real, held out", rows))
    first: dict[str, CellResult] = {}
    for cell in cells:
        first.setdefault(cell.variant, cell)
    for variant, cell in first.items():
        run = Run.open(path / cell.run)
        request = Sampling(num=_PER_CLASS, seed=SEED, engine=Exact())
        shown = tiles(run.sample(request, progress=True))
        rows = [
            (name, shown[label * _PER_CLASS : (label + 1) * _PER_CLASS])
            for label, name in enumerate(run.class_names)
        ]
        grids.append(ImageGrid(f"{variant}, seed {cell.seed}, step {cell.step:,}", rows))
    return grids


def _losses(path: Path, cells: Sequence[CellResult]) -> str | None:
    records = [(cell.variant, read_log(path / cell.run)) for cell in cells]
    lines = [loss_line(variant, found) for variant, found in records if found]
    if not lines:
        return None
    return line_chart(lines, title="Training loss", x="training step", y="loss", log=True)


def _studies(results: Results) -> list[tuple[str, str]]:
    """Charts of noise and shots at inference, by metric."""
    labels = dict.fromkeys(row.label for row in results.inference)
    return [
        (label, inference_chart([row for row in results.inference if row.label == label]))
        for label in labels
    ]
