"""Output of a sampling job: images as `qhdm sample` writes them, and the report of errors."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from pydantic import TypeAdapter

from qhdm.data.bands import bands_of
from qhdm.files import write_text
from qhdm.hardware.estimator import layout_at
from qhdm.hardware.isa import IsaCache, before_and_after
from qhdm.hardware.ledger import Ledger
from qhdm.hardware.sampling import SamplingJob
from qhdm.pictures import labelled_grid, save_png, to_picture
from qhdm.quantum.options import Hardware

_BACKGROUND, _INK, _GRID, _DOT = (250, 250, 248), (38, 38, 38), (214, 214, 208), (31, 97, 141, 90)
# In pixels.
_SIDE, _MARGIN, _RADIUS, _FONT_SIZE = 560, 70, 2, 15
#: More points than this hide each other.
_MOST_POINTS = 20_000


def write_images(
    job: SamplingJob, images: np.ndarray, exact: np.ndarray | None, folder: Path
) -> None:
    """Write the grids and one PNG per image.

    Args:
        job: what was sampled.
        images: uint8 (N, H, W, C), from the backend.
        exact: the same images with exact filters; None of a job that an older version began, whose
            sampling started elsewhere.
        folder: of its output.
    """
    names, bands = job.config.data.classes, bands_of(job.config.data)
    assert names is not None
    for image, label, index in zip(images, job.labels, job.indices, strict=True):
        number = index // len(names)
        path = folder / "images" / names[label] / f"{names[label]}_{number:05d}.png"
        save_png(to_picture(image, bands), path)
    for name, shown in (("samples.png", images), ("samples_exact.png", exact)):
        if shown is not None:
            save_png(labelled_grid(shown, job.labels, names, bands=bands), folder / name)


def write_report(
    job: SamplingJob,
    ledger: Ledger,
    cache: IsaCache,
    images: np.ndarray,
    exact_images: np.ndarray | None,
    folder: Path,
) -> dict[str, Any]:
    """Write report.json and report.png; returns what report.json holds.

    Args:
        job, images, exact_images: as for `write_images`.
        ledger: of the job.
        cache: of its ISA circuits.
        folder: of its output.
    """
    stages = ledger.comparisons()
    measured, exact = (
        np.concatenate([arrays[key].reshape(-1, arrays[key].shape[-1]) for *_, arrays in stages])
        for key in ("measured", "exact")
    )
    errors = measured - exact
    places: dict[str, list[np.ndarray]] = {}
    for _, place, arrays in stages:
        places.setdefault(place, []).append((arrays["measured"] - arrays["exact"]).ravel())
    spec, requests, surplus = job.spec, ledger.requests(), ledger.surplus()
    usage = [request.qpu_seconds for request in requests] + [s.qpu_seconds for s in surplus]
    engine = TypeAdapter(Hardware).dump_python(spec.engine, mode="json")
    shown = ("tag", "step", "stage", "place", "state", "executions", "qpu_seconds")
    report = {
        "engine": engine,
        "backend": spec.backend,
        "shots": spec.shots,
        "executed_shots": spec.executed_shots,
        "values": int(errors.size),
        "error": _summary(errors),
        "error_per_qubit": [_summary(errors[:, q]) for q in range(errors.shape[1])],
        "error_per_place": {p: _summary(np.concatenate(e)) for p, e in places.items()},
        "circuits": _circuits(job, ledger, cache),
        "mitigation": spec.mitigation,
        "slopes": _slopes(stages),
        "shot_noise": float(np.sqrt(np.mean((1 - exact**2).clip(0) / spec.executed_shots))),
        "correlation": _correlation(measured, exact),
        "image_change": None if exact_images is None else _image_change(images, exact_images),
        "qpu_seconds": None if None in usage else float(sum(u for u in usage if u is not None)),
        "jobs": [
            {"id": request.job_id, **{name: getattr(request, name) for name in shown}}
            for request in requests
        ],
        "surplus_jobs": [
            {"id": s.job_id, "tag": s.tag, "qpu_seconds": s.qpu_seconds} for s in surplus
        ],
    }
    write_text(folder / "report.json", json.dumps(report, indent=2) + "\n")
    title = f"{spec.backend}, {spec.executed_shots} shots: {errors.size:,} values of <Z>"
    save_png(scatter(exact.ravel(), measured.ravel(), title=title), folder / "report.png")
    return report


def describe_report(report: dict[str, Any], folder: Path) -> str:
    """The main figures of a job, and where its output is, a line each."""
    error, qubits = report["error"], report["error_per_qubit"]
    worst = max(range(len(qubits)), key=lambda q: qubits[q]["rms"])
    used, surplus = report["qpu_seconds"], len(report["surplus_jobs"])
    return "\n".join(
        [
            f"{report['values']:,} values of <Z> against exact: rms error {error['rms']:.4f} "
            f"(shots alone: {report['shot_noise']:.4f}), bias {error['mean']:+.4f}, "
            f"correlation {report['correlation']:.4f}",
            *_describe_circuits(report["circuits"]),
            *(
                f"{place}: divided by slopes of {s['smallest']:.3f} to {s['largest']:.3f}"
                for place, s in report["slopes"].items()
            ),
            f"largest on qubit {worst}: rms {qubits[worst]['rms']:.4f}",
            f"images: {_describe_change(report['image_change'])}",
            f"QPU seconds used: {'not reported yet' if used is None else f'{used:,.1f}'} "
            f"in {len(report['jobs']) + surplus} runtime jobs"
            + (f", {surplus} of them surplus" if surplus else ""),
            f"samples: {folder / 'samples.png'}",
            f"report: {folder / 'report.json'}, {folder / 'report.png'}",
        ]
    )


def _describe_change(change: float | None) -> str:
    if change is None:
        return "begun by an older version, whose exact ones are not made any more"
    return f"changed by {255 * change:.2f} of 255 levels (rms of a pixel)"


def _describe_circuits(places: dict[str, Any]) -> list[str]:
    """Expected errors of compiled circuits, a line for each place."""
    lines = []
    for place, figures in places.items():
        before, after = figures["before"], figures["after"]
        if before is not None and after["gates"] < before["gates"]:
            line = f"{place}: compiled, two-qubit gates {before['gates']} > {after['gates']}"
            if None not in (before["error"], after["error"]):
                line += f", expected gate error {before['error']:.4f} > {after['error']:.4f}"
            lines.append(line)
    return lines


def scatter(x: np.ndarray, y: np.ndarray, *, title: str) -> Image.Image:
    """Measured values against exact ones, both in [-1, 1], with the line where they agree."""
    size = _SIDE + 2 * _MARGIN
    image = Image.new("RGB", (size, size), _BACKGROUND)
    draw = ImageDraw.Draw(image, "RGBA")
    font = ImageFont.load_default(_FONT_SIZE)
    limit = max(1.0, float(np.abs(y).max(initial=0)), float(np.abs(x).max(initial=0)))

    def place(a: float, b: float) -> tuple[float, float]:
        return (
            _MARGIN + (a / limit + 1) / 2 * _SIDE,
            _MARGIN + (1 - b / limit) / 2 * _SIDE,
        )

    for tick in (-1.0, -0.5, 0.0, 0.5, 1.0):
        draw.line([place(tick, -limit), place(tick, limit)], _GRID)
        draw.line([place(-limit, tick), place(limit, tick)], _GRID)
        across, up = place(tick, -limit), place(-limit, tick)
        draw.text((across[0], across[1] + 8), f"{tick:g}", _INK, font, anchor="mt")
        draw.text((up[0] - 8, up[1]), f"{tick:g}", _INK, font, anchor="rm")
    draw.line([place(-limit, -limit), place(limit, limit)], _INK)
    # Evenly spread over all of them where there are too many.
    step = max(1, len(x) // _MOST_POINTS)
    for a, b in zip(x[::step].tolist(), y[::step].tolist(), strict=True):
        u, v = place(a, b)
        draw.ellipse([u - _RADIUS, v - _RADIUS, u + _RADIUS, v + _RADIUS], _DOT)
    draw.text((size / 2, _MARGIN / 2), title, _INK, font, anchor="mm")
    draw.text((size / 2, size - _MARGIN / 3), "exact", _INK, font, anchor="mm")
    draw.text((_MARGIN / 4, size / 2), "measured", _INK, font, anchor="lb")
    return image


def _circuits(job: SamplingJob, ledger: Ledger, cache: IsaCache) -> dict[str, Any]:
    """Figures of the circuits of each place in the last network evaluation."""
    relaid, figures = ledger.fact("relaid") or (), {}
    for number, stage in enumerate(job.stages_at(job.steps - 1)):
        layout = layout_at((job.steps - 1, number), relaid)
        circuits = [circuit.isa for circuit in stage.circuits(cache, layout)]
        before, after = before_and_after(circuits)
        figures[stage.place] = {
            "before": None if before is None else asdict(before),
            "after": asdict(after),
            "bias": float(np.sqrt(np.mean([isa.bias**2 for isa in circuits]))),
        }
    return figures


def _image_change(images: np.ndarray, exact: np.ndarray) -> float:
    """Root of the mean squared difference of pixels in [0, 1]."""
    difference = (images.astype(float) - exact) / np.iinfo(images.dtype).max
    return float(np.sqrt(np.mean(difference**2)))


def _slopes(stages: Sequence[tuple[int, str, dict[str, np.ndarray]]]) -> dict[str, Any]:
    """By which values were corrected at each place, of all qubits, copies and evaluations."""
    places: dict[str, list[np.ndarray]] = {}
    for _, place, arrays in stages:
        if "slopes" in arrays:
            places.setdefault(place, []).append(arrays["slopes"].ravel())
    slopes = {place: np.concatenate(own) for place, own in places.items()}
    return {
        place: {
            "smallest": float(own.min()),
            "mean": float(own.mean()),
            "largest": float(own.max()),
        }
        for place, own in slopes.items()
    }


def _summary(errors: np.ndarray | Sequence[float]) -> dict[str, float]:
    values = np.asarray(errors)
    return {
        "mean": float(values.mean()),
        "rms": float(np.sqrt(np.mean(values**2))),
        "largest": float(np.abs(values).max()),
    }


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    if x.std() == 0 or y.std() == 0:
        return 0.0
    return float(np.corrcoef(x.ravel(), y.ravel())[0, 1])
