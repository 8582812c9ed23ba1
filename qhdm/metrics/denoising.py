"""The denoising loss of held-out images, with noise that is common to all networks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from qhdm import console
from qhdm.config import Config
from qhdm.data import Dataset, Images
from qhdm.diffusion import Preconditioning
from qhdm.diffusion.generate import Network
from qhdm.diffusion.pixels import from_levels, to_device
from qhdm.diffusion.preconditioning import Levels, joined
from qhdm.metrics.records import Metric
from qhdm.models import DiffusionNetwork, frozen
from qhdm.seeds import Draws, Stream, derive_seed, drawing

#: Noise levels of each image.
LEVELS = 4
#: Of noise, levels and the choice of images. Metrics are defined by it.
SEED = 0


@dataclass(frozen=True, eq=False)
class NoisyBatch:
    """Network inputs: images with noise.

    Attributes:
        images: which of the N images they are, (B,).
        numbers: which of each image's K noise levels, (B,).
        x_0, n: images and noise, (B, C, H, W).
        label: (B,).
    """

    preconditioning: Preconditioning
    seed: int
    images: np.ndarray
    numbers: np.ndarray
    x_0: Tensor
    n: Tensor
    levels: Levels
    label: Tensor

    def output(self, network: Network, label: Tensor | None = None) -> Tensor:
        """The network's output, (B, C, H, W), also with another label (B,)."""
        positions = zip(self.numbers.tolist(), self.images.tolist(), strict=True)
        with drawing(Draws(self.seed, Stream.HELD_OUT_CALL, list(positions))):
            z = self.levels.noisy(self.x_0, self.n)
            return network(z, self.levels.time, self.label if label is None else label)

    def error(self, output: Tensor) -> np.ndarray:
        """The loss of each image, (B,) float64, as in training."""
        error = self.preconditioning.error(output, self.x_0, self.n, self.levels)
        return error.double().cpu().numpy()


@dataclass(frozen=True, eq=False)
class NoisyImages:
    """Images to denoise, each at K noise levels: the same task for every network.

    Noise and shots of image i depend on (seed, level number, i) alone, noise levels on (seed, level
    number, N): these are drawn for all images as training draws them for a batch.

    Attributes:
        preconditioning: of the networks; on its device, they are evaluated.
        images: uint8 (N, H, W, C).
        labels: (N,).
        levels: K.
    """

    preconditioning: Preconditioning
    images: Images
    labels: np.ndarray
    seed: int = SEED
    levels: int = LEVELS

    def batches(self, size: int = 64, *, progress: str | None = None) -> Iterator[NoisyBatch]:
        """All images at their first level, then at their second, and so on, `size` at a time.

        `progress` is the title of a bar on stderr; None shows none.
        """
        N, device = len(self.images), self.preconditioning.device
        seeds = [derive_seed(self.seed, Stream.HELD_OUT, number) for number in range(self.levels)]
        levels = joined([self._drawn(seed) for seed in seeds]).to(device)
        starts = range(0, N * self.levels, size)
        for start in console.bar(
            starts, show=progress is not None, desc=progress, unit="batch", leave=False
        ):
            numbers, images = np.divmod(np.arange(start, min(start + size, N * self.levels)), N)
            x_0 = from_levels(self.images[images], device)
            n = torch.stack(
                [
                    torch.randn(x_0.shape[1:], generator=_generator(seeds[number], image))
                    for number, image in zip(numbers, images, strict=True)
                ]
            )
            yield NoisyBatch(
                self.preconditioning,
                self.seed,
                images,
                numbers,
                x_0,
                to_device(n, device),
                levels[start : start + size],
                to_device(torch.as_tensor(self.labels[images]).long(), device),
            )

    def _drawn(self, seed: int) -> Levels:
        """A level for each image, shuffled: they may ascend, and images be sorted by class."""
        random = torch.Generator().manual_seed(seed)
        levels = self.preconditioning.draw(len(self.images), random)
        order = torch.randperm(len(self.images), generator=random)
        return levels[to_device(order, levels.sigma.device)]


def _generator(seed: int, image: int) -> torch.Generator:
    """Of the noise of an image."""
    return torch.Generator().manual_seed(derive_seed(seed, Stream.IMAGE, image))


@torch.inference_mode()
def denoising_losses(
    network: DiffusionNetwork,
    preconditioning: Preconditioning,
    images: Images,
    labels: np.ndarray,
    *,
    seed: int = SEED,
    levels: int = LEVELS,
    batch_size: int = 64,
    progress: bool = False,
) -> np.ndarray:
    """The denoising loss of each image, (N,) float64: the mean over its noise levels.

    It is the loss of training without learned uncertainty, with every label shown. Losses of two
    networks of one `diffusion` section are paired image by image.

    Args:
        network: on the device of its preconditioning.
        preconditioning: what it was trained with.
        images, labels, seed, levels: as in `NoisyImages`.
        batch_size: images of a network evaluation, which changes losses by rounding alone.
        progress: show a bar on stderr.
    """
    noisy = NoisyImages(preconditioning, images, labels, seed, levels)
    title = "denoising held-out images" if progress else None
    total = np.zeros(len(images))
    with frozen(network):
        for batch in noisy.batches(batch_size, progress=title):
            np.add.at(total, batch.images, batch.error(batch.output(network)))
    return total / levels


def held_out(test: Dataset, num: int) -> Dataset:
    """At most `num` of the test images, always the same."""
    rng = np.random.default_rng(derive_seed(SEED, Stream.SUBSET, 5))
    chosen = np.zeros(len(test), dtype=bool)
    chosen[rng.permutation(len(test))[:num]] = True
    return test.where(chosen)


def denoising_loss(
    network: DiffusionNetwork,
    config: Config,
    preconditioning: Preconditioning,
    test: Dataset,
    *,
    progress: bool = False,
) -> Metric:
    """The mean denoising loss over test images, with its standard error over images."""
    losses = denoising_losses(network, preconditioning, test.images, test.labels, progress=progress)
    num = len(losses)
    return Metric(
        name="denoising loss",
        label=f"denoising loss[{loss_name(config)}, {LEVELS} noise levels, N={num}, test]",
        split="test",
        num=num,
        value=float(losses.mean()),
        error=float(losses.std(ddof=1) / num**0.5) if num > 1 else None,
        better="lower",
    )


def loss_name(config: Config) -> str:
    """What the network estimates, and a digest of all that the loss depends on: `edm 0123abcd`."""
    asked = asdict(config.diffusion)
    for name in ("sigma_min", "sigma_max", "rho"):  # of sampling
        asked.pop(name, None)
    asked["p2_k_from_gamma"] = config.released.p2_k_from_gamma
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:8]
    return f"{config.diffusion.prediction} {digest}"
