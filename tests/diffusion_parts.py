"""Noise levels, sampling options and a network for tests of diffusion."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from qhdm.config import (
    DiscreteConfig,
    EdmConfig,
    SamplerOptions,
)
from qhdm.diffusion import Preconditioning
from qhdm.diffusion.preconditioning import Discrete, Edm

SHAPE = (3, 8, 8)
CPU = torch.device("cpu")


def discrete(**changes: object) -> Discrete:
    return Discrete(DiscreteConfig(**changes), CPU)


def edm(**changes: object) -> Edm:
    return Edm(EdmConfig(**changes), CPU)


KINDS: dict[str, Callable[[], Preconditioning]] = {
    "edm": edm,
    "eps": lambda: discrete(),
    "x0": lambda: discrete(prediction="x0", schedule="linear"),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def options(**changes: object) -> SamplerOptions:
    plain = {"sampler": "dpm++", "steps": 6, "guidance": 1.0, "guidance_interval": None}
    return SamplerOptions(**{**plain, "guide": None, **changes})


def network(z: torch.Tensor, time: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """A smooth stand-in for a trained network: any function of its inputs will do here."""
    time = (time.double() / 1000).to(z)[:, None, None, None]
    return torch.tanh(0.7 * z + 0.3 * time) + 0.05 * label[:, None, None, None].to(z)
