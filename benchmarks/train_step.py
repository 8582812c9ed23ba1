"""A training step of each kind of network, against the classical one.

    python benchmarks/train_step.py                              # the EuroSAT configuration
    python benchmarks/train_step.py configs/quickstart.yaml --batch 16
    python benchmarks/train_step.py --full-resolution            # QuanResNet on 64x64 maps
    python benchmarks/train_step.py --fixed          # what a step costs beside its network

Rounds alternate between the networks, so that a busy machine slows all alike.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import qhdm  # noqa: F401 - before torch, whose threads it tells how to wait

# isort: split
import torch

from qhdm import data
from qhdm.config import Config, load_config
from qhdm.data import EUROSAT_CLASSES
from qhdm.device import resolve_device
from qhdm.training.trainer import Trainer

EUROSAT = Path(__file__).parent.parent / "configs" / "eurosat.yaml"
NETWORKS = {
    "unet": ["model.kind=unet"],
    "qcunet fqconv": ["quantum.vertex.ansatz=fqconv", "quantum.encoder.ansatz=fqconv"],
    "qcunet hqconv": ["quantum.vertex.ansatz=hqconv", "quantum.encoder.ansatz=hqconv"],
}


def batch_of(config: Config, batch: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    size = config.data.image_size
    x_0 = torch.rand(batch, config.data.channels, size, size, generator=random) * 2 - 1
    return x_0.to(device), torch.zeros(batch, dtype=torch.long, device=device)


def step_seconds(trainer: Trainer, batch: int) -> float:
    x_0, labels = batch_of(trainer.config, batch, trainer.device)
    start = time.perf_counter()
    float(trainer.advance_on(x_0, labels))  # waits for the device
    return time.perf_counter() - start


def compare(path: Path, batch: int, rounds: int) -> None:
    device = resolve_device("auto")
    classes = f"data.classes=[{','.join(EUROSAT_CLASSES)}]"
    trainers = {
        name: Trainer(load_config(path, [classes, *settings]), None, device)
        for name, settings in NETWORKS.items()
    }
    times: dict[str, list[float]] = {name: [] for name in trainers}
    for _ in range(rounds + 1):
        for name, trainer in trainers.items():
            times[name].append(step_seconds(trainer, batch))
    print(f"training step, {path.name}, batch {batch}, {device}, {rounds} rounds")
    floor = statistics.median(times["unet"][1:])
    for name, seconds in times.items():
        median = statistics.median(seconds[1:])
        print(f"{name:<16}{median:>8.2f} s{median / floor:>8.2f} x")


def full_resolution(batch: int) -> None:
    classes = f"data.classes=[{','.join(EUROSAT_CLASSES)}]"
    for ansatz in ("fqconv", "hqconv"):
        settings = [classes, "quantum.encoder.levels=[0]", f"quantum.encoder.ansatz={ansatz}"]
        trainer = Trainer(load_config(EUROSAT, settings), None, resolve_device("auto"))
        step_seconds(trainer, 2)
        seconds = [step_seconds(trainer, batch) for _ in range(3)]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(
            f"QuanResNet {ansatz} on 64x64 maps, 1,024 patches an image, batch {batch}: "
            f"{statistics.median(seconds):.2f} s a step, peak memory of the process {peak:.1f} GiB",
            flush=True,
        )


class Timed:
    """CPU seconds of one call after another of a function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.seconds = function, 0.0

    def __call__(self, *arguments: Any, **values: Any) -> Any:
        start = time.process_time()
        result = self.function(*arguments, **values)
        self.seconds += time.process_time() - start
        return result


def fixed(path: Path, batch: int, rounds: int) -> None:
    """Mean CPU ms of the parts of a step; the rest is noise levels, seeds and the loss."""
    config = load_config(path, ["data.root=bundled", "data.augment=true"])
    config = data.resolved(config)
    images = data.load(config.data).split("train")
    batches = data.Batches(images, batch_size=batch, seed=0, augment=True)
    trainer = Trainer(config, batches, torch.device("cpu"))
    parts = {
        "batch": (batches, "batch"),
        "forward": (trainer, "_network"),
        "backward": (torch.Tensor, "backward"),
        "optimiser": (trainer.optimizer, "step"),
        "normalisation": (trainer.model, "normalize"),
        "averages": (trainer.ema, "update"),
        "gradient norms": (trainer, "_gradient_norms"),
    }
    timed = {}
    for part, (owner, name) in parts.items():
        timed[part] = timer = Timed(getattr(owner, name))
        if owner is torch.Tensor:
            torch.Tensor.backward = lambda self, timer=timer: timer(self)
        else:
            object.__setattr__(owner, name, timer)  # a module has attributes of its own kind
    rows = []
    for _ in range(rounds + 1):
        for part in timed.values():
            part.seconds = 0.0
        start = time.process_time()
        trainer.advance()
        whole = time.process_time() - start
        _ = trainer.gradient_norms  # as often as they are logged
        rows.append({part: 1e3 * t.seconds for part, t in timed.items()} | {"step": 1e3 * whole})
    means = {part: statistics.fmean(row[part] for row in rows[1:]) for part in rows[0]}
    size = sum(p.numel() for p in trainer.model.parameters())
    print(f"CPU ms a step, {path.name}, {size:,} parameters, batch {batch}, {rounds} steps")
    for part, milliseconds in means.items():
        print(f"{part:<16}{milliseconds:>8.2f}")
    beside = means["step"] - means["forward"] - means["backward"]
    print(f"{'beside the network':<16}{beside:>8.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", nargs="?", type=Path, default=EUROSAT)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--full-resolution", action="store_true")
    parser.add_argument("--fixed", action="store_true")
    arguments = parser.parse_args()
    if arguments.fixed:
        fixed(arguments.config, arguments.batch or 16, arguments.rounds)
    elif arguments.full_resolution:
        full_resolution(arguments.batch or 32)
    else:
        batch = arguments.batch or load_config(arguments.config).train.batch_size
        compare(arguments.config, batch, arguments.rounds)


if __name__ == "__main__":
    main()
