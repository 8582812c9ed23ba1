"""The plan of a comparison: cells, cost, and checks before any cell is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from qhdm import data
from qhdm.comparison.cells import Cell
from qhdm.comparison.execution import Executor
from qhdm.comparison.results import Parameters
from qhdm.comparison.spec import Specification, variant_settings
from qhdm.config import Config, DataConfig
from qhdm.console import bar, duration
from qhdm.device import resolve_device
from qhdm.errors import ComparisonError
from qhdm.metrics.features import make_extractor
from qhdm.metrics.settings import EvaluationSettings
from qhdm.models import build_model
from qhdm.models.counts import count_parameters
from qhdm.quantum.engines import make_engine
from qhdm.tables import Table
from qhdm.training.estimate import (
    evaluations_per_image,
    seconds_per_evaluation,
    seconds_per_step,
)


def parameters_of(cells: Sequence[Cell]) -> dict[str, Parameters]:
    """The parameters of each variant's network, which is built for the purpose.

    Raises:
        CircuitError, EngineError: a variant's filters cannot be built, or its engine not set up.
    """
    configs = {cell.variant: cell.config for cell in reversed(cells)}
    totals = {variant: count_parameters(build_model(c))[-1] for variant, c in configs.items()}
    return {
        variant: Parameters(classical=total.classical, quantum=total.quantum)
        for variant, total in totals.items()
    }


def prepare(cells: Sequence[Cell], *, progress: bool = True) -> None:
    """Read the images, set up the engines, and train the classifiers that extract features.

    Cells that run side by side then find the classifier in the cache instead of each training it.

    Raises:
        DataError: images are absent or cannot be read.
        EngineError: an engine cannot be set up.
        EvaluationError: there are too few images for an evaluation, or an extractor is missing.
        ComparisonError: variants have different images, or another split of them.
    """
    requests: dict[DataConfig, dict[EvaluationSettings, None]] = {}
    for cell in cells:
        requests.setdefault(cell.config.data, {}).update(dict.fromkeys(cell.requests))
        for request in cell.requests:
            make_engine(request.engine_of(cell.config.quantum))
    first: str | None = None
    for config, settings in requests.items():
        images = data.load(config, progress=progress)
        digest = images.digest()
        if digest != (first := first or digest):
            variant = next(cell.variant for cell in cells if cell.config.data == config)
            raise ComparisonError(
                f"variants.{variant}: has other images, or another split, than "
                f"{cells[0].variant}, and their metrics would not compare; give both the same "
                "root, image_size, bands or channels, range, classes, test_fraction, split and "
                "blocks in `data`"
            )
        for request in settings:
            if not request.needs_features:
                continue
            make_extractor(
                request,
                images,
                num=request.num,
                more="set evaluate.num (or inference_evaluate.num) to {} or more",
                device=resolve_device(request.device, key="evaluate.device"),
                progress=progress,
            )


def describe_plan(
    specification: Specification,
    cells: Sequence[Cell],
    parameters: Mapping[str, Parameters],
    executor: Executor,
) -> str:
    """The cells as a table, and the time that the rest of them takes on `executor`."""
    first = {cell.variant: cell for cell in reversed(cells)}
    variants = bar(first.items(), desc="timing", unit="variant", leave=False)
    times = {variant: _times(cell) for variant, cell in variants}
    rows, total = [], 0.0
    for cell in cells:
        counts, (per_step, per_request) = parameters[cell.variant], times[cell.variant]
        left = [request for request in cell.requests if not cell.is_evaluated(request)]
        step, steps = cell.step(), cell.config.train.steps
        seconds = (steps - step) * per_step + sum(per_request[request] for request in left)
        total += seconds
        rows.append(
            [
                cell.name,
                variant_settings(specification, cell.variant) or "(the base)",
                f"{counts.classical:,}",
                f"{counts.quantum:,}",
                f"{step}/{steps}",
                f"{len(cell.requests) - len(left)}/{len(cell.requests)}",
                duration(seconds),
            ]
        )
    header = ["cell", "settings", "classical", "quantum", "steps", "evaluations", "time left"]
    # A cell is timed with all cores, which cells side by side would share.
    return (
        Table(header, rows, left=2).markdown()
        + f"\n\nestimated time: about {duration(total)} of this machine ({len(cells)} cells, "
        f"{executor}; training steps and sampling, timed alone; without the features and "
        "classifiers of evaluations)"
    )


def _times(cell: Cell) -> tuple[float, dict[EvaluationSettings, float]]:
    """Seconds of a training step, and of sampling for each evaluation of a cell."""
    device = resolve_device(cell.config.train.device)
    sampling: dict[EvaluationSettings, float] = {}
    known: dict[Config, float] = {}
    for request in cell.requests:
        quantum = cell.config.quantum
        config = replace(cell.config, quantum=quantum.on(request.engine_of(quantum)))
        if config not in known:
            known[config] = seconds_per_evaluation(config, device)
        complete = request.resolved(cell.config)
        passes = evaluations_per_image(cell.config, complete) if request.needs_images else 0
        sampling[request] = request.num * passes * known[config]
    return seconds_per_step(cell.config, device), sampling
