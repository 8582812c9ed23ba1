"""Convert images: levels (N, H, W, C) outside, float (N, C, H, W) in [-1, 1] inside.

Levels are of uint8, or of uint16 for bands; 0 is -1, and the largest number 1.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def from_levels(images: np.ndarray, device: torch.device) -> Tensor:
    """uint8 or uint16 (N, H, W, C) to float32 (N, C, H, W) in [-1, 1]."""
    half = np.iinfo(images.dtype).max / 2
    if images.dtype == np.uint16:
        images = images.astype(np.int32)  # torch does little with uint16
    pixels = to_device(torch.as_tensor(images), device).permute(0, 3, 1, 2).contiguous()
    return pixels.float() / half - 1


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on the CPU, moved without waiting for the device."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def to_levels(images: Tensor, dtype: str) -> np.ndarray:
    """float (N, C, H, W) in [-1, 1] to `dtype` (N, H, W, C); values outside are clipped."""
    most = np.iinfo(dtype).max
    levels = ((images.float() + 1) * (most / 2)).round().clamp(0, most)
    return levels.permute(0, 2, 3, 1).int().cpu().numpy().astype(dtype)


def to_uint8(images: Tensor) -> np.ndarray:
    """`to_levels` of 8 bits."""
    return to_levels(images, "uint8")
