"""Cross-checks of engines on one filter: values and gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from qiskit.quantum_info import SparsePauliOp, Statevector

from qhdm import console
from qhdm.errors import CircuitError
from qhdm.quantum.engines import expectation, make_engine
from qhdm.quantum.exact.statevector import require_memory
from qhdm.quantum.filter import Filter
from qhdm.quantum.options import ENGINES, Aer

#: Qiskit's Statevector, gate by gate; it shares no code with the engines.
REFERENCE = "statevector"
VERIFIABLE = (REFERENCE, *ENGINES)

#: Largest absolute disagreement of values and gradients that rounding, and the finite differences
#: of the reference, explain.
TOLERANCE = 1e-8
#: Random directions along which gradients are compared with the reference's.
_DIRECTIONS = 2
#: Finite differences move the angles of all gates together by this, radians. f is a sum of waves of
#: frequency at most 1 in that: sixth order errs by at most step^6 / 140, rounding by 1e-15 / step.
_STEP = 0.02
#: State vectors that Qiskit holds at once while it evolves one and reads it.
_COPIES = 3


@dataclass(frozen=True)
class Disagreement:
    """The largest absolute differences between two engines."""

    engines: tuple[str, str]
    values: float
    gradients: float

    @property
    def largest(self) -> float:
        """The larger of both."""
        return max(self.values, self.gradients)


@dataclass(frozen=True)
class _Point:
    """Where engines are compared: values, and the gradient of sum(g * values).

    Attributes:
        circuit_filter: the circuit and its observables.
        rows: (batch, n + P): inputs, and the weights, the same in each row.
        directions: (directions, batch, n + P); the weights move alike in each row.
        g: (batch, m).
    """

    circuit_filter: Filter
    rows: np.ndarray
    directions: np.ndarray
    g: np.ndarray

    @classmethod
    def random(cls, circuit_filter: Filter, batch: int, seed: int) -> _Point:
        random = np.random.default_rng(seed)
        n, P = len(circuit_filter.inputs), len(circuit_filter.weights)
        x = random.normal(size=(batch, n))
        w = random.uniform(0, 2 * np.pi, size=P)
        g = random.normal(size=(batch, len(circuit_filter.observables)))
        directions = random.normal(size=(_DIRECTIONS, batch, n + P))
        directions[:, :, n:] = directions[:, :1, n:]
        rows = np.concatenate([x, np.broadcast_to(w, (batch, P))], axis=1)
        return cls(circuit_filter, rows, directions / max(1.0, np.sqrt(n + P)), g)


@dataclass(frozen=True)
class _Evaluation:
    """Values (batch, m), slopes along directions, and the whole gradient where it is known."""

    values: np.ndarray
    slopes: np.ndarray
    gradient: np.ndarray | None

    def disagreement(self, other: _Evaluation) -> tuple[float, float]:
        """The largest differences of values and of gradients."""
        gradients = _difference(self.slopes, other.slopes)
        if self.gradient is not None and other.gradient is not None:
            gradients = max(gradients, _difference(self.gradient, other.gradient))
        return _difference(self.values, other.values), gradients


def _difference(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one - other).max(initial=0))


def verify(
    circuit_filter: Filter,
    engines: Sequence[str],
    *,
    batch: int = 2,
    seed: int = 0,
    progress: bool = False,
) -> list[Disagreement]:
    """Compare engines on random inputs and weights, in float64.

    Gradients are those of sum(g * values) for a random g, with respect to all inputs and weights.
    `aer` runs exact state vectors with the gradient `shift`. `statevector` is Qiskit's; it gives
    slopes along two random directions of all inputs and weights at once, by central differences of
    sixth order, and the others' gradients are projected on these: a gradient that is wrong
    anywhere is, almost surely, wrong along them.

    Args:
        circuit_filter: the circuit and its observables.
        engines: two or more of `VERIFIABLE`.
        batch: number of samples.
        seed: of the random numbers.
        progress: show a bar on stderr.

    Returns:
        One for each pair.

    Raises:
        CircuitError: fewer than two engines, an unknown one, or no observables.
        EngineError: an engine cannot hold the circuit.
    """
    unknown = [name for name in engines if name not in VERIFIABLE]
    if unknown:
        raise CircuitError(f"engine {unknown[0]!r}: unknown; known are {', '.join(VERIFIABLE)}")
    names = list(dict.fromkeys(engines))
    if len(names) < 2:
        raise CircuitError("engines: give at least two different ones to compare")
    name = circuit_filter.name
    if not circuit_filter.observables:
        raise CircuitError(f"{name}: has no observables, and so no values to compare")
    if REFERENCE in names:
        qubits = circuit_filter.circuit.num_qubits
        words = f"{name}: engine {REFERENCE} on {qubits} qubits"
        require_memory(_COPIES * 16 << qubits, words, "leave it out of the engines")
    point = _Point.random(circuit_filter, batch, seed)
    evaluations = {
        engine: _by_reference(point) if engine == REFERENCE else _by_engine(engine, point)
        for engine in console.bar(names, desc=name, unit="engine", show=progress, in_logs=False)
    }
    return [
        Disagreement((one, other), *evaluations[one].disagreement(evaluations[other]))
        for one, other in combinations(evaluations, 2)
    ]


def _by_engine(name: str, point: _Point) -> _Evaluation:
    n = len(point.circuit_filter.inputs)
    # Its own gradients, not those of the exact engine.
    engine = make_engine(Aer(gradient="shift") if name == "aer" else name)
    inputs = torch.tensor(point.rows[:, :n]).requires_grad_()
    weights = torch.tensor(point.rows[0, n:]).requires_grad_()
    values = expectation(point.circuit_filter, inputs, weights, engine=engine)
    # A filter may read no inputs or have no weights: then the values do not depend on them.
    total = (values * torch.as_tensor(point.g)).sum() + 0 * (inputs.sum() + weights.sum())
    by_inputs, by_weights = torch.autograd.grad(total, (inputs, weights))
    slopes = np.einsum("bn,dbn->d", by_inputs.numpy(), point.directions[:, :, :n])
    slopes += point.directions[:, 0, n:] @ by_weights.numpy()
    gradient = np.concatenate([by_inputs.flatten(), by_weights])
    return _Evaluation(values.detach().numpy(), slopes, gradient)


def _by_reference(point: _Point) -> _Evaluation:
    assign, observables = point.circuit_filter.assign, point.circuit_filter.observables
    values = np.zeros((len(point.rows), len(observables)))
    slopes = np.zeros(len(point.directions))
    for b, (row, g) in enumerate(zip(point.rows, point.g, strict=True)):
        state = Statevector(assign(row))
        values[b] = [state.expectation_value(o).real for o in observables]
        weighted = SparsePauliOp.sum([c * o for c, o in zip(g, observables, strict=True)])
        slopes += [_slope(point.circuit_filter, row, d[b], weighted) for d in point.directions]
    return _Evaluation(values, slopes, None)


def _slope(
    circuit_filter: Filter, row: np.ndarray, direction: np.ndarray, observable: SparsePauliOp
) -> float:
    """The derivative of an expectation value along a direction of inputs and weights."""
    before, after = (circuit_filter.assign(r) for r in (row, row + direction))
    # How far the angles of all gates move together, radians per unit of the direction.
    speed = sum(
        abs(float(b) - float(a))
        for old, new in zip(before.data, after.data, strict=True)
        for a, b in zip(old.operation.params, new.operation.params, strict=True)
        if not isinstance(a, np.ndarray)  # a gate's matrix stays
    )
    if speed == 0:
        return 0.0
    step = _STEP / speed

    def at(steps: int) -> float:
        state = Statevector(circuit_filter.assign(row + steps * step * direction))
        return float(state.expectation_value(observable).real)

    near, middle, far = (at(i) - at(-i) for i in (1, 2, 3))
    return (45 * near - 9 * middle + far) / (60 * step)
