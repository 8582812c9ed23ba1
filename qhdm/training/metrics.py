"""The log of a run: metrics.jsonl, and TensorBoard where asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

from qhdm.errors import ConfigError
from qhdm.files import write_text


def check_tensorboard(wanted: bool) -> None:
    """Raise `ConfigError` if TensorBoard is wanted and not installed."""
    if wanted and find_spec("tensorboard") is None:
        raise ConfigError(
            "train.tensorboard: TensorBoard is not installed; "
            "pip install 'qhdm[tensorboard]', or set it to false"
        )


class MetricsLog:
    """Appends one JSON object per record; lines after `resume_step` are dropped first.

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
        path = run_path / "metrics.jsonl"
        kept = [record for record in read_metrics(path) if record["step"] <= resume_step]
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
        self._file.close()
        if self._writer is not None:
            self._writer.close()

    def write(self, step: int, **values: float) -> None:
        """Record `values` at `step`."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl; a last line cut short by a crash is left out."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            break
        if not isinstance(record, dict) or not isinstance(record.get("step"), int):
            break
        records.append(record)
    return records


def training_seconds(records: Sequence[Mapping[str, Any]]) -> float:
    """Spent in training steps, by their logged speed; pauses and sample pictures do not count."""
    seconds, before = 0.0, 0
    for record in records:
        seconds += (record["step"] - before) / record["steps_per_second"]
        before = record["step"]
    return seconds
