"""The cells of a comparison: run directories, and what is left to do in each.

comparisons/<name>/
    comparison.yaml   the specification, and base.yaml, the configuration it starts from
    cells/            <variant>-seed<k>/: run directories, with their evaluations
    logs/             <variant>-seed<k>.log: what the processes of a cell wrote to stderr
    results.json, results.md, inference.png
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from qhdm import data
from qhdm.comparison.execution import Job
from qhdm.comparison.spec import EvaluateOptions, Grid, InferenceOptions
from qhdm.config import Config, circuit_digest, is_circuit_file, to_dict, with_ansatz
from qhdm.errors import ComparisonError
from qhdm.metrics.records import Evaluation, read_evaluation
from qhdm.training.metrics import read_metrics, training_seconds
from qhdm.training.run import Run

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
class Request:
    """One evaluation of a cell: the options of `qhdm evaluate`.

    Attributes:
        options: how.
        inference: the engine of the filters; None is the run's own.
    """

    options: EvaluateOptions
    inference: InferenceOptions | None = None

    @property
    def arguments(self) -> tuple[str, ...]:
        """For the command line."""
        found: list[str] = []
        for part in (self.options, self.inference):
            for name, value in vars(part).items() if part is not None else ():
                if value is not None:
                    values = value if isinstance(value, tuple) else (value,)
                    found += [f"--{name.replace('_', '-')}", *map(str, values)]
        return tuple(found)

    @property
    def file(self) -> str:
        """The file's name: what people look for first, then a digest of all options."""
        plain = {
            "options": TypeAdapter(EvaluateOptions).dump_python(self.options, mode="json"),
            "inference": self.inference
            and TypeAdapter(InferenceOptions).dump_python(self.inference, mode="json"),
        }
        digest = hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:8]
        engine = self.inference.label if self.inference else "own engine"
        words = "".join(c if c.isalnum() else " " for c in engine).split()
        return f"compare_{'_'.join(words)}_{digest}.json"


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
    main: Request
    study: tuple[tuple[InferenceOptions, Request], ...]

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def requests(self) -> tuple[Request, ...]:
        """All evaluations, each once."""
        return tuple(dict.fromkeys([self.main, *(request for _, request in self.study)]))

    def step(self) -> int:
        """The step it is trained to; 0 where it is not begun.

        Raises:
            ComparisonError: its directory holds a run of another configuration.
            RunError: its directory holds something else.
        """
        if not self.path.exists() or (self.path.is_dir() and not any(self.path.iterdir())):
            return 0
        run = Run.open(self.path)
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

    def evaluation(self, request: Request) -> Evaluation | None:
        """Of its final weights; None where it has not been made.

        Raises:
            EvaluationError: the file is damaged.
        """
        path = self.evaluation_path(request)
        if not path.exists():
            return None
        found = read_evaluation(path)
        # A run that has been trained further since is judged anew.
        return found if found.generated.step == self.config.train.steps else None

    def is_evaluated(self, request: Request) -> bool:
        """Whether `evaluation` gives one."""
        return self.evaluation(request) is not None

    def evaluation_path(self, request: Request) -> Path:
        return self.path / "evaluations" / request.file

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
        if self.step() < self.config.train.steps:
            commands.append(_command("train", "--resume", self.path))
        commands += [
            _command("evaluate", self.path, *request.arguments, "--out", path)
            for request in self.requests
            if not self.is_evaluated(request)
            for path in [self.evaluation_path(request)]
        ]
        return Job(self.name, tuple(commands), log) if commands else None

    def begin(self) -> None:
        """Make its run directory, which `qhdm train --resume` then goes on with from step 0."""
        if not self.path.exists() or not any(self.path.iterdir()):
            Run.create(self.config, self.path)


def cells_of(grid: Grid, folder: Path) -> list[Cell]:
    """The cells of a grid, with the classes found in their data.

    Raises:
        DataError: a data set cannot be listed, or lacks a class.
    """
    spec = grid.specification
    cells = []
    for (variant, seed), config in grid.configs.items():
        config = data.resolved(config)
        study = (
            tuple((engine, _study_request(grid, engine, config)) for engine in spec.inference)
            if has_circuits(config)
            else ()
        )
        path = folder / "cells" / f"{variant}-seed{seed}"
        cells.append(Cell(variant, seed, path, config, Request(spec.evaluate), study))
    return cells


def check_data(cells: Iterable[Cell]) -> None:
    """Find out now, not after hours, whether the images are there.

    Raises:
        DataError: a data set is absent.
    """
    for root in {cell.config.data.root for cell in cells}:
        data.open_source(root).close()


def has_circuits(config: Config) -> bool:
    """Whether an engine evaluates circuits in the network of `config`."""
    return config.model.kind != "unet"


def _study_request(grid: Grid, engine: InferenceOptions, config: Config) -> Request:
    spec = grid.specification
    options = spec.inference_evaluate or spec.evaluate
    # The run's own engine, where that is the exact one, has been evaluated already.
    own = engine.engine == "exact" and config.quantum.engine.startswith("exact")
    return Request(options, None if own else engine)


def _command(*arguments: Any) -> tuple[str, ...]:
    return (sys.executable, "-m", "qhdm", *map(str, arguments))


def _differences(found: Config, wanted: Config) -> Iterable[tuple[str, Any, Any]]:
    """The settings that differ, bookkeeping apart: key, and both values."""

    def plain(config: Config) -> dict[tuple[str, ...], Any]:
        return dict(_flat(to_dict(with_ansatz(config, _content)), ()))

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


def _content(ansatz: str) -> str:
    """A circuit file by what is in it: a run has its own copy."""
    if not is_circuit_file(ansatz):
        return ansatz
    path = Path(ansatz)
    return f"{circuit_digest(path.read_bytes())}{path.suffix}"
