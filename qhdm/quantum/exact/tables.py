"""Tables of a network's blocks: what depends on the weights alone, and is made once per call.

A block is a small tensor network. Its wires carry the four letters of a Pauli string; each gate is
its transfer matrix between the letters before and after it, each cut one between these and a bond.
Pauli strings on the block go backward in time through gates and cuts, initial states forward
through the gates before the first cut; there they meet, in a table C[bonds, string, feature].
Gates of one form are made together, and equal blocks are one batch.

The same steps run in torch at weights, and once, when the plan is made, on NumPy masks (1 where a
number may differ from 0), which shows what vanishes whatever the weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cache, reduce
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qhdm.quantum.exact.constants import Constant
from qhdm.quantum.exact.transfer import harmonics, nonzero
from qhdm.quantum.exact.tree import BondEnd, InputEncoding, Network, NetworkBlock, Readout
from qhdm.quantum.ir.fusion import FusedGate, by_kind
from qhdm.quantum.ir.lowering import Program
from qhdm.quantum.ir.paulis import Pauli, letters_on

#: A wire between two gates, a bond, operators or features: the name of an axis.
Name = Hashable
Axis = tuple[Name, int]


@dataclass(frozen=True)
class Labelled:
    """A batch of tensors with named axes.

    Attributes:
        values: a tensor or a mask, (batch, ...), with the axes in order.
        axes: names and sizes.
    """

    values: Any
    axes: tuple[Axis, ...]

    def matrix(self, rows: tuple[Name, ...], columns: tuple[Name, ...] | None = None) -> Any:
        """As matrices (batch, rows, columns), the columns being the other axes in order."""
        shape, order, height = _layout(self.axes, rows, columns)
        values = self.values
        if order:
            values = values.reshape(-1, *shape)
            values = values.transpose(order) if _is_mask(values) else values.permute(order)
        elif len(values.shape) == 3 and values.shape[1] == height:
            return values
        return values.reshape(len(values), height, -1)


@cache
def _layout(
    axes: tuple[Axis, ...], rows: tuple[Name, ...], columns: tuple[Name, ...] | None
) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """Sizes of axes; the order of batch, rows and columns, empty if they have it; and rows."""
    sizes = dict(axes)
    if columns is None:
        columns = tuple(name for name in sizes if name not in rows)
    order = (0, *(1 + list(sizes).index(name) for name in (*rows, *columns)))
    height = math.prod(sizes[name] for name in rows)
    return tuple(sizes.values()), () if list(order) == sorted(order) else order, height


@cache
def _meet(
    one: tuple[Axis, ...], other: tuple[Axis, ...]
) -> tuple[tuple[Name, ...], tuple[Name, ...], tuple[Axis, ...]]:
    """The names of `one` alone, those of both, and the axes of the product."""
    names = dict(other)
    mine = tuple(axis for axis in one if axis[0] not in names)
    both = tuple(name for name, _ in one if name in names)
    others = tuple(axis for axis in other if axis[0] not in both)
    return tuple(name for name, _ in mine), both, mine + others


def contract(one: Labelled, other: Labelled) -> Labelled:
    """Sum products over the axes that two tensors share; the others of `one` come first."""
    mine, both, axes = _meet(one.axes, other.axes)
    left, right = one.matrix(mine), other.matrix(both)
    return Labelled(_multiply(left, right), axes)


def _multiply(one: Any, other: Any) -> Any:
    return nonzero(one @ other) if _is_mask(one) else torch.bmm(one, other)


def _is_mask(values: Any) -> bool:
    return isinstance(values, np.ndarray)


def _split(values: Any, shares: Sequence[int]) -> Any:
    sizes = [share * len(values) // sum(shares) for share in shares]
    return np.split(values, np.cumsum(sizes)[:-1]) if _is_mask(values) else values.split(sizes)


def _join(values: list[Any]) -> Any:
    if len(values) == 1:
        return values[0]
    return np.concatenate(values) if _is_mask(values[0]) else torch.cat(values)


@dataclass(frozen=True, eq=False)
class _BlockGroup:
    """Equal blocks.

    Attributes:
        members: their numbers.
        first: one of them.
        steps: gates, or runs of cuts, at one place of all.
        operators: (members, 4, ..., 4, operators), 1 at each string that is needed; blocks with
            fewer of these are filled up with zeros.
        states: (members, 4, ..., 4, features), the values of all strings for each feature.
    """

    members: tuple[int, ...]
    first: NetworkBlock
    steps: tuple[tuple[FusedGate, ...] | tuple[tuple[BondEnd, ...], ...], ...]
    operators: Constant
    states: Constant


@dataclass(frozen=True, eq=False)
class BlockRows:
    """Where the table of a block is.

    Attributes:
        group: number of the table, which is that of all equal blocks.
        numbers: (operators, bond to each neighbour...), its rows.
        live: which of these may differ from 0.
    """

    group: int
    numbers: np.ndarray
    live: np.ndarray


class TablePlan:
    """Plans and makes the tables of a network.

    Args:
        rows: (G, local angles), rows of the program's angles: one for each equal component.

    Attributes:
        blocks: for each block, its rows.
    """

    def __init__(self, network: Network, program: Program, rows: np.ndarray) -> None:
        self._network, self._components = network, len(rows)
        alike = by_kind(range(len(network.blocks)), lambda i: _structure(network, i))
        self._groups = [_group(network, members) for members in alike]
        self._cuts = by_kind(range(len(network.cuts)), lambda i: network.cuts[i].unit.kind)
        self._maps = [
            Constant(np.stack([network.cuts[i].maps for i in numbers])) for numbers in self._cuts
        ]
        self._late = [
            (readout, Constant(_strings([readout.pauli], readout.support)[np.newaxis, ..., 0]))
            for readout in network.measured
            if readout.late
        ]
        batches: list[Any] = [tuple(network.cuts[i].unit for i in c) for c in self._cuts]
        batches += [(unit,) for readout, _ in self._late for unit in readout.late]
        batches += [s for g in self._groups for s in g.steps if isinstance(s[0], FusedGate)]
        #: Batches of units by kind.
        self._kinds = by_kind(dict.fromkeys(batches), lambda batch: batch[0].kind)
        units = [[unit for batch in kind for unit in batch] for kind in self._kinds]
        slots = [(k, i) for k, same in enumerate(units) for i in range(len(same[0].ops))]
        #: By form of gate, kinds of units and the places in these where it stands.
        self._forms = by_kind(slots, lambda slot: id(units[slot[0]][0].ops[slot[1]].gate))
        ops = [u.ops[i] for form in self._forms for k, i in form for u in units[k]]
        from_weights, offsets = program.phases(ops, rows)
        self._from_weights = Constant(np.concatenate([from_weights, 2 * from_weights]).T)
        self._offsets = Constant(np.concatenate([offsets, 2 * offsets]))
        self._sizes = [[len(units[k]) for k, _ in form] for form in self._forms]
        parts = [harmonics(units[form[0][0]][0].ops[form[0][1]].gate) for form in self._forms]
        self._parts = [Constant(part) for part in parts]
        self.blocks = self._numbered(parts)

    def __call__(self, w: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """The tables at weights w (F, P).

        Returns:
            For each group of blocks, their tables, (N, rows, features), and for each conjugated
            observable, the coefficients of all strings on its support, (N, strings); N = F G.
        """
        N = len(w) * self._components
        phases = torch.addmm(self._offsets.like(w), w, self._from_weights.like(w))
        phases = phases.view(len(w), 2, -1)
        waves = torch.cat([torch.ones_like(phases[:, :1]), phases.cos(), phases.sin()], dim=1)
        waves = waves.unflatten(2, (-1, self._components)).permute(2, 0, 3, 1).reshape(-1, 5)
        counts = [N * sum(sizes) for sizes in self._sizes]
        gates = [
            (wave @ parts.like(w).flatten(1)).unflatten(1, parts.array.shape[1:])
            for wave, parts in zip(waves.split(counts), self._parts, strict=True)
        ]

        def constant(array: Constant) -> Tensor:
            values = array.like(w).unsqueeze(1)
            return values.expand(-1, N, *values.shape[2:]).flatten(0, 1)

        tables, late = self._run(gates, constant)
        by_circuit = [table.unflatten(0, (-1, N)).transpose(0, 1).flatten(1, 2) for table in tables]
        return by_circuit, [strings.flatten(1) for strings in late]

    def _numbered(self, parts: Sequence[np.ndarray]) -> list[BlockRows]:
        """Number the rows of tables, and find those that vanish, by the steps on masks."""
        masks = [
            np.tile(nonzero(part).max(axis=0), (sum(sizes), 1, 1))
            for part, sizes in zip(parts, self._sizes, strict=True)
        ]
        tables, _ = self._run(masks, lambda constant: nonzero(constant.array))
        numbered = {}
        for number, (group, table) in enumerate(zip(self._groups, tables, strict=True)):
            live = table.any(axis=-1)
            rows = np.arange(live.size).reshape(live.shape)
            for place, index in enumerate(group.members):
                cuts, bonds = self._network.blocks[index].cuts, self._network.bonds[index]
                sizes = [self._network.cuts[cut].size for cut in cuts]
                neighbours = [sum(self._network.ends[cut]) - index for cut in cuts]
                own, alive = (
                    np.moveaxis(array[place].reshape(*sizes, -1), -1, 0)
                    .transpose(0, *(1 + np.argsort(neighbours, kind="stable")))
                    .reshape(-1, *bonds)
                    for array in (rows, live)
                )
                numbered[index] = BlockRows(number, own, alive)
        return [numbered[index] for index in range(len(numbered))]

    def _run(
        self, gates: Sequence[Any], constant: Callable[[Constant], Any]
    ) -> tuple[list[Any], list[Any]]:
        """The steps, from the transfer matrices of all gates of each form, (gates N, D, D).

        Returns:
            What `_table` makes of each group, and `_conjugated` of each conjugated observable.
        """
        slots: dict[tuple[int, int], Any] = {}
        for form, sizes, values in zip(self._forms, self._sizes, gates, strict=True):
            slots |= zip(form, _split(values, sizes), strict=True)
        units: dict[Any, Any] = {}
        for k, batches in enumerate(self._kinds):
            matrix = _unit(batches[0][0], [slots[k, i] for i in range(len(batches[0][0].ops))])
            units |= zip(batches, _split(matrix, [len(b) for b in batches]), strict=True)
        sides: dict[tuple[int, int], Any] = {}
        for numbers, maps in zip(self._cuts, self._maps, strict=True):
            cuts = [self._network.cuts[i] for i in numbers]
            side = cuts[0].constant
            gate = _stepped(units[tuple(cut.unit for cut in cuts)], (0, 1), {0: 0, 1: 0})
            axes = ("bond", cuts[0].size), ((side, 0), 4), ((side, 1), 4)
            fixed = Labelled(constant(maps), axes)
            varying = contract(fixed, gate).values.reshape(fixed.values.shape)
            ones, others = (_split(v, [1] * len(cuts)) for v in (fixed.values, varying))
            for i, cut, one, other in zip(numbers, cuts, ones, others, strict=True):
                qubits = cut.unit.qubits
                sides[i, qubits[side]], sides[i, qubits[1 - side]] = one, other
        tables = [_table(group, units, sides, constant) for group in self._groups]
        return tables, [_conjugated(r, c, units, constant) for r, c in self._late]


def _structure(network: Network, index: int) -> object:
    """Equal for blocks whose tables take the same steps.

    The two sides of a cut do not tell blocks apart.
    """
    block = network.blocks[index]
    steps: list[object] = []
    for step in block.steps:
        if isinstance(step, FusedGate):
            steps.append((step.kind, *map(block.qubits.index, step.qubits)))
        else:
            kinds = [network.cuts[end.cut].unit.kind for end in step]
            steps.append((*kinds, block.qubits.index(step[0].qubit)))
    return tuple(len(inlet.letters) for inlet in block.inlets), tuple(steps)


def _group(network: Network, members: tuple[int, ...]) -> _BlockGroup:
    blocks = [network.blocks[i] for i in members]
    count = max(len(block.operators) for block in blocks)
    operators = [_strings(b.operators, b.qubits, count) for b in blocks]
    states = [_states(block.inlets) for block in blocks]
    steps = tuple(zip(*(block.steps for block in blocks), strict=True))
    arrays = Constant(np.array(operators)), Constant(np.array(states))
    return _BlockGroup(members, blocks[0], steps, *arrays)


def _strings(paulis: Sequence[Pauli], qubits: Sequence[int], count: int = 1) -> np.ndarray:
    """(4, ..., 4, count), 1 at the letters of each string."""
    array = np.zeros([4] * len(qubits) + [count])
    for i, pauli in enumerate(paulis):
        array[(*letters_on(pauli, qubits), i)] = 1
    return array


def _states(inlets: Sequence[InputEncoding]) -> np.ndarray:
    """Expectation values of all strings by feature, (4, ..., 4, features).

    The last qubit's feature is the most significant.
    """
    states = np.ones((1, 1))
    for inlet in inlets:
        states = np.einsum("lf,gm->lmgf", states, inlet.letters).reshape(4 * len(states), -1)
    return states.reshape(*[4] * len(inlets), -1)


def _unit(unit: FusedGate, gates: Sequence[Any]) -> Any:
    """Products of the gates of units of one kind, (batch, D, D), from those of each gate."""
    wires = dict.fromkeys(unit.qubits, 0)
    products = [
        _stepped(reduce(_multiply, (values for _, values in alike)), qubits, wires)
        for qubits, alike in groupby(zip(unit.ops, gates, strict=True), lambda pair: pair[0].qubits)
    ]
    return reduce(contract, products).matrix(tuple((q, 0) for q in wires), tuple(wires.items()))


def _stepped(values: Any, qubits: Sequence[int], wires: dict[int, int], *axes: Axis) -> Labelled:
    """A transfer matrix from the wires of some qubits to new ones, which are counted."""
    before = [(q, wires[q]) for q in qubits]
    for q in qubits:
        wires[q] += 1
    after = [(q, wires[q]) for q in qubits]
    return Labelled(values, (*axes, *((wire, 4) for wire in before + after)))


def _ended(values: Any, wires: dict[int, int], *axes: Axis) -> Labelled:
    """A tensor that closes the wires of all qubits where they are now."""
    return Labelled(values, (*((wire, 4) for wire in wires.items()), *axes))


def _table(
    group: _BlockGroup,
    units: dict[Any, Any],
    sides: dict[tuple[int, int], Any],
    constant: Callable[[Constant], Any],
) -> Any:
    """The tables of equal blocks, (members N, bonds of cuts in time and operators, features)."""
    wires = dict.fromkeys(group.first.qubits, 0)
    right = _ended(constant(group.states), wires, ("features", group.first.features))
    early: list[Labelled] = []
    late: list[Labelled] = []
    bonds: list[Name] = []
    for step in group.steps:
        if isinstance(step[0], FusedGate):
            (late if bonds else early).append(_stepped(units[step], step[0].qubits, wires))
            continue
        run = []
        for ends in zip(*step, strict=True):
            bonds.append(("bond", len(bonds)))
            values = _join([sides[end.cut, end.qubit] for end in ends])
            run.append(_stepped(values, (ends[0].qubit,), wires, (bonds[-1], values.shape[1])))
        late.append(reduce(contract, run))
    count = group.operators.array.shape[-1]
    left = _ended(constant(group.operators), wires, ("operators", count))
    if not bonds:  # operators are fewer than features
        early, late = [], early
    for gate in early:
        right = contract(gate, right)
    for tensor in reversed(late[bool(bonds) :]):
        left = contract(tensor, left)
    table = contract(left, right)
    if bonds:  # the first run of cuts makes the largest tensor of all, so that it comes last
        table = contract(late[0], table)
    return table.matrix((*bonds, "operators"), ("features",))


def _conjugated(
    readout: Readout,
    observable: Constant,
    units: dict[Any, Any],
    constant: Callable[[Constant], Any],
) -> Any:
    """The coefficients of all strings on the support of an observable, (N, 4^s, 1)."""
    wires = dict.fromkeys(readout.support, 0)
    gates = [_stepped(units[unit,], unit.qubits, wires) for unit in readout.late]
    strings = _ended(constant(observable), wires)
    for gate in reversed(gates):
        strings = contract(gate, strings)
    return strings.matrix(tuple((qubit, 0) for qubit in readout.support), ())
