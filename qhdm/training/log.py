"""The log of a run, metrics.jsonl."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from qhdm import console
from qhdm.files import write_text
from qhdm.runs.directory import RunDirectory, unwritable
from qhdm.training.callbacks import Callback


class MetricsLog(Callback):
    """Appends one JSON object per record to the run's metrics.jsonl.

    Records after the step at which training continues are dropped, and so are damaged lines, which
    are named on stderr.
    """

    def __init__(self) -> None:
        self._file: TextIO | None = None

    def on_start(self, run: RunDirectory, step: int) -> None:
        self._run_path = run.path
        self._path = path = run.path / "metrics.jsonl"
        records, damaged = _read(path)
        if damaged:
            numbers = ", ".join(map(str, damaged[:5])) + (", ..." if len(damaged) > 5 else "")
            console.message(f"qhdm: {path}: line {numbers}: damaged, and left out")
        kept = [record for record in records if record["step"] <= step]
        write_text(path, "".join(json.dumps(record) + "\n" for record in kept))
        self._file = path.open("a", encoding="utf-8")

    def on_loss(self, step: int, values: Mapping[str, float]) -> None:
        """Record `values` at `step`.

        Raises:
            RunError: it cannot be written, as where the disk is full.
        """
        assert self._file is not None
        try:
            self._file.write(json.dumps({"step": step, **values}) + "\n")
            self._file.flush()
        except OSError as error:
            raise unwritable(self._path, error, self._run_path) from None

    def on_end(self) -> None:
        if self._file is not None:
            with suppress(OSError):  # what could not be written has been refused before
                self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl; lines that are damaged are left out."""
    return _read(path)[0]


def _read(path: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """The records, and the numbers (1-based) of damaged lines.

    A last line without its end, as a crash leaves it, does not count as damaged.
    """
    if not path.exists():
        return [], []
    records, damaged = [], []
    *lines, last = path.read_bytes().split(b"\n")
    for number, line in enumerate([*lines, last], 1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if isinstance(record, dict) and type(record.get("step")) is int:
            records.append(record)
        elif number <= len(lines):
            damaged.append(number)
    return records, damaged


def training_seconds(records: Sequence[Mapping[str, Any]]) -> float:
    """Spent in training steps, by their logged speed; pauses and sample pictures do not count."""
    seconds, before = 0.0, 0
    for record in records:
        seconds += (record["step"] - before) / record["steps_per_second"]
        before = record["step"]
    return seconds
