"""What a run will consist of and take, before it is started."""

from __future__ import annotations

import statistics
import time

import torch

from qhdm.config import Config
from qhdm.models import UNet, build_model
from qhdm.models.build import engine_of
from qhdm.models.counts import count_parameters, filter_evaluations
from qhdm.training.loop import Trainer

#: Steps are timed on at most this many images, and scaled.
_TIMED_BATCH = 16


def describe_cost(config: Config, device: torch.device) -> str:
    """Parameters per part, circuits per step, and the time of some real steps on random images.

    Args:
        config: resolved (`data.classes` is not null).
        device: where the run would train.
    """
    trainer = Trainer(config, None, device)
    train = config.train
    lines = [f"{'parameters':<12}{'classical':>12}{'quantum':>10}{'all':>12}"]
    for row in count_parameters(trainer.model):
        both = row.classical + row.quantum
        lines.append(f"{row.part:<12}{row.classical:>12,}{row.quantum:>10,}{both:>12,}")
    lines += ["", describe_circuits(config, trainer.model)]
    # Gradients on Aer may take thousands of circuits for one image.
    many = config.quantum.engine == "aer" and config.quantum.aer.gradient != "exact"
    batch, repeats = (1, 1) if many else (min(train.batch_size, _TIMED_BATCH), 2)
    seconds = _seconds_per_step(trainer, batch, repeats) * train.batch_size / batch
    lines.append(
        f"estimated time: {duration(seconds * train.steps)} on {device.type} "
        f"({train.steps:,} steps of {seconds:.3g} s, timed at batch {batch}"
        f"{' and scaled' if batch < train.batch_size else ''}; without sampling)"
    )
    return "\n".join(lines)


def describe_circuits(config: Config, model: UNet | None = None) -> str:
    """Circuits per training step, as a formula and in numbers.

    Args:
        config: resolved.
        model: its network, if it has been built.
    """
    data, B = config.data, config.train.batch_size
    evaluations = filter_evaluations(
        model or build_model(config), channels=data.channels, image_size=data.image_size
    )
    total = sum(evaluations.values())
    if config.quantum.engine != "aer":
        return (
            f"circuits per step: {total * B:,} ({total:,} per image x batch {B}), "
            f"engine {config.quantum.engine}"
        )
    from qhdm.quantum.aer.engine import AerEngine  # only here: it imports Aer

    engine = engine_of(config.quantum)
    assert isinstance(engine, AerEngine)
    options = engine.options
    lines, circuits = [], 0
    for filter, count in evaluations.items():
        cost = engine.cost(filter)
        circuits += count * B * (cost.forward + cost.backward)
        lines.append(
            f"  {filter.name}: batch {B} x {count:,} evaluations per image x ({cost.forward} "
            f"for values, of {cost.components} components, + {cost.backward:,} for the gradient) "
            f"= {count * B * (cost.forward + cost.backward):,}"
        )
    shots = f" of {options.shots:,} shots" if options.shots is not None else ", without shots"
    noise = f", noise {options.noise}" if options.noise is not None else ""
    head = (
        f"circuits per step: {circuits:,}{shots}, engine aer, method {options.method}{noise}, "
        f"gradient {options.gradient}"
    )
    return "\n".join([head, *lines])


def duration(seconds: float) -> str:
    """Seconds as people say them: `45 s`, `7 min`, `3.2 h`, `5.1 days`."""
    for unit, size in (("days", 86_400), ("h", 3_600)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"


def _seconds_per_step(trainer: Trainer, batch: int, repeats: int) -> float:
    data = trainer.config.data
    generator = torch.Generator().manual_seed(0)
    shape = (batch, data.channels, data.image_size, data.image_size)
    x_0 = (torch.rand(shape, generator=generator) * 2 - 1).to(trainer.device)
    labels = torch.zeros(batch, dtype=torch.long, device=trainer.device)
    times = []
    for _ in range(1 + repeats):
        start = time.perf_counter()
        float(trainer.advance_on(x_0, labels))  # waits for the device
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])
