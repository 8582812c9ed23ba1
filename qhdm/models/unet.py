"""The recommended network: a magnitude-preserving U-Net, classical or hybrid.

Configuration G of EDM2 (Karras et al. 2024, arXiv 2312.02696), in small. Sizes by default (64x64):

    level       0    1    2    3   vertex
    channels   16   48   96  128      128
    map        64   32   16    8        4
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qhdm.config import ModelConfig
from qhdm.models.hybrid import HybridActivation
from qhdm.models.layers import (
    ADD,
    EPS,
    KEEP,
    SILU_SCALE,
    Fourier,
    MPConv2d,
    MPLinear,
    pixel_norm,
    sum_weights,
)
from qhdm.models.network import DiffusionNetwork

#: Weight of each of two maps that count alike.
HALF, _ = sum_weights(0.5)
#: Fourier features of the noise level.
FEATURES = 64


class Block(nn.Module):
    """Residual block: two 3x3 convolutions; the condition scales the channels between them.

        h = conv1(SiLU(x));  x <- mp_sum(x, conv2(SiLU(h (1 + gain W emb))), 0.3)

    With quantum filters, these are the activation in front of conv1 on some channels.

    Args:
        dim: C.
        emb_dim: E, size of the conditioning vector.
        norm: x is the pixel norm of the input.
    """

    def __init__(self, dim: int, emb_dim: int, *, norm: bool) -> None:
        super().__init__()
        self.norm = norm
        self.conv1 = MPConv2d(dim, dim, 3, scale=SILU_SCALE)
        self.emb = MPLinear(emb_dim, dim, learn_gain=True)
        self.conv2 = MPConv2d(dim, dim, 3, scale=SILU_SCALE * ADD)
        self.hybrid: HybridActivation | None = None

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """x (B, C, H, W) and emb (B, E) to the shape of x."""
        if self.norm:
            x = pixel_norm(x)
        h = self.conv1(F.silu(x) if self.hybrid is None else self.hybrid(x))
        scale = (1 + self.emb(emb)).to(h.dtype)[:, :, None, None]
        return torch.add(self.conv2(F.silu(h * scale)), x, alpha=KEEP)


class Attention(nn.Module):
    """Residual attention over all pixels, with q, k and v of unit magnitude."""

    def __init__(self, dim: int, *, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.qkv = MPConv2d(dim, 3 * dim, 1)
        self.out = MPConv2d(dim, dim, 1, scale=ADD)

    def forward(self, x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        qkv = self.qkv(x).permute(0, 2, 3, 1).reshape(B, H * W, 3, -1, self.head_dim)
        q, k, v = F.rms_norm(qkv, qkv.shape[-1:], eps=EPS**2).transpose(1, 3).unbind(2)
        # (B, heads, pixels, features); few pixels, for which torch's fused attention is slow.
        y = (q @ k.mT * self.head_dim**-0.5).softmax(dim=-1) @ v
        y = y.transpose(1, 2).reshape(B, H, W, C).permute(0, 3, 1, 2)
        return torch.add(self.out(y), x, alpha=KEEP)


class DownLevel(nn.Module):
    """Blocks, the output of each a skip; then half the resolution."""

    def __init__(self, blocks: list[Block], dim: int, below: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.down = MPConv2d(dim, below, 1)

    def forward(self, x: Tensor, emb: Tensor, skips: list[Tensor]) -> Tensor:
        for block in self.blocks:
            x = block(x, emb)
            skips.append(x)
        return self.down(F.avg_pool2d(x, 2))


class UpLevel(nn.Module):
    """The mirror of `DownLevel`: twice the resolution; then blocks, each of which adds a skip."""

    def __init__(self, blocks: list[Block], dim: int, below: int) -> None:
        super().__init__()
        self.up = MPConv2d(below, dim, 1)
        self.skips = nn.ModuleList(MPConv2d(dim, dim, 1, scale=HALF) for _ in blocks)
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor, emb: Tensor, skips: list[Tensor]) -> Tensor:
        x = F.interpolate(self.up(x), scale_factor=2, mode="nearest")
        for skip, block in zip(self.skips, self.blocks, strict=True):
            x = block(torch.add(skip(skips.pop()), x, alpha=HALF), emb)
        return x


class UNet(DiffusionNetwork):
    """F(x, ln(sigma) / 4, label), an estimate of unit magnitude; 0 at the start.

    Args:
        config: sizes.
        channels: C of the images.
        num_classes: labels are 0..num_classes-1, or -1 for none.

    Shapes:
        x (B, C, H, W) of unit magnitude, time and label (B,); returns (B, C, H, W).
    """

    def __init__(self, config: ModelConfig, *, channels: int, num_classes: int) -> None:
        super().__init__()
        widths, emb_dim = config.widths, config.emb_dim
        levels = list(pairwise(widths))  # channels of a level and of the one below

        def blocks(dim: int, *, norm: bool) -> list[Block]:
            return [Block(dim, emb_dim, norm=norm) for _ in range(config.blocks)]

        self.num_classes = num_classes
        self.noise_features = Fourier(FEATURES)
        self.noise_emb = MPLinear(FEATURES, emb_dim)
        self.label_emb = MPLinear(num_classes, emb_dim)
        self.log_variance_weight = nn.Parameter(torch.zeros(FEATURES))
        self.conv_in = MPConv2d(channels + 1, widths[0], 3)
        self.encoder = nn.ModuleList(
            DownLevel(blocks(dim, norm=True), dim, below) for dim, below in levels
        )
        self.vertex = nn.ModuleDict(
            {
                "block1": Block(widths[-1], emb_dim, norm=True),
                "attention": Attention(widths[-1], head_dim=config.head_dim),
                "block2": Block(widths[-1], emb_dim, norm=True),
            }
        )
        self.decoder = nn.ModuleList(
            UpLevel(blocks(dim, norm=False), dim, below) for dim, below in reversed(levels)
        )
        self.conv_out = MPConv2d(widths[0], channels, 3, learn_gain=True)

    def attach(self, place: str, hybrid: HybridActivation) -> None:
        """Add quantum filters to the first block of a place: "vertex" or "encoder.<level>"."""
        name = "vertex.block1" if place == "vertex" else f"{place}.blocks.0"
        block = self.get_submodule(name)
        assert isinstance(block, Block)
        block.hybrid = hybrid

    def forward(self, x: Tensor, time: Tensor, label: Tensor) -> Tensor:
        emb = self.condition(time, label)
        # A channel of ones stands in for biases.
        x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
        # Convolutions of few channels are fastest with the channels innermost in memory.
        x = self.conv_in(x.to(self.compute_dtype, memory_format=torch.channels_last))
        skips: list[Tensor] = []
        for down in self.encoder:
            x = down(x, emb, skips)
        x = self.vertex["block1"](x, emb)
        x = self.vertex["attention"](x)
        x = self.vertex["block2"](x, emb)
        for up in self.decoder:
            x = up(x, emb, skips)
        return self.conv_out(x).float()

    def condition(self, time: Tensor, label: Tensor) -> Tensor:
        """The conditioning vector (B, E) of noise levels and labels (B,)."""
        noise = self.noise_emb(self.noise_features(time))
        classes = torch.arange(self.num_classes, device=label.device)
        one_hot = (label[:, None] == classes) * math.sqrt(self.num_classes)
        return SILU_SCALE * F.silu(HALF * (noise + self.label_emb(one_hot)))

    def log_variance(self, time: Tensor) -> Tensor:
        features = self.noise_features(time)
        return features @ self.log_variance_weight / math.sqrt(FEATURES)

    def normalize(self) -> None:
        for module in self.modules():
            if isinstance(module, MPConv2d | MPLinear):
                module.normalize()
