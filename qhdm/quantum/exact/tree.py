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
from qhdm.quantum.ir.connectivity import connected
from qhdm.quantum.ir.fusion import FusedGate, by_kind
from qhdm.quantum.ir.paulis import Pauli

#: For each block, the number of the operator on it.
Key = tuple[int, ...]
#: A choice of operators, and the two neighbours at whose bond the tree is closed for it.
Term = tuple[int, int, Key]
_Edge = tuple[int, int]

#: Batch size that the cost model assumes.
NOMINAL_BATCH = 512


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
        inlets: of each qubit.
        steps: in order, gates and runs of cuts on one of its qubits.
        operators: the Pauli strings that are needed on it; the identity is first.
    """

    qubits: tuple[int, ...]
    inlets: tuple[InputEncoding, ...]
    steps: tuple[FusedGate | tuple[BondEnd, ...], ...]
    operators: tuple[Pauli, ...]

    @cached_property
    def features(self) -> int:
        """Products of one feature of each qubit that reads an input."""
        return math.prod(len(inlet.letters) for inlet in self.inlets)

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
    """A component as a tree of blocks, which cuts join.

    The observables, `measured`, are in the order of the component's Pauli strings.
    """

    blocks: tuple[NetworkBlock, ...]
    cuts: tuple[Bond, ...]
    measured: tuple[Readout, ...]

    @cached_property
    def ends(self) -> tuple[_Edge, ...]:
        """For each cut, the two blocks that it joins, in the order of its unit's qubits."""
        home = {qubit: b for b, block in enumerate(self.blocks) for qubit in block.qubits}
        return tuple((home[one], home[other]) for one, other in (c.unit.qubits for c in self.cuts))

    @cached_property
    def tree(self) -> tuple[_Edge, ...]:
        """Pairs of neighbours: those that cuts join, and more that hold all blocks together."""
        joined = sorted({(min(pair), max(pair)) for pair in self.ends})
        roots = [part[0] for part in connected(len(self.blocks), joined)]
        return (*joined, *itertools.pairwise(roots))

    @cached_property
    def neighbours(self) -> tuple[tuple[int, ...], ...]:
        """Of each block, in the order of its bonds."""
        return tuple(
            tuple(a + b - i for a, b in self.tree if i in (a, b)) for i in range(len(self.blocks))
        )

    @cached_property
    def bonds(self) -> tuple[tuple[int, ...], ...]:
        """Of each block, the size of the bond to each neighbour."""
        sizes = dict.fromkeys(map(frozenset, self.tree), 1)
        for cut, pair in zip(self.cuts, self.ends, strict=True):
            sizes[frozenset(pair)] *= cut.size
        return tuple(
            tuple(sizes[frozenset((i, n))] for n in mine) for i, mine in enumerate(self.neighbours)
        )

    @cached_property
    def behind(self) -> dict[_Edge, frozenset[int]]:
        """For each message (source, target), the blocks that it summarises; fewest first."""

        def blocks(source: int, target: int) -> frozenset[int]:
            return frozenset({source}).union(*(blocks(n, source) for n in others(source, target)))

        others = self.others
        behind = {edge: blocks(*edge) for a, b in self.tree for edge in ((a, b), (b, a))}
        return dict(sorted(behind.items(), key=lambda item: (len(item[1]), item[0])))

    @cached_property
    def reading(self) -> tuple[tuple[tuple[int, ...], np.ndarray], ...]:
        """Blocks with equally many qubits that read inputs, and their local angles, (blocks, k)."""
        angles = [[i.angle for i in block.inlets if i.angle >= 0] for block in self.blocks]
        alike = by_kind(range(len(angles)), lambda index: len(angles[index]))
        return tuple((a, np.array([angles[i] for i in a], dtype=np.int64)) for a in alike)

    @cached_property
    def closed(self) -> tuple[list[Term], ...]:
        """For each observable, its terms, each with the bond at which the tree is closed for it.

        One after the other, those of many terms first, they take the bond that adds least to the
        cost of all.
        """
        bonds = sorted(self.tree)
        closed: dict[int, list[Term]] = {}
        for number in sorted(range(len(self.measured)), key=lambda i: -len(self.measured[i].keys)):
            options = [[(*bond, key) for key in self.measured[number].keys] for bond in bonds]
            before = list(itertools.chain.from_iterable(closed.values()))
            closed[number] = min(options, key=lambda terms: self._cost([*before, *terms]))
        return tuple(closed[number] for number in range(len(self.measured)))

    @cached_property
    def cost(self) -> int:
        """Real multiply-adds per sample in a forward pass, at most."""
        if not self.tree:
            return len(self.measured) * self.blocks[0].features
        return self._cost(itertools.chain.from_iterable(self.closed))

    @cached_property
    def cost_per_batch(self) -> int:
        """The same per `NOMINAL_BATCH` samples, with the parts that depend only on the weights."""
        once = sum(
            4 * len(block.operators) * math.prod(bonds) * 8 ** len(block.qubits)
            for block, bonds in zip(self.blocks, self.bonds, strict=True)
        )
        return once + NOMINAL_BATCH * self.cost

    def _cost(self, terms: Iterable[Term]) -> int:
        """Coefficients of the sources, bonds times features, of all messages that terms need."""
        return sum(
            math.prod(self.bonds[source]) * self.blocks[source].features * len(keys)
            for (source, _), keys in self.needed(terms).items()
        )

    def needed(self, terms: Iterable[Term]) -> dict[_Edge, tuple[Key, ...]]:
        """The messages (source, target) that are needed, each after those that it needs.

        For each, the choices of operators behind it; blocks that are not behind it have 0.
        """
        keys: dict[_Edge, set[Key]] = {edge: set() for edge in self.behind}
        for one, other, key in terms:
            for edge, blocks in self.behind.items():
                if not {one, other} <= blocks:  # it leads towards the bond
                    keys[edge].add(self.reduced(*edge, key))
        return {edge: tuple(sorted(own)) for edge, own in keys.items() if own}

    def reduced(self, source: int, target: int, key: Key) -> Key:
        """`key` with the identity on all blocks that are not behind the message."""
        inside = self.behind[source, target]
        return tuple(op if b in inside else 0 for b, op in enumerate(key))

    def others(self, source: int, target: int) -> tuple[int, ...]:
        """Neighbours of `source` but `target`."""
        return tuple(n for n in self.neighbours[source] if n != target)
