"""How a component is cut into a tree of small blocks that are simulated exactly.

The picture is Heisenberg's, in real numbers. Each qubit starts, by at most one gate that reads an
input, in a density matrix that is affine in (1, cos a, sin a). A block of k qubits with an operator
on it is then a linear function of the products of these features, 3^k of them, whose coefficients
depend on the weights alone. A gate across two blocks is a sum of products, sum_r a_r (x) b_r, and
leaves a bond of r^2 real numbers between them. Blocks are joined at bridges of the interaction
graph, so that they form a tree, which is contracted exactly.

Gates at the end that only some observables see are not cut: those observables are conjugated by
them and become a few products of local Pauli strings (in hqconv: the last layer's links, which only
<Z_4> and <Z_8> see).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise, product

import numpy as np
import rustworkx as rx

from qhdm.quantum.program import Op
from qhdm.quantum.structure import Pauli, connected, interaction_graph, light_cone
from qhdm.quantum.units import LETTERS, Unit, embed, letters_on, random_angles, string_matrix

#: For each block, the number of the operator on it.
Key = tuple[int, ...]

#: Largest block, in qubits.
MAX_BLOCK = 5
#: Largest support, in qubits, of an observable conjugated by the gates at the end.
MAX_SUPPORT = 4
#: Largest bond between two blocks, in real numbers, beyond which nobody would cut.
MAX_BOND = 4096
#: Multiply-adds of a matrix product that take as long as moving one number to and from memory.
_PART_COST = 16
#: Batch size that the cost model assumes.
NOMINAL_BATCH = 512


@dataclass(frozen=True, eq=False)
class Inlet:
    """How a qubit starts: rho = states[0] + cos(a) states[1] + sin(a) states[2].

    Attributes:
        angle: local angle a of the gate that reads an input; -1 if there is none.
        states: (3, 2, 2), or (1, 2, 2) without such a gate.
    """

    angle: int
    states: np.ndarray


@dataclass(frozen=True, eq=False)
class Cut:
    """A unit across two blocks, as sum_r a_r (x) b_r with constant, orthonormal a_r.

    Attributes:
        unit: the gates.
        basis: (r, 2, 2), the a_r.
        constant: position in `unit.qubits` of the side that carries the a_r.
        maps: (r^2, 4, 4), what the constant side does to operators (see qhdm.quantum.network).
        projector: (16, 4 r), from the unit's matrix to the b_r.
        basis_dual: (r^2, r^2), the dual Hermitian basis, for the side of the b_r.
        kind: equal for cuts that differ in qubits and angles alone.
    """

    unit: Unit
    basis: np.ndarray
    constant: int
    maps: np.ndarray
    projector: np.ndarray
    basis_dual: np.ndarray
    kind: object


@dataclass(frozen=True)
class Side:
    """One side of a cut, as a step of a block: its number, and the qubit it acts on."""

    cut: int
    qubit: int


@dataclass(frozen=True, eq=False)
class NetworkBlock:
    """A few qubits simulated whole, d = 2^k amplitudes.

    Attributes:
        qubits: sorted.
        states: (d, d, features), the initial density matrix as a sum over products of features,
            the last qubit's feature most significant.
        before: the gates before the first cut.
        steps: what follows, in order: fused gates, and runs of cuts on one of its qubits. The
            first, if there is one, is of cuts.
        operators: (d, d, n), the Pauli strings that are needed on it; the identity is first.
        cuts: numbers of its cuts, in order.
        cut_order: positions in `cuts`, gathered by neighbour.
    """

    qubits: tuple[int, ...]
    states: np.ndarray
    before: Unit | None
    steps: tuple[Unit | tuple[Side, ...], ...]
    operators: np.ndarray
    cuts: tuple[int, ...]
    cut_order: tuple[int, ...]

    def around(self, qubit: int) -> tuple[int, int]:
        """How many states the more and the less significant qubits of the block have."""
        position = self.qubits.index(qubit)
        return 2 ** (len(self.qubits) - 1 - position), 2**position


@dataclass(frozen=True, eq=False)
class Measured:
    """One observable: the Pauli string, and the gates at the end that conjugate it.

    Attributes:
        late: gates at the end that it sees, on all qubits of the support; None if there are none.
        pauli: the string on the support, (d, d).
        strings: (n, d d), transposed Pauli strings on the support that the conjugated observable
            may hold, over d.
        keys: for each of these strings (one, if nothing conjugates), the operator of every block.
    """

    late: Unit | None
    pauli: np.ndarray
    strings: np.ndarray
    keys: tuple[Key, ...]


@dataclass(frozen=True)
class Part:
    """Part of a message: the choices that differ in the operator of the source alone.

    Attributes:
        incoming: (neighbour, row of its message to the source) for each other neighbour.
        operators: of the source, for each choice.
    """

    incoming: tuple[tuple[int, int], ...]
    operators: tuple[int, ...]


@dataclass(frozen=True)
class Edge:
    """A message from a block to a neighbour, about all blocks behind it.

    Attributes:
        source, target: the blocks.
        parts: see `Part`.
        keys: the choices in order, over all parts; blocks that are not behind it have 0.
    """

    source: int
    target: int
    parts: tuple[Part, ...]
    keys: tuple[Key, ...]

    def row(self, network: Network, key: Key) -> int:
        """The row of the message that belongs to a choice of operators."""
        inside = network.subtree(self.source, self.target)
        return self.keys.index(tuple(op if b in inside else 0 for b, op in enumerate(key)))


@dataclass(frozen=True)
class Closing:
    """Terms that are closed at the bond between two blocks: products of two messages.

    Attributes:
        one, other: the blocks.
        keys: the terms.
        rows_one, rows_other: for each, the rows of the messages one -> other and other -> one.
    """

    one: int
    other: int
    keys: tuple[Key, ...]
    rows_one: tuple[int, ...]
    rows_other: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Network:
    """A component as a tree of blocks.

    Attributes:
        inlets: of each qubit.
        blocks: see `NetworkBlock`.
        cuts: gates between blocks.
        ends: for each cut, the two blocks that it joins, in the order of its unit's qubits.
        tree: pairs of neighbouring blocks; each cut joins one of them, and a pair without cuts
            holds trees together that only conjugated observables connect.
        measured: the observables, in the order of the component's Pauli strings.
        cost_once: real multiply-adds of what depends on the weights alone.
    """

    inlets: tuple[Inlet, ...]
    blocks: tuple[NetworkBlock, ...]
    cuts: tuple[Cut, ...]
    ends: tuple[tuple[int, int], ...]
    tree: tuple[tuple[int, int], ...]
    measured: tuple[Measured, ...]
    cost_once: int

    @cached_property
    def cost(self) -> int:
        """Real multiply-adds per sample in a forward pass."""
        features = [block.states.shape[2] for block in self.blocks]
        if not self.tree:
            return features[0] * self.blocks[0].operators.shape[2]
        return sum(self._size(edge) * len(edge.keys) for edge in self.edges)

    @cached_property
    def reading_qubits(self) -> tuple[int, ...]:
        """Qubits that read an input."""
        return tuple(q for q, inlet in enumerate(self.inlets) if inlet.angle >= 0)

    @cached_property
    def reading(self) -> tuple[int, ...]:
        """Their local angles."""
        return tuple(self.inlets[q].angle for q in self.reading_qubits)

    @cached_property
    def units(self) -> tuple[Unit, ...]:
        """All units whose matrices are needed."""
        units = [block.before for block in self.blocks if block.before]
        units += [step for block in self.blocks for step in block.steps if isinstance(step, Unit)]
        units += [cut.unit for cut in self.cuts]
        return (*units, *(measured.late for measured in self.measured if measured.late))

    @cached_property
    def constant_sides(self) -> tuple[Side, ...]:
        """Of each cut, the side with the constant operators."""
        return tuple(Side(i, cut.unit.qubits[cut.constant]) for i, cut in enumerate(self.cuts))

    @cached_property
    def varying_sides(self) -> tuple[Side, ...]:
        """Of each cut, the other side."""
        return tuple(Side(i, cut.unit.qubits[1 - cut.constant]) for i, cut in enumerate(self.cuts))

    @cached_property
    def neighbours(self) -> tuple[tuple[int, ...], ...]:
        """Of each block, in the order of its bonds."""
        return tuple(
            tuple(a + b - i for a, b in self.tree if i in (a, b)) for i in range(len(self.blocks))
        )

    @cached_property
    def bonds(self) -> tuple[tuple[int, ...], ...]:
        """Of each block, the size of the bond to each neighbour."""

        def size(one: int, other: int) -> int:
            joining = [i for i, pair in enumerate(self.ends) if {one, other} == set(pair)]
            return math.prod(len(self.cuts[i].basis) ** 2 for i in joining)

        return tuple(
            tuple(size(i, other) for other in mine) for i, mine in enumerate(self.neighbours)
        )

    @cached_property
    def _closed(self) -> tuple[tuple[int, int, Key], ...]:
        """Each term of each observable, with the bond at which the tree is closed for it.

        Observables choose one after the other, those of many terms first, so that each adds least
        to the cost.
        """
        chosen: dict[int, list[tuple[int, int, Key]]] = {}
        order = sorted(range(len(self.measured)), key=lambda i: -len(self.measured[i].keys))
        for number in order:
            so_far = [term for terms in chosen.values() for term in terms]
            options = [
                [(one, other, key) for key in self.measured[number].keys]
                for one, other in sorted((min(pair), max(pair)) for pair in self.tree)
            ]
            costs = []
            for terms in options:
                edges = self._edges_for([*so_far, *terms])
                # A part takes the products of messages and features, besides the matrix product.
                parts = (len(edge.keys) + _PART_COST * len(edge.parts) for edge in edges)
                costs.append(sum(map(math.prod, zip(parts, map(self._size, edges), strict=True))))
            chosen[number] = options[costs.index(min(costs))]
        return tuple(term for number in range(len(self.measured)) for term in chosen[number])

    def _size(self, edge: Edge) -> int:
        """Coefficients of the source for one operator: bonds times features."""
        block = self.blocks[edge.source]
        return math.prod(self.bonds[edge.source]) * block.states.shape[2]

    @cached_property
    def closings(self) -> tuple[Closing, ...]:
        """The terms of all observables, gathered by bond."""
        edges = {(edge.source, edge.target): edge for edge in self.edges}
        at: dict[tuple[int, int], list[Key]] = {}
        for one, other, key in dict.fromkeys(self._closed):
            at.setdefault((one, other), []).append(key)
        return tuple(
            Closing(
                one,
                other,
                tuple(keys),
                tuple(edges[one, other].row(self, key) for key in keys),
                tuple(edges[other, one].row(self, key) for key in keys),
            )
            for (one, other), keys in at.items()
        )

    @cached_property
    def terms(self) -> tuple[tuple[int, ...], ...]:
        """For each observable, the positions of its terms among those of all closings."""
        order = [(c.one, c.other, key) for c in self.closings for key in c.keys]
        position = {term: i for i, term in enumerate(order)}
        closed = iter(self._closed)
        return tuple(
            tuple(position[next(closed)] for _ in measured.keys) for measured in self.measured
        )

    @cached_property
    def edges(self) -> tuple[Edge, ...]:
        """The messages that are needed, each after those that it needs."""
        return self._edges_for(self._closed)

    def _edges_for(self, closed: Iterable[tuple[int, int, Key]]) -> tuple[Edge, ...]:
        needed: dict[tuple[int, int], dict[Key, None]] = {}

        def need(source: int, target: int, key: Key) -> None:
            inside = self.subtree(source, target)
            reduced = tuple(op if b in inside else 0 for b, op in enumerate(key))
            for neighbour in self.neighbours[source]:
                if neighbour != target:
                    need(neighbour, source, reduced)
            needed.setdefault((source, target), {})[reduced] = None

        for one, other, key in closed:
            need(one, other, key)
            need(other, one, key)
        # A message into a block is listed before any out of it, since it is needed first.
        depth = {pair: len(self.subtree(*pair)) for pair in needed}
        edges: dict[tuple[int, int], Edge] = {}
        for source, target in sorted(needed, key=lambda pair: depth[pair]):
            groups: dict[tuple[tuple[int, int], ...], list[Key]] = {}
            for key in sorted(needed[source, target]):
                incoming = tuple(
                    (n, edges[n, source].row(self, key))
                    for n in self.neighbours[source]
                    if n != target
                )
                groups.setdefault(incoming, []).append(key)
            parts = tuple(
                Part(incoming, tuple(key[source] for key in keys))
                for incoming, keys in groups.items()
            )
            order = tuple(key for keys in groups.values() for key in keys)
            edges[source, target] = Edge(source, target, parts, order)
        return tuple(edges.values())

    def subtree(self, block: int, parent: int) -> frozenset[int]:
        """Blocks on the far side of `block`, seen from its neighbour `parent`."""
        below = (self.subtree(n, block) for n in self.neighbours[block] if n != parent)
        return frozenset({block}).union(*below)


def plan_network(
    size: int, ops: Sequence[Op], reads_inputs: Sequence[bool], paulis: Sequence[Pauli]
) -> Network | None:
    """The cheapest network of a component that is found, or None where there is none.

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
    best = _assemble(size, inlets, units, blocks, paulis)
    while True:
        # Joining two neighbours of a tree leaves a tree.
        candidates = []
        home = {q: b for b, block in enumerate(blocks) for q in block}
        joined = [(home[pair[0]], home[pair[1]]) for pair in pairs if len(pair) == 2]
        for i, j in sorted({(min(join), max(join)) for join in joined if join[0] != join[1]}):
            if len(blocks[i]) + len(blocks[j]) <= MAX_BLOCK:
                merged = [b for k, b in enumerate(blocks) if k not in (i, j)]
                merged = sorted([*merged, tuple(sorted(blocks[i] + blocks[j]))])
                network = _assemble(size, inlets, units, merged, paulis)
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
) -> tuple[tuple[Inlet, ...], list[Op]] | None:
    """Take the gates that read inputs, and constant ones before them, off the start of qubits."""

    def reads(op: Op) -> bool:
        return op.angle >= 0 and reads_inputs[op.angle]

    reading = {index: op for index, op in enumerate(ops) if reads(op)}
    taken: set[int] = set()
    inlets = []
    for qubit in range(size):
        mine = [index for index, op in reading.items() if qubit in op.qubits]
        if not mine:
            inlets.append(Inlet(-1, np.array([[[1, 0], [0, 0]]], dtype=complex)))
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


def _inlet(op: Op, ket: np.ndarray) -> Inlet | None:
    def state(angle: float) -> np.ndarray:
        after = op.gate.at(angle) @ ket
        return np.outer(after, after.conj())

    zero, quarter, half = state(0.0), state(np.pi / 2), state(np.pi)
    mean = (zero + half) / 2
    states = np.array([mean, zero - mean, quarter - mean])
    probe = 0.7
    affine = states[0] + np.cos(probe) * states[1] + np.sin(probe) * states[2]
    return Inlet(op.angle, states) if np.allclose(affine, state(probe), atol=1e-12) else None


def _units(ops: Sequence[Op]) -> list[Unit]:
    """Join gates to the last unit on their qubits, where that has the same two qubits or more."""
    units: list[Unit] = []
    for op in ops:
        last = max((i for i, u in enumerate(units) if set(u.qubits) & set(op.qubits)), default=-1)
        if last >= 0 and set(op.qubits) <= set(units[last].qubits):
            units[last] = replace(units[last], ops=(*units[last].ops, op))
        else:
            units.append(Unit(op.qubits, (op,)))
    return units


def _assemble(
    size: int,
    inlets: tuple[Inlet, ...],
    units: Sequence[Unit],
    blocks: Sequence[tuple[int, ...]],
    paulis: Sequence[Pauli],
) -> Network | None:
    """The network of a given partition, or None if it would be too large."""
    home = {qubit: b for b, block in enumerate(blocks) for qubit in block}
    crossing = [len({home[q] for q in unit.qubits}) > 1 for unit in units]
    cones = [set(_cone(units, pauli)) for pauli in paulis]
    seen = set().union(*cones)
    tail = _tail(units, crossing, cones, paulis)

    steps: list[list[Unit | Side]] = [[] for _ in blocks]
    cuts: list[Cut] = []
    ends: list[tuple[int, int]] = []
    for index, unit in enumerate(units):
        if index not in seen or index in tail:
            continue
        if not crossing[index]:
            steps[home[unit.qubits[0]]].append(unit)
            continue
        if len(unit.qubits) != 2:
            return None
        for qubit in unit.qubits:
            steps[home[qubit]].append(Side(len(cuts), qubit))
        cuts.append(_cut(unit))
        ends.append((home[unit.qubits[0]], home[unit.qubits[1]]))

    measured = []
    operators: list[dict[Pauli, int]] = [{(0, 0): 0} for _ in blocks]
    for pauli, cone in zip(paulis, cones, strict=True):
        late = tuple(units[i] for i in sorted(tail & cone))
        measured.append(_measured(late, pauli, blocks, operators))

    bonds = [1] * len(blocks)
    once = 0
    for cut, pair in zip(cuts, ends, strict=True):
        for end in pair:
            bonds[end] *= len(cut.basis) ** 2
    if max(bonds) > MAX_BOND:
        return None
    for block, bond, needed in zip(blocks, bonds, operators, strict=True):
        once += 4 * len(needed) * bond * 8 ** len(block)
    return Network(
        inlets,
        tuple(
            _block(
                block,
                steps[b],
                tuple(operators[b]),
                inlets,
                {i: sum(pair) - b for i, pair in enumerate(ends) if b in pair},
            )
            for b, block in enumerate(blocks)
        ),
        tuple(cuts),
        tuple(ends),
        _spanning_tree(len(blocks), ends),
        tuple(measured),
        once,
    )


def _block(
    qubits: tuple[int, ...],
    steps: Sequence[Unit | Side],
    operators: Sequence[Pauli],
    inlets: Sequence[Inlet],
    joined: Mapping[int, int],
) -> NetworkBlock:
    """One block; `joined` gives the neighbour that each of its cuts leads to."""
    fused: list[Unit | tuple[Side, ...]] = []
    for step in steps:
        last = fused[-1] if fused else None
        if isinstance(step, Unit):
            # All gates are embedded in the whole block, so that equal sequences are of one kind.
            if isinstance(last, Unit):
                fused[-1] = Unit(qubits, last.ops + step.ops)
            else:
                fused.append(Unit(qubits, step.ops))
        elif isinstance(last, tuple) and last[0].qubit == step.qubit:
            fused[-1] = (*last, step)
        else:
            fused.append((step,))
    before = None
    if fused and isinstance(fused[0], Unit):
        before, fused = fused[0], fused[1:]
    states = np.ones((1, 1, 1), dtype=complex)
    for qubit in qubits:
        own = inlets[qubit].states
        states = np.einsum("fij,gkl->fgikjl", own, states).reshape(
            len(own) * len(states), 2 * states.shape[1], 2 * states.shape[1]
        )
    matrices = [string_matrix(letters_on(pauli, qubits)) for pauli in operators]
    cuts = tuple(side.cut for run in fused if not isinstance(run, Unit) for side in run)
    order = sorted(range(len(cuts)), key=lambda position: joined[cuts[position]])
    return NetworkBlock(
        qubits,
        np.ascontiguousarray(states.transpose(1, 2, 0)),
        before,
        tuple(fused),
        np.stack(matrices, axis=2),
        cuts,
        tuple(order),
    )


def _spanning_tree(blocks: int, ends: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """The pairs that cuts join, and as many more as hold all blocks together."""
    tree = sorted({(min(pair), max(pair)) for pair in ends})
    roots = [part[0] for part in connected(blocks, tree)]
    return (*tree, *pairwise(roots))


def _cone(units: Sequence[Unit], pauli: Pauli) -> list[int]:
    """Units with a gate in the light cone of a Pauli string."""
    flat = [(index, op) for index, unit in enumerate(units) for op in unit.ops]
    kept = light_cone([op for _, op in flat], pauli)
    return sorted({flat[i][0] for i in kept})


def _tail(
    units: Sequence[Unit],
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


def _cut(unit: Unit) -> Cut:
    """Expand a two-qubit unit on the side where fewer constant operators suffice.

    The operators are those that occur at generic angles: one side of a controlled gate is spanned
    by the two projectors, whatever the angle.
    """
    options = []
    for side in (0, 1):
        rows = []
        for draw in range(8):
            tensor = unit.at(random_angles([unit], draw)).reshape(2, 2, 2, 2)
            # Axes are (out 1, out 0, in 1, in 0): bring this side's pair to the end.
            order = (0, 2, 1, 3) if side == 0 else (1, 3, 0, 2)
            rows.append(tensor.transpose(order).reshape(4, 4))
        _, values, vectors = np.linalg.svd(np.concatenate(rows))
        rank = int((values > 1e-9).sum())
        options.append((rank, side, vectors[:rank].reshape(rank, 2, 2)))
    rank, side, basis = min(options, key=lambda option: option[:2])
    # The unit's axes are out 1, out 0, in 1, in 0; those of the constant side are summed.
    projector = np.zeros((2, 2, 2, 2, rank, 2, 2), dtype=complex)
    for out, into, r in product(range(2), range(2), range(rank)):
        if side == 0:
            projector[out, :, into, :, r, out, into] = basis[r].conj()
        else:
            projector[:, out, :, into, r, out, into] = basis[r].conj()
    hermitian = _hermitian_basis(rank)
    own = hermitian if side == 0 else hermitian.conj()
    maps = np.einsum("msr,six,rjy->mxyij", own, basis.conj(), basis)
    return Cut(
        unit,
        basis,
        side,
        maps.reshape(rank**2, 4, 4),
        projector.reshape(16, 4 * rank),
        np.ascontiguousarray(own.conj().reshape(rank**2, rank**2)),
        (unit.kind, side),
    )


def _hermitian_basis(rank: int) -> np.ndarray:
    """An orthonormal basis of Hermitian matrices, (rank^2, rank, rank)."""
    matrices = []
    for r, s in product(range(rank), repeat=2):
        matrix = np.zeros((rank, rank), dtype=complex)
        if r == s:
            matrix[r, r] = 1
        elif r < s:
            matrix[r, s] = matrix[s, r] = 2**-0.5
        else:
            matrix[r, s], matrix[s, r] = 1j * 2**-0.5, -1j * 2**-0.5
        matrices.append(matrix)
    return np.array(matrices)


def _measured(
    units: tuple[Unit, ...],
    pauli: Pauli,
    blocks: Sequence[tuple[int, ...]],
    operators: list[dict[Pauli, int]],
) -> Measured:
    x, z = pauli
    own = {q for q in range((x | z).bit_length()) if (x | z) >> q & 1}
    support = tuple(sorted(own.union(*(unit.qubits for unit in units))))
    letters = letters_on(pauli, support)
    observable = string_matrix(letters)
    if not units:
        choices = [letters]
    else:
        # Strings that occur at generic angles are the ones that can occur.
        weight: np.ndarray = np.zeros(4 ** len(support))
        choices = list(product(range(4), repeat=len(support)))
        strings = np.array([string_matrix(c) for c in choices])
        for draw in range(4):
            angles = random_angles(units, draw)
            conjugated = observable
            for unit in reversed(units):
                gate = embed(unit.at(angles), unit.qubits, support)
                conjugated = gate.conj().T @ conjugated @ gate
            weight += np.abs(np.einsum("sij,ji->s", strings, conjugated))
        choices = [c for c, w in zip(choices, weight, strict=True) if w > 1e-9]
    keys = []
    for choice in choices:
        masks = {q: LETTERS[letter] for q, letter in zip(support, choice, strict=True)}
        row = []
        for b, block in enumerate(blocks):
            local = (
                sum(masks[q][0] << q for q in block if q in masks),
                sum(masks[q][1] << q for q in block if q in masks),
            )
            row.append(operators[b].setdefault(local, len(operators[b])))
        keys.append(tuple(row))
    late = Unit(support, tuple(op for unit in units for op in unit.ops)) if units else None
    d = len(observable)
    strings = np.array([string_matrix(c).T.reshape(-1) / d for c in choices])
    return Measured(late, observable, strings, tuple(keys))
