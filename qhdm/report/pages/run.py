"""The page of a run: what it generates, how it trained, what its filters became."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from qhdm.config import to_yaml
from qhdm.device import resolve_device
from qhdm.files import write_text
from qhdm.models.build import build_model, set_engine
from qhdm.models.counts import Counts, count_parameters
from qhdm.models.named_filters import NamedFilter, named_filters
from qhdm.quantum.analysis.audit import audit, conclusions
from qhdm.quantum.analysis.text import summary
from qhdm.quantum.engines import make_engine
from qhdm.quantum.files.save import named_circuit
from qhdm.report.pages.charts import Line, angle_chart, drawing, line_chart
from qhdm.report.pages.html import render
from qhdm.report.pages.metrics import evaluation_tables
from qhdm.report.pages.reading import (
    loss_line,
    read_log,
    read_versions,
    real_images,
    set_facts,
)
from qhdm.report.pages.samples import samples_beside, sampling_words, trajectories
from qhdm.run import Run, load_model
from qhdm.runs.directory import RunDirectory
from qhdm.training.log import training_seconds

#: Other weights can be looked at with `qhdm sample --weights model`.
_WEIGHTS: Literal["ema"] = "ema"


@dataclass(frozen=True)
class Circuit:
    """A circuit that filters share: its drawing, its facts and what follows from them."""

    name: str
    drawing: str
    facts: Sequence[tuple[str, str]]
    conclusions: Sequence[str]


@dataclass(frozen=True)
class FilterRow:
    """A filter: where it stands, how many weights, and how far training moved them.

    Attributes:
        moved: root mean square change of the angles since initialisation, in radians, around the
            circle; None where the beginning is not known.
    """

    place: str
    index: int
    circuit: str
    weights: int
    moved: float | None


def write_run_page(path: Path, out: Path) -> list[str]:
    """Write the page of the run directory `path` to the file `out`, whole or not at all.

    Returns:
        What the page lacks and why, a sentence each.

    Raises:
        RunError: not a run directory, no checkpoint, or something damaged in it.
        EvaluationError: an evaluation in the run, or its picture, is damaged.
    """
    model, run = load_model(path, weights=_WEIGHTS)
    files = sorted((path / "evaluations").glob("*.json"))
    evaluations = [evaluation_tables(file) for file in files]
    records = read_log(path)
    versions = read_versions(path)
    counts = count_parameters(model)
    placed = named_filters(model)
    # On the engine that costs least: how shots and noise change images is for evaluations to say.
    set_engine(model, make_engine("exact"))
    pipeline = Run(model, run.config, device=resolve_device("auto"))
    real, missing = real_images(run.config.data)
    content = render(
        "run.html",
        name=path.resolve().name,
        config=run.config,
        step=run.last_step(),
        weights=_WEIGHTS,
        sampling=sampling_words(run.config),
        data=real and set_facts(real),
        missing=missing,
        samples=samples_beside(pipeline, real),
        trajectories=trajectories(pipeline),
        evaluations=evaluations,
        counts=counts,
        total=counts[-1],
        training=_training_facts(records, run),
        charts=_training_charts(records, counts[-1]),
        filters=_filter_rows(run, placed),
        angles=_angles(placed),
        circuits=_circuits(placed),
        versions=versions,
        settings=to_yaml(run.config),
    )
    write_text(out, content)
    return missing


def _training_facts(records: Sequence[dict[str, Any]], run: RunDirectory) -> dict[str, Any] | None:
    if not records:
        return None
    seconds, steps = training_seconds(records), records[-1]["step"]
    return {
        "seconds": seconds,
        "speed": steps / seconds,
        "loss": records[-1]["loss"],
        "images": steps * run.config.train.batch_size,
    }


def _training_charts(
    records: Sequence[dict[str, Any]], total: Counts
) -> list[tuple[str, str, str]]:
    """Charts of the log: address, what it is in a few words, and its caption."""
    if not records:
        return []
    charts = [
        (
            line_chart(
                [loss_line("loss", records)],
                title="Training loss",
                x="training step",
                y="loss",
                log=True,
            ),
            "training loss by step",
            "Each point is the mean loss since the one before it. Logarithmic axis.",
        )
    ]
    norms = {
        kind: [r for r in records if f"grad_norm_{kind}" in r] for kind in ("classical", "quantum")
    }
    sizes = {"classical": total.classical, "quantum": total.quantum}
    found = [
        Line(
            f"{kind}: {sizes[kind]:,} weights",
            [r["step"] for r in logged],
            # Per weight: the two parts differ in size by orders of magnitude.
            [r[f"grad_norm_{kind}"] / math.sqrt(max(sizes[kind], 1)) for r in logged],
        )
        for kind, logged in norms.items()
        if logged
    ]
    if found:
        chart = line_chart(
            found,
            title="Gradient per weight",
            x="training step",
            y="root mean square",
            log=True,
        )
        caption = (
            "Norm of the gradient before clipping, divided by the square root of the number of "
            "weights, at the logged steps. Quantum weights are angles divided by 2π. "
            "Logarithmic axis."
        )
        charts.append((chart, "gradient per weight by step, classical and quantum", caption))
    return charts


def _filter_rows(run: RunDirectory, placed: Sequence[NamedFilter]) -> list[FilterRow]:
    if not placed:
        return []
    # Converted weights did not begin as the seed says.
    known = not (run.path / "origin.json").exists()
    starts = named_filters(build_model(run.config)) if known else itertools.repeat(None)
    return [
        FilterRow(
            item.place,
            item.index,
            item.filter.name,
            len(item.weights),
            None if start is None else _moved(item.weights - start.weights),
        )
        for item, start in zip(placed, starts)  # noqa: B905 (the second may be endless)
    ]


def _moved(change: np.ndarray) -> float:
    around = np.angle(np.exp(1j * change))
    return float(np.sqrt(np.square(around).mean()))


def _angles(placed: Sequence[NamedFilter]) -> str | None:
    if not placed:
        return None
    names = [f"{item.place} [{item.index}]" for item in placed]
    return angle_chart(names, [item.weights for item in placed])


def _circuits(placed: Sequence[NamedFilter]) -> list[Circuit]:
    found = []
    for filter in dict.fromkeys(item.filter for item in placed):
        facts = audit(filter)
        (_, name), *rows = summary(facts)
        found.append(Circuit(name, drawing(named_circuit(filter)), rows, conclusions(facts)))
    return found
