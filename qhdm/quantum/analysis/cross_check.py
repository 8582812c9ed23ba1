"""Engines against each other on one filter: values and gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from qiskit.quantum_info import SparsePauliOp, Statevector

from qhdm import console
from qhdm.errors import CircuitError
from qhdm.quantum.engines import expectation, make_engine
from qhdm.quantum.exact.memory import require_memory
from qhdm.quantum.filter import Filter
from qhdm.quantum.options import ENGINES, Aer

#: Qiskit's Statevector, gate by gate: shares nothing with the engines.
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
        """Of both."""
        return max(self.values, self.gradients)


@dataclass(frozen=True)
class _Found:
    """Values (batch, m), slopes along directions, and the gradient in full where it is known."""

    values: np.ndarray
    slopes: np.ndarray
    gradient: np.ndarray | None


@dataclass(frozen=True)
class _Task:
    """Where to evaluate: sum(g * values) at rows (batch, n + P), and along moves of these.

    Attributes:
        filter: the circuit and its observables.
        rows: (batch, n + P): inputs, and the weights, the same in each row.
        moves: (directions, batch, n + P); the weights move alike in each row.
        g: (batch, m).
        done: called with what has been done, each time a part of the work is.
    """

    filter: Filter
    rows: np.ndarray
    moves: np.ndarray
    g: np.ndarray
    done: Callable[[int], object]


def verify(
    filter: Filter,
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
        filter: the circuit and its observables.
        engines: two or more of `VERIFIABLE`.
        batch: samples.
        seed: of all numbers.
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
    if not filter.observables:
        raise CircuitError(f"{filter.name}: has no observables, and so no values to compare")
    if REFERENCE in names:
        qubits = filter.circuit.num_qubits
        words = f"{filter.name}: engine {REFERENCE} on {qubits} qubits"
        require_memory(_COPIES * 16 << qubits, words, "leave it out of the engines")
    random = np.random.default_rng(seed)
    n, P = len(filter.inputs), len(filter.weights)
    x = random.normal(size=(batch, n))
    w = random.uniform(0, 2 * np.pi, size=P)
    g = random.normal(size=(batch, len(filter.observables)))
    moves = random.normal(size=(_DIRECTIONS, batch, n + P))
    moves[:, :, n:] = moves[:, :1, n:]
    rows = np.concatenate([x, np.broadcast_to(w, (batch, P))], axis=1)
    # A reference evaluates each sample itself, and six times along each direction.
    steps = {name: batch * (1 + 6 * _DIRECTIONS) if name == REFERENCE else 1 for name in names}
    found = {}
    with console.bar(
        total=sum(steps.values()), unit="evaluation", show=progress, in_logs=False
    ) as bar:
        task = _Task(filter, rows, moves / max(1.0, np.sqrt(n + P)), g, bar.update)
        for name in names:
            bar.set_description(name)
            found[name] = _reference(task) if name == REFERENCE else _engine(name, task)
    return [
        Disagreement(
            (one, other),
            _apart(found[one].values, found[other].values),
            _gradients_apart(found[one], found[other]),
        )
        for one, other in combinations(found, 2)
    ]


def _gradients_apart(one: _Found, other: _Found) -> float:
    apart = _apart(one.slopes, other.slopes)
    if one.gradient is None or other.gradient is None:
        return apart
    return max(apart, _apart(one.gradient, other.gradient))


def _apart(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one - other).max(initial=0))


def _engine(name: str, task: _Task) -> _Found:
    n = len(task.filter.inputs)
    # Its own gradients, not those of the exact engine.
    engine = make_engine(Aer(gradient="shift") if name == "aer" else name)
    inputs = torch.tensor(task.rows[:, :n]).requires_grad_()
    weights = torch.tensor(task.rows[0, n:]).requires_grad_()
    values = expectation(task.filter, inputs, weights, engine=engine)
    total = (values * torch.as_tensor(task.g)).sum()
    if total.requires_grad:
        # A filter may read no inputs or have no weights, and then does not reach them.
        by_inputs, by_weights = torch.autograd.grad(
            total, (inputs, weights), allow_unused=True, materialize_grads=True
        )
    else:
        by_inputs, by_weights = torch.zeros_like(inputs), torch.zeros_like(weights)
    slopes = np.einsum("bn,dbn->d", by_inputs.numpy(), task.moves[:, :, :n])
    slopes += task.moves[:, 0, n:] @ by_weights.numpy()
    task.done(1)
    gradient = np.concatenate([by_inputs.flatten(), by_weights])
    return _Found(values.detach().numpy(), slopes, gradient)


def _reference(task: _Task) -> _Found:
    observables = task.filter.observables

    def slope(row: np.ndarray, move: np.ndarray, observable: SparsePauliOp) -> float:
        speed = _speed(task.filter, row, move)
        if speed == 0:
            task.done(6)
            return 0.0
        step = _STEP / speed

        def at(times: int) -> float:
            state = _state(task.filter, row + times * step * move)
            task.done(1)
            return float(state.expectation_value(observable).real)

        near, middle, far = (at(i) - at(-i) for i in (1, 2, 3))
        return (45 * near - 9 * middle + far) / (60 * step)

    values = np.zeros((len(task.rows), len(observables)))
    slopes = np.zeros(len(task.moves))
    for b, (row, g) in enumerate(zip(task.rows, task.g, strict=True)):
        state = _state(task.filter, row)
        values[b] = [state.expectation_value(o).real for o in observables]
        task.done(1)
        weighted = SparsePauliOp.sum([c * o for c, o in zip(g, observables, strict=True)])
        slopes += [slope(row, moves[b], weighted) for moves in task.moves]
    return _Found(values, slopes, None)


def _state(filter: Filter, row: np.ndarray) -> Statevector:
    return Statevector(filter.assign(row))


def _speed(filter: Filter, row: np.ndarray, move: np.ndarray) -> float:
    """How far the angles of all gates move together, radians per unit of `move`."""
    before, after = (filter.assign(r) for r in (row, row + move))
    return sum(
        abs(float(b) - float(a))
        for old, new in zip(before.data, after.data, strict=True)
        for a, b in zip(old.operation.params, new.operation.params, strict=True)
        if not isinstance(a, np.ndarray)  # a gate's matrix stays
    )
