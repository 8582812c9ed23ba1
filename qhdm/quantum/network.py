"""Block networks in torch: see qhdm.quantum.partition for the picture.

Everything that depends on the weights alone becomes, once per call, one real matrix per block; a
batch then costs a matrix product per block and elementwise contractions of the bonds. The batch is
always the last dimension.

Shapes: F filters with the same circuit and different weights, G equal components, B samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from qhdm.quantum.angles import Angles
from qhdm.quantum.island import Island
from qhdm.quantum.partition import Measured, Network, NetworkBlock
from qhdm.quantum.units import letters_on, string_matrix

Key = tuple[int, ...]


def simulate_network(network: Network, rows: np.ndarray, angles: Angles) -> Tensor:
    """Values of the component's observables, (F, G, K, B).

    Args:
        network: the component.
        rows: (G, local angles), rows of the program's angles.
        angles: of this call.
    """
    return _Run(network, rows, angles).values()


class _Run:
    """One evaluation: tensors of the blocks, and the messages between them."""

    def __init__(self, network: Network, rows: np.ndarray, angles: Angles) -> None:
        self.network = network
        self.angles = angles
        self.rows = rows
        self.lead = (angles.filters, len(rows))
        units = [step.unit for block in network.blocks for step in block.steps if step.unit]
        units += [cut.unit for cut in network.cuts]
        units += [unit for measured in network.measured for unit in measured.units]
        self.matrices = angles.units(list(dict.fromkeys(units)), rows)
        self.neighbours: list[list[int]] = [
            [a + b - i for a, b in network.tree if i in (a, b)] for i in range(len(network.blocks))
        ]
        features = self._features()
        # (F, G, operators, bond to each neighbour ..., B)
        self.tensors = [
            self._block(i).flatten(2, -2) @ self._products(block, features)
            for i, block in enumerate(network.blocks)
        ]
        self.tensors = [
            tensor.unflatten(2, (len(block.operators), *self._bonds(i)))
            for i, (block, tensor) in enumerate(zip(network.blocks, self.tensors, strict=True))
        ]

    # What depends on the inputs: products of (1, cos a, sin a).

    def _features(self) -> Tensor:
        """(F, G, qubits that read an input, 3, B), in the order of the qubits."""
        reading = [inlet.angle for inlet in self.network.inlets if inlet.angle >= 0]
        own = self.angles.own(self.rows[:, reading])
        return torch.stack([torch.ones_like(own), own.cos(), own.sin()], dim=3)

    def _products(self, block: NetworkBlock, features: Tensor) -> Tensor:
        """Products of the features of a block's qubits, (F, G, 3^k, B); the last qubit first."""
        order = [q for q, inlet in enumerate(self.network.inlets) if inlet.angle >= 0]
        result = features.new_ones(*self.lead, 1, 1)
        for qubit in block.qubits:
            if qubit in order:
                own = features[:, :, order.index(qubit)]
                result = (own.unsqueeze(3) * result.unsqueeze(2)).flatten(2, 3)
        return result

    # What depends on the weights alone.

    def _block(self, index: int) -> Tensor:
        """The block's coefficients, (F, G, operators, bond to each neighbour ..., features)."""
        network, angles = self.network, self.angles
        block = network.blocks[index]
        k, d = len(block.qubits), 2 ** len(block.qubits)
        island = Island(tuple(reversed(block.qubits)), angles.eye(d).expand(*self.lead, d, d))
        for step in block.steps:
            if step.unit is not None:
                island = island.apply(step.unit.qubits, self.matrices[step.unit])
            else:
                island = island.branch(step.qubit, self._side(step.cut, step.qubit))
        columns = island.ordered(block.qubits)  # (F, G, d, (in, r1, r2, ...))
        operators = angles.constant(_operators(block))
        gram = columns.mH.unsqueeze(2) @ (operators @ columns.unsqueeze(2))

        ranks = [len(network.cuts[cut].basis) for cut in block.cuts]
        pairs = [2] * k + ranks
        maps = [
            network.inlets[q].states.transpose(0, 2, 1).reshape(-1, 4)
            for q in reversed(block.qubits)
        ]
        for cut, rank in zip(block.cuts, ranks, strict=True):
            side = network.cuts[cut].unit.qubits[0] in block.qubits
            maps.append(_hermitian_basis(rank) if side else _hermitian_basis(rank).conj())
        tensor = _reduce_pairs(gram, pairs, [angles.constant(m) for m in maps])
        # (F, G, operators, features of each qubit ..., each cut ...), real by construction
        tensor = tensor.real.flatten(3, 2 + k)
        order = [
            4 + position
            for neighbour in self.neighbours[index]
            for position, cut in enumerate(block.cuts)
            if neighbour in network.ends[cut]
        ]
        tensor = tensor.permute(0, 1, 2, *order, 3)
        return tensor.reshape(*tensor.shape[:3], *self._bonds(index), tensor.shape[-1])

    def _bonds(self, index: int) -> list[int]:
        """The size of the bond to each neighbour."""
        return [self._bond(index, neighbour) for neighbour in self.neighbours[index]]

    def _bond(self, one: int, other: int) -> int:
        network = self.network
        sizes = [
            len(cut.basis) ** 2
            for cut, ends in zip(network.cuts, network.ends, strict=True)
            if {one, other} == set(ends)
        ]
        return int(np.prod(sizes))

    def _side(self, number: int, qubit: int) -> Tensor:
        """The operators of one side of a cut, (F, G, r, 2, 2)."""
        cut = self.network.cuts[number]
        basis = self.angles.constant(cut.basis)
        if cut.unit.qubits[cut.constant] == qubit:
            return basis.expand(*self.lead, *basis.shape)
        tensor = self.matrices[cut.unit].unflatten(-1, (2, 2)).unflatten(-3, (2, 2))
        # Axes: out 1, out 0, in 1, in 0; those of the constant side are summed.
        spec = "fgaibj,rij->fgrab" if cut.constant == 0 else "fgiajb,rij->fgrab"
        return torch.einsum(spec, tensor, basis.conj())

    def _coefficients(self, measured: Measured) -> Tensor:
        """Of the strings that a conjugated observable consists of, (F, G, n)."""
        unitary = Island(
            tuple(reversed(measured.support)),
            self.angles.eye(len(measured.pauli)).expand(*self.lead, *measured.pauli.shape),
        )
        for unit in measured.units:
            unitary = unitary.apply(unit.qubits, self.matrices[unit])
        matrix = unitary.ordered(measured.support)
        conjugated = matrix.mH @ self.angles.constant(measured.pauli) @ matrix
        strings = self.angles.constant(measured.strings / len(measured.pauli))
        return torch.einsum("sij,fgji->fgs", strings, conjugated).real

    # The contraction of the tree.

    def values(self) -> Tensor:
        """(F, G, K, B)."""
        network = self.network
        sizes = [int(np.prod(self._bonds(i))) for i in range(len(network.blocks))]
        at: dict[int, list[tuple[int, Key]]] = {}
        for number, measured in enumerate(network.measured):
            involved = np.flatnonzero(measured.operators.any(axis=0))
            center = min(involved, key=lambda b: sizes[b], default=0)
            at.setdefault(int(center), []).extend(
                (number, tuple(map(int, row))) for row in measured.operators
            )
        collected: dict[int, list[Tensor]] = {}
        for center, terms in at.items():
            rows = self._contract(center, None, [key for _, key in terms])
            for (number, _), row in zip(terms, rows.unbind(2), strict=True):
                collected.setdefault(number, []).append(row)
        results = []
        for number, measured in enumerate(network.measured):
            if measured.units:
                weights = self._coefficients(measured).unsqueeze(3)
                results.append((torch.stack(collected[number], dim=2) * weights).sum(2))
            else:
                results.append(collected[number][0])
        return torch.stack(results, dim=2)

    def _contract(self, block: int, towards: int | None, keys: Sequence[Key]) -> Tensor:
        """The subtree of `block`, away from `towards`, for several choices of operators.

        Args:
            block: root of the subtree.
            towards: the neighbour that the open bond leads to; None closes all.
            keys: for each choice, the operator of every block.

        Returns:
            (F, G, n, bond to `towards`, B), or (F, G, n, B).
        """
        tensor = _take(self.tensors[block], [key[block] for key in keys])
        axis = 3
        for neighbour in self.neighbours[block]:
            if neighbour == towards:
                axis += 1
                continue
            inside = self._subtree(neighbour, block)
            reduced = [tuple(op if b in inside else 0 for b, op in enumerate(key)) for key in keys]
            unique = list(dict.fromkeys(reduced))
            if self._bond(block, neighbour) == 1 and not any(map(any, unique)):
                tensor = tensor.squeeze(axis)  # the trace of a state that nothing else touches: 1
                continue
            message = self._contract(neighbour, block, unique)  # (F, G, unique, bond, B)
            message = _take(message, [unique.index(key) for key in reduced])
            for _ in range(axis - 3):
                message = message.unsqueeze(3)
            while message.dim() < tensor.dim():
                message = message.unsqueeze(-2)
            tensor = (tensor * message).sum(axis)
        return tensor

    def _subtree(self, block: int, parent: int) -> set[int]:
        found = {block}
        for neighbour in self.neighbours[block]:
            if neighbour != parent:
                found |= self._subtree(neighbour, block)
        return found


def _take(tensor: Tensor, indices: Sequence[int]) -> Tensor:
    """`tensor[:, :, indices]`, without a copy where they are consecutive or all the same."""
    first, count = indices[0], len(indices)
    if all(index == first for index in indices):
        return tensor[:, :, first : first + 1].expand(-1, -1, count, *[-1] * (tensor.dim() - 3))
    if list(indices) == list(range(first, first + count)):
        return tensor[:, :, first : first + count]
    return tensor[:, :, torch.as_tensor(indices, device=tensor.device)]


def _reduce_pairs(gram: Tensor, sizes: Sequence[int], maps: Sequence[Tensor]) -> Tensor:
    """Contract each (row, column) pair of indices of `gram` with a map.

    Args:
        gram: (F, G, n, prod(sizes), prod(sizes)), complex.
        sizes: of the indices.
        maps: for each index, (m, size^2) over (row, column).

    Returns:
        (F, G, n, m of each index ...).
    """
    lead, count = gram.shape[:3], len(sizes)
    tensor = gram.reshape(*lead, *sizes, *sizes)
    # Two indices at a time: one matrix product of useful size instead of two tiny ones.
    done: list[int] = []
    position = 0
    while position < count:
        width = min(2, count - position)
        left = count - position
        rows = [3 + i for i in range(width)]
        columns = [3 + left + i for i in range(width)]
        pairs = [axis for pair in zip(rows, columns, strict=True) for axis in pair]
        rest = [axis for axis in range(3, tensor.dim()) if axis not in pairs]
        tensor = tensor.permute(0, 1, 2, *rest, *pairs)
        kept = tensor.shape[3 : 3 + len(rest)]
        joint = maps[position]
        if width == 2:
            joint = torch.kron(joint, maps[position + 1])
        tensor = tensor.reshape(*lead, -1, joint.shape[1]) @ joint.T
        tensor = tensor.reshape(
            *lead, *kept, *(m.shape[0] for m in maps[position : position + width])
        )
        done += [m.shape[0] for m in maps[position : position + width]]
        position += width
    return tensor


def _operators(block: NetworkBlock) -> np.ndarray:
    """The matrices of the block's Pauli strings, (n, d, d)."""
    return np.array([string_matrix(letters_on(p, block.qubits)) for p in block.operators])


@lru_cache(maxsize=16)
def _hermitian_basis(rank: int) -> np.ndarray:
    """An orthonormal basis of Hermitian matrices, (rank^2, rank^2) over (row, column)."""
    rows = []
    for r in range(rank):
        for s in range(rank):
            matrix = np.zeros((rank, rank), dtype=complex)
            if r == s:
                matrix[r, r] = 1
            elif r < s:
                matrix[r, s] = matrix[s, r] = 2**-0.5
            else:
                matrix[r, s], matrix[s, r] = 1j * 2**-0.5, -1j * 2**-0.5
            rows.append(matrix.reshape(-1))
    return np.array(rows)
