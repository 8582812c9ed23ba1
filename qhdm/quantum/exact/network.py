"""Block networks in torch: see partition.py for the picture.

What depends only on the weights becomes, once per call, the tables of the blocks (tables.py); a
batch then costs some matrix products per block (contraction.py). The batch is always the last
dimension.

Shapes: N = F G circuits (F filters with the same circuit and different weights, G equal
components), B samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qhdm.quantum.exact.constants import Constant
from qhdm.quantum.exact.contraction import Contraction, Part
from qhdm.quantum.exact.plan import NetworkPlan
from qhdm.quantum.exact.tree import Network

#: Features of the samples that are simulated at a time: more only move more through memory.
_CACHE = 2**18
_ONE_AND_ZERO = Constant(np.array([1.0, 0.0]))


class BoundNetwork:
    """Components simulated as block networks, with their weights (F, P) bound."""

    def __init__(self, plan: NetworkPlan, w: Tensor) -> None:
        self._plan, self._filters, self._shared = plan, len(w), plan.angles.shared(w)
        tables, late = plan.tables(w)
        if plan.contraction is None:
            self._single = _take(tables[0], plan.single)
            return
        #: The coefficients of each part of a message, (N, O I, features).
        self._parts: dict[Part, Tensor] = {}
        for number, parts, rows in plan.contraction.tables:
            sizes = [part.outputs * part.inputs for part in parts]
            own = _take(tables[number], rows).split(sizes, dim=1)
            self._parts |= zip(parts, own, strict=True)
        ends = _ONE_AND_ZERO.like(w).expand(len(tables[0]), 2)
        factors = torch.cat([*late, ends], dim=1)
        self._forms = [
            _take(factors, closing.terms).view(-1, *closing.terms.array.shape)
            for closing in plan.contraction.closings
        ]

    def values(self, x: Tensor) -> Tensor:
        """Values of the components' observables, (F, G, K, B), at inputs (F, n, B)."""
        width = max(x.shape[2], 1)
        if x.device.type == "cpu":
            features = sum(block.features for block in self._plan.network.blocks)
            width = max(_CACHE // (self._filters * self._plan.components * features), 64)
        pieces = [self._piece(piece) for piece in x.split(width, dim=2)]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=3)

    def _piece(self, x: Tensor) -> Tensor:
        plan = self._plan
        own = plan.angles.at(x, self._shared)
        own = own.unflatten(1, (plan.components, own.shape[1] // plan.components)).flatten(0, 1)
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
        for edge, parts in groupby(contraction.parts, lambda part: part.edge):
            made = [self._message(part, features[edge[0]], messages) for part in parts]
            messages[edge] = made[0] if len(made) == 1 else torch.cat(made, dim=1)
        products = [single[:, :0, 0]]
        for closing, form in zip(contraction.closings, self._forms, strict=True):
            one, other = closing.edge
            left = _take(messages[one, other], closing.left)
            products.append(left * torch.bmm(form, messages[other, one]))
        return contraction.observables.like(single) @ torch.cat(products, dim=1)

    def _message(
        self, part: Part, features: Tensor, messages: Mapping[tuple[int, int], Tensor]
    ) -> Tensor:
        """A part of the message of a subtree to its neighbour: (N, O, B)."""
        source = part.edge[0]
        reads = [_take(messages[n, source], entries) for n, entries in part.incoming]
        if not reads:
            return torch.bmm(self._parts[part], features)
        return _contract(self._parts[part], reduce(torch.mul, reads), features)


def _contract(coefficients: Tensor, incoming: Tensor, features: Tensor) -> Tensor:
    """sum_if coefficients_oif incoming_i features_f, with the smaller of two intermediate arrays.

    Arguments (N, O I, f), (N, I, B) and (N, f, B) make (N, O, B).
    """
    terms = incoming.shape[1] * features.shape[1]
    if coefficients.shape[1] > terms:
        table = coefficients.reshape(len(coefficients), -1, terms)
        return torch.bmm(table, _Outer.apply(incoming, features))
    products = torch.bmm(coefficients, features).unflatten(1, (-1, incoming.shape[1]))
    return (products * incoming.unsqueeze(1)).sum(2)


class _Outer(torch.autograd.Function):
    """Products (N, I f, B) of (N, I, B) and (N, f, B), whose gradients are summed in the cache."""

    @staticmethod
    def forward(ctx: Any, incoming: Tensor, features: Tensor) -> Tensor:
        ctx.save_for_backward(incoming, features)
        return (incoming.unsqueeze(2) * features.unsqueeze(1)).flatten(1, 2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        incoming, features = ctx.saved_tensors
        left, right = [], torch.zeros_like(features)
        parts = gradient.unflatten(1, (incoming.shape[1], -1)).split(8, dim=1)
        for part, entries in zip(parts, incoming.split(8, dim=1), strict=True):
            left.append((part * features.unsqueeze(1)).sum(2))
            right = right + (part * entries.unsqueeze(2)).sum(1)
        return torch.cat(left, dim=1), right


def _polynomial(coefficients: Tensor, single: Tensor) -> Tensor:
    """Sums of all products of the features (N, k, 3, B) of k qubits: (N, K, B).

    The coefficients are (N, K, 3^k); the last qubit's feature is the most significant.
    """
    columns = single.unbind(1)
    half = len(columns) // 2
    one = single.new_ones(len(single), 1, single.shape[3])
    low, high = _products(columns[:half], one), _products(columns[half:], one)
    table = coefficients.unflatten(2, (high.shape[1], low.shape[1])).mT.flatten(1, 2)
    return _contract(table, low, high)


def _features(network: Network, single: Tensor) -> list[Tensor]:
    """For each block, the products of the features (N, qubits, 3, B) of its qubits: (N, 3^k, B).

    Qubits without an input have none; the last qubit's is the most significant.
    """
    result: dict[int, Tensor] = {}
    sizes = [angles.size for _, angles in network.reading]
    for (blocks, angles), own in zip(network.reading, single.split(sizes, dim=1), strict=True):
        # Blocks with as many inputs go through the products as one batch: (N, blocks, 3, B).
        one = single.new_ones(len(single), len(blocks), 1, single.shape[3])
        product = _products(own.unflatten(1, angles.shape).unbind(2), one)
        result |= zip(blocks, product.unbind(1), strict=True)
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
