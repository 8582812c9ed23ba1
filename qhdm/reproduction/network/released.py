"""The published code where it differs from its paper (arXiv 2512.20448).

Each class is one difference, enabled by a switch of `qhdm.config.ReleasedConfig`. None is used by
default; docs/reproduction.md gives the evidence.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from qhdm.reproduction.network.blocks import Attention, HybridConv2d, ResnetBlock


class TokenNormalisedAttention(Attention):
    """Full attention whose q and k have unit length over the pixels, feature by feature.

    Scores are therefore not cosines: they depend on the number of pixels.
    """

    UNIT_DIM = -2


class DiscardingResnetBlock(ResnetBlock):
    """QResNet whose second convolution repeats the filter values of the first.

    The published block evaluates the second filters and discards the result. They are not evaluated
    here; their weights exist and are frozen, which is equivalent to their zero gradient.
    """

    conv1: HybridConv2d
    conv2: HybridConv2d

    def __init__(self, *dims: int, **arguments: Any) -> None:
        super().__init__(*dims, **arguments)
        self.conv2.quantum.requires_grad_(False)

    def second_pass(self, h: Tensor, first: Tensor, x: Tensor) -> Tensor:
        return self.conv2.with_values(first[:, : self.conv1.quantum_channels], h)


class InputReadingResnetBlock(ResnetBlock):
    """QuanResNet whose second filters read the block's input, not the first convolution."""

    conv2: HybridConv2d

    def second_pass(self, h: Tensor, first: Tensor, x: Tensor) -> Tensor:
        return self.conv2.with_values(self.conv2.filtered(x), h)
