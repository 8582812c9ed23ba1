"""Picture of noise and shots at inference against quality."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qhdm.comparison.results import Inference
from qhdm.files import atomic_path

_COLOURS = ("#2a5d8f", "#c0562f", "#4d8c57", "#7a5195", "#8c8c2a", "#555555")
_COLUMNS = 3


def plot_inference(path: Path, title: str, rows: Sequence[Inference]) -> None:
    """Each metric against shots, with and without the noise of a device, beside the exact engine.

    Args:
        path: the PNG file.
        title: of the picture; it names the data.
        rows: of the study, at least one.
    """
    figure = inference_figure(rows)
    figure.suptitle(title)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)


def inference_figure(rows: Sequence[Inference]) -> Figure:
    """The charts of `plot_inference`, one for each metric of `rows`."""
    labels = list(dict.fromkeys(row.label for row in rows))
    columns = min(_COLUMNS, len(labels))
    lines = -(-len(labels) // columns)
    figure = Figure(figsize=(5 * columns, 3.6 * lines), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False)
    for axes, label in zip(grid.flat, labels, strict=False):
        _plot(axes, label, [row for row in rows if row.label == label])
    for axes in grid.flat[len(labels) :]:
        axes.set_axis_off()
    handles, names = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3)
    return figure


def _plot(axes: Axes, label: str, rows: Sequence[Inference]) -> None:
    variants = list(dict.fromkeys(row.variant for row in rows))
    for index, variant in enumerate(variants):
        colour = _COLOURS[index % len(_COLOURS)]
        own = [row for row in rows if row.variant == variant]
        for row in own:
            if row.shots is None:
                style = "-" if row.noise is None else ":"
                axes.axhline(row.mean, ls=style, color=colour, label=f"{variant}: {row.engine}")
                if row.low is not None and row.high is not None and row.noise is None:
                    axes.axhspan(row.low, row.high, color=colour, alpha=0.12, lw=0)
        for noise in dict.fromkeys(row.noise for row in own if row.shots is not None):
            curve = sorted((row for row in own if row.noise == noise and row.shots), key=_shots)
            means = [row.mean for row in curve]
            bars = [
                [row.mean - (row.low if row.low is not None else row.mean) for row in curve],
                [(row.high if row.high is not None else row.mean) - row.mean for row in curve],
            ]
            axes.errorbar(
                [_shots(row) for row in curve],
                means,
                yerr=bars,
                fmt="o--" if noise is None else "s:",
                capsize=3,
                color=colour,
                label=f"{variant}: shots" + (f" and noise of {Path(noise).stem}" if noise else ""),
            )
    axes.set_xscale("log", base=2)
    if ticks := sorted({row.shots for row in rows if row.shots}):
        axes.set_xticks(ticks, map(str, ticks))
    axes.set(title=label, xlabel="shots per circuit")
    axes.title.set_fontsize(9)


def _shots(row: Inference) -> int:
    return row.shots or 0
