"""The cells of a comparison: run directories, and what is left to do in each.

comparisons/<name>/
    comparison.yaml   the specification, and base.yaml, the configuration it starts from
    cells/            <variant>-seed<k>/: run directories, with their evaluations
    logs/             <variant>-seed<k>.log: what the processes of a cell wrote to stderr
    results.json, results.md, inference.png
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from qhdm import data
from qhdm.comparison.execution import Job
from qhdm.comparison.spec import Grid, InferenceOptions, Specification, has_circuits
from qhdm.config import Config, to_dict, with_circuit_files
from qhdm.errors import ComparisonError
from qhdm.metrics.records import Evaluation, GeneratedRecord, read_evaluation
from qhdm.metrics.samples import described
from qhdm.metrics.settings import EvaluationSettings
from qhdm.runs.config import circuit_digest
from qhdm.runs.directory import RunDirectory
from qhdm.training.log import read_metrics, training_seconds

#: What may differ in a run that stands for a cell: nothing of it enters the weights.
_BOOKKEEPING = {
    ("name",),
    ("sample",),
    ("data", "root"),  # the same images may lie elsewhere
    *(
        ("train", key)
        for key in (
            "device",
            "tensorboard",
            "sample_every",
            "checkpoint_every",
            "log_every",
            "keep_checkpoints",
        )
    ),
}


@dataclass(frozen=True)
class Cell:
    """One training of one variant, and its evaluations.

    Attributes:
        path: its run directory.
        config: resolved (`data.classes` is not null).
        main: the evaluation that variants are compared by.
        study: those of the study of noise and shots, for each engine.
    """

    variant: str
    seed: int
    path: Path
    config: Config
    main: EvaluationSettings
    study: tuple[tuple[InferenceOptions, EvaluationSettings], ...]

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def requests(self) -> tuple[EvaluationSettings, ...]:
        """All evaluations, each once."""
        return tuple(dict.fromkeys([self.main, *(request for _, request in self.study)]))

    def step(self) -> int:
        """The step it is trained to; 0 where it is not begun.

        Raises:
            ComparisonError: its directory holds a run of another configuration.
            RunError: its directory holds something else.
        """
        if not self._is_begun():
            return 0
        run = RunDirectory.open(self.path)
        different = sorted(_differences(run.config, self.config))
        if different:
            key, found, wanted = different[0]
            more = f" (and {len(different) - 1} more)" if len(different) > 1 else ""
            raise ComparisonError(
                f"{self.path}: has {key} {found}, the specification {wanted}{more}; give another "
                "--out, or move that run away"
            )
        return run.last_step()

    def progress(self) -> int:
        """The last step in its log: where training is between checkpoints."""
        records = read_metrics(self.path / "metrics.jsonl")
        return min(int(records[-1]["step"]), self.config.train.steps) if records else 0

    def evaluation(self, request: EvaluationSettings) -> Evaluation | None:
        """Of its final weights, whoever made it; None where it is not there, or not whole.

        Raises:
            EvaluationError: a file among its evaluations is damaged.
        """
        path = self.evaluation_path(request)
        return None if path is None else _read(path, path.stat().st_mtime_ns)

    def is_evaluated(self, request: EvaluationSettings) -> bool:
        """Whether `evaluation` gives one."""
        return self.evaluation_path(request) is not None

    def evaluation_path(self, request: EvaluationSettings) -> Path | None:
        """Its file; the newest, where different extractors have judged it."""
        run = RunDirectory(self.path, self.config)
        if run.last_step() < self.config.train.steps:
            return None
        asked = described(run, request)
        found = [
            path
            for path in (self.path / "evaluations").glob("*.json")
            if _answers(_read(path, path.stat().st_mtime_ns), asked, request)
        ]
        return max(found, key=lambda path: path.stat().st_mtime_ns, default=None)

    def train_seconds(self) -> float:
        """Spent in training steps, from the log; pauses and sample pictures do not count."""
        return training_seconds(read_metrics(self.path / "metrics.jsonl"))

    def job(self, log: Path) -> Job | None:
        """What is left to do, as processes; None if all is done.

        Raises:
            ComparisonError, RunError: as `step`.
            EvaluationError: as `evaluation`.
        """
        commands = []
        where = self._moved_data()
        if self.step() < self.config.train.steps:
            commands.append(_command("train", "--resume", self.path, *where))
        commands += [
            _command("evaluate", self.path, *_options(request), *where)
            for request in self.requests
            if not self.is_evaluated(request)
        ]
        return Job(self.name, tuple(commands), log) if commands else None

    def _moved_data(self) -> list[str]:
        """How to tell its run where the data lie, if it does not know."""
        root = self.config.data.root
        known = not self._is_begun() or RunDirectory.open(self.path).config.data.root == root
        return [] if known else ["--set", f"data.root={json.dumps(root)}"]

    def _is_begun(self) -> bool:
        return self.path.exists() and not (self.path.is_dir() and not any(self.path.iterdir()))

    def begin(self) -> None:
        """Make its run directory, which `qhdm train --resume` then goes on with from step 0."""
        if not self._is_begun():
            RunDirectory.create(self.config, self.path)


def cells_of(grid: Grid, folder: Path) -> list[Cell]:
    """The cells of a grid, with the classes found in their data.

    Raises:
        DataError: a data set cannot be listed, or lacks a class.
    """
    spec = grid.specification
    cells = []
    for (variant, seed), config in grid.configs.items():
        config = data.resolved(config)
        studied = has_circuits(config) and variant in (spec.inference_variants or spec.variants)
        study = tuple(
            (engine, _study_request(spec, engine, config))
            for engine in (spec.inference if studied else ())
        )
        path = folder / "cells" / f"{variant}-seed{seed}"
        # Without defaults of a run's own, in which runs made elsewhere may differ.
        main = spec.evaluate.resolved(config)
        cells.append(Cell(variant, seed, path, config, main, study))
    return cells


def _study_request(
    spec: Specification, engine: InferenceOptions, config: Config
) -> EvaluationSettings:
    settings = (spec.inference_evaluate or spec.evaluate).resolved(config)
    # The run's own engine needs no name: cells are compared on it.
    return settings if engine.options == config.quantum.engine_options else engine.of(settings)


def _options(request: EvaluationSettings) -> list[str]:
    """A request on the command line."""
    found: list[str] = []
    for name, value in vars(request).items():
        if value is not None:
            values = value if isinstance(value, tuple) else (value,)
            found += [f"--{name.replace('_', '-')}", *map(str, values)]
    return found


def _answers(evaluation: Evaluation, asked: GeneratedRecord, request: EvaluationSettings) -> bool:
    """Whether an evaluation is of the images that are asked for, and whole."""
    return (
        evaluation.generated.answers(asked)
        and evaluation.extractor.name == request.extractor
        and set(request.metrics) <= set(evaluation.groups)
    )


@lru_cache(maxsize=4096)
def _read(path: Path, modified: int) -> Evaluation:
    """An evaluation; its time of modification tells files of one name apart."""
    return read_evaluation(path)


def _command(*arguments: Any) -> tuple[str, ...]:
    return (sys.executable, "-m", "qhdm", *map(str, arguments))


def _differences(found: Config, wanted: Config) -> Iterable[tuple[str, Any, Any]]:
    """The settings that differ, bookkeeping apart: key, and both values."""

    def plain(config: Config) -> dict[tuple[str, ...], Any]:
        return dict(_flat(to_dict(with_circuit_files(config, _content)), ()))

    one, other = plain(found), plain(wanted)
    for key in one.keys() | other.keys():
        kept = not any(key[: len(known)] == known for known in _BOOKKEEPING)
        if kept and one.get(key) != other.get(key):
            yield ".".join(key), one.get(key), other.get(key)


def _flat(values: dict[str, Any], prefix: tuple[str, ...]) -> Iterable[tuple[tuple[str, ...], Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, (*prefix, name))
        else:
            yield (*prefix, name), value


def _content(circuit: str) -> str:
    """A digest of a circuit file, of which each run has its own copy."""
    path = Path(circuit)
    return f"{circuit_digest(path.read_bytes())}{path.suffix}"
