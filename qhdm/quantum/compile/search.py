"""Search for the angles of circuits on a line: Levenberg-Marquardt from many starts at once.

First for circuits V with V^+ Z_i V = U^+ Z_i U, and only then for the same T, which is measured.
At the identity, where training begins, T does not change with rotations about Y to first order, and
nearly all starts would end in local minima.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass

import numpy as np
from qiskit.circuit import Parameter, QuantumCircuit

from qhdm.quantum.compile.line import Line, measured, turned

#: Root of the mean squared error of <Z>, added over outputs, that counts as none. No input of three
#: qubits has an error above sqrt(5^3) times this: 6e-9.
EXACT = 5e-10
#: Starts, and iterations of each: with as many gates as exact circuits take, and with fewer.
_EXACT_STARTS, _STARTS = (16, 80), (32, 30)
#: So many of the best go on, to be best in what is measured.
_ROUNDS = ((8, 60), (2, 150))
#: Tries to find an exact circuit, with each of some numbers of gates from the least on.
EXACT_TRIES, _MORE_GATES = 6, 2


@dataclass(frozen=True, eq=False)
class Fit:
    """A circuit on a line that approximates a unitary in what is measured.

    Attributes:
        line: of the circuit.
        angles: (A,), radians.
        error: root of the mean squared error of <Z>, added over outputs.
    """

    line: Line
    angles: np.ndarray
    error: float

    @property
    def exact(self) -> bool:
        """Whether it is more than an approximation."""
        return self.error < EXACT

    def circuit(self, inputs: tuple[Parameter, ...]) -> QuantumCircuit:
        """The circuit, after RX of an input on each qubit."""
        return self.line.circuit(inputs, self.angles)


def gates_needed(n: int, *, fractional: bool = False) -> int:
    """Two-qubit gates that suffice for any unitary of n qubits, by counting angles."""
    return max(0, -(-(4**n - 2**n - 2 * n) // (4 + fractional)))


def exact_fit(unitary: np.ndarray, *, most: int, fractional: bool = False) -> Fit | None:
    """The exact circuit with the fewest two-qubit gates that is found, at most `most`, or None."""
    n = len(unitary).bit_length() - 1
    needed = gates_needed(n, fractional=fractional)
    best: Fit | None = None
    for gates in range(min(needed, most), min(needed + _MORE_GATES, most) + 1):
        best = fit(unitary, gates, fractional=fractional)
        if best.exact:
            break
    # Circuits of few gates are special: they may take fewer than others.
    while best is not None and best.exact and best.line.gates:
        fewer = fit(unitary, best.line.gates - 1, tries=1, fractional=fractional)
        if not fewer.exact:
            return best
        best = fewer
    return best if best is not None and best.exact else None


def fit(
    unitary: np.ndarray, gates: int, *, tries: int = EXACT_TRIES, fractional: bool = False
) -> Fit:
    """The best circuit of a number of two-qubit gates, from random starts, always the same.

    Args:
        unitary: (2^n, 2^n), n from 1 to 3, qubit 0 least significant.
        gates: k.
        tries: with different orders of the qubits and outputs, until one is exact.
        fractional: use RZZ of any angle instead of CZ.
    """
    key = unitary.astype(complex).tobytes()
    return _fit(key, len(unitary), gates, tries, fractional)


@functools.lru_cache(maxsize=4096)
def _fit(content: bytes, size: int, gates: int, tries: int, fractional: bool) -> Fit:
    """As `fit`, kept: the same filters are compiled for estimates, jobs and several devices."""
    unitary = np.frombuffer(content, complex).reshape(size, size)
    n = size.bit_length() - 1
    random = np.random.default_rng(gates)
    orders = list(itertools.permutations(range(n)))
    pairs = [(order, outputs) for order in orders for outputs in orders[::-1]]
    best: Fit | None = None
    for order, outputs in [pairs[5 * i % len(pairs)] for i in range(tries)]:
        line = Line(order, gates, outputs, fractional)
        new = _minimise(line, unitary, random)
        best = new if best is None or new.error < best.error else best
        if best.exact:
            break
    assert best is not None
    return best


def _minimise(line: Line, unitary: np.ndarray, random: np.random.Generator) -> Fit:
    enough = line.gates >= gates_needed(len(line.order), fractional=line.fractional)
    starts, iterations = _EXACT_STARTS if enough else _STARTS
    angles = random.uniform(-np.pi, np.pi, (starts, line.angles))
    angles, costs = levenberg_marquardt(line, turned(unitary), angles, iterations)
    for starts, iterations in _ROUNDS:
        if costs.min() < EXACT**2:
            break
        angles = angles[np.argsort(costs, kind="stable")[:starts]]
        angles, costs = levenberg_marquardt(line, measured(unitary), angles, iterations)
    best = int(costs.argmin())
    return Fit(line, angles[best], float(np.sqrt(costs[best])))


def levenberg_marquardt(
    line: Line, wanted: np.ndarray, angles: np.ndarray, iterations: int
) -> tuple[np.ndarray, np.ndarray]:
    """Minimise the squared residuals from several starts, until one of them is exact.

    Args:
        line: family of circuits.
        wanted: see `turned` or `measured`.
        angles: starts (B, A).
        iterations: at most.

    Returns:
        Angles (B, A), and the sums of squares (B,).
    """
    diagonal = np.arange(line.angles)
    damping = np.full(len(angles), 1e-2)
    residuals, trace = line.residuals(angles, wanted)
    costs = (residuals**2).sum(axis=1)
    J = line.jacobian(trace)
    for _ in range(iterations):
        if costs.min() < EXACT**2:
            break
        normal = J @ J.swapaxes(1, 2)
        normal[:, diagonal, diagonal] += damping[:, None]
        moved = angles - np.linalg.solve(normal, J @ residuals[:, :, None])[:, :, 0]
        new, trace = line.residuals(moved, wanted)
        squares = (new**2).sum(axis=1)
        better = squares < costs
        angles[better], residuals[better], costs[better] = (
            moved[better], new[better], squares[better],
        )  # fmt: skip
        damping = np.where(better, damping / 4, np.minimum(3 * damping, 1e3)).clip(1e-14)
        if better.any():
            J[better] = line.jacobian(trace.at(better))
    return angles, costs
