"""The exponential moving average of the weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from qhdm.config import EmaConfig

TensorList = tuple[Tensor, ...] | list[Tensor]


def ema_decay(step: int, config: EmaConfig) -> float:
    """Decay of the average after step number `step`, from 0: 0 up to `after`, then rising.

    min(decay, 1 - (1 + n / inv_gamma)^-power) with n = step - after - 1, as the published code.
    """
    n = step - config.after - 1
    if n <= 0:
        return 0.0
    return min(config.decay, 1 - (1 + n / config.inv_gamma) ** -config.power)


class Ema:
    """An averaged copy of a model.

    Attributes:
        model: the copy, in evaluation mode.
    """

    def __init__(self, model: nn.Module, config: EmaConfig) -> None:
        self._config = config
        self._decay = 0.0
        self._averaged = AveragedModel(model, multi_avg_fn=self._average)
        self.model: nn.Module = self._averaged.module.eval()

    def update(self, model: nn.Module, step: int) -> None:
        """Take in the weights of `model` after `step` steps, if it is time."""
        # While the decay is 0 the average is the model itself: short runs have one, too.
        if step % self._config.every and step > self._config.after:
            return
        self._decay = ema_decay(step - 1, self._config)
        self._averaged.update_parameters(model)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from a saved average."""
        self.model.load_state_dict(state)
        self._averaged.n_averaged.fill_(1)

    @torch.no_grad()
    def _average(self, averaged: TensorList, new: TensorList, _updates: Tensor | int) -> None:
        torch._foreach_lerp_(averaged, new, 1 - self._decay)
