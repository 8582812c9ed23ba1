"""The log of a run: metrics.jsonl, and TensorBoard where asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

from qhdm import console
from qhdm.errors import ConfigError
from qhdm.files import write_text
from qhdm.runs.directory import unwritable


def check_tensorboard(wanted: bool) -> None:
    """Raise `ConfigError` if TensorBoard is wanted and not installed."""
    if wanted and find_spec("tensorboard") is None:
        raise ConfigError(
            "train.tensorboard: TensorBoard is not installed; "
            "pip install 'qhdm[tensorboard]', or set it to false"
        )


class MetricsLog:
    """Appends one JSON object per record; lines after `resume_step` are dropped first.

    Lines that are damaged are left out, and named on stderr: no weight depends on them.

    Args:
        run_path: the run directory.
        resume_step: training goes on after this step.
        tensorboard: also write TensorBoard events to `run_path`/tensorboard.
    """

    def __init__(self, run_path: Path, *, resume_step: int = 0, tensorboard: bool = False) -> None:
        self._writer: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(run_path / "tensorboard"), purge_step=resume_step + 1)
        self._run_path = run_path
        self._path = path = run_path / "metrics.jsonl"
        records, damaged = _read(path)
        if damaged:
            numbers = ", ".join(map(str, damaged[:5])) + (", ..." if len(damaged) > 5 else "")
            console.message(f"qhdm: {path}: line {numbers}: damaged, and left out")
        kept = [record for record in records if record["step"] <= resume_step]
        write_text(path, "".join(json.dumps(record) + "\n" for record in kept))
        self._file = path.open("a", encoding="utf-8")

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # What could not be written is not written in closing, either.
        with suppress(OSError) if error else nullcontext():
            self._file.close()
        if self._writer is not None:
            self._writer.close()

    def write(self, step: int, **values: float) -> None:
        """Record `values` at `step`.

        Raises:
            RunError: it cannot be written, as where the disk is full.
        """
        try:
            self._file.write(json.dumps({"step": step, **values}) + "\n")
            self._file.flush()
        except OSError as error:
            raise unwritable(self._path, error, self._run_path) from None
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)


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
