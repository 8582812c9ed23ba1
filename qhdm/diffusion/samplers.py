"""Samplers: from noise to images with a trained network.

A network evaluation is `denoise(x, t) -> x_0`, the estimate of the clean image (B, C, H, W) at
timestep t. All coefficients are float64 scalars.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qhdm.config import SamplerName
from qhdm.diffusion.pixels import to_device
from qhdm.diffusion.schedule import Schedule
from qhdm.errors import SamplingError
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
        x: x_t, (B, C, H, W).
        previous: the last estimate of x_0; None at the start.
    """

    step: int
    x: Tensor
    previous: Tensor | None


def timesteps_of(schedule: Schedule, steps: int) -> list[int]:
    """`steps` timesteps in descending order, from T - 1 ("trailing", Lin et al. 2024, table 2)."""
    T = schedule.timesteps
    if not 1 <= steps <= T:
        raise SamplingError(f"steps: {steps} is not between 1 and the model's {T} timesteps")
    return [round(T - i * T / steps) - 1 for i in range(steps)]


def states(
    schedule: Schedule,
    denoise: Denoiser,
    noise: ImageNoise,
    *,
    sampler: SamplerName,
    steps: int,
    eta: float = 0.0,
    start: State | None = None,
) -> Iterator[State]:
    """The states of a sampler, on the device of its schedule.

    Args:
        schedule: the forward process that the network was trained on.
        denoise: x_t (B, C, H, W) and t to the estimate of x_0, usually clipped to [-1, 1].
        noise: where x_T and the samplers' noise come from.
        sampler: `ddpm`, `ddim` or `dpm++`.
        steps: network evaluations.
        eta: of DDIM: 0 is deterministic, 1 is DDPM.
        start: where to continue; by default at the noise x_T.

    Yields:
        The start, then the state after each evaluation; the last one's x is x_0.

    Raises:
        SamplingError: more steps than the model has timesteps.
    """
    times = timesteps_of(schedule, steps)
    step, draws = SAMPLERS[sampler]
    # alphas_bar on the way down, ending at 1: the last step leaves no noise.
    bars = [*schedule.alphas_bar[times].tolist(), 1.0]
    device = schedule.alphas_bar.device
    noisy = draws(eta)
    if start is None:
        start = State(0, noise.draw(device), None)
    else:
        noise.skip(1 + (start.step if noisy else 0))
    yield start
    x, previous = start.x, start.previous
    for i in range(start.step, steps):
        x_0 = denoise(x, times[i])
        z = noise.draw(device) if noisy and bars[i + 1] < 1 else None
        x = step(x, x_0, previous, (bars[max(i - 1, 0)], bars[i], bars[i + 1]), eta, z)
        previous = x_0
        yield State(i + 1, x, previous)


def ddim_step(
    x: Tensor, x_0: Tensor, bar: float, bar_next: float, eta: float, z: Tensor | None
) -> Tensor:
    """One step of DDIM (Song et al. 2021, eq. 12), from alphas_bar `bar` to `bar_next`.

    With eta = 1 this is the ancestral step of DDPM (their section 4.1; Ho et al. 2020, eq. 7).

    Args:
        x, x_0: x_t and its denoised estimate, (B, C, H, W).
        bar, bar_next: alphas_bar before and after the step.
        eta: scale of the noise.
        z: standard normal noise, or None if the step adds none.
    """
    sigma = eta * ((1 - bar_next) / (1 - bar) * (1 - bar / bar_next)) ** 0.5
    eps = (x - bar**0.5 * x_0) / (1 - bar) ** 0.5
    x = bar_next**0.5 * x_0 + max(1 - bar_next - sigma**2, 0.0) ** 0.5 * eps
    return x if z is None else x + sigma * z


def dpmpp_2m_step(
    x: Tensor, x_0: Tensor, previous: Tensor | None, bar_last: float, bar: float, bar_next: float
) -> Tensor:
    """One step of DPM-Solver++(2M) (Lu et al. 2022, algorithm 2).

    Of first order when there is no previous estimate, and at the end, where lambda is infinite.

    Args:
        x, x_0: x_t and its denoised estimate, (B, C, H, W).
        previous: the estimate of the step before, or None.
        bar_last, bar, bar_next: alphas_bar of the step before, before and after this step.
    """
    if bar_next >= 1:
        return x_0
    alpha_next, sigma, sigma_next = bar_next**0.5, (1 - bar) ** 0.5, (1 - bar_next) ** 0.5
    h = _lambda(bar_next) - _lambda(bar)
    data = x_0
    if previous is not None:
        r = (_lambda(bar) - _lambda(bar_last)) / h
        data = (1 + 1 / (2 * r)) * x_0 - 1 / (2 * r) * previous
    shrink = (bar / bar_next) ** 0.5 * sigma_next / sigma  # e^-h
    return sigma_next / sigma * x + alpha_next * (1 - shrink) * data


def _lambda(bar: float) -> float:
    """Half the log of the signal-to-noise ratio."""
    return float(0.5 * torch.logit(torch.tensor(bar, dtype=torch.float64)))


#: One step: x_t, the estimate of x_0, that of the step before (None at first), alphas_bar of the
#: step before, before and after this step, eta, and noise or None; to the next x.
Step = Callable[
    [Tensor, Tensor, Tensor | None, tuple[float, float, float], float, Tensor | None], Tensor
]


#: The samplers by name: the step, and whether it draws noise at this eta.
SAMPLERS: dict[SamplerName, tuple[Step, Callable[[float], bool]]] = {
    "ddpm": (lambda x, x_0, _, b, eta, z: ddim_step(x, x_0, b[1], b[2], 1.0, z), lambda eta: True),
    "ddim": (lambda x, x_0, _, b, eta, z: ddim_step(x, x_0, b[1], b[2], eta, z), bool),
    "dpm++": (lambda x, x_0, last, b, eta, z: dpmpp_2m_step(x, x_0, last, *b), lambda eta: False),
}
