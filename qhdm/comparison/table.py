"""Results as text: tables in Markdown, aligned, so that they can be read as they stand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from qhdm.comparison.results import Inference, Paired, Results, Summary
from qhdm.comparison.statistics import CONFIDENCE

#: With fewer seeds than this, the table says what that means.
_FEW = 5


def describe(results: Results, settings: Mapping[str, str], *, all_settings: bool) -> str:
    """The tables of a comparison.

    Args:
        results: what was found.
        settings: of each variant, in one line.
        all_settings: also metrics of special settings, such as few real images per class; values
            for single classes are in results.json alone.
    """
    blocks = [f"# {results.name}", *_head(results), _cells(results, settings)]
    keys = dict.fromkeys(
        (row.label, row.setting)
        for row in results.summary
        if row.class_name is None and (all_settings or row.setting is None)
    )
    for label, setting in keys:
        rows = [row for row in results.summary if _is(row, label, setting)]
        tests = {row.variant: row for row in results.paired if _is(row, label, setting)}
        blocks += [_title(rows[0]), _metric(results.baseline, rows, tests)]
    blocks += _inference(results.inference)
    return "\n\n".join(blocks) + "\n"


def _is(row: Summary | Paired, label: str, setting: str | None) -> bool:
    return row.label == label and row.setting == setting and row.class_name is None


def _head(results: Results) -> list[str]:
    data = results.data
    if data is None:
        return ["No cell has been evaluated yet."]
    seeds = sorted({cell.seed for cell in results.cells if cell.evaluation})
    engines = list(dict.fromkeys(cell.engine for cell in results.cells if cell.engine))
    variants = len({row.variant for row in results.paired})
    lines = [
        f"Data: {data.name} (digest {data.digest}), {data.train} images to train on, {data.test} "
        f"held out, {data.image_size}x{data.image_size} pixels.",
        f"Means over seeds with {CONFIDENCE:.0%} intervals (Student's t). Differences from "
        f"`{results.baseline}` are paired over seeds; p is that of the paired t test, p (Holm) "
        f"corrected within a metric for the number of variants ({variants}), not of metrics.",
    ]
    if engines not in ([], ["exact"]):
        lines.append(f"Images of variants are sampled on: {'; '.join(engines)}.")
    if len(seeds) < _FEW:
        lines.append(
            f"n = {len(seeds)}: with so few seeds, intervals are wide and only large differences "
            "can be told from chance; the absence of one is no evidence of equality."
        )
    return ["\n".join(lines)]


def _cells(results: Results, settings: Mapping[str, str]) -> str:
    rows = []
    for variant in dict.fromkeys(cell.variant for cell in results.cells):
        cells = [cell for cell in results.cells if cell.variant == variant]
        trained = [cell for cell in cells if cell.step == cell.steps]
        evaluated = sum(cell.evaluation is not None for cell in cells)
        seconds = sum(cell.train_seconds for cell in trained) / len(trained) if trained else None
        counts = cells[0].parameters
        rows.append(
            [
                variant,
                settings.get(variant) or "(the base)",
                f"{counts.classical + counts.quantum:,}",
                f"{counts.quantum:,}",
                f"{len(trained)}/{len(cells)}",
                f"{evaluated}/{len(cells)}",
                f"{seconds / 60:.1f}" if seconds is not None else "",
            ]
        )
    header = [
        "variant",
        "settings",
        "parameters",
        "of circuits",
        "trained",
        "evaluated",
        "minutes each",
    ]
    return markdown(header, rows, left=2)


def _title(row: Summary) -> str:
    name = row.label if row.setting is None else f"{row.label}, {row.setting}"
    better = f"{row.better} is better" if row.better else ""
    floor = f"real images: {number(row.floor)}" if row.floor is not None else ""
    notes = "; ".join(note for note in (better, floor) if note)
    return f"## {name}" + (f" ({notes})" if notes else "")


def _metric(baseline: str, rows: Sequence[Summary], tests: Mapping[str, Paired]) -> str:
    lines = []
    for row in rows:
        test = tests.get(row.variant)
        compared = ["", "", "", ""]
        if test is not None:
            compared = [
                signed(test.difference),
                interval(test.low, test.high),
                _p(test.p),
                _p(test.p_holm),
            ]
        lines.append(
            [row.variant, number(row.mean), interval(row.low, row.high), str(row.n), *compared]
        )
    range_ = f"{CONFIDENCE:.0%} interval"
    header = ["variant", "mean", range_, "n", f"less {baseline}", range_, "p", "p (Holm)"]
    return markdown(header, lines, left=1)


def _inference(rows: Sequence[Inference]) -> Iterable[str]:
    for variant, label in dict.fromkeys((row.variant, row.label) for row in rows):
        lines = [
            [
                row.engine,
                number(row.mean),
                interval(row.low, row.high),
                str(row.n),
                signed(row.difference),
                interval(row.difference_low, row.difference_high),
                _p(row.p),
            ]
            for row in rows
            if (row.variant, row.label) == (variant, label)
        ]
        yield f"## Engines at inference, {variant}: {label}"
        range_ = f"{CONFIDENCE:.0%} interval"
        header = ["engine", "mean", range_, "n", "less exact", range_, "p"]
        yield markdown(header, lines, left=1)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]], *, left: int) -> str:
    """A table in Markdown with aligned columns, the first `left` of them to the left."""
    widths = [max(3, *(len(row[i]) for row in [header, *rows])) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        texts = [
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(texts)} |"

    rule = ["-" * w if i < left else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return "\n".join([line(header), line(rule), *map(line, rows)])


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.3g}"


def interval(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"[{low:.3g}, {high:.3g}]"


def _p(value: float | None) -> str:
    if value is None:
        return ""
    return "< 0.0001" if value < 1e-4 else f"{value:.2g}"
