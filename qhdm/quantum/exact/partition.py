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
from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from itertools import pairwise

import numpy as np
import rustworkx as rx

from qhdm.quantum.exact.transfer import (
    ZERO,
    Bond,
    decompose,
    harmonics,
    pauli_strings,
    possible_strings,
)
from qhdm.quantum.exact.tree import (
    BondEnd,
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
        home = {q: b for b, block in enumerate(blocks) for q in block}
        ends = {tuple(sorted({home[q] for q in pair})) for pair in pairs}
        options = []
        for i, j in sorted(pair for pair in ends if len(pair) == 2):
            joined = tuple(sorted(blocks[i] + blocks[j]))
            if len(joined) <= MAX_BLOCK:
                options.append(sorted([joined, *blocks[:i], *blocks[i + 1 : j], *blocks[j + 1 :]]))
        networks = [network for network in map(partitions.network, options) if network is not None]
        better = min(networks, key=_total, default=None)
        if better is None or (best is not None and _total(better) >= _total(best)):
            return best
        best, blocks = better, [block.qubits for block in better.blocks]


def _total(network: Network) -> int:
    return network.cost_once + NOMINAL_BATCH * network.cost


def _split_inlets(
    size: int, ops: Sequence[Op], reads_inputs: Sequence[bool]
) -> tuple[tuple[InputEncoding, ...], list[Op]] | None:
    """Take the gates that read inputs, and constant ones before them, off the start of qubits."""
    inlets = [InputEncoding(-1, np.array([[1.0, 0.0, 0.0, 1.0]]))] * size
    taken: list[Op] = []
    mine: list[list[Op]] = [[] for _ in range(size)]
    for op in ops:
        before = mine[op.qubits[0]].copy()
        for qubit in op.qubits:
            mine[qubit].append(op)
        if op.angle < 0 or not reads_inputs[op.angle]:
            continue
        if any(len(o.qubits) > 1 for o in [*before, op]) or any(o.angle >= 0 for o in before):
            return None
        ket = reduce(lambda ket, o: o.gate.K @ ket, before, np.array([1, 0], dtype=complex))
        inlet = _inlet(op, ket)
        if inlet is None:
            return None
        inlets[op.qubits[0]] = inlet
        taken += [*before, op]
    return tuple(inlets), [op for op in ops if not any(op is o for o in taken)]


def _inlet(op: Op, ket: np.ndarray) -> InputEncoding | None:
    """A gate on a qubit in a given state, if it is affine in the cosine and sine of its angle."""
    letters = np.array([(ket.conj() @ pauli @ ket).real for pauli in pauli_strings(1)])
    letters[np.abs(letters) < ZERO] = 0
    parts = harmonics(op.gate).transpose(0, 2, 1) @ letters
    period = {1.0: 1, 0.5: 2}.get(op.gate.scale)
    if period is None or parts[[3 - period, 5 - period]].any():
        return None
    return InputEncoding(op.angle, parts[[0, period, period + 2]])


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
        cuts: list[Bond] = []
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
            cuts.append(self._bond(unit))
            ends.append((home[unit.qubits[0]], home[unit.qubits[1]]))

        bonds = [1] * len(blocks)
        for cut, pair in zip(cuts, ends, strict=True):
            for end in pair:
                bonds[end] *= cut.size
        if max(bonds) > MAX_BOND:
            return None
        measured, operators = self._readouts(blocks, tail)
        built = tuple(
            _block(block, own, tuple(needed), self._inlets)
            for block, own, needed in zip(blocks, steps, operators, strict=True)
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
        return replace(self._bonds[unit.kind], unit=unit)


def _block(
    qubits: tuple[int, ...],
    steps: Sequence[FusedGate | BondEnd],
    operators: tuple[Pauli, ...],
    inlets: Sequence[InputEncoding],
) -> NetworkBlock:
    """One block; ends of cuts on one qubit gather into runs, and neighbouring gates into pairs."""
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
    return NetworkBlock(qubits, features, tuple(gathered), operators)


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
