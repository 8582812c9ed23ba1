"""Results of comparisons as tables."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from qhdm.comparison.results import Paired, Results, Summary
from qhdm.comparison.statistics import CONFIDENCE
from qhdm.console import duration
from qhdm.metrics.records import Better, table_order
from qhdm.tables import Table, interval, number, p_value, signed

#: With fewer seeds than this, a warning about their number is printed.
_FEW = 5
_INTERVAL = f"{CONFIDENCE:.0%} interval"
#: Metrics in the overview: the first ones.
_OVERVIEW = 6


@dataclass(frozen=True)
class MetricBlock:
    """One metric over all classes: the mean of every variant, and its test if there is one.

    Attributes:
        floor: of real images in the place of generated ones, averaged over variants.
        primary: whether it is the primary endpoint.
    """

    label: str
    setting: str | None
    better: Better | None
    floor: float | None
    rows: Sequence[tuple[Summary, Paired | None]]
    primary: bool = False

    @property
    def title(self) -> str:
        name = self.label if self.setting is None else f"{self.label}, {self.setting}"
        return f"{name} ({self.better} is better)" if self.better else name

    def table(self, baseline: str) -> Table:
        """A row for each variant and one for real images; the primary endpoint also in percent."""
        header = ["variant", "mean", _INTERVAL, "n"]
        header += [f"minus {baseline}", _INTERVAL, "p", "p (Holm)"] + ["in %"] * self.primary
        whole = next((row.mean for row, _ in self.rows if row.variant == baseline), math.nan)
        rows = []
        for row, test in self.rows:
            cells = [row.variant, number(row.mean), interval(row.low, row.high), str(row.n)]
            if test is not None:
                cells += [signed(test.difference), interval(test.low, test.high)]
                cells += [p_value(test.p), p_value(test.p_holm)]
                cells += [signed(100 * test.difference / whole)] * self.primary
            rows.append([*cells, *[""] * (len(header) - len(cells))])
        if self.floor is not None:
            rows.append(["real images", number(self.floor), *[""] * (len(header) - 2)])
        return Table(header, rows, shaded=baseline)


def metric_blocks(results: Results) -> list[MetricBlock]:
    """The metrics over all classes, the primary endpoint first.

    Values for single classes are in results.json alone.
    """
    tests = {
        (row.variant, row.label, row.setting): row
        for row in results.paired
        if row.class_name is None
    }
    by_metric: dict[tuple[str, str | None], list[Summary]] = {}
    for row in results.summary:
        if row.class_name is None:
            by_metric.setdefault((row.label, row.setting), []).append(row)
    blocks = []
    order = sorted(by_metric, key=lambda key: (key[0] != results.primary, table_order(key[0])))
    for label, setting in order:
        own = by_metric[label, setting]
        floors = [row.floor for row in own if row.floor is not None]
        floor = sum(floors) / len(floors) if floors else None
        rows = [(row, tests.get((row.variant, label, setting))) for row in own]
        primary = label == results.primary
        blocks.append(MetricBlock(label, setting, own[0].better, floor, rows, primary))
    return blocks


def variant_table(results: Results, settings: Mapping[str, str]) -> Table:
    """What the variants are, with their settings in one line, and how many cells are done."""
    rows = []
    for variant in dict.fromkeys(cell.variant for cell in results.cells):
        cells = [cell for cell in results.cells if cell.variant == variant]
        trained = [cell for cell in cells if cell.step == cell.steps]
        evaluated = sum(cell.evaluation is not None for cell in cells)
        seconds = sum(cell.train_seconds for cell in trained)
        counts = cells[0].parameters
        rows.append(
            [
                variant,
                settings.get(variant) or "(the base)",
                f"{counts.classical + counts.quantum:,}",
                f"{counts.quantum:,}",
                f"{len(trained)}/{len(cells)}",
                f"{evaluated}/{len(cells)}",
                duration(seconds / len(trained)) if trained else "",
            ]
        )
    header = ["variant", "settings", "parameters", "of circuits", "trained", "evaluated"]
    return Table([*header, "time each"], rows, left=2, shaded=results.baseline)


def overview_table(blocks: Sequence[MetricBlock], baseline: str) -> Table:
    """The first metrics that have no special setting, a column each."""
    shown = [block for block in blocks if block.setting is None][:_OVERVIEW]
    means = [{row.variant: row for row, _ in block.rows} for block in shown]
    rows = []
    for variant in dict.fromkeys(variant for of_metric in means for variant in of_metric):
        own = [of_metric.get(variant) for of_metric in means]
        cells = [f"{number(row.mean)} {interval(row.low, row.high)}" if row else "" for row in own]
        rows.append([variant, *map(str.strip, cells)])
    if any(block.floor is not None for block in shown):
        rows.append(["real images", *(number(block.floor) for block in shown)])
    header = ["variant"]
    for block in shown:  # FID[..., test] as `FID, test`
        name, _, rest = block.label.removesuffix("]").partition("[")
        split = rest.rpartition(", ")[2]
        header.append(f"{name}, {split}" if split in ("test", "train") else name)
    return Table(header, rows, shaded=baseline)


def inference_tables(results: Results) -> Iterator[tuple[str, Table]]:
    """The study of engines at inference: a title and a table for each variant and metric."""
    header = ["engine", "mean", _INTERVAL, "n", "minus exact", _INTERVAL, "p"]
    for variant, label in dict.fromkeys((row.variant, row.label) for row in results.inference):
        rows = [
            [
                row.engine,
                number(row.mean),
                interval(row.low, row.high),
                str(row.n),
                signed(row.difference),
                interval(row.difference_low, row.difference_high),
                p_value(row.p),
            ]
            for row in results.inference
            if (row.variant, row.label) == (variant, label)
        ]
        yield f"Engines at inference, {variant}: {label}", Table(header, rows)


def describe(results: Results, settings: Mapping[str, str], *, all_settings: bool) -> str:
    """The tables of a comparison in Markdown.

    `all_settings` includes metrics of special settings, such as few real images per class.
    """
    text = [f"# {results.name}", _head(results), variant_table(results, settings).markdown()]
    for block in metric_blocks(results):
        if all_settings or block.setting is None:
            head = "## Primary endpoint: " if block.primary else "## "
            text += [head + block.title, block.table(results.baseline).markdown()]
    for title, table in inference_tables(results):
        text += [f"## {title}", table.markdown()]
    return "\n\n".join(text) + "\n"


def _head(results: Results) -> str:
    real = results.data
    if real is None:
        return "No cell has been evaluated yet."
    seeds = {cell.seed for cell in results.cells if cell.evaluation}
    engines = list(dict.fromkeys(cell.engine for cell in results.cells if cell.engine))
    variants = len({row.variant for row in results.paired})
    lines = [
        f"Data: {real.name} (digest {real.digest}), {real.train} images to train on, {real.test} "
        f"held out, {real.image_size}x{real.image_size} pixels.",
        f"Means over seeds with {CONFIDENCE:.0%} intervals (Student's t). Differences from "
        f"`{results.baseline}` are paired over seeds; p is that of the paired t test, p (Holm) is "
        f"corrected within a metric for the number of variants ({variants}), not of metrics. Real "
        "images: the metric of real images in the place of generated ones.",
    ]
    if results.primary:
        lines.append(
            "The primary endpoint is the denoising loss of held-out images, with the same noise in "
            "all cells; all other metrics are secondary."
        )
    if engines not in ([], ["exact"]):
        lines.append(f"Images of variants are sampled on: {'; '.join(engines)}.")
    if len(seeds) < _FEW:
        lines.append(
            f"n = {len(seeds)}: with so few seeds, intervals are wide and only large differences "
            "can be told from chance; no evidence of a difference is not evidence of equality."
        )
    return "\n".join(lines)
