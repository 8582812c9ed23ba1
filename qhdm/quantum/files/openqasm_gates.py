"""Gates of OpenQASM 3 with affine angles, and what the modifiers make of them.

Calls are written out by the rules of the specification,

    ctrl @ (b a) = (ctrl @ b)(ctrl @ a)    inv @ (b a) = (inv @ a)(inv @ b)    pow(k) @ a = a ... a

until only gates of the language and of stdgates.inc are left, with controls and inverses of these.
Global phases are kept: a control makes them visible.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from qiskit.circuit import Gate, Parameter, QuantumCircuit
from qiskit.circuit.library import (
    CXGate,
    GlobalPhaseGate,
    PhaseGate,
    RZGate,
    RZZGate,
    UnitaryGate,
    get_standard_gate_name_mapping,
)

from qhdm.quantum.files.openqasm_angles import Angle, parameter
from qhdm.quantum.unroll import MATRIX_QUBITS


@dataclass(frozen=True)
class PlacedGate:
    """A gate of Qiskit on numbered qubits, or a global phase e^(i angle).

    Attributes:
        kind: makes the gate of its angles.
        angles: of the gate.
        qubits: on which it acts.
        controls: each with whether it is closed (`ctrl`) or open (`negctrl`), outermost first.
        inverse: whether it is inverted.
    """

    kind: Callable[..., Gate]
    angles: tuple[Angle, ...]
    qubits: tuple[int, ...]
    controls: tuple[tuple[int, bool], ...] = ()
    inverse: bool = False

    @property
    def is_phase(self) -> bool:
        """Whether it is a global phase."""
        return self.kind is GlobalPhaseGate

    @property
    def cost(self) -> int:
        """What making it costs, about: a controlled gate is synthesised gate by gate."""
        return 1 + 8 * len(self.controls) ** 2 + sum(len(angle.terms) for angle in self.angles)

    @property
    def operands(self) -> tuple[int, ...]:
        """Controls and qubits, in Qiskit's order."""
        return (*(qubit for qubit, _ in self.controls), *self.qubits)

    def on(self, qubits: Sequence[int], values: Mapping[str, Angle] | None = None) -> PlacedGate:
        """The gate with `qubits[i]` in place of qubit i, and angles in place of parameters."""
        return replace(
            self,
            angles=self.angles if values is None else tuple(a.at(values) for a in self.angles),
            qubits=tuple(qubits[q] for q in self.qubits),
            controls=tuple((qubits[q], closed) for q, closed in self.controls),
        )

    def operation(self, parameters: Mapping[str, Parameter]) -> Gate:
        """Qiskit's gate, on `operands`."""
        gate = self.kind(*(angle.expression(parameters) for angle in self.angles))
        if self.inverse:
            gate = gate.inverse()
        if not self.controls:
            return gate
        count = len(self.controls)
        state = sum(closed << i for i, (_, closed) in enumerate(self.controls))
        if isinstance(gate, UnitaryGate) and len(self.operands) <= MATRIX_QUBITS:
            # Exact; Qiskit would synthesise it, at times with what is not a gate.
            rows = state + (np.arange(2 ** len(self.qubits)) << count)
            matrix = np.eye(2 ** len(self.operands), dtype=complex)
            matrix[np.ix_(rows, rows)] = gate.to_matrix()
            return UnitaryGate(matrix)
        return gate.control(count, ctrl_state=state, annotated=False)


def _phase(angle: Angle) -> PlacedGate:
    return PlacedGate(GlobalPhaseGate, (angle,), ())


def inverted(gates: Sequence[PlacedGate]) -> list[PlacedGate]:
    """inv @ gates."""
    return [
        _phase(gate.angles[0] * -1) if gate.is_phase else replace(gate, inverse=not gate.inverse)
        for gate in reversed(gates)
    ]


def controlled(gates: Sequence[PlacedGate], control: int, *, closed: bool) -> list[PlacedGate]:
    """ctrl @ gates, or negctrl @ gates where the control is not closed."""
    result = []
    for gate in gates:
        if not gate.is_phase:
            result.append(replace(gate, controls=((control, closed), *gate.controls)))
            continue
        (angle,) = gate.angles
        result.append(PlacedGate(PhaseGate, (angle if closed else angle * -1,), (control,)))
        if not closed:
            result.append(gate)
    return result


def root(gates: Sequence[PlacedGate], exponent: float, qubits: Sequence[int]) -> PlacedGate:
    """pow(exponent) @ gates, which act on some of `qubits` and have no free parameters.

    The power is the principal value of Qiskit's `Gate.power`.
    """
    circuit = QuantumCircuit(len(qubits))
    index = {qubit: i for i, qubit in enumerate(qubits)}
    for gate in gates:
        circuit.append(gate.operation({}), [index[qubit] for qubit in gate.operands])
    return PlacedGate(circuit.to_gate().power(exponent).copy, (), tuple(qubits))


def joined(gates: Sequence[PlacedGate]) -> list[PlacedGate]:
    """`gates`, with an RZZ in place of each CX, RZ, CX.

    stdgates.inc has no RZZ, so Qiskit defines it in this way when it writes OpenQASM. Only the RZZ
    is seen to commute with Z; the CX would widen the light cones of outputs.
    """
    result: list[PlacedGate] = []
    for gate in gates:
        result.append(gate)
        if len(result) < 3:
            continue
        first, turn, last = result[-3:]
        if first == last == PlacedGate(CXGate, (), last.qubits) and turn == PlacedGate(
            RZGate, turn.angles, last.qubits[1:]
        ):
            result[-3:] = [PlacedGate(RZZGate, turn.angles, last.qubits)]
    return result


@dataclass(frozen=True)
class Definition:
    """A gate of a program, written out.

    Attributes:
        parameters: names of its angles.
        qubits: number of qubits on which it acts.
        gates: on qubits 0, 1, ..., with angles in the parameters.
    """

    parameters: tuple[str, ...]
    qubits: int
    gates: Sequence[PlacedGate]

    def call(self, angles: Sequence[Angle], qubits: Sequence[int]) -> list[PlacedGate]:
        """Its gates at angles, on qubits."""
        values = dict(zip(self.parameters, angles, strict=True))
        return [gate.on(qubits, values) for gate in self.gates]


def _standard(name: str, *phases: float) -> Definition:
    """A gate of Qiskit, times e^(i sum of phase x angle)."""
    gate = get_standard_gate_name_mapping()[name]
    names = tuple(f"a{i}" for i in range(len(gate.params)))
    angles = tuple(map(parameter, names))
    placed = PlacedGate(gate.base_class, angles, tuple(range(gate.num_qubits)))
    factors = [_phase(angle * phase) for angle, phase in zip(angles, phases, strict=False) if phase]
    return Definition(names, gate.num_qubits, [*factors, placed])


GPHASE = Definition(("a",), 0, [_phase(parameter("a"))])
#: The specification's is e^(i theta/2) times Qiskit's.
U = _standard("u", 0.5)
_U3 = _standard("u", 0, -0.5, -0.5)  # Rz(phi) Ry(theta) Rz(lam)
_U2 = [Angle(math.pi / 2), parameter("phi"), parameter("lam")]
_SAME = (
    *("p", "x", "y", "z", "h", "s", "sdg", "t", "tdg", "sx", "rx", "ry", "rz", "cx", "cy", "cz"),
    *("cp", "crx", "cry", "crz", "ch", "swap", "ccx", "cswap", "cu", "id"),
)
_RENAMED = {"CX": "cx", "phase": "p", "cphase": "cp", "u1": "p"}
#: The gates of stdgates.inc, with the phases of the specification.
STDGATES = {
    **{name: _standard(_RENAMED.get(name, name)) for name in (*_SAME, *_RENAMED)},
    "u2": Definition(("phi", "lam"), 1, _U3.call(_U2, [0])),
    "u3": _U3,
}
