"""The quantum filters of a configuration, by place, and the layers that hold them."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

from torch import nn

from qhdm.config import Config
from qhdm.models.baselines import baseline, check_baseline
from qhdm.quantum.connector import FilterConnector
from qhdm.quantum.engines import Engine, make_engine
from qhdm.quantum.files.load import find_filter
from qhdm.quantum.filter import Filter
from qhdm.quantum.layer import QuantumConv2d, check_patch
from qhdm.quantum.options import PATCH_CHANNELS, EngineOptions

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Placement:
    """The quantum filters of a convolution.

    Attributes:
        filter: their circuit.
        count: F, filters side by side; each has three channels.
    """

    filter: Filter
    count: int

    @property
    def channels(self) -> int:
        """3F."""
        return PATCH_CHANNELS * self.count


def build_filters(config: Config) -> dict[str, Filter]:
    """The filters of the places that have some: of "vertex", "encoder" or both.

    Places with the same circuit share one filter, which is planned once.

    Raises:
        CircuitError: a filter cannot be built, does not fit a patch, or has more or fewer weights
            than the baseline in its place can have.
    """

    @cache
    def filter_of(ansatz: str, layers: int | None) -> Filter:
        circuit_filter = find_filter(ansatz, layers=layers)
        check_patch(circuit_filter)
        check_baseline(config.quantum.filter, circuit_filter)
        return circuit_filter

    quantum = config.quantum
    places = {"vertex": quantum.vertex} if config.vertex_filters else {}
    if config.encoder_filters:
        places["encoder"] = quantum.encoder
    return {name: filter_of(place.ansatz, place.layers) for name, place in places.items()}


def placements(config: Config) -> dict[str, Placement]:
    """Where `config` has quantum filters: "vertex", "encoder.<level>"."""
    filters = build_filters(config)
    placed = {
        f"encoder.{level}": Placement(filters["encoder"], count)
        for level, count in config.encoder_filters.items()
    }
    if config.vertex_filters:
        placed["vertex"] = Placement(filters["vertex"], config.vertex_filters)
    return placed


class FilterFactory:
    """Makes the layers of filters, or of their baseline, of a configuration."""

    def __init__(self, config: Config) -> None:
        self._kind = config.quantum.filter
        self._engine = make_engine(config.quantum.engine_options)

    def __call__(self, placed: Placement) -> nn.Module:
        """(B, 3F, H, W) to the same shape."""
        if self._kind == "circuit" or self._kind == "frozen":
            layer = QuantumConv2d(placed.channels, placed.filter, engine=self._engine)
            return layer.requires_grad_(self._kind == "circuit")
        return baseline(self._kind, placed.filter, count=placed.count)


def set_engine(model: nn.Module, engine: Engine) -> None:
    """Set the engine that evaluates all filters of `model`."""
    for module in model.modules():
        if isinstance(module, FilterConnector):
            module.engine = engine


def on_engine(model: M, engine: Engine | EngineOptions | str) -> M:
    """A copy of `model` whose filters `engine` evaluates."""
    changed = copy.deepcopy(model)
    set_engine(changed, make_engine(engine))
    return changed
