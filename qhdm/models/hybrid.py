"""Quantum filters as a branch of a magnitude-preserving block."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from qhdm.models.filters import on_engine
from qhdm.models.layers import ADD, MPConv2d
from qhdm.quantum.layer import over_patches
from qhdm.quantum.options import PATCH_SIZE

#: Patches on which the spread of the filters' values is measured.
_PATCHES = 1024


class QuantumBranch(nn.Module):
    """Filters on the first channels of a map, spread over all channels by a 1x1 convolution.

        angle = gain x + shift;  z = <Z>(RX(angle), ansatz);  ADD W_1x1 (z - mean) / spread

    The first 3F channels of x (unit magnitude) are turned by a learned gain and shift each, from 1
    and pi / 2 at the start: at 0, controlled rotations rest on |0>, and <Z> is nearly even in x.
    `mean` (of each value of a patch) and `spread` are those of z at the start, measured on the
    exact engine for x from a standard normal distribution.

    Args:
        dim: C.
        quantum: `qhdm.quantum.layer.QuantumConv2d`, or a baseline in its place.
        quantum_channels: 3F.
    """

    def __init__(self, dim: int, quantum: nn.Module, quantum_channels: int) -> None:
        super().__init__()
        shape = (quantum_channels, 1, 1)
        self.quantum = quantum
        self.gain = nn.Parameter(torch.ones(shape))
        self.shift = nn.Parameter(torch.full(shape, math.pi / 2))
        self.mix = MPConv2d(quantum_channels, dim, 1, scale=ADD)
        mean, spread = self._measured()
        self.mean: Tensor
        self.spread: Tensor
        self.register_buffer("mean", mean)
        self.register_buffer("spread", spread)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape; angles and values are float32."""
        z = self.quantum(self._angles(x[:, : len(self.gain)].float()))
        return self.mix(((z - over_patches(self.mean, z)) / self.spread).to(x.dtype))

    def _angles(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.shift, self.gain, x)

    @torch.no_grad()
    def _measured(self) -> tuple[Tensor, Tensor]:
        """Mean (3F, 2, 2) and standard deviation () of the values."""
        exact = on_engine(self.quantum, "exact")
        x = torch.randn(_PATCHES, len(self.gain), PATCH_SIZE, PATCH_SIZE)
        z = exact(self._angles(x))
        return z.mean(dim=0), z.var(dim=0).mean().sqrt()
