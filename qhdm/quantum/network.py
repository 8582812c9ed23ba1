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
from qhdm.quantum.partition import Measured, Network, NetworkBlock, Side
from qhdm.quantum.units import Unit

Key = tuple[int, ...]

#: Added to a qubit's number for the column bit of an operator; the row bit keeps the number.
_COLUMN = 64


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
        units = [block.before for block in network.blocks if block.before]
        units += [s for block in network.blocks for s in block.steps if isinstance(s, Unit)]
        units += [cut.unit for cut in network.cuts]
        units += [unit for measured in network.measured for unit in measured.units]
        self.matrices = angles.units(list(dict.fromkeys(units)), rows)
        self.neighbours: list[list[int]] = [
            [a + b - i for a, b in network.tree if i in (a, b)] for i in range(len(network.blocks))
        ]
        features = self._features()
        self.tensors = [  # (F, G, operators, bond to each neighbour ..., B)
            (self._block(i) @ self._products(block, features)).unflatten(
                2, (len(block.operators), *self._bonds(i))
            )
            for i, block in enumerate(network.blocks)
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
        """The block's coefficients, (F, G, operators x bonds, features).

        The initial states go forward in time through the gates before the first cut, the operators
        backward through all others; then the traces of their products are taken. Operators and
        states are tensors over the row and the column bit of every qubit.
        """
        block = self.network.blocks[index]
        rows = block.qubits
        columns = tuple(q + _COLUMN for q in rows)
        bits = tuple(reversed(columns + rows))  # of a flattened matrix, most significant first
        states = Island(bits, self._flat(block.states))
        if block.before is not None:
            matrix = self.matrices[block.before]
            states = states.apply(rows, matrix).apply(columns, matrix.conj())
        operators = Island(bits, self._flat(block.operators))
        branches = [branch for branch in block.steps if not isinstance(branch, Unit)]
        for step in reversed(block.steps[1:]):
            if isinstance(step, Unit):
                matrix = self.matrices[step]
                operators = operators.apply(rows, matrix.mH).apply(columns, matrix.mT)
            else:
                pair = (step[0].qubit + _COLUMN, step[0].qubit)
                operators = operators.branch(pair, self._maps(step))
        if branches:
            tensor = self._last_traces(states, operators, branches[0])
        else:
            left, right = states.ordered(columns + rows), operators.ordered(columns + rows)
            tensor = _real(left).mT @ _real(right)
        # (F, G, features, cuts in order ..., operators)
        sizes = [len(self.network.cuts[cut].basis) ** 2 for cut in block.cuts]
        tensor = tensor.unflatten(3, (*sizes, len(block.operators)))
        axes = [
            3 + position
            for neighbour in self.neighbours[index]
            for position, cut in enumerate(block.cuts)
            if neighbour in self.network.ends[cut]
        ]
        return tensor.permute(0, 1, tensor.dim() - 1, *axes, 2).flatten(2, -2)

    def _last_traces(self, states: Island, operators: Island, branch: Sequence[Side]) -> Tensor:
        """Traces of states with operators, these taken through the first cuts of the block.

        The largest tensor of a call is made here: in real numbers, and in the order in which the
        matrix product leaves it. Returns (F, G, features, bonds x operators).
        """
        pair = (branch[0].qubit, branch[0].qubit + _COLUMN)
        maps = self._maps(branch)  # (F, G, r, 4, 4)
        r = maps.shape[2]
        maps = maps.flatten(2, 3)
        tensor = operators.leading(pair).reshape(*self.lead, 4, -1)
        # Re(M X) + Im(M X) as one real product.
        weights = torch.cat([maps.real + maps.imag, maps.real - maps.imag], dim=3)
        tensor = weights @ torch.cat([tensor.real, tensor.imag], dim=2)
        tensor = tensor.reshape(*self.lead, r, len(states.state[0, 0]), -1)
        left = _real(states.leading(pair).reshape(states.state.shape))
        traces = left.mT.unsqueeze(2) @ tensor  # (F, G, r, features, operators so far)
        return traces.transpose(2, 3).flatten(3)

    def _flat(self, matrices: np.ndarray) -> Tensor:
        """Matrices (n, d, d) as (F, G, d d, n)."""
        flat = self.angles.constant(matrices).flatten(1).T
        return flat.expand(*self.lead, *flat.shape)

    def _maps(self, branch: Sequence[Side]) -> Tensor:
        """Consecutive sides of cuts on one qubit as maps of operators, (F, G, bonds, 4, 4).

        The matrices act on (row, column) bits of the qubit; the bond of the first cut in time is the
        most significant.
        """
        first, *others = branch
        maps = self._bond_maps(first)
        for side in others:
            maps = (maps.unsqueeze(3) @ self._bond_maps(side).unsqueeze(2)).flatten(2, 3)
        return maps

    def _bond_maps(self, side: Side) -> Tensor:
        """One side of a cut as maps of operators, (F, G, r^2, 4, 4) over (row, column) bits.

        O becomes sum_sr T[s, r] a_s^H O a_r for each T of a Hermitian basis, which keeps operators
        Hermitian, hence bonds real; the other side carries the dual basis, T conjugated.
        """
        cut = self.network.cuts[side.cut]
        basis = hermitian_basis(len(cut.basis))
        if side.qubit != cut.unit.qubits[0]:
            basis = basis.conj()
        a = self._side(side.cut, side.qubit)
        r = len(cut.basis)
        # a_s^H O a_r on the bits (row, column) is the Kronecker product of a_s^H and a_r^T.
        left = a.conj().transpose(-1, -2)[:, :, :, None, :, None, :, None]
        right = a.transpose(-1, -2)[:, :, None, :, None, :, None, :]
        pairs = (left * right).reshape(*self.lead, r * r, 16)
        weights = self.angles.constant(basis).flatten(1)
        return (weights @ pairs).unflatten(3, (4, 4))

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


def _real(matrices: Tensor) -> Tensor:
    """Hermitian matrices as real numbers: the trace of a product becomes a scalar product.

    For symmetric S and antisymmetric A, tr((S + iA)(S' + iA')) = sum (S + A)(S' + A').
    """
    return torch.view_as_real(matrices).sum(-1)


def _take(tensor: Tensor, indices: Sequence[int]) -> Tensor:
    """`tensor[:, :, indices]`, without a copy where they are consecutive or all the same."""
    first, count = indices[0], len(indices)
    if all(index == first for index in indices):
        return tensor[:, :, first : first + 1].expand(-1, -1, count, *[-1] * (tensor.dim() - 3))
    if list(indices) == list(range(first, first + count)):
        return tensor[:, :, first : first + count]
    return tensor[:, :, torch.as_tensor(indices, device=tensor.device)]


@lru_cache(maxsize=16)
def hermitian_basis(rank: int) -> np.ndarray:
    """An orthonormal basis of Hermitian matrices, (rank^2, rank, rank)."""
    matrices = []
    for r in range(rank):
        for s in range(rank):
            matrix = np.zeros((rank, rank), dtype=complex)
            if r == s:
                matrix[r, r] = 1
            elif r < s:
                matrix[r, s] = matrix[s, r] = 2**-0.5
            else:
                matrix[r, s], matrix[s, r] = 1j * 2**-0.5, -1j * 2**-0.5
            matrices.append(matrix)
    return np.array(matrices)
