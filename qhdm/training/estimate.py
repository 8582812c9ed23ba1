"""Estimates of a run before it starts: parameters, circuits per step, time."""

from __future__ import annotations

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import torch

from qhdm.config import Config, SamplerOptions
from qhdm.console import duration
from qhdm.diffusion import make_preconditioning
from qhdm.models import DiffusionNetwork, build_model, frozen
from qhdm.models.counts import count_parameters, filter_evaluations
from qhdm.quantum.engines import make_engine
from qhdm.quantum.filter import Filter
from qhdm.quantum.options import Exact
from qhdm.training.trainer import Trainer

if TYPE_CHECKING:
    from qhdm.quantum.aer.engine import AerEngine

#: Steps are timed on at most this many images, and scaled.
_TIMED_BATCH = 16
#: A filter on Aer is timed on more and more evaluations, up to so many, until they take so long
#: (seconds); then scaled.
_MOST_TIMED, _LONG_ENOUGH = 256, 0.25


def describe_counts(config: Config) -> str:
    """Parameters per part, and circuits per step.

    Raises:
        EngineError: the engine cannot be set up, or cannot hold a filter.
    """
    model = build_model(config)
    lines = [f"{'parameters':<12}{'classical':>12}{'quantum':>10}{'all':>12}"]
    for row in count_parameters(model):
        both = row.classical + row.quantum
        lines.append(f"{row.part:<12}{row.classical:>12,}{row.quantum:>10,}{both:>12,}")
    return "\n".join([*lines, "", describe_circuits(config, model)])


def describe_circuits(config: Config, model: DiffusionNetwork | None = None) -> str:
    """Circuits per training step, as a formula and in numbers; `model` is built if not given."""
    B = config.train.batch_size
    evaluations = _evaluations(config, model or build_model(config))
    total = sum(evaluations.values())
    if config.quantum.engine != "aer":
        return (
            f"circuits per step: {total * B:,} ({total:,} per image x batch {B}), "
            f"engine {config.quantum.engine}"
        )
    engine = _aer_engine(config)
    options = engine.options
    lines, circuits = [], 0
    for circuit_filter, count in evaluations.items():
        cost = engine.cost(circuit_filter)
        circuits += count * B * cost.all
        lines.append(
            f"  {circuit_filter.name}: batch {B} x {count:,} evaluations per image x "
            f"({cost.forward} for values, of {cost.components} components, + {cost.backward:,} for "
            f"the gradient) = {count * B * cost.all:,}"
        )
    shots = f" of {options.shots:,} shots" if options.shots is not None else ", without shots"
    noise = f", noise {options.noise}" if options.noise is not None else ""
    head = (
        f"circuits per step: {circuits:,}{shots}, engine aer, method {options.method}{noise}, "
        f"gradient {options.gradient}"
    )
    return "\n".join([head, *lines])


def describe_time(config: Config, device: torch.device) -> str:
    """The time that training takes on `device`, from `seconds_per_step`."""
    train = config.train
    seconds = seconds_per_step(config, device)
    batch = min(train.batch_size, _TIMED_BATCH)
    how = f"timed at batch {batch}{' and scaled' if batch < train.batch_size else ''}"
    if config.quantum.engine == "aer":
        how += ", the circuits on Aer by a few of each filter"
    return (
        f"estimated time: about {duration(seconds * train.steps)} on {device.type} "
        f"({train.steps:,} steps of {seconds:.3g} s, {how}; without sampling)"
    )


def seconds_per_step(config: Config, device: torch.device) -> float:
    """Seconds of a training step on `device`, from some real steps on random images.

    On Aer a step may run hundreds of thousands of circuits: the steps are timed with the exact
    engine then, and a few circuits of each filter, scaled by their number, are added.
    """
    train = config.train
    trainer = Trainer(_exact(config), None, device)
    batch = min(train.batch_size, _TIMED_BATCH)
    seconds = _timed_step(trainer, batch) / batch
    return train.batch_size * (seconds + _seconds_on_aer(config, trainer.model, "all"))


def seconds_per_evaluation(config: Config, device: torch.device) -> float:
    """Seconds that the network takes for one image in sampling, timed as `seconds_per_step`."""
    model = build_model(_exact(config)).to(device)
    x_t = torch.zeros(_TIMED_BATCH, *config.data.shape, device=device)
    labels = torch.zeros(_TIMED_BATCH, dtype=torch.long, device=device)
    with torch.no_grad(), frozen(model):
        seconds = _median_seconds(lambda: float(model(x_t, labels, labels).sum())) / _TIMED_BATCH
    return seconds + _seconds_on_aer(config, model, "forward")


def evaluations_per_image(config: Config, options: SamplerOptions) -> int:
    """How often the network is evaluated for an image, of resolved options."""
    levels = make_preconditioning(config).sampling(int(options.steps)).sigma.tolist()
    return len(levels) + sum(map(options.guided_at, levels))


def _exact(config: Config) -> Config:
    """`config` without Aer."""
    if config.quantum.engine != "aer":
        return config
    return dataclasses.replace(config, quantum=config.quantum.on(Exact()))


def _evaluations(config: Config, model: DiffusionNetwork) -> dict[Filter, int]:
    data = config.data
    return filter_evaluations(model, channels=data.channels, image_size=data.image_size)


def _aer_engine(config: Config) -> AerEngine:
    from qhdm.quantum.aer.engine import AerEngine  # only here: it imports Aer

    engine = make_engine(config.quantum.engine_options)
    assert isinstance(engine, AerEngine)
    return engine


def _seconds_on_aer(
    config: Config, model: DiffusionNetwork, circuits: Literal["all", "forward"]
) -> float:
    """Seconds that Aer takes for an image's circuits: of values and gradient, or of values."""
    if config.quantum.engine != "aer":
        return 0.0
    engine = _aer_engine(config)
    return sum(
        count * getattr(engine.cost(circuit_filter), circuits)
        * _seconds_per_circuit(engine, circuit_filter)
        for circuit_filter, count in _evaluations(config, model).items()
    )  # fmt: skip


def _seconds_per_circuit(engine: AerEngine, circuit_filter: Filter) -> float:
    """Seconds per circuit of as many as run in about a quarter of a second, at least one."""
    random = torch.Generator().manual_seed(0)
    weights = torch.rand(1, len(circuit_filter.weights), generator=random)
    evaluations = 1
    while True:
        inputs = torch.randn(1, evaluations, len(circuit_filter.inputs), generator=random)
        call = functools.partial(engine, circuit_filter, inputs, weights)
        seconds = min(_seconds(call) for _ in range(3))  # any may wait for another process
        if seconds > _LONG_ENOUGH or evaluations >= _MOST_TIMED:
            return seconds / (evaluations * engine.cost(circuit_filter).forward)
        evaluations *= 4


def _timed_step(trainer: Trainer, batch: int) -> float:
    generator = torch.Generator().manual_seed(0)
    x_0 = torch.rand(batch, *trainer.config.data.shape, generator=generator) * 2 - 1
    x_0 = x_0.to(trainer.device)
    labels = torch.zeros(batch, dtype=torch.long, device=trainer.device)
    return _median_seconds(lambda: float(trainer.advance_on(x_0, labels)))


def _median_seconds(function: Callable[[], object]) -> float:
    """Seconds of a call after the first; `function` must wait for the device."""
    return statistics.median([_seconds(function) for _ in range(3)][1:])


def _seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start
