"""Build the published network of a configuration."""

from __future__ import annotations

from typing import Any

from qhdm.config import Config, PublishedModelConfig
from qhdm.models.filters import FilterFactory, Placement, placements
from qhdm.reproduction.network.blocks import Attention, Condition, HybridConv2d, ResnetBlock
from qhdm.reproduction.network.released import (
    DiscardingResnetBlock,
    InputReadingResnetBlock,
    TokenNormalisedAttention,
)
from qhdm.reproduction.network.unet import UNet


def build_published(config: Config, model: PublishedModelConfig) -> UNet:
    """The network of `config`, whose section `model` is the given one; draws random weights."""
    released = config.released
    condition = Condition(
        time_dim=0 if released.time_blind else model.dim,
        label_dim=model.label_dim,
        num_classes=model.dim if released.swapped_embedding else config.data.num_classes,
        emb_dim=model.emb_dim,
    )
    return UNet(
        model,
        channels=config.data.channels,
        condition=condition,
        block=BlockFactory(config, model),
        vertex_attention=TokenNormalisedAttention if released.attention_over_tokens else Attention,
    )


class BlockFactory:
    """Makes the residual blocks, QResNet at the vertex and QuanResNet in the encoder."""

    def __init__(self, config: Config, model: PublishedModelConfig) -> None:
        self._sizes: dict[str, Any] = {"emb_dim": model.emb_dim, "groups": model.groups}
        self._released, self._encoder = config.released, config.quantum.encoder
        self._filters, self._placements = FilterFactory(config), placements(config)

    def __call__(self, place: str, dim_in: int, dim_out: int) -> ResnetBlock:
        """A block dim_in -> dim_out for a place: "encoder.0", "vertex", "decoder.0", "final"."""
        placed = self._placements.get(place)
        if placed is None:
            return ResnetBlock(dim_in, dim_out, **self._sizes)
        kind, both = ResnetBlock, True
        if place == "vertex" and self._released.discard_second_pass:
            kind = DiscardingResnetBlock
        elif place != "vertex":
            both = self._encoder.replace == "both"
            kind = InputReadingResnetBlock if self._released.second_pass_reads_input else kind
        conv1 = self._hybrid(dim_in, placed)
        conv2 = self._hybrid(dim_out, placed) if both else None
        return kind(dim_in, dim_out, **self._sizes, conv1=conv1, conv2=conv2)

    def _hybrid(self, dim: int, placed: Placement) -> HybridConv2d:
        return HybridConv2d(dim, self._filters(placed), placed.channels)
