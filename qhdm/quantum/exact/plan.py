"""Simulation plans of the exact engine: components, and the method for each.

Pure bookkeeping on qubits and gates, made once per filter; network.py and statevector.py run it in
torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from qhdm.errors import CircuitError
from qhdm.quantum.exact.constants import Constant, InputAngles
from qhdm.quantum.exact.contraction import Contraction, plan_contraction
from qhdm.quantum.exact.partition import plan_network
from qhdm.quantum.exact.tables import TablePlan
from qhdm.quantum.exact.tree import NOMINAL_BATCH, Network
from qhdm.quantum.filter import Filter
from qhdm.quantum.ir.components import Component, angle_rows, split
from qhdm.quantum.ir.fusion import by_kind, fuse
from qhdm.quantum.ir.lowering import Program

Method = Literal["auto", "network", "statevector"]

#: Real multiply-adds of a matrix product that take as long as one in a state vector's many small
#: steps: what it moves through memory costs it about this factor (benchmarks/filters.py).
STATEVECTOR_PENALTY = 3


class NetworkPlan:
    """G equal components as a tree of blocks.

    Attributes:
        network: the tree.
        tables: of its blocks.
        contraction: of the network, if it has more than one block.
        single: if there is one block, the row of each observable.
        angles: of each component and of the qubits in `network.reading`.
        cost: real multiply-adds per sample in a forward pass.
    """

    def __init__(self, network: Network, program: Program, angles: np.ndarray) -> None:
        self.network = network
        self.tables, self.components = TablePlan(network, program, angles), len(angles)
        local = np.concatenate([own.ravel() for _, own in network.reading])
        self.angles = InputAngles(program, angles[:, local].ravel())
        self.contraction: Contraction | None = None
        self.single = Constant(np.array([readout.keys[0][0] for readout in network.measured]))
        self.cost = network.cost
        if network.tree:
            self.contraction = plan_contraction(network, self.tables.blocks)
            self.cost = self.contraction.cost


class StatevectorPlan:
    """G equal components as state vectors.

    Attributes:
        size: qubits of each.
        components: G.
        units: fused gates in order.
        kinds: those that do not read inputs, by kind, and K, A and B of their gates.
        from_weights, offsets: (P, phases) and (phases,), see `Program.phases`.
        reading: those that do, and K, A and B of the gate of each.
        angles: of these units, of each component.
        cost: real multiply-adds per sample in a forward pass.
    """

    def __init__(self, component: Component, program: Program, angles: np.ndarray) -> None:
        self.size, self.components = component.size, len(angles)
        self.units, reads = fuse([component.ops[i] for i in component.seen], component.reads_inputs)
        self.cost = 4 * sum(2 ** (self.size + len(unit.qubits)) for unit in self.units)
        shared = [unit for unit, own in zip(self.units, reads, strict=True) if not own]
        kinds = by_kind(shared, lambda unit: unit.kind)
        self.kinds = [(units, Constant(units[0].parts)) for units in kinds]
        ops = [unit.ops[i] for units in kinds for i in range(len(units[0].ops)) for unit in units]
        from_weights, offsets = program.phases(ops, angles)
        self.from_weights, self.offsets = Constant(from_weights.T), Constant(offsets)
        reading = [unit for unit, own in zip(self.units, reads, strict=True) if own]
        self.reading = [(unit, Constant(unit.parts)) for unit in reading]
        local = [unit.ops[0].angle for unit in reading]
        self.angles = InputAngles(program, angles[:, local].T.ravel())
        self._paulis = component.paulis

    @cached_property
    def signs(self) -> Constant:
        """For each Pauli string, the signs of its Z at each amplitude, (K, 2^n)."""
        basis = np.arange(2**self.size)
        return Constant(np.array([_parity_sign(basis & z) for _, z in self._paulis]))

    @cached_property
    def images(self) -> dict[int, tuple[Constant, Constant]]:
        """Of strings with X or Y, by number: which amplitude goes where, with which phase."""
        basis = np.arange(2**self.size)
        images = {}
        for k, (x, z) in enumerate(self._paulis):
            if x:
                # P|l> = i^(number of Y) (-1)^(l & z) |l ^ x>
                phases = 1j ** (x & z).bit_count() * _parity_sign((basis ^ x) & z)
                images[k] = Constant(basis ^ x), Constant(phases[:, None])
        return images


@dataclass(frozen=True, eq=False)
class Group:
    """G components with the same gates and observables: simulated as one batch.

    Attributes:
        size: qubits of each component.
        qubits: of the circuit, of each component in turn; local qubit i is the i-th.
        plan: how they are simulated.
    """

    size: int
    qubits: tuple[tuple[int, ...], ...]
    plan: NetworkPlan | StatevectorPlan

    @property
    def network(self) -> Network | None:
        """The component as a tree of blocks, if that is how it is simulated."""
        return self.plan.network if isinstance(self.plan, NetworkPlan) else None

    @property
    def cost(self) -> int:
        """Real multiply-adds per sample in a forward pass, of all G."""
        return self.plan.cost * len(self.qubits)


@dataclass(frozen=True, eq=False)
class Plan:
    """A filter, ready to simulate.

    Attributes:
        program: the lowered circuit.
        groups: what to simulate; their values, flattened from (G, number of Paulis) and put end
            to end, are the measured values.
        linear: (m, measured values), the observables that are sums of measured values, or these
            parts of them.
        products: the other terms: the measured values that are multiplied, and (m, 1), the factor
            of their product in each observable.
    """

    program: Program
    groups: tuple[Group, ...]
    linear: Constant
    products: tuple[tuple[tuple[int, ...], Constant], ...]


def make_plan(circuit_filter: Filter, method: Method = "auto") -> Plan:
    """Plan the simulation of a filter.

    Args:
        method: `network`, `statevector`, or `auto` for the cheaper one, component by component.

    Raises:
        CircuitError: a gate cannot be lowered, an observable is not Hermitian or of other size, or
            a network is asked for and there is none.
    """
    parts = split(circuit_filter)
    groups = tuple(
        _group(circuit_filter.name, parts.program, members, method) for members in parts.alike
    )
    measured = sum(len(members) * len(members[0].paulis) for members in parts.alike)
    linear = np.zeros((len(parts.outputs), measured))
    products: dict[tuple[int, ...], np.ndarray] = {}
    for m, terms in enumerate(parts.outputs):
        for coefficient, factors in terms:
            if len(factors) == 1:
                linear[m, factors[0]] += coefficient
            else:
                column = products.setdefault(factors, np.zeros((len(parts.outputs), 1)))
                column[m] += coefficient
    others = tuple((factors, Constant(column)) for factors, column in products.items())
    return Plan(parts.program, groups, Constant(linear), others)


def _group(name: str, program: Program, members: Sequence[Component], method: Method) -> Group:
    first = members[0]
    angles = angle_rows(members)
    network = None
    if method != "statevector":
        network = plan_network(first.size, first.ops, first.reads_inputs, first.paulis)
    if method == "network" and network is None:
        raise CircuitError(
            f"{name}: has no network of small blocks; use the exact engine's own choice"
        )
    plan: NetworkPlan | StatevectorPlan = StatevectorPlan(first, program, angles)
    if network is not None:
        most = STATEVECTOR_PENALTY * plan.cost * NOMINAL_BATCH
        if method == "network" or network.cost_per_batch <= most:
            plan = NetworkPlan(network, program, angles)
    return Group(first.size, tuple(member.qubits for member in members), plan)


def _parity_sign(masked: np.ndarray) -> np.ndarray:
    """(-1) to the number of set bits."""
    return 1.0 - 2.0 * (np.bitwise_count(masked) % 2)
