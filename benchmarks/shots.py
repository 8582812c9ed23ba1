"""What shots change of the images: everywhere, in single network evaluations, at single places.

    python benchmarks/shots.py --run eurosat --shots 13 26 52 104

Filters are exact, and each of their values is that of n shots (binomial), without gate errors. The
change is against the images of exact filters: root of the mean square of a pixel, of 255 levels.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from qhdm.hardware.sampling import SamplingJob
from qhdm.hardware.spec import JobSpec
from qhdm.models.filters import on_engine
from qhdm.quantum.connector import FilterConnector
from qhdm.quantum.exact import engine as exact
from qhdm.quantum.filter import Filter
from qhdm.run import Run


class Shots:
    """An engine of exact values with the noise of shots; None are infinitely many."""

    name, estimator = "shots", None

    def __init__(self, random: np.random.Generator, shots: Iterator[int | None]) -> None:
        self._random, self._shots = random, shots

    def __call__(self, circuit_filter: Filter, x: Tensor, w: Tensor) -> Tensor:
        values, shots = exact.expectation(circuit_filter, x, w), next(self._shots)
        if shots is None:
            return values
        chances = ((1 - values.double().numpy()) / 2).clip(0, 1)
        return torch.as_tensor(1 - 2 * self._random.binomial(shots, chances) / shots).to(values)


def images(job: SamplingJob, shots: np.ndarray) -> Tensor:
    """Images with shots (steps, places), 0 being infinitely many."""
    model, random = on_engine(job.model, "exact"), np.random.default_rng(0)
    stages = iter(int(n) or None for n in shots.ravel())
    for module in model.modules():
        if isinstance(module, FilterConnector):
            module.engine = Shots(random, stages)  # type: ignore[assignment]
    with torch.inference_mode():
        *_, last = job._chain((model,))
    return last.state.x


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", default="eurosat")
    parser.add_argument("--classes", nargs="+", default=["Forest", "Highway", "River", "SeaLake"])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--shots", type=int, nargs="+", default=[13, 26, 52, 104])
    parser.add_argument("--rows", type=int, nargs="+", default=[1366, 342, 22],
                        help="packed rows of each place")  # fmt: skip
    arguments = parser.parse_args()
    run = Run.open(arguments.run, device="cpu")
    spec = JobSpec(run=arguments.run, backend="aer", classes=tuple(arguments.classes),
                   steps=arguments.steps, guidance=1.0, places=("vertex", "encoder"))  # fmt: skip
    job = run.job(spec)
    shape = arguments.steps, len(job.stages)
    infinite = images(job, np.zeros(shape, dtype=int))

    def change(shots: np.ndarray) -> float:
        return float((images(job, shots) - infinite).square().mean().sqrt()) * 127.5

    for n in arguments.shots:
        print(f"{n:>5} shots everywhere: {change(np.full(shape, n)):.2f}", flush=True)
    n = arguments.shots[0]
    steps, places = np.zeros(shape[0]), np.zeros(shape[1])
    for step in range(shape[0]):
        shots = np.zeros(shape, dtype=int)
        shots[step] = n
        steps[step] = change(shots)
        print(f"{n:>5} shots in evaluation {step}: {steps[step]:.2f}", flush=True)
    for place, stage in enumerate(job.stages):
        shots = np.zeros(shape, dtype=int)
        shots[:, place] = n
        places[place] = change(shots)
        print(f"{n:>5} shots at {stage.place}: {places[place]:.2f}", flush=True)
    # Best if changes are independent: in proportion to sqrt(variance / cost) (Neyman 1934).
    rows = np.array(arguments.rows)
    for name, weights in (
        ("evaluations", np.outer(steps, np.ones(shape[1]))),
        ("places", np.outer(np.ones(shape[0]), places / np.sqrt(rows))),
        ("both", np.outer(steps, places / np.sqrt(rows))),
    ):
        budget = n * rows.sum() * shape[0]
        shots = np.floor(weights * budget / (weights @ rows).sum()).clip(1).astype(int)
        print(f"as many, spread over {name} ({shots.min()} to {shots.max()}): {change(shots):.2f}")


if __name__ == "__main__":
    main()
