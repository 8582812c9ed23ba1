"""A small convolutional classifier of Earth-Observation patches: network, training and files.

It is trained on the user's own images, offline, and kept in the cache folder or in a file; its
penultimate layer gives the features that distances are computed on.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from qhdm import console
from qhdm.data import Batches, Dataset, cache_folder
from qhdm.diffusion.pixels import from_uint8
from qhdm.errors import EvaluationError
from qhdm.files import atomic_path
from qhdm.seeds import Stream, derive_seed

_SMALLEST_MAP = 4
_BATCH = 256  # in inference
_KEY = "qhdm.classifier"


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

    The features are averages over the last map (4x4 to 7x7), non-negative. Size, channels and
    classes (C) are those of the images `like`.
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


@dataclass(frozen=True)
class _Header:
    """The metadata of a file: the network, and the images it was trained on."""

    settings: ClassifierSettings
    class_names: tuple[str, ...]
    channels: int
    image_size: int
    data: str


@dataclass(frozen=True)
class TrainedClassifier:
    """A classifier of the classes of a data set.

    Attributes:
        network: in evaluation mode.
        digest: of the weights.
        path: its file.
    """

    network: PatchClassifier
    digest: str
    path: Path
    device: torch.device

    @property
    def dim(self) -> int:
        """Features per image."""
        return self.network.head.in_features

    def features(self, images: np.ndarray) -> np.ndarray:
        """uint8 (N, H, W, C) to float64 (N, dim)."""
        return in_batches(self.network.features, images, self.device)

    def predict(self, images: np.ndarray) -> np.ndarray:
        """uint8 (N, H, W, C) to class numbers (N,)."""
        return predicted(self.network, images, self.device)


def classifier_path(training: Dataset, settings: ClassifierSettings) -> Path:
    """The file in the cache folder for the classifier of these images and settings."""
    request = {"data": training.digest(), **dataclasses.asdict(settings)}
    key = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:16]
    return cache_folder() / "classifiers" / f"{training.name}-{key}.safetensors"


def trained_classifier(
    training: Dataset,
    settings: ClassifierSettings,
    *,
    device: torch.device,
    path: Path | None = None,
    progress: bool = False,
) -> TrainedClassifier:
    """Read the classifier of these images and settings from its file, or train and save it.

    The file is in the cache folder by default; `progress` shows a bar on stderr while training.

    Raises:
        DataError: there are no images.
        EvaluationError: the file exists, but cannot be read or is of another data set.
    """
    path = path or classifier_path(training, settings)
    if not path.exists():
        title = f"training a classifier on {len(training)} images" if progress else None
        network = train_network([training], settings, device=device, progress=title)
        _save(network, training, settings, path)
    return load_classifier(path, training, device=device)


def load_classifier(path: Path, images: Dataset, *, device: torch.device) -> TrainedClassifier:
    """Read a classifier of the classes, size and channels of `images`.

    Raises:
        EvaluationError: the file is missing, damaged, or of other classes or another size.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = TypeAdapter(_Header).validate_json((file.metadata() or {}).get(_KEY, ""))
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise EvaluationError(
            f"{path}: no such file; `qhdm train-classifier --out` makes one"
        ) from None
    except (SafetensorError, OSError) as error:
        raise EvaluationError(
            f"{path}: damaged, or not safetensors ({error}); train another with "
            "`qhdm train-classifier --out` (a file of the cache folder may be deleted)"
        ) from None
    except ValidationError:
        raise EvaluationError(f"{path}: not a classifier of `qhdm train-classifier`") from None
    for what, given, expected in (
        ("classes", ", ".join(header.class_names), ", ".join(images.class_names)),
        ("image size", header.image_size, images.images.shape[1]),
        ("channels", header.channels, images.images.shape[3]),
    ):
        if given != expected:
            raise EvaluationError(
                f"{path}: its {what} {given} differ from those of {images.name}: {expected}; "
                "train another with `qhdm train-classifier`"
            )
    network = PatchClassifier(header.settings, images)
    try:
        network.load_state_dict(weights)
    except RuntimeError:
        raise EvaluationError(f"{path}: its weights do not fit its settings; train again") from None
    network = on_device(network.eval().requires_grad_(False), device)
    return TrainedClassifier(network, weights_digest(weights), path, device)


def _save(
    network: PatchClassifier, training: Dataset, settings: ClassifierSettings, path: Path
) -> None:
    header = _Header(
        settings=settings,
        class_names=training.class_names,
        channels=training.images.shape[3],
        image_size=training.images.shape[1],
        data=training.digest(),
    )
    weights = {name: tensor.cpu().contiguous() for name, tensor in network.state_dict().items()}
    with atomic_path(path) as temporary:
        save_file(weights, temporary, metadata={_KEY: json.dumps(dataclasses.asdict(header))})
