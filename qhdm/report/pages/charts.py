"""Charts and drawings as SVG, to stand inside a page."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter
from matplotlib.typing import LineStyleType
from qiskit.circuit import QuantumCircuit

from qhdm.comparison.results import Inference
from qhdm.report.circuits import draw
from qhdm.report.inference import inference_figure
from qhdm.report.pages.html import data_uri

#: Of Okabe & Ito, whom the colour-blind can tell apart as well.
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
    # Identifiers inside the file follow from its content alone.
    "svg.hashsalt": "qhdm",
}


@dataclass(frozen=True)
class Line:
    """Points joined by a line; lines of one group share a colour and one entry of the legend.

    Attributes:
        group: its name in the legend.
        x, y: the points, one or more.
    """

    group: str
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True)
class Row:
    """One row of an interval chart: a mean, its interval (if any), and what it is the mean of."""

    name: str
    mean: float
    low: float | None
    high: float | None
    points: Sequence[float]


def line_chart(
    lines: Sequence[Line],
    *,
    title: str,
    x: str,
    y: str,
    log: bool = False,
) -> str:
    """Lines, with markers where they are of few points.

    Args:
        lines: what to draw.
        title: over the chart.
        x, y: names of the axes, with units.
        log: a logarithmic y axis.
    """
    groups = list(dict.fromkeys(line.group for line in lines))
    with _chart(5.6, 3.4) as (axes, chart):
        for line in lines:
            colour, dash = _look(groups.index(line.group))
            axes.plot(line.x, line.y, dash, color=colour, marker="o" if len(line.x) < 12 else None,
                      markersize=4, alpha=0.9)  # fmt: skip
        axes.set(title=title, xlabel=x, ylabel=y)
        if log:
            axes.set_yscale("log")
            _log_ticks(axes)
        if len(groups) > 1:
            _legend(axes, groups)
    return chart.address


def interval_chart(
    rows: Sequence[Row], *, x: str, baseline: float | None, floor: float | None
) -> str:
    """Means with intervals and single points, a row each.

    Args:
        rows: from top to bottom.
        x: name of the axis.
        baseline, floor: places of a dashed and a dotted line.
    """
    with _chart(5.6, 1.0 + 0.34 * len(rows)) as (axes, chart):
        for value, dash, colour in ((baseline, "--", _COLOURS[0]), (floor, ":", _COLOURS[6])):
            if value is not None:
                axes.axvline(value, color=colour, linestyle=dash, linewidth=1.2)
        for place, row in enumerate(rows):
            if row.low is not None and row.high is not None:
                axes.hlines(place, row.low, row.high, color=_COLOURS[0], linewidth=2.4, alpha=0.6)
            axes.plot(row.points, [place] * len(row.points), "o", color=_POINT, markersize=4.5,
                      markeredgecolor="white", markeredgewidth=0.6, zorder=3)  # fmt: skip
            axes.plot([row.mean], [place], "D", color=_COLOURS[0], markersize=6, zorder=4)
        axes.set_yticks(range(len(rows)), [_plain(row.name) for row in rows])
        axes.set(xlabel=x, ylim=(len(rows) - 0.4, -0.6))
        axes.grid(visible=False, axis="y")
    return chart.address


def angle_chart(names: Sequence[str], weights: Sequence[np.ndarray]) -> str:
    """Angles (radians), a row for each name, as the colours of a circle: 2 pi looks as 0 does."""
    grid = np.full((len(weights), max(map(len, weights))), np.nan)
    for row, values in zip(grid, weights, strict=True):
        row[: len(values)] = np.mod(values, 2 * math.pi)
    with _chart(11, 1.0 + 0.3 * len(names)) as (axes, chart):
        mesh = axes.imshow(
            grid, cmap="twilight", vmin=0, vmax=2 * math.pi, aspect="auto", interpolation="nearest"
        )
        axes.set_yticks(range(len(names)), [_plain(name) for name in names])
        axes.set(title="Angles of the filters", xlabel="number of the weight")
        axes.grid(visible=False)
        bar = chart.figure.colorbar(mesh, ax=axes, pad=0.01, label="radians")
        bar.set_ticks([0, math.pi, 2 * math.pi], labels=["0", "π", "2π"])
    return chart.address


def drawing(circuit: QuantumCircuit) -> str:
    """A circuit, drawn."""
    buffer = BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "qhdm"}):
        draw(circuit, buffer, "svg")
    return data_uri(buffer.getvalue(), "image/svg+xml")


def inference_chart(rows: Sequence[Inference]) -> str:
    """One metric against shots and noise at inference."""
    with matplotlib.rc_context(_STYLE):
        return _address(inference_figure(rows))


@dataclass
class _Chart:
    figure: Figure
    address: str = ""


@contextmanager
def _chart(width: float, height: float) -> Iterator[tuple[Axes, _Chart]]:
    """Axes to draw on (inches), and where the chart is afterwards."""
    with matplotlib.rc_context(_STYLE):
        # No pyplot, which keeps figures and looks for a display.
        chart = _Chart(Figure(figsize=(width, height), layout="constrained"))
        yield chart.figure.add_subplot(), chart
        chart.address = _address(chart.figure)


def _address(figure: Figure) -> str:
    buffer = BytesIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return data_uri(buffer.getvalue(), "image/svg+xml")


def _look(index: int) -> tuple[str, LineStyleType]:
    """Colour and dash of a group by its number."""
    return _COLOURS[index % len(_COLOURS)], _DASHES[index // len(_COLOURS) % len(_DASHES)]


def _legend(axes: Axes, groups: Sequence[str]) -> None:
    handles = []
    for index, group in enumerate(groups):
        colour, dash = _look(index)
        handles.append(Line2D([], [], color=colour, linestyle=dash, label=_plain(group)))
    axes.legend(handles=handles)


def _log_ticks(axes: Axes) -> None:
    """Plain numbers; between the powers of ten where there are few of these."""
    low, high = axes.get_ylim()
    steps = (1.0, 2.0, 5.0) if high < 200 * low else (1.0,)
    axes.yaxis.set_major_locator(LogLocator(subs=steps))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))


def _plain(text: str) -> str:
    """`text` as it stands: a dollar sign would begin a formula."""
    return text.replace("$", r"\$")
