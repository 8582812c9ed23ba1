"""The coefficients of a network's blocks, from the weights: what schedule.py plans, in torch.

Shapes: N = F G circuits (F filters with the same circuit and different weights, G equal
components); the results of steps, batches of m matrices for each, are (m N, rows, columns).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from qhdm.quantum.exact.schedule import Schedule


def block_tensors(schedule: Schedule, w: Tensor) -> tuple[list[Tensor], list[Tensor]]:
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
