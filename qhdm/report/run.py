"""The page of a run: its images, metrics and training, and its filters."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np

from qhdm.config import Config, PublishedModelConfig, to_yaml
from qhdm.data import Bands
from qhdm.device import resolve_device
from qhdm.files import write_text
from qhdm.metrics.records import DataRecord, read_evaluation
from qhdm.metrics.tables import READ_USE, class_table, metric_table, provenance, use_tables
from qhdm.models.build import build_model
from qhdm.models.counts import Counts, count_parameters
from qhdm.models.filters import set_engine
from qhdm.models.hybrid import ANGLES
from qhdm.models.named_filters import NamedFilter, named_filters
from qhdm.quantum.analysis.audit import audit, conclusions
from qhdm.quantum.analysis.text import summary
from qhdm.quantum.engines import make_engine
from qhdm.quantum.files.save import named_circuit
from qhdm.report.charts import Line, angle_chart, line_chart, spectra_chart
from qhdm.report.circuits import draw
from qhdm.report.html import data_uri, render
from qhdm.report.reading import loss_line, read_log, read_picture, read_versions, real_images
from qhdm.report.samples import Spectra, samples_beside, sampling_label, trajectories
from qhdm.run import Run, load_model
from qhdm.runs.directory import RunDirectory
from qhdm.shipped import results_path
from qhdm.tables import Table, number
from qhdm.training.log import training_seconds

_WEIGHTS: Literal["ema"] = "ema"
#: In logs of training.
_USE = "circuit_use_prediction"


def write_run_page(path: Path, out: Path) -> list[str]:
    """Write the page of the run directory `path` to the file `out`, atomically.

    Returns:
        Messages about what the page lacks.

    Raises:
        RunError: not a run directory, no checkpoint, or something damaged in it.
        EvaluationError: an evaluation in the run, or its picture, is damaged.
    """
    model, run = load_model(path, weights=_WEIGHTS)
    files = sorted((results_path(path) / "evaluations").glob("*.json"))
    evaluations = [_evaluation(file) for file in files]
    records = read_log(path)
    versions = read_versions(path)
    counts = count_parameters(model)
    filters = named_filters(model)
    # The cheapest engine: evaluations show how shots and noise change images.
    set_engine(model, make_engine("exact"))
    trained = Run(model, run.config, device=resolve_device("auto"))
    real, missing = real_images(run.config.data)
    sigmas, rows = trajectories(trained)
    samples = samples_beside(trained, real)
    content = render(
        "run.html",
        name=path.resolve().name,
        config=run.config,
        step=run.last_step(),
        weights=_WEIGHTS,
        sampling=sampling_label(run.config),
        data=real and DataRecord.of(real),
        missing=missing,
        samples=samples,
        bands=trained.bands,
        spectra=_spectra(trained.bands, samples.spectra),
        sigmas=sigmas,
        trajectories=rows,
        evaluations=evaluations,
        read_use=READ_USE,
        counts=counts,
        total=counts[-1],
        training=_training_facts(records, run),
        charts=_training_charts(records, counts[-1]),
        filters=_filter_table(run, filters),
        redrawn=redraw_distance(run.config),
        angles=_angles(filters),
        circuits=_circuits(filters),
        versions=versions,
        settings=to_yaml(run.config),
    )
    write_text(out, content)
    return missing


def _spectra(bands: Bands | None, spectra: Sequence[Spectra]) -> str | None:
    if bands is None:
        return None
    return spectra_chart(bands.names, [(s.name, s.generated, s.real) for s in spectra])


def _evaluation(file: Path) -> dict[str, Any]:
    """An evaluation as tables, and the picture beside its file."""
    evaluation = read_evaluation(file)
    return {
        "name": file.stem,
        "provenance": provenance(evaluation),
        "notes": evaluation.notes,
        "metrics": metric_table(evaluation),
        "classes": class_table(evaluation),
        "use": use_tables(evaluation),
        "neighbours": read_picture(file.with_name(f"{file.stem}_neighbours.png")),
    }


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
    """Charts of the log: data URI, alternative text and caption."""
    if not records:
        return []
    step = "training step"
    loss = line_chart([loss_line("loss", records)], title="Training loss", x=step, y="loss")
    caption = "Each point is the mean loss since the one before it. Logarithmic axis."
    charts = [(loss, "training loss by step", caption)]
    lines = []
    for kind, size in (("classical", total.classical), ("quantum", total.quantum)):
        key = f"grad_norm_{kind}"
        if logged := [record for record in records if key in record]:
            steps = [record["step"] for record in logged]
            # Per weight: the two parts differ in size by orders of magnitude.
            values = [record[key] / math.sqrt(max(size, 1)) for record in logged]
            lines.append(Line(f"{kind}: {size:,} weights", steps, values))
    if lines:
        chart = line_chart(lines, title="Gradient per weight", x=step, y="root mean square")
        caption = (
            "Norm of the gradient before clipping, divided by the square root of the number of "
            "weights, at the logged steps. Quantum weights are angles divided by 2π. "
            "Logarithmic axis."
        )
        charts.append((chart, "gradient per weight by step, classical and quantum", caption))
    if used := [record for record in records if record.get(_USE)]:
        line = Line("all filters", [r["step"] for r in used], [r[_USE] for r in used])
        chart = line_chart([line], title="Use of the filters", x=step, y="change of the prediction")
        caption = (
            "Change of the prediction where all filters give their mean, over its spread, at "
            "checkpoints. Logarithmic axis."
        )
        charts.append((chart, "use of the filters by step", caption))
    return charts


def _filter_table(run: RunDirectory, filters: Sequence[NamedFilter]) -> Table:
    """The filters, and how far training moved their angles, if the initial ones are known."""
    # The weights of an imported run were not drawn from its seed.
    imported = (run.path / "origin.json").exists()
    starts = [] if imported or not filters else named_filters(build_model(run.config))
    rows = []
    for item, start in itertools.zip_longest(filters, starts):
        moved = f"{number(_moved(item.weights - start.weights))} rad" if start else ""
        rows.append([item.place, item.filter.name, str(item.index), str(len(item.weights)), moved])
    return Table(["place", "circuit", "filter", "weights", "moved by training"], rows, left=2)


def redraw_distance(config: Config) -> float:
    """Root mean square difference of two draws of the initial angles."""
    if isinstance(config.model, PublishedModelConfig):
        return math.pi / math.sqrt(3)  # uniform on the circle
    return math.sqrt(2) * ANGLES


def _moved(change: np.ndarray) -> float:
    """Root mean square of a change of angles, the short way round the circle."""
    around = np.angle(np.exp(1j * change))
    return float(np.sqrt(np.square(around).mean()))


def _angles(filters: Sequence[NamedFilter]) -> str | None:
    if not filters:
        return None
    names = [f"{item.place} [{item.index}]" for item in filters]
    return angle_chart(names, [item.weights for item in filters])


def _circuits(filters: Sequence[NamedFilter]) -> list[dict[str, Any]]:
    """The circuits that filters share: their drawings, facts and conclusions."""
    circuits = []
    for circuit_filter in dict.fromkeys(item.filter for item in filters):
        facts = audit(circuit_filter)
        (_, name), *rows = summary(facts)
        buffer = BytesIO()
        draw(named_circuit(circuit_filter), buffer, "svg")
        drawing = data_uri(buffer.getvalue(), "image/svg+xml")
        lines = conclusions(facts)
        circuits.append({"name": name, "drawing": drawing, "facts": rows, "conclusions": lines})
    return circuits
