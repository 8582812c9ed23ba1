"""Trajectories: what a sampler is given and what it estimates, step by step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from qhdm.diffusion.generate import Chain
from qhdm.diffusion.pixels import to_uint8


@dataclass(frozen=True, eq=False)
class Trajectory:
    """The S network evaluations of a sampler, for N images.

    Attributes:
        timesteps: (S,), of each evaluation, descending.
        x_t: (S, N, H, W, C) uint8, what the network was given; values outside [-1, 1] are clipped.
        x_0: (S, N, H, W, C) uint8, the clean image that it estimated from it.
        images: (N, H, W, C) uint8, the result.
    """

    timesteps: tuple[int, ...]
    x_t: np.ndarray
    x_0: np.ndarray
    images: np.ndarray


@torch.inference_mode()
def trace(chain: Chain) -> Trajectory:
    """Sample the images of a chain, which has them in one batch, and keep every evaluation."""
    timesteps, x_t, x_0 = [], [], []
    for evaluation in chain:
        timesteps.append(evaluation.t)
        x_t.append(to_uint8(evaluation.x_t))
        x_0.append(to_uint8(evaluation.x_0))
    images = to_uint8(evaluation.state.x)
    return Trajectory(tuple(timesteps), np.stack(x_t), np.stack(x_0), images)
