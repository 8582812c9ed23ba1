"""Gradients from circuit values: parameter shift and simultaneous perturbation.

Both return the gradients of `sum(upstream * values)`; nothing of size (batch x outputs x
parameters) is built.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from qhdm.errors import CircuitError
from qhdm.quantum.aer.estimator import AerEstimator, Prepared
from qhdm.quantum.aer.subcircuits import Subcircuit
from qhdm.quantum.ir.lowering import Trig
from qhdm.quantum.options import SpsaOptions
from qhdm.seeds import Stream, derive_seed


@dataclass(frozen=True)
class Rule:
    """df/da = sum of coefficients[i] f(a + shifts[i]) (radians)."""

    shifts: tuple[float, ...]
    coefficients: tuple[float, ...]


def shift_rule(gate: Trig) -> Rule:
    """The parameter-shift rule of a gate.

    An expectation value is a trigonometric polynomial in the gate's angle, whose frequencies are
    the differences of the frequencies of the gate's matrix. One frequency W takes two terms
    (Schuld et al. 2019), W and 2 W four (Anselmetti et al. 2021; Wierichs et al. 2022): rotations
    have 1; controlled rotations 1/2 and 1.
    """
    present = [
        frequency
        for frequency, matrix in (
            (0.0, gate.K),
            (gate.scale, gate.A - 1j * gate.B),
            (-gate.scale, gate.A + 1j * gate.B),
        )
        if not np.allclose(matrix, 0, atol=1e-12)
    ]
    differences = sorted({abs(a - b) for a in present for b in present} - {0.0})
    if len(differences) == 1:
        W = differences[0]
        quarter = math.pi / (2 * W)
        return Rule((quarter, -quarter), (W / 2, -W / 2))
    if len(differences) == 2 and math.isclose(differences[1], 2 * differences[0]):
        W = differences[0]
        near, far = math.pi / (4 * W), 3 * math.pi / (4 * W)
        plus = W * (math.sqrt(2) + 1) / (2 * math.sqrt(2))
        minus = W * (math.sqrt(2) - 1) / (2 * math.sqrt(2))
        return Rule((near, -near, far, -far), (plus, -plus, -minus, minus))
    raise CircuitError(
        f"gate with frequencies {differences} in its angle: has no shift rule of two or four terms"
    )


@dataclass(frozen=True, eq=False)
class Shifts:
    """All shifted angle sets of a part.

    Attributes:
        angle: (S,), the local angle that each set shifts.
        offsets: (S, local angles), radians.
        coefficients: (S,).
    """

    angle: np.ndarray
    offsets: np.ndarray
    coefficients: np.ndarray


def shifts_of(part: Subcircuit) -> Shifts:
    """Shifts of the live angles of `part`."""
    angle: list[int] = []
    values: list[float] = []
    coefficients: list[float] = []
    for local in part.live:
        rule = shift_rule(part.ops[local].gate)
        angle += [local] * len(rule.shifts)
        values += rule.shifts
        coefficients += rule.coefficients
    offsets = np.zeros((len(angle), len(part.ops)))
    offsets[np.arange(len(angle)), angle] = values
    return Shifts(np.array(angle, dtype=int), offsets, np.array(coefficients))


class BackwardPass:
    """The gradient of `sum(upstream * values)` with respect to parameter sets.

    Nothing of size (batch x outputs x parameters) is built.

    Args:
        estimator: runs the circuits.
        prepared: the circuit.
        sets: (R, C) parameters; row r is of sample r mod `batch`.
        upstream: (R, m).
        seeds: of the draws.
        batch: number of samples.
    """

    def __init__(
        self,
        estimator: AerEstimator,
        prepared: Prepared,
        sets: np.ndarray,
        upstream: np.ndarray,
        seeds: tuple[int, ...],
        *,
        batch: int,
    ) -> None:
        self._estimator, self._prepared = estimator, prepared
        self._sets, self._seeds, self._batch = sets, seeds, batch
        parts = prepared.parts
        self._angles = parts.angles(sets)
        count = sum(part.values for part in parts.parts)
        measured = np.zeros((len(sets), count))
        if needs_values(prepared):
            measured = estimator.measure(prepared, self._angles, seeds, batch=batch)
        self._upstream = parts.pull_back(measured, upstream)

    def _parts(
        self,
    ) -> Iterator[tuple[Subcircuit, np.ndarray, Callable[[np.ndarray], np.ndarray]]]:
        """Each part, the upstream gradient (R, G, K) of its values, and what evaluates it.

        The latter takes local angles (R, ..., local) to values (R, ..., K), in one run.
        """
        samples = np.arange(len(self._sets)) % self._batch
        at = 0
        for number, part in enumerate(self._prepared.parts.parts):
            own = self._upstream[:, at : at + part.values]
            at += part.values

            def evaluate(angles: np.ndarray, number: int = number) -> np.ndarray:
                return self._estimator.run_part(
                    self._prepared, number, angles, self._seeds, samples=samples, batch=self._batch
                )

            if part.live:
                yield part, own.reshape(len(own), len(part.rows), len(part.paulis)), evaluate

    def by_shift(self) -> np.ndarray:
        """(R, C), by the parameter-shift rule."""
        gradient = np.zeros_like(self._angles)
        for part, upstream, evaluate in self._parts():
            shifts = shifts_of(part)
            shifted = self._angles[:, None, part.rows] + shifts.offsets[:, None]  # (R, S, G, local)
            slopes = np.einsum("rsgk,rgk,s->rsg", evaluate(shifted), upstream, shifts.coefficients)
            for s, local in enumerate(shifts.angle):
                gradient[:, part.rows[:, local]] += slopes[:, s]
        return gradient @ self._prepared.parts.program.from_weights

    def by_spsa(self, options: SpsaOptions) -> np.ndarray:
        """(R, C), by simultaneous perturbation (Spall 1992), averaged.

        Every sample has its own random directions, and every component its own difference, which
        does not depend on other components.
        """
        c, D = options.perturbation, options.averages
        from_weights = self._prepared.parts.program.from_weights
        random = np.random.default_rng(derive_seed(self._seeds[0], Stream.PERTURBATION))
        signs = random.choice([-1.0, 1.0], size=(len(self._sets), D, self._sets.shape[1]))
        steps = c * signs @ from_weights.T  # (R, D, angles)
        angles = self._angles[:, None]
        moved = np.stack([angles + steps, angles - steps], axis=1)
        gradient = np.zeros_like(self._sets)
        for part, upstream, evaluate in self._parts():
            values = evaluate(moved[..., part.rows])  # (R, 2, D, G, K)
            difference = values[:, 0] - values[:, 1]
            slopes = np.einsum("rdgk,rgk->rdg", difference, upstream) / (2 * c)
            reads = from_weights[part.rows[:, list(part.live)]].any(axis=1)  # (G, C)
            gradient += np.einsum("rdg,rdc,gc->rc", slopes, signs, reads) / D
        return gradient


def extra_circuits(part: Subcircuit, gradient: str, options: SpsaOptions) -> int:
    """Angle sets per sample and component that a gradient runs."""
    if gradient == "shift":
        return len(shifts_of(part).angle)
    return 2 * options.averages if gradient == "spsa" and part.live else 0


def needs_values(prepared: Prepared) -> bool:
    """Whether an observable spans components, so that a gradient needs the values of the others."""
    return any(len(factors) > 1 for terms in prepared.parts.outputs for _, factors in terms)
