"""Charts of trainings, comparisons and filters, as SVG inside a page or as PNG files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter
from matplotlib.typing import LineStyleType

from qhdm.comparison.results import Inference, Summary
from qhdm.files import atomic_path
from qhdm.quantum.analysis.expressibility import BINS, GradientVariance, Measures, haar_quantile
from qhdm.report.html import data_uri

#: The colour-blind safe palette of Okabe & Ito.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#b98500", "#333333")
_DASHES: tuple[LineStyleType, ...] = ("-", "--", ":", "-.")
_POINT = "#8a949e"
_STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8a949e",
    "axes.labelcolor": "#3c4650",
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#e3e6e9",
    "grid.linewidth": 0.8,
    "xtick.color": "#5a6570",
    "ytick.color": "#3c4650",
    "text.color": "#1c242c",
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.6,
    # Derives identifiers in the file from its content alone.
    "svg.hashsalt": "qhdm",
}


@dataclass(frozen=True)
class Line:
    """Points joined by a line; lines of one group share a colour and an entry of the legend.

    Attributes:
        group: its name in the legend.
        x, y: one point or more.
    """

    group: str
    x: Sequence[float]
    y: Sequence[float]


@matplotlib.rc_context(_STYLE)
def line_chart(lines: Sequence[Line], *, title: str, x: str, y: str) -> str:
    """Draw lines over a logarithmic y axis, with markers if they have few points.

    Returns:
        The data URI of an SVG, as from all charts but the PNG files.
    """
    groups = list(dict.fromkeys(line.group for line in lines))
    figure, axes = _axes(5.6, 3.4)
    for line in lines:
        colour, dash = _look(groups.index(line.group))
        axes.plot(line.x, line.y, dash, color=colour, marker="o" if len(line.x) < 12 else None,
                  markersize=4, alpha=0.9)  # fmt: skip
    axes.set(title=title, xlabel=x, ylabel=y, yscale="log")
    # Plain numbers; also between the powers of ten if the axis spans few of these.
    low, high = axes.get_ylim()
    subs = (1.0, 2.0, 5.0) if high < 200 * low else (1.0,)
    axes.yaxis.set_major_locator(LogLocator(subs=subs))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    if len(groups) > 1:
        looks = [(_look(index), _plain(group)) for index, group in enumerate(groups)]
        axes.legend(
            handles=[Line2D([], [], color=c, linestyle=dash, label=g) for (c, dash), g in looks]
        )
    return _svg(figure)


@matplotlib.rc_context(_STYLE)
def spectra_chart(
    bands: Sequence[str], classes: Sequence[tuple[str, np.ndarray, np.ndarray | None]]
) -> str:
    """Draw the spectra of each class, generated and real: (3, C) means, low and high quantiles."""
    columns = min(5, len(classes))
    lines = -(-len(classes) // columns)
    figure = Figure(figsize=(2.9 * columns, 2.3 * lines + 0.4), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
    places = range(len(bands))
    for axes, (name, *kinds) in zip(grid.flat, classes, strict=False):
        for spectrum, colour, label in zip(kinds, _COLOURS, ("generated", "real"), strict=False):
            if spectrum is not None:
                mean, low, high = spectrum
                axes.plot(places, mean, color=colour, marker="o", markersize=3, label=label)
                axes.fill_between(places, low, high, color=colour, alpha=0.18, linewidth=0)
        axes.set_title(_plain(name), fontsize=9)
        axes.set_xticks(places, [_plain(band) for band in bands], rotation=90, fontsize=7)
    for axes in grid.flat[len(classes) :]:
        axes.set_axis_off()
    handles, names = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=2)
    return _svg(figure)


@matplotlib.rc_context(_STYLE)
def interval_chart(
    rows: Sequence[Summary],
    values: Mapping[str, Sequence[float]],
    *,
    x: str,
    baseline: float | None,
    floor: float | None,
) -> str:
    """Draw means with intervals, and the `values` of each variant, a row each from top to bottom.

    `baseline` and `floor` are marked by a dashed and a dotted line.
    """
    figure, axes = _axes(5.6, 1.0 + 0.34 * len(rows))
    for value, dash, colour in ((baseline, "--", _COLOURS[0]), (floor, ":", _COLOURS[6])):
        if value is not None:
            axes.axvline(value, color=colour, linestyle=dash, linewidth=1.2)
    for place, row in enumerate(rows):
        if row.low is not None and row.high is not None:
            axes.hlines(place, row.low, row.high, color=_COLOURS[0], linewidth=2.4, alpha=0.6)
        own = values.get(row.variant, ())
        axes.plot(own, [place] * len(own), "o", color=_POINT, markersize=4.5,
                  markeredgecolor="white", markeredgewidth=0.6, zorder=3)  # fmt: skip
        axes.plot([row.mean], [place], "D", color=_COLOURS[0], markersize=6, zorder=4)
    axes.set_yticks(range(len(rows)), [_plain(row.variant) for row in rows])
    axes.set(xlabel=x, ylim=(len(rows) - 0.4, -0.6))
    axes.grid(visible=False, axis="y")
    return _svg(figure)


@matplotlib.rc_context(_STYLE)
def angle_chart(names: Sequence[str], weights: Sequence[np.ndarray]) -> str:
    """Draw angles (radians), a row for each name, in cyclic colours: 2 pi looks like 0."""
    grid = np.full((len(weights), max(map(len, weights))), np.nan)
    for row, values in zip(grid, weights, strict=True):
        row[: len(values)] = np.mod(values, 2 * math.pi)
    figure, axes = _axes(11, 1.0 + 0.3 * len(names))
    mesh = axes.imshow(
        grid, cmap="twilight", vmin=0, vmax=2 * math.pi, aspect="auto", interpolation="nearest"
    )
    axes.set_yticks(range(len(names)), [_plain(name) for name in names])
    axes.set(title="Angles of the filters", xlabel="number of the weight")
    axes.grid(visible=False)
    bar = figure.colorbar(mesh, ax=axes, pad=0.01, label="radians")
    bar.set_ticks([0, math.pi, 2 * math.pi], labels=["0", "π", "2π"])
    return _svg(figure)


@matplotlib.rc_context(_STYLE)
def inference_chart(rows: Sequence[Inference]) -> str:
    """Draw one metric against shots, with and without the noise of a device."""
    return _svg(_inference_figure(rows))


@matplotlib.rc_context(_STYLE)
def plot_inference(path: Path, title: str, rows: Sequence[Inference]) -> None:
    """Write a PNG with a chart of each metric against shots and noise at inference."""
    figure = _inference_figure(rows)
    figure.suptitle(title)
    _save_png(figure, path, dpi=100)


def _inference_figure(rows: Sequence[Inference]) -> Figure:
    labels = list(dict.fromkeys(row.label for row in rows))
    columns = min(3, len(labels))
    lines = -(-len(labels) // columns)
    figure = Figure(figsize=(5 * columns, 3.6 * lines), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False)
    for axes, label in zip(grid.flat, labels, strict=False):
        _plot_inference(axes, label, [row for row in rows if row.label == label])
    for axes in grid.flat[len(labels) :]:
        axes.set_axis_off()
    handles, names = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3)
    return figure


def _plot_inference(axes: Axes, label: str, rows: Sequence[Inference]) -> None:
    """Draw a line across for each engine without shots, and curves over the shots of the others."""
    for index, variant in enumerate(dict.fromkeys(row.variant for row in rows)):
        colour, _ = _look(index)
        curves: dict[str | None, list[Inference]] = {}
        for row in (row for row in rows if row.variant == variant):
            if row.shots is not None:
                curves.setdefault(row.noise, []).append(row)
                continue
            dash = "-" if row.noise is None else ":"
            axes.axhline(row.mean, ls=dash, color=colour, label=f"{variant}: {row.engine}")
            if row.low is not None and row.high is not None and row.noise is None:
                axes.axhspan(row.low, row.high, color=colour, alpha=0.12, lw=0)
        for noise, curve in curves.items():
            curve.sort(key=lambda row: row.shots or 0)
            axes.errorbar(
                [row.shots or 0 for row in curve],
                [row.mean for row in curve],
                yerr=[0 if row.high is None else row.high - row.mean for row in curve],
                fmt="o--" if noise is None else "s:",
                capsize=3,
                color=colour,
                label=f"{variant}: shots" + (f" and noise of {Path(noise).stem}" if noise else ""),
            )
    axes.set_xscale("log", base=2)
    if ticks := sorted({row.shots for row in rows if row.shots}):
        axes.set_xticks(ticks, map(str, ticks))
    axes.set_title(label, fontsize=9)
    axes.set_xlabel("shots per circuit")


@matplotlib.rc_context(_STYLE)
def plot_measures(
    path: Path,
    name: str,
    measures: Measures,
    *,
    by_layers: Mapping[int, GradientVariance],
    by_qubits: Mapping[int, GradientVariance],
) -> None:
    """Write a PNG of a filter's measures over random angles.

    It shows fidelities against Haar, entanglement, and the variance of gradients by layers and
    qubits, of the filters in the family; of the filter alone if it has no family.
    """
    figure = Figure(figsize=(15, 3.6), layout="constrained")
    figure.suptitle(f"{name}: {measures.pairs} pairs of random states of {measures.qubits} qubits")
    fidelity, entanglement, layers, qubits = figure.subplots(1, 4)
    quantiles = haar_quantile(measures.fidelities, measures.qubits)
    fidelity.hist(quantiles, np.linspace(0, 1, BINS + 1), density=True, color=_COLOURS[0])
    fidelity.axhline(1, color=_COLOURS[1], label="Haar-random states")
    fidelity.set(
        title=f"expressibility: KL {measures.expressibility_equal.value:.3g}",
        xlabel="fidelity, as quantile of Haar (equal-weight bins)",
        ylabel="density",
    )
    fidelity.legend()
    edges = np.linspace(0, 1, 51)
    entanglement.hist(measures.entanglement, edges, density=True, color=_COLOURS[0])
    entanglement.set(
        title=f"entangling capability {measures.capability.value:.3g}",
        xlabel="Meyer-Wallach Q",
        ylabel="density",
    )
    for axes, variances, label in ((layers, by_layers, "layers"), (qubits, by_qubits, "qubits")):
        sizes = sorted(variances)
        estimates = [variances[size].variance for size in sizes]
        values = np.array([estimate.value for estimate in estimates])
        low = values - [estimate.low for estimate in estimates]
        high = [estimate.high for estimate in estimates] - values
        axes.errorbar(sizes, values, yerr=[low, high], fmt="o-", capsize=3, color=_COLOURS[0])
        axes.set(
            title=f"gradient variance by {label}",
            xlabel=label,
            ylabel="variance of d<Z>/dw",
            yscale="log",
            xticks=sizes,
        )
    _save_png(figure, path, dpi=80)


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure (inches) with one chart; without pyplot, which keeps figures."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def _svg(figure: Figure) -> str:
    buffer = BytesIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return data_uri(buffer.getvalue(), "image/svg+xml")


def _save_png(figure: Figure, path: Path, *, dpi: int) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=dpi)


def _look(index: int) -> tuple[str, LineStyleType]:
    """The colour and dash of a group by its number."""
    return _COLOURS[index % len(_COLOURS)], _DASHES[index // len(_COLOURS) % len(_DASHES)]


def _plain(text: str) -> str:
    """Escape dollar signs, which would start a formula."""
    return text.replace("$", r"\$")
