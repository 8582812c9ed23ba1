"""What pages read from run directories and data sets."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qhdm import data
from qhdm.config import DataConfig
from qhdm.data import Dataset
from qhdm.errors import DataError, RunError
from qhdm.report.pages.charts import Line
from qhdm.training.log import read_metrics


@dataclass(frozen=True)
class SetFacts:
    """Name and size of a data set."""

    name: str
    train: int
    test: int


def set_facts(real: Dataset) -> SetFacts:
    test = int(real.is_test.sum())
    return SetFacts(real.name, len(real) - test, test)


def real_images(config: DataConfig) -> tuple[Dataset | None, list[str]]:
    """A data set, or None and what to say where it cannot be had."""
    try:
        return data.load(config, progress=True), []
    except DataError as error:
        return None, [f"No real images are shown: {error}."]


def read_versions(run: Path) -> dict[str, str]:
    """What a run was trained with; nothing where it has not kept it.

    Raises:
        RunError: the file is damaged.
    """
    file = run / "versions.json"
    if not file.exists():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise RunError(f"{file}: damaged; delete it to go without versions")
    return {str(name): str(version) for name, version in found.items()}


def read_log(run: Path) -> list[dict[str, Any]]:
    """The records of a training, each with `step`, `loss` and `steps_per_second`; none without one.

    Raises:
        RunError: a record lacks them.
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
