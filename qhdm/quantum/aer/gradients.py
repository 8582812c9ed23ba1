"""Gradients from circuit values: parameter shift and simultaneous perturbation.

Both return the gradients of `sum(upstream * values)`; nothing of size (batch x outputs x
parameters) is built.
"""

from __future__ import annotations

import math
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


def shift_gradient(
    estimator: AerEstimator,
    prepared: Prepared,
    sets: np.ndarray,
    upstream: np.ndarray,
    seeds: tuple[int, ...],
    *,
    batch: int,
) -> np.ndarray:
    """The gradient of the parameter sets by the parameter-shift rule, one run per part.

    Args:
        estimator: runs the circuits.
        prepared: the circuit.
        sets: (R, C) parameters; row r is of sample r mod `batch`.
        upstream: (R, m).
        seeds: of the draws.
        batch: samples.

    Returns:
        (R, C).
    """
    parts = prepared.parts
    angles = parts.angles(np.empty((len(sets), 0)), sets)
    measured = _pulled_back(estimator, prepared, angles, upstream, seeds, batch=batch)
    samples = np.arange(len(sets)) % batch
    gradient = np.zeros_like(angles)
    at = 0
    for number, part in enumerate(parts.parts):
        G, K = len(part.rows), len(part.paulis)
        own = measured[:, at : at + G * K].reshape(-1, G, K)
        at += G * K
        shifts = shifts_of(part)
        if not len(shifts.angle):
            continue
        shifted = angles[:, None, part.rows] + shifts.offsets[:, None]  # (R, S, G, local)
        values = estimator.run_part(prepared, number, shifted, seeds, samples=samples, batch=batch)
        slopes = np.einsum("rsgk,rgk,s->rsg", values, own, shifts.coefficients)
        for s, local in enumerate(shifts.angle):
            gradient[:, part.rows[:, local]] += slopes[:, s]
    return gradient @ parts.program.from_weights


def spsa_gradient(
    estimator: AerEstimator,
    prepared: Prepared,
    sets: np.ndarray,
    upstream: np.ndarray,
    seeds: tuple[int, ...],
    *,
    batch: int,
    options: SpsaOptions,
) -> np.ndarray:
    """The gradient of the parameter sets by simultaneous perturbation (Spall 1992), averaged.

    Every sample has its own random directions, and every component its own difference, which
    does not depend on other components.

    Args:
        estimator, prepared, sets, upstream, seeds, batch: see `shift_gradient`.
        options: directions per gradient, and the size of the perturbation.

    Returns:
        (R, C).
    """
    parts, c, D = prepared.parts, options.perturbation, options.averages
    angles = parts.angles(np.empty((len(sets), 0)), sets)
    measured = _pulled_back(estimator, prepared, angles, upstream, seeds, batch=batch)
    samples = np.arange(len(sets)) % batch
    random = np.random.default_rng(derive_seed(seeds[0], Stream.PERTURBATION))
    signs = random.choice([-1.0, 1.0], size=(len(sets), D, sets.shape[1]))
    steps = c * signs @ parts.program.from_weights.T  # (R, D, angles)
    gradient = np.zeros_like(sets)
    at = 0
    for number, part in enumerate(parts.parts):
        G, K = len(part.rows), len(part.paulis)
        own = measured[:, at : at + G * K].reshape(-1, G, K)
        at += G * K
        if not part.live:
            continue
        moved = np.stack([angles[:, None] + steps, angles[:, None] - steps], axis=1)
        values = estimator.run_part(
            prepared, number, moved[..., part.rows], seeds, samples=samples, batch=batch
        )  # (R, 2, D, G, K)
        slopes = np.einsum("rdgk,rgk->rdg", values[:, 0] - values[:, 1], own) / (2 * c)
        reads = parts.program.from_weights[part.rows[:, list(part.live)]].any(axis=1)  # (G, C)
        gradient += np.einsum("rdg,rdc,gc->rc", slopes, signs, reads) / D
    return gradient


def extra_circuits(part: Subcircuit, gradient: str, options: SpsaOptions) -> int:
    """Angle sets per sample and component that a gradient runs."""
    if gradient == "shift":
        return len(shifts_of(part).angle)
    return 2 * options.averages if gradient == "spsa" and part.live else 0


def _pulled_back(
    estimator: AerEstimator,
    prepared: Prepared,
    angles: np.ndarray,
    upstream: np.ndarray,
    seeds: tuple[int, ...],
    *,
    batch: int,
) -> np.ndarray:
    """The upstream gradient of the measured values, (R, V)."""
    parts = prepared.parts
    if needs_values(prepared):
        base = estimator.measure(prepared, angles, seeds, batch=batch)
    else:
        base = np.zeros((len(angles), sum(p.rows.shape[0] * len(p.paulis) for p in parts.parts)))
    return parts.pull_back(base, upstream)


def needs_values(prepared: Prepared) -> bool:
    """Whether an observable spans components, so that a gradient needs the values of the others."""
    return any(len(factors) > 1 for terms in prepared.parts.outputs for _, factors in terms)
