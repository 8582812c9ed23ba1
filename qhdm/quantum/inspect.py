"""What a filter is, in plain text: its structure, and how the exact engine simulates it."""

from __future__ import annotations

from collections import Counter

from qhdm.quantum.filter import Filter
from qhdm.quantum.plan import Group, make_plan
from qhdm.quantum.program import lower
from qhdm.quantum.structure import components, light_cone, live_weights
from qhdm.quantum.tree import Network


def describe(filter: Filter) -> str:
    """Gates, live weights, light cones, components, and the cost of exact simulation.

    Raises:
        CircuitError: the filter cannot be simulated.
    """
    program = lower(filter)
    paulis = [_masks(filter, m) for m in range(len(filter.observables))]
    cones = [light_cone(program.ops, pauli) for pauli in paulis]
    reach = [len({q for i in cone for q in program.ops[i].qubits}) for cone in cones]
    gates = Counter(entry.operation.name for entry in filter.circuit.data)
    two = sum(len(op.qubits) > 1 for op in program.ops)
    live = live_weights(program, paulis)
    parts = components(filter.circuit)
    lines = [
        f"{filter.name}: {filter.circuit.num_qubits} qubits, depth {filter.circuit.depth()}, "
        f"{len(program.ops)} gates of which {two} on two qubits or more "
        f"({', '.join(f'{name} {count}' for name, count in gates.most_common())})",
        f"inputs {len(filter.inputs)}, outputs {len(filter.observables)}, "
        f"weights {len(filter.weights)} of which {len(live)} live",
        f"light cones (gates/qubits per output): "
        f"{', '.join(f'{len(c)}/{r}' for c, r in zip(cones, reach, strict=True))}",
        f"connected components: {len(parts)}: {', '.join(map(_qubits, parts))}",
        "",
    ]
    if len(parts) > 1:
        largest = max(map(len, parts))
        lines[-1:] = [
            f"so this is not one {filter.circuit.num_qubits}-qubit circuit, but {len(parts)} "
            f"independent ones of at most {largest} qubits",
            "",
        ]
    lines.append("exact simulation, real multiply-adds per sample in a forward pass:")
    chosen = make_plan(filter)
    states = make_plan(filter, "statevector")
    for group, state in zip(chosen.groups, states.groups, strict=True):
        lines += _method(group, state)
    total = sum(group.cost for group in chosen.groups)
    full = sum(group.cost for group in states.groups)
    lines.append(f"  in all {total:,} (as state vectors {full:,})")
    return "\n".join(lines)


def _masks(filter: Filter, m: int) -> tuple[int, int]:
    """Where any string of an observable is X or Y, and where Z or Y."""
    x = z = 0
    for string, qubits, _ in filter.observables[m].to_sparse_list():
        for letter, qubit in zip(string, qubits, strict=True):
            x |= (letter in "XY") << qubit
            z |= (letter in "YZ") << qubit
    return x, z


def _method(group: Group, state: Group) -> list[str]:
    copies = f"{len(group.angles)} x " if len(group.angles) > 1 else ""
    head = f"  {copies}{group.size} qubits: "
    if group.network is None:
        return [f"{head}state vector, {len(group.units)} fused unitaries: {group.cost:,}"]
    return [
        f"{head}network of {len(group.network.blocks)} blocks: {group.cost:,} "
        f"(as a state vector {state.cost:,})",
        *_blocks(group.network),
    ]


def _blocks(network: Network) -> list[str]:
    lines = []
    for index, block in enumerate(network.blocks):
        bonds = Counter(a + b - index for a, b in network.ends if index in (a, b))
        text = ", ".join(f"{count} cuts to block {other}" for other, count in sorted(bonds.items()))
        count = block.operators.shape[1]
        lines.append(
            f"    block {index}: qubits {_qubits(block.qubits)}, {count} operators"
            + (f", {text}" if text else "")
        )
    late = [measured for measured in network.measured if measured.late]
    if late:
        lines.append(
            f"    {len(late)} outputs conjugated by gates at the end that no other output sees"
        )
    return lines


def _qubits(qubits: tuple[int, ...]) -> str:
    return "{" + ", ".join(map(str, qubits)) + "}"
