"""A component as a tree of small blocks: what qhdm.quantum.partition plans, and network runs.

See qhdm.quantum.partition for the picture.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from qhdm.quantum.units import Unit

#: For each block, the number of the operator on it.
Key = tuple[int, ...]

#: Multiply-adds of a matrix product that take as long as moving one number to and from memory.
_PART_COST = 16


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
