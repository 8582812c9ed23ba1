"""Training of the networks that evaluations use, and their inference."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from qhdm import console
from qhdm.data import Batches, Dataset, Images
from qhdm.diffusion.pixels import from_levels
from qhdm.metrics.classifier import ClassifierSettings, PatchClassifier
from qhdm.metrics.resnet import ResNet, ResNetSettings, destroy_shapes
from qhdm.seeds import Stream, derive_seed

_BATCH = 256  # in inference

#: A network has `features` and `head`, the linear layer above them.
Settings = ClassifierSettings | ResNetSettings
Network = PatchClassifier | ResNet


def make_network(settings: Settings, like: Dataset) -> Network:
    """The network of `settings` for images like these."""
    if isinstance(settings, ResNetSettings):
        return ResNet(settings, like)
    return PatchClassifier(settings, like)


def train_network(
    parts: Sequence[Dataset],
    settings: Settings,
    *,
    device: torch.device,
    augment: bool = True,
    progress: str | None = None,
) -> Network:
    """Train a network from scratch.

    Args:
        parts: images with the same classes, size and channels. Each has an equal share of every
            batch, so that many generated images do not outweigh a few real ones.
        settings: network and training.
        device: where to train.
        augment: flip and turn images at random.
        progress: title of the bar on stderr; None shows none.

    Returns:
        The network in evaluation mode, without gradients.

    Raises:
        DataError: a part has no images.
    """
    share, seed = settings.batch_size // len(parts), settings.seed
    streams = [
        Batches(
            part, batch_size=share, seed=derive_seed(seed, Stream.CLASSIFIER, i), augment=augment
        )
        for i, part in enumerate(parts)
    ]
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(seed, Stream.CLASSIFIER))
        network = make_network(settings, parts[0])
    network = on_device(network, device)
    steps = settings.steps_for(sum(map(len, parts)))
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=settings.lr, weight_decay=settings.weight_decay
    )
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=settings.lr, total_steps=steps, pct_start=0.2
    )
    for step in console.bar(
        range(steps), show=progress is not None, desc=progress, unit="step", leave=False
    ):
        pairs = zip(*(stream.batch(step) for stream in streams), strict=True)
        images, labels = map(np.concatenate, pairs)
        if isinstance(settings, ResNetSettings):
            rng = np.random.default_rng(derive_seed(seed, Stream.CLASSIFIER, len(parts), step))
            chosen = slice(settings.destroyed)
            images[chosen] = destroy_shapes(images[chosen], rng)
            labels[chosen] = len(parts[0].class_names)
        x, target = from_levels(images, device), torch.as_tensor(labels, device=device)
        loss = F.cross_entropy(network(x), target, label_smoothing=settings.label_smoothing)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        cycle.step()
    return network.eval().requires_grad_(False)


def on_device(network: Network, device: torch.device) -> Network:
    """Move a network; with the channels last, in which few channels are faster on CPUs."""
    return network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]


@torch.inference_mode()
def in_batches(
    function: Callable[[Tensor], Tensor], images: Images, device: torch.device
) -> np.ndarray:
    """Apply `function` to images, uint8 (N, H, W, C) with N > 0; returns float64 (N, ...)."""
    outputs = [
        function(from_levels(images[start : start + _BATCH], device)).double().cpu()
        for start in range(0, len(images), _BATCH)
    ]
    return torch.cat(outputs).numpy()


def predicted(network: Network, images: Images, device: torch.device) -> np.ndarray:
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
