"""What the gates of a circuit connect and what its observables can see: pure analysis."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import rustworkx as rx
from qiskit.circuit import QuantumCircuit
from qiskit.quantum_info import SparsePauliOp

from qhdm.quantum.ir.lowering import Op, Program

#: A Pauli string as bit masks over qubits (x, z); Y has both bits.
Pauli = tuple[int, int]


def components(circuit: QuantumCircuit) -> list[tuple[int, ...]]:
    """The sets of qubits that gates connect, each sorted, ordered by their first qubit.

    Barriers connect nothing. Different components never become entangled: each can be simulated,
    or run on hardware, apart.

    Example:
        >>> components(build_filter("fqconv").circuit)
        [(0, 4, 8), (1, 5, 9), (2, 6, 10), (3, 7, 11)]
    """
    index = {qubit: i for i, qubit in enumerate(circuit.qubits)}
    return connected(
        circuit.num_qubits,
        (
            [index[qubit] for qubit in entry.qubits]
            for entry in circuit.data
            if entry.operation.name != "barrier"
        ),
    )


def connected(nodes: int, groups: Iterable[Sequence[int]]) -> list[tuple[int, ...]]:
    """Connected components of `nodes` nodes, any two nodes of a group being connected."""
    parts = rx.connected_components(interaction_graph(nodes, groups))
    return sorted(tuple(sorted(part)) for part in parts)


def interaction_graph(nodes: int, groups: Iterable[Sequence[int]]) -> rx.PyGraph:
    """The simple graph with an edge between any two nodes of a group."""
    graph: rx.PyGraph = rx.PyGraph(multigraph=False)
    graph.add_nodes_from(range(nodes))
    for group in groups:
        for i, one in enumerate(group):
            for other in group[:i]:
                graph.add_edge(one, other, None)
    return graph


def live_weights(program: Program, paulis: Iterable[Pauli]) -> list[int]:
    """The weights that can change any of the observables, as indices."""
    seen = set().union(*(light_cone(program.ops, pauli) for pauli in paulis))
    angles = [program.ops[i].angle for i in seen if program.ops[i].angle >= 0]
    return np.flatnonzero(program.from_weights[angles].any(axis=0)).tolist()


def light_cone(ops: Sequence[Op], pauli: Pauli) -> list[int]:
    """The gates that can change <P>, as indices in order.

    Backwards from the observable: a gate on none of its qubits is out, and so is one that shares
    only qubits on which both the observable, as conjugated so far, and the gate are diagonal (Z on
    a control).
    """
    x, z = pauli
    support = {q: not x >> q & 1 for q in range((x | z).bit_length()) if (x | z) >> q & 1}
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


def masks(observable: SparsePauliOp) -> Pauli:
    """Where any string of an observable is X or Y, and where Z or Y."""
    x = z = 0
    for string, qubits, _ in observable.to_sparse_list():
        for letter, qubit in zip(string, qubits, strict=True):
            x |= (letter in "XY") << qubit
            z |= (letter in "YZ") << qubit
    return x, z
