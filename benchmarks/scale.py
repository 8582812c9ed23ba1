"""The cost of a training step: formulas fitted to measurements, extrapolated to more devices.

    python benchmarks/scale.py                             # measure, fit, extrapolate
    python benchmarks/scale.py --coefficients scale.json   # write coefficients, or read them
    torchrun --nproc-per-node 2 benchmarks/scale.py --all-reduce   # the gradient message

Times are CPU seconds of one thread, which depend little on other work on the machine. Memory is
what autograd keeps from the forward for the backward pass (each storage once), on any device.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import qhdm  # noqa: F401 - before torch, whose threads it tells how to wait

# isort: split
import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from train_step import EUROSAT, batch_of

from qhdm.config import Config, load_config
from qhdm.data import EUROSAT_CLASSES
from qhdm.distributed import World
from qhdm.models.counts import filter_evaluations
from qhdm.quantum import build_filter
from qhdm.quantum.connector import FilterConnector
from qhdm.training.trainer import Trainer

CPU = torch.device("cpu")
PUBLISHED = EUROSAT.with_name("published.yaml")
#: Batch and image size of the measured networks.
NETWORK_POINTS = ((2, 64), (8, 64), (4, 32), (16, 32), (2, 128))
#: Ansatz, qubits and layers of the measured filters.
FILTERS = (
    ("fqconv", 12, 1),
    ("fqconv", 12, 3),
    ("fqconv", 12, 6),
    ("hqconv", 4, 3),
    ("hqconv", 8, 3),
    ("hqconv", 12, 1),
    ("hqconv", 12, 2),
    ("hqconv", 12, 3),
    ("hqconv", 16, 3),
)
#: Filters side by side and evaluations of each, for which each of them is measured.
FILTER_POINTS = ((1, 64), (1, 1024), (1, 4096), (4, 64), (4, 1024))
#: float32: weights, gradients, two averages of Adam, averaged weights.
BYTES_PER_PARAMETER = 4 * 5


@dataclass(frozen=True)
class Filtering:
    """Cost of a filter layer: T = a + F (b + c E) CPU seconds per call, d E F bytes kept.

    F filters side by side are evaluated E times each.
    """

    a: float
    b: float
    c: float
    d: float

    def seconds(self, calls: int, filters: int, evaluations: float) -> float:
        return calls * self.a + filters * self.b + evaluations * self.c


@dataclass(frozen=True)
class Network:
    """Cost of the classical network, for n = B (S / 64)^2 images of 64x64 pixels.

    T = fixed + image n CPU seconds; kept_fixed + kept_image n bytes kept, parameters apart.
    """

    fixed: float
    image: float
    kept_fixed: float
    kept_image: float


class Kept:
    """Counts the bytes that autograd keeps for the backward pass."""

    def __init__(self) -> None:
        self._storages: dict[int, tuple[Tensor, int]] = {}

    def __enter__(self) -> Kept:
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.__exit__(*error)

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        self._storages[storage.data_ptr()] = (tensor, storage.nbytes())  # kept, so that it stays
        return tensor

    @property
    def bytes(self) -> int:
        return sum(size for _, size in self._storages.values())


class Operations(TorchDispatchMode):
    """Counts operations; on a GPU, each is at least one kernel launch."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        self.count += name not in _VIEWS
        return func(*args, **(kwargs or {}))


#: Operations that compute nothing.
_VIEWS = {
    "view", "_unsafe_view", "permute", "transpose", "t", "slice", "select", "expand", "unsqueeze",
    "squeeze", "detach", "alias", "split", "unbind", "as_strided", "split_with_sizes", "unfold",
}  # fmt: skip


def cpu_seconds(work: Callable[[], object], rounds: int) -> float:
    work()
    times = []
    for _ in range(rounds):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return statistics.median(times)


def config_of(kind: str, *settings: str) -> Config:
    classes = f"data.classes=[{','.join(EUROSAT_CLASSES)}]"
    return load_config(PUBLISHED, [classes, f"model.kind={kind}", *settings])


def measure_network(rounds: int) -> Network:
    rows, seconds, kept = [], [], []
    print(f"\n{'batch':>6}{'size':>6}{'CPU s a step':>14}{'kept, MiB':>11}")
    for batch, size in NETWORK_POINTS:
        trainer = Trainer(config_of("unet", f"data.image_size={size}"), None, CPU)
        x_0, labels = batch_of(trainer.config, batch, CPU)
        with Kept() as memory:
            trainer.model(x_0, torch.full_like(labels, 500), labels).sum()
        parameters = sum(p.numel() for p in trainer.model.parameters())
        rows.append([1.0, batch * (size / 64) ** 2])
        seconds.append(cpu_seconds(lambda: trainer.advance_on(x_0, labels), rounds))  # noqa: B023
        kept.append(memory.bytes - 4 * parameters)
        print(f"{batch:>6}{size:>6}{seconds[-1]:>14.3f}{kept[-1] / 2**20:>11.1f}", flush=True)
    network = Network(*fit(rows, seconds), *fit(rows, kept))
    print(
        f"T = {network.fixed:.3f} + {network.image:.4f} n CPU seconds (worst fit "
        f"{worst(rows, seconds):.0%}); kept: {network.kept_fixed / 2**20:.1f} + "
        f"{network.kept_image / 2**20:.2f} n MiB (worst fit {worst(rows, kept):.0%}); "
        "n = B (S/64)^2"
    )
    return network


def measure_filters(rounds: int) -> dict[str, Filtering]:
    print(
        f"\n{'ansatz':<8}{'qubits':>7}{'layers':>7}{'a, ms':>8}{'b, ms':>8}{'c, us':>8}"
        f"{'d, KiB':>8}{'worst fit':>11}   (T = a + F (b + c E))"
    )
    found = {}
    for ansatz, qubits, layers in FILTERS:
        filter = build_filter(ansatz, qubits=qubits, layers=layers)
        rows, seconds, kept = [], [], []
        for count, evaluations in FILTER_POINTS:
            connector = FilterConnector(filter, count=count)
            x = torch.rand(count, evaluations, qubits, requires_grad=True)
            with Kept() as memory:
                connector(x).sum()
            rows.append([1.0, count, count * evaluations])
            seconds.append(cpu_seconds(lambda: connector(x).sum().backward(), rounds))  # noqa: B023
            kept.append(memory.bytes)
        a, b, c = fit(rows, seconds)
        d = (kept[2] - kept[1]) / (rows[2][2] - rows[1][2])
        found[filter.name] = Filtering(a, b, c, d)
        print(
            f"{ansatz:<8}{qubits:>7}{layers:>7}{1e3 * a:>8.1f}{1e3 * b:>8.1f}{1e6 * c:>8.2f}"
            f"{d / 1024:>8.2f}{worst(rows, seconds):>11.0%}",
            flush=True,
        )
    return found


def fit(rows: list[list[float]], values: list[float]) -> list[float]:
    """Non-negative coefficients with the least relative error."""
    scale = 1 / np.array(values)
    coefficients, _ = nnls(np.array(rows) * scale[:, None], np.ones(len(values)))
    return [float(value) for value in coefficients]


def worst(rows: list[list[float]], values: list[float]) -> float:
    """The largest relative error of the fit."""
    coefficients = fit(rows, values)
    return max(
        abs(np.dot(row, coefficients) / value - 1) for row, value in zip(rows, values, strict=True)
    )


@dataclass(frozen=True)
class Machine:
    """Assumptions about a device and the connection between devices.

    Attributes:
        speed: how much faster work that grows with the batch is than on the core measured here.
        launch: seconds an operation takes at least; None: what does not grow with the batch takes
            the time measured here.
        bandwidth: bytes a second between two devices.
        latency: seconds of a message between two devices.
    """

    name: str
    speed: float
    launch: float | None
    bandwidth: float
    latency: float


def extrapolate(network: Network, filters: dict[str, Filtering], machines: list[Machine]) -> None:
    full = ["quantum.encoder.levels=[0]"]
    for title, config, batch in (
        ("EuroSAT, unet", config_of("unet"), 128),
        ("EuroSAT, qcunet, hqconv", config_of("qcunet"), 128),
        ("full resolution, qcunet, hqconv", config_of("qcunet", *full), 128),
        ("full resolution, qcunet, hqconv", config_of("qcunet", *full), 1024),
    ):
        model = Trainer(config, None, CPU).model
        parameters = sum(p.numel() for p in model.parameters())
        calls: Counter = Counter()
        for module in model.modules():
            if isinstance(module, FilterConnector):
                calls[module.filter] += 1
        evaluations = filter_evaluations(model, channels=3, image_size=config.data.image_size)
        counted = Operations()
        x_0, labels = batch_of(config, 1, CPU)
        with counted:
            model(x_0, torch.full_like(labels, 500), labels).sum().backward()
        print(f"\n{title}, batch {batch}: {parameters:,} parameters, {counted.count:,} operations")
        print(
            f"{'':<28}{'devices':>8}{'s a step':>10}{'speed-up':>10}{'GiB each':>10}"
            f"{'60,000 steps':>14}"
        )
        for machine in machines:
            alone = None
            for devices in (1, 2, 4, 8):
                share = batch / devices
                grows, fixed = network.image * share, network.fixed
                kept = network.kept_fixed + network.kept_image * share
                for filter, count in evaluations.items():
                    cost = filters[filter.name]
                    fixed += cost.seconds(calls[filter], calls[filter], 0)
                    grows += cost.c * count * share
                    kept += cost.d * count * share
                if machine.launch is not None:
                    fixed = machine.launch * counted.count
                message = 4 * parameters
                talk = 2 * (devices - 1) * (message / devices / machine.bandwidth + machine.latency)
                # On a GPU, launches overlap with computation: the longer of both counts.
                work = grows / machine.speed
                step = (work + fixed if machine.launch is None else max(work, fixed)) + talk
                alone = alone or step
                gib = (kept + BYTES_PER_PARAMETER * parameters) / 2**30
                print(
                    f"{machine.name:<28}{devices:>8}{step:>10.3f}{alone / step:>10.1f}{gib:>10.2f}"
                    f"{60_000 * step / 3600:>12.1f} h",
                    flush=True,
                )


def all_reduce(rounds: int = 20) -> None:
    """Time the gradient message of a step between the processes of torchrun."""
    world = World.from_environment()
    with world.joined():
        parameters = sum(
            p.numel() for p in Trainer(config_of("qcunet"), None, CPU).model.parameters()
        )
        message = torch.zeros(parameters + 1)
        times = []
        for _ in range(rounds):
            world.wait()
            start = time.perf_counter()
            world.add_up(message)
            times.append(time.perf_counter() - start)
        if world.first:
            print(
                f"{4 * parameters / 2**20:.1f} MiB between {world.size} processes: median "
                f"{1e3 * statistics.median(times):.1f} ms, least {1e3 * min(times):.1f} ms"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--coefficients", type=Path, metavar="FILE")
    parser.add_argument("--all-reduce", action="store_true")
    parser.add_argument("--speed", type=float, default=100, help="of a GPU, this core being 1")
    parser.add_argument("--launch", type=float, default=10e-6, help="seconds per kernel")
    parser.add_argument("--bandwidth", type=float, default=100e9, help="between GPUs, bytes/s")
    parser.add_argument("--latency", type=float, default=20e-6, help="seconds per message")
    arguments = parser.parse_args()
    if arguments.all_reduce:
        all_reduce()
        return
    torch.set_num_threads(1)
    file = arguments.coefficients
    if file and file.exists():
        read = json.loads(file.read_text())
        network = Network(**read["network"])
        filters = {name: Filtering(**cost) for name, cost in read["filters"].items()}
    else:
        network = measure_network(arguments.rounds)
        filters = measure_filters(arguments.rounds)
    if file and not file.exists():
        costs = {name: asdict(cost) for name, cost in filters.items()}
        file.write_text(json.dumps({"network": asdict(network), "filters": costs}, indent=2))
    gpu = arguments.speed, arguments.launch, arguments.bandwidth, arguments.latency
    extrapolate(
        network,
        filters,
        [
            Machine("cores as this one, 1 GB/s", 1, None, 1e9, 100e-6),
            Machine(f"GPUs, {arguments.speed:g} x this core", *gpu),
        ],
    )


if __name__ == "__main__":
    main()
