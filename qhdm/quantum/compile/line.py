"""Circuits of two-qubit gates along a line of qubits, and what they do to Z, with derivatives.

A circuit is RZ and RX on each qubit, then k times a two-qubit gate with RZ and RX on its two
qubits. With CZ it has 2 n + 4 k angles, with RZZ of free angles 2 n + 5 k. (An RZ before a CZ
commutes with it, and one before the measurement changes nothing.)
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from qiskit.circuit import Parameter, QuantumCircuit

from qhdm.quantum.ir.paulis import string_matrix


class _Tables(NamedTuple):
    """Constants of n qubits; Pauli string number j has letter (j >> 2 q) & 3 on qubit q.

    Attributes:
        signs: (n, 2^n), eigenvalues of each Z_q.
        strings: numbers of the p = 4^n - 1 strings but the identity, first those of I, Y and Z.
        weights: 2^(-|P|/2) of each of them.
        to_paulis: (2 * 4^n, 4^n): real and imaginary parts of a Hermitian matrix to its
            coefficients.
        partners, commutators: (4^n, p), for strings Q and P: the number of QP, and the derivative
            of the coefficient of P by a rotation about Q, per coefficient of QP.
    """

    signs: np.ndarray
    strings: np.ndarray
    weights: np.ndarray
    to_paulis: np.ndarray
    partners: np.ndarray
    commutators: np.ndarray


@functools.cache
def _tables(n: int) -> _Tables:
    letters = np.arange(4**n)[:, None] >> 2 * np.arange(n) & 3
    matrices = np.array([string_matrix(row) for row in letters])
    strings = np.argsort((letters == 1).any(axis=1), kind="stable")[1:]
    flat = matrices.transpose(0, 2, 1).reshape(4**n, -1) / 2**n
    # P Q = i c R for strings that do not commute: i/2 [Q, R] has the coefficient -c of P.
    products = np.einsum("pij,qjk->qpik", matrices[strings], matrices)
    coefficients = np.einsum("rab,qpba->qpr", matrices, products) / 2**n
    partners = np.abs(coefficients).argmax(axis=2)
    phases = np.take_along_axis(coefficients, partners[:, :, None], axis=2)[:, :, 0]
    return _Tables(
        1 - 2 * (np.arange(2**n) >> np.arange(n)[:, None] & 1),
        strings,
        0.5 ** ((letters[strings] != 0).sum(axis=1) / 2),
        np.concatenate([flat.real, -flat.imag], axis=1).T.copy(),
        partners,
        -phases.imag,
    )


def _paulis(matrices: np.ndarray, n: int) -> np.ndarray:
    """Coefficients (..., 4^n) of Hermitian matrices (..., 2^n, 2^n)."""
    flat = matrices.reshape(*matrices.shape[:-2], -1)
    return np.concatenate([flat.real, flat.imag], axis=-1) @ _tables(n).to_paulis


def turned(unitary: np.ndarray) -> np.ndarray:
    """2^(-|P|/2) times the coefficients of U^+ Z_i U of a unitary, (n, 4^n - 1).

    They tell unitaries apart up to phases of the basis states.
    """
    n = len(unitary).bit_length() - 1
    return _weighted(_observables(unitary[None], range(n), n), n, 4**n - 1)[0]


def measured(unitary: np.ndarray) -> np.ndarray:
    """2^(-|P|/2) T[i, P] of a unitary, (n, 3^n - 1): their squares add up to those of <Z_i>.

    They are the first columns of `turned`.
    """
    coefficients = turned(unitary)
    return coefficients[:, : 3 ** len(coefficients) - 1]


def _observables(unitaries: np.ndarray, outputs: range | tuple[int, ...], n: int) -> np.ndarray:
    """Pauli coefficients (B, n, 4^n) of U^+ Z U, Z on each of `outputs`."""
    turned = _tables(n).signs[list(outputs), :, None] * unitaries[:, None]
    return _paulis(unitaries.conj().swapaxes(1, 2)[:, None] @ turned, n)


def _weighted(observables: np.ndarray, n: int, count: int) -> np.ndarray:
    tables = _tables(n)
    return observables[..., tables.strings[:count]] * tables.weights[:count]


@dataclass(frozen=True)
class Line:
    """A family of circuits on n qubits that differ in their angles.

    Attributes:
        order: the qubits along the line.
        gates: k, two-qubit gates, first on the first two qubits, then on the next two, and again.
        outputs: the qubit on which each <Z_i> is measured.
        fractional: the gates are RZZ of free angles instead of CZ.
    """

    order: tuple[int, ...]
    gates: int
    outputs: tuple[int, ...]
    fractional: bool = False

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """The qubits of each two-qubit gate."""
        couples = list(zip(self.order, self.order[1:], strict=False))
        return [couples[i % len(couples)] for i in range(self.gates)]

    @property
    def angles(self) -> int:
        """The number of angles: of RZ and RX on each qubit, then those of gate after gate."""
        return 2 * len(self.order) + (4 + self.fractional) * self.gates

    def residuals(self, angles: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, _Trace]:
        """Errors (B, n p) at angles (B, A), and what `jacobian` needs of them.

        Args:
            angles: radians.
            wanted: (n, p), see `turned` or `measured`.
        """
        n, count = len(self.order), wanted.shape[1]
        states = self._states(angles)
        observables = _observables(states[-1], self.outputs, n)
        errors = _weighted(observables, n, count) - wanted
        return errors.reshape(len(angles), -1), _Trace(states, observables, count)

    def _states(self, angles: np.ndarray) -> np.ndarray:
        """The unitary before the circuit, and after each step, (k + 2, B, 2^n, 2^n)."""
        n, B = len(self.order), len(angles)
        states = np.empty((self.gates + 2, B, 2**n, 2**n), dtype=complex)
        states[0] = np.eye(2**n)
        signs, half, at = _tables(n).signs, angles / 2, 0
        for step, qubits in enumerate([self.order, *self.pairs]):
            phases = np.zeros((B, 2**n))
            if step:
                both = signs[qubits[0]] * signs[qubits[1]]
                # A CZ is RZZ(pi/2) up to RZ of its qubits.
                phases = (half[:, at, None] if self.fractional else np.pi / 4) * both + phases
                at += self.fractional
            for q in qubits:
                phases += half[:, at, None] * signs[q]
                at += 2
            U = np.exp(-1j * phases)[:, :, None] * states[step]
            for i, q in enumerate(reversed(qubits)):
                x = half[:, at - 1 - 2 * i, None, None]
                U = np.cos(x) * U - 1j * np.sin(x) * U[:, _flipped(n, q)]
            states[step + 1] = U
        return states

    def jacobian(self, trace: _Trace) -> np.ndarray:
        """Derivatives (B, A, n p) of the residuals.

        A rotation about G after the unitary V turns the observables about V^+ G V.
        """
        n, tables = len(self.order), _tables(len(self.order))
        before, axes = [], []
        for step, qubits in enumerate([self.order, *self.pairs]):
            here, after = trace.states[step], trace.states[step + 1]
            if step and self.fractional:
                before.append(here)
                axes.append((tables.signs[qubits[0]] * tables.signs[qubits[1]])[:, None] * here)
            for q in qubits:
                before += [here, after]
                axes += [tables.signs[q][:, None] * here, after[:, _flipped(n, q)]]
        generators = np.stack(before, axis=1).conj().swapaxes(2, 3) @ np.stack(axes, axis=1)
        p = trace.strings
        turns = trace.observables[:, :, tables.partners[:, :p]]
        turns *= tables.commutators[:, :p] * tables.weights[:p]
        derivatives = _paulis(generators, n)[:, None] @ turns  # (B, n, A, p)
        return derivatives.swapaxes(1, 2).reshape(len(generators), self.angles, -1)

    def circuit(self, inputs: tuple[Parameter, ...], angles: np.ndarray) -> QuantumCircuit:
        """RX(inputs[q]) on each qubit q, and the circuit at angles (A,)."""
        circuit, numbers = QuantumCircuit(len(self.order)), iter(angles.tolist())
        for step, qubits in enumerate([self.order, *self.pairs]):
            quarter = 0.0
            if not step:
                for q in qubits:
                    # RX(x) |0>, with one pulse instead of two in front of the next gate.
                    circuit.sx(q)
                    circuit.rz(inputs[q] - np.pi / 2, q)
                    circuit.ry(np.pi / 2, q)
            elif self.fractional:
                circuit.rzz(next(numbers), *qubits)
            else:
                circuit.cz(*qubits)
                quarter = np.pi / 2
            for q in qubits:
                circuit.rz(next(numbers) + quarter, q)
                circuit.rx(next(numbers), q)
        return circuit


class _Trace(NamedTuple):
    """Unitaries (k + 2, B, 2^n, 2^n) along circuits, their observables (B, n, 4^n), and p."""

    states: np.ndarray
    observables: np.ndarray
    strings: int

    def at(self, index: np.ndarray) -> _Trace:
        return _Trace(self.states[:, index], self.observables[index], self.strings)


def _flipped(n: int, qubit: int) -> np.ndarray:
    """The basis states with one qubit flipped."""
    return np.arange(2**n) ^ (1 << qubit)
