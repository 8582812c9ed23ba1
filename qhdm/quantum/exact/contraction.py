"""Contraction plan of a tree of blocks: the entries of each message and their operands.

A message summarises the blocks behind it for a neighbour, for every choice of operators on them
and every value of the bond. Many entries vanish whatever the weights (a traced-out control passes
on no coherence), and others meet such zeros: neither are computed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np

from qhdm.quantum.exact.constants import Constant
from qhdm.quantum.exact.tables import BlockRows
from qhdm.quantum.exact.tree import Key, Network
from qhdm.quantum.ir.fusion import by_kind

_Edge = tuple[int, int]
#: For each message and choice of operators behind it, an array over the values of its bond.
_Entries = dict[_Edge, dict[Key, np.ndarray]]


@dataclass(frozen=True, eq=False)
class Part:
    """Entries of a message that are sums over the same entries of the messages that come in.

    Attributes:
        edge: source and target of the message.
        incoming: for each other neighbour of the source, this and (I,) entries of its message;
            their products are summed over.
        outputs: O, the number of entries.
    """

    edge: _Edge
    incoming: tuple[tuple[int, Constant], ...]
    outputs: int

    @property
    def inputs(self) -> int:
        """I, or 1 without messages that come in."""
        return len(self.incoming[0][1].array) if self.incoming else 1


@dataclass(frozen=True, eq=False)
class RootEdge:
    """Observables that are closed at the bond between two blocks, as bilinear forms of messages.

    Attributes:
        edge: the blocks, one and other.
        left: (N,) entries of the message one -> other.
        terms: (N, entries of the message other -> one), the factors with which two entries meet,
            as places in the coefficients of all conjugated observables, which a 1 and a 0 follow.
    """

    edge: _Edge
    left: Constant
    terms: Constant


@dataclass(frozen=True, eq=False)
class Contraction:
    """How a tree of blocks is contracted.

    Attributes:
        parts: of messages, each after those that it needs.
        tables: for each table of coefficients, parts that read it, and the rows of all: (O I) each.
        closings: what makes values of messages.
        observables: (observables of the component, N of all closings), 1 where one sums over the
            other.
        cost: real multiply-adds per sample in a forward pass.
    """

    parts: tuple[Part, ...]
    tables: tuple[tuple[int, tuple[Part, ...], Constant], ...]
    closings: tuple[RootEdge, ...]
    observables: Constant
    cost: int


def plan_contraction(network: Network, blocks: Sequence[BlockRows]) -> Contraction:
    """Plan the contraction of more than one block; `blocks` are the rows of their tables."""
    needed = network.needed(itertools.chain.from_iterable(network.closed))
    live = _live_entries(network, blocks, needed)
    places: _Entries = {}
    parts: list[tuple[Part, np.ndarray]] = []
    for edge, keys in needed.items():
        place = places[edge] = {}
        source, count = edge[0], 0
        others = network.others(*edge)
        axis = network.neighbours[source].index(edge[1])
        behind = [tuple(network.reduced(n, source, key) for n in others) for key in keys]
        for alike in by_kind(zip(keys, behind, strict=True), lambda pair: pair[1]):
            reads = [places[n, source][k] for n, k in zip(others, alike[0][1], strict=True)]
            within = [np.flatnonzero(read >= 0) for read in reads]
            rows = []
            for key, _ in alike:
                mask = live[edge][key]
                place[key] = np.where(mask, count + np.cumsum(mask) - 1, -1)
                count += int(mask.sum())
                table = np.moveaxis(blocks[source].numbers[key[source]], axis, 0)
                table = table[np.ix_(np.flatnonzero(mask), *within)]
                rows.append(table.reshape(len(table), math.prod(table.shape[1:])))
            columns = np.meshgrid(*(read[read >= 0] for read in reads), indexing="ij")
            incoming = tuple((n, Constant(c.ravel())) for n, c in zip(others, columns, strict=True))
            whole = np.concatenate(rows)
            if len(whole):
                parts.append((Part(edge, incoming, len(whole)), whole))
    tables = []
    for own in by_kind(parts, lambda pair: blocks[pair[0].edge[0]].group):
        read = Constant(np.concatenate([rows.ravel() for _, rows in own]))
        number = blocks[own[0][0].edge[0]].group
        tables.append((number, tuple(part for part, _ in own), read))
    closings, observables = _closings(network, places)
    cost = sum(rows.size * network.blocks[part.edge[0]].features for part, rows in parts)
    cost += sum(closing.terms.array.size for closing in closings)
    made = tuple(part for part, _ in parts)
    return Contraction(made, tuple(tables), closings, Constant(observables), cost)


def _live_entries(
    network: Network, blocks: Sequence[BlockRows], needed: Mapping[_Edge, Sequence[Key]]
) -> _Entries:
    """The values of bonds that count: neither they nor all that they meet vanish."""
    possible: _Entries = {}

    def met(edge: _Edge, key: Key, here: np.ndarray | None = None) -> np.ndarray:
        """Where the table of the source differs from 0, and so do the messages that it meets."""
        source, target = edge
        table = blocks[source].live[key[source]]
        masks = []
        for n, size in zip(network.neighbours[source], table.shape, strict=True):
            mask = possible[n, source][network.reduced(n, source, key)] if n != target else here
            masks.append(np.ones(size, dtype=bool) if mask is None else mask)
        return np.asarray(table & reduce(np.multiply.outer, masks))

    def bond(table: np.ndarray, source: int, target: int) -> np.ndarray:
        axis = network.neighbours[source].index(target)
        return np.asarray(np.moveaxis(table, axis, 0).reshape(table.shape[axis], -1).any(axis=1))

    for edge, keys in needed.items():  # those behind come first
        possible[edge] = {key: bond(met(edge, key), *edge) for key in keys}
    live = {
        edge: {key: np.zeros_like(mask) for key, mask in own.items()}
        for edge, own in possible.items()
    }
    for one, other, key in itertools.chain.from_iterable(network.closed):
        ours, theirs = network.reduced(one, other, key), network.reduced(other, one, key)
        both = possible[one, other][ours] & possible[other, one][theirs]
        live[one, other][ours] |= both
        live[other, one][theirs] |= both
    for edge in reversed(list(needed)):
        for key in needed[edge]:
            table = met(edge, key, live[edge][key])
            for n in network.others(*edge):
                live[n, edge[0]][network.reduced(n, edge[0], key)] |= bond(table, edge[0], n)
    return live


def _closings(network: Network, places: _Entries) -> tuple[tuple[RootEdge, ...], np.ndarray]:
    counts = [4 ** len(readout.support) if readout.late else 0 for readout in network.measured]
    *firsts, one_place = itertools.accumulate(counts, initial=0)
    #: For each bond: observable, left entry, right entry and factor, wherever two entries meet.
    meetings: dict[_Edge, list[np.ndarray]] = {}
    for number, (readout, terms) in enumerate(zip(network.measured, network.closed, strict=True)):
        for (one, other, key), string in zip(terms, readout.strings, strict=True):
            left = places[one, other][network.reduced(one, other, key)]
            right = places[other, one][network.reduced(other, one, key)]
            meet = (left >= 0) & (right >= 0)
            factor = firsts[number] + int(string) if readout.late else one_place
            rows = np.broadcast_arrays(number, left[meet], right[meet], factor)
            meetings.setdefault((one, other), []).append(np.stack(rows, axis=1))
    closings = []
    sums = [np.zeros(0)]
    for (one, other), arrays in meetings.items():
        observable, left, right, factor = np.concatenate(arrays).T
        pairs, row = np.unique(np.stack([observable, left]), axis=1, return_inverse=True)
        entries = 1 + max(int(place.max()) for place in places[other, one].values())
        if pairs.size:
            form = np.full((pairs.shape[1], entries), one_place + 1)
            form[row.ravel(), right] = factor
            closings.append(RootEdge((one, other), Constant(pairs[1]), Constant(form)))
            sums.append(pairs[0])
    numbers = np.arange(len(network.measured))
    return tuple(closings), np.equal.outer(numbers, np.concatenate(sums)).astype(float)
