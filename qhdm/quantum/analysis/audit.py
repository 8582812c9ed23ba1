"""Structural analysis of a filter: live weights, light cones, components, cost of simulation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from qiskit.providers import BackendV2

from qhdm.quantum.analysis.transpile import to_isa
from qhdm.quantum.exact.plan import Plan, make_plan
from qhdm.quantum.filter import Filter
from qhdm.quantum.ir.connectivity import components, on_qubits
from qhdm.quantum.ir.light_cones import columns_read, light_cone
from qhdm.quantum.ir.lowering import Program
from qhdm.quantum.ir.paulis import union_of

_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


@dataclass(frozen=True, eq=False)
class Audit:
    """Structure and simulation cost of a filter.

    Attributes:
        filter: the circuit and its observables.
        plan: how the exact engine simulates it.
        statevector: how it would as state vectors alone.
        cones: for each output, the gates (indices into `program.ops`) that can change it.
        components: the sets of qubits that gates connect.
    """

    filter: Filter
    plan: Plan
    statevector: Plan
    cones: tuple[tuple[int, ...], ...]
    components: tuple[tuple[int, ...], ...]

    @property
    def program(self) -> Program:
        """The lowered circuit."""
        return self.plan.program

    @cached_property
    def gates(self) -> Counter[str]:
        """Gates by name, as the circuit has them."""
        return Counter(entry.operation.name for entry in self.filter.circuit.data)

    @property
    def wide_gates(self) -> int:
        """Gates on two qubits or more."""
        return sum(len(op.qubits) > 1 for op in self.program.ops)

    @property
    def cost(self) -> int:
        """Real multiply-adds of exact simulation, per sample in a forward pass."""
        return sum(group.cost for group in self.plan.groups)

    @property
    def statevector_cost(self) -> int:
        """The same with state vectors only."""
        return sum(group.cost for group in self.statevector.groups)

    @cached_property
    def blocks(self) -> tuple[int, ...]:
        """Sizes of the blocks of qubits that the exact engine simulates, the largest first."""
        sizes: list[int] = []
        for group in self.plan.groups:
            one = [group.size]
            if group.network is not None:
                one = [len(block.qubits) for block in group.network.blocks]
            sizes += one * len(group.qubits)
        return tuple(sorted(sizes, reverse=True))

    @cached_property
    def live(self) -> tuple[int, ...]:
        """The weights that can change any output."""
        return tuple(sorted(set().union(*map(self.weights_seen, range(len(self.cones))))))

    def reach(self, output: int) -> tuple[int, ...]:
        """The qubits of an output's light cone, sorted."""
        return tuple(sorted({q for i in self.cones[output] for q in self.program.ops[i].qubits}))

    def inputs_seen(self, output: int) -> list[int]:
        """The inputs that can change an output."""
        return columns_read(self.program.ops, self.cones[output], self.program.from_inputs)

    def weights_seen(self, output: int) -> list[int]:
        """The weights that can change an output."""
        return columns_read(self.program.ops, self.cones[output], self.program.from_weights)


@dataclass(frozen=True)
class DeviceCost:
    """A component on a device: gates on two qubits, layers of them, layers of all gates."""

    qubits: tuple[int, ...]
    two_qubit_gates: int
    two_qubit_depth: int
    depth: int


def audit(circuit_filter: Filter) -> Audit:
    """Analyse the structure of a filter.

    Raises:
        CircuitError: the filter cannot be simulated.
    """
    plan = make_plan(circuit_filter)
    paulis = [union_of(observable) for observable in circuit_filter.observables]
    return Audit(
        circuit_filter,
        plan,
        make_plan(circuit_filter, "statevector"),
        tuple(tuple(light_cone(plan.program.ops, pauli)) for pauli in paulis),
        tuple(components(circuit_filter.circuit)),
    )


def device_costs(facts: Audit, backend: BackendV2, *, seed: int = 0) -> list[DeviceCost]:
    """Cost of each component with gates, transpiled separately."""
    costs = []
    for qubits in facts.components:
        isa = to_isa(on_qubits(facts.filter.circuit, qubits), backend, seed=seed)
        costs.append(DeviceCost(qubits, isa.two_qubit_gates, isa.two_qubit_depth, isa.depth))
    return costs


def conclusions(facts: Audit) -> list[str]:
    """Consequences of the structure, as sentences."""
    n, sizes = facts.filter.circuit.num_qubits, Counter(map(len, facts.components))
    largest = max(sizes)
    texts = []
    if len(facts.components) > 1:
        parts = " and ".join(
            f"{_number(count)} {'independent ' * (size > 1)}"
            f"{f'{size}-qubit circuit' if size > 1 else 'single qubit'}{'s' * (count > 1)}"
            for size, count in sorted(sizes.items(), reverse=True)
        )
        texts.append(f"{n} wires, but {parts}: no entanglement between them")
    texts += _on_weights(facts) + _on_outputs(facts)
    if facts.cost < facts.statevector_cost:
        texts.append(
            f"exact simulation takes blocks of at most {_qubits(max(facts.blocks))}: "
            f"{facts.statevector_cost / facts.cost:,.0f} times cheaper than state vectors"
        )
    if largest <= 20:
        texts.append(
            f"a laptop simulates it exactly (states of {_qubits(largest)}): hardware only adds "
            "noise to the values"
        )
    return texts


def _on_weights(facts: Audit) -> list[str]:
    total, live = len(facts.filter.weights), len(facts.live)
    absent = total - len(facts.filter.present_weights)
    unseen = total - live - absent
    reasons = [f"{absent} are in no gate"] if absent else []
    reasons += [f"{unseen} are in gates that no output sees"] if unseen else []
    if not reasons:
        return []
    return [
        f"only {live} of {total} weights are live; {' and '.join(reasons)}: training cannot use "
        "them"
    ]


def _on_outputs(facts: Audit) -> list[str]:
    texts = []
    outputs, n = range(len(facts.cones)), len(facts.filter.inputs)
    inputs = [facts.inputs_seen(m) for m in outputs]
    untrained = [m for m in outputs if not facts.weights_seen(m)]
    if untrained:
        texts.append(f"outputs {_list(untrained)} depend on no weight: they cannot be trained")
    unseen = sorted(set(range(n)).difference(*inputs))
    if unseen:
        texts.append(f"inputs {_list(unseen)} change no output")
    most = max(map(len, inputs), default=n)
    if most < n:
        texts.append(f"no output depends on more than {most} of the {n} inputs")
    return texts


def _number(count: int) -> str:
    return _NUMBERS[count] if count < len(_NUMBERS) else str(count)


def _qubits(count: int) -> str:
    return f"{count} qubit{'s' * (count > 1)}"


def _list(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
