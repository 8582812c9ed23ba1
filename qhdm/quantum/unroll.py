"""Rewriting circuits in gates of Qiskit's library only.

Transpilers, Aer, exporters and Qiskit's own `control` look gates up by name: a user's gate that has
a name they know (`rxx`, `r`, `snapshot`, `barrier`) is silently replaced by theirs. Once its
definition is written out, no such gate is left.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from qiskit.circuit import Barrier, Delay, Gate, Instruction, QuantumCircuit
from qiskit.circuit.library import PauliEvolutionGate, UnitaryGate
from qiskit.exceptions import QiskitError
from qiskit.quantum_info import Operator, SparsePauliOp

from qhdm.errors import CircuitError

#: The package of the gates that Qiskit, Aer and exporters know by name.
STANDARD_GATES = "qiskit.circuit.library.standard_gates"
#: Gates without parameters on up to this many qubits become one matrix; others are decomposed.
MATRIX_QUBITS = 5
#: Nested definitions.
MAX_DEPTH = 100


def is_standard(operation: Instruction) -> bool:
    """Whether the type of a gate, not just its name, is of Qiskit's library."""
    if isinstance(operation, UnitaryGate):
        return operation.num_qubits <= MATRIX_QUBITS
    return operation.base_class.__module__.startswith(STANDARD_GATES)


def unroll(circuit: QuantumCircuit, *, most: int | None = None) -> QuantumCircuit:
    """Write out every gate that is not of Qiskit's library.

    Labels are dropped, too: Aer looks up the noise of a gate by its label. Instructions that are
    not gates stay as they are.

    Args:
        circuit: any.
        most: bound on the number of gates.

    Returns:
        An equal circuit; the same object where there is nothing to do.

    Raises:
        CircuitError: more than `most` gates, definitions nested too deeply, or a gate whose
            definition only approximates it.
    """
    plain = all(_stays(entry.operation) for entry in circuit.data)
    if not plain:
        written = circuit.copy_empty_like()
        _Writer(written, circuit.name, most).write(circuit, tuple(range(circuit.num_qubits)), 0)
        # Global phases of definitions change nothing that is measured.
        circuit = written
    if most is not None and len(circuit.data) > most:
        raise _too_many(circuit.name, most)
    return circuit


def _stays(operation: Instruction) -> bool:
    gate = isinstance(operation, Gate)
    return not gate or (is_standard(operation) and operation.label is None)


def _too_many(name: str, most: int) -> CircuitError:
    return CircuitError(f"{name}: more than {most:,} gates; at most so many are read")


@dataclass
class _Writer:
    """Appends a circuit, its definitions written out, to `target`."""

    target: QuantumCircuit
    name: str
    most: int | None

    def write(self, circuit: QuantumCircuit, wires: tuple[int, ...], depth: int) -> None:
        if depth > MAX_DEPTH:
            raise CircuitError(
                f"{self.name}: more than {MAX_DEPTH} definitions within definitions; write some out"
            )
        for entry in circuit.data:
            qubits = tuple(wires[circuit.find_bit(q).index] for q in entry.qubits)
            operation = entry.operation
            if depth and not isinstance(operation, Gate | Barrier | Delay):
                raise CircuitError(
                    f"{self.name}: {operation.name} within a definition is not a unitary gate; "
                    "filters hold only gates"
                )
            if _stays(operation):
                self._append(operation, qubits, entry.clbits if not depth else ())
            elif is_standard(operation):
                unlabelled = operation.to_mutable()
                unlabelled.label = None
                self._append(unlabelled, qubits)
            elif isinstance(operation, PauliEvolutionGate) and not _commutes(operation):
                raise CircuitError(
                    f"{self.name}: a PauliEvolutionGate is not equal to the gates it is run as "
                    "(Trotter error); choose them: circuit.decompose()"
                )
            elif operation.definition is not None:
                self.write(operation.definition, qubits, depth + 1)
            else:
                self._append(_matrix(operation), qubits)

    def _append(self, operation: Instruction, qubits: tuple[int, ...], clbits: object = ()) -> None:
        if self.most is not None and len(self.target.data) >= self.most:
            raise _too_many(self.name, self.most)
        self.target.append(operation, qubits, clbits)


def _commutes(evolution: PauliEvolutionGate) -> bool:
    """Whether all terms commute: the product of their evolutions is then the evolution."""
    parts = evolution.operator if isinstance(evolution.operator, list) else [evolution.operator]
    sums = [
        part if isinstance(part, SparsePauliOp) else SparsePauliOp.from_sparse_observable(part)
        for part in parts
    ]
    return len(SparsePauliOp.sum(sums).group_commuting()) == 1


def _matrix(gate: Gate) -> Gate:
    """A gate without a definition as its matrix, or itself if it has none."""
    if gate.num_qubits > MATRIX_QUBITS:
        return gate
    try:
        return UnitaryGate(np.asarray(Operator(gate).data))
    except QiskitError:
        return gate
