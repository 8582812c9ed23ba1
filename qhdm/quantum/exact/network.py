"""Block networks in torch: see partition.py for the picture.

What depends only on the weights becomes, once per call, real matrices (block_tensors.py); a batch
then costs some matrix products per block. The batch is always the last dimension.

Shapes: N = F G circuits (F filters with the same circuit and different weights, G equal
components), B samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from qhdm.quantum.exact.block_tensors import block_tensors
from qhdm.quantum.exact.constants import Constant
from qhdm.quantum.exact.contraction import Contraction, Edge
from qhdm.quantum.exact.plan import NetworkPlan
from qhdm.quantum.exact.tree import Network

#: Bytes of an array that a core's second-level cache holds, others beside it.
_CACHE = 2**19
#: Numbers in an array that is kept for the backward pass.
_KEPT = 2**19


class BoundNetwork:
    """Components simulated as block networks, with their weights bound.

    Args:
        plan: of the components.
        w: weights (F, P).
    """

    def __init__(self, plan: NetworkPlan, w: Tensor) -> None:
        self._plan, self._filters = plan, len(w)
        groups, factors = block_tensors(plan.schedule, w)
        if plan.contraction is None:
            self._single = _take(groups[0], plan.single)
            return
        of_block = {
            block: tensor
            for group, tensor in zip(plan.schedule.groups, groups, strict=True)
            for block in group.blocks
        }
        #: Of each edge, the coefficients of each part; of each closing, its form.
        self._parts = [
            [_take(of_block[edge.source], part.rows) for part in edge.parts]
            for edge in plan.contraction.edges
        ]
        self._forms = [
            closing.form.like(w).expand(len(factors), -1, -1)
            if closing.form is not None
            else _take(factors, closing.terms).view(-1, *closing.terms.array.shape)
            for closing in plan.contraction.closings
        ]

    def values(self, reading: Tensor) -> Tensor:
        """Values of the components' observables, (F, G, K, B), at angles that read inputs."""
        plan = self._plan
        own = _take(reading, plan.reading)
        own = own.view(-1, len(plan.network.reading), own.shape[2])  # (N, qubits, B)
        single = torch.stack([torch.ones_like(own), own.cos(), own.sin()], dim=2)
        if plan.contraction is None:
            values = _polynomial(self._single, single)
        else:
            values = self._contracted(plan.contraction, single)
        return values.unflatten(0, (self._filters, -1))

    def _contracted(self, contraction: Contraction, single: Tensor) -> Tensor:
        network = self._plan.network
        features = _features(network, single)
        messages: dict[tuple[int, int], Tensor] = {}
        for edge, parts in zip(contraction.edges, self._parts, strict=True):
            messages[edge.source, edge.target] = _message(
                edge, parts, features[edge.source], messages
            )
        values = single.new_zeros(len(single), len(network.measured), single.shape[3])
        for closing, form in zip(contraction.closings, self._forms, strict=True):
            left = _take(messages[closing.one, closing.other], closing.left)
            products = left * torch.bmm(form, messages[closing.other, closing.one])
            values = values + closing.observables.like(left) @ products
        return values


def _message(
    edge: Edge,
    parts: Sequence[Tensor],
    features: Tensor,
    messages: dict[tuple[int, int], Tensor],
) -> Tensor:
    """The message of a subtree to its neighbour: (N, entries, B)."""
    made = []
    for part, coefficients in zip(edge.parts, parts, strict=True):
        incoming: Tensor | None = None
        for neighbour, entries in zip(edge.others, part.incoming, strict=True):
            read = _take(messages[neighbour, edge.source], entries)
            incoming = read if incoming is None else incoming * read
        if incoming is None:
            made.append(torch.bmm(coefficients, features))
        else:
            made.append(_contracted(coefficients, incoming, features))
    if not made:  # all entries vanish
        return features[:, :0]
    return made[0] if len(made) == 1 else torch.cat(made, dim=1)


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


def _features(network: Network, single: Tensor) -> list[Tensor]:
    """For each block, the products of the features (N, qubits, 3, B) of its qubits: (N, 3^k, B).

    Qubits without an input have none; the last qubit's is the most significant.
    """
    result: dict[int, Tensor] = {}
    for blocks, table in network.reading_tables:
        # Blocks with as many inputs go through the products as one batch: (N, blocks, 3, B).
        one = single.new_ones(len(single), len(blocks), 1, single.shape[3])
        product = _products([_take(single, members) for members in table], one)
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


def _take(tensor: Tensor, places: Constant) -> Tensor:
    """Entries of a tensor (N, entries, ...) at `places`, flattened."""
    return tensor.index_select(1, places.like(tensor).view(-1))
