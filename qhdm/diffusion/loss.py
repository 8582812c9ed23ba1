"""The training loss."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from qhdm.diffusion.schedule import Schedule


def per_sample_loss(
    schedule: Schedule, output: Tensor, x_0: Tensor, eps: Tensor, t: Tensor
) -> Tensor:
    """Weighted error of the network's output, (B,).

    The mean over pixels of the squared (`l2`) or absolute (`l1`) error of the predicted quantity,
    times the p2 weight of the timestep (Choi et al. 2022, eq. 7).

    Args:
        schedule: gives the predicted quantity, the norm and the weights.
        output: of the network, (B, C, H, W).
        x_0, eps: what x_t was made of, (B, C, H, W).
        t: timesteps, (B,).
    """
    target = eps if schedule.prediction == "eps" else x_0
    norm = F.mse_loss if schedule.loss == "l2" else F.l1_loss
    error = norm(output.float(), target, reduction="none").mean(dim=(1, 2, 3))
    return error * schedule.p2_weight[t].to(error)
