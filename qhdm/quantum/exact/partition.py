"""Partition of a component into a tree of small blocks that are simulated exactly.

The picture is Heisenberg's, in real numbers. Each qubit starts, by at most one gate that reads an
input, with expectation values of its Pauli matrices that are affine in (1, cos a, sin a). A block
of k qubits with an operator on it is then a linear function of the products of these features, 3^k
of them, whose coefficients depend on the weights alone. A gate across two blocks is a sum of
products, sum_r A_r (x) B_r of real maps (transfer.py), and leaves a bond of r numbers between them:
4 for a controlled rotation. Blocks are joined at bridges of the interaction graph, so that they
form a tree, which is contracted exactly.

Gates at the end that only some observables see are not cut: those observables are conjugated by
them and become a few products of local Pauli strings (in hqconv: the last layer's links, which only
<Z_4> and <Z_8> see).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import rustworkx as rx

from qhdm.quantum.exact.transfer import ZERO, Bond, decompose, pauli_strings, possible_strings
from qhdm.quantum.exact.tree import (
    BondEnd,
    BondGate,
    InputEncoding,
    Network,
    NetworkBlock,
    Readout,
)
from qhdm.quantum.ir.connectivity import connected, interaction_graph
from qhdm.quantum.ir.fusion import FusedGate
from qhdm.quantum.ir.light_cones import light_cone
from qhdm.quantum.ir.lowering import Op
from qhdm.quantum.ir.paulis import LETTERS, Pauli

#: Largest block, in qubits.
MAX_BLOCK = 5
#: Largest support, in qubits, of an observable conjugated by the gates at the end.
MAX_SUPPORT = 4
#: Largest bond between two blocks, in real numbers.
MAX_BOND = 4096
#: Largest unit that later gates on some of its qubits join.
MAX_UNIT = 3
#: Batch size that the cost model assumes.
NOMINAL_BATCH = 512


def plan_network(
    size: int, ops: Sequence[Op], reads_inputs: Sequence[bool], paulis: Sequence[Pauli]
) -> Network | None:
    """The cheapest network of a component that the search meets, or None where there is none.

    There is none if a gate reads inputs anywhere but at the start of a qubit, or if no partition
    has small blocks and bonds.

    Args:
        size: number of qubits.
        ops: gates on local qubits, in order.
        reads_inputs: for each local angle, whether it depends on the inputs.
        paulis: what is measured.
    """
    split = _split_inlets(size, ops, reads_inputs)
    if split is None:
        return None
    inlets, rest = split
    units = _units(rest)
    pairs = [unit.qubits for unit in units]
    graph = interaction_graph(size, pairs)
    for bridge in rx.bridges(graph):
        one, other = tuple[int, ...](bridge)  # the stub says that it has one element
        graph.remove_edge(one, other)
    blocks = sorted(tuple(sorted(part)) for part in rx.connected_components(graph))
    if max(map(len, blocks)) > MAX_BLOCK:
        return None
    partitions = _Partitions(inlets, units, paulis)
    best = partitions.network(blocks)
    while True:
        # Joining two neighbours of a tree leaves a tree.
        candidates = []
        home = {q: b for b, block in enumerate(blocks) for q in block}
        joined = [(home[pair[0]], home[pair[1]]) for pair in pairs if len(pair) == 2]
        for i, j in sorted({(min(join), max(join)) for join in joined if join[0] != join[1]}):
            if len(blocks[i]) + len(blocks[j]) <= MAX_BLOCK:
                merged = [b for k, b in enumerate(blocks) if k not in (i, j)]
                merged = sorted([*merged, tuple(sorted(blocks[i] + blocks[j]))])
                network = partitions.network(merged)
                if network is not None:
                    candidates.append((_total(network), merged, network))
        if not candidates:
            return best
        total, merged, network = min(candidates, key=lambda c: c[0])
        if best is not None and total >= _total(best):
            return best
        blocks, best = merged, network


def _total(network: Network) -> int:
    return network.cost_once + NOMINAL_BATCH * network.cost


def _split_inlets(
    size: int, ops: Sequence[Op], reads_inputs: Sequence[bool]
) -> tuple[tuple[InputEncoding, ...], list[Op]] | None:
    """Take the gates that read inputs, and constant ones before them, off the start of qubits."""

    def reads(op: Op) -> bool:
        return op.angle >= 0 and reads_inputs[op.angle]

    reading = {index: op for index, op in enumerate(ops) if reads(op)}
    taken: set[int] = set()
    inlets = []
    for qubit in range(size):
        mine = [index for index, op in reading.items() if qubit in op.qubits]
        if not mine:
            inlets.append(InputEncoding(-1, np.array([[1.0, 0.0, 0.0, 1.0]])))
            continue
        before = [i for i in range(mine[0]) if qubit in ops[i].qubits]
        prefix = [ops[i] for i in before]
        if len(mine) > 1 or any(op.angle >= 0 for op in prefix):
            return None
        if any(len(op.qubits) > 1 for op in [*prefix, ops[mine[0]]]):
            return None
        ket = np.array([1, 0], dtype=complex)
        for op in prefix:
            ket = op.gate.K @ ket
        inlet = _inlet(ops[mine[0]], ket)
        if inlet is None:
            return None
        inlets.append(inlet)
        taken.update(before, mine)
    return tuple(inlets), [op for index, op in enumerate(ops) if index not in taken]


def _inlet(op: Op, ket: np.ndarray) -> InputEncoding | None:
    def letters(angle: float) -> np.ndarray:
        after = op.gate.at(angle) @ ket
        values = np.einsum("i,pij,j->p", after.conj(), pauli_strings(1), after).real
        values[np.abs(values) < ZERO] = 0
        return values

    zero, quarter, half = letters(0.0), letters(np.pi / 2), letters(np.pi)
    mean = (zero + half) / 2
    parts = np.array([mean, zero - mean, quarter - mean])
    probe = 0.7
    affine = parts[0] + np.cos(probe) * parts[1] + np.sin(probe) * parts[2]
    return (
        InputEncoding(op.angle, parts) if np.allclose(affine, letters(probe), atol=1e-12) else None
    )


def _units(ops: Sequence[Op]) -> list[FusedGate]:
    """Join gates to the last unit on their qubits, where that has all of these and is small."""
    units: list[FusedGate] = []
    for op in ops:
        last = max((i for i, u in enumerate(units) if set(u.qubits) & set(op.qubits)), default=-1)
        joins = last >= 0 and set(op.qubits) <= set(units[last].qubits)
        if joins and len(units[last].qubits) <= MAX_UNIT:
            units[last] = replace(units[last], ops=(*units[last].ops, op))
        else:
            units.append(FusedGate(op.qubits, (op,)))
    return units


class _Partitions:
    """Networks of one component, by partition.

    Args:
        inlets: of each qubit.
        units: the gates that do not read inputs.
        paulis: what is measured.
    """

    def __init__(
        self,
        inlets: tuple[InputEncoding, ...],
        units: Sequence[FusedGate],
        paulis: Sequence[Pauli],
    ) -> None:
        self._inlets, self._units, self._paulis = inlets, units, paulis
        self._cones = [set(_cone(units, pauli)) for pauli in paulis]
        self._bonds: dict[object, Bond] = {}

    def network(self, blocks: Sequence[tuple[int, ...]]) -> Network | None:
        """The network of a given partition, or None if it would be too large."""
        home = {qubit: b for b, block in enumerate(blocks) for qubit in block}
        crossing = [len({home[q] for q in unit.qubits}) > 1 for unit in self._units]
        tail = _tail(self._units, crossing, self._cones, self._paulis)
        seen = set().union(*self._cones)

        steps: list[list[FusedGate | BondEnd]] = [[] for _ in blocks]
        cuts: list[BondGate] = []
        ends: list[tuple[int, int]] = []
        for index in sorted(seen - tail):
            unit = self._units[index]
            if not crossing[index]:
                steps[home[unit.qubits[0]]].append(unit)
                continue
            if len(unit.qubits) != 2:
                return None
            for qubit in unit.qubits:
                steps[home[qubit]].append(BondEnd(len(cuts), qubit))
            cuts.append(BondGate(unit, self._bond(unit)))
            ends.append((home[unit.qubits[0]], home[unit.qubits[1]]))

        bonds = [1] * len(blocks)
        for cut, pair in zip(cuts, ends, strict=True):
            for end in pair:
                bonds[end] *= cut.bond.size
        if max(bonds) > MAX_BOND:
            return None
        measured, operators = self._readouts(blocks, tail)
        built = tuple(
            _block(block, own, tuple(needed), self._inlets, _joined(ends, b))
            for b, (block, own, needed) in enumerate(zip(blocks, steps, operators, strict=True))
        )
        once = sum(
            4 * len(block.operators) * bond * 8 ** len(block.qubits)
            for block, bond in zip(built, bonds, strict=True)
        )
        tree = _spanning_tree(len(blocks), ends)
        return Network(self._inlets, built, tuple(cuts), tuple(ends), tree, measured, once)

    def _readouts(
        self, blocks: Sequence[tuple[int, ...]], tail: set[int]
    ) -> tuple[tuple[Readout, ...], list[dict[Pauli, int]]]:
        """The observables, and for each block the operators that they need, numbered."""
        operators: list[dict[Pauli, int]] = [{(0, 0): 0} for _ in blocks]
        measured = []
        for (x, z), cone in zip(self._paulis, self._cones, strict=True):
            late = tuple(self._units[i] for i in sorted(tail & cone))
            own = {q for q in range((x | z).bit_length()) if (x | z) >> q & 1}
            support = tuple(sorted(own.union(*(unit.qubits for unit in late))))
            strings = possible_strings((x, z), support, late)
            keys = []
            for choice in np.stack(np.unravel_index(strings, [4] * len(support)), axis=1):
                masks = {q: LETTERS[letter] for q, letter in zip(support, choice, strict=True)}
                row = []
                for block, needed in zip(blocks, operators, strict=True):
                    mine = [q for q in block if q in masks]
                    local = sum(masks[q][0] << q for q in mine), sum(masks[q][1] << q for q in mine)
                    row.append(needed.setdefault(local, len(needed)))
                keys.append(tuple(row))
            measured.append(Readout((x, z), late, support, strings, tuple(keys)))
        return tuple(measured), operators

    def _bond(self, unit: FusedGate) -> Bond:
        if unit.kind not in self._bonds:
            self._bonds[unit.kind] = decompose(unit)
        return self._bonds[unit.kind]


def _joined(ends: Sequence[tuple[int, int]], block: int) -> dict[int, int]:
    """For each cut of a block, the neighbour that it leads to."""
    return {i: sum(pair) - block for i, pair in enumerate(ends) if block in pair}


def _block(
    qubits: tuple[int, ...],
    steps: Sequence[FusedGate | BondEnd],
    operators: tuple[Pauli, ...],
    inlets: Sequence[InputEncoding],
    joined: Mapping[int, int],
) -> NetworkBlock:
    """One block; `joined` gives the neighbour that each of its cuts leads to."""
    gathered: list[FusedGate | tuple[BondEnd, ...]] = []
    for i, step in enumerate(steps):
        last = gathered[-1] if gathered else None
        if isinstance(step, BondEnd):
            run = last if isinstance(last, tuple) and last[0].qubit == step.qubit else ()
            gathered[len(gathered) - bool(run) :] = [(*run, step)]
            continue
        gathered.append(step)
        if isinstance(last, FusedGate) and last is steps[i - 1]:  # not yet a pair
            both = tuple(dict.fromkeys(last.qubits + step.qubits))
            if len(both) <= MAX_UNIT:
                gathered[-2:] = [FusedGate(both, last.ops + step.ops)]
    features = math.prod(len(inlets[qubit].letters) for qubit in qubits)
    cuts = tuple(end.cut for run in gathered if isinstance(run, tuple) for end in run)
    order = sorted(range(len(cuts)), key=lambda position: joined[cuts[position]])
    return NetworkBlock(qubits, features, tuple(gathered), operators, cuts, tuple(order))


def _spanning_tree(blocks: int, ends: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """The pairs that cuts join, and as many more as hold all blocks together."""
    tree = sorted({(min(pair), max(pair)) for pair in ends})
    roots = [part[0] for part in connected(blocks, tree)]
    return (*tree, *pairwise(roots))


def _cone(units: Sequence[FusedGate], pauli: Pauli) -> list[int]:
    """Units with a gate in the light cone of a Pauli string."""
    flat = [(index, op) for index, unit in enumerate(units) for op in unit.ops]
    kept = light_cone([op for _, op in flat], pauli)
    return sorted({flat[i][0] for i in kept})


def _tail(
    units: Sequence[FusedGate],
    crossing: Sequence[bool],
    cones: Sequence[set[int]],
    paulis: Sequence[Pauli],
) -> set[int]:
    """Crossing units at the end that only some observables see, and see on few qubits."""
    supports = [{q for q in range((x | z).bit_length()) if (x | z) >> q & 1} for x, z in paulis]
    seen = set().union(*cones)
    tail: set[int] = set()
    blocked: set[int] = set()
    for index in range(len(units) - 1, -1, -1):
        qubits = set(units[index].qubits)
        seeing = [i for i, cone in enumerate(cones) if index in cone]
        grown = [supports[i] | qubits for i in seeing]
        if (
            index in seen
            and crossing[index]
            and not qubits & blocked
            and len(seeing) < len(cones)
            and all(len(support) <= MAX_SUPPORT for support in grown)
        ):
            tail.add(index)
            for i, support in zip(seeing, grown, strict=True):
                supports[i] = support
        elif index in seen:
            blocked |= qubits
    return tail
