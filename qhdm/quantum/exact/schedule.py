"""The matrix products that turn the weights into the coefficients of a network's blocks.

Pauli strings on a block go backward in time through its gates and cuts, initial states forward
through the gates before its first cut; there they meet. Each gate is a product of its real transfer
matrix with some axes of a tensor that has an axis of size 4 for each qubit. Neighbouring gates on
three qubits are multiplied first, gates of one kind are made together, and equal blocks are one
batch. This module plans the steps and finds what vanishes whatever the weights; network.py computes
them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from qhdm.quantum.exact.constants import Constant
from qhdm.quantum.exact.transfer import harmonics, nonzero, pattern
from qhdm.quantum.exact.tree import BondEnd, InputEncoding, Network, NetworkBlock, Readout
from qhdm.quantum.ir.fusion import FusedGate
from qhdm.quantum.ir.lowering import Program
from qhdm.quantum.ir.paulis import Pauli, letters_on

#: Largest product of two neighbouring gates, in qubits.
_PAIR_QUBITS = 3
_NONE: Mapping[Hashable, int] = MappingProxyType({})


@dataclass(frozen=True, eq=False)
class Step:
    """One operation on batches of m matrices, for N circuits: tensors (m N, rows, columns).

    Attributes:
        kind: one of
            "gates": transfer matrices of kind `data`;
            "constant": `data`, (m, rows, columns);
            "multiply": the product of two batches;
            "transpose": each matrix transposed;
            "reorder": with rows and columns viewed as the shape data[0], its axes in the order
                data[1], the first data[2] numbers of which make the rows;
            "split": batches of `data` matrices each, and "part": number `data` of these;
            "take": the matrices at `data`;
            "join": two batches, end to end.
        reads: numbers of the steps that it needs.
        data: see `kind`.
    """

    kind: str
    reads: tuple[int, ...]
    data: Any = None


@dataclass(frozen=True, eq=False)
class Schedule:
    """See the module.

    Attributes:
        components: G.
        kinds: units whose gates differ in qubits and angles alone.
        parts: for each kind, (gates of a unit, 5, D D), the `harmonics` of each gate.
        from_weights, offsets: (P, 2 phases) and (2 phases,), from weights to the phases of all
            gates, see `gate_phases`, and to twice these.
        steps: in order.
        blocks: for each block, the step that makes its coefficients, (rows, features), and its
            place among the equal blocks there.
        late: for each conjugated observable, the step with the coefficients of all strings.
    """

    components: int
    kinds: tuple[tuple[FusedGate, ...], ...]
    parts: tuple[Constant, ...]
    from_weights: Constant
    offsets: Constant
    steps: tuple[Step, ...]
    blocks: tuple[tuple[int, int], ...]
    late: tuple[int, ...]


@dataclass(frozen=True)
class _Pair:
    """Two gates, `first` the earlier."""

    first: FusedGate
    second: FusedGate

    @property
    def qubits(self) -> tuple[int, ...]:
        return tuple(dict.fromkeys((*self.first.qubits, *self.second.qubits)))

    @property
    def kind(self) -> object:
        places = tuple(self.qubits.index(q) for q in self.second.qubits)
        return self.first.kind, self.second.kind, places


_Item = FusedGate | _Pair | tuple[BondEnd, ...]


class _Steps:
    """Steps that are being planned."""

    def __init__(self) -> None:
        self.steps: list[Step] = []

    def add(self, kind: str, *reads: int, data: Any = None) -> int:
        self.steps.append(Step(kind, reads, data))
        return len(self.steps) - 1

    def constant(self, array: np.ndarray) -> int:
        return self.add("constant", data=Constant(np.array(array)))

    def reorder(self, step: int, shape: Sequence[int], order: Sequence[int], rows: int) -> int:
        return self.add("reorder", step, data=(tuple(shape), tuple(order), rows))

    def split(
        self, batches: Iterable[Any], kind: Callable[[Any], object], make: Callable[[Any], int]
    ) -> dict[Any, int]:
        """The step of each batch of items of one kind; all of a kind are made together."""
        parts: dict[Any, int] = {}
        for alike in _alike(batches, lambda batch: kind(batch[0])):
            whole = make(tuple(item for batch in alike for item in batch))
            whole = self.add("split", whole, data=tuple(map(len, alike)))
            parts |= {batch: self.add("part", whole, data=i) for i, batch in enumerate(alike)}
        return parts


class _Register:
    """Matrices of a step as tensors with named axes."""

    def __init__(self, steps: _Steps, step: int, sizes: dict[Hashable, int]) -> None:
        self.steps, self.step, self.sizes = steps, step, sizes

    def lead(self, names: Sequence[Hashable]) -> int:
        """Bring some axes to the front, as rows."""
        before = list(self.sizes)
        after = [*names, *(name for name in before if name not in names)]
        rows = math.prod(self.sizes[name] for name in names)
        order = [before.index(name) for name in after]
        self.step = self.steps.reorder(self.step, tuple(self.sizes.values()), order, rows)
        self.sizes = {name: self.sizes[name] for name in after}
        return self.step

    def multiply(
        self, matrices: int, names: Sequence[Hashable], bonds: Mapping[Hashable, int] = _NONE
    ) -> None:
        """Multiply some axes by matrices that put axes of bonds in front of them."""
        self.step = self.steps.add("multiply", matrices, self.lead(names))
        self.sizes = {**bonds, **self.sizes}


def make_schedule(network: Network, program: Program, rows: np.ndarray) -> Schedule:
    """Plan the steps for a network; `rows` (G, local angles) are rows of the program's angles."""
    planner = _Planner(network)
    blocks: dict[int, tuple[int, int]] = {}
    for members in planner.groups:
        step = planner.coefficients(members)
        blocks |= {member: (step, place) for place, member in enumerate(members)}
    late = tuple(planner.conjugated(readout) for readout in network.measured if readout.late)
    from_weights, offsets = gate_phases(program, planner.kinds, rows)
    parts = [np.array([harmonics(gate) for gate in units[0].gates]) for units in planner.kinds]
    return Schedule(
        len(rows),
        tuple(planner.kinds),
        tuple(Constant(part.reshape(*part.shape[:2], -1)) for part in parts),
        Constant(np.concatenate([from_weights, 2 * from_weights]).T),
        Constant(np.concatenate([offsets, 2 * offsets])),
        tuple(planner.steps.steps),
        tuple(blocks[index] for index in range(len(blocks))),
        late,
    )


class _Planner:
    """Plans the steps for one network.

    Attributes:
        steps: so far.
        groups: numbers of equal blocks.
        kinds: units, by kind.
    """

    def __init__(self, network: Network) -> None:
        self._network = network
        self.steps = _Steps()
        self.kinds: list[tuple[FusedGate, ...]] = []
        self.groups = _alike(range(len(network.blocks)), self._structure)
        batches = [
            batch
            for members in self.groups
            for early in (True, False)
            for batch in self._batches(members, early=early)
        ]
        gates: list[Any] = [batch for batch in batches if isinstance(batch[0], FusedGate)]
        gates += [(unit,) for readout in network.measured for unit in readout.late]
        pairs: list[Any] = [batch for batch in batches if isinstance(batch[0], _Pair)]
        for alike in _alike(pairs, lambda batch: batch[0].kind):
            every = [pair for batch in alike for pair in batch]
            gates += [tuple(pair.first for pair in every), tuple(pair.second for pair in every)]
        self._cuts = _alike(range(len(network.cuts)), lambda i: network.cuts[i].unit.kind)
        gates += [self._units(numbers) for numbers in self._cuts]
        #: The step of each batch.
        self._made: dict[Any, int] = self.steps.split(gates, lambda unit: unit.kind, self._gates)
        self._made |= self.steps.split(pairs, lambda pair: pair.kind, self._product)
        self._sides = [self._both_sides(numbers) for numbers in self._cuts]
        runs: list[Any] = [batch for batch in batches if isinstance(batch[0], tuple)]
        self._made |= self.steps.split(runs, self._kind, self._run)

    def _structure(self, index: int) -> object:
        """Equal for blocks whose coefficients take the same steps."""
        block = self._network.blocks[index]
        features = tuple(len(self._network.inlets[q].letters) for q in block.qubits)
        items = [(early, item) for early in (True, False) for item in _items(block, early=early)]
        return features, tuple(
            (early, self._kind(item), tuple(_axes(item, block))) for early, item in items
        )

    def _kind(self, item: _Item) -> object:
        """Equal for items that differ in their qubits and angles, or sides of cuts, alone."""
        if not isinstance(item, tuple):
            return item.kind
        return tuple(self._network.cuts[end.cut].unit.kind for end in item)

    def _units(self, numbers: Sequence[int]) -> tuple[FusedGate, ...]:
        return tuple(self._network.cuts[i].unit for i in numbers)

    def _batches(self, members: Sequence[int], *, early: bool) -> list[tuple[_Item, ...]]:
        """Items of equal blocks, those before or from the first cut on."""
        blocks = [self._network.blocks[i] for i in members]
        return list(zip(*(_items(block, early=early) for block in blocks), strict=True))

    def _gates(self, units: tuple[FusedGate, ...]) -> int:
        self.kinds.append(units)
        return self.steps.add("gates", data=len(self.kinds) - 1)

    def _product(self, pairs: tuple[_Pair, ...]) -> int:
        """Products of two gates, as they multiply the identity."""
        first, second = pairs[0].first.qubits, pairs[0].second.qubits
        qubits, size = pairs[0].qubits, 4 ** len(pairs[0].qubits)
        start = (*second, *(q for q in first if q not in second))
        # The products leave the rows in the order of the pair's qubits, which is the columns'.
        identity = np.eye(size).reshape(*[4] * len(qubits), -1)
        identity = identity.transpose(*map(qubits.index, start), len(qubits)).reshape(size, size)
        step = self.steps.constant(np.broadcast_to(identity, (len(pairs), size, size)))
        register = _Register(self.steps, step, dict.fromkeys(start, 4) | {"columns": size})
        register.multiply(self._made[tuple(pair.second for pair in pairs)], second)
        register.multiply(self._made[tuple(pair.first for pair in pairs)], first)
        return register.lead(qubits)

    def _both_sides(self, numbers: tuple[int, ...]) -> int:
        """Sides of cuts of one kind, (r 4, 4): those that vary, then the constant one."""
        bond = self._network.cuts[numbers[0]].bond
        side, maps = bond.constant, bond.maps.reshape(bond.size, 16)
        # R as (constant side, other side), each with its letters after and before the gate.
        order = (side, side + 2, 1 - side, 3 - side)
        gates = self.steps.reorder(self._made[self._units(numbers)], [4] * 4, order, 16)
        constant = self.steps.constant(np.broadcast_to(maps, (len(numbers), *maps.shape)))
        varying = self.steps.add("multiply", constant, gates)
        varying = self.steps.reorder(varying, (bond.size * 4, 4), (0, 1), bond.size * 4)
        return self.steps.add("join", varying, self.steps.constant(maps.reshape(1, -1, 4)))

    def _run(self, runs: tuple[tuple[BondEnd, ...], ...]) -> int:
        """Runs of cuts on one qubit, (bonds 4, 4); the first cut's bond is most significant."""
        whole = -1
        for ends in zip(*runs, strict=True):
            kind = next(i for i, numbers in enumerate(self._cuts) if ends[0].cut in numbers)
            places = [self._place(end, self._cuts[kind]) for end in ends]
            side = self.steps.add("take", self._sides[kind], data=Constant(np.array(places)))
            if whole < 0:
                whole, bonds = side, self._bond(ends[0])
                continue
            size = self._bond(ends[0])
            side = self.steps.reorder(side, (size, 4, 4), (1, 0, 2), 4)
            whole = self.steps.add("multiply", whole, side)
            whole = self.steps.reorder(whole, (bonds, 4, size, 4), (0, 2, 1, 3), bonds * size * 4)
            bonds *= size
        return whole

    def _place(self, end: BondEnd, numbers: tuple[int, ...]) -> int:
        """The place of a side among those of cuts of one kind."""
        cut = self._network.cuts[end.cut]
        constant = end.qubit == cut.unit.qubits[cut.bond.constant]
        return len(numbers) if constant else numbers.index(end.cut)

    def _bond(self, end: BondEnd) -> int:
        return self._network.cuts[end.cut].bond.size

    def coefficients(self, members: tuple[int, ...]) -> int:
        """Coefficients of equal blocks, (rows, features).

        The rows are the values of the cuts in time, then the operators; blocks with fewer of these
        are filled up with zeros.
        """
        blocks = [self._network.blocks[i] for i in members]
        block, k = blocks[0], len(blocks[0].qubits)
        count = max(len(b.operators) for b in blocks)
        operators = np.zeros((len(blocks), 4**k, count))
        for b, columns in zip(blocks, operators, strict=True):
            for i, pauli in enumerate(b.operators):
                columns[_number(pauli, b.qubits), i] = 1
        states = np.array([_states([self._network.inlets[q] for q in b.qubits]) for b in blocks])
        axes: dict[Hashable, int] = dict.fromkeys(range(k), 4)
        left = _Register(self.steps, self.steps.constant(operators), axes | {"operators": count})
        right = _Register(
            self.steps, self.steps.constant(states), axes | {"features": block.features}
        )
        early = self._batches(members, early=True)
        first: Any
        first, *late = self._batches(members, early=False) or [()]
        for batch in early if first else ():
            transposed = self.steps.add("transpose", self._made[batch])
            right.multiply(transposed, _axes(batch[0], block))
        time = len(block.cuts)
        for batch in reversed(late if first else early):
            bonds: dict[Hashable, int] = {}
            if isinstance(batch[0], tuple):
                time -= len(batch[0])
                bonds = {("bond", time + i): self._bond(end) for i, end in enumerate(batch[0])}
            left.multiply(self._made[batch], _axes(batch[0], block), bonds)
        met = _axes(first[0], block) if first else []
        others = [*sorted(name for name in left.sizes if isinstance(name, tuple)), "operators"]
        before = left.lead([*met, *others])
        inner = [name for name in left.sizes if isinstance(name, int) and name not in met]
        traces = self.steps.add("multiply", before, right.lead(inner))
        if not first:
            return traces
        # The cuts' maps meet traces, with the letters of their qubit after and before, instead of
        # the operators: this is the largest tensor of all.
        n = math.prod(left.sizes[name] for name in others)
        size = math.prod(map(self._bond, first[0]))
        traces = self.steps.reorder(traces, (4, n, 4, block.features), (2, 0, 1, 3), 16)
        maps = self.steps.reorder(self._made[first], (size, 16), (0, 1), size)
        values = self.steps.add("multiply", maps, traces)
        return self.steps.reorder(values, (size * n, block.features), (0, 1), size * n)

    def conjugated(self, readout: Readout) -> int:
        """Coefficients of all strings in a conjugated observable, (4^s, 1)."""
        observable = np.zeros((1, 4 ** len(readout.support), 1))
        observable[:, _number(readout.pauli, readout.support)] = 1
        axes: dict[Hashable, int] = dict.fromkeys(readout.support, 4)
        register = _Register(self.steps, self.steps.constant(observable), axes)
        for unit in reversed(readout.late):
            register.multiply(self._made[unit,], unit.qubits)
        return register.lead(readout.support)


def _alike(items: Iterable[Any], kind: Callable[[Any], object]) -> list[tuple[Any, ...]]:
    """Items by kind, each once, in the order in which they first occur."""
    kinds: dict[object, list[Any]] = {}
    for item in dict.fromkeys(items):
        kinds.setdefault(kind(item), []).append(item)
    return [tuple(members) for members in kinds.values()]


def _items(block: NetworkBlock, *, early: bool) -> list[_Item]:
    """Steps of a block before or from its first cut on, gates on few qubits in pairs."""
    items: list[_Item] = []
    for step in block.before if early else block.steps:
        last = items[-1] if items else None
        if isinstance(step, FusedGate) and isinstance(last, FusedGate):
            pair = _Pair(last, step)
            if len(pair.qubits) <= _PAIR_QUBITS:
                items[-1] = pair
                continue
        items.append(step)
    return items


def _axes(item: _Item, block: NetworkBlock) -> list[Hashable]:
    """The axes that an item multiplies: positions of its qubits in the block."""
    qubits = [item[0].qubit] if isinstance(item, tuple) else item.qubits
    return [block.qubits.index(qubit) for qubit in qubits]


def _number(pauli: Pauli, qubits: Sequence[int]) -> int:
    """The place of a string among all on some qubits."""
    return int(np.ravel_multi_index(letters_on(pauli, qubits), [4] * len(qubits)))


def _states(inlets: Sequence[InputEncoding]) -> np.ndarray:
    """Expectation values of all strings by feature, (4^k, features), the last most significant."""
    states = np.ones((1, 1))
    for inlet in inlets:
        states = np.einsum("lf,gm->lmgf", states, inlet.letters).reshape(4 * len(states), -1)
    return states


def gate_phases(
    program: Program, kinds: Sequence[Sequence[FusedGate]], rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Phases of all gates as affine functions of the weights, (phases, P) and (phases,).

    They are ordered by kind, then as (gates of a unit, units, G); constant gates have 0.

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
        places.append(np.moveaxis(padded[:, local], 0, 2).reshape(-1))
        scales.append(np.repeat([op.gate.scale for op in units[0].ops], len(rows) * len(units)))
    row, scale = np.concatenate(places), np.concatenate(scales)
    return scale[:, None] * weights[row], scale * offsets[row]


def nonzero_rows(schedule: Schedule) -> list[np.ndarray]:
    """For each block, which rows of its coefficients may differ from 0.

    The steps, on masks of what may differ from 0 in their matrices.
    """
    masks: list[Any] = []
    for step in schedule.steps:
        read = [masks[number] for number in step.reads]
        mask: Any
        match step.kind:
            case "gates":
                units = schedule.kinds[step.data]
                mask = np.repeat(pattern(units[0])[None], len(units), axis=0)
            case "constant":
                mask = nonzero(step.data.array)
            case "multiply":
                mask = nonzero(read[0] @ read[1])
            case "transpose":
                mask = read[0].swapaxes(1, 2)
            case "reorder":
                shape, order, rows = step.data
                mask = read[0].reshape(-1, *shape).transpose(0, *(i + 1 for i in order))
                mask = mask.reshape(len(mask), rows, -1)
            case "split":
                mask = np.split(read[0], np.cumsum(step.data)[:-1])
            case "part":
                mask = read[0][step.data]
            case "take":
                mask = read[0][step.data.array]
            case "join":
                mask = np.concatenate(read)
        masks.append(mask)
    return [masks[step][place].any(axis=1) for step, place in schedule.blocks]
