"""What the gates of a circuit connect: pure analysis, without simulation."""

from __future__ import annotations

from collections.abc import Iterable

from qiskit.circuit import QuantumCircuit


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


def connected(nodes: int, edges: Iterable[Iterable[int]]) -> list[tuple[int, ...]]:
    """Connected components of the hypergraph on `nodes` nodes (union-find)."""
    parent = list(range(nodes))

    def root(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for edge in edges:
        joined = list(edge)
        for other in joined[1:]:
            parent[root(other)] = root(joined[0])
    groups: dict[int, list[int]] = {}
    for node in range(nodes):
        groups.setdefault(root(node), []).append(node)
    return [tuple(group) for group in groups.values()]
