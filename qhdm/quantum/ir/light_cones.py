"""Light cones: the gates and weights that can change an observable."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from qhdm.quantum.ir.lowering import Op
from qhdm.quantum.ir.paulis import Pauli, qubits_of


def columns_read(ops: Sequence[Op], gates: Iterable[int], coefficients: np.ndarray) -> list[int]:
    """The inputs or weights that the angles of some gates read.

    Args:
        ops: of a program.
        gates: indices of some of them.
        coefficients: (angles, inputs or weights) of the program.
    """
    rows = [ops[i].angle for i in gates if ops[i].angle >= 0]
    return np.flatnonzero(coefficients[rows].any(axis=0)).tolist()


def light_cone(ops: Sequence[Op], pauli: Pauli) -> list[int]:
    """The gates that can change <P>, as indices in order.

    Backwards from the observable: a gate on none of its qubits is out, and so is one that shares
    only qubits on which both the observable, as conjugated so far, and the gate are diagonal (Z on
    a control).
    """
    support = {q: not pauli[0] >> q & 1 for q in qubits_of(pauli)}
    kept = []
    for index in range(len(ops) - 1, -1, -1):
        op = ops[index]
        flags = op.gate.diagonal
        touched = [(q, flag) for q, flag in zip(op.qubits, flags, strict=True) if q in support]
        if all(support[q] and flag for q, flag in touched):
            continue
        kept.append(index)
        for q, flag in zip(op.qubits, flags, strict=True):
            support[q] = support.get(q, True) and flag
    return kept[::-1]
