"""Engines against each other on one filter: values and gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from qiskit.quantum_info import Statevector

from qhdm.errors import CircuitError
from qhdm.quantum.aer.options import AerOptions
from qhdm.quantum.engines import ENGINES, expectation, make_engine
from qhdm.quantum.filter import Filter

#: Qiskit's Statevector, gate by gate: shares nothing with the engines.
REFERENCE = "statevector"
VERIFIABLE = (REFERENCE, *ENGINES)

#: Largest absolute disagreement of values and gradients that rounding, and the finite differences
#: of the reference, explain.
TOLERANCE = 1e-8
_STEP = 0.01


@dataclass(frozen=True)
class Disagreement:
    """The largest absolute differences between two engines."""

    engines: tuple[str, str]
    values: float
    gradients: float

    @property
    def largest(self) -> float:
        """Of both."""
        return max(self.values, self.gradients)


@dataclass(frozen=True)
class _Found:
    values: np.ndarray
    gradients: np.ndarray


def verify(
    filter: Filter, engines: Sequence[str], *, batch: int = 2, seed: int = 0
) -> list[Disagreement]:
    """Compare engines on random inputs and weights, in float64.

    Gradients are those of sum(g * values) for a random g, with respect to all inputs and weights.
    `aer` runs exact state vectors with the gradient `shift`; `statevector` is Qiskit's, with
    central differences of fourth order, whose error is below 1e-9.

    Args:
        filter: the circuit and its observables.
        engines: two or more of `VERIFIABLE`.
        batch: samples.
        seed: of all numbers.

    Returns:
        One for each pair.

    Raises:
        CircuitError: fewer than two engines, or an unknown one.
        EngineError: an engine cannot hold the circuit.
    """
    unknown = [name for name in engines if name not in VERIFIABLE]
    if unknown:
        raise CircuitError(f"engine {unknown[0]!r}: unknown; known are {', '.join(VERIFIABLE)}")
    if len(set(engines)) < 2:
        raise CircuitError("engines: give at least two different ones to compare")
    random = np.random.default_rng(seed)
    x = random.normal(size=(batch, len(filter.inputs)))
    w = random.uniform(0, 2 * np.pi, size=len(filter.weights))
    g = random.normal(size=(batch, len(filter.observables)))
    found = {
        name: _reference(filter, x, w, g) if name == REFERENCE else _engine(name, filter, x, w, g)
        for name in dict.fromkeys(engines)
    }
    return [
        Disagreement(
            (one, other),
            float(np.abs(found[one].values - found[other].values).max(initial=0)),
            float(np.abs(found[one].gradients - found[other].gradients).max(initial=0)),
        )
        for one, other in combinations(found, 2)
    ]


def _engine(name: str, filter: Filter, x: np.ndarray, w: np.ndarray, g: np.ndarray) -> _Found:
    engine = make_engine(name, aer=AerOptions(gradient="shift"))
    inputs, weights = torch.tensor(x).requires_grad_(), torch.tensor(w).requires_grad_()
    values = expectation(filter, inputs, weights, engine=engine)
    gradients = torch.autograd.grad((values * torch.as_tensor(g)).sum(), (inputs, weights))
    return _Found(values.detach().numpy(), np.concatenate([t.flatten() for t in gradients]))


def _reference(filter: Filter, x: np.ndarray, w: np.ndarray, g: np.ndarray) -> _Found:
    parameters = (*filter.inputs, *filter.weights)
    present = set(filter.circuit.parameters)

    def values(row: np.ndarray) -> np.ndarray:
        bound = {p: v for p, v in zip(parameters, row, strict=True) if p in present}
        state = Statevector(filter.circuit.assign_parameters(bound))
        return np.array([state.expectation_value(o).real for o in filter.observables])

    rows = [np.concatenate([sample, w]) for sample in x]
    slopes = np.zeros((len(rows), len(parameters)))
    for row, up, slope in zip(rows, g, slopes, strict=True):
        for i, parameter in enumerate(parameters):
            if parameter in present:
                step = np.zeros(len(row))
                step[i] = _STEP
                near = values(row + step) - values(row - step)
                far = values(row + 2 * step) - values(row - 2 * step)
                slope[i] = up @ (8 * near - far) / (12 * _STEP)
    n = len(filter.inputs)
    gradients = np.concatenate([slopes[:, :n].ravel(), slopes[:, n:].sum(axis=0)])
    return _Found(np.array([values(row) for row in rows]), gradients)
