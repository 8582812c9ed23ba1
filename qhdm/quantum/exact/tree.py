"""A component as a tree of small blocks: its gates and bonds, and the messages between blocks.

A block of k qubits with a Pauli string on it is linear in the 3^k products of its inputs' features;
gates across two blocks are bonds between them. partition.py finds the tree, tables.py makes the
coefficients that depend on the weights, contraction.py what a batch costs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from qhdm.quantum.exact.transfer import Bond
from qhdm.quantum.ir.fusion import FusedGate, by_kind
from qhdm.quantum.ir.paulis import Pauli

#: For each block, the number of the operator on it.
Key = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class InputEncoding:
    """How a qubit starts: <P> = letters[0] + cos(a) letters[1] + sin(a) letters[2], P = I, X, Y, Z.

    Attributes:
        angle: local angle a of the gate that reads an input; -1 if there is none.
        letters: (3, 4), or (1, 4) without such a gate.
    """

    angle: int
    letters: np.ndarray


@dataclass(frozen=True)
class BondEnd:
    """One side of a cut, as a step of a block: its number, and the qubit it acts on."""

    cut: int
    qubit: int


@dataclass(frozen=True, eq=False)
class NetworkBlock:
    """A few qubits simulated whole.

    Attributes:
        qubits: sorted.
        features: products of one feature of each qubit that reads an input.
        steps: in order, gates and runs of cuts on one of its qubits.
        operators: the Pauli strings that are needed on it; the identity is first.
    """

    qubits: tuple[int, ...]
    features: int
    steps: tuple[FusedGate | tuple[BondEnd, ...], ...]
    operators: tuple[Pauli, ...]

    @property
    def cuts(self) -> list[int]:
        """Numbers of its cuts, in order."""
        return [end.cut for run in self.steps if isinstance(run, tuple) for end in run]


@dataclass(frozen=True, eq=False)
class Readout:
    """One observable: the Pauli string, and the gates at the end that conjugate it.

    Attributes:
        pauli: the string.
        late: gates at the end that it sees, in order.
        support: all qubits of both.
        strings: Pauli strings on the support that the conjugated observable may hold, by number.
        keys: for each of these strings, the operator of every block.
    """

    pauli: Pauli
    late: tuple[FusedGate, ...]
    support: tuple[int, ...]
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
    cuts: tuple[Bond, ...]
    ends: tuple[tuple[int, int], ...]
    tree: tuple[tuple[int, int], ...]
    measured: tuple[Readout, ...]
    cost_once: int

    @cached_property
    def cost(self) -> int:
        """Real multiply-adds per sample in a forward pass, at most."""
        if not self.tree:
            return len(self.measured) * self.blocks[0].features
        return self._cost(itertools.chain.from_iterable(self.closed))

    @cached_property
    def reading(self) -> tuple[tuple[tuple[int, ...], np.ndarray], ...]:
        """Blocks with equally many qubits that read inputs, and their local angles, (blocks, k)."""
        own = [[self.inlets[q].angle for q in block.qubits] for block in self.blocks]
        angles = [[angle for angle in mine if angle >= 0] for mine in own]
        alike = by_kind(range(len(angles)), lambda index: len(angles[index]))
        return tuple((a, np.array([angles[i] for i in a], dtype=np.int64)) for a in alike)

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
            return math.prod(self.cuts[i].size for i in joining)

        return tuple(
            tuple(size(i, other) for other in mine) for i, mine in enumerate(self.neighbours)
        )

    @cached_property
    def closed(self) -> tuple[list[tuple[int, int, Key]], ...]:
        """For each observable, its terms, each with the bond at which the tree is closed for it.

        One after the other, those of many terms first, they take the bond that adds least to the
        cost of all.
        """
        bonds = sorted((min(pair), max(pair)) for pair in self.tree)
        closed: dict[int, list[tuple[int, int, Key]]] = {}
        for number in sorted(range(len(self.measured)), key=lambda i: -len(self.measured[i].keys)):
            options = [[(*bond, key) for key in self.measured[number].keys] for bond in bonds]
            before = list(itertools.chain.from_iterable(closed.values()))
            closed[number] = min(options, key=lambda terms: self._cost([*before, *terms]))
        return tuple(closed[number] for number in range(len(self.measured)))

    def _cost(self, terms: Iterable[tuple[int, int, Key]]) -> int:
        needed = self.needed(terms)
        return sum(self._size(*edge) * len(keys) for edge, keys in needed.items())

    def needed(
        self, terms: Iterable[tuple[int, int, Key]]
    ) -> dict[tuple[int, int], tuple[Key, ...]]:
        """The messages (source, target) that are needed, each after those that it needs.

        For each, the choices of operators behind it; blocks that are not behind it have 0.
        """
        keys: dict[tuple[int, int], set[Key]] = {}

        def need(source: int, target: int, key: Key) -> None:
            reduced = self.reduced(source, target, key)
            for neighbour in self.others(source, target):
                need(neighbour, source, reduced)
            keys.setdefault((source, target), set()).add(reduced)

        for one, other, key in terms:
            need(one, other, key)
            need(other, one, key)
        order = sorted(keys, key=lambda pair: (len(self.subtree(*pair)), pair))
        return {pair: tuple(sorted(keys[pair])) for pair in order}

    def reduced(self, source: int, target: int, key: Key) -> Key:
        """`key` with the identity on all blocks that are not behind the message."""
        inside = self.subtree(source, target)
        return tuple(op if b in inside else 0 for b, op in enumerate(key))

    def others(self, source: int, target: int) -> tuple[int, ...]:
        """Neighbours of `source` but `target`."""
        return tuple(n for n in self.neighbours[source] if n != target)

    def _size(self, source: int, target: int) -> int:
        """Coefficients of the source for one operator: bonds times features."""
        return math.prod(self.bonds[source]) * self.blocks[source].features

    def subtree(self, block: int, parent: int) -> frozenset[int]:
        """Blocks on the far side of `block`, seen from its neighbour `parent`."""
        below = (self.subtree(n, block) for n in self.neighbours[block] if n != parent)
        return frozenset({block}).union(*below)
