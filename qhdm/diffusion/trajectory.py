"""How noise becomes an image: what a sampler sees and what it estimates, step by step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from qhdm.config import SamplerOptions
from qhdm.diffusion.generate import Network, chain
from qhdm.diffusion.pixels import to_uint8
from qhdm.diffusion.schedule import Schedule


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
def trace(
    model: Network,
    schedule: Schedule,
    options: SamplerOptions,
    *,
    labels: Sequence[int],
    indices: Sequence[int],
    shape: tuple[int, int, int],
    device: torch.device,
) -> Trajectory:
    """Sample one image per label, as one batch, and keep the way there.

    Args:
        model, schedule, options, labels, indices, shape, device: as of
            `qhdm.diffusion.generate`, which samples the same images.

    Raises:
        SamplingError: more steps than the model has timesteps.
    """
    evaluations = [
        (e.t, to_uint8(e.x_t), to_uint8(e.x_0), to_uint8(e.state.x))
        for e in chain(
            model,
            schedule,
            options,
            labels=labels,
            indices=indices,
            shape=shape,
            batch_size=len(labels),
            device=device,
        )
    ]
    timesteps, x_t, x_0, x = zip(*evaluations, strict=True)
    return Trajectory(timesteps, np.stack(x_t), np.stack(x_0), x[-1])
