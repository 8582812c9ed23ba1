"""The matrix products that turn the weights into the coefficients of a network's blocks.

Pauli strings on a block go backward in time through its gates and cuts, initial states forward
through the gates before its first cut; there they meet. Everything is a product of a gate's real
transfer matrix with some axes of a tensor, one axis of size 4 for each qubit. Neighbouring gates on
three qubits are multiplied first, gates of one kind are made together, and equal blocks are one
batch. This module plans the products, and finds which coefficients vanish whatever the weights;
block_tensors.py computes them.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qhdm.quantum.exact.constants import Constant
from qhdm.quantum.exact.transfer import ZERO, harmonics
from qhdm.quantum.exact.tree import BondEnd, InputEncoding, Network, NetworkBlock, Readout
from qhdm.quantum.ir.fusion import FusedGate
from qhdm.quantum.ir.lowering import Program
from qhdm.quantum.ir.paulis import letters_on

#: Largest product of two neighbouring gates, in qubits.
_PAIR_QUBITS = 3


@dataclass(frozen=True)
class Reorder:
    """View a tensor as `shape`, permute its axes to `order`, flatten to (rows, columns)."""

    shape: tuple[int, ...]
    order: tuple[int, ...]
    rows: int


@dataclass(frozen=True)
class Product:
    """The matrices in a slot times a reordered tensor."""

    slot: int
    reorder: Reorder


@dataclass(frozen=True, eq=False)
class GateKind:
    """Gates that differ in their qubits and angles alone.

    Attributes:
        parts: (gates of a unit, 5, D D), `harmonics` of each.
        sizes: units for each of `slots`.
        slots: which take them, in order.
    """

    parts: Constant
    sizes: tuple[int, ...]
    slots: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class PairKind:
    """Products of two neighbouring gates, those of one kind.

    Attributes:
        identity: (1, rows, columns).
        later, earlier: what multiplies it, in this order.
        sizes, slots: see `GateKind`.
    """

    identity: Constant
    later: Product
    earlier: Product
    sizes: tuple[int, ...]
    slots: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class CutKind:
    """Cuts of one kind; their sides are the varying ones, then the constant one.

    Attributes:
        slot: of their gates.
        count: how many they are.
        maps, projector: see `transfer.Bond`.
    """

    slot: int
    count: int
    maps: Constant
    projector: Constant


@dataclass(frozen=True, eq=False)
class RunKind:
    """Runs of cuts on one qubit, as maps (bonds 4, 4); the first cut's bond is most significant.

    Attributes:
        sides: for each cut of a run, its kind, and for each run the place among the sides.
        bonds: for each cut of a run, the size of its bond.
        sizes, slots: see `GateKind`.
    """

    sides: tuple[tuple[int, Constant], ...]
    bonds: tuple[int, ...]
    sizes: tuple[int, ...]
    slots: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class BlockGroup:
    """Equal blocks, as one batch.

    Attributes:
        blocks: their numbers.
        operators: Pauli strings, (blocks, 4^k, n).
        backward: products that take them back to the first cuts in time.
        left: brings the qubit of these, other bonds in time and n to the rows.
        states: expectation values by feature, (blocks, 4^k, features).
        forward: products, with transposed matrices, that take them there.
        right: brings all other qubits to the rows, that of the cuts and features to the columns.
        run: slot of the first cuts, or -1.
    """

    blocks: tuple[int, ...]
    operators: Constant
    backward: tuple[Product, ...]
    left: Reorder
    states: Constant
    forward: tuple[Product, ...]
    right: Reorder
    run: int


@dataclass(frozen=True, eq=False)
class LateReadout:
    """An observable that gates at the end conjugate: (4^s, 1), products, and the strings it has."""

    observable: Constant
    products: tuple[Product, ...]
    finish: Reorder
    strings: Constant


@dataclass(frozen=True, eq=False)
class Schedule:
    """See the module.

    Attributes:
        gates, pairs, cuts, runs: matrices in the order in which they are made.
        order: for each kind of gate, its units, which may repeat.
        groups: blocks.
        late: conjugated observables.
        components: G.
        from_weights: (P, 2 phases), from weights to the phases of all gates by kind, ordered as
            (gates of a unit, G, units), and to twice these.
        offsets: (2 phases,).
    """

    gates: tuple[GateKind, ...]
    order: tuple[tuple[FusedGate, ...], ...]
    pairs: tuple[PairKind, ...]
    cuts: tuple[CutKind, ...]
    runs: tuple[RunKind, ...]
    groups: tuple[BlockGroup, ...]
    late: tuple[LateReadout, ...]
    components: int
    from_weights: Constant
    offsets: Constant


@dataclass(frozen=True)
class _Pair:
    """Two gates, `first` the earlier."""

    first: FusedGate
    second: FusedGate

    @property
    def qubits(self) -> tuple[int, ...]:
        later = (q for q in self.second.qubits if q not in self.first.qubits)
        return (*self.first.qubits, *later)

    @property
    def kind(self) -> object:
        places = tuple(self.qubits.index(q) for q in self.second.qubits)
        return self.first.kind, self.second.kind, places


class _Axes:
    """The named axes of a tensor, as products reorder them."""

    def __init__(self, sizes: dict[Hashable, int]) -> None:
        self.sizes = sizes

    def reorder(self, names: Sequence[Hashable]) -> Reorder:
        """Bring some axes to the front."""
        before = list(self.sizes)
        after = [*names, *(name for name in before if name not in names)]
        shape = tuple(self.sizes.values())
        rows = math.prod(self.sizes[name] for name in names)
        self.sizes = {name: self.sizes[name] for name in after}
        return Reorder(shape, tuple(map(before.index, after)), rows)

    def product(
        self, slot: int, names: Sequence[Hashable], bonds: dict[Hashable, int] | None = None
    ) -> Product:
        """Multiply some axes by a matrix that puts the axes of bonds in front of them."""
        reorder = self.reorder(names)
        self.sizes = (bonds or {}) | self.sizes
        return Product(slot, reorder)


#: What a product multiplies by.
_Item = FusedGate | _Pair | tuple[BondEnd, ...]


class _Slots:
    """Numbers the batches of matrices that products ask for."""

    def __init__(self, network: Network) -> None:
        self._network = network
        #: For each kind, the slots and their items.
        self._gates: dict[object, dict[int, tuple[FusedGate, ...]]] = {}
        self._pairs: dict[object, dict[int, tuple[_Pair, ...]]] = {}
        self._runs: dict[object, dict[int, tuple[tuple[BondEnd, ...], ...]]] = {}
        self._count = 0

    def ask(self, items: Sequence[Any]) -> int:
        """The slot of a batch of items of one kind."""
        kinds: dict[object, dict[int, Any]] = (
            self._gates
            if isinstance(items[0], FusedGate)
            else self._pairs if isinstance(items[0], _Pair) else self._runs
        )
        self._count += 1
        kinds.setdefault(self.kind(items[0]), {})[self._count - 1] = tuple(items)
        return self._count - 1

    def kind(self, item: _Item) -> object:
        """Equal for items that differ in their qubits and angles alone."""
        if not isinstance(item, tuple):
            return item.kind
        cuts = [self._network.cuts[end.cut] for end in item]
        return tuple(
            (cut.unit.kind, end.qubit == cut.unit.qubits[cut.bond.constant])
            for cut, end in zip(cuts, item, strict=True)
        )

    def pairs(self) -> tuple[PairKind, ...]:
        return tuple(map(self._pair_kind, self._pairs.values()))

    def _pair_kind(self, batches: dict[int, tuple[_Pair, ...]]) -> PairKind:
        pairs = [pair for batch in batches.values() for pair in batch]
        pair = pairs[0]
        size = len(pair.qubits)
        start = (*pair.second.qubits, *(q for q in pair.first.qubits if q not in pair.second.qubits))
        axes = _Axes(dict.fromkeys(start, 4) | {"columns": 4**size})
        # The products leave the rows in the order of the pair's qubits, which is the columns'.
        identity = np.eye(4**size).reshape(*[4] * size, -1)
        identity = identity.transpose(*map(pair.qubits.index, start), size)
        return PairKind(
            Constant(identity.reshape(1, 4**size, -1)),
            axes.product(self.ask([pair.second for pair in pairs]), pair.second.qubits),
            axes.product(self.ask([pair.first for pair in pairs]), pair.first.qubits),
            tuple(map(len, batches.values())),
            tuple(batches),
        )

    def bonds(self) -> tuple[tuple[CutKind, ...], tuple[RunKind, ...]]:
        alike: dict[object, list[int]] = {}
        for number, cut in enumerate(self._network.cuts):
            alike.setdefault(cut.unit.kind, []).append(number)
        cuts = []
        sides: dict[BondEnd, int] = {}
        for numbers in alike.values():
            kind = [self._network.cuts[number] for number in numbers]
            slot = self.ask([cut.unit for cut in kind])
            cuts.append(CutKind(slot, len(kind), kind[0].bond.maps, kind[0].bond.projector))
            for place, (number, cut) in enumerate(zip(numbers, kind, strict=True)):
                constant = cut.unit.qubits[cut.bond.constant]
                sides |= {BondEnd(number, q): len(numbers) if q == constant else place for q in cut.unit.qubits}
        order = list(alike)
        runs = []
        for kinds, batches in self._runs.items():
            every = [run for batch in batches.values() for run in batch]
            runs.append(RunKind(
                tuple(
                    (order.index(kind), Constant(np.array([sides[run[i]] for run in every])))
                    for i, (kind, _) in enumerate(kinds)
                ),
                tuple(self._network.cuts[end.cut].bond.size for end in every[0]),
                tuple(map(len, batches.values())),
                tuple(batches),
            ))
        return tuple(cuts), tuple(runs)

    def gates(self) -> tuple[tuple[GateKind, tuple[FusedGate, ...]], ...]:
        kinds = []
        for batches in self._gates.values():
            units = tuple(unit for batch in batches.values() for unit in batch)
            parts = np.array([harmonics(gate) for gate in units[0].gates])
            sizes = tuple(map(len, batches.values()))
            kinds.append((GateKind(Constant(parts.reshape(*parts.shape[:2], -1)), sizes, tuple(batches)), units))
        return tuple(kinds)


def make_schedule(network: Network, program: Program, rows: np.ndarray) -> Schedule:
    """Plan the products of a network; `rows` (G, local angles) are rows of the program's angles."""
    slots = _Slots(network)
    alike: dict[object, list[int]] = {}
    for index, block in enumerate(network.blocks):
        alike.setdefault(_structure(network, block, slots), []).append(index)
    groups = tuple(_group(network, tuple(members), slots) for members in alike.values())
    late = tuple(_late(readout, slots) for readout in network.measured if readout.late)
    pairs = slots.pairs()
    cuts, runs = slots.bonds()
    gates = slots.gates()
    units = [kind for _, kind in gates]
    from_weights, offsets = gate_phases(program, units, rows)
    return Schedule(
        tuple(kind for kind, _ in gates),
        tuple(units),
        pairs,
        cuts,
        runs,
        groups,
        late,
        len(rows),
        Constant(np.concatenate([from_weights, 2 * from_weights]).T),
        Constant(np.concatenate([offsets, 2 * offsets])),
    )


def gate_phases(
    program: Program, kinds: Sequence[Sequence[FusedGate]], rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Phases of all gates as affine functions of the weights, (phases, P) and (phases,).

    They are ordered by kind, then as (gates of a unit, G, units); constant gates have 0.

    Args:
        program: has the angles.
        kinds: units of one kind each, on local angles.
        rows: (G, local angles), rows of the program's angles.
    """
    weights = np.pad(program.from_weights, ((0, 1), (0, 0)))
    offsets = np.pad(program.offsets, (0, 1))
    padded = np.pad(rows, ((0, 0), (0, 1)), constant_values=len(program.offsets))
    places, scales = [np.zeros(0, dtype=int)], [np.zeros(0)]
    for units in kinds:
        local = np.array([[op.angle for op in unit.ops] for unit in units]).T
        places.append(padded[:, local].swapaxes(0, 1).reshape(-1))
        scales.append(np.repeat([op.gate.scale for op in units[0].ops], len(rows) * len(units)))
    row, scale = np.concatenate(places), np.concatenate(scales)
    return scale[:, None] * weights[row], scale * offsets[row]


def _items(steps: Sequence[FusedGate | tuple[BondEnd, ...]]) -> list[_Item]:
    """Steps of a block in order, neighbouring gates on few qubits in pairs."""
    items: list[_Item] = []
    for step in steps:
        last = items[-1] if items else None
        if isinstance(step, FusedGate) and isinstance(last, FusedGate):
            pair = _Pair(last, step)
            if len(pair.qubits) <= _PAIR_QUBITS:
                items[-1] = pair
                continue
        items.append(step)
    return items


def _names(item: _Item, block: NetworkBlock) -> list[Hashable]:
    """The axes that an item multiplies: positions of qubits in the block."""
    qubits = [item[0].qubit] if isinstance(item, tuple) else item.qubits
    return [block.qubits.index(q) for q in qubits]


def _structure(network: Network, block: NetworkBlock, slots: _Slots) -> object:
    """Equal for blocks whose coefficients are the same products."""
    features = tuple(len(network.inlets[q].letters) for q in block.qubits)
    steps = [*_items(block.before), None, *_items(block.steps)]
    return features, tuple(
        item and (slots.kind(item), tuple(_names(item, block))) for item in steps
    )


def _group(network: Network, members: tuple[int, ...], slots: _Slots) -> BlockGroup:
    """Plan equal blocks; those with fewer operators are filled up with zeros."""
    blocks = [network.blocks[i] for i in members]
    block = blocks[0]
    qubits = range(len(block.qubits))
    count = max(len(b.operators) for b in blocks)
    operators = np.zeros((len(blocks), 4 ** len(qubits), count))
    for row, b in zip(operators, blocks, strict=True):
        for i, pauli in enumerate(b.operators):
            row[:, i] = _one_hot(letters_on(pauli, b.qubits))
    states = np.array([_states([network.inlets[q] for q in b.qubits]) for b in blocks])

    before = list(zip(*(_items(b.before) for b in blocks), strict=True))
    steps = list(zip(*(_items(b.steps) for b in blocks), strict=True))
    first = steps.pop(0) if steps else None
    backward = _Axes(dict.fromkeys(qubits, 4) | {"operators": count})
    products, forward_products = [], []
    made = len(block.cuts)
    for batch in reversed(steps if first else before):
        bonds: dict[Hashable, int] = {}
        if isinstance(batch[0], tuple):
            made -= len(batch[0])
            bonds = {("bond", made + i): network.cuts[end.cut].bond.size for i, end in enumerate(batch[0])}
        products.append(backward.product(slots.ask(batch), _names(batch[0], block), bonds))
    forward = _Axes(dict.fromkeys(qubits, 4) | {"features": block.features})
    if first:
        for batch in before:
            forward_products.append(forward.product(slots.ask(batch), _names(batch[0], block)))
    met = _names(first[0], block) if first else []
    others = sorted(name for name in backward.sizes if isinstance(name, tuple))
    left = backward.reorder([*met, *others, "operators"])
    right = forward.reorder([name for name in backward.sizes if name in qubits and name not in met])
    return BlockGroup(
        members, Constant(operators), tuple(products), left, Constant(states),
        tuple(forward_products), right, slots.ask(first) if first else -1,
    )


def _late(readout: Readout, slots: _Slots) -> LateReadout:
    axes = _Axes(dict.fromkeys(readout.support, 4))
    products = tuple(
        axes.product(slots.ask([unit]), unit.qubits) for unit in reversed(readout.late)
    )
    observable = _one_hot(letters_on(readout.pauli, readout.support))
    finish = axes.reorder(readout.support)
    return LateReadout(Constant(observable[None, :, None]), products, finish, Constant(readout.strings))


def _one_hot(letters: Sequence[int]) -> np.ndarray:
    """The coefficients of one Pauli string, (4^k,)."""
    vector = np.zeros([4] * len(letters))
    vector[tuple(letters)] = 1
    return vector.reshape(-1)


def _states(inlets: Sequence[InputEncoding]) -> np.ndarray:
    """Expectation values of all strings by feature, (4^k, features), the last most significant."""
    states = np.ones((1, 1))
    for inlet in inlets:
        states = np.einsum("lf,gm->lmgf", states, inlet.letters).reshape(4 * len(states), -1)
    return states


def possible_strings(
    letters: Sequence[int], support: tuple[int, ...], late: Sequence[FusedGate]
) -> np.ndarray:
    """Strings on `support` that gates can make of one, by number, at any angles."""
    axes = _Axes(dict.fromkeys(support, 4))
    vector = _one_hot(letters)[None, :, None]
    for unit in reversed(late):
        vector = _met(axes.product(-1, unit.qubits), _pattern(unit), vector)
    vector = _reordered(axes.reorder(support), vector)
    return np.flatnonzero(vector)


def _pattern(unit: FusedGate) -> np.ndarray:
    """Where the transfer matrix of a gate may differ from 0, (1, 4^k, 4^k)."""
    pattern: np.ndarray = np.eye(4 ** len(unit.qubits), dtype=np.float32)
    for gate in unit.gates:
        pattern = _mask(pattern @ _mask(np.abs(harmonics(gate)).max(axis=0)))
    return pattern[None]


def nonzero_rows(schedule: Schedule) -> list[np.ndarray]:
    """For each block, which rows of its coefficients may differ from 0.

    The products of block_tensors.py, on where their factors may differ from 0.
    """
    slots: dict[int, np.ndarray] = {}
    for kind, units in zip(schedule.gates, schedule.order, strict=True):
        slots |= dict.fromkeys(kind.slots, _pattern(units[0]))
    for pair in schedule.pairs:
        made = _met(pair.later, slots[pair.later.slot], pair.identity.array)
        made = _met(pair.earlier, slots[pair.earlier.slot], made)
        slots |= dict.fromkeys(pair.slots, made.reshape(pair.identity.array.shape))
    for run in schedule.runs:
        made = np.eye(4, dtype=np.float32)
        for (number, places), size in zip(run.sides, run.bonds, strict=True):
            cut = schedule.cuts[number]
            side = cut.maps.array
            if places.array[0] < cut.count:
                side = slots[cut.slot].reshape(1, -1) @ _mask(cut.projector.array)
            side = _mask(side).reshape(size, 4, 4).swapaxes(0, 1).reshape(4, -1)
            made = _mask(made @ side).reshape(-1, 4, size, 4).swapaxes(1, 2).reshape(-1, 4)
        slots |= dict.fromkeys(run.slots, made[None])
    rows: dict[int, np.ndarray] = {}
    for group in schedule.groups:
        left, right = group.operators.array, _mask(group.states.array)
        for step in group.backward:
            left = _met(step, slots[step.slot], left)
        for step in group.forward:
            right = _met(step, slots[step.slot].mT, right)
        traces = _mask(_reordered(group.left, left) @ _reordered(group.right, right))
        if group.run >= 0:
            # From (qubit before the cuts, others, qubit after, features).
            traces = traces.reshape(len(traces), 4, group.left.rows // 4, 4, -1).any(axis=4)
            maps = slots[group.run].reshape(1, -1, 16)
            traces = maps @ traces.transpose(0, 3, 1, 2).reshape(len(traces), 16, -1)
            traces = traces.reshape(len(traces), -1, 1)
        rows |= zip(group.blocks, traces.any(axis=2), strict=True)
    return [rows[i] for i in range(len(rows))]


def _met(product: Product, matrices: np.ndarray, tensor: np.ndarray) -> np.ndarray:
    return _mask(matrices @ _reordered(product.reorder, tensor))


def _reordered(reorder: Reorder, tensor: np.ndarray) -> np.ndarray:
    tensor = tensor.reshape(-1, *reorder.shape).transpose(0, *(i + 1 for i in reorder.order))
    return tensor.reshape(len(tensor), reorder.rows, -1)


def _mask(array: np.ndarray) -> np.ndarray:
    return (np.abs(array) > ZERO).astype(np.float32)
