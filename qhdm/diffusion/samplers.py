"""Samplers: from noise to images with a trained network.

They work on x = x_0 + sigma n. A network evaluation is `denoise(x, i) -> x_0`, the estimate of the
clean image (B, C, H, W) at the i-th noise level. All coefficients are float64 scalars.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qhdm.config import SamplerName
from qhdm.diffusion.pixels import to_device
from qhdm.seeds import Stream, derive_seed

Denoiser = Callable[[Tensor, int], Tensor]


class ImageNoise:
    """Standard normal noise, drawn on the CPU for each image from (seed, image index) alone.

    So an image depends neither on its batch nor on the device.
    """

    def __init__(self, seed: int, indices: Sequence[int], shape: tuple[int, ...]) -> None:
        self._generators = [
            torch.Generator().manual_seed(derive_seed(seed, Stream.IMAGE, index))
            for index in indices
        ]
        self._shape = shape

    def draw(self, device: torch.device) -> Tensor:
        """The next noise of every image, (B, C, H, W)."""
        noise = torch.stack([torch.randn(self._shape, generator=g) for g in self._generators])
        return to_device(noise, device)

    def skip(self, count: int) -> None:
        """Skip `count` draws."""
        for _ in range(count):
            for g in self._generators:
                torch.randn(self._shape, generator=g)


@dataclass(frozen=True)
class State:
    """State of a sampler between two evaluations: all that the rest depends on.

    Attributes:
        step: evaluations done.
        x: x_0 + sigma n, (B, C, H, W).
        previous: the last estimate of x_0; None at the start.
    """

    step: int
    x: Tensor
    previous: Tensor | None


def states(
    sigmas: Sequence[float],
    denoise: Denoiser,
    noise: ImageNoise,
    *,
    sampler: SamplerName,
    eta: float = 0.0,
    device: torch.device | str = "cpu",
    start: State | None = None,
) -> Iterator[State]:
    """The states of a sampler.

    Args:
        sigmas: noise levels of the evaluations, descending; the last step leaves no noise.
        denoise: x (B, C, H, W) and the number of its level to the estimate of x_0, usually clipped
            to [-1, 1].
        noise: where the noise of the start and of the steps comes from.
        sampler: `ddpm`, `ddim` or `dpm++`.
        eta: of DDIM: 0 is deterministic, 1 is DDPM.
        device: of the states.
        start: where to continue; by default at noise of the first level. Noisy images lie around
            the mean of images, not around zero. The mean of a pixel is small beside the noise, but
            that of n pixels of one colour must be compared with 1 / sqrt(n) of it: begun around
            zero, all images are drawn towards grey (Lin et al. 2024, arXiv 2305.08891, for DDPM).
            So the first estimate of x_0, which is the mean of a class, is added to the noise.

    Yields:
        The start, then the state after each evaluation; the last one's x is x_0.
    """
    step, draws = SAMPLERS[sampler]
    device = torch.device(device)
    noisy = draws(eta)
    if start is None:
        start = State(0, sigmas[0] * noise.draw(device), None)
    else:
        noise.skip(1 + (start.step if noisy else 0))
    yield start
    x, previous = start.x, start.previous
    path = [*sigmas, 0.0]
    for i in range(start.step, len(sigmas)):
        x_0 = denoise(x, i)
        if i == 0:
            x = x + x_0
        z = noise.draw(device) if noisy and path[i + 1] else None
        x = step(x, x_0, previous, (path[max(i - 1, 0)], path[i], path[i + 1]), eta, z)
        previous = x_0
        yield State(i + 1, x, previous)


def ddim_step(
    x: Tensor, x_0: Tensor, sigma: float, sigma_next: float, eta: float, z: Tensor | None
) -> Tensor:
    """One step of DDIM (Song et al. 2021, eq. 12), which with eta = 0 is Euler's method.

    With eta = 1 this is the ancestral step of DDPM (their section 4.1; Ho et al. 2020, eq. 7).

    Args:
        x, x_0: x_0 + sigma n and the denoised estimate, (B, C, H, W).
        sigma, sigma_next: the noise levels before and after the step.
        eta: scale of the noise that the step adds.
        z: standard normal noise, or None if it adds none.
    """
    added = eta * sigma_next * (1 - (sigma_next / sigma) ** 2) ** 0.5
    x = x_0 + max(sigma_next**2 - added**2, 0.0) ** 0.5 / sigma * (x - x_0)
    return x if z is None else x + added * z


def dpmpp_2m_step(
    x: Tensor,
    x_0: Tensor,
    previous: Tensor | None,
    sigma_last: float,
    sigma: float,
    sigma_next: float,
) -> Tensor:
    """One step of DPM-Solver++(2M) (Lu et al. 2022, algorithm 2), with lambda = -ln sigma.

    Of first order when there is no previous estimate, and at the end, where lambda is infinite.

    Args:
        x, x_0: x_0 + sigma n and the denoised estimate, (B, C, H, W).
        previous: the estimate of the step before, or None.
        sigma_last, sigma, sigma_next: noise levels of the step before, before and after this step.
    """
    if sigma_next == 0:
        return x_0
    data, ratio = x_0, sigma_next / sigma
    if previous is not None:
        r = math.log(sigma_last / sigma) / math.log(sigma / sigma_next)
        data = (1 + 1 / (2 * r)) * x_0 - 1 / (2 * r) * previous
    return ratio * x + (1 - ratio) * data


#: One step: x, the estimate of x_0, that of the step before (None at first), the noise levels of
#: the step before, before and after this step, eta, and noise or None; to the next x.
Step = Callable[
    [Tensor, Tensor, Tensor | None, tuple[float, float, float], float, Tensor | None], Tensor
]


#: The samplers by name: the step, and whether it draws noise at this eta.
SAMPLERS: dict[SamplerName, tuple[Step, Callable[[float], bool]]] = {
    "ddpm": (lambda x, x_0, _, s, eta, z: ddim_step(x, x_0, s[1], s[2], 1.0, z), lambda eta: True),
    "ddim": (lambda x, x_0, _, s, eta, z: ddim_step(x, x_0, s[1], s[2], eta, z), bool),
    "dpm++": (lambda x, x_0, last, s, eta, z: dpmpp_2m_step(x, x_0, last, *s), lambda eta: False),
}
