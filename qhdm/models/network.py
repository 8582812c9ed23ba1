"""What every network of a diffusion model offers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn


class DiffusionNetwork(nn.Module):
    """A network F(x, time, label), an estimate of the target of a diffusion model.

    x is (B, C, H, W), time and label are (B,), label -1 being none; F is (B, C, H, W) in float32.
    `time` is ln(sigma) / 4, or the timestep if the network is the published one.

    Attributes:
        compute_dtype: the precision of the convolutions. Parameters, outputs, filters and their
            angles are float32.
    """

    compute_dtype: torch.dtype = torch.float32

    def normalize(self) -> None:
        """Restore the norms that weights are to have; called after every optimiser step."""

    def log_variance(self, time: Tensor) -> Tensor:
        """The learned logarithm of the loss at these noise levels, (B,); 0 if it is not learned."""
        return torch.zeros(time.shape, device=time.device)


@runtime_checkable
class Freezable(Protocol):
    """A module that can keep what depends only on its weights."""

    def freeze(self) -> None: ...

    def thaw(self) -> None: ...


@contextmanager
def frozen(*models: nn.Module) -> Iterator[None]:
    """Compute once what depends only on weights; they must not change or be trained meanwhile."""
    parts = [part for model in models for part in model.modules() if isinstance(part, Freezable)]
    try:
        for part in parts:
            part.freeze()
        yield
    finally:
        for part in parts:
            part.thaw()
