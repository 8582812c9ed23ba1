"""Residual blocks in which quantum filters replace part of a convolution."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from qhdm.models.blocks import ResnetBlock, WeightStandardizedConv2d
from qhdm.quantum.layer import PatchTiling


@dataclass(frozen=True)
class FilterBank:
    """The filters of one place of the network: their number F, and what makes a layer of them."""

    count: int
    layer: Callable[[], PatchTiling]


class HybridConv2d(nn.Module):
    """A convolution on part of the channels, quantum filters on the others.

    (B, C, H, W) to the same shape: the first 3F channels pass F filters, the others the
    weight-standardised 3x3 convolution; the outputs are concatenated in that order.
    """

    def __init__(self, dim: int, bank: FilterBank) -> None:
        super().__init__()
        self.quantum_channels = bank.count * PatchTiling.CHANNELS
        classical = dim - self.quantum_channels
        self.quantum = bank.layer()
        self.conv = WeightStandardizedConv2d(classical, classical) if classical else None

    def forward(self, x: Tensor) -> Tensor:
        return self.with_values(self.filtered(x), x)

    def filtered(self, x: Tensor) -> Tensor:
        """What the filters make of their channels of x, (B, 3F, H, W)."""
        return self.quantum(x[:, : self.quantum_channels])

    def with_values(self, values: Tensor, x: Tensor) -> Tensor:
        """The output for x if the filters gave `values` (B, 3F, H, W)."""
        if self.conv is None:
            return values
        return torch.cat([values, self.conv(x[:, self.quantum_channels :])], dim=1)


class QResnetBlock(ResnetBlock):
    """QResNet: both convolutions are hybrid. Stands at the vertex (arXiv 2402.16147)."""

    conv1: HybridConv2d
    conv2: HybridConv2d

    def __init__(self, dim: int, bank: FilterBank, *, emb_dim: int, groups: int) -> None:
        super().__init__(
            dim,
            dim,
            emb_dim=emb_dim,
            groups=groups,
            conv1=HybridConv2d(dim, bank),
            conv2=HybridConv2d(dim, bank),
        )


class QuanResnetBlock(ResnetBlock):
    """QuanResNet: the first convolution is hybrid, or both. Stands in the encoder.

    arXiv 2512.20448 describes the first as replaced; its released code replaces both.
    """

    def __init__(
        self,
        dim: int,
        bank: FilterBank,
        *,
        replace: Literal["first", "both"],
        emb_dim: int,
        groups: int,
    ) -> None:
        super().__init__(
            dim,
            dim,
            emb_dim=emb_dim,
            groups=groups,
            conv1=HybridConv2d(dim, bank),
            conv2=HybridConv2d(dim, bank) if replace == "both" else None,
        )
