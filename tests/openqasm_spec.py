"""Small OpenQASM 3 programs, as text and as the matrices that the specification gives them.

Shares nothing with the readers it tests: NumPy alone, the first qubit most significant.
"""

from __future__ import annotations

import cmath
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import scipy.linalg

#: An angle: a number, or a factor and the name of a parameter.
Angle = float | tuple[float, str]


@dataclass(frozen=True)
class Call:
    """A gate on qubits; the first of `modifiers` stands first in the text and acts last."""

    gate: str
    angles: tuple[Angle, ...]
    qubits: tuple[int, ...]
    modifiers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Definition:
    """A gate with parameters a0, a1, ... on qubits q0, q1, ..."""

    name: str
    angles: int
    qubits: int
    body: tuple[Call, ...]


@dataclass(frozen=True)
class Program:
    """Definitions, and calls on n qubits with parameters `free`."""

    definitions: tuple[Definition, ...]
    qubits: int
    calls: tuple[Call, ...]
    free: tuple[str, ...] = ("x0", "w0")
    header: str = 'OPENQASM 3.0;\ninclude "stdgates.inc";\n'

    def text(self) -> str:
        """The program in OpenQASM 3."""
        lines = [self.header.rstrip()]
        for gate in self.definitions:
            angles = f"({', '.join(f'a{i}' for i in range(gate.angles))})" if gate.angles else ""
            places = ", ".join(f"q{i}" for i in range(gate.qubits))
            body = " ".join(_text(call, "q{}") for call in gate.body)
            lines.append(f"gate {gate.name}{angles} {places} {{ {body} }}")
        lines += [f"input float[64] {name};" for name in self.free]
        lines.append(f"qubit[{self.qubits}] places;")
        lines += [_text(call, "places[{}]") for call in self.calls]
        return "\n".join(lines) + "\n"

    def values(self, free: Mapping[str, float]) -> np.ndarray:
        """<Z_i> of every qubit."""
        matrices = dict(_STANDARD)
        for gate in self.definitions:
            matrices[gate.name] = _Defined(gate, dict(matrices))
        state = np.eye(2**self.qubits)[0].astype(complex)
        state = _run(self.calls, self.qubits, free, matrices) @ state
        chances = (np.abs(state) ** 2).reshape((2,) * self.qubits)
        return np.array(
            [
                np.diff(-np.moveaxis(chances, i, 0).reshape(2, -1).sum(1))[0]
                for i in range(self.qubits)
            ]
        )


def _text(call: Call, place: str) -> str:
    def angle(value: Angle) -> str:
        return repr(value) if isinstance(value, float) else f"{value[0]!r} * {value[1]}"

    angles = f"({', '.join(map(angle, call.angles))})" if call.angles else ""
    qubits = ", ".join(place.format(i) for i in call.qubits)
    modifiers = "".join(f"{modifier} @ " for modifier in call.modifiers)
    return f"{modifiers}{call.gate}{angles} {qubits};"


Matrix = Callable[..., np.ndarray]


@dataclass(frozen=True)
class _Defined:
    gate: Definition
    matrices: Mapping[str, Matrix] = field(repr=False)

    def __call__(self, *angles: float) -> np.ndarray:
        free = {f"a{i}": angle for i, angle in enumerate(angles)}
        return _run(self.gate.body, self.gate.qubits, free, self.matrices)


def _run(
    calls: Sequence[Call], qubits: int, free: Mapping[str, float], matrices: Mapping[str, Matrix]
) -> np.ndarray:
    whole = np.eye(2**qubits, dtype=complex)
    for call in calls:
        angles = [a if isinstance(a, float) else a[0] * free[a[1]] for a in call.angles]
        matrix = matrices[call.gate](*angles)
        for modifier in reversed(call.modifiers):
            matrix = _modified(matrix, modifier)
        whole = _on(matrix, call.qubits, qubits) @ whole
    return whole


def _modified(matrix: np.ndarray, modifier: str) -> np.ndarray:
    if modifier == "inv":
        return matrix.conj().T
    if modifier.startswith("pow"):
        exponent = float(modifier[4:-1])
        if exponent.is_integer():
            return np.linalg.matrix_power(matrix, int(exponent))
        triangle, vectors = scipy.linalg.schur(matrix, output="complex")
        phases = np.angle(np.diag(triangle))
        phases[phases < -np.pi + 1e-10] += 2 * np.pi  # principal: in (-pi, pi], also when rounded
        return vectors @ np.diag(np.exp(1j * phases * exponent)) @ vectors.conj().T
    same = np.eye(len(matrix))
    return scipy.linalg.block_diag(*((same, matrix) if modifier == "ctrl" else (matrix, same)))


def _on(matrix: np.ndarray, places: Sequence[int], qubits: int) -> np.ndarray:
    """A matrix on some qubits as one on all."""
    k = len(places)
    whole = np.eye(2**qubits, dtype=complex).reshape((2,) * qubits + (2**qubits,))
    moved = np.tensordot(matrix.reshape((2,) * (2 * k)), whole, (range(k, 2 * k), places))
    return np.moveaxis(moved, range(k), places).reshape(2**qubits, 2**qubits)


def _u(t: float, a: float, b: float) -> np.ndarray:
    """U(θ, φ, λ) of the specification, with its phase."""
    e = cmath.exp
    return 0.5 * np.array(
        [
            [1 + e(1j * t), -1j * e(1j * b) * (1 - e(1j * t))],
            [1j * e(1j * a) * (1 - e(1j * t)), e(1j * (a + b)) * (1 + e(1j * t))],
        ]
    )


def _rotation(pauli: np.ndarray) -> Matrix:
    return lambda a: np.cos(a / 2) * np.eye(2) - 1j * np.sin(a / 2) * pauli


_X, _Y, _Z = np.array([[0, 1], [1, 0]]), np.array([[0, -1j], [1j, 0]]), np.diag([1, -1])
_RX, _RY, _RZ = map(_rotation, (_X, _Y, _Z))
_STANDARD: dict[str, Matrix] = {
    "U": _u,
    "u2": lambda a, b: _RZ(a) @ _RY(np.pi / 2) @ _RZ(b),
    "u3": lambda t, a, b: _RZ(a) @ _RY(t) @ _RZ(b),
    "gphase": lambda a: np.array([[cmath.exp(1j * a)]]),
    "p": lambda a: np.diag([1, cmath.exp(1j * a)]),
    "rx": _RX,
    "ry": _RY,
    "rz": _RZ,
    "x": lambda: _X,
    "h": lambda: (_X + _Z) / np.sqrt(2),
    "s": lambda: np.diag([1, 1j]),
    "sx": lambda: 0.5 * np.array([[1 + 1j, 1 - 1j], [1 - 1j, 1 + 1j]]),
    "cx": lambda: scipy.linalg.block_diag(np.eye(2), _X),
    "crx": lambda a: scipy.linalg.block_diag(np.eye(2), _RX(a)),
    "swap": lambda: np.eye(4)[[0, 2, 1, 3]],
    "cu": lambda t, a, b, g: scipy.linalg.block_diag(
        np.eye(2), cmath.exp(1j * (g - t / 2)) * _u(t, a, b)
    ),
}
