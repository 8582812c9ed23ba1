"""Noise levels, and what a network is given and estimates at each: one form for every set-up.

An image x_0 with noise of level sigma is x = x_0 + sigma n, n being standard normal. In terms of
four coefficients of sigma = b / a,

    z = a x_0 + b n = a x           is the input of the network, and
    u = p x_0 + q n                 what its output estimates, so that
    x_0 = (q z - b u) / (a q - b p).

docs/training.md has the coefficients of each set-up in a table. All are float64.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from qhdm.config import Config, DiscreteConfig, EdmConfig, PublishedModelConfig
from qhdm.errors import SamplingError

#: What a network is told of the noise level: the timestep, or ln(sigma) / 4.
TimeInput = Literal["timestep", "log_sigma"]


@dataclass(frozen=True, eq=False)
class Levels:
    """Noise levels with their coefficients, float64 (N,) each; one of them has scalars.

    Attributes:
        sigma: standard deviation of the noise beside an image in [-1, 1].
        a, b: coefficients of image and noise in the network's input.
        p, q: the same in what it estimates.
        weight: of the loss.
        time: the level as the network is told it, integer or float32.
    """

    sigma: Tensor
    a: Tensor
    b: Tensor
    p: Tensor
    q: Tensor
    weight: Tensor
    time: Tensor

    def __len__(self) -> int:
        return len(self.sigma)

    def __getitem__(self, index: int | slice | list[int] | Tensor) -> Levels:
        return Levels(*(values[index] for values in vars(self).values()))

    def to(self, device: torch.device) -> Levels:
        """The same levels on another device."""
        return Levels(*(values.to(device) for values in vars(self).values()))

    def noisy(self, x_0: Tensor, n: Tensor) -> Tensor:
        """The network's input z of images and noise (N, C, H, W)."""
        return _of(self.a, x_0) * x_0 + _of(self.b, x_0) * n

    def target(self, x_0: Tensor, n: Tensor) -> Tensor:
        """What the network estimates, u, of images and noise (N, C, H, W)."""
        return _of(self.p, x_0) * x_0 + _of(self.q, x_0) * n

    def clean(self, z: Tensor, u: Tensor) -> Tensor:
        """The images x_0 (N, C, H, W) that the estimates u at the inputs z mean."""
        d = self.a * self.q - self.b * self.p
        return _of(self.q / d, z) * z - _of(self.b / d, z) * u


def joined(parts: Sequence[Levels]) -> Levels:
    """The levels of all parts, one after another."""
    return Levels(*map(torch.cat, zip(*(vars(part).values() for part in parts), strict=True)))


def _of(coefficients: Tensor, images: Tensor) -> Tensor:
    """Coefficients (N,) in the shape and type of images (N, C, H, W); scalars as they are."""
    return coefficients.to(images)[:, None, None, None] if coefficients.ndim else coefficients


class Preconditioning(ABC):
    """The noise levels of training and sampling, and the loss.

    Args:
        device: of training levels. The few of sampling are on the CPU.
        norm: of the error, `l2` or `l1`.
    """

    def __init__(self, device: torch.device, norm: Literal["l2", "l1"] = "l2") -> None:
        self.device = device
        self._distance = F.mse_loss if norm == "l2" else F.l1_loss

    @abstractmethod
    def draw(self, count: int, random: torch.Generator) -> Levels:
        """Levels of a whole batch in training, drawn on the generator's device."""

    @abstractmethod
    def sampling(self, steps: int) -> Levels:
        """Levels of `steps` evaluations, descending, on the CPU.

        Raises:
            SamplingError: so many steps cannot be made.
        """

    def error(self, output: Tensor, x_0: Tensor, n: Tensor, levels: Levels) -> Tensor:
        """Weighted mean squared (`l2`) or absolute (`l1`) error of the network's output, (B,)."""
        target = levels.target(x_0, n)
        error = self._distance(output.float(), target, reduction="none").mean(dim=(1, 2, 3))
        return error * levels.weight.to(error)


class Edm(Preconditioning):
    """EDM (Karras et al. 2022, table 1): input and target of unit variance at every level.

    In training, ln sigma is normal, stratified over the batch: each of B equal parts of the
    distribution has one image. With the paper's weight of the error of x_0, that of u weighs 1.
    """

    def __init__(self, config: EdmConfig, device: torch.device) -> None:
        super().__init__(device)
        self._config = config

    def at(self, sigma: Tensor) -> Levels:
        """The levels of sigma (N,), float64."""
        data = self._config.sigma_data
        total = (sigma.square() + data**2).sqrt()
        one = torch.ones_like(sigma)
        return Levels(
            sigma=sigma,
            a=1 / total,
            b=sigma / total,
            p=sigma / (data * total),
            q=-data / total,
            weight=one,
            time=_log_time(sigma),
        )

    def draw(self, count: int, random: torch.Generator) -> Levels:
        """Levels of a whole batch in training, ascending."""
        within = torch.rand(count, generator=random, dtype=torch.float64, device=random.device)
        quantile = (torch.arange(count, device=random.device) + within) / count
        normal = torch.special.ndtri(quantile.clamp(1e-12, 1 - 1e-12))
        return self.at((self._config.p_mean + self._config.p_std * normal).exp())

    def sampling(self, steps: int) -> Levels:
        """Levels from sigma_max to sigma_min, evenly spaced in sigma^(1/rho) (eq. 5)."""
        if steps < 1:
            raise SamplingError(f"steps: {steps} is not a number from 1 up")
        c = self._config
        high, low = c.sigma_max ** (1 / c.rho), c.sigma_min ** (1 / c.rho)
        ramp = torch.arange(steps, dtype=torch.float64) / max(steps - 1, 1)
        return self.at((high + ramp * (low - high)) ** c.rho)


class Discrete(Preconditioning):
    """The T timesteps of DDPM (Ho et al. 2020), for a network that predicts noise or image.

    Timesteps run from 0 (least noise) to T - 1; a^2 = alphas_bar[t] = prod_{s <= t} (1 - betas[s])
    and b^2 = 1 - a^2. The weight is (k + snr)^-gamma (Choi et al. 2022, eq. 8).

    Args:
        config: the section `diffusion`.
        device: of training levels.
        p2_k: k of the weight, if another than `config.p2_k`.
        time_input: what the network is told, the timestep or ln(sigma) / 4.
    """

    def __init__(
        self,
        config: DiscreteConfig,
        device: torch.device,
        *,
        p2_k: float | None = None,
        time_input: TimeInput = "timestep",
    ) -> None:
        super().__init__(device, config.loss)
        alphas_bar = torch.cumprod(1 - _BETAS[config.schedule](config.timesteps), dim=0)
        snr = alphas_bar / (1 - alphas_bar)
        sigma = snr.rsqrt()
        zero, one = torch.zeros_like(sigma), torch.ones_like(sigma)
        p, q = (zero, one) if config.prediction == "eps" else (one, zero)
        every = Levels(
            sigma=sigma,
            a=alphas_bar.sqrt(),
            b=(1 - alphas_bar).sqrt(),
            p=p,
            q=q,
            weight=((config.p2_k if p2_k is None else p2_k) + snr) ** -config.p2_gamma,
            time=torch.arange(len(sigma)) if time_input == "timestep" else _log_time(sigma),
        )
        #: Of all timesteps, on the device.
        self.levels = every.to(device)

    def draw(self, count: int, random: torch.Generator) -> Levels:
        """Levels of a whole batch in training, evenly distributed over the timesteps."""
        size = (count,)
        t = torch.randint(len(self.levels), size, generator=random, device=random.device)
        return self.levels[t]

    def sampling(self, steps: int) -> Levels:
        """Levels from timestep T - 1 down ("trailing", Lin et al. 2024, table 2)."""
        return self.levels.to(torch.device("cpu"))[self.timesteps(steps)]

    def timesteps(self, steps: int) -> list[int]:
        """The timesteps of these levels."""
        T = len(self.levels)
        if not 1 <= steps <= T:
            raise SamplingError(f"steps: {steps} is not between 1 and the model's {T} timesteps")
        return [round(T - i * T / steps) - 1 for i in range(steps)]


def make_preconditioning(config: Config, device: torch.device | str = "cpu") -> Preconditioning:
    """The preconditioning of a configuration, with training levels on a device."""
    diffusion, device = config.diffusion, torch.device(device)
    if isinstance(diffusion, EdmConfig):
        return Edm(diffusion, device)
    k = diffusion.p2_gamma if config.released.p2_k_from_gamma else diffusion.p2_k
    published = isinstance(config.model, PublishedModelConfig)
    told: TimeInput = "timestep" if published else "log_sigma"
    return Discrete(diffusion, device, p2_k=k, time_input=told)


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


def _log_time(sigma: Tensor) -> Tensor:
    """c_noise of EDM, float32."""
    return (sigma.log() / 4).float()
