"""What a run will consist of and take, before it is started."""

from __future__ import annotations

import statistics
import time

import torch

from qhdm.config import Config
from qhdm.models.counts import circuits_per_image, count_parameters
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
    data, train = config.data, config.train
    lines = [f"{'parameters':<12}{'classical':>12}{'quantum':>10}{'all':>12}"]
    for row in count_parameters(trainer.model):
        both = row.classical + row.quantum
        lines.append(f"{row.part:<12}{row.classical:>12,}{row.quantum:>10,}{both:>12,}")
    circuits = circuits_per_image(trainer.model, channels=data.channels, image_size=data.image_size)
    lines += [
        "",
        f"circuits per step: {circuits * train.batch_size:,} "
        f"({circuits:,} per image x batch {train.batch_size}), engine {config.quantum.engine}",
    ]
    batch = min(train.batch_size, _TIMED_BATCH)
    seconds = _seconds_per_step(trainer, batch) * train.batch_size / batch
    lines.append(
        f"estimated time: {duration(seconds * train.steps)} on {device.type} "
        f"({train.steps:,} steps of {seconds:.3g} s, timed at batch {batch}"
        f"{' and scaled' if batch < train.batch_size else ''}; without sampling)"
    )
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """Seconds as people say them: `45 s`, `7 min`, `3.2 h`, `5.1 days`."""
    for unit, size in (("days", 86_400), ("h", 3_600)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"


def _seconds_per_step(trainer: Trainer, batch: int, repeats: int = 2) -> float:
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
