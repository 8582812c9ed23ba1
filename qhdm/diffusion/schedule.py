"""The forward process and the loss, in the notation of Ho et al. 2020.

Timesteps run from 0 (least noise) to T - 1; alphas_bar[t] = prod_{s <= t} (1 - betas[s]), and
x_t = sqrt(alphas_bar[t]) x_0 + sqrt(1 - alphas_bar[t]) eps.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qhdm.config import DiffusionConfig


def cosine_betas(timesteps: int, *, s: float = 0.008, max_beta: float = 0.999) -> Tensor:
    """Cosine schedule, (T,) float64 (Nichol & Dhariwal 2021, eq. 17)."""
    u = torch.linspace(0, 1, timesteps + 1, dtype=torch.float64)
    alphas_bar = torch.cos((u + s) / (1 + s) * math.pi / 2).square()
    return (1 - alphas_bar[1:] / alphas_bar[:-1]).clamp(0, max_beta)


def linear_betas(timesteps: int) -> Tensor:
    """Linear schedule, (T,) float64: 1e-4 to 0.02 at T = 1000 (Ho et al. 2020), else scaled."""
    scale = 1000 / timesteps
    return torch.linspace(1e-4 * scale, 0.02 * scale, timesteps, dtype=torch.float64).clamp(
        max=0.999
    )


_BETAS = {"cosine": cosine_betas, "linear": linear_betas}


class Schedule(nn.Module):
    """Forward process and loss weights as float64 tensors of length T.

    Attributes:
        betas, alphas_bar: (T,).
        p2_weight: (T,), (k + snr)^-gamma (Choi et al. 2022, eq. 8).
        prediction: what the network's output means, `eps` or `x0`.

    Args:
        config: the section `diffusion`.
        p2_k: k of the weight, if another than `config.p2_k`.
    """

    betas: Tensor
    alphas_bar: Tensor
    p2_weight: Tensor

    def __init__(self, config: DiffusionConfig, *, p2_k: float | None = None) -> None:
        super().__init__()
        betas = _BETAS[config.schedule](config.timesteps)
        alphas_bar = torch.cumprod(1 - betas, dim=0)
        snr = alphas_bar / (1 - alphas_bar)
        self.timesteps = config.timesteps
        self.prediction = config.prediction
        self.loss = config.loss
        self.register_buffer("betas", betas, persistent=False)
        self.register_buffer("alphas_bar", alphas_bar, persistent=False)
        weight = ((config.p2_k if p2_k is None else p2_k) + snr) ** -config.p2_gamma
        self.register_buffer("p2_weight", weight, persistent=False)

    def q_sample(self, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """x_t from x_0 (B, C, H, W) and noise eps at timesteps t (B,) (Ho et al., eq. 4)."""
        alpha_bar = self.alphas_bar[t][:, None, None, None]
        return alpha_bar.sqrt().to(x_0) * x_0 + (1 - alpha_bar).sqrt().to(x_0) * eps

    def to_x0(self, output: Tensor, x_t: Tensor, alpha_bar: float) -> Tensor:
        """The network's estimate of x_0 (B, C, H, W), from its output at x_t."""
        if self.prediction == "x0":
            return output
        return (x_t - (1 - alpha_bar) ** 0.5 * output) / alpha_bar**0.5


def per_sample_loss(
    schedule: Schedule, output: Tensor, x_0: Tensor, eps: Tensor, t: Tensor
) -> Tensor:
    """Weighted error of the network's output, (B,).

    The mean over pixels of the squared (`l2`) or absolute (`l1`) error of the predicted quantity,
    times the p2 weight of the timestep (Choi et al. 2022, eq. 7).

    Args:
        schedule: defines the predicted quantity, the norm and the weights.
        output: of the network at x_t, (B, C, H, W).
        x_0, eps: image and noise of x_t, (B, C, H, W).
        t: timesteps, (B,).
    """
    target = eps if schedule.prediction == "eps" else x_0
    norm = F.mse_loss if schedule.loss == "l2" else F.l1_loss
    error = norm(output.float(), target, reduction="none").mean(dim=(1, 2, 3))
    return error * schedule.p2_weight[t].to(error)
