"""The compile pass: components of a bound circuit, with fewer two-qubit gates."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
from qiskit.circuit import Parameter, ParameterExpression, QuantumCircuit
from qiskit.circuit.library import RXGate
from qiskit.quantum_info import Operator
from qiskit.transpiler import generate_preset_pass_manager

from qhdm.quantum.compile.search import EXACT_TRIES, Fit, exact_fit, fit, gates_needed
from qhdm.quantum.ir.connectivity import components, on_qubits

#: Larger components are left as they are.
MOST_QUBITS = 3
#: Means over these angles of polynomials of degree 2 in sin x and cos x are those over all angles.
THIRDS = 2 * np.pi / 3 * np.arange(3)


@dataclass(frozen=True, eq=False)
class Candidate:
    """A circuit in the place of a component.

    Attributes:
        circuit: of CZ or RZZ and rotations, free in the component's inputs.
        outputs: the qubit on which each <Z_i> is measured.
        bias: root of the mean squared error of <Z> without noise, over uniform inputs; below 1e-9
            of an exact one.
    """

    circuit: QuantumCircuit
    outputs: tuple[int, ...]
    bias: float

    @classmethod
    def of(cls, best: Fit, form: InputForm) -> Candidate:
        """The circuit of a fit, with the inputs of a component."""
        bias = best.error / math.sqrt(len(form.inputs))
        return cls(best.circuit(form.inputs), best.line.outputs, bias)


@dataclass(frozen=True, eq=False)
class InputForm:
    """A component as RX(inputs[q]) on each qubit q and a unitary after them."""

    inputs: tuple[Parameter, ...]
    unitary: np.ndarray

    @classmethod
    def of(cls, circuit: QuantumCircuit) -> InputForm | None:
        """The form of a component free in its inputs alone; None if it has another form."""
        if circuit.num_qubits > MOST_QUBITS:
            return None
        inputs: dict[int, Parameter] = {}
        rest, touched = circuit.copy_empty_like(), set()
        for entry in circuit.data:
            qubits = [circuit.find_bit(qubit).index for qubit in entry.qubits]
            if any(isinstance(p, ParameterExpression) for p in entry.operation.params):
                (angle, *_), (qubit, *_) = entry.operation.params, qubits
                if not (isinstance(entry.operation, RXGate) and isinstance(angle, Parameter)):
                    return None
                if qubit in touched or angle in inputs.values():
                    return None
                inputs[qubit] = angle
            else:
                rest.append(entry)
            touched.update(qubits)
        if len(inputs) < circuit.num_qubits:
            return None
        return cls(tuple(inputs[q] for q in range(circuit.num_qubits)), Operator(rest).data)

    @property
    def grid(self) -> np.ndarray:
        """Inputs (3^n, n). <Z> has degree 1 in each, so their mean squares are those of all."""
        return np.array(list(itertools.product(THIRDS, repeat=len(self.inputs))))

    def values(self) -> np.ndarray:
        """<Z_i> at the grid, (3^n, n)."""
        states = np.ones((len(self.grid), 1), dtype=complex)
        for x in self.grid.T / 2:
            qubit = np.stack([np.cos(x), -1j * np.sin(x)], axis=1)
            states = (qubit[:, :, None] * states[:, None]).reshape(len(states), -1)
        chances = np.abs(states @ self.unitary.T) ** 2
        bits = np.arange(chances.shape[1])[:, None] >> np.arange(len(self.inputs)) & 1
        values: np.ndarray = chances @ (1 - 2 * bits)
        return values


def exact(form: InputForm, *, most: int, fractional: bool = False) -> Candidate | None:
    """The exact circuit with the fewest two-qubit gates that is found.

    Args:
        form: the component.
        most: two-qubit gates; if exact circuits take more, the answer is None.
        fractional: in RZZ of any angle instead of CZ.
    """
    best = exact_fit(form.unitary, most=most, fractional=fractional)
    return None if best is None else Candidate.of(best, form)


def approximate(form: InputForm, *, gates: int, fractional: bool = False) -> Candidate:
    """The best circuit of a number of two-qubit gates that is found."""
    enough = gates >= gates_needed(len(form.inputs), fractional=fractional)
    tries = EXACT_TRIES if enough else 1
    return Candidate.of(fit(form.unitary, gates, tries=tries, fractional=fractional), form)


def compiled(circuit: QuantumCircuit) -> tuple[QuantumCircuit, tuple[int, ...]]:
    """A circuit whose components are replaced by exact ones of fewer gates where that is possible.

    Args:
        circuit: free in its inputs; of gates alone.

    Returns:
        The circuit, and the qubit on which each <Z_i> is measured.
    """
    manager = generate_preset_pass_manager(3, basis_gates=["rz", "sx", "cz"], seed_transpiler=0)
    whole, outputs = circuit.copy_empty_like(), np.arange(circuit.num_qubits)
    for qubits in components(circuit):
        part = on_qubits(circuit, qubits)
        form = InputForm.of(part)
        most = manager.run(part).num_nonlocal_gates() - 1
        shorter = None if form is None else exact(form, most=most)
        if shorter is not None:
            part, outputs[list(qubits)] = shorter.circuit, np.take(qubits, shorter.outputs)
        whole.compose(part, list(qubits), inplace=True)
    return whole, tuple(outputs.tolist())
