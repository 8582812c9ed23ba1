"""The page of a comparison: variants beside each other, and tests of their differences."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from qhdm.comparison.results import CellResult, Results, read_results
from qhdm.comparison.spec import Grid, load_grid, variant_settings
from qhdm.comparison.statistics import CONFIDENCE
from qhdm.comparison.table import MetricBlock, metric_blocks, overview_table, variant_table
from qhdm.config import Config, Sampling
from qhdm.data import Dataset
from qhdm.files import write_text
from qhdm.metrics.records import Evaluation, read_evaluation
from qhdm.quantum.options import Exact
from qhdm.report.charts import inference_chart, interval_chart, line_chart
from qhdm.report.html import render, tiles
from qhdm.report.reading import loss_line, read_log, read_versions, real_images
from qhdm.report.samples import SEED, sampling_label
from qhdm.run import Run

#: Images of each class and variant.
_PER_CLASS = 4

#: Data URIs of images of a variant, or of real ones, class by class.
ImageRows = Sequence[tuple[str, Sequence[str]]]


def write_comparison_page(path: Path, out: Path) -> list[str]:
    """Write the page of the comparison directory `path` to the file `out`, atomically.

    Returns:
        Messages about what the page lacks.

    Raises:
        ComparisonError: its results are missing or damaged.
        ConfigError: its specification cannot be used.
        RunError, EvaluationError: a cell is damaged.
    """
    results = read_results(path / "results.json")
    grid = load_grid(path / "comparison.yaml")
    spec, config = grid.specification, next(iter(grid.configs.values()))
    evaluations = {
        (cell.variant, cell.seed): read_evaluation(path / cell.evaluation)
        for cell in results.cells
        if cell.evaluation is not None
    }
    begun = [cell for cell in results.cells if cell.step > 0]
    blocks = metric_blocks(results)
    settings = {variant: variant_settings(spec, variant) for variant in spec.variants}
    real, missing = real_images(config.data)
    content = render(
        "comparison.html",
        name=results.name,
        results=results,
        config=config,
        variants=list(settings),
        seeds=spec.seeds,
        trained=sum(cell.step == cell.steps for cell in results.cells),
        confidence=f"{CONFIDENCE:.0%}",
        first=next(iter(evaluations.values()), None),
        missing=missing,
        variant_table=variant_table(results, settings),
        overview=overview_table(blocks, results.baseline),
        blocks=[(b, _chart(b, results.baseline, evaluations)) for b in blocks],
        samples=_samples(path, begun, real),
        sampling=_of_variants(grid, sampling_label),
        batches=_of_variants(grid, lambda config: str(config.train.batch_size)),
        losses=_losses(path, begun),
        studies=_studies(results),
        seconds=sum(cell.train_seconds for cell in begun),
        versions=read_versions(path / begun[0].run) if begun else {},
        specification=(path / "comparison.yaml").read_text(encoding="utf-8"),
        bases=[
            (name, (path / name).read_text(encoding="utf-8"))
            for name in ("base.yaml", *(f"base-{v}.yaml" for v in grid.bases if v is not None))
        ],
    )
    write_text(out, content)
    return missing


def _of_variants(grid: Grid, label: Callable[[Config], str]) -> str:
    """What `label` says of all variants, or of each where they differ."""
    labels = {variant: label(config) for (variant, _), config in grid.configs.items()}
    distinct = list(dict.fromkeys(labels.values()))
    if len(distinct) == 1:
        return distinct[0]
    named = {text: [v for v, own in labels.items() if own == text] for text in distinct}
    return "; ".join(f"{text} ({', '.join(variants)})" for text, variants in named.items())


def _chart(
    block: MetricBlock, baseline: str, evaluations: Mapping[tuple[str, int], Evaluation]
) -> str:
    values: dict[str, list[float]] = {}
    for (variant, _), evaluation in evaluations.items():
        values.setdefault(variant, []).extend(
            metric.value
            for metric in evaluation.metrics
            if (metric.label, metric.setting, metric.class_name)
            == (block.label, block.setting, None)
        )
    rows = [row for row, _ in block.rows]
    means = {row.variant: row.mean for row in rows}
    name = block.label.partition("[")[0]
    return interval_chart(rows, values, x=name, baseline=means.get(baseline), floor=block.floor)


def _samples(
    path: Path, cells: Sequence[CellResult], real: Dataset | None
) -> list[tuple[str, ImageRows]]:
    """Images of the first cell of each variant, all from the same noise, after real ones."""
    grids: list[tuple[str, ImageRows]] = []
    if real is not None:
        members = [
            np.flatnonzero(real.is_test & (real.labels == label))[:_PER_CLASS]
            for label in range(len(real.class_names))
        ]
        rows = [
            (name, tiles(real.images[own], real.bands))
            for name, own in zip(real.class_names, members, strict=True)
        ]
        grids.append(("real, held out", rows))
    first = {cell.variant: cell for cell in reversed(cells)}
    for cell in (cell for cell in cells if first[cell.variant] is cell):
        run = Run.open(path / cell.run)
        request = Sampling(num=_PER_CLASS, seed=SEED, engine=Exact())
        shown = tiles(run.sample(request, progress=True), run.bands)
        rows = [
            (name, shown[label * _PER_CLASS : (label + 1) * _PER_CLASS])
            for label, name in enumerate(run.class_names)
        ]
        grids.append((f"{cell.variant}, seed {cell.seed}, step {cell.step:,}", rows))
    return grids


def _losses(path: Path, cells: Sequence[CellResult]) -> str | None:
    logs = [(cell.variant, read_log(path / cell.run)) for cell in cells]
    lines = [loss_line(variant, records) for variant, records in logs if records]
    return line_chart(lines, title="Training loss", x="training step", y="loss") if lines else None


def _studies(results: Results) -> list[tuple[str, str]]:
    """Charts of noise and shots at inference, by metric."""
    labels = dict.fromkeys(row.label for row in results.inference)
    return [
        (label, inference_chart([row for row in results.inference if row.label == label]))
        for label in labels
    ]
