"""From labels to images: guidance, batches, and the samplers' loop."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from qhdm import console
from qhdm.config import SamplerName
from qhdm.diffusion.pixels import to_uint8
from qhdm.diffusion.samplers import Denoiser, ImageNoise, sample, timesteps_of
from qhdm.diffusion.schedule import Schedule
from qhdm.seeds import Draws, Stream, drawing

#: The label that stands for none (classifier-free guidance).
NULL_LABEL = -1

#: model(x_t (B, C, H, W), t (B,), label (B,)) to the predicted quantity.
Network = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class SamplerSettings:
    """How to sample: see `qhdm.config.SampleConfig`; `eta` is of DDIM."""

    sampler: SamplerName = "dpm++"
    steps: int = 50
    guidance: float = 1.0
    eta: float = 0.0


def guided_denoiser(
    model: Network, schedule: Schedule, labels: Tensor, guidance: float
) -> Denoiser:
    """The estimate of x_0 under classifier-free guidance (Ho & Salimans 2022), clipped to [-1, 1].

    The output is u + guidance (c - u), of the conditional c and unconditional u pass, which run
    as one batch; at guidance 1 only the conditional one runs.

    Args:
        model: the network.
        schedule: what it was trained on.
        labels: (B,) integers.
        guidance: scale; 1 is off.
    """
    both = torch.cat([labels, torch.full_like(labels, NULL_LABEL)])
    alphas_bar = schedule.alphas_bar.tolist()

    def denoise(x: Tensor, t: int) -> Tensor:
        if guidance == 1:
            output = model(x, torch.full_like(labels, t), labels)
        else:
            twice = model(torch.cat([x, x]), torch.full_like(both, t), both)
            conditional, unconditional = twice.chunk(2)
            output = unconditional + guidance * (conditional - unconditional)
        return schedule.to_x0(output.float(), x, alphas_bar[t]).clamp(-1, 1)

    return denoise


def drawn_by_image(
    model: Network,
    late: tuple[Network, int] | None,
    *,
    steps: int,
    seed: int,
    indices: Sequence[int],
) -> Network:
    """`model` with every draw inside it (shots) by image, so that no batch can change an image.

    Args:
        model: the network.
        late: another network for the last k evaluations, and k.
        steps: how many evaluations there will be; they are counted as they come.
        seed, indices: image i's draws depend on (seed, i), the evaluation, and on whether it is
            the conditional or the unconditional pass.
    """

    evaluations = itertools.count()

    def run(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        step = next(evaluations)
        passes = range(len(t) // len(indices))
        positions = [(index, step, number) for number in passes for index in indices]
        network = late[0] if late and step >= steps - late[1] else model
        with drawing(Draws(seed, Stream.IMAGE_CALL, positions)):
            return network(x, t, label)

    return run


@torch.inference_mode()
def generate(
    model: Network,
    schedule: Schedule,
    *,
    labels: Sequence[int],
    indices: Sequence[int],
    shape: tuple[int, int, int],
    seed: int,
    settings: SamplerSettings,
    batch_size: int = 64,
    device: torch.device,
    progress: bool = False,
    late: tuple[Network, int] | None = None,
) -> np.ndarray:
    """Sample one image per label.

    Args:
        model: the network, in evaluation mode, on `device`.
        schedule: what it was trained on, on `device`.
        labels: class numbers, N of them.
        indices: image numbers, N of them: image i's noise, and its shots on engines that sample,
            depend on (seed, i) alone.
        shape: (C, H, W).
        seed: of the noise.
        settings: sampler, steps, guidance.
        batch_size: images per network evaluation (twice that with guidance).
        device: where to compute.
        progress: show a bar on stderr.
        late: another network, on `device`, for the last k evaluations, and k.

    Returns:
        uint8 (N, H, W, C).

    Raises:
        SamplingError: more steps than the model has timesteps.
    """
    timesteps_of(schedule, settings.steps)
    images = np.empty((len(labels), *shape[1:], shape[0]), dtype=np.uint8)
    starts = range(0, len(labels), batch_size)
    with console.bar(
        total=len(starts) * settings.steps,
        desc="sampling",
        unit="step",
        disable=not progress,
    ) as bar:
        for start in starts:
            part = slice(start, start + batch_size)
            chosen = torch.as_tensor(labels[part], dtype=torch.long, device=device)
            network = drawn_by_image(
                model, late, steps=settings.steps, seed=seed, indices=indices[part]
            )
            images[part] = to_uint8(
                sample(
                    schedule,
                    guided_denoiser(network, schedule, chosen, settings.guidance),
                    ImageNoise(seed, indices[part], shape),
                    sampler=settings.sampler,
                    steps=settings.steps,
                    eta=settings.eta,
                    device=device,
                    on_step=bar.update,
                )
            )
    return images
