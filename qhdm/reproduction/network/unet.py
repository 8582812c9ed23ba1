"""The published class-conditioned U-Net, classical or hybrid.

Sizes in the published configuration (dim 10, dim_mults 1..6, 64x64):

    level      0    1    2    3    4    5   vertex
    channels  10   10   20   30   40   50     60
    map       64   32   16    8    4    2      2
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from qhdm.config import PublishedModelConfig
from qhdm.models.network import DiffusionNetwork
from qhdm.reproduction.network.blocks import (
    Attention,
    Condition,
    Downsample,
    LinearAttention,
    ResnetBlock,
    Upsample,
    init_like_flax,
)

#: Makes the residual block of a place ("encoder.0", "vertex", "decoder.0", "final"), given its
#: channels in and out.
MakeBlock = Callable[[str, int, int], ResnetBlock]


class DownLevel(nn.Module):
    """Two blocks and linear attention, each block's output a skip; then half the resolution."""

    def __init__(
        self, block1: ResnetBlock, block2: ResnetBlock, attention: nn.Module, down: nn.Module
    ) -> None:
        super().__init__()
        self.block1, self.block2, self.attention, self.down = block1, block2, attention, down

    def forward(self, x: Tensor, emb: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        skip1 = self.block1(x, emb)
        skip2 = self.attention(self.block2(skip1, emb))
        return self.down(skip2), skip1, skip2


class UpLevel(nn.Module):
    """The mirror of `DownLevel`: each block reads a skip; then twice the resolution."""

    def __init__(
        self, block1: ResnetBlock, block2: ResnetBlock, attention: nn.Module, up: nn.Module
    ) -> None:
        super().__init__()
        self.block1, self.block2, self.attention, self.up = block1, block2, attention, up

    def forward(self, x: Tensor, emb: Tensor, skip1: Tensor, skip2: Tensor) -> Tensor:
        x = self.block1(torch.cat([x, skip2], dim=1), emb)
        x = self.block2(torch.cat([x, skip1], dim=1), emb)
        return self.up(self.attention(x))


class UNet(DiffusionNetwork):
    """eps(x_t, t, label), or x0(x_t, t, label).

    Args:
        config: sizes.
        channels: C of the images.
        condition: makes one vector (B, 4 dim) of timestep and label.
        block: makes the residual blocks, any of which may have quantum filters.
        vertex_attention: class of the attention at the vertex.

    Shapes:
        x_t (B, C, H, W) in [-1, 1] units, t (B,) and label (B,) integers; returns (B, C, H, W).
    """

    def __init__(
        self,
        config: PublishedModelConfig,
        *,
        channels: int,
        condition: Condition,
        block: MakeBlock,
        vertex_attention: type[Attention] = Attention,
    ) -> None:
        super().__init__()
        widths = [*config.level_channels, config.vertex_channels]
        heads = {"heads": config.heads, "dim_head": config.dim_head}
        self.condition = condition
        self.init_conv = nn.Conv2d(channels, config.dim, 7, padding=3)
        last = len(config.dim_mults) - 1

        self.encoder = nn.ModuleList()
        for level, (width, below) in enumerate(pairwise(widths)):
            down = Downsample(width, below) if level < last else conv3x3(width, below)
            block1, block2 = (block(f"encoder.{level}", width, width) for _ in range(2))
            attention = LinearAttention(width, **heads)
            self.encoder.append(DownLevel(block1, block2, attention, down))

        mid = widths[-1]
        self.vertex = nn.ModuleDict()
        self.vertex["block1"] = block("vertex", mid, mid)
        self.vertex["attention"] = vertex_attention(mid, **heads)
        self.vertex["block2"] = block("vertex", mid, mid)

        self.decoder = nn.ModuleList()
        for level in range(last, -1, -1):
            above, width = widths[level], widths[level + 1]
            up = Upsample(width, above) if level else conv3x3(width, above)
            block1, block2 = (block(f"decoder.{level}", width + above, width) for _ in range(2))
            attention = LinearAttention(width, **heads)
            self.decoder.append(UpLevel(block1, block2, attention, up))

        self.final_block = block("final", 2 * config.dim, config.dim)
        self.final_conv = nn.Conv2d(config.dim, channels, 1)
        self.apply(init_like_flax)

    def forward(self, x_t: Tensor, t: Tensor, label: Tensor) -> Tensor:
        emb = self.condition(t, label)
        # Convolutions of few channels are fastest with the channels innermost in memory.
        x = first = self.init_conv(x_t.contiguous(memory_format=torch.channels_last))
        skips = []
        for down in self.encoder:
            x, skip1, skip2 = down(x, emb)
            skips.append((skip1, skip2))
        x = self.vertex["block1"](x, emb)
        x = self.vertex["attention"](x)
        x = self.vertex["block2"](x, emb)
        for up in self.decoder:
            x = up(x, emb, *skips.pop())
        x = self.final_block(torch.cat([x, first], dim=1), emb)
        return self.final_conv(x)


def conv3x3(dim_in: int, dim_out: int) -> nn.Conv2d:
    """A plain 3x3 convolution, which keeps the resolution."""
    return nn.Conv2d(dim_in, dim_out, 3, padding=1)
