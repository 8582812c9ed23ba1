"""Quantum filters as the activation of some channels of a magnitude-preserving block."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qhdm.errors import CircuitError
from qhdm.models.baselines import start_near_identity
from qhdm.models.filters import on_engine
from qhdm.models.layers import SILU_SCALE
from qhdm.quantum.connector import FilterConnector
from qhdm.quantum.layer import over_patches
from qhdm.quantum.options import PATCH_SIZE

#: The filters' part of what the activation gives, in mean square, if they are on fewer channels.
SHARE = 0.5
#: `spread` of `start_near_identity`: the circuits' angles at the start, radians.
ANGLES = 0.5
#: Patches on which the spread of the filters' values is measured.
_PATCHES = 1024
#: Least spread of values that are no constant: rounding is 1e-7, and `basic` has 0.02.
_LEAST = 1e-4


class HybridActivation(nn.Module):
    """Filters in the place of SiLU on the first 3F channels of a map of unit magnitude.

        angle = gain x_q + shift;  z = <Z>(RX(angle), ansatz)
        mp_cat((z - mean) / spread, SiLU(x_c), SHARE)

    Gain and shift are learned, each of a channel, from 1 and pi / 2 at the start: at 0, controlled
    rotations rest on |0>, and <Z> is nearly even in x. Circuits start near the identity (Grant et
    al. 2019, arXiv 1903.05076), where <Z> = -sin x at all pixels of a patch: angles from the whole
    circle give another function at each of its four pixels, which a convolution can hardly read.
    `mean` (of each value of a patch) and `spread` are those of z at the start, measured on the
    exact engine for x from a standard normal distribution. The concatenation preserves magnitude
    (Karras et al. 2024, eq. 103), and filters have SHARE of it however few their channels are.

    Args:
        dim: C.
        quantum: `qhdm.quantum.layer.QuantumConv2d`, or a baseline in its place.
        quantum_channels: 3F.

    Raises:
        CircuitError: the values do not depend on the inputs.
    """

    def __init__(self, dim: int, quantum: nn.Module, quantum_channels: int) -> None:
        super().__init__()
        shape = (quantum_channels, 1, 1)
        self.quantum = quantum
        self.gain = nn.Parameter(torch.ones(shape))
        self.shift = nn.Parameter(torch.full(shape, math.pi / 2))
        start_near_identity(quantum, ANGLES)
        mean, spread = self._measured()
        if spread < _LEAST:
            connectors = [m for m in quantum.modules() if isinstance(m, FilterConnector)]
            names = ", ".join(connector.filter.name for connector in connectors)
            raise CircuitError(
                f"{names}: <Z> does not depend on the inputs at the start (standard deviation "
                f"{float(spread):.1g} over patches); choose another ansatz"
            )
        self.mean: Tensor
        self.spread: Tensor
        self.register_buffer("mean", mean)
        self.register_buffer("spread", spread)
        share, classical = max(SHARE, quantum_channels / dim), dim - quantum_channels
        #: Of normalised values; the next kernel expects the magnitude of SiLU.
        self.quantum_scale = math.sqrt(share * dim / quantum_channels) / SILU_SCALE
        self.classical_scale = math.sqrt((1 - share) * dim / max(1, classical))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape; angles and values are float32."""
        q = len(self.gain)
        z = self.quantum(self._angles(x[:, :q].float()))
        z = (z - over_patches(self.mean, z)) * (self.quantum_scale / self.spread)
        z = z.to(x.dtype, memory_format=torch.channels_last)
        return torch.cat([z, F.silu(x[:, q:]) * self.classical_scale], dim=1)

    def _angles(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.shift, self.gain, x)

    @torch.no_grad()
    def _measured(self) -> tuple[Tensor, Tensor]:
        """Mean (3F, 2, 2) and standard deviation () of the values."""
        exact = on_engine(self.quantum, "exact")
        x = torch.randn(_PATCHES, len(self.gain), PATCH_SIZE, PATCH_SIZE)
        z = exact(self._angles(x))
        return z.mean(dim=0), z.var(dim=0).mean().sqrt()
