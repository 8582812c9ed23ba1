"""Packing of circuits on a chip: disjoint regions of low calibrated error.

A transpiled circuit fits any qubits with the same couplings. Disjoint regions for all copies are
chosen at once by a mixed-integer programme (HiGHS): first as many as possible, then with the least
error. Taking the best free region again and again finds 18 % fewer copies (benchmarks/packing.py).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Literal

import numpy as np
import rustworkx as rx
from qiskit.circuit import QuantumCircuit
from qiskit.transpiler import Target
from scipy.optimize import Bounds, LinearConstraint, milp

from qhdm.errors import HardwareError
from qhdm.quantum.devices.calibration import working_part
from qhdm.quantum.ir.connectivity import Compact

#: Regions considered for a circuit: more than any of three qubits has on today's chips.
_MOST_PLACES = 20_000
#: Most steps of the search for a tree.
_MOST_CALLS = 1_000_000
#: `auto` excludes regions that are expected to err more than this many times the best.
_AUTO_WORST = 2.0
#: Nodes after which the search ends with the best so far; shipped filters need one. A time limit
#: would give other layouts on a busy machine.
_NODES = 200


@dataclass(frozen=True)
class Region:
    """Qubits of a device, one for each of a compact circuit, and their error.

    Attributes:
        qubits: physical.
        cost: minus the logarithm of the probability that no gate and no readout errs.
    """

    qubits: tuple[int, ...]
    cost: float


@dataclass(frozen=True)
class Rating:
    """The error of laid-out circuits by a calibration.

    Attributes:
        costs: of each copy, see `Region`; infinite if a gate is broken.
        broken: the broken gates and readouts, for people.
    """

    costs: tuple[float, ...]
    broken: tuple[str, ...]


def tree_layout(circuit: QuantumCircuit, target: Target) -> tuple[int, ...] | None:
    """Physical qubits of a circuit on which only gates that close a ring need routing.

    Its interactions, the earliest first, make a spanning tree, which many lattices without short
    rings contain. HQConv's becomes three lines whose first qubits lie in a row.

    Returns:
        One for each qubit; None if the device does not contain the tree.
    """
    order: dict[tuple[int, int], int] = {}
    for entry in circuit.data:
        if len(entry.qubits) == 2:
            a, b = sorted(circuit.find_bit(qubit).index for qubit in entry.qubits)
            order.setdefault((a, b), len(order))
    graph = rx.PyGraph(multigraph=False)
    graph.add_nodes_from(range(circuit.num_qubits))
    graph.add_edges_from([(a, b, at) for (a, b), at in order.items()])
    tree = rx.minimum_spanning_tree(graph, weight_fn=float)
    mappings = rx.vf2_mapping(
        _coupling(target), tree, subgraph=True, induced=False, call_limit=_MOST_CALLS
    )
    mapping = next(iter(mappings), None)
    if mapping is None:
        return None
    place = {local: node for node, local in mapping.items()}
    return tuple(place[i] for i in range(circuit.num_qubits))


def regions_of(circuit: Compact, target: Target) -> list[Region]:
    """All working regions for a circuit, one for each set of qubits, best first."""
    target = working_part(target)
    uses = _uses_of(circuit)
    size = circuit.circuit.num_qubits
    pattern = rx.PyGraph(multigraph=False)
    pattern.add_nodes_from(range(size))
    pattern.extend_from_edge_list(sorted({(min(q), max(q)) for _, q in uses if len(q) == 2}))
    device = _coupling(target)
    mappings = rx.vf2_mapping(device, pattern, subgraph=True, induced=False)
    best: dict[frozenset[int], Region] = {}
    own = dict(enumerate(circuit.physical))
    others = ({local: node for node, local in m.items()} for m in islice(mappings, _MOST_PLACES))
    for mapping in (own, *others):
        qubits = tuple(mapping[i] for i in range(size))
        cost = _cost(uses, qubits, target)
        key = frozenset(qubits)
        if math.isfinite(cost) and (key not in best or cost < best[key].cost):
            best[key] = Region(qubits, cost)
    return sorted(best.values(), key=lambda region: (region.cost, region.qubits))


def pack(
    circuits: Sequence[Compact],
    target: Target,
    *,
    packing: int | Literal["auto"],
    most: int,
) -> list[tuple[Region, ...]]:
    """Disjoint regions for copies of a set of circuits.

    Args:
        circuits: of one copy.
        target: of the device.
        packing: copies, or `auto`: as many as fit on regions that are not much worse than the best.
        most: copies that are of use.

    Returns:
        For each copy, a region for each circuit.

    Raises:
        HardwareError: so many copies do not fit.
    """
    # Components that differ only in their angles have the same regions.
    known: dict[object, list[Region]] = {}
    places = []
    for circuit in circuits:
        key = (frozenset(_uses_of(circuit).items()), circuit.physical)
        if key not in known:
            known[key] = regions_of(circuit, target)
        places.append(known[key])
    if not all(places):
        raise HardwareError("layout: no working qubits of the device fit a circuit")
    wanted = most if packing == "auto" else packing
    if wanted == 1 and len(circuits) == 1:
        return [(places[0][0],)]
    if packing == "auto":
        good = [[r for r in kind if r.cost <= _AUTO_WORST * kind[0].cost] for kind in places]
        # One copy is always placed, even if the best regions of its circuits overlap.
        chosen = _choose(good, target.num_qubits, most=wanted) or _choose(
            places, target.num_qubits, most=1
        )
    else:
        chosen = _choose(places, target.num_qubits, most=wanted)
    if packing != "auto" and len(chosen) < packing:
        raise HardwareError(
            f"packing: {packing} copies do not fit the device, {len(chosen)} do; use that or auto"
        )
    if not chosen:
        raise HardwareError("layout: the circuits of a filter do not fit the device side by side")
    return chosen


def rate(circuit: QuantumCircuit, copies: Sequence[Sequence[int]], target: Target) -> Rating:
    """Rate a packed circuit by the current calibration of a device.

    Args:
        circuit: on all qubits of the device, measured.
        copies: for each, the physical qubits that are measured.
        target: of the device.
    """
    working = working_part(target)
    uses = _uses(circuit)
    graph = rx.PyGraph()
    graph.add_nodes_from(range(circuit.num_qubits))
    graph.extend_from_edge_list([qubits for _, qubits in uses if len(qubits) == 2])
    owners = {qubit: copy for copy, measured in enumerate(copies) for qubit in measured}
    copy_of = {
        qubit: owners[measured]
        for connected in rx.connected_components(graph)
        for measured in connected & owners.keys()
        for qubit in connected
    }
    costs, broken = [0.0] * len(copies), []
    everywhere = tuple(range(circuit.num_qubits))
    for (name, qubits), count in uses.items():
        cost = _cost(Counter({(name, qubits): count}), everywhere, working)
        costs[copy_of[qubits[0]]] += cost
        if math.isinf(cost):
            broken.append(f"{name} on {'-'.join(map(str, qubits))}")
    return Rating(tuple(costs), tuple(sorted(broken)))


def _choose(
    places: Sequence[Sequence[Region]], qubits: int, *, most: int
) -> list[tuple[Region, ...]]:
    """As many copies as possible, at most `most`, of the least total cost."""
    flat = [(kind, region) for kind, regions in enumerate(places) for region in regions]
    # Variables: one for each region (taken or not), and the number of copies.
    V = len(flat) + 1
    overlap, kinds = np.zeros((qubits, V)), np.zeros((len(places), V))
    for i, (kind, region) in enumerate(flat):
        overlap[list(region.qubits), i] = 1
        kinds[kind, i] = 1
    kinds[:, -1] = -1
    constraints = [LinearConstraint(overlap, ub=1), LinearConstraint(kinds, lb=0, ub=0)]
    upper = np.append(np.ones(V - 1), most)
    minimise = partial(
        milp, integrality=np.ones(V), constraints=constraints, options={"node_limit": _NODES}
    )
    lower, count = np.zeros(V), np.zeros(V)
    count[-1] = -1
    first = minimise(count, bounds=Bounds(lower, upper))
    if first.x is None or round(first.x[-1]) < 1:
        return []
    lower[-1] = upper[-1] = round(first.x[-1])
    costs = np.array([*(region.cost for _, region in flat), 0.0])
    second = minimise(costs, bounds=Bounds(lower, upper))
    taken = np.flatnonzero(np.round((first if second.x is None else second).x[:-1]))
    by_kind: list[list[Region]] = [[] for _ in places]
    for i in taken.tolist():
        by_kind[flat[i][0]].append(flat[i][1])
    ranked = [sorted(kind, key=lambda r: (r.cost, r.qubits)) for kind in by_kind]
    return list(zip(*ranked, strict=True))


_Uses = Counter[tuple[str, tuple[int, ...]]]


def _uses(circuit: QuantumCircuit) -> _Uses:
    """How often each gate is used on which qubits."""
    index = {bit: i for i, bit in enumerate(circuit.qubits)}
    return Counter(
        (e.operation.name, tuple(index[q] for q in e.qubits))
        for e in circuit.data
        if e.operation.name != "barrier"
    )


def _uses_of(circuit: Compact) -> _Uses:
    """How often each gate is used on which local qubits, including readout."""
    return _uses(circuit.circuit) + Counter(("measure", (qubit,)) for qubit in circuit.ends)


def _cost(uses: _Uses, qubits: tuple[int, ...], target: Target) -> float:
    """The cost of gates on local qubits mapped to `qubits`; infinite if the target lacks one."""
    cost = 0.0
    for (name, local), count in uses.items():
        known = target[name] if name in target.operation_names else {}
        place = tuple(qubits[i] for i in local)
        if None not in known and place not in known:
            return math.inf  # broken, not coupled, or only in the other direction
        # None is of a virtual gate, or an ideal device: the target is a working part.
        cost -= count * math.log1p(-(getattr(known.get(place), "error", None) or 0.0))
    return cost


def _coupling(target: Target) -> rx.PyGraph:
    graph = rx.PyGraph(multigraph=False)
    graph.add_nodes_from(range(target.num_qubits))
    coupling = target.build_coupling_map()
    edges = coupling.get_edges() if coupling else []
    graph.extend_from_edge_list(sorted({(min(e), max(e)) for e in edges}))
    return graph
