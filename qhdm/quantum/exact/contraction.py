"""Contraction plan of a tree of blocks: the entries of each message and their operands.

A message summarises the blocks behind it for a neighbour, for every choice of operators on them
and every value of the bond. Many entries vanish whatever the weights (a traced-out control passes
on no coherence), and others meet such zeros: neither are computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qhdm.quantum.exact.constants import Constant
from qhdm.quantum.exact.tree import Key, Network

_Edge = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Part:
    """Entries of a message that are sums over the same entries of the messages that come in.

    Attributes:
        incoming: for each other neighbour of the source, (I,) entries of its message; their
            products are summed over.
        rows: (O, I), rows of the coefficients of the source's group.
    """

    incoming: tuple[Constant, ...]
    rows: np.ndarray


@dataclass(frozen=True, eq=False)
class Edge:
    """A message from a block to a neighbour.

    Attributes:
        source, target: the blocks.
        others: the source's other neighbours.
        parts: the message, end to end.
    """

    source: int
    target: int
    others: tuple[int, ...]
    parts: tuple[Part, ...]


@dataclass(frozen=True, eq=False)
class RootEdge:
    """Observables that are closed at the bond between two blocks, as bilinear forms of messages.

    Attributes:
        one, other: the blocks.
        left: (N,) entries of the message one -> other.
        form: (N, entries of the message other -> one), 1 where two entries meet, 0 where not; None
            if it depends on the weights.
        terms: the same, as places in the coefficients of all conjugated observables, which a 1 and
            a 0 follow.
        observables: (observables of the component, N), 1 where one sums over the other.
    """

    one: int
    other: int
    left: Constant
    form: Constant | None
    terms: Constant
    observables: Constant


@dataclass(frozen=True, eq=False)
class Contraction:
    """See the module.

    Attributes:
        edges: messages, each after those that it needs.
        closings: what makes values of them.
        cost: real multiply-adds per sample in a forward pass.
    """

    edges: tuple[Edge, ...]
    closings: tuple[RootEdge, ...]
    cost: int


def plan_contraction(
    network: Network, nonzero: Sequence[np.ndarray], offsets: Sequence[int]
) -> Contraction:
    """Plan the contraction of a network of more than one block.

    Args:
        network: the tree.
        nonzero: for each block, which rows of its coefficients do not vanish at all weights;
            ordered by the values of its cuts in time, then by operator.
        offsets: for each block, its first row among those of its group.
    """
    needed = network.needed(network.closed)
    rows = [_by_neighbour(network, b, np.arange(len(n))) for b, n in enumerate(nonzero)]
    live = _live_entries(network, [nonzero[b][r] for b, r in enumerate(rows)], needed)
    place: dict[_Edge, dict[tuple[Key, int], int]] = {}
    edges = []
    cost = 0
    for (source, target), keys in needed.items():
        others = network.others(source, target)
        axis = 1 + network.neighbours[source].index(target)
        alike: dict[tuple[Key, ...], list[Key]] = {}
        for key in keys:
            behind = tuple(network.reduced(n, source, key) for n in others)
            alike.setdefault(behind, []).append(key)
        parts = []
        mine = place.setdefault((source, target), {})
        for behind, chosen in alike.items():
            reads = [live[n, source][k] for n, k in zip(others, behind, strict=True)]
            values = np.meshgrid(*(np.flatnonzero(r) for r in reads), indexing="ij")
            columns = [value.reshape(-1) for value in values]
            incoming = tuple(
                Constant(np.array([place[n, source][k, int(v)] for v in column], dtype=np.int64))
                for n, k, column in zip(others, behind, columns, strict=True)
            )
            made = []
            for key in chosen:
                for value in np.flatnonzero(live[source, target][key]):
                    mine[key, int(value)] = len(mine)
                    table = np.moveaxis(rows[source], axis, 1)[key[source], value]
                    made.append(table[tuple(columns)].reshape(-1))
            if made:
                table = offsets[source] + np.array(made, dtype=np.int64)
                parts.append(Part(incoming, table))
                cost += table.size * network.blocks[source].features
        edges.append(Edge(source, target, others, tuple(parts)))
    closings = _closings(network, live, place)
    cost += sum(closing.terms.array.size for closing in closings)
    return Contraction(tuple(edges), closings, cost)


def _by_neighbour(network: Network, index: int, rows: np.ndarray) -> np.ndarray:
    """Rows of a block's coefficients as (operators, bond to each neighbour in turn)."""
    block = network.blocks[index]
    sizes = [network.cuts[cut].bond.size for cut in block.cuts]
    table = rows.reshape(*sizes, -1)  # a group's operators are filled up
    table = table.transpose(len(sizes), *block.cut_order)
    return table.reshape(-1, *network.bonds[index])


def _live_entries(
    network: Network, nonzero: Sequence[np.ndarray], needed: dict[_Edge, tuple[Key, ...]]
) -> dict[_Edge, dict[Key, np.ndarray]]:
    """For each message and choice of operators, the values of its bond that count."""
    possible: dict[_Edge, dict[Key, np.ndarray]] = {}
    for (source, target), keys in needed.items():  # those behind come first
        possible[source, target] = {
            key: _open(network, source, target, nonzero[source][key[source]], key, possible)
            for key in keys
        }
    live = {
        edge: {key: np.zeros_like(v) for key, v in keys.items()} for edge, keys in possible.items()
    }
    for terms in network.closed:
        for one, other, key in terms:
            ours, theirs = network.reduced(one, other, key), network.reduced(other, one, key)
            both = possible[one, other][ours] & possible[other, one][theirs]
            live[one, other][ours] |= both
            live[other, one][theirs] |= both
    for source, target in reversed(needed):
        axis = network.neighbours[source].index(target)
        for key in needed[source, target]:
            table = np.moveaxis(nonzero[source][key[source]], axis, -1)
            table = np.moveaxis(table & live[source, target][key], -1, axis)
            for neighbour in network.others(source, target):
                behind = network.reduced(neighbour, source, key)
                reads = _open(network, source, neighbour, table, key, possible, but=target)
                live[neighbour, source][behind] |= possible[neighbour, source][behind] & reads
    return live


def _open(
    network: Network,
    source: int,
    target: int,
    table: np.ndarray,
    key: Key,
    behind: dict[_Edge, dict[Key, np.ndarray]],
    *,
    but: int = -1,
) -> np.ndarray:
    """Values of the bond to `target` at which the block, met by all other messages, is not zero."""
    for axis, neighbour in enumerate(network.neighbours[source]):
        if neighbour not in (target, but):
            mask = behind[neighbour, source][network.reduced(neighbour, source, key)]
            table = np.moveaxis(np.moveaxis(table, axis, -1) & mask, -1, axis)
    axis = network.neighbours[source].index(target)
    return np.asarray(np.moveaxis(table, axis, 0).reshape(table.shape[axis], -1).any(axis=1))


def _closings(
    network: Network,
    live: dict[_Edge, dict[Key, np.ndarray]],
    place: dict[_Edge, dict[tuple[Key, int], int]],
) -> tuple[RootEdge, ...]:
    one_place = sum(4 ** len(readout.support) for readout in network.measured if readout.late)
    first = 0
    #: For each bond, for each observable and left entry, right entries and their factors.
    at: dict[_Edge, dict[tuple[int, int], list[tuple[int, int]]]] = {}
    for observable, (measured, terms) in enumerate(
        zip(network.measured, network.closed, strict=True)
    ):
        for (one, other, key), string in zip(terms, measured.strings, strict=True):
            factor = first + int(string) if measured.late else one_place
            ours, theirs = network.reduced(one, other, key), network.reduced(other, one, key)
            meet = live[one, other][ours] & live[other, one][theirs]
            for value in np.flatnonzero(meet):
                forms = at.setdefault((one, other), {})
                left = place[one, other][ours, int(value)]
                right = place[other, one][theirs, int(value)]
                forms.setdefault((observable, left), []).append((right, factor))
        first += 4 ** len(measured.support) if measured.late else 0
    closings = []
    for (one, other), forms in at.items():
        factors = np.full((len(forms), len(place[other, one])), one_place + 1, dtype=np.int64)
        observables = np.zeros((len(network.closed), len(forms)))
        for row, ((observable, _), pairs) in enumerate(forms.items()):
            observables[observable, row] = 1
            for right, factor in pairs:
                factors[row, right] = factor
        lefts = np.array([left for _, left in forms], dtype=np.int64)
        plain = np.all(factors >= one_place)
        form = Constant((factors == one_place).astype(float)) if plain else None
        closings.append(
            RootEdge(one, other, Constant(lefts), form, Constant(factors), Constant(observables))
        )
    return tuple(closings)
