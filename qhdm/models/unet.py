"""The class-conditioned U-Net, classical or hybrid.

Sizes at the EuroSAT configuration (dim 10, dim_mults 1..6, 64x64):

    level      0    1    2    3    4    5   vertex
    channels  10   10   20   30   40   50     60
    map       64   32   16    8    4    2      2
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from qhdm.models.blocks import (
    Attention,
    Condition,
    Downsample,
    LinearAttention,
    ResnetBlock,
    Upsample,
    init_like_flax,
)

#: Makes a residual block dim -> dim, given its place ("vertex" or an encoder level).
BlockFactory = Callable[["int | str", int], ResnetBlock]


class DownLevel(nn.Module):
    """Two blocks and linear attention, each block's output a skip; then half the resolution."""

    def __init__(
        self, block1: ResnetBlock, block2: ResnetBlock, attention: nn.Module, down: nn.Module
    ) -> None:
        super().__init__()
        self.block1, self.block2 = block1, block2
        self.attention, self.down = attention, down

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
        self.block1, self.block2 = block1, block2
        self.attention, self.up = attention, up

    def forward(self, x: Tensor, emb: Tensor, skip1: Tensor, skip2: Tensor) -> Tensor:
        x = self.block1(torch.cat([x, skip2], dim=1), emb)
        x = self.block2(torch.cat([x, skip1], dim=1), emb)
        return self.up(self.attention(x))


class UNet(nn.Module):
    """eps(x_t, t, label), or x0(x_t, t, label).

    Args:
        condition: makes one vector (B, 4 dim) of timestep and label.
        channels: C of the images.
        dim: channels of the first feature map.
        dim_mults: channels of each level as multiples of `dim`.
        groups, heads, dim_head: see `qhdm.config.ModelConfig`.
        block: makes the blocks of the encoder levels and of the vertex, which is where quantum
            filters may stand; None makes classical ones.
        attention: class of the attention at the vertex.

    Shapes:
        x_t (B, C, H, W) in [-1, 1] units, t (B,) and label (B,) integers; returns (B, C, H, W).
    """

    def __init__(
        self,
        *,
        condition: Condition,
        channels: int,
        dim: int,
        dim_mults: Sequence[int],
        groups: int,
        heads: int,
        dim_head: int,
        block: BlockFactory | None = None,
        attention: type[Attention] = Attention,
    ) -> None:
        super().__init__()
        emb_dim = 4 * dim
        widths = [dim, *(dim * mult for mult in dim_mults)]  # of each level, then of the vertex

        def resnet(dim_in: int, dim_out: int) -> ResnetBlock:
            return ResnetBlock(dim_in, dim_out, emb_dim=emb_dim, groups=groups)

        def linear_attention(width: int) -> LinearAttention:
            return LinearAttention(width, heads=heads, dim_head=dim_head)

        block = block or (lambda place, width: resnet(width, width))
        self.condition = condition
        self.init_conv = nn.Conv2d(channels, dim, 7, padding=3)

        last = len(dim_mults) - 1
        self.encoder = nn.ModuleList()
        for level, (width, below) in enumerate(pairwise(widths)):
            down = (
                Downsample(width, below) if level < last else nn.Conv2d(width, below, 3, padding=1)
            )
            self.encoder.append(
                DownLevel(block(level, width), block(level, width), linear_attention(width), down)
            )

        mid = widths[-1]
        self.vertex = nn.ModuleDict(
            {
                "block1": block("vertex", mid),
                "attention": attention(mid, heads=heads, dim_head=dim_head),
                "block2": block("vertex", mid),
            }
        )

        self.decoder = nn.ModuleList()
        for level in range(last, -1, -1):
            width = dim * dim_mults[level]
            above = dim * dim_mults[level - 1] if level else dim
            up = Upsample(width, above) if level else nn.Conv2d(width, above, 3, padding=1)
            self.decoder.append(
                UpLevel(
                    resnet(width + widths[level], width),
                    resnet(width + widths[level], width),
                    linear_attention(width),
                    up,
                )
            )

        self.final_block = resnet(2 * dim, dim)
        self.final_conv = nn.Conv2d(dim, channels, 1)
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
