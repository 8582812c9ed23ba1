"""Small networks and inputs for them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from qhdm.config import Config, load_config
from qhdm.models import build_model

RELEASED = Path(__file__).parent.parent / "configs" / "released"
#: Three levels on 16x16 images.
SMALL = [
    "data.image_size=16", "model.dim=12", "model.groups=4", "model.dim_mults=[1,2,2]",
    "model.heads=2", "model.dim_head=8",
]  # fmt: skip


def small_released(name: str, *settings: str) -> Config:
    """A small configuration of a published network."""
    quantum = [] if name == "unet" else ["quantum.vertex.filters=2"]
    level = ["quantum.encoder.levels=[1]"] if name.startswith("qcunet") else []
    return load_config(RELEASED / f"{name}.yaml", [*SMALL, *quantum, *level, *settings])


def inputs(config: Config, batch: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random x (B, C, H, W), and different t and labels (B,)."""
    random = torch.Generator().manual_seed(0)
    size = config.data.image_size
    x = torch.randn(batch, config.data.channels, size, size, generator=random)
    return x, torch.arange(batch) * 100 + 7, torch.arange(batch) % 10


def trained_a_little(model: nn.Module) -> nn.Module:
    """A model in general position: a fresh one has zero biases and unit scales."""
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=random))
    return model


def total(config: Config) -> int:
    """The number of parameters of a configuration's network."""
    return sum(parameter.numel() for parameter in build_model(config).parameters())
