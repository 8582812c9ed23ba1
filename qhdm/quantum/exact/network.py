"""Block networks in torch: see partition.py for the picture.

What depends only on the weights becomes, once per call, the coefficients of the blocks
(schedule.py); a batch then costs some matrix products per block (contraction.py). The batch is
always the last dimension.

Shapes: N = F G circuits (F filters with the same circuit and different weights, G equal
components), B samples; the results of steps, batches of m matrices for each circuit, are
(m N, rows, columns).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qhdm.quantum.exact.constants import Constant
from qhdm.quantum.exact.contraction import Contraction, Edge, Part
from qhdm.quantum.exact.plan import NetworkPlan
from qhdm.quantum.exact.schedule import Schedule
from qhdm.quantum.exact.tree import Network

#: Numbers in an array that is kept for the backward pass.
_KEPT = 2**21
#: Samples at a time where larger ones are not.
_PIECE = 256
_ONE_AND_ZERO = Constant(np.array([1.0, 0.0]))


class BoundNetwork:
    """Components simulated as block networks, with their weights bound.

    Args:
        plan: of the components.
        w: weights (F, P).
    """

    def __init__(self, plan: NetworkPlan, w: Tensor) -> None:
        self._plan, self._filters = plan, len(w)
        blocks, late = coefficients_of(plan.schedule, w)
        if plan.contraction is None:
            self._single = _take(blocks[0], plan.single)
            return
        #: The coefficients of each part of a message.
        self._parts: dict[Part, Tensor] = {}
        for block, parts, rows in plan.parts:
            tables = _take(blocks[block], rows).split([part.rows.size for part in parts], dim=1)
            self._parts |= zip(parts, tables, strict=True)
        ends = _ONE_AND_ZERO.like(w).expand(len(blocks[0]), 2)
        factors = torch.cat([*late, ends], dim=1)
        self._forms = [
            closing.form.like(w).expand(len(factors), -1, -1)
            if closing.form is not None
            else _take(factors, closing.terms).view(-1, *closing.terms.array.shape)
            for closing in plan.contraction.closings
        ]

    def values(self, reading: Tensor) -> Tensor:
        """Values of the components' observables, (F, G, K, B), at angles that read inputs."""
        plan = self._plan
        circuits = self._filters * plan.schedule.components
        own = _take(reading, plan.reading)
        own = own.view(circuits, len(plan.network.reading), own.shape[2])
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
        for edge in contraction.edges:
            made = [self._message(edge, part, features, messages) for part in edge.parts]
            made = made or [single[:, :0, 0]]  # all entries vanish
            whole = made[0] if len(made) == 1 else torch.cat(made, dim=1)
            messages[edge.source, edge.target] = whole
        values = single.new_zeros(len(single), len(network.measured), single.shape[3])
        for closing, form in zip(contraction.closings, self._forms, strict=True):
            left = _take(messages[closing.one, closing.other], closing.left)
            products = left * torch.bmm(form, messages[closing.other, closing.one])
            values = values + closing.observables.like(left) @ products
        return values

    def _message(
        self,
        edge: Edge,
        part: Part,
        features: Sequence[Tensor],
        messages: Mapping[tuple[int, int], Tensor],
    ) -> Tensor:
        """A part of the message of a subtree to its neighbour: (N, entries, B)."""
        coefficients, own = self._parts[part], features[edge.source]
        incoming: Tensor | None = None
        for neighbour, entries in zip(edge.others, part.incoming, strict=True):
            read = _take(messages[neighbour, edge.source], entries)
            incoming = read if incoming is None else incoming * read
        if incoming is None:
            return torch.bmm(coefficients, own)
        return _contracted(coefficients, incoming, own)


def _contracted(coefficients: Tensor, incoming: Tensor, features: Tensor) -> Tensor:
    """sum_if coefficients_oif incoming_i features_f, for each output o and sample.

    Args:
        coefficients: (N, O I, f).
        incoming: (N, I, B).
        features: (N, f, B).

    Returns:
        (N, O, B).
    """
    terms = incoming.shape[1] * features.shape[1]
    numbers = len(coefficients) * min(coefficients.shape[1], terms) * features.shape[2]
    if numbers > _KEPT and features.device.type == "cpu":
        table = coefficients.reshape(len(coefficients), -1, terms)
        return _Contracted.apply(table, incoming, features)
    return _contract(coefficients, incoming, features)


def _contract(coefficients: Tensor, incoming: Tensor, features: Tensor) -> Tensor:
    """As `_contracted`, with the smaller of two intermediate arrays."""
    terms = incoming.shape[1] * features.shape[1]
    if coefficients.shape[1] > terms:
        table = coefficients.reshape(len(coefficients), -1, terms)
        return torch.bmm(table, _table(incoming, features))
    products = torch.bmm(coefficients, features).unflatten(1, (-1, incoming.shape[1]))
    return (products * incoming.unsqueeze(1)).sum(2)


def _table(one: Tensor, other: Tensor) -> Tensor:
    """All products of rows of two tensors (N, rows, B), those of the second least significant."""
    return (one.unsqueeze(2) * other.unsqueeze(1)).flatten(1, 2)


class _Contracted(torch.autograd.Function):
    """`_contract` for large batches, in pieces.

    The table of products is larger than all else in a call, and memory is slower than arithmetic:
    pieces of it stay in the cache, and are made again in the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, coefficients: Tensor, incoming: Tensor, features: Tensor) -> Tensor:
        ctx.save_for_backward(coefficients, incoming, features)
        pieces = _pieces(incoming, features)
        return torch.cat([torch.bmm(coefficients, _table(m, f)) for m, f in pieces], dim=2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        coefficients, incoming, features = ctx.saved_tensors
        by_coefficients = torch.zeros_like(coefficients)
        by_incoming, by_features = [], []
        for m, f, g in _pieces(incoming, features, gradient):
            by_coefficients = by_coefficients + torch.bmm(g, _table(m, f).mT)
            by_table = torch.bmm(coefficients.mT, g).unflatten(1, (m.shape[1], -1))
            by_incoming.append((by_table * f.unsqueeze(1)).sum(2))
            by_features.append((by_table * m.unsqueeze(2)).sum(1))
        return by_coefficients, torch.cat(by_incoming, dim=2), torch.cat(by_features, dim=2)


def _pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Tensors (N, rows, B), cut along the batch."""
    return zip(*(tensor.split(_PIECE, dim=2) for tensor in tensors), strict=True)


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


def coefficients_of(schedule: Schedule, w: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """The coefficients at weights w (F, P).

    Returns:
        For each block, those of all blocks equal to it, (N, rows of all, features); and for each
        conjugated observable, those of all strings on its support, (N, strings).
    """
    N = len(w) * schedule.components
    gates = _gates(schedule, w)
    results: list[Any] = []
    for step in schedule.steps:
        read = [results[number] for number in step.reads]
        result: Any
        match step.kind:
            case "gates":
                result = gates[step.data]
            case "constant":
                constant = step.data.like(w)
                result = constant.unsqueeze(1).expand(-1, N, -1, -1).flatten(0, 1)
            case "multiply":
                result = torch.bmm(*read)
            case "transpose":
                result = read[0].mT
            case "reorder":
                shape, order, rows = step.data
                result = read[0]
                if list(order) != sorted(order):
                    result = result.reshape(-1, *shape).permute(0, *(i + 1 for i in order))
                result = result.reshape(len(result), rows, -1)
            case "split":
                result = read[0].split([N * size for size in step.data])
            case "part":
                result = read[0][step.data]
            case "take":
                result = read[0].unflatten(0, (-1, N)).index_select(0, step.data.like(w))
                result = result.flatten(0, 1)
            case "join":
                result = torch.cat(read)
        results.append(result)
    groups = {step: results[step].unflatten(0, (-1, N)) for step, _ in schedule.blocks}
    groups = {step: tensor.transpose(0, 1).flatten(1, 2) for step, tensor in groups.items()}
    late = [results[step].flatten(1) for step in schedule.late]
    return [groups[step] for step, _ in schedule.blocks], late


def _gates(schedule: Schedule, w: Tensor) -> list[Tensor]:
    """Transfer matrices of all gates by kind, (units N, D, D)."""
    phases = torch.addmm(schedule.offsets.like(w), w, schedule.from_weights.like(w))
    phases = phases.view(len(w), 2, -1)
    waves = torch.cat([torch.ones_like(phases[:, :1]), phases.cos(), phases.sin()], dim=1)
    kinds = zip(schedule.kinds, schedule.parts, strict=True)
    counts = [len(parts.array) * schedule.components * len(units) for units, parts in kinds]
    made = []
    for parts, wave in zip(schedule.parts, waves.split(counts, dim=2), strict=True):
        # All gates of a kind are one product: (gates of a unit, units N, 5) with their parts.
        gates, _, entries = parts.array.shape
        wave = wave.unflatten(2, (gates, -1, schedule.components))
        wave = wave.permute(2, 3, 0, 4, 1).reshape(gates, -1, 5)
        d = math.isqrt(entries)
        matrix, *others = torch.bmm(wave, parts.like(w)).view(gates, -1, d, d).unbind(0)
        for later in others:
            matrix = torch.bmm(matrix, later)
        made.append(matrix)
    return made
