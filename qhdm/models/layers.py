"""Layers that preserve magnitude (Karras et al. 2024, EDM2, arXiv 2312.02696).

Maps have a root mean square near 1: kernels have rows of unit norm, sums are weighted, and there
are no biases. Constant factors, as that of SiLU, are left to the `scale` of the next kernel.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Of SiLU with outputs of unit magnitude for standard normal inputs (eq. 81).
SILU_SCALE = 1 / 0.596
#: Below this magnitude (root mean square) a pixel is not scaled up to 1.
EPS = 1e-4


def sum_weights(t: float) -> tuple[float, float]:
    """Weights of a and b in their magnitude-preserving sum, (1 - t) a + t b rescaled (eq. 88)."""
    norm = math.hypot(1 - t, t)
    return (1 - t) / norm, t / norm


#: Weights of a map and of what a branch adds to it.
KEEP, ADD = sum_weights(0.3)


class _Weight(nn.Module):
    """A weight (out, in, ...) used with rows of norm `scale`, whatever their own norm.

    Args:
        shape: of the weight.
        scale: a constant.
        learn_gain: also multiply by a learned number, 0 at the start.
    """

    def __init__(self, *shape: int, scale: float = 1.0, learn_gain: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape))
        self.gain = nn.Parameter(torch.zeros(())) if learn_gain else None
        self.scale = scale
        self._frozen: Tensor | None = None
        self.normalize()

    @torch.no_grad()
    def normalize(self) -> None:
        """Restore the norm of the rows, so that steps keep their relative size (eq. 66)."""
        w, inner = self.weight, tuple(range(1, self.weight.dim()))
        w.mul_(w[0].numel() ** 0.5 / torch.linalg.vector_norm(w, dim=inner, keepdim=True))

    def freeze(self) -> None:
        """Compute the kernel once: weights must not change until `thaw`."""
        self._frozen = self._kernel().detach()

    def thaw(self) -> None:
        """Undo `freeze`."""
        self._frozen = None

    def kernel(self, dtype: torch.dtype) -> Tensor:
        """The weight as it is used."""
        return (self._kernel() if self._frozen is None else self._frozen).to(dtype)

    def _kernel(self) -> Tensor:
        kernel = self._with_norm(self.scale)
        return kernel if self.gain is None else kernel * self.gain

    def _with_norm(self, norm: float) -> Tensor:
        # One pass over the weight, forward and backward, as for torch's own weight_norm.
        rows = self.weight.new_full((len(self.weight), *[1] * (self.weight.dim() - 1)), norm)
        return torch._weight_norm(self.weight, rows, 0)


class MPConv2d(_Weight):
    """Convolution without bias that keeps the resolution and, with `scale` 1, the magnitude."""

    def __init__(self, dim_in: int, dim_out: int, size: int, **gains: Any) -> None:
        super().__init__(dim_out, dim_in, size, size, **gains)

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.kernel(x.dtype)
        return F.conv2d(x, kernel, padding=kernel.shape[-1] // 2)


class MPLinear(_Weight):
    """Linear map without bias that, with `scale` 1, keeps the magnitude."""

    def __init__(self, dim_in: int, dim_out: int, **gains: Any) -> None:
        super().__init__(dim_out, dim_in, **gains)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.kernel(x.dtype))


class Fourier(nn.Module):
    """Random features sqrt(2) cos(2 pi (f s + phase)) of a number s, of unit magnitude (eq. 75)."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.frequencies: Tensor
        self.phases: Tensor
        self.register_buffer("frequencies", 2 * math.pi * torch.randn(features))
        self.register_buffer("phases", 2 * math.pi * torch.rand(features))

    def forward(self, s: Tensor) -> Tensor:
        """(B,) to (B, features)."""
        return math.sqrt(2) * (s[:, None] * self.frequencies + self.phases).cos()


def pixel_norm(x: Tensor) -> Tensor:
    """(B, C, H, W) with the channels of every pixel scaled to unit magnitude (eq. 30)."""
    return _PixelNorm.apply(x)


class _PixelNorm(torch.autograd.Function):
    """Few operations, on contiguous arrays: in bf16, torch's CPU kernels are slow to broadcast."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        scale = _over_channels((_channel_mean(x.square()) + EPS**2).rsqrt(), x)
        y = x * scale
        ctx.save_for_backward(y, scale)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        y, scale = ctx.saved_tensors
        along = _over_channels(_channel_mean(gradient * y), y)
        return torch.addcmul(gradient, y, along, value=-1) * scale


def _channel_mean(x: Tensor) -> Tensor:
    """(B, C, H, W) to (B, 1, H, W), by a matrix product: channels are innermost in memory."""
    C = x.shape[1]
    return (x.permute(0, 2, 3, 1) @ x.new_full((C, 1), 1 / C)).permute(0, 3, 1, 2)


def _over_channels(x: Tensor, like: Tensor) -> Tensor:
    """(B, 1, H, W) to (B, C, H, W)."""
    return x.expand_as(like).contiguous(memory_format=torch.channels_last)
