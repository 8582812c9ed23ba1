"""Optimisers and learning-rate schedules by their names in a configuration."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from qhdm.config.sections import TrainConfig

#: What an optimiser keeps of each weight; `step` is a scalar, the others have the weight's shape.
_MOMENTS = {
    "adam": {"step", "exp_avg", "exp_avg_sq"},
    "adamw": {"step", "exp_avg", "exp_avg_sq"},
    "sgd": {"momentum_buffer"},
}


def make_optimizer(
    train: TrainConfig,
    classical: Sequence[nn.Parameter],
    angles: Sequence[nn.Parameter],
    *,
    fused: bool,
) -> torch.optim.Optimizer:
    """The optimiser that `train.optimizer` names.

    Args:
        train: its options.
        classical: weights with the rate `lr`.
        angles: of circuits, a group of their own with `lr_quantum`.
        fused: faster, and rounded differently from the steps of versions that were not.
    """
    rates = train.lr, train.lr if train.lr_quantum is None else train.lr_quantum
    groups = [
        {"params": list(weights), "lr": rate, "peak": rate}
        for weights, rate in zip((classical, angles), rates, strict=True)
        if weights
    ]
    decay: dict[str, Any] = {"weight_decay": train.weight_decay, "fused": fused or None}
    if train.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=train.lr, momentum=train.betas[0], **decay)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[train.optimizer]
    return kind(groups, lr=train.lr, betas=train.betas, eps=train.eps, **decay)


def set_learning_rates(optimizer: torch.optim.Optimizer, train: TrainConfig, step: int) -> None:
    """Set the learning rates of step `step` (from 0)."""
    share = rate_share(train, step)
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * share


def rate_share(train: TrainConfig, step: int) -> float:
    """The learning rate of step `step` (from 0) as a share of the highest one.

    A pure function, so that resuming needs no state. It rises linearly over `train.warmup`; then it
    stays (`constant`), or falls to 0 at `train.steps`: along half a cosine (Loshchilov & Hutter
    2017, eq. 5), a line, or a line in the `train.cooldown` alone (Hägele et al. 2024).
    """
    warmup = train.warmup if train.warmup >= 1 else round(train.warmup * train.steps)
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(train.steps - warmup, 1)
    match train.lr_schedule:
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * done))
        case "linear":
            return 1 - done
        case "trapezoid":
            return min(1.0, (train.steps - step) / max(train.cooldown * train.steps, 1))
    return 1.0


def optimizer_state(
    optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter]
) -> dict[str, Any]:
    """What an optimiser keeps, by the places of weights among `parameters`, whatever its groups."""
    places, state = _places(optimizer, parameters), optimizer.state_dict()["state"]
    return {"state": {places[number]: moments for number, moments in state.items()}}


def load_optimizer_state(
    optimizer: torch.optim.Optimizer,
    train: TrainConfig,
    state: Mapping[int, Mapping[str, Any]],
    parameters: Sequence[nn.Parameter],
) -> None:
    """Continue from a saved state; learning rates and other settings stay.

    Raises:
        ValueError: it is not one of this optimiser for weights of these shapes.
    """
    for place, moments in state.items():
        if moments.keys() != _MOMENTS[train.optimizer]:
            raise ValueError(f"the optimiser's state is not that of {train.optimizer}")
        for name, value in moments.items():
            expected = torch.Size() if name == "step" else parameters[place].shape
            if value.shape != expected:
                raise ValueError(f"{name} has shape {list(value.shape)}")
    numbered = enumerate(_places(optimizer, parameters))
    own = {number: state[place] for number, place in numbered if place in state}
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": own, "param_groups": groups})


def _places(optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter]) -> list[int]:
    """The place among `parameters` of each weight of the optimiser, in its own order."""
    places = {id(parameter): place for place, parameter in enumerate(parameters)}
    return [places[id(p)] for group in optimizer.param_groups for p in group["params"]]
