"""Rebase circuits to gates that Aer binds correctly: rx, ry, rz and cx, one parameter per angle.

With `parameter_binds`, Aer 0.18 returns wrong values, or too few, for parameterised controlled
gates (crx, cry, crz, cp; qiskit-aer issues 2323, 2391, 2403) without an error. Rotations of one
qubit are bound correctly, and fastest if each angle is a single parameter: Qiskit evaluates an
expression such as a/2 value by value, this module by one matrix product for the whole batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from qiskit import transpile
from qiskit.circuit import Parameter, QuantumCircuit

from qhdm.errors import CircuitError
from qhdm.quantum.filter import Filter
from qhdm.quantum.ir.lowering import lower

#: Without noise, circuits are rebased to these.
BASIS = ["rx", "ry", "rz", "cx"]
#: Parameterised gates that Aer is known to bind correctly (tests/test_aer_execution.py).
BINDABLE = {"rx", "ry", "rz", "rxx", "ryy", "rzz", "rzx", "p", "u1"}


@dataclass(frozen=True, eq=False)
class Bindable:
    """A circuit in which each parameterised gate has a single parameter of its own, a slot.

    Attributes:
        circuit: free in `slots`.
        slots: S parameters.
        matrix, offsets: slot values (R, S) are angles (R, A) @ matrix.T + offsets.
    """

    circuit: QuantumCircuit
    slots: tuple[Parameter, ...]
    matrix: np.ndarray
    offsets: np.ndarray


def rebased(circuit: QuantumCircuit) -> QuantumCircuit:
    """The circuit in rotations and CNOTs."""
    # Level 0 translates and does nothing else: Aer fuses gates by itself.
    return transpile(circuit, basis_gates=BASIS, optimization_level=0)


def make_bindable(circuit: QuantumCircuit, angles: Sequence[Parameter]) -> Bindable:
    """Give each parameterised gate of a rebased circuit its own slot.

    Args:
        circuit: of unitary gates, free in some of `angles`, which it reads affinely.
        angles: A parameters.

    Raises:
        CircuitError: a parameterised gate is not known to be bound correctly.
    """
    program = lower(Filter(circuit.name or "circuit", circuit, (), tuple(angles), ()))
    plain = QuantumCircuit(circuit.num_qubits)
    for op in program.ops:
        if op.angle >= 0 and op.source.name not in BINDABLE:
            raise CircuitError(
                f"{circuit.name}: Aer is not known to bind a parameterised {op.source.name} "
                f"correctly; rewrite it in {', '.join(BASIS)}"
            )
        plain.append(op.source, op.qubits)
    return Bindable(plain, program.parameters, program.from_weights, program.offsets)
