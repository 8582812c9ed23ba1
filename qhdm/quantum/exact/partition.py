"""Partition of a component into a tree of small blocks that are simulated exactly.

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

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations, pairwise, product

import numpy as np
import rustworkx as rx

from qhdm.quantum.exact.tree import (
    BondEnd,
    BondGate,
    InputEncoding,
    Network,
    NetworkBlock,
    Readout,
    real_form,
)
from qhdm.quantum.ir.connectivity import connected, interaction_graph
from qhdm.quantum.ir.fusion import FusedGate, embed, random_angles
from qhdm.quantum.ir.light_cones import light_cone
from qhdm.quantum.ir.lowering import Op
from qhdm.quantum.ir.paulis import LETTERS, Pauli, letters_on, string_matrix

#: Largest block, in qubits.
MAX_BLOCK = 5
#: Largest support, in qubits, of an observable conjugated by the gates at the end.
MAX_SUPPORT = 4
#: Largest bond between two blocks, in real numbers.
MAX_BOND = 4096
#: Batch size that the cost model assumes.
NOMINAL_BATCH = 512


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
) -> tuple[tuple[InputEncoding, ...], list[Op]] | None:
    """Take the gates that read inputs, and constant ones before them, off the start of qubits."""

    def reads(op: Op) -> bool:
        return op.angle >= 0 and reads_inputs[op.angle]

    reading = {index: op for index, op in enumerate(ops) if reads(op)}
    taken: set[int] = set()
    inlets = []
    for qubit in range(size):
        mine = [index for index, op in reading.items() if qubit in op.qubits]
        if not mine:
            inlets.append(InputEncoding(-1, np.array([[[1, 0], [0, 0]]], dtype=complex)))
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


def _inlet(op: Op, ket: np.ndarray) -> InputEncoding | None:
    def state(angle: float) -> np.ndarray:
        after = op.gate.at(angle) @ ket
        return np.outer(after, after.conj())

    zero, quarter, half = state(0.0), state(np.pi / 2), state(np.pi)
    mean = (zero + half) / 2
    states = np.array([mean, zero - mean, quarter - mean])
    probe = 0.7
    affine = states[0] + np.cos(probe) * states[1] + np.sin(probe) * states[2]
    return (
        InputEncoding(op.angle, states) if np.allclose(affine, state(probe), atol=1e-12) else None
    )


def _units(ops: Sequence[Op]) -> list[FusedGate]:
    """Join gates to the last unit on their qubits, where that has the same two qubits or more."""
    units: list[FusedGate] = []
    for op in ops:
        last = max((i for i, u in enumerate(units) if set(u.qubits) & set(op.qubits)), default=-1)
        if last >= 0 and set(op.qubits) <= set(units[last].qubits):
            units[last] = replace(units[last], ops=(*units[last].ops, op))
        else:
            units.append(FusedGate(op.qubits, (op,)))
    return units


def _assemble(
    size: int,
    inlets: tuple[InputEncoding, ...],
    units: Sequence[FusedGate],
    blocks: Sequence[tuple[int, ...]],
    paulis: Sequence[Pauli],
) -> Network | None:
    """The network of a given partition, or None if it would be too large."""
    home = {qubit: b for b, block in enumerate(blocks) for qubit in block}
    crossing = [len({home[q] for q in unit.qubits}) > 1 for unit in units]
    cones = [set(_cone(units, pauli)) for pauli in paulis]
    seen = set().union(*cones)
    tail = _tail(units, crossing, cones, paulis)

    steps: list[list[FusedGate | BondEnd]] = [[] for _ in blocks]
    cuts: list[BondGate] = []
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
            steps[home[qubit]].append(BondEnd(len(cuts), qubit))
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
    steps: Sequence[FusedGate | BondEnd],
    operators: Sequence[Pauli],
    inlets: Sequence[InputEncoding],
    joined: Mapping[int, int],
) -> NetworkBlock:
    """One block; `joined` gives the neighbour that each of its cuts leads to."""
    fused: list[FusedGate | tuple[BondEnd, ...]] = []
    for step in steps:
        last = fused[-1] if fused else None
        if isinstance(step, FusedGate):
            # All gates are embedded in the whole block, so that equal sequences are of one kind.
            if isinstance(last, FusedGate):
                fused[-1] = FusedGate(qubits, last.ops + step.ops)
            else:
                fused.append(FusedGate(qubits, step.ops))
        elif isinstance(last, tuple) and last[0].qubit == step.qubit:
            fused[-1] = (*last, step)
        else:
            fused.append((step,))
    before = None
    if fused and isinstance(fused[0], FusedGate):
        before, fused = fused[0], fused[1:]
    states = np.ones((1, 1, 1), dtype=complex)
    for qubit in qubits:
        states = np.kron(inlets[qubit].states, states)
    matrices = [string_matrix(letters_on(pauli, qubits)) for pauli in operators]
    cuts = tuple(side.cut for run in fused if not isinstance(run, FusedGate) for side in run)
    order = sorted(range(len(cuts)), key=lambda position: joined[cuts[position]])
    return NetworkBlock(
        qubits,
        np.ascontiguousarray(states.transpose(1, 0, 2)),
        before,
        tuple(fused),
        np.stack(matrices, axis=1),
        cuts,
        tuple(order),
    )


def _spanning_tree(blocks: int, ends: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """The pairs that cuts join, and as many more as hold all blocks together."""
    tree = sorted({(min(pair), max(pair)) for pair in ends})
    roots = [part[0] for part in connected(blocks, tree)]
    return (*tree, *pairwise(roots))


def _cone(units: Sequence[FusedGate], pauli: Pauli) -> list[int]:
    """Units with a gate in the light cone of a Pauli string."""
    flat = [(index, op) for index, unit in enumerate(units) for op in unit.ops]
    kept = light_cone([op for _, op in flat], pauli)
    return sorted({flat[i][0] for i in kept})


def _tail(
    units: Sequence[FusedGate],
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


def _cut(unit: FusedGate) -> BondGate:
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
        vectors = _sparse_basis(np.concatenate(rows))
        options.append((len(vectors), side, vectors.reshape(-1, 2, 2)))
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
    return BondGate(
        unit,
        basis,
        side,
        maps.reshape(rank**2, 4, 4),
        projector.reshape(16, 4 * rank),
        np.ascontiguousarray(own.conj().reshape(rank**2, rank**2)),
        (unit.kind, side),
    )


def _sparse_basis(rows: np.ndarray) -> np.ndarray:
    """An orthonormal basis of the space of `rows`, as sparse as Gaussian elimination leaves it.

    For controlled gates it holds the two projectors, which keeps most messages sparse.
    """
    _, values, vectors = np.linalg.svd(rows)
    basis = vectors[: int((values > 1e-9).sum())]
    pivot = 0
    for column in range(rows.shape[1]):
        if pivot == len(basis):
            break
        largest = pivot + int(np.argmax(np.abs(basis[pivot:, column])))
        if abs(basis[largest, column]) < 1e-9:
            continue
        basis[[pivot, largest]] = basis[[largest, pivot]]
        basis[pivot] /= basis[pivot, column]
        others = np.arange(len(basis)) != pivot
        basis[others] -= np.outer(basis[others, column], basis[pivot])
        pivot += 1
    basis[np.abs(basis) < 1e-12] = 0
    orthogonal, triangle = np.linalg.qr(basis.T)
    return (orthogonal * np.sign(np.diag(triangle).real)).T


def _hermitian_basis(rank: int) -> np.ndarray:
    """An orthonormal basis of Hermitian matrices, (rank^2, rank, rank); the first is the identity.

    A traced-out qubit only passes on multiples of the identity, so that the others vanish.
    """
    diagonal = np.eye(rank)
    diagonal[:, 0] = 1
    matrices = [np.diag(column).astype(complex) for column in np.linalg.qr(diagonal)[0].T]
    for r, s in combinations(range(rank), 2):
        for entry in (1, 1j):
            matrix = np.zeros((rank, rank), dtype=complex)
            matrix[r, s], matrix[s, r] = entry * 2**-0.5, np.conj(entry) * 2**-0.5
            matrices.append(matrix)
    return np.array(matrices)


def _measured(
    units: tuple[FusedGate, ...],
    pauli: Pauli,
    blocks: Sequence[tuple[int, ...]],
    operators: list[dict[Pauli, int]],
) -> Readout:
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
    late = FusedGate(support, tuple(op for unit in units for op in unit.ops)) if units else None
    d = len(observable)
    strings = real_form(np.array([string_matrix(c) for c in choices])) / d
    return Readout(late, observable[:, None], strings, tuple(keys))
