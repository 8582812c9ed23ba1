"""Block networks in torch: see qhdm.quantum.partition for the picture.

What depends on the weights alone becomes, once per call, one real matrix per block; a batch then
costs some matrix products per block. The batch is always the last dimension.

Shapes: F filters with the same circuit and different weights, G equal components, B samples; a
block of k qubits has d = 2^k amplitudes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qhdm.quantum.angles import Angles
from qhdm.quantum.tree import Edge, Measured, Network, NetworkBlock, Side
from qhdm.quantum.units import Unit

#: Of each edge (source, target), for each choice of operators, a message (F, G, bond, B).
Messages = dict[tuple[int, int], tuple[Tensor, ...]]

#: Bytes of an array that a core's second-level cache holds, others beside it.
_CACHE = 2**19


def simulate_network(network: Network, rows: np.ndarray, angles: Angles) -> Tensor:
    """Values of the component's observables, (F, G, K, B).

    Args:
        network: the component.
        rows: (G, local angles), rows of the program's angles.
        angles: of this call.
    """
    coefficients = _Coefficients(network, rows, angles)
    features = _features(network, rows, angles)
    blocks = [coefficients.of_block(i) for i in range(len(network.blocks))]
    if not network.tree:
        values = blocks[0] @ features[0]
        return _take(values, [key[0] for measured in network.measured for key in measured.keys])
    messages: Messages = {}
    for edge in network.edges:
        messages[edge.source, edge.target] = _message(network, edge, blocks, features, messages)
    products = []
    for close in network.closings:
        one, other = messages[close.one, close.other], messages[close.other, close.one]
        left = torch.stack([one[row] for row in close.rows_one], dim=2)
        right = torch.stack([other[row] for row in close.rows_other], dim=2)
        products.append((left * right).sum(3))
    values = torch.cat(products, dim=2)
    found = []
    for measured, terms in zip(network.measured, network.terms, strict=True):
        part = _take(values, terms)
        if measured.late is not None:  # (F, G, 1, n) (F, G, n, B)
            part = coefficients.of_measured(measured).unsqueeze(2) @ part
        found.append(part)
    return torch.cat(found, dim=2)


def _message(
    network: Network,
    edge: Edge,
    blocks: Sequence[Tensor],
    features: Sequence[Tensor],
    messages: Messages,
) -> tuple[Tensor, ...]:
    """What a subtree tells its neighbour, for all choices of operators: (F, G, bond, B) each.

    The other bonds of the block are contracted together with its features: the messages that come
    in, times the features, meet the block's coefficients in one matrix product.
    """
    source = edge.source
    bonds = network.bonds[source]
    open_bond = network.neighbours[source].index(edge.target)
    tensor = blocks[source].unflatten(2, (-1, *bonds)).movedim(3 + open_bond, 3)
    tensor = tensor.flatten(4)  # (F, G, operators, open bond, other bonds x features)
    results: list[Tensor] = []
    for part in edge.parts:
        chosen = _take(tensor, part.operators).flatten(2, 3)
        incoming = [messages[neighbour, source][row] for neighbour, row in part.incoming]
        if incoming:
            bonded = incoming[0]  # the first neighbour most significant
            for other in incoming[1:]:
                bonded = (bonded.unsqueeze(3) * other.unsqueeze(2)).flatten(2, 3)
            product = _BondedProduct.apply(chosen, bonded, features[source])
        else:
            product = chosen @ features[source]
        results += product.unflatten(2, (len(part.operators), -1)).unbind(2)
    return tuple(results)


class _BondedProduct(torch.autograd.Function):
    """coefficients @ (bonded (x) features), the Kronecker product taken column by column.

    That product is the largest array of a call, and memory is slower than arithmetic: it is made in
    pieces that stay in the cache, and made again in the backward pass.

    Args of `apply`: coefficients (F, G, n, b f), bonded (F, G, b, B), features (F, G, f, B); the
    result is (F, G, n, B).
    """

    @staticmethod
    def forward(ctx: Any, coefficients: Tensor, bonded: Tensor, features: Tensor) -> Tensor:
        ctx.save_for_backward(coefficients, bonded, features)
        pieces = [
            coefficients @ (b.unsqueeze(3) * f.unsqueeze(2)).flatten(2, 3)
            for b, f in _pieces(coefficients, bonded, features)
        ]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=3)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        coefficients, bonded, features = ctx.saved_tensors
        by_coefficients = torch.zeros_like(coefficients)
        by_bonded, by_features = [], []
        for b, f, g in _pieces(coefficients, bonded, features, gradient):
            b, f = b.unsqueeze(3), f.unsqueeze(2)
            by_coefficients += g @ (b * f).flatten(2, 3).mT
            product = (coefficients.mT @ g).unflatten(2, (b.shape[2], f.shape[3]))
            by_bonded.append((product * f).sum(3))
            by_features.append((product * b).sum(2))
        return by_coefficients, torch.cat(by_bonded, 3), torch.cat(by_features, 3)


def _pieces(coefficients: Tensor, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """`tensors`, cut along the batch so that a piece of their Kronecker product fits a cache."""
    rows = coefficients.shape[0] * coefficients.shape[1] * coefficients.shape[3]
    width = tensors[0].shape[3]
    if tensors[0].device.type == "cpu":
        width = max(_CACHE // (rows * coefficients.element_size()), 64)
    return zip(*(tensor.split(width, dim=3) for tensor in tensors), strict=True)


def _features(network: Network, rows: np.ndarray, angles: Angles) -> list[Tensor]:
    """For each block, the products of (1, cos a, sin a) over its qubits: (F, G, 3^k, B).

    Qubits without an input have no features; the last qubit's is the most significant.
    """
    own = angles.own(rows, network.reading)  # (F, G, qubits that read an input, B)
    single = torch.stack([torch.ones_like(own), own.cos(), own.sin()], dim=3)
    order = {qubit: i for i, qubit in enumerate(network.reading_qubits)}
    alike: dict[int, list[int]] = {}
    members = [[order[q] for q in block.qubits if q in order] for block in network.blocks]
    for i, mine in enumerate(members):
        alike.setdefault(len(mine), []).append(i)
    result: dict[int, Tensor] = {}
    for count, blocks in alike.items():
        if count == 0:
            one = single.new_ones(angles.filters, len(rows), 1, 1)
            result |= dict.fromkeys(blocks, one)
            continue
        # Blocks with as many inputs go through the products as one batch: (F, G, blocks, 3, B).
        columns = [_take(single, [members[i][k] for i in blocks]) for k in range(count)]
        product = columns[0]
        for column in columns[1:]:
            product = (column.unsqueeze(4) * product.unsqueeze(3)).flatten(3, 4)
        result |= dict(zip(blocks, product.unbind(2), strict=True))
    return [result[i] for i in range(len(network.blocks))]


class _Coefficients:
    """What depends on the weights alone.

    Operators and states of a block are Hermitian matrices, n of them as (F, G, d, d, n).
    """

    def __init__(self, network: Network, rows: np.ndarray, angles: Angles) -> None:
        self.network = network
        self.angles = angles
        self.lead = (angles.filters, len(rows))
        self.matrices = angles.units(network.units, rows)
        self._maps = self._cut_maps()

    def of_block(self, index: int) -> Tensor:
        """The block's coefficients, (F, G, operators x bonds, features).

        The initial states go forward in time through the gates before the first cut, the operators
        backward through all others; then the traces of their products are taken.
        """
        block = self.network.blocks[index]
        states = self._constant(block.states)
        if block.before is not None:
            states = _conjugated(self.matrices[block.before], states)
        operators = self._constant(block.operators)
        for step in reversed(block.steps[1:]):
            if isinstance(step, Unit):
                operators = _conjugated(self.matrices[step].mH, operators)
            else:
                operators = self._branched(block, operators, step)
        left = _real(states).flatten(2, 3).mT
        if block.steps:
            first = block.steps[0]
            assert not isinstance(first, Unit)  # gates before the first cut are in `before`
            traces = self._last_traces(block, left, operators, first)
        else:
            traces = left @ _real(operators).flatten(2, 3)
        # (F, G, features, cuts in order ..., operators)
        sizes = [len(self.network.cuts[cut].basis) ** 2 for cut in block.cuts]
        traces = traces.unflatten(3, (*sizes, block.operators.shape[2]))
        axes = [3 + position for position in block.cut_order]
        return traces.permute(0, 1, traces.dim() - 1, *axes, 2).flatten(2, -2)

    def of_measured(self, measured: Measured) -> Tensor:
        """Of the Pauli strings that a conjugated observable consists of, (F, G, n)."""
        assert measured.late is not None
        matrix = self.matrices[measured.late]
        conjugated = matrix.mH @ self.angles.constant(measured.pauli) @ matrix
        strings = self.angles.constant(measured.strings)  # (n, d d), for the trace
        return (conjugated.flatten(2) @ strings.T).real

    def _constant(self, array: np.ndarray) -> Tensor:
        tensor = self.angles.constant(array)
        return tensor.expand(*self.lead, *tensor.shape)

    def _branched(self, block: NetworkBlock, operators: Tensor, run: Sequence[Side]) -> Tensor:
        """Operators taken backward through a run of cuts: n becomes bonds x n."""
        maps = self._run_maps(run)
        high, low, d = *block.around(run[0].qubit), len(block.operators)
        split = operators.reshape(*self.lead, high, 2, low, high, 2, low, -1)
        pairs = split.permute(0, 1, 3, 6, 2, 4, 5, 7, 8)  # (row bit, column bit) first
        tensor = maps.flatten(2, 3) @ pairs.reshape(*self.lead, 4, -1)
        tensor = tensor.reshape(*self.lead, -1, 2, 2, high, low, high, low, operators.shape[-1])
        return tensor.permute(0, 1, 5, 3, 6, 7, 4, 8, 2, 9).reshape(*self.lead, d, d, -1)

    def _last_traces(
        self, block: NetworkBlock, states: Tensor, operators: Tensor, run: Sequence[Side]
    ) -> Tensor:
        """Traces of states with operators, these taken through the block's first cuts.

        The largest tensor of a call is made here, in real numbers and in the order in which the
        matrix product leaves it.

        Args:
            states: (F, G, features, d d), real.
            operators: (F, G, d, d, n).
            run: the cuts.

        Returns:
            (F, G, features, bonds x n).
        """
        high, low = block.around(run[0].qubit)
        bits = (high, 2, low, high, 2, low)
        maps = self._run_maps(run)  # (F, G, r, 4, 4)
        # Re(M X) + Im(M X) as one real product.
        weights = torch.cat([maps.real + maps.imag, maps.real - maps.imag], dim=4).flatten(2, 3)
        pairs = operators.unflatten(2, bits[:3]).unflatten(5, bits[3:])
        pairs = pairs.permute(0, 1, 3, 6, 2, 4, 5, 7, 8).reshape(*self.lead, 4, -1)
        parts = torch.view_as_real(pairs).permute(0, 1, 4, 2, 3).reshape(*self.lead, 8, -1)
        tensor = (weights @ parts).reshape(*self.lead, maps.shape[2], -1, operators.shape[-1])
        left = states.unflatten(3, bits).permute(0, 1, 2, 4, 7, 3, 5, 6, 8).flatten(3)
        traces = left.unsqueeze(2) @ tensor  # (F, G, r, features, n)
        return traces.transpose(2, 3).flatten(3)

    def _run_maps(self, run: Sequence[Side]) -> Tensor:
        """Consecutive sides of cuts on one qubit as maps of operators, (F, G, bonds, 4, 4).

        The matrices act on the (row, column) bits of the qubit; the bond of the first cut in time
        is the most significant.
        """
        maps = self._maps[run[0]]
        for side in run[1:]:
            maps = (maps.unsqueeze(3) @ self._maps[side].unsqueeze(2)).flatten(2, 3)
        return maps

    def _cut_maps(self) -> dict[Side, Tensor]:
        """One side of each cut as maps of operators, (F, G, r^2, 4, 4) over (row, column) bits.

        O becomes sum_sr T[s, r] a_s^H O a_r for each T of a Hermitian basis, which keeps operators
        Hermitian, hence bonds real; the other side carries the dual basis, T conjugated. The side
        of constant a_r is known beforehand; those that the weights determine are made together.
        """
        maps = {
            side: self._constant(cut.maps)
            for cut, side in zip(self.network.cuts, self.network.constant_sides, strict=True)
        }
        alike: dict[object, list[int]] = {}
        for number, cut in enumerate(self.network.cuts):
            alike.setdefault(cut.kind, []).append(number)
        for numbers in alike.values():
            cut = self.network.cuts[numbers[0]]
            units = torch.stack([self.matrices[self.network.cuts[i].unit] for i in numbers], dim=2)
            # b_r is the part of the unit that belongs to a_r; as (F, G, cuts, r, 2, 2).
            projector = self.angles.constant(cut.projector)  # (16, r 4)
            b = (units.flatten(3) @ projector).unflatten(3, (-1, 2, 2))
            # b_s^H O b_r on the bits (row, column) is the Kronecker product of b_s^H and b_r^T.
            left = b.mH[:, :, :, :, None, :, None, :, None]
            right = b.mT[:, :, :, None, :, None, :, None, :]
            pairs = (left * right).flatten(5).flatten(3, 4)  # (F, G, cuts, s r, 16)
            weights = self.angles.constant(cut.basis_dual)  # (r^2, s r)
            made = (weights @ pairs).unflatten(4, (4, 4))
            for i, tensor in zip(numbers, made.unbind(2), strict=True):
                maps[self.network.varying_sides[i]] = tensor
        return maps


def _conjugated(matrix: Tensor, tensor: Tensor) -> Tensor:
    """M X M^H for M (F, G, d, d) and every X of (F, G, d, d, n)."""
    F, G, d, _, n = tensor.shape
    # Plain batches: matmul takes many small steps to find them itself.
    matrix = matrix.flatten(0, 1)
    rows = torch.bmm(matrix, tensor.reshape(F * G, d, d * n))
    columns = matrix.conj().unsqueeze(1).expand(-1, d, -1, -1).reshape(-1, d, d)
    return torch.bmm(columns, rows.view(-1, d, n)).view(F, G, d, d, n)


def _real(matrices: Tensor) -> Tensor:
    """Hermitian matrices as real numbers: the trace of a product becomes a scalar product.

    For symmetric S and antisymmetric A, tr((S + iA)(S' + iA')) = sum (S + A)(S' + A').
    """
    return torch.view_as_real(matrices.resolve_conj()).sum(-1)


def _take(tensor: Tensor, indices: Sequence[int]) -> Tensor:
    """`tensor[:, :, indices]`, as a view where the indices are consecutive."""
    first = indices[0]
    if list(indices) == list(range(first, first + len(indices))):
        return tensor[:, :, first : first + len(indices)]
    return torch.stack([tensor[:, :, index] for index in indices], dim=2)
