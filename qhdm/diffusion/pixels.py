"""Convert images: uint8 (N, H, W, C) outside, float (N, C, H, W) in [-1, 1] inside."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def from_uint8(images: np.ndarray, device: torch.device) -> Tensor:
    """uint8 (N, H, W, C) to float32 (N, C, H, W) in [-1, 1]."""
    pixels = to_device(torch.as_tensor(images), device).permute(0, 3, 1, 2).contiguous()
    return pixels.float() / 127.5 - 1


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on the CPU, moved without waiting for the device."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def to_uint8(images: Tensor) -> np.ndarray:
    """float (N, C, H, W) in [-1, 1] to uint8 (N, H, W, C); values outside are clipped."""
    levels = ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return levels.permute(0, 2, 3, 1).cpu().numpy()
