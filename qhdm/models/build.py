"""Build the network of a configuration."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import nn

from qhdm.config import Config
from qhdm.models.baselines import baseline, check_linear
from qhdm.models.blocks import (
    Attention,
    Condition,
    HybridConv2d,
    ResnetBlock,
)
from qhdm.models.released import (
    DiscardingResnetBlock,
    InputReadingResnetBlock,
    TokenNormalisedAttention,
)
from qhdm.models.unet import UNet
from qhdm.quantum.connector import FilterConnector
from qhdm.quantum.engines import Engine, make_engine
from qhdm.quantum.files.load import find_filter
from qhdm.quantum.filter import Filter
from qhdm.quantum.layer import QuantumConv2d, check_patch
from qhdm.quantum.options import PATCH_CHANNELS
from qhdm.seeds import Stream, derive_seed


def build_model(config: Config) -> UNet:
    """Build the network of `config`, its weights drawn from the configuration's seed.

    The global random state is left as it was.

    Returns:
        A module called as `model(x_t, t, label)`: x_t (B, C, H, W), t and label (B,).

    Raises:
        ConfigError: the number of classes is unknown (`DataConfig.num_classes`).
        CircuitError: a filter cannot be built.
        EngineError: the engine cannot be set up.

    Example:
        >>> config = load_config("configs/quickstart.yaml", ["model.kind=unet"])
        >>> model = build_model(config)
    """
    model, released = config.model, config.released
    block = BlockFactory(config)
    num_classes = config.data.num_classes
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(config.seed, Stream.INIT))
        return UNet(
            model,
            channels=config.data.channels,
            condition=Condition(
                time_dim=0 if released.time_blind else model.dim,
                label_dim=model.label_dim,
                num_classes=model.dim if released.swapped_embedding else num_classes,
                emb_dim=model.emb_dim,
            ),
            block=block,
            vertex_attention=(
                TokenNormalisedAttention if released.attention_over_tokens else Attention
            ),
        )


def build_filters(config: Config) -> dict[str, Filter]:
    """The filters of the places that have some: of "vertex", "encoder" or both.

    Places with the same circuit share one filter, which is planned once.

    Raises:
        CircuitError: a filter cannot be built, does not fit a patch, or has more weights than the
            linear baseline that is to match it can have.
    """

    @cache
    def filter_of(ansatz: str, layers: int | None) -> Filter:
        circuit_filter = find_filter(ansatz, layers=layers)
        check_patch(circuit_filter)
        if config.quantum.filter == "linear":
            check_linear(circuit_filter)
        return circuit_filter

    quantum = config.quantum
    places = {"vertex": quantum.vertex} if config.vertex_filters else {}
    if config.encoder_levels:
        places["encoder"] = quantum.encoder
    return {name: filter_of(place.ansatz, place.layers) for name, place in places.items()}


@dataclass(frozen=True)
class Placement:
    """The quantum filters of the residual blocks at one place of the U-Net.

    Attributes:
        filter: their circuit.
        count: F, filters side by side in each convolution.
        replace: which convolutions of a block have them.
        block: class of the block.
    """

    filter: Filter
    count: int
    replace: Literal["first", "both"]
    block: type[ResnetBlock]


def placements(config: Config) -> dict[str, Placement]:
    """Where `config` has quantum filters: "vertex" (QResNet), "encoder.<level>" (QuanResNet)."""
    quantum, released = config.quantum, config.released
    filters = build_filters(config)
    placed = {}
    if config.vertex_filters:
        block = DiscardingResnetBlock if released.discard_second_pass else ResnetBlock
        placed["vertex"] = Placement(filters["vertex"], config.vertex_filters, "both", block)
    for level in config.encoder_levels:
        count = quantum.encoder.count(config.model.level_channels[level])
        block = InputReadingResnetBlock if released.second_pass_reads_input else ResnetBlock
        placed[f"encoder.{level}"] = Placement(
            filters["encoder"], count, quantum.encoder.replace, block
        )
    return placed


class BlockFactory:
    """Makes the residual blocks of the U-Net of a configuration, with filters where it has some."""

    def __init__(self, config: Config) -> None:
        self._model, self._kind = config.model, config.quantum.filter
        self._engine = make_engine(config.quantum.engine_options)
        self._placements = placements(config)

    def __call__(self, place: str, dim_in: int, dim_out: int) -> ResnetBlock:
        """A block dim_in -> dim_out for a place: "encoder.0", "vertex", "decoder.0", "final"."""
        emb_dim, groups = self._model.emb_dim, self._model.groups
        placed = self._placements.get(place)
        if placed is None:
            return ResnetBlock(dim_in, dim_out, emb_dim=emb_dim, groups=groups)
        conv1 = self._hybrid(dim_in, placed)
        conv2 = self._hybrid(dim_out, placed) if placed.replace == "both" else None
        return placed.block(
            dim_in, dim_out, emb_dim=emb_dim, groups=groups, conv1=conv1, conv2=conv2
        )

    def _hybrid(self, dim: int, placed: Placement) -> HybridConv2d:
        channels = PATCH_CHANNELS * placed.count
        quantum: nn.Module
        if self._kind == "circuit" or self._kind == "frozen":
            quantum = QuantumConv2d(channels, placed.filter, engine=self._engine)
            quantum.requires_grad_(self._kind == "circuit")
        else:
            quantum = baseline(self._kind, placed.filter, count=placed.count)
        return HybridConv2d(dim, quantum, channels)


def set_engine(model: nn.Module, engine: Engine) -> None:
    """Set the engine that evaluates all filters of `model`."""
    for module in model.modules():
        if isinstance(module, FilterConnector):
            module.engine = engine
