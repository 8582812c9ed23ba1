"""The coefficients of a network's blocks, from the weights: what schedule.py plans, in torch.

Shapes: N = F G circuits (F filters with the same circuit and different weights, G equal
components); a slot holds matrices for m equal blocks, (N, m, rows, columns).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from qhdm.quantum.exact.constants import Constant
from qhdm.quantum.exact.schedule import (
    BlockGroup,
    GateKind,
    LateReadout,
    Product,
    Reorder,
    RunKind,
    Schedule,
)

_Slots = dict[int, Tensor]
_ONE_AND_ZERO = Constant(np.array([[1.0, 0.0]]))


def block_tensors(schedule: Schedule, w: Tensor) -> tuple[list[Tensor], Tensor]:
    """Coefficients of the blocks, and of conjugated observables, at weights w (F, P).

    Returns:
        For each group of equal blocks, (N, rows of all blocks, features); and the factors of the
        terms of conjugated observables, then 1 and 0: (N, terms + 2).
    """
    slots = _gates(schedule, w)
    for pair in schedule.pairs:
        earlier, later = (slots[step.slot].flatten(0, 1) for step in (pair.earlier, pair.later))
        made = _multiplied(pair.later, later, _expanded(pair.identity, w, len(later)))
        made = _multiplied(pair.earlier, earlier, made)
        made = made.view(-1, sum(pair.sizes), *pair.identity.array.shape[1:])
        slots |= zip(pair.slots, made.split(pair.sizes, dim=1), strict=True)
    sides = []
    for cut in schedule.cuts:
        gates = slots[cut.slot].flatten(2)
        varying = (gates @ cut.projector.like(w)).unflatten(2, (-1, 4))
        constant = cut.maps.like(w).expand(len(gates), 1, -1, -1)
        sides.append(torch.cat([varying, constant], dim=1))
    for run in schedule.runs:
        slots |= zip(run.slots, _run(run, sides).split(run.sizes, dim=1), strict=True)
    count = len(w) * schedule.components
    groups = [_group(group, slots, w, count) for group in schedule.groups]
    terms = [_terms(late, slots, w, count) for late in schedule.late]
    return groups, torch.cat([*terms, _ONE_AND_ZERO.like(w).expand(count, 2)], dim=1)


def _gates(schedule: Schedule, w: Tensor) -> _Slots:
    """The transfer matrices of all gates, those of one kind as one product."""
    F, G = len(w), schedule.components
    phases = torch.addmm(schedule.offsets.like(w), w, schedule.from_weights.like(w))
    phases = phases.view(F, 2, -1)
    waves = torch.cat([torch.ones_like(phases[:, :1]), phases.cos(), phases.sin()], dim=1)
    places = [kind.parts.array.shape[0] * G * sum(kind.sizes) for kind in schedule.gates]
    slots: _Slots = {}
    for kind, wave in zip(schedule.gates, waves.split(places, dim=2), strict=True):
        gates, _, entries = kind.parts.array.shape
        units, d = sum(kind.sizes), math.isqrt(entries)
        wave = wave.unflatten(2, (gates, G, units)).permute(2, 0, 3, 4, 1).reshape(gates, -1, 5)
        matrices = torch.bmm(wave, kind.parts.like(w)).view(gates, -1, d, d).unbind(0)
        product = matrices[0]
        for matrix in matrices[1:]:
            product = torch.bmm(product, matrix)
        product = product.view(F * G, units, d, d)
        slots |= zip(kind.slots, product.split(kind.sizes, dim=1), strict=True)
    return slots


def _run(run: RunKind, sides: Sequence[Tensor]) -> Tensor:
    """Maps of runs of cuts, (N, runs, bonds 4, 4)."""
    maps: Tensor | None = None
    for (number, places), size in zip(run.sides, run.bonds, strict=True):
        side = sides[number].index_select(1, places.like(sides[number]))
        if maps is None:
            maps = side
            continue
        N, runs = side.shape[:2]
        side = side.view(N, runs, size, 4, 4).transpose(2, 3).reshape(N, runs, 4, -1)
        maps = (maps @ side).view(N, runs, -1, 4, size, 4).transpose(3, 4).reshape(N, runs, -1, 4)
    assert maps is not None
    return maps


def _group(group: BlockGroup, slots: _Slots, like: Tensor, count: int) -> Tensor:
    """Coefficients of equal blocks, (N, rows of all, features)."""
    left = _expanded(group.operators, like, count)
    right = _expanded(group.states, like, count)
    for step in group.backward:
        left = _multiplied(step, slots[step.slot].flatten(0, 1), left)
    for step in group.forward:
        right = _multiplied(step, slots[step.slot].flatten(0, 1).mT, right)
    values = torch.bmm(_reordered(group.left, left), _reordered(group.right, right))
    if group.run >= 0:
        # The cuts' maps meet traces, with the letters of their qubit before and after, instead of
        # the operators: this is the largest tensor of a call.
        maps = slots[group.run].reshape(len(values), -1, 16)
        values = values.view(len(values), 4, group.left.rows // 4, 4, -1)
        features = values.shape[4]
        values = torch.bmm(maps, values.permute(0, 3, 1, 2, 4).reshape(len(values), 16, -1))
        values = values.view(len(values), -1, features)
    return values.view(count, -1, values.shape[2])


def _terms(late: LateReadout, slots: _Slots, like: Tensor, count: int) -> Tensor:
    """Of the Pauli strings of a conjugated observable, (N, strings)."""
    vector = _expanded(late.observable, like, count)
    for step in late.products:
        vector = _multiplied(step, slots[step.slot].flatten(0, 1), vector)
    vector = _reordered(late.finish, vector).flatten(1)
    return vector.index_select(1, late.strings.like(vector))


def _expanded(constant: Constant, like: Tensor, count: int) -> Tensor:
    """An array (m, ...) for N circuits, (N m, ...)."""
    tensor = constant.like(like)
    return tensor.expand(count, *tensor.shape).flatten(0, 1)


def _multiplied(product: Product, matrices: Tensor, tensor: Tensor) -> Tensor:
    return torch.bmm(matrices, _reordered(product.reorder, tensor))


def _reordered(reorder: Reorder, tensor: Tensor) -> Tensor:
    tensor = tensor.reshape(-1, *reorder.shape).permute(0, *(i + 1 for i in reorder.order))
    return tensor.reshape(len(tensor), reorder.rows, -1)
