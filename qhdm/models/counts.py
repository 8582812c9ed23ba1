"""Parameters of a network, and circuits of one evaluation."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
from torch import nn

from qhdm.models.filters import on_engine
from qhdm.quantum.connector import FilterConnector
from qhdm.quantum.filter import Filter
from qhdm.quantum.layer import QuantumConv2d

#: The part of the network that a module belongs to; all others are of the condition.
_PARTS = {
    "conv_in": "encoder",
    "init_conv": "encoder",
    "encoder": "encoder",
    "vertex": "vertex",
    "decoder": "decoder",
    "conv_out": "decoder",
    "final_block": "decoder",
    "final_conv": "decoder",
}


@dataclass(frozen=True)
class Counts:
    """Parameters of one part of the network."""

    part: str
    classical: int
    quantum: int


def quantum_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The circuits' weights."""
    return [
        parameter
        for module in model.modules()
        if isinstance(module, FilterConnector)
        for parameter in module.parameters()
    ]


def count_parameters(model: nn.Module) -> list[Counts]:
    """Parameters per part and in total, with circuit weights listed separately."""
    quantum_ids = {id(parameter) for parameter in quantum_parameters(model)}
    sizes: Counter[tuple[str, bool]] = Counter()
    for name, parameter in model.named_parameters():
        part = _PARTS.get(name.split(".")[0], "condition")
        for key in (part, "total"):
            sizes[key, id(parameter) in quantum_ids] += parameter.numel()
    parts = ("condition", "encoder", "vertex", "decoder", "total")
    return [Counts(part, sizes[part, False], sizes[part, True]) for part in parts]


@torch.no_grad()
def filter_evaluations(model: nn.Module, *, channels: int, image_size: int) -> dict[Filter, int]:
    """How often each filter is evaluated for one image, counted in a pass on the exact engine."""
    evaluations: Counter[Filter] = Counter()

    def add(layer: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        assert isinstance(layer, QuantumConv2d)
        evaluations[layer.connector.filter] += layer.circuits(*args[0].shape[-2:])

    model = on_engine(model, "exact")
    for module in model.modules():
        if isinstance(module, QuantumConv2d):
            module.register_forward_pre_hook(add)
    device = next(model.parameters()).device
    zero = torch.zeros(1, dtype=torch.long, device=device)
    model(torch.zeros(1, channels, image_size, image_size, device=device), zero, zero)
    return dict(evaluations)
