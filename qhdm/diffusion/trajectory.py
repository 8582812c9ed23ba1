"""How noise becomes an image: what a sampler sees and what it estimates, step by step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from qhdm.diffusion.generate import Network, SamplerSettings, drawn_by_image, guided_denoiser
from qhdm.diffusion.pixels import to_uint8
from qhdm.diffusion.samplers import ImageNoise, states
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
    *,
    labels: Sequence[int],
    indices: Sequence[int],
    shape: tuple[int, int, int],
    seed: int,
    settings: SamplerSettings,
    device: torch.device,
) -> Trajectory:
    """Sample one image per label, as one batch, and keep the way there.

    Args:
        model, schedule, labels, indices, shape, seed, settings, device: as of
            `qhdm.diffusion.generate`, which samples the same images.

    Raises:
        SamplingError: more steps than the model has timesteps.
    """
    chosen = torch.as_tensor(labels, dtype=torch.long, device=device)
    network = drawn_by_image(model, None, steps=settings.steps, seed=seed, indices=indices)
    estimate = guided_denoiser(network, schedule, chosen, settings.guidance)
    timesteps, given, estimated = [], [], []

    def denoise(x: Tensor, t: int) -> Tensor:
        x_0 = estimate(x, t)
        timesteps.append(t)
        given.append(to_uint8(x))
        estimated.append(to_uint8(x_0))
        return x_0

    chain = states(
        schedule,
        denoise,
        ImageNoise(seed, indices, shape),
        sampler=settings.sampler,
        steps=settings.steps,
        eta=settings.eta,
        device=device,
    )
    *_, last = chain
    return Trajectory(tuple(timesteps), np.stack(given), np.stack(estimated), to_uint8(last.x))
