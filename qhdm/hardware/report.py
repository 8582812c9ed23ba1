"""What a sampling job leaves: images as `qhdm sample` writes them, and the device against exact."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from qhdm.files import write_text
from qhdm.hardware.ledger import Ledger
from qhdm.hardware.sampling import Task
from qhdm.pictures import labelled_grid, save_png, to_picture

_BACKGROUND, _INK, _GRID, _DOT = (250, 250, 248), (38, 38, 38), (214, 214, 208), (31, 97, 141, 90)
# In pixels.
_SIDE, _MARGIN, _RADIUS, _FONT_SIZE = 560, 70, 2, 15
#: More points than this hide each other.
_MOST_POINTS = 20_000


def write_images(task: Task, images: np.ndarray, exact: np.ndarray, folder: Path) -> list[Path]:
    """Write the grids and one PNG per image.

    Args:
        task: what was sampled.
        images: uint8 (N, H, W, C), from the backend.
        exact: the same images with exact filters.
        folder: of the job.

    Returns:
        The grid of the backend's images, and that of the exact ones.
    """
    names = task.pipeline.class_names
    for image, label, index in zip(images, task.labels, task.indices, strict=True):
        number = index // len(names)
        path = folder / "images" / names[label] / f"{names[label]}_{number:05d}.png"
        save_png(to_picture(image), path)
    grids = [folder / "samples.png", folder / "samples_exact.png"]
    for grid, shown in zip(grids, (images, exact), strict=True):
        save_png(labelled_grid(shown, task.labels, names), grid)
    return grids


def write_report(task: Task, ledger: Ledger, folder: Path) -> dict[str, Any]:
    """Write report.json and report.png; returns what report.json holds."""
    found = ledger.comparisons()
    measured = np.concatenate(
        [a["measured"].reshape(-1, a["measured"].shape[-1]) for *_, a in found]
    )
    exact = np.concatenate([a["exact"].reshape(-1, a["exact"].shape[-1]) for *_, a in found])
    errors = measured - exact
    places: dict[str, list[np.ndarray]] = {}
    for _, place, arrays in found:
        places.setdefault(place, []).append((arrays["measured"] - arrays["exact"]).ravel())
    entries = ledger.entries()
    shots = task.spec.executed_shots
    surplus = ledger.surplus()
    usage = [e.qpu_seconds for e in entries] + [s.qpu_seconds for s in surplus]
    report = {
        "backend": task.spec.backend,
        "shots": task.spec.shots,
        "executed_shots": shots,
        "values": int(errors.size),
        "error": _summary(errors),
        "error_per_qubit": [_summary(errors[:, q]) for q in range(errors.shape[1])],
        "error_per_place": {p: _summary(np.concatenate(e)) for p, e in places.items()},
        "shot_noise": float(np.sqrt(np.mean((1 - exact**2).clip(0) / shots))),
        "correlation": _correlation(measured, exact),
        "qpu_seconds": None if None in usage else float(sum(u for u in usage if u is not None)),
        "jobs": [
            {
                "id": e.job_id, "tag": e.tag, "step": e.step, "stage": e.stage, "place": e.place,
                "state": e.state, "executions": e.executions, "qpu_seconds": e.qpu_seconds,
            }
            for e in entries
        ],
        "surplus_jobs": [
            {"id": s.job_id, "tag": s.tag, "qpu_seconds": s.qpu_seconds} for s in surplus
        ],
    }  # fmt: skip
    write_text(folder / "report.json", json.dumps(report, indent=2) + "\n")
    title = f"{task.spec.backend}, {shots} shots: {errors.size:,} values of <Z>"
    save_png(scatter(exact.ravel(), measured.ravel(), title=title), folder / "report.png")
    return report


def describe_report(report: dict[str, Any]) -> str:
    """The main figures, a line each."""
    error = report["error"]
    worst = max(range(len(report["error_per_qubit"])),
                key=lambda q: report["error_per_qubit"][q]["rms"])  # fmt: skip
    used = report["qpu_seconds"]
    return "\n".join(
        [
            f"{report['values']:,} values of <Z> against exact: rms error {error['rms']:.4f} "
            f"(shots alone: {report['shot_noise']:.4f}), bias {error['mean']:+.4f}, "
            f"correlation {report['correlation']:.4f}",
            f"largest on qubit {worst}: rms {report['error_per_qubit'][worst]['rms']:.4f}",
            f"QPU seconds used: {'not reported yet' if used is None else f'{used:,.1f}'} "
            f"in {len(report['jobs']) + len(report['surplus_jobs'])} jobs"
            + (
                f", {len(report['surplus_jobs'])} of them one too many"
                if report["surplus_jobs"]
                else ""
            ),
        ]
    )


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
