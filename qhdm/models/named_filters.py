"""The quantum filters of a network, by name, and the layers that hold them."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np
from torch import nn

from qhdm.models.hybrid import HybridActivation
from qhdm.quantum.filter import Filter
from qhdm.quantum.layer import QuantumConv2d


@dataclass(frozen=True, eq=False)
class NamedFilter:
    """One filter of a network with its weights.

    Attributes:
        place: the layer it belongs to, for example `vertex.block1.conv1`.
        index: its number within the layer: it reads channels 3 index .. 3 index + 2.
        filter: its circuit; filters with the same circuit share it.
        weights: (P,) float64, radians: 2 pi theta.
    """

    place: str
    index: int
    filter: Filter
    weights: np.ndarray

    @property
    def name(self) -> str:
        """For files: `vertex_block1_conv1_filter0`, `encoder2_block1_conv1_filter0`."""
        place = re.sub(r"\.(\d)", r"\1", self.place).replace(".", "_")
        return f"{place}_filter{self.index}"


def named_filters(model: nn.Module) -> list[NamedFilter]:
    """The filters of a network, in the order of its layers."""
    return [
        NamedFilter(
            place=name.removesuffix(".quantum"),
            index=index,
            filter=layer.connector.filter,
            weights=2 * math.pi * theta.double().numpy(),
        )
        for name, layer in model.named_modules()
        if isinstance(layer, QuantumConv2d)
        for index, theta in enumerate(layer.connector.theta.detach().cpu())
    ]


@dataclass(frozen=True)
class FilterLayer:
    """Where a network has filters, or a baseline in their place: names of modules.

    Attributes:
        place: the layer, as in `NamedFilter`.
        filters: (B, 3F, H, W) to the same shape.
        convolution: the classical one that reads them or is beside them; None if there is none.
        reads: it reads the filters' values, as its first channels (`HybridActivation`); else its
            output channels lie beside the values.
    """

    place: str
    filters: str
    convolution: str | None
    reads: bool


def filter_layers(model: nn.Module) -> list[FilterLayer]:
    """The layers of filters, or of a baseline in their place, in the order of the network."""
    layers = []
    for name, module in model.named_modules():
        if not hasattr(module, "quantum"):
            continue
        reads = isinstance(module, HybridActivation)
        convolution: str | None = f"{name}.conv"
        if reads:
            convolution = f"{name.rpartition('.')[0]}.conv1"
        elif module.conv is None:
            convolution = None
        layers.append(FilterLayer(name, f"{name}.quantum", convolution, reads))
    return layers
