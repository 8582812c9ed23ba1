"""The sampling loop: from labels to images, with guidance, batch by batch."""

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

#: The null label (classifier-free guidance).
NULL_LABEL = -1

#: model(x_t (B, C, H, W), t (B,), label (B,)) to the predicted quantity.
Network = Callable[[Tensor, Tensor, Tensor], Tensor]


def guided_denoiser(
    model: Network, schedule: Schedule, labels: Tensor, guidance: float
) -> Denoiser:
    """The estimate of x_0 under classifier-free guidance (Ho & Salimans 2022), clipped to [-1, 1].

    The output is u + guidance (c - u), of the conditional c and unconditional u pass of `labels`
    (B,), which run as one batch; at guidance 1 only the conditional one runs.
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


@dataclass(frozen=True)
class Evaluation:
    """One network evaluation of a batch on its way from noise to images.

    Attributes:
        part: which of all images the batch holds.
        t: the timestep.
        x_t: what the network was given, (B, C, H, W).
        state: of the sampler, after the evaluation; the last one's x is the images.
    """

    part: slice
    t: int
    x_t: Tensor
    state: State

    @property
    def x_0(self) -> Tensor:
        """The clean images that the network estimated, (B, C, H, W)."""
        assert self.state.previous is not None
        return self.state.previous


@dataclass(frozen=True, eq=False)
class Chain:
    """The sampling loop: iterates over the network evaluations that make N images.

    It computes on the device of its schedule. Image i's noise, and its shots on engines that
    sample, depend on (seed, i) alone.

    Attributes:
        model: the network, in evaluation mode.
        schedule: what it was trained on.
        options: resolved: sampler, steps, guidance, eta, seed.
        labels: class numbers, N of them.
        indices: image numbers, N of them.
        shape: (C, H, W).
        batch_size: images per network evaluation (twice that with guidance).
        late: another network for the last k evaluations, and k.
        start: where to continue; all images are then one batch.

    Raises:
        SamplingError: more steps than the model has timesteps.
    """

    model: Network
    schedule: Schedule
    options: SamplerOptions
    labels: Sequence[int]
    indices: Sequence[int]
    shape: tuple[int, int, int]
    batch_size: int = 64
    late: tuple[Network, int] | None = None
    start: State | None = None

    def __post_init__(self) -> None:
        timesteps_of(self.schedule, self.steps)

    @property
    def steps(self) -> int:
        """Network evaluations of each image."""
        return int(self.options.steps)

    def __len__(self) -> int:
        done = self.start.step if self.start else 0
        return -(-len(self.labels) // self.batch_size) * (self.steps - done)

    def __iter__(self) -> Iterator[Evaluation]:
        options, first = self.options, self.start.step if self.start else 0
        assert options.sampler != "run"
        times = timesteps_of(self.schedule, self.steps)
        for begin in range(0, len(self.labels), self.batch_size):
            part = slice(begin, begin + self.batch_size)
            indices = self.indices[part]
            labels = torch.as_tensor(self.labels[part], device=self.schedule.alphas_bar.device)
            network = self._drawn_by_image(indices, first)
            chain = states(
                self.schedule,
                guided_denoiser(network, self.schedule, labels.long(), float(options.guidance)),
                ImageNoise(options.seed, indices, self.shape),
                sampler=options.sampler,
                steps=self.steps,
                eta=options.eta,
                start=self.start,
            )
            for before, state in itertools.pairwise(chain):
                yield Evaluation(part, times[before.step], before.x, state)

    def _drawn_by_image(self, indices: Sequence[int], first: int) -> Network:
        """The network with every draw inside it (shots) by image: no batch can change an image.

        Image i's draws depend on (seed, i), the evaluation, counted from `first`, and on whether it
        is the conditional or the unconditional pass.
        """
        numbers = itertools.count(first)

        def run(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
            step = next(numbers)
            passes = range(len(t) // len(indices))
            positions = [(index, step, number) for number in passes for index in indices]
            is_late = self.late and step >= self.steps - self.late[1]
            network = self.late[0] if self.late and is_late else self.model
            with drawing(Draws(self.options.seed, Stream.IMAGE_CALL, positions)):
                return network(x, t, label)

        return run


@torch.inference_mode()
def generate(chain: Chain, *, progress: bool = False) -> np.ndarray:
    """Sample the images of a chain, uint8 (N, H, W, C); `progress` shows a bar on stderr."""
    C, H, W = chain.shape
    images = np.empty((len(chain.labels), H, W, C), dtype=np.uint8)
    for evaluation in console.bar(chain, desc="sampling", unit="step", show=progress):
        if evaluation.state.step == chain.steps:
            images[evaluation.part] = to_uint8(evaluation.state.x)
    return images


@dataclass(frozen=True, eq=False)
class Trajectory:
    """The S network evaluations of a sampler, for N images.

    Attributes:
        timesteps: (S,), of each evaluation, descending.
        x_t: (S, N, H, W, C) uint8, what the network was given; values outside [-1, 1] are clipped.
        x_0: (S, N, H, W, C) uint8, the clean image that it estimated from it.
        images: (N, H, W, C) uint8, the result.
    """

    timesteps: tuple[int, ...]
    x_t: np.ndarray
    x_0: np.ndarray
    images: np.ndarray


@torch.inference_mode()
def trace(chain: Chain) -> Trajectory:
    """Sample the images of a chain, which has them in one batch, and keep every evaluation."""
    timesteps, x_t, x_0 = [], [], []
    for evaluation in chain:
        timesteps.append(evaluation.t)
        x_t.append(to_uint8(evaluation.x_t))
        x_0.append(to_uint8(evaluation.x_0))
    images = to_uint8(evaluation.state.x)
    return Trajectory(tuple(timesteps), np.stack(x_t), np.stack(x_0), images)
