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

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from qhdm.quantum.exact.transfer import ZERO, Bond, decompose, harmonics, possible_strings
from qhdm.quantum.exact.tree import BondEnd, InputEncoding, Network, NetworkBlock, Readout
from qhdm.quantum.ir.connectivity import connected
from qhdm.quantum.ir.fusion import FusedGate
from qhdm.quantum.ir.light_cones import light_cone
from qhdm.quantum.ir.lowering import Op
from qhdm.quantum.ir.paulis import Pauli, qubits_of, with_letters

#: Largest block, in qubits.
MAX_BLOCK = 5
#: Largest support, in qubits, of an observable conjugated by the gates at the end.
MAX_SUPPORT = 4
#: Largest bond between two blocks, in real numbers.
MAX_BOND = 4096
#: Largest unit that later gates on some of its qubits join.
MAX_UNIT = 3


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
    units = _units(split[1])
    blocks = connected(size, [unit.qubits for unit in units], bridges=False)
    if max(map(len, blocks)) > MAX_BLOCK:
        return None
    partitions = _Partitions(split[0], units, paulis)
    best = partitions.network(blocks)
    while True:
        # Joining two neighbours of a tree leaves a tree.
        home = {qubit: block for block in blocks for qubit in block}
        ends = {tuple(sorted({home[q] for q in unit.qubits})) for unit in units}
        options = [
            sorted({*blocks, tuple(sorted(one + other))} - {one, other})
            for one, other in (pair for pair in sorted(ends) if len(pair) == 2)
            if len(one + other) <= MAX_BLOCK
        ]
        networks = [network for network in map(partitions.network, options) if network is not None]
        better = min(networks, key=lambda network: network.cost_per_batch, default=None)
        if better is None or (best is not None and better.cost_per_batch >= best.cost_per_batch):
            return best
        best, blocks = better, [block.qubits for block in better.blocks]


def _split_inlets(
    size: int, ops: Sequence[Op], reads_inputs: Sequence[bool]
) -> tuple[tuple[InputEncoding, ...], list[Op]] | None:
    """Take constant gates, and one that reads an input, off the start of each qubit."""
    inlets = [InputEncoding(-1, np.array([[1.0, 0.0, 0.0, 1.0]]))] * size
    rest: list[Op] = []
    started: set[int] = set()
    for op in ops:
        reads = op.angle >= 0 and reads_inputs[op.angle]
        inlet = None
        if len(op.qubits) == 1 and op.qubits[0] not in started and (reads or op.angle < 0):
            inlet = _followed(inlets[op.qubits[0]], op)
        if inlet is not None:
            inlets[op.qubits[0]] = inlet
        elif reads:
            return None
        else:
            rest.append(op)
            started.update(op.qubits)
    return tuple(inlets), rest


def _followed(inlet: InputEncoding, op: Op) -> InputEncoding | None:
    """An inlet and a gate, if they are affine in the cosine and sine of one angle."""
    parts = inlet.letters @ harmonics(op.gate)
    parts[np.abs(parts) < ZERO] = 0
    if op.angle < 0:
        return InputEncoding(inlet.angle, parts[0])
    period = round(1 / op.gate.scale)
    if inlet.angle >= 0 or parts[[3 - period, 5 - period]].any():
        return None
    return InputEncoding(op.angle, parts[[0, period, period + 2], 0])


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
    """Networks of one component, by partition: its inlets, other gates, and what is measured."""

    def __init__(
        self,
        inlets: tuple[InputEncoding, ...],
        units: Sequence[FusedGate],
        paulis: Sequence[Pauli],
    ) -> None:
        self._inlets, self._units, self._paulis = inlets, units, paulis
        places = [i for i, unit in enumerate(units) for _ in unit.ops]
        flat = [op for unit in units for op in unit.ops]
        #: For each Pauli string, the units with a gate in its light cone.
        self._cones = [{places[i] for i in light_cone(flat, pauli)} for pauli in paulis]
        self._bonds: dict[object, Bond] = {}

    def network(self, blocks: Sequence[tuple[int, ...]]) -> Network | None:
        """The network of a given partition, or None if it would be too large."""
        home = {qubit: b for b, block in enumerate(blocks) for qubit in block}
        crossing = [len({home[q] for q in unit.qubits}) > 1 for unit in self._units]
        tail = self._tail(crossing)
        steps: list[list[FusedGate | BondEnd]] = [[] for _ in blocks]
        cuts: list[Bond] = []
        bonds = [1] * len(blocks)
        for index in sorted(set().union(*self._cones) - tail):
            unit = self._units[index]
            if not crossing[index]:
                steps[home[unit.qubits[0]]].append(unit)
                continue
            if len(unit.qubits) != 2:
                return None
            if unit.kind not in self._bonds:
                self._bonds[unit.kind] = decompose(unit)
            bond = replace(self._bonds[unit.kind], unit=unit)
            for qubit in unit.qubits:
                steps[home[qubit]].append(BondEnd(len(cuts), qubit))
                bonds[home[qubit]] *= bond.size
            cuts.append(bond)
        if max(bonds) > MAX_BOND:
            return None
        measured, operators = self._readouts(blocks, tail)
        inlets = [tuple(self._inlets[qubit] for qubit in block) for block in blocks]
        built = tuple(
            NetworkBlock(block, starts, tuple(_gathered(own)), tuple(needed))
            for block, starts, own, needed in zip(blocks, inlets, steps, operators, strict=True)
        )
        return Network(built, tuple(cuts), measured)

    def _tail(self, crossing: Sequence[bool]) -> set[int]:
        """Crossing units at the end that only some observables see, and see on few qubits."""
        supports = {i: set(qubits_of(pauli)) for i, pauli in enumerate(self._paulis)}
        tail: set[int] = set()
        blocked: set[int] = set()
        for index in reversed(range(len(self._units))):
            qubits = set(self._units[index].qubits)
            grown = {i: supports[i] | qubits for i, cone in enumerate(self._cones) if index in cone}
            small = max(map(len, grown.values()), default=0) <= MAX_SUPPORT
            some = 0 < len(grown) < len(supports)
            if crossing[index] and some and small and not qubits & blocked:
                tail.add(index)
                supports |= grown
            elif grown:
                blocked |= qubits
        return tail

    def _readouts(
        self, blocks: Sequence[tuple[int, ...]], tail: set[int]
    ) -> tuple[tuple[Readout, ...], list[dict[Pauli, int]]]:
        """The observables, and for each block the operators that they need, numbered."""
        masks = [sum(1 << qubit for qubit in block) for block in blocks]
        operators: list[dict[Pauli, int]] = [{(0, 0): 0} for _ in blocks]
        measured = []
        for pauli, cone in zip(self._paulis, self._cones, strict=True):
            late = tuple(self._units[i] for i in sorted(tail & cone))
            support = tuple(sorted({*qubits_of(pauli), *(q for unit in late for q in unit.qubits)}))
            strings = possible_strings(pauli, support, late)
            keys = []
            for letters in np.stack(np.unravel_index(strings, [4] * len(support)), axis=1):
                x, z = with_letters(letters, support)
                key = [
                    needed.setdefault((x & mask, z & mask), len(needed))
                    for needed, mask in zip(operators, masks, strict=True)
                ]
                keys.append(tuple(key))
            measured.append(Readout(pauli, late, support, strings, tuple(keys)))
        return tuple(measured), operators


def _gathered(steps: Sequence[FusedGate | BondEnd]) -> list[FusedGate | tuple[BondEnd, ...]]:
    """The steps of a block, ends of cuts on one qubit as runs, and neighbouring gates as pairs."""
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
    return gathered
