"""The sampling loop: from labels to images, with guidance, batch by batch."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import torch
from torch import Tensor

from qhdm import console
from qhdm.config import SamplerOptions
from qhdm.diffusion.pixels import to_levels, to_uint8
from qhdm.diffusion.preconditioning import Levels, Preconditioning
from qhdm.diffusion.samplers import ImageNoise, State, states
from qhdm.seeds import Draws, Stream, drawing

#: The null label (classifier-free guidance).
NULL_LABEL = -1

#: model(z (B, C, H, W), time (B,), label (B,)) to the estimate of u (B, C, H, W).
Network = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Evaluation:
    """One network evaluation of a batch on its way from noise to images.

    Attributes:
        part: which of all images the batch holds.
        sigma: the noise level.
        x: x_0 + sigma n, (B, C, H, W).
        state: of the sampler, after the evaluation; the last one's x is the images.
    """

    part: slice
    sigma: float
    x: Tensor
    state: State

    @property
    def x_t(self) -> Tensor:
        """x in the units of DDPM, x / sqrt(1 + sigma^2), (B, C, H, W)."""
        return self.x / (1 + self.sigma**2) ** 0.5

    @property
    def x_0(self) -> Tensor:
        """The clean images that the network estimated, (B, C, H, W)."""
        assert self.state.previous is not None
        return self.state.previous


@dataclass(frozen=True, eq=False)
class Chain:
    """The sampling loop: iterates over the network evaluations that make N images.

    It computes on the device of its preconditioning. Image i's noise, and its shots on engines that
    sample, depend on (seed, i) alone.

    Attributes:
        networks: the network, in evaluation mode, and the weaker one that guides it, if any.
        preconditioning: what it was trained with.
        options: resolved: sampler, steps, guidance, eta, seed.
        labels: class numbers, N of them.
        indices: image numbers, N of them.
        shape: (C, H, W).
        batch_size: images per network evaluation (twice that with classifier-free guidance).
        late: other networks for the last k evaluations, and k.
        start: where to continue; all images are then one batch.
        dtype: of the images, `uint8` or `uint16`.

    Raises:
        SamplingError: more steps than the model has timesteps.
    """

    networks: tuple[Network, ...]
    preconditioning: Preconditioning
    options: SamplerOptions
    labels: Sequence[int]
    indices: Sequence[int]
    shape: tuple[int, int, int]
    batch_size: int = 64
    late: tuple[tuple[Network, ...], int] | None = None
    start: State | None = None
    dtype: str = "uint8"

    def __post_init__(self) -> None:
        _ = self.levels  # refuses too many steps

    @property
    def steps(self) -> int:
        """Network evaluations of each image."""
        return int(self.options.steps)

    @cached_property
    def levels(self) -> Levels:
        """The noise level of each evaluation."""
        return self.preconditioning.sampling(self.steps)

    def __len__(self) -> int:
        done = self.start.step if self.start else 0
        return -(-len(self.labels) // self.batch_size) * (self.steps - done)

    def __iter__(self) -> Iterator[Evaluation]:
        options, sigmas = self.options, self.levels.sigma.tolist()
        assert options.sampler != "run"
        for begin in range(0, len(self.labels), self.batch_size):
            part = slice(begin, begin + self.batch_size)
            indices = self.indices[part]
            labels = torch.as_tensor(self.labels[part], device=self.preconditioning.device).long()
            chain = states(
                sigmas,
                partial(self.denoise, labels=labels, indices=indices),
                ImageNoise(options.seed, indices, self.shape),
                sampler=options.sampler,
                eta=options.eta,
                device=self.preconditioning.device,
                start=self.start,
            )
            for before, state in itertools.pairwise(chain):
                yield Evaluation(part, sigmas[before.step], before.x, state)

    def denoise(self, x: Tensor, i: int, *, labels: Tensor, indices: Sequence[int]) -> Tensor:
        """The estimate of x_0 at evaluation i, guided and clipped to [-1, 1], (B, C, H, W).

        The guided output is g + guidance (c - g), of the network's output c and that of its guide:
        the network without the label (Ho & Salimans 2022), both passes as one batch, or a weaker
        network with it (Karras et al. 2024, arXiv 2406.02507).

        Args:
            x: x_0 + sigma n, (B, C, H, W).
            i: the evaluation.
            labels: (B,).
            indices: image numbers, B of them.
        """
        level, guidance = self.levels[i], float(self.options.guidance)
        late = self.late and i >= self.steps - self.late[1]
        model, *guides = self.late[0] if self.late and late else self.networks

        def run(network: Network, z: Tensor, label: Tensor, passes: Sequence[int]) -> Tensor:
            """The output; draws within the network (shots) depend on image, i and pass alone."""
            positions = [(index, i, number) for number in passes for index in indices]
            time = level.time.to(z.device).expand(len(z))
            with drawing(Draws(self.options.seed, Stream.IMAGE_CALL, positions)):
                return network(z, time, label).float()

        z = level.a * x
        if not self.options.guided_at(float(level.sigma)):
            output = run(model, z, labels, [0])
        elif guides:
            weak = run(guides[0], z, labels, [1])
            output = weak + guidance * (run(model, z, labels, [0]) - weak)
        else:
            both = torch.cat([labels, torch.full_like(labels, NULL_LABEL)])
            strong, weak = run(model, torch.cat([z, z]), both, [0, 1]).chunk(2)
            output = weak + guidance * (strong - weak)
        return level.clean(z, output).clamp(-1, 1)


@torch.inference_mode()
def generate(chain: Chain, *, progress: bool = False) -> np.ndarray:
    """Sample the images of a chain, levels (N, H, W, C); `progress` shows a bar on stderr."""
    C, H, W = chain.shape
    images = np.empty((len(chain.labels), H, W, C), dtype=chain.dtype)
    for evaluation in console.bar(chain, desc="sampling", unit="step", show=progress):
        if evaluation.state.step == chain.steps:
            images[evaluation.part] = to_levels(evaluation.state.x, chain.dtype)
    return images


@dataclass(frozen=True, eq=False)
class Trajectory:
    """The S network evaluations of a sampler, for N images.

    Attributes:
        sigmas: (S,), the noise level of each evaluation, descending.
        x_t: (S, N, H, W, C) uint8, the noisy image in the units of DDPM,
            (x_0 + sigma n) / sqrt(1 + sigma^2); values outside [-1, 1] are clipped.
        x_0: (S, N, H, W, C) uint8, the clean image that the network estimated from it.
        images: (N, H, W, C) uint8, the result.
    """

    sigmas: tuple[float, ...]
    x_t: np.ndarray
    x_0: np.ndarray
    images: np.ndarray


@torch.inference_mode()
def trace(chain: Chain) -> Trajectory:
    """Sample the images of a chain, which has them in one batch, and keep every evaluation."""
    sigmas, x_t, x_0 = [], [], []
    for evaluation in chain:
        sigmas.append(evaluation.sigma)
        x_t.append(to_uint8(evaluation.x_t))
        x_0.append(to_uint8(evaluation.x_0))
    images = to_uint8(evaluation.state.x)
    return Trajectory(tuple(sigmas), np.stack(x_t), np.stack(x_0), images)
