"""The cells of a comparison: run directories, and what is left to do in each.

comparisons/<name>/
    comparison.yaml   the specification; base.yaml, base-<variant>.yaml: what it starts from
    cells/            <variant>-seed<k>/: run directories, with their evaluations
    logs/             <variant>-seed<k>.log: what the processes of a cell wrote to stderr
    results.json, results.md, inference.png
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from qhdm import data
from qhdm.comparison.execution import Job
from qhdm.comparison.spec import Grid, has_circuits, leaves
from qhdm.config import Config, to_dict, with_circuit_files
from qhdm.errors import ComparisonError
from qhdm.metrics.records import Evaluation, read_evaluation
from qhdm.metrics.samples import described
from qhdm.metrics.settings import EvaluationSettings
from qhdm.quantum.options import EngineOptions
from qhdm.runs.config import circuit_digest
from qhdm.runs.directory import RunDirectory
from qhdm.schema import Key, dotted
from qhdm.training.log import read_metrics, training_seconds

#: What may differ in a run that is taken for a cell, as it does not change the weights.
_BOOKKEEPING: set[Key] = {
    ("name",),
    ("sample",),
    ("data", "root"),  # the same images may have moved
    ("train", "device"),
    ("train", "tensorboard"),
    ("train", "sample_every"),
    ("train", "checkpoint_every"),
    ("train", "log_every"),
    ("train", "keep_checkpoints"),
}


@dataclass(frozen=True)
class Judged:
    """An evaluation and its file."""

    path: Path
    evaluation: Evaluation


@dataclass(frozen=True)
class Cell:
    """One training of one variant, and its evaluations.

    Attributes:
        path: its run directory.
        config: resolved (`data.classes` is not null).
        main: the evaluation that variants are compared by.
        study: the evaluations of the study of noise and shots, by engine.
    """

    variant: str
    seed: int
    path: Path
    config: Config
    main: EvaluationSettings
    study: Mapping[EngineOptions, EvaluationSettings]

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def requests(self) -> tuple[EvaluationSettings, ...]:
        """All evaluations, each once."""
        return tuple(dict.fromkeys([self.main, *self.study.values()]))

    def step(self) -> int:
        """The step it is trained to; 0 if it has not started.

        Raises:
            ComparisonError: its directory holds a run of another configuration.
            RunError: its directory holds something else.
        """
        if not self._has_started():
            return 0
        run = RunDirectory.open(self.path)
        different = sorted(_differences(run.config, self.config))
        if different:
            key, present, wanted = different[0]
            more = f" (and {len(different) - 1} more)" if len(different) > 1 else ""
            raise ComparisonError(
                f"{self.path}: has {key} {present}, the specification {wanted}{more}; give another "
                "--out, or move that run away"
            )
        return run.last_step()

    def logged_step(self) -> int:
        """The last step in its log, which is ahead of the last checkpoint."""
        records = read_metrics(self.path / "metrics.jsonl")
        return min(int(records[-1]["step"]), self.config.train.steps) if records else 0

    def evaluation(self, request: EvaluationSettings) -> Judged | None:
        """The newest complete evaluation of its final weights, whoever made it; None if absent.

        Raises:
            EvaluationError: a file among its evaluations is damaged.
        """
        run = RunDirectory(self.path, self.config)
        if run.last_step() < self.config.train.steps:
            return None
        asked = described(run, request)
        newest: dict[int, Judged] = {}
        for path in (self.path / "evaluations").glob("*.json"):
            modified = path.stat().st_mtime_ns
            evaluation = _read(path, modified)
            if (
                evaluation.generated.answers(asked)
                and (evaluation.extractor is None or evaluation.extractor.name == request.extractor)
                and set(request.metrics) <= set(evaluation.groups)
            ):
                newest[modified] = Judged(path, evaluation)
        return newest[max(newest)] if newest else None

    def is_evaluated(self, request: EvaluationSettings) -> bool:
        """Whether `evaluation` returns one."""
        return self.evaluation(request) is not None

    def train_seconds(self) -> float:
        """Time spent in training steps, without pauses and sample pictures, from the log."""
        return training_seconds(read_metrics(self.path / "metrics.jsonl"))

    def job(self, log: Path) -> Job | None:
        """The commands for what is left to do; None if all is done.

        Raises:
            ComparisonError, RunError: as `step`.
            EvaluationError: as `evaluation`.
        """
        commands = []
        root = self._moved_root()
        if self.step() < self.config.train.steps:
            commands.append(_command("train", "--resume", self.path, *root))
        commands += [
            _command("evaluate", self.path, *_options(request), *root)
            for request in self.requests
            if not self.is_evaluated(request)
        ]
        return Job(self.name, tuple(commands), log) if commands else None

    def create(self) -> None:
        """Make its run directory, for `qhdm train --resume` to start from step 0."""
        if not self._has_started():
            RunDirectory.create(self.config, self.path)

    def _moved_root(self) -> list[str]:
        """The option that tells its run where the data are, if they have moved."""
        root = self.config.data.root
        known = not self._has_started() or RunDirectory.open(self.path).config.data.root == root
        return [] if known else ["--set", f"data.root={json.dumps(root)}"]

    def _has_started(self) -> bool:
        return self.path.exists() and not (self.path.is_dir() and not any(self.path.iterdir()))


def cells_of(grid: Grid, folder: Path) -> list[Cell]:
    """The cells of a grid, with the classes of their data.

    Raises:
        DataError: a data set cannot be listed, or lacks a class.
    """
    spec = grid.specification
    cells = []
    for (variant, seed), config in grid.configs.items():
        config = data.resolved(config)
        # Resolved: runs made elsewhere may have other defaults of their own.
        main = spec.evaluate.resolved(config)
        study = {}
        if has_circuits(config) and variant in (spec.inference_variants or spec.variants):
            settings = (spec.inference_evaluate or spec.evaluate).resolved(config)
            for engine in spec.inference:
                # The run's own engine is not named, as in `main`, which is then the same request.
                own = engine.options == config.quantum.engine_options
                study[engine.options] = settings if own else replace(settings, **vars(engine))
        path = folder / "cells" / f"{variant}-seed{seed}"
        cells.append(Cell(variant, seed, path, config, main, study))
    return cells


def _options(request: EvaluationSettings) -> list[str]:
    """A request as options of `qhdm evaluate`."""
    options: list[str] = []
    for name, value in vars(request).items():
        if name in ("guidance_interval", "guide"):  # null is not the run's own
            value = "none" if value is None else value
        if value is not None:
            values = value if isinstance(value, tuple) else (value,)
            options += [f"--{name.replace('_', '-')}", *map(str, values)]
    return options


@lru_cache(maxsize=4096)
def _read(path: Path, modified: int) -> Evaluation:
    """Read an evaluation once for each time of modification."""
    return read_evaluation(path)


def _command(*arguments: Any) -> tuple[str, ...]:
    return (sys.executable, "-m", "qhdm", *map(str, arguments))


def _differences(present: Config, wanted: Config) -> Iterable[tuple[str, Any, Any]]:
    """The settings that differ, bookkeeping apart: key, and both values."""

    def settings(config: Config) -> dict[Key, Any]:
        return dict(leaves(to_dict(with_circuit_files(config, _content))))

    one, other = settings(present), settings(wanted)
    for key in one.keys() | other.keys():
        if one.get(key) != other.get(key) and not _BOOKKEEPING & {key[:1], key[:2]}:
            yield dotted(key), one.get(key), other.get(key)


def _content(circuit: str) -> str:
    """A digest of a circuit file, of which each run has its own copy."""
    path = Path(circuit)
    return f"{circuit_digest(path.read_bytes())}{path.suffix}"
