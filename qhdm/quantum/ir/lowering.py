"""A Qiskit circuit lowered to what a simulator needs: matrices, qubits and angles.

Every one-parameter gate of Qiskit's library is trigonometric in its angle,

    G(a) = K + cos(s a) A + sin(s a) B,      s = 1/2 (rotations) or 1 (phases),

so that three constant matrices describe it (controlled rotations have K = |0><0| (x) I). They are
read off the gate's own matrix; gates of several parameters are taken apart by their definitions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from qiskit.circuit import Barrier, Delay, Gate, Parameter, ParameterExpression, QuantumCircuit
from qiskit.circuit.library import (
    GlobalPhaseGate,
    IGate,
    PhaseGate,
    RYGate,
    UGate,
    get_standard_gate_name_mapping,
)
from qiskit.exceptions import QiskitError
from qiskit.quantum_info import Operator

from qhdm.errors import CircuitError
from qhdm.quantum.filter import Filter
from qhdm.quantum.unroll import MATRIX_QUBITS

#: Instructions that change no expectation value.
IGNORED = (Barrier, Delay, GlobalPhaseGate, IGate)
_STANDARD = {type(gate) for gate in get_standard_gate_name_mapping().values()}


@dataclass(frozen=True, eq=False)
class Trig:
    """The matrices of G(a) = K + cos(s a) A + sin(s a) B; `scale` is s."""

    K: np.ndarray
    A: np.ndarray
    B: np.ndarray
    scale: float

    def at(self, angle: float) -> np.ndarray:
        """The gate's matrix at `angle` (radians)."""
        phase = self.scale * angle
        return self.K + math.cos(phase) * self.A + math.sin(phase) * self.B

    @cached_property
    def diagonal(self) -> tuple[bool, ...]:
        """For each qubit, whether the gate is block-diagonal on it, as on a control."""
        size = len(self.K)
        flags = []
        for position in range(size.bit_length() - 1):
            bits = np.arange(size) >> position & 1
            off = bits[:, None] != bits[None, :]
            flags.append(all(np.allclose(part[off], 0) for part in (self.K, self.A, self.B)))
        return tuple(flags)


@dataclass(frozen=True)
class Op:
    """One gate: `qubits[0]` is the least significant bit of the matrix index (Qiskit's order).

    Attributes:
        qubits: where it acts.
        gate: its trigonometric form, shared by all gates of the kind in a program; a constant gate
            has A = B = 0.
        angle: row of the program's angles; -1 for a constant gate.
        source: the gate as Qiskit has it; one with an angle reads a parameter of its own.
    """

    qubits: tuple[int, ...]
    gate: Trig
    angle: int
    source: Gate = field(compare=False, repr=False)


@dataclass(frozen=True, eq=False)
class Program:
    """A filter's circuit as operations on n qubits.

    The angles are affine in inputs x (n_in,) and weights w (P,), in radians:
    `angles = from_inputs @ x + from_weights @ w + offsets`.

    Attributes:
        qubits: n.
        ops: gates in order.
        parameters: of their sources, angle by angle.
        from_inputs: (angles, n_in).
        from_weights: (angles, P).
        offsets: (angles,).
    """

    qubits: int
    ops: tuple[Op, ...]
    parameters: tuple[Parameter, ...]
    from_inputs: np.ndarray
    from_weights: np.ndarray
    offsets: np.ndarray

    def phases(self, ops: Sequence[Op], rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Phases of gates as affine functions of the weights, (gates G, P) and (gates G,).

        Args:
            ops: gates on local angles; constant ones have the phase 0.
            rows: (G, local angles), which angles these are in each of G equal components.
        """
        weights = np.pad(self.from_weights, ((0, 1), (0, 0)))
        offsets = np.pad(self.offsets, (0, 1))
        padded = np.pad(rows, ((0, 0), (0, 1)), constant_values=len(self.offsets))
        row = padded[:, [op.angle for op in ops]].T.reshape(-1)
        scale = np.repeat([op.gate.scale for op in ops], len(rows))
        return scale[:, None] * weights[row], scale * offsets[row]


def lower(circuit_filter: Filter) -> Program:
    """Lower the circuit of a filter.

    Raises:
        CircuitError: a gate is not unitary, or an angle is not an affine real expression of the
            filter's inputs and weights.
    """
    lowering = _Lowering(circuit_filter)
    lowering.circuit(circuit_filter.circuit, range(circuit_filter.circuit.num_qubits))
    count, n = len(lowering.rows), len(circuit_filter.inputs)
    matrix = np.array(lowering.rows).reshape(count, len(circuit_filter.parameters))
    return Program(
        circuit_filter.circuit.num_qubits,
        tuple(lowering.ops),
        tuple(lowering.parameters),
        matrix[:, :n],
        matrix[:, n:],
        np.array(lowering.offsets, dtype=float),
    )


class _Lowering:
    """Collects the operations of a filter's circuit, and the rows of their angles."""

    def __init__(self, circuit_filter: Filter) -> None:
        self.name = circuit_filter.name
        self.ops: list[Op] = []
        self.parameters: list[Parameter] = []
        self.rows: list[np.ndarray] = []
        self.offsets: list[float] = []
        self._columns = {p: i for i, p in enumerate(circuit_filter.parameters)}
        self._constants: dict[tuple[object, ...], Trig] = {}
        self._forms: dict[tuple[object, ...], Trig | None] = {}

    def circuit(self, circuit: QuantumCircuit, qubits: Sequence[int]) -> None:
        """Add the gates of a circuit whose qubit i is `qubits[i]`."""
        index = dict(zip(circuit.qubits, qubits, strict=True))
        for entry in circuit.data:
            gate, places = entry.operation, tuple(index[q] for q in entry.qubits)
            if isinstance(gate, IGNORED):
                continue
            if not isinstance(gate, Gate):
                raise CircuitError(
                    f"{self.name}: {gate.name} on qubits {list(places)} is not a unitary gate; "
                    "filters hold gates alone"
                )
            self._gate(gate, places)

    def _gate(self, gate: Gate, qubits: tuple[int, ...]) -> None:
        free = [p for p in gate.params if isinstance(p, ParameterExpression) and p.parameters]
        if not free and (gate.num_qubits <= MATRIX_QUBITS or gate.definition is None):
            self.ops.append(Op(qubits, self._constant(gate), -1, gate))
        elif free and len(gate.params) == 1 and (form := self._form(gate)):
            row, offset = _affine(self.name, free[0], self._columns)
            angle = len(self.rows)
            own = Parameter(f"a{angle}")
            self.ops.append(Op(qubits, form, angle, with_angle(gate, own)))
            self.parameters.append(own)
            self.rows.append(row)
            self.offsets.append(offset)
        elif isinstance(gate, UGate):
            # U is a basis gate without a definition: U(t, p, l) = P(p) RY(t) P(l).
            theta, phi, lam = gate.params
            for part in (PhaseGate(lam), RYGate(theta), PhaseGate(phi)):
                self._gate(part, qubits)
        elif gate.definition is not None:
            self.circuit(gate.definition, qubits)
        else:
            raise CircuitError(
                f"{self.name}: gate {gate.name} has free parameters but neither a trigonometric "
                "matrix nor a definition; rewrite it in standard gates"
            )

    def _constant(self, gate: Gate) -> Trig:
        try:
            matrix = np.asarray(Operator(gate).data)
        except QiskitError:
            raise CircuitError(
                f"{self.name}: gate {gate.name} has neither a matrix nor a definition"
            ) from None
        if not np.isfinite(matrix).all():
            raise CircuitError(f"{self.name}: an angle of {gate.name} is not a finite number")
        zero = np.zeros_like(matrix)
        key = (matrix.shape, matrix.tobytes())
        return self._constants.setdefault(key, Trig(matrix, zero, zero, 1.0))

    def _form(self, gate: Gate) -> Trig | None:
        # Only gates of the library are known by their type; controlled ones may be open.
        if type(gate) not in _STANDARD:
            return None
        key = (type(gate), getattr(gate, "ctrl_state", None))
        if key not in self._forms:
            self._forms[key] = _trigonometric(gate)
        return self._forms[key]


def with_angle(gate: Gate, angle: float | Parameter) -> Gate:
    """A one-parameter gate with another angle."""
    changed = gate.to_mutable()
    changed.params = [angle]
    return changed


def _trigonometric(gate: Gate) -> Trig | None:
    """The trigonometric form of a one-parameter gate, or None if its matrix has none."""

    def at(angle: float) -> np.ndarray:
        return np.asarray(Operator(with_angle(gate, angle)).data)

    for scale in (0.5, 1.0):
        zero, quarter, half = at(0.0), at(math.pi / (2 * scale)), at(math.pi / scale)
        K = (zero + half) / 2
        trig = Trig(K, zero - K, quarter - K, scale)
        if all(np.allclose(at(a), trig.at(a), atol=1e-12) for a in (0.3, 2.9, -1.7)):
            return trig
    return None


def _affine(
    name: str, expression: ParameterExpression, columns: dict[Parameter, int]
) -> tuple[np.ndarray, float]:
    """Coefficients over `columns` and offset of an affine expression."""
    row = np.zeros(len(columns))
    for parameter in expression.parameters:
        if parameter not in columns:
            raise CircuitError(
                f"{name}: parameter {parameter.name} is neither an input nor a weight"
            )
        slope = expression.gradient(parameter)
        if isinstance(slope, ParameterExpression) and slope.parameters:
            raise CircuitError(f"{name}: angle {expression} is not affine in {parameter.name}")
        if complex(slope).imag:
            raise CircuitError(f"{name}: angle {expression} is not real")
        row[columns[parameter]] = complex(slope).real
    offset = complex(expression.bind(dict.fromkeys(expression.parameters, 0.0)))
    if not (np.isfinite(row).all() and math.isfinite(offset.real)):
        raise CircuitError(f"{name}: angle {expression} is not finite")
    return row, offset.real
