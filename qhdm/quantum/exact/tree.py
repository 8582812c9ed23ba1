"""A component as a tree of small blocks: what qhdm.quantum.exact.partition plans, and network runs.

See qhdm.quantum.exact.partition for the picture.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from qhdm.quantum.ir.fusion import FusedGate, by_kind

#: For each block, the number of the operator on it.
Key = tuple[int, ...]

#: Multiply-adds of a matrix product that take as long as moving one number to and from memory.
_PART_COST = 16


@dataclass(frozen=True, eq=False)
class InputEncoding:
    """How a qubit starts: rho = states[0] + cos(a) states[1] + sin(a) states[2].

    Attributes:
        angle: local angle a of the gate that reads an input; -1 if there is none.
        states: (3, 2, 2), or (1, 2, 2) without such a gate.
    """

    angle: int
    states: np.ndarray


@dataclass(frozen=True, eq=False)
class BondGate:
    """A unit across two blocks, as sum_r a_r (x) b_r with constant, orthonormal a_r.

    Attributes:
        unit: the gates.
        basis: (r, 2, 2), the a_r.
        constant: position in `unit.qubits` of the side that carries the a_r.
        maps: (r^2, 4, 4), what the constant side does to operators (network.py).
        projector: (16, 4 r), from the unit's matrix to the b_r.
        basis_dual: (r^2, r^2), the dual Hermitian basis, for the side of the b_r.
        kind: equal for cuts that differ only in qubits and angles.
    """

    unit: FusedGate
    basis: np.ndarray
    constant: int
    maps: np.ndarray
    projector: np.ndarray
    basis_dual: np.ndarray
    kind: object


@dataclass(frozen=True)
class BondEnd:
    """One side of a cut, as a step of a block: its number, and the qubit it acts on."""

    cut: int
    qubit: int


@dataclass(frozen=True, eq=False)
class NetworkBlock:
    """A few qubits simulated whole, d = 2^k amplitudes.

    Attributes:
        qubits: sorted.
        states: (d, features, d), the initial density matrix as a sum over products of features,
            the last qubit's feature most significant.
        before: the gates before the first cut.
        steps: what follows, in order: fused gates, and runs of cuts on one of its qubits. The
            first, if there is one, is of cuts.
        operators: (d, n, d), the Pauli strings that are needed on it; the identity is first.
        cuts: numbers of its cuts, in order.
        cut_order: positions in `cuts`, gathered by neighbour.
    """

    qubits: tuple[int, ...]
    states: np.ndarray
    before: FusedGate | None
    steps: tuple[FusedGate | tuple[BondEnd, ...], ...]
    operators: np.ndarray
    cuts: tuple[int, ...]
    cut_order: tuple[int, ...]

    def around(self, qubit: int) -> tuple[int, int]:
        """How many states the more and the less significant qubits of the block have."""
        position = self.qubits.index(qubit)
        return 2 ** (len(self.qubits) - 1 - position), 2**position


@dataclass(frozen=True, eq=False)
class Readout:
    """One observable: the Pauli string, and the gates at the end that conjugate it.

    Attributes:
        late: gates at the end that it sees, on all qubits of the support; None if there are none.
        pauli: the string on the support, (d, 1, d).
        strings: (n, d d), Pauli strings on the support that the conjugated observable may hold,
            over d, in real form.
        keys: for each of these strings (one, if nothing conjugates), the operator of every block.
    """

    late: FusedGate | None
    pauli: np.ndarray
    strings: np.ndarray
    keys: tuple[Key, ...]


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
        cost_once: real multiply-adds of the parts that depend only on the weights.
    """

    inlets: tuple[InputEncoding, ...]
    blocks: tuple[NetworkBlock, ...]
    cuts: tuple[BondGate, ...]
    ends: tuple[tuple[int, int], ...]
    tree: tuple[tuple[int, int], ...]
    measured: tuple[Readout, ...]
    cost_once: int

    @cached_property
    def cost(self) -> int:
        """Real multiply-adds per sample in a forward pass, at most."""
        if not self.tree:
            return len(self.measured) * self.blocks[0].states.shape[1]
        return sum(self._size(*edge) * len(keys) for edge, keys in self.needed(self.closed).items())

    @cached_property
    def reading_qubits(self) -> tuple[int, ...]:
        """Qubits that read an input."""
        return tuple(q for q, inlet in enumerate(self.inlets) if inlet.angle >= 0)

    @cached_property
    def reading(self) -> tuple[int, ...]:
        """Their local angles."""
        return tuple(self.inlets[q].angle for q in self.reading_qubits)

    @cached_property
    def reading_tables(self) -> tuple[tuple[tuple[int, ...], tuple[np.ndarray, ...]], ...]:
        """Blocks with as many reading qubits, and these: for each k, the k-th of every block."""
        order = {qubit: i for i, qubit in enumerate(self.reading_qubits)}
        alike: dict[int, dict[int, list[int]]] = {}
        for index, block in enumerate(self.blocks):
            mine = [order[q] for q in block.qubits if q in order]
            alike.setdefault(len(mine), {})[index] = mine
        return tuple(
            (tuple(members), tuple(np.array(list(members.values()), dtype=np.int64).T))
            for members in alike.values()
        )

    @cached_property
    def operators_of_one_block(self) -> np.ndarray:
        """Where there is no other, the operator of each observable, (K,)."""
        return np.array([key[0] for measured in self.measured for key in measured.keys])

    @cached_property
    def units(self) -> list[list[FusedGate]]:
        """All units that act within a block or on an observable, by kind."""
        units = [block.before for block in self.blocks if block.before]
        units += [
            step for block in self.blocks for step in block.steps if isinstance(step, FusedGate)
        ]
        return by_kind([*units, *(measured.late for measured in self.measured if measured.late)])

    @cached_property
    def alike_cuts(self) -> tuple[tuple[int, ...], ...]:
        """Numbers of the cuts that differ only in qubits and angles."""
        alike: dict[object, list[int]] = {}
        for number, cut in enumerate(self.cuts):
            alike.setdefault(cut.kind, []).append(number)
        return tuple(map(tuple, alike.values()))

    @cached_property
    def constant_sides(self) -> tuple[BondEnd, ...]:
        """Of each cut, the side with the constant operators."""
        return tuple(BondEnd(i, cut.unit.qubits[cut.constant]) for i, cut in enumerate(self.cuts))

    @cached_property
    def varying_sides(self) -> tuple[BondEnd, ...]:
        """Of each cut, the other side."""
        return tuple(
            BondEnd(i, cut.unit.qubits[1 - cut.constant]) for i, cut in enumerate(self.cuts)
        )

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
    def closed(self) -> tuple[tuple[tuple[int, int, Key], ...], ...]:
        """For each observable, its terms, each with the bond at which the tree is closed for it.

        Observables choose one after the other, those of many terms first, so that each adds least
        to the cost; then each chooses again, knowing the others.
        """
        chosen: dict[int, list[tuple[int, int, Key]]] = {}
        order = sorted(range(len(self.measured)), key=lambda i: -len(self.measured[i].keys))
        for number in (*order, *order):
            others = [term for i, terms in chosen.items() if i != number for term in terms]
            options = [
                [(one, other, key) for key in self.measured[number].keys]
                for one, other in sorted((min(pair), max(pair)) for pair in self.tree)
            ]
            costs = []
            for terms in options:
                needed = self.needed([[*others, *terms]])
                costs.append(sum(self._effort(edge, keys) for edge, keys in needed.items()))
            chosen[number] = options[costs.index(min(costs))]
        return tuple(tuple(chosen[number]) for number in range(len(self.measured)))

    def needed(
        self, closed: Iterable[Iterable[tuple[int, int, Key]]]
    ) -> dict[tuple[int, int], tuple[Key, ...]]:
        """The messages (source, target) that are needed, each after those that it needs.

        For each, the choices of operators behind it; blocks that are not behind it have 0.
        """
        found: dict[tuple[int, int], set[Key]] = {}

        def need(source: int, target: int, key: Key) -> None:
            reduced = self.reduced(source, target, key)
            for neighbour in self.others(source, target):
                need(neighbour, source, reduced)
            found.setdefault((source, target), set()).add(reduced)

        for terms in closed:
            for one, other, key in terms:
                need(one, other, key)
                need(other, one, key)
        order = sorted(found, key=lambda pair: (len(self.subtree(*pair)), pair))
        return {pair: tuple(sorted(found[pair])) for pair in order}

    def reduced(self, source: int, target: int, key: Key) -> Key:
        """`key` with the identity on all blocks that are not behind the message."""
        inside = self.subtree(source, target)
        return tuple(op if b in inside else 0 for b, op in enumerate(key))

    def others(self, source: int, target: int) -> tuple[int, ...]:
        """Neighbours of `source` but `target`."""
        return tuple(n for n in self.neighbours[source] if n != target)

    def _effort(self, edge: tuple[int, int], keys: Sequence[Key]) -> int:
        # Choices that differ only in the operator of the source share the products of messages
        # and features.
        source = edge[0]
        parts = {key[:source] + key[source + 1 :] for key in keys}
        return (len(keys) + _PART_COST * len(parts)) * self._size(*edge)

    def _size(self, source: int, target: int) -> int:
        """Coefficients of the source for one operator: bonds times features."""
        return math.prod(self.bonds[source]) * self.blocks[source].states.shape[1]

    def subtree(self, block: int, parent: int) -> frozenset[int]:
        """Blocks on the far side of `block`, seen from its neighbour `parent`."""
        below = (self.subtree(n, block) for n in self.neighbours[block] if n != parent)
        return frozenset({block}).union(*below)


def real_form(matrices: np.ndarray) -> np.ndarray:
    """Hermitian matrices S + iA (..., d, d) as S + A, flattened: (..., d d).

    The trace of a product becomes a scalar product.
    """
    return (matrices.real + matrices.imag).reshape(*matrices.shape[:-2], -1)
