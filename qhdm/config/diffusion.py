"""The section `diffusion`: the noise levels, what the network estimates at them, and the loss."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from qhdm.config.fields import STRICT, AboveZero
from qhdm.schema import one_line_errors


@one_line_errors
@dataclass(frozen=True, config=STRICT)
class EdmConfig:
    """Continuous noise levels (Karras et al. 2022, "EDM"), for images in [-1, 1].

    Attributes:
        prediction: `edm`.
        p_mean, p_std: ln sigma is normal in training.
        sigma_data: standard deviation of the images.
        sigma_min, sigma_max: first and last noise level of sampling.
        rho: its levels are evenly spaced in sigma^(1/rho).

    Example:
        >>> qhdm.EdmConfig(p_mean=-1.0).sigma_max
        80.0
    """

    prediction: Literal["edm"] = "edm"
    p_mean: float = -0.8
    p_std: AboveZero = 1.6
    sigma_data: AboveZero = 0.5
    sigma_min: AboveZero = 0.01
    sigma_max: AboveZero = 80.0
    rho: Annotated[float, Field(ge=1, le=100)] = 7.0

    @model_validator(mode="after")
    def _check(self) -> EdmConfig:
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min: must be less than sigma_max ({self.sigma_max:g})")
        return self


@one_line_errors
@dataclass(frozen=True, config=STRICT)
class DiscreteConfig:
    """The forward process and the loss of DDPM: T noise levels.

    Attributes:
        timesteps: T.
        schedule: `cosine` (Nichol & Dhariwal 2021) or `linear` (Ho et al. 2020).
        prediction: what the network predicts, the noise `eps` or the clean image `x0`.
        loss: `l2` or `l1`.
        p2_gamma, p2_k: weight (k + snr)^-gamma per timestep (Choi et al. 2022); gamma 0 is plain.

    Example:
        >>> qhdm.DiscreteConfig(timesteps=200, schedule="linear").prediction
        'eps'
    """

    timesteps: Annotated[int, Field(ge=2, le=100_000)] = 1000
    schedule: Literal["cosine", "linear"] = "cosine"
    prediction: Literal["eps", "x0"] = "eps"
    loss: Literal["l2", "l1"] = "l2"
    p2_gamma: Annotated[float, Field(ge=0)] = 1.0
    p2_k: AboveZero = 1.0
