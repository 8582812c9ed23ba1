"""Moving averages of the weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from qhdm.config import EmaConfig, PowerEmaConfig
from qhdm.runs.profiles import decay

TensorList = tuple[Tensor, ...] | list[Tensor]


def make_ema(model: nn.Module, config: PowerEmaConfig | EmaConfig) -> PowerEma | Ema:
    """The averages of `model` that a configuration describes."""
    return PowerEma(model, config) if isinstance(config, PowerEmaConfig) else Ema(model, config)


class PowerEma:
    """Averaged copies of a model, one for each length, by power-function profiles.

    Karras et al. 2024 (EDM2, arXiv 2312.02696), section 3. The weights of each
    `config.update_every`-th step stand for those of the steps since the one before; averages are
    the model itself until the first.

    Attributes:
        model: the copy of the first length, in evaluation mode.
        models: all, by the names of their files (`PowerEmaConfig.names`).
    """

    def __init__(self, model: nn.Module, config: PowerEmaConfig) -> None:
        self._config = config
        self.models = {name: copy.deepcopy(model).eval() for name in config.names}
        self.model: nn.Module = self.models["ema"]

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in the weights of `model` after `step` steps, if it is time."""
        if self._config.averaged_to(step) != step:
            return
        every = self._config.update_every
        before = (step - 1) // every * every
        new: TensorList = list(model.parameters())
        for std, averaged in zip(self._config.std, self.models.values(), strict=True):
            old: TensorList = list(averaged.parameters())
            torch._foreach_lerp_(old, new, 1 - decay(std, before, step))

    def load_states(self, states: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Continue from saved averages."""
        for name, averaged in self.models.items():
            averaged.load_state_dict(states[name])


def ema_decay(step: int, config: EmaConfig) -> float:
    """Decay of the average after step number `step`, from 0: 0 up to `after`, then rising.

    min(decay, 1 - (1 + n / inv_gamma)^-power) with n = step - after - 1, as the published code.
    """
    n = step - config.after - 1
    if n <= 0:
        return 0.0
    return min(config.decay, 1 - (1 + n / config.inv_gamma) ** -config.power)


class Ema:
    """An averaged copy of a model, by the decay of the published code.

    Attributes:
        model: the copy, in evaluation mode.
        models: the same, by the name of its file.
    """

    def __init__(self, model: nn.Module, config: EmaConfig) -> None:
        self._config = config
        self._begun = False
        self.model: nn.Module = copy.deepcopy(model).eval()
        self.models = {"ema": self.model}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in the weights of `model` after `step` steps, if it is time."""
        # While the decay is 0 the average is the model itself: short runs have one, too.
        if step % self._config.every and step > self._config.after:
            return
        old: TensorList = list(self.model.parameters())
        new: TensorList = list(model.parameters())
        torch._foreach_lerp_(old, new, 1 - ema_decay(step - 1, self._config) * self._begun)
        self._begun = True

    def load_states(self, states: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Continue from a saved average."""
        self.model.load_state_dict(states["ema"])
        self._begun = True
