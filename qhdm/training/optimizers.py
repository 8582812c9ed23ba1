"""Optimisers and learning-rate schedules by their names in a configuration."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
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


def make_optimizer(train: TrainConfig, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimiser that `train.optimizer` names, over `parameters`."""
    if train.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, lr=train.lr, momentum=train.betas[0], weight_decay=train.weight_decay
        )
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[train.optimizer]
    return kind(
        parameters,
        lr=train.lr,
        betas=train.betas,
        eps=train.eps,
        weight_decay=train.weight_decay,
    )


def learning_rate(train: TrainConfig, step: int) -> float:
    """The learning rate of step `step` (from 0): a pure function, so that resuming needs no state.

    It rises linearly over `train.warmup` steps; then it stays (`constant`), or falls to 0 at
    `train.steps`: along half a cosine (Loshchilov & Hutter 2017, eq. 5) or a line.
    """
    if step < train.warmup:
        return train.lr * (step + 1) / train.warmup
    done = (step - train.warmup) / max(train.steps - train.warmup, 1)
    match train.lr_schedule:
        case "cosine":
            return train.lr * 0.5 * (1 + math.cos(math.pi * done))
        case "linear":
            return train.lr * (1 - done)
    return train.lr


def check_state(
    train: TrainConfig, state: Mapping[int, Mapping[str, Any]], parameters: Sequence[nn.Parameter]
) -> None:
    """Check that a state is one of the optimiser, for weights of these shapes.

    Raises:
        ValueError: it is not.
    """
    for number, moments in state.items():
        if moments.keys() != _MOMENTS[train.optimizer]:
            raise ValueError(f"the optimiser's state is not that of {train.optimizer}")
        for name, value in moments.items():
            expected = torch.Size() if name == "step" else parameters[number].shape
            if value.shape != expected:
                raise ValueError(f"{name} has shape {list(value.shape)}")
