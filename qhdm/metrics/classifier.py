"""A small convolutional classifier of Earth-Observation patches, and its training.

It is trained on the user's own images, offline; its penultimate layer gives the features that
distances are computed on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qhdm import console
from qhdm.data import Batches, Dataset
from qhdm.diffusion.pixels import from_uint8
from qhdm.seeds import Stream, derive_seed

_SMALLEST_MAP = 4
_BATCH = 256  # in inference


@dataclass(frozen=True)
class ClassifierSettings:
    """Network and training of a classifier.

    Attributes:
        resolution: pixels to which the stride of the first convolution reduces larger images.
        width: channels of the first convolution; they double from map to map, up to `dim`.
        dim: features per image; few, as a Fréchet distance needs more images than features.
        steps, batch_size: of training.
        lr: maximum of the learning rate (one cycle).
        weight_decay: of AdamW.
        label_smoothing: of the cross entropy.
        seed: of initialisation, batches and augmentation.
    """

    resolution: int = 32
    width: int = 32
    dim: int = 64
    steps: int = 600
    batch_size: int = 64
    lr: float = 4e-3
    weight_decay: float = 0.05
    label_smoothing: float = 0.1
    seed: int = 0


class PatchClassifier(nn.Module):
    """Convolutions of 3x3 with batch normalisation and pooling, and a linear layer.

    The features are averages over the last map (4x4 to 7x7), non-negative.

    Args:
        settings: sizes.
        like: images with the size, channels and classes (C) to build the network for.
    """

    def __init__(self, settings: ClassifierSettings, like: Dataset) -> None:
        super().__init__()
        _, _, image_size, channels = like.images.shape
        stride = max(image_size // settings.resolution, 1)
        width, size = settings.width, -(-image_size // stride)
        layers = _convolution(channels, width, kernel=2 * stride + 1, stride=stride)
        while size >= 2 * _SMALLEST_MAP:
            wider = min(2 * width, settings.dim)
            layers += [nn.MaxPool2d(2), *_convolution(width, wider, kernel=3, stride=1)]
            width, size = wider, size // 2
        if width < settings.dim:  # few halvings: the image is small
            layers += _convolution(width, settings.dim, kernel=3, stride=1)
        self.trunk = nn.Sequential(*layers)
        self.head = nn.Linear(settings.dim, len(like.class_names))

    def features(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) in [-1, 1] to (B, dim)."""
        maps: Tensor = self.trunk(x)
        return maps.mean(dim=(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) in [-1, 1] to logits (B, C)."""
        logits: Tensor = self.head(self.features(x))
        return logits


def _convolution(inputs: int, outputs: int, *, kernel: int, stride: int) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]


def train_network(
    parts: Sequence[Dataset],
    settings: ClassifierSettings,
    *,
    device: torch.device,
    progress: str | None = None,
) -> PatchClassifier:
    """Train a classifier from scratch on images that are flipped and turned at random.

    Args:
        parts: images with the same classes, size and channels. Each has an equal share of every
            batch, so that many generated images do not outweigh a few real ones.
        settings: network and training.
        device: where to train.
        progress: title of the bar on stderr; None shows none.

    Returns:
        The network in evaluation mode, without gradients.

    Raises:
        DataError: a part has no images.
    """
    share, seed = settings.batch_size // len(parts), settings.seed
    streams = [
        Batches(part, batch_size=share, seed=derive_seed(seed, Stream.CLASSIFIER, i), augment=True)
        for i, part in enumerate(parts)
    ]
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(seed, Stream.CLASSIFIER))
        network = PatchClassifier(settings, parts[0])
    network = on_device(network, device)
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=settings.lr, weight_decay=settings.weight_decay
    )
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=settings.lr, total_steps=settings.steps, pct_start=0.2
    )
    steps, shown = range(settings.steps), progress is not None
    for step in console.bar(steps, show=shown, desc=progress, unit="step", leave=False):
        images, labels = zip(*(stream.batch(step) for stream in streams), strict=True)
        x = from_uint8(np.concatenate(images), device)
        target = torch.as_tensor(np.concatenate(labels), device=device)
        loss = F.cross_entropy(network(x), target, label_smoothing=settings.label_smoothing)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        cycle.step()
    return network.eval().requires_grad_(False)


def on_device(network: PatchClassifier, device: torch.device) -> PatchClassifier:
    """Move a network; with the channels last, in which few channels are faster on CPUs."""
    return network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]


@torch.inference_mode()
def in_batches(
    function: Callable[[Tensor], Tensor], images: np.ndarray, device: torch.device
) -> np.ndarray:
    """Apply `function` to images, uint8 (N, H, W, C) with N > 0; returns float64 (N, ...)."""
    outputs = [
        function(from_uint8(images[start : start + _BATCH], device)).double().cpu()
        for start in range(0, len(images), _BATCH)
    ]
    return torch.cat(outputs).numpy()


def predicted(network: PatchClassifier, images: np.ndarray, device: torch.device) -> np.ndarray:
    """The most likely class of each image (N, H, W, C), as (N,) int64."""
    classes: np.ndarray = in_batches(network, images, device).argmax(axis=1)
    return classes


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """Eight hexadecimal digits that tell sets of weights apart."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(f"{name} {tuple(weights[name].shape)} ".encode())
        digest.update(weights[name].detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:8]
