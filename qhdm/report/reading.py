"""Reads what pages show of run directories and data sets."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from qhdm import data
from qhdm.config import DataConfig
from qhdm.data import Dataset
from qhdm.errors import DataError, EvaluationError, RunError
from qhdm.report.charts import Line
from qhdm.report.html import data_uri
from qhdm.training.log import read_metrics


def real_images(config: DataConfig) -> tuple[Dataset | None, list[str]]:
    """A data set, or None and a message if it cannot be loaded."""
    try:
        return data.load(config, progress=True), []
    except DataError as error:
        return None, [f"No real images are shown: {error}."]


def read_versions(run: Path) -> dict[str, str]:
    """The versions of packages that a run was trained with; none if it has no such file.

    Raises:
        RunError: the file is damaged.
    """
    file = run / "versions.json"
    if not file.exists():
        return {}
    try:
        versions = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        versions = None
    if not isinstance(versions, dict):
        raise RunError(f"{file}: damaged; delete it to go without versions")
    return {str(name): str(version) for name, version in versions.items()}


def read_log(run: Path) -> list[dict[str, Any]]:
    """The log of a training: records with `step`, `loss` and `steps_per_second`.

    Raises:
        RunError: a record lacks one of them.
    """
    file = run / "metrics.jsonl"
    records = read_metrics(file)
    for record in records:
        for name in ("loss", "steps_per_second"):
            value = record.get(name)
            if not isinstance(value, int | float) or not 0 < value < math.inf:
                raise RunError(f"{file}: damaged: step {record['step']} has {name} {value!r}")
    return records


def loss_line(group: str, records: Sequence[Mapping[str, Any]]) -> Line:
    """The logged losses of a run, of one record or more."""
    return Line(group, [r["step"] for r in records], [r["loss"] for r in records])


def read_picture(file: Path) -> str | None:
    """The data URI of a PNG file, or None without it.

    Raises:
        EvaluationError: the file is damaged.
    """
    if not file.exists():
        return None
    content = file.read_bytes()
    try:
        with Image.open(BytesIO(content), formats=["PNG"]) as picture:
            picture.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        raise EvaluationError(f"{file}: not a PNG, or damaged; delete it") from None
    return data_uri(content, "image/png")
