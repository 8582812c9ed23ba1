"""The default extractor: a small residual network that sees shapes.

A classifier of Earth-Observation patches gets far by colour and grain alone, and then calls clouds
of the right colour a highway. This one has a class more than there are: training images whose
shapes are destroyed, by shuffling their pieces or randomising their phases. Colours and, with
random phases, the grain of these are as before, so that only shapes tell them apart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from qhdm.data import Dataset

_SMALLEST_MAP = 4
#: Pieces along each side of a shuffled image. The grain between them differs, so that it is not
#: their seams that are learned.
_PIECES = (4, 8, 16)


@dataclass(frozen=True)
class ResNetSettings:
    """Network and training of the extractor.

    Attributes:
        resolution: pixels to which the stride of the first convolution reduces larger images.
        widths: channels of the residual blocks; each but the first halves the map, down to 4x4.
        dim: features per image; few, as a Fréchet distance needs more images than features.
        epochs: over the training images, if they are many, ...
        fewest_steps: ... and training steps if they are few.
        steps: instead of both, if given.
        batch_size: of training.
        destroyed: images of each batch whose shapes are destroyed, of `batch_size`.
        lr: maximum of the learning rate (one cycle).
        weight_decay: of AdamW.
        label_smoothing: of the cross entropy.
        seed: of initialisation, batches and augmentation.
    """

    resolution: int = 32
    widths: tuple[int, ...] = (24, 48, 96, 192)
    dim: int = 64
    epochs: float = 6.5
    fewest_steps: int = 120
    steps: int | None = None
    batch_size: int = 64
    destroyed: int = 8
    lr: float = 4e-3
    weight_decay: float = 0.05
    label_smoothing: float = 0.1
    seed: int = 0

    def steps_for(self, num: int) -> int:
        """Training steps with `num` images."""
        epochs = math.ceil(self.epochs * num / self.batch_size)
        return self.steps or max(epochs, self.fewest_steps)


class ResNet(nn.Module):
    """Residual blocks (He et al. 2016) and a linear layer to the features.

    Size, channels and classes (C) are those of the images `like`. There are C + 1 logits: the last
    is of images without shapes.
    """

    def __init__(self, settings: ResNetSettings, like: Dataset) -> None:
        super().__init__()
        _, _, image_size, channels = like.images.shape
        stride = max(image_size // settings.resolution, 1)
        size, width = -(-image_size // stride), settings.widths[0]
        layers: list[nn.Module] = [
            nn.Conv2d(channels, width, 2 * stride + 1, stride, padding=stride, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            _Block(width, width, stride=1),
        ]
        for wider in settings.widths[1:]:
            halved = 2 if size >= 2 * _SMALLEST_MAP else 1
            layers.append(_Block(width, wider, stride=halved))
            width, size = wider, -(-size // halved)
        self.trunk = nn.Sequential(*layers)
        self.neck = nn.Sequential(
            nn.Linear(width, settings.dim, bias=False), nn.BatchNorm1d(settings.dim)
        )
        self.head = nn.Linear(settings.dim, len(like.class_names) + 1)

    def features(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) in [-1, 1] to (B, dim)."""
        features: Tensor = self.neck(self.trunk(x).mean(dim=(2, 3)))
        return features

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) in [-1, 1] to logits (B, C + 1)."""
        logits: Tensor = self.head(self.features(x))
        return logits


class _Block(nn.Module):
    """relu(convolutions(x) + shortcut(x)); `stride` divides the map."""

    def __init__(self, inputs: int, outputs: int, *, stride: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut = (
            nn.Identity()
            if inputs == outputs and stride == 1
            else nn.Sequential(
                nn.AvgPool2d(stride, ceil_mode=True),
                nn.Conv2d(inputs, outputs, 1, bias=False),
                nn.BatchNorm2d(outputs),
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.convolutions(x) + self.shortcut(x))


def shuffled(images: np.ndarray, pieces: int, rng: np.random.Generator) -> np.ndarray:
    """Cut images (N, H, H, C) into pieces x pieces squares and shuffle those of each image.

    What is left over at the right and lower border stays.
    """
    num, size, _, channels = images.shape
    side = size // min(pieces, size)
    across = size // side
    used = images[:, : across * side, : across * side]
    squares = used.reshape(num, across, side, across, side, channels).swapaxes(2, 3)
    squares = squares.reshape(num, across**2, side, side, channels)
    orders = rng.permuted(np.tile(np.arange(across**2), (num, 1)), axis=1)
    squares = np.take_along_axis(squares, orders[:, :, None, None, None], axis=1)
    grid = squares.reshape(num, across, across, side, side, channels).swapaxes(2, 3)
    result = images.copy()
    result[:, : across * side, : across * side] = grid.reshape(used.shape)
    return result


def phase_randomised(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Replace images (N, H, W, C), uint8 or uint16, by textures with their power spectra.

    The phases of white noise are added to those of all channels (Galerne et al. 2011, random phase
    noise): the mean, and the correlations of pixels and of channels stay, edges do not.
    """
    axes = (1, 2)
    noise = np.fft.rfft2(rng.standard_normal(images.shape[:3]), axes=axes)
    phases = noise / np.abs(noise)
    phases[:, 0, 0] = 1  # the mean stays
    spectra = np.fft.rfft2(images.astype(float), axes=axes) * phases[..., None]
    textures = np.fft.irfft2(spectra, s=images.shape[1:3], axes=axes)
    return textures.round().clip(0, np.iinfo(images.dtype).max).astype(images.dtype)


def destroy_shapes(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Shuffle the pieces of half of the images (N, H, H, C), and randomise the phases of others."""
    half = len(images) // 2
    pieces = int(rng.choice(_PIECES))
    return np.concatenate(
        [shuffled(images[:half], pieces, rng), phase_randomised(images[half:], rng)]
    )
