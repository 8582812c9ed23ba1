"""What a run will consist of and take, before it is started."""

from __future__ import annotations

import dataclasses
import statistics
import time
from typing import TYPE_CHECKING

import torch

from qhdm.config import Config
from qhdm.console import duration
from qhdm.models import UNet, build_model
from qhdm.models.counts import count_parameters, filter_evaluations
from qhdm.quantum.engines import make_engine
from qhdm.quantum.filter import Filter
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

    Args:
        config: resolved (`data.classes` is not null).

    Raises:
        EngineError: the engine cannot be set up, or cannot hold a filter.
    """
    model = build_model(config)
    lines = [f"{'parameters':<12}{'classical':>12}{'quantum':>10}{'all':>12}"]
    for row in count_parameters(model):
        both = row.classical + row.quantum
        lines.append(f"{row.part:<12}{row.classical:>12,}{row.quantum:>10,}{both:>12,}")
    return "\n".join([*lines, "", describe_circuits(config, model)])


def describe_time(config: Config, device: torch.device) -> str:
    """The time of training, as `seconds_per_step` finds it.

    Args:
        config: resolved.
        device: where the run would train.
    """
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
    """Of training, from some real steps on random images.

    On Aer, a step may run hundreds of thousands of circuits: there, it is steps with the exact
    engine, and to these a few circuits of each filter, scaled by their number.

    Args:
        config: resolved.
        device: where the run would train.
    """
    train = config.train
    trainer = Trainer(_exact(config), None, device)
    batch = min(train.batch_size, _TIMED_BATCH)
    seconds = _timed_step(trainer, batch) * train.batch_size / batch
    if config.quantum.engine == "aer":
        engine = _aer_engine(config)
        for filter, count in _evaluations(config, trainer.model).items():
            circuits = count * train.batch_size * engine.cost(filter).all
            seconds += circuits * _seconds_per_circuit(engine, filter)
    return seconds


def seconds_per_evaluation(config: Config, device: torch.device) -> float:
    """Of the network on one image, in sampling; found as that of a training step.

    Args:
        config: resolved.
        device: where the run would sample.
    """
    model = build_model(_exact(config)).to(device)
    seconds = _timed_evaluation(model, config, device)
    if config.quantum.engine == "aer":
        engine = _aer_engine(config)
        for filter, count in _evaluations(config, model).items():
            circuits = count * engine.cost(filter).forward
            seconds += circuits * _seconds_per_circuit(engine, filter)
    return seconds


def describe_circuits(config: Config, model: UNet | None = None) -> str:
    """Circuits per training step, as a formula and in numbers.

    Args:
        config: resolved.
        model: its network, if it has been built.
    """
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
    for filter, count in evaluations.items():
        cost = engine.cost(filter)
        circuits += count * B * cost.all
        lines.append(
            f"  {filter.name}: batch {B} x {count:,} evaluations per image x ({cost.forward} "
            f"for values, of {cost.components} components, + {cost.backward:,} for the gradient) "
            f"= {count * B * cost.all:,}"
        )
    shots = f" of {options.shots:,} shots" if options.shots is not None else ", without shots"
    noise = f", noise {options.noise}" if options.noise is not None else ""
    head = (
        f"circuits per step: {circuits:,}{shots}, engine aer, method {options.method}{noise}, "
        f"gradient {options.gradient}"
    )
    return "\n".join([head, *lines])


def _exact(config: Config) -> Config:
    """`config` without Aer."""
    if config.quantum.engine != "aer":
        return config
    return dataclasses.replace(config, quantum=dataclasses.replace(config.quantum, engine="exact"))


def _evaluations(config: Config, model: UNet) -> dict[Filter, int]:
    data = config.data
    return filter_evaluations(model, channels=data.channels, image_size=data.image_size)


def _seconds_per_circuit(engine: AerEngine, filter: Filter) -> float:
    """Of many in one run, as long as that does not take long; one evaluation at least."""
    random = torch.Generator().manual_seed(0)
    weights = torch.rand(1, len(filter.weights), generator=random)
    evaluations = 1
    while True:
        inputs = torch.randn(1, evaluations, len(filter.inputs), generator=random)
        start = time.perf_counter()
        engine(filter, inputs, weights)
        seconds = time.perf_counter() - start
        if seconds > _LONG_ENOUGH or evaluations >= _MOST_TIMED:
            return seconds / (evaluations * engine.cost(filter).forward)
        evaluations *= 4


def _aer_engine(config: Config) -> AerEngine:
    from qhdm.quantum.aer.engine import AerEngine  # only here: it imports Aer

    engine = make_engine(config.quantum.engine_options)
    assert isinstance(engine, AerEngine)
    return engine


def _timed_step(trainer: Trainer, batch: int) -> float:
    data = trainer.config.data
    generator = torch.Generator().manual_seed(0)
    shape = (batch, data.channels, data.image_size, data.image_size)
    x_0 = (torch.rand(shape, generator=generator) * 2 - 1).to(trainer.device)
    labels = torch.zeros(batch, dtype=torch.long, device=trainer.device)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        float(trainer.advance_on(x_0, labels))  # waits for the device
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


@torch.no_grad()
def _timed_evaluation(model: UNet, config: Config, device: torch.device) -> float:
    data = config.data
    x_t = torch.zeros(_TIMED_BATCH, data.channels, data.image_size, data.image_size, device=device)
    labels = torch.zeros(_TIMED_BATCH, dtype=torch.long, device=device)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        float(model(x_t, labels, labels).sum())  # waits for the device
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:]) / _TIMED_BATCH
