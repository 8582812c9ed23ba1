"""From labels to images: guidance, batches, and the samplers' loop."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from qhdm import console
from qhdm.config import SamplerOptions
from qhdm.diffusion.pixels import to_uint8
from qhdm.diffusion.samplers import Denoiser, ImageNoise, State, states, timesteps_of
from qhdm.diffusion.schedule import Schedule
from qhdm.seeds import Draws, Stream, drawing

#: The label that stands for none (classifier-free guidance).
NULL_LABEL = -1

#: model(x_t (B, C, H, W), t (B,), label (B,)) to the predicted quantity.
Network = Callable[[Tensor, Tensor, Tensor], Tensor]


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


@dataclass(frozen=True)
class Evaluation:
    """One network evaluation of a batch on its way from noise to images.

    Attributes:
        part: which of all images the batch holds.
        t: the timestep.
        x_t: what the network was given, (B, C, H, W).
        x_0: the clean images that it estimated from it.
        state: of the sampler, after the evaluation; the last one's x is the images.
    """

    part: slice
    t: int
    x_t: Tensor
    x_0: Tensor
    state: State


def chain(
    model: Network,
    schedule: Schedule,
    options: SamplerOptions,
    *,
    labels: Sequence[int],
    indices: Sequence[int],
    shape: tuple[int, int, int],
    batch_size: int,
    device: torch.device,
    late: tuple[Network, int] | None = None,
    start: State | None = None,
) -> Iterator[Evaluation]:
    """The one sampling loop: all network evaluations that make the images, batch by batch.

    Args:
        model: the network, in evaluation mode, on `device`.
        schedule: what it was trained on, on `device`.
        options: resolved: sampler, steps, guidance, eta, seed.
        labels: class numbers, N of them.
        indices: image numbers, N of them: image i's noise, and its shots on engines that sample,
            depend on (seed, i) alone.
        shape: (C, H, W).
        batch_size: images per network evaluation (twice that with guidance).
        device: where to compute.
        late: another network, on `device`, for the last k evaluations, and k.
        start: where to go on; all images are then one batch.

    Raises:
        SamplingError: more steps than the model has timesteps.
    """
    assert options.sampler != "run"
    steps, guidance = int(options.steps), float(options.guidance)
    for first in range(0, len(labels), batch_size):
        part = slice(first, first + batch_size)
        chosen = torch.as_tensor(labels[part], dtype=torch.long, device=device)
        network = drawn_by_image(model, late, steps=steps, seed=options.seed, indices=indices[part])
        estimate = guided_denoiser(network, schedule, chosen, guidance)
        seen: list[tuple[int, Tensor, Tensor]] = []

        def denoise(
            x: Tensor,
            t: int,
            estimate: Denoiser = estimate,
            seen: list[tuple[int, Tensor, Tensor]] = seen,
        ) -> Tensor:
            seen[:] = [(t, x, estimate(x, t))]
            return seen[0][2]

        for state in states(
            schedule,
            denoise,
            ImageNoise(options.seed, indices[part], shape),
            sampler=options.sampler,
            steps=steps,
            eta=options.eta,
            device=device,
            start=start,
        ):
            yield Evaluation(part, *seen[0], state)


@torch.inference_mode()
def generate(
    model: Network,
    schedule: Schedule,
    options: SamplerOptions,
    *,
    labels: Sequence[int],
    indices: Sequence[int],
    shape: tuple[int, int, int],
    batch_size: int = 64,
    device: torch.device,
    progress: bool = False,
    late: tuple[Network, int] | None = None,
) -> np.ndarray:
    """Sample one image per label.

    Args:
        model, schedule, options, labels, indices, shape, batch_size, device, late: see `chain`.
        progress: show a bar on stderr.

    Returns:
        uint8 (N, H, W, C).

    Raises:
        SamplingError: more steps than the model has timesteps.
    """
    steps = int(options.steps)
    timesteps_of(schedule, steps)
    images = np.empty((len(labels), *shape[1:], shape[0]), dtype=np.uint8)
    total = -(-len(labels) // batch_size) * steps
    with console.bar(total=total, desc="sampling", unit="step", show=progress) as bar:
        for evaluation in chain(
            model,
            schedule,
            options,
            labels=labels,
            indices=indices,
            shape=shape,
            batch_size=batch_size,
            device=device,
            late=late,
        ):
            if evaluation.state.step == steps:
                images[evaluation.part] = to_uint8(evaluation.state.x)
            bar.update()
    return images
