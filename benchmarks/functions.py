"""What function of its inputs a filter computes, and which ones it can learn.

    python benchmarks/functions.py --plot docs/functions.png

**Orders.** The variance of <Z> over inputs from a standard normal distribution around pi / 2, with
weights as in a network at the start, divided into the parts of an analysis of variance: sums of
functions of single inputs, of pairs, and the rest. Every input enters by one RX, so that these
functions are spanned by 1, sin, cos and their products; the parts are the gains in R^2 of least
squares on them, on fresh inputs. Mean over outputs and random weights.

**Products.** R^2, on fresh inputs, of trained filters with a learned gain and shift of each input
and a linear readout, whose target is the product of the three inputs of each of the four triples
that fqconv joins. Baselines of `quantum.filter` in the same place.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import qhdm  # before torch, whose threads it tells how to wait

# isort: split
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from qhdm.models.baselines import baseline
from qhdm.models.hybrid import ANGLES
from qhdm.quantum import build_filter, expectation
from qhdm.quantum.filter import Filter
from qhdm.tables import Table

SAMPLES = 8192
ANSATZE = ("fqconv", "hqconv", "basic", "product")


def orders(circuit_filter: Filter, draws: int) -> list[float]:
    """Shares of the variance from single inputs, pairs and more, and the deviation of <Z>."""
    generator = torch.Generator().manual_seed(0)
    n = len(circuit_filter.inputs)
    shares = []
    for _ in range(draws):
        x = torch.randn(2 * SAMPLES, n, dtype=torch.float64, generator=generator)
        w = ANGLES * torch.randn(len(circuit_filter.weights), generator=generator).double()
        z = expectation(circuit_filter, x + math.pi / 2, w)
        waves = torch.stack([x.sin(), x.cos() - math.exp(-0.5)], dim=2)
        pairs = [
            (waves[:, i, :, None] * waves[:, j, None, :]).flatten(1)
            for i in range(n)
            for j in range(i)
        ]
        single = torch.cat([torch.ones(len(x), 1, dtype=x.dtype), waves.flatten(1)], dim=1)
        first = explained(single, z)
        second = explained(torch.cat([single, *pairs], dim=1), z)
        deviation = float(z.var(dim=0).mean().sqrt())
        shares.append([first, second - first, 1 - second, deviation])
    return [float(share) for share in np.mean(shares, axis=0)]


def explained(features: Tensor, values: Tensor) -> float:
    """R^2 on the second half, over all outputs, of least squares on the first."""
    half = len(features) // 2
    fit = torch.linalg.lstsq(features[:half], values[:half]).solution
    return r_squared(features[half:] @ fit, values[half:])


def r_squared(predicted: Tensor, values: Tensor) -> float:
    errors = (predicted - values).square().sum()
    return float(1 - errors / (values - values.mean(dim=0)).square().sum())


class Readout(nn.Module):
    """(B, 12) to (B, 4): gain and shift of each input, `inner`, and a linear map."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.gain = nn.Parameter(torch.ones(12))
        self.shift = nn.Parameter(torch.full((12,), math.pi / 2))
        self.readout = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        patch = (self.gain * x + self.shift).reshape(-1, 2, 2, 3).permute(0, 3, 1, 2)
        return self.readout(self.inner(patch).permute(0, 2, 3, 1).flatten(1))


def learned(inner: nn.Module, steps: int) -> float:
    """R^2 of products of three inputs after training."""
    generator = torch.Generator().manual_seed(0)
    network = Readout(inner)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

    def batch(size: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(size, 12, generator=generator)
        return x, x.reshape(-1, 3, 4).prod(dim=1)  # inputs t, t + 4 and t + 8

    for _ in range(steps):
        x, target = batch(512)
        optimizer.zero_grad()
        (network(x) - target).square().mean().backward()
        optimizer.step()
        schedule.step()
    x, target = batch(4 * SAMPLES)
    with torch.no_grad():
        return r_squared(network(x), target)


def contestants() -> dict[str, nn.Module]:
    """Filters and baselines of one patch."""
    torch.manual_seed(0)
    filters: dict[str, nn.Module] = {name: qhdm.QuantumConv2d(3, name) for name in ANSATZE[:2]}
    fqconv = build_filter("fqconv")
    filters["cosine"] = baseline("cosine", fqconv, count=1)
    filters["linear"] = baseline("linear", fqconv, count=1)
    filters["perceptron"] = baseline("perceptron", fqconv, count=1)
    return filters


def draw(shares: dict[str, list[float]], fits: dict[str, float]) -> Figure:
    figure = Figure(figsize=(9, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    bottom = np.zeros(len(shares))
    for i, label in enumerate(("single inputs", "pairs", "three or more")):
        heights = np.array([values[i] for values in shares.values()])
        left.bar(list(shares), heights, bottom=bottom, label=label)
        bottom += heights
    left.set(title="variance of <Z>, untrained", ylabel="share", ylim=(0, 1.25))
    left.legend(ncols=3, loc="upper center", fontsize="small")
    right.barh(list(fits), list(fits.values()))
    right.invert_yaxis()
    right.set(title="products of three inputs, trained", xlabel="R^2")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=10, help="random weights of each ansatz")
    parser.add_argument("--steps", type=int, default=3000, help="of training")
    parser.add_argument("--plot", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    shares = {name: orders(build_filter(name), arguments.draws) for name in ANSATZE}
    header = ["ansatz", "single inputs", "pairs", "three or more", "deviation of <Z>"]
    rows = [[name, *(f"{value:.3f}" for value in values)] for name, values in shares.items()]
    print(Table(header, rows).markdown(), flush=True)
    fits = {name: learned(inner, arguments.steps) for name, inner in contestants().items()}
    print(Table(["filter", "R^2"], [[n, f"{v:.3f}"] for n, v in fits.items()]).markdown())
    if arguments.plot:
        draw(shares, fits).savefig(arguments.plot, dpi=100)


if __name__ == "__main__":
    main()
