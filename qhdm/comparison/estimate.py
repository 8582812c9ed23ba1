"""What a comparison consists of and takes, before it is started."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from qhdm.comparison.cells import Cell
from qhdm.comparison.execution import Executor
from qhdm.comparison.results import Parameters
from qhdm.comparison.spec import Specification, variant_settings
from qhdm.comparison.table import markdown
from qhdm.config import Config
from qhdm.console import duration
from qhdm.device import resolve_device
from qhdm.metrics.settings import EvaluationSettings
from qhdm.models import build_model
from qhdm.models.counts import count_parameters
from qhdm.training.estimate import seconds_per_evaluation, seconds_per_step


def parameters_of(cells: Sequence[Cell]) -> dict[str, Parameters]:
    """Of each variant's network, which is built once: what cannot be is refused.

    Raises:
        CircuitError, EngineError: a variant's filters cannot be built, or its engine not set up.
    """
    found: dict[str, Parameters] = {}
    for cell in cells:
        if cell.variant not in found:
            total = count_parameters(build_model(cell.config))[-1]
            found[cell.variant] = Parameters(classical=total.classical, quantum=total.quantum)
    return found


def describe_plan(
    specification: Specification,
    cells: Sequence[Cell],
    parameters: Mapping[str, Parameters],
    executor: Executor,
) -> str:
    """The cells as a table, and the time of what is left to do.

    Args:
        specification, cells: of the comparison.
        parameters: of each variant.
        executor: where they would run.
    """
    rows, total = [], 0.0
    for variant in dict.fromkeys(cell.variant for cell in cells):
        counts = parameters[variant]
        own = [cell for cell in cells if cell.variant == variant]
        step, evaluations = _times(own[0])
        seconds = {cell.name: _seconds_left(cell, step, evaluations) for cell in own}
        total += sum(seconds.values())
        for cell in own:
            rows.append(
                [
                    cell.name,
                    variant_settings(specification, variant) or "(the base)",
                    f"{counts.classical:,}",
                    f"{counts.quantum:,}",
                    f"{cell.step()}/{cell.config.train.steps}",
                    f"{sum(map(cell.is_evaluated, cell.requests))}/{len(cell.requests)}",
                    duration(seconds[cell.name]),
                ]
            )
    header = ["cell", "settings", "classical", "quantum", "steps", "evaluations", "time left"]
    # A cell is timed with all cores, which several at a time would share.
    return (
        markdown(header, rows, left=2)
        + f"\n\nestimated time: about {duration(total)} of this machine ({len(cells)} cells, "
        f"{executor}; training steps and sampling, timed alone; features and classifiers of the "
        "evaluations not counted)"
    )


def _times(cell: Cell) -> tuple[float, dict[EvaluationSettings, float]]:
    """Seconds of a training step, and of each evaluation of a cell."""
    device = resolve_device(cell.config.train.device)
    evaluations: dict[EvaluationSettings, float] = {}
    known: dict[Config, float] = {}
    for request in cell.requests:
        quantum = cell.config.quantum
        config = replace(cell.config, quantum=quantum.on(request.engine_of(quantum)))
        if config not in known:
            known[config] = seconds_per_evaluation(config, device)
        complete = request.resolved(cell.config)
        passes = int(complete.steps) * (1 if complete.guidance == 1 else 2)
        evaluations[request] = request.num * passes * known[config]
    return seconds_per_step(cell.config, device), evaluations


def _seconds_left(
    cell: Cell, step: float, evaluations: Mapping[EvaluationSettings, float]
) -> float:
    training = (cell.config.train.steps - cell.step()) * step
    sampling = sum(
        seconds for request, seconds in evaluations.items() if not cell.is_evaluated(request)
    )
    return training + sampling
