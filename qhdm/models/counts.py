"""Parameters of a network, and circuits of one evaluation."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass

import torch
from torch import nn

from qhdm.models.build import set_engine
from qhdm.models.unet import UNet
from qhdm.quantum.connector import FilterConnector
from qhdm.quantum.engines import make_engine
from qhdm.quantum.filter import Filter
from qhdm.quantum.layer import QuantumConv2d

_PARTS = {
    "condition": ("condition",),
    "encoder": ("init_conv", "encoder"),
    "vertex": ("vertex",),
    "decoder": ("decoder", "final_block", "final_conv"),
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


def count_parameters(model: UNet) -> list[Counts]:
    """Parameters per part and in total, with circuit weights listed separately."""
    quantum_ids = {id(parameter) for parameter in quantum_parameters(model)}

    def count(part: str, modules: list[nn.Module]) -> Counts:
        sizes = {False: 0, True: 0}
        for module in modules:
            for parameter in module.parameters():
                sizes[id(parameter) in quantum_ids] += parameter.numel()
        return Counts(part, classical=sizes[False], quantum=sizes[True])

    parts = [
        count(part, [model.get_submodule(name) for name in names]) for part, names in _PARTS.items()
    ]
    return [*parts, count("total", [model])]


@torch.no_grad()
def filter_evaluations(model: UNet, *, channels: int, image_size: int) -> dict[Filter, int]:
    """How often each filter is evaluated for one image, counted in a pass on the exact engine."""
    evaluations: Counter[Filter] = Counter()

    def add(layer: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        assert isinstance(layer, QuantumConv2d)
        evaluations[layer.connector.filter] += layer.circuits(*args[0].shape[-2:])

    model = copy.deepcopy(model)
    set_engine(model, make_engine("exact"))
    for module in model.modules():
        if isinstance(module, QuantumConv2d):
            module.register_forward_pre_hook(add)
    device = next(model.parameters()).device
    zero = torch.zeros(1, dtype=torch.long, device=device)
    model(torch.zeros(1, channels, image_size, image_size, device=device), zero, zero)
    return dict(evaluations)
