"""Block networks in torch: see partition.py for the picture.

What depends only on the weights becomes, once per call, one real matrix per block
(block_tensors.py); a batch then costs some matrix products per block. The batch is always
the last dimension.

Shapes: N = F G circuits (F filters with the same circuit and different weights, G equal
components), B samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qhdm.quantum.exact.block_tensors import Coefficients
from qhdm.quantum.exact.contraction import Contraction, Edge, RootEdge
from qhdm.quantum.exact.gate_matrices import GateMatrices
from qhdm.quantum.exact.tree import Network

#: Bytes of an array that a core's second-level cache holds, others beside it.
_CACHE = 2**19
#: Numbers in an array that is kept for the backward pass.
_KEPT = 2**19


class BoundNetwork:
    """Components simulated as block networks, with their weights bound.

    Args:
        network: the components.
        contraction: of its blocks, if there are several.
        rows: (G, local angles), rows of the program's angles.
        angles: of the weights.
    """

    def __init__(
        self,
        network: Network,
        contraction: Contraction | None,
        rows: np.ndarray,
        angles: GateMatrices,
    ) -> None:
        self._network, self._contraction = network, contraction
        self._rows, self._angles = rows, angles
        coefficients = Coefficients(network, rows, angles)
        blocks = [coefficients.of_block(i) for i in range(len(network.blocks))]
        if contraction is None:
            self._single = _take(blocks[0], network.operators_of_one_block, angles)
            return
        #: Of each edge, the coefficients of each part; of each closing, its form.
        self._parts = [
            [_take(blocks[edge.source], part.rows, angles) for part in edge.parts]
            for edge in contraction.edges
        ]
        factors = coefficients.of_terms()
        self._forms = [_form(closing, factors, angles) for closing in contraction.closings]

    def values(self, reading: Tensor) -> Tensor:
        """Values of the components' observables, (F, G, K, B), at angles that read inputs."""
        network, angles = self._network, self._angles
        own = angles.own(reading, self._rows, network.reading).flatten(0, 1)  # (N, qubits, B)
        single = torch.stack([torch.ones_like(own), own.cos(), own.sin()], dim=2)
        if self._contraction is None:
            values = _polynomial(self._single, single)
        else:
            values = self._contracted(self._contraction, single)
        return values.unflatten(0, (angles.filters, len(self._rows)))

    def _contracted(self, contraction: Contraction, single: Tensor) -> Tensor:
        features = _features(self._network, single, self._angles)
        messages: dict[tuple[int, int], Tensor] = {}
        for edge, parts in zip(contraction.edges, self._parts, strict=True):
            messages[edge.source, edge.target] = _message(
                edge, parts, features[edge.source], messages, self._angles
            )
        values = single.new_zeros(len(single), len(self._network.measured), single.shape[3])
        for closing, form in zip(contraction.closings, self._forms, strict=True):
            left = _take(messages[closing.one, closing.other], closing.left, self._angles)
            products = left * torch.bmm(form, messages[closing.other, closing.one])
            values = values + self._angles.real(closing.observables) @ products
        return values


def _message(
    edge: Edge,
    parts: Sequence[Tensor],
    features: Tensor,
    messages: dict[tuple[int, int], Tensor],
    angles: GateMatrices,
) -> Tensor:
    """The message of a subtree to its neighbour: (N, entries, B)."""
    found = []
    for part, coefficients in zip(edge.parts, parts, strict=True):
        incoming: Tensor | None = None
        for neighbour, entries in zip(edge.others, part.incoming, strict=True):
            read = _take(messages[neighbour, edge.source], entries, angles)
            incoming = read if incoming is None else incoming * read
        if incoming is None:
            found.append(torch.bmm(coefficients, features))
        else:
            found.append(_contracted(coefficients, incoming, features))
    if not found:  # all entries vanish
        return features[:, :0]
    return found[0] if len(found) == 1 else torch.cat(found, dim=1)


def _form(closing: RootEdge, factors: Tensor, angles: GateMatrices) -> Tensor:
    """By which entries of two messages meet, (N, left entries, right entries)."""
    if closing.form is not None:
        return angles.real(closing.form).expand(len(factors), *closing.form.shape)
    return _take(factors, closing.terms, angles).view(-1, *closing.terms.shape)


def _contracted(coefficients: Tensor, incoming: Tensor, features: Tensor) -> Tensor:
    """sum_i incoming_i coefficients_oi features, for each output o.

    Args:
        coefficients: (N, O I, f).
        incoming: (N, I, B).
        features: (N, f, B).

    Returns:
        (N, O, B).
    """
    numbers = coefficients.shape[0] * coefficients.shape[1] * features.shape[2]
    if numbers > _KEPT and features.device.type == "cpu":
        return _Contracted.apply(coefficients, incoming, features)
    products = torch.bmm(coefficients, features).unflatten(1, (-1, incoming.shape[1]))
    return (products * incoming.unsqueeze(1)).sum(2)


class _Contracted(torch.autograd.Function):
    """`_contracted` for large batches.

    The products over (o, i) are the largest array of a call, and memory is slower than arithmetic:
    they are made in pieces that stay in the cache, and made again in the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, coefficients: Tensor, incoming: Tensor, features: Tensor) -> Tensor:
        ctx.save_for_backward(coefficients, incoming, features)
        pieces = []
        for m, f in _pieces(coefficients, incoming, features):
            products = torch.bmm(coefficients, f).unflatten(1, (-1, m.shape[1]))
            pieces.append((products * m.unsqueeze(1)).sum(2))
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        coefficients, incoming, features = ctx.saved_tensors
        by_coefficients: Tensor | None = None
        by_incoming, by_features = [], []
        for m, f, g in _pieces(coefficients, incoming, features, gradient):
            weighted = (g.unsqueeze(2) * m.unsqueeze(1)).flatten(1, 2)
            added = torch.bmm(weighted, f.mT)
            by_coefficients = added if by_coefficients is None else by_coefficients + added
            by_features.append(torch.bmm(coefficients.mT, weighted))
            products = torch.bmm(coefficients, f).unflatten(1, (-1, m.shape[1]))
            by_incoming.append((products * g.unsqueeze(2)).sum(1))
        if by_coefficients is None:
            by_coefficients = torch.zeros_like(coefficients)
        return by_coefficients, torch.cat(by_incoming, dim=2), torch.cat(by_features, dim=2)


def _pieces(coefficients: Tensor, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """`tensors`, cut along the batch so that a piece of the products fits a cache."""
    rows = coefficients.shape[0] * coefficients.shape[1]
    width = tensors[0].shape[2]
    if tensors[0].device.type == "cpu":
        width = max(_CACHE // (max(rows, 1) * coefficients.element_size()), 64)
    return zip(*(tensor.split(width, dim=2) for tensor in tensors), strict=True)


def _polynomial(coefficients: Tensor, single: Tensor) -> Tensor:
    """Sums of all products of the features (N, k, 3, B) of k qubits: (N, K, B).

    Args:
        coefficients: (N, K, 3^k); the last qubit's feature is the most significant.
        single: of each qubit.
    """
    columns = single.unbind(1)
    half = len(columns) // 2
    one = single.new_ones(len(single), 1, single.shape[3])
    low, high = _products(columns[:half], one), _products(columns[half:], one)
    table = coefficients.unflatten(2, (high.shape[1], low.shape[1])).mT.flatten(1, 2)
    return _contracted(table, low, high)


def _features(network: Network, single: Tensor, angles: GateMatrices) -> list[Tensor]:
    """For each block, the products of the features (N, qubits, 3, B) of its qubits: (N, 3^k, B).

    Qubits without an input have none; the last qubit's is the most significant.
    """
    result: dict[int, Tensor] = {}
    for blocks, table in network.reading_tables:
        # Blocks with as many inputs go through the products as one batch: (N, blocks, 3, B).
        one = single.new_ones(len(single), len(blocks), 1, single.shape[3])
        product = _products([_take(single, members, angles) for members in table], one)
        result |= dict(zip(blocks, product.unbind(1), strict=True))
    return [result[i] for i in range(len(network.blocks))]


def _products(columns: Sequence[Tensor], one: Tensor) -> Tensor:
    """All products of one feature (..., 3, B) of each, (..., 3^k, B); the last most significant.

    Without any, the product is `one`.
    """
    product = columns[0] if columns else one
    for column in columns[1:]:
        product = (column.unsqueeze(-2) * product.unsqueeze(-3)).flatten(-3, -2)
    return product


def _take(tensor: Tensor, places: np.ndarray, angles: GateMatrices) -> Tensor:
    """Entries of a tensor (N, entries, ...) at `places`, an array of the plan, flattened."""
    index = angles.index(("take", id(places)), lambda: places.reshape(-1))
    return tensor.index_select(1, index)
