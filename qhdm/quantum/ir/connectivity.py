"""The qubits that gates connect, and circuits cut down to some of their qubits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import rustworkx as rx
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


def connected(
    nodes: int, groups: Iterable[Sequence[int]], *, bridges: bool = True
) -> list[tuple[int, ...]]:
    """Connected components of `nodes` nodes, any two nodes of a group being connected.

    Without `bridges`, edges that alone hold two parts together do not count.
    """
    graph: rx.PyGraph = rx.PyGraph(multigraph=False)
    graph.add_nodes_from(range(nodes))
    for group in groups:
        for i, one in enumerate(group):
            for other in group[:i]:
                graph.add_edge(one, other, None)
    if not bridges:
        for one, other in map(tuple[int, ...], rx.bridges(graph)):  # the stub says: one element
            graph.remove_edge(one, other)
    return sorted(tuple(sorted(part)) for part in rx.connected_components(graph))


def on_qubits(circuit: QuantumCircuit, qubits: Sequence[int]) -> QuantumCircuit:
    """The gates on some qubits alone, `qubits[i]` becoming qubit i; no measurements or barriers."""
    local = {circuit.qubits[qubit]: i for i, qubit in enumerate(qubits)}
    part = QuantumCircuit(len(qubits), name=circuit.name)
    for entry in circuit.data:
        if entry.operation.name not in ("barrier", "measure") and local.keys() >= {*entry.qubits}:
            part.append(entry.operation, [local[qubit] for qubit in entry.qubits])
    return part


@dataclass(frozen=True, eq=False)
class Compact:
    """A transpiled circuit on the qubits that it uses, numbered from 0.

    Attributes:
        circuit: gates and delays, without measurements.
        ends: the qubits that hold the measured qubits at the end.
        physical: the device's qubits on which it was laid out.
    """

    circuit: QuantumCircuit
    ends: tuple[int, ...]
    physical: tuple[int, ...]


def compact(laid_out: QuantumCircuit) -> Compact:
    """Remove the unused qubits of a transpiled circuit whose clbit i reads qubit i."""
    index = {qubit: i for i, qubit in enumerate(laid_out.qubits)}
    used: set[int] = set()
    ends = [0] * laid_out.num_clbits
    for entry in laid_out.data:
        if entry.operation.name != "barrier":
            used.update(index[qubit] for qubit in entry.qubits)
        if entry.operation.name == "measure":
            ends[laid_out.find_bit(entry.clbits[0]).index] = index[entry.qubits[0]]
    physical = tuple(sorted(used))
    local_ends = tuple(physical.index(end) for end in ends)
    return Compact(on_qubits(laid_out, physical), local_ends, physical)
