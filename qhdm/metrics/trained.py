"""Classifiers that last: trained once for a data set, kept in the cache folder or in a file."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from qhdm.data import Dataset, cache_folder
from qhdm.errors import EvaluationError
from qhdm.files import atomic_path
from qhdm.metrics.classifier import (
    ClassifierSettings,
    PatchClassifier,
    in_batches,
    predicted,
    train_network,
    weights_digest,
)

_KEY = "qhdm.classifier"


@dataclass(frozen=True)
class _Header:
    """What a file says of its network, and of the images it was trained on."""

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
        class_names: what its outputs count.
        path: the file it lies in.
    """

    network: PatchClassifier
    digest: str
    class_names: tuple[str, ...]
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
    """Where the classifier of these images and settings is kept."""
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
    """The classifier of these images and settings: read where it exists, else trained and kept.

    Args:
        training: the training split.
        settings: network and training.
        device: where to compute.
        path: the file; by default in the cache folder, under a name that stands for the request.
        progress: show a bar on stderr while training.

    Raises:
        DataError: there are no images.
        EvaluationError: the file is there, but cannot be read or is of another data set.
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
    size, channels = images.images.shape[1], images.images.shape[3]
    for what, found, expected in (
        ("classes", ", ".join(header.class_names), ", ".join(images.class_names)),
        ("image size", header.image_size, size),
        ("channels", header.channels, channels),
    ):
        if found != expected:
            raise EvaluationError(
                f"{path}: its {what} {found} differ from those of {images.name}: {expected}; "
                "train another with `qhdm train-classifier`"
            )
    network = PatchClassifier(
        header.settings,
        channels=channels,
        image_size=size,
        num_classes=len(images.class_names),
    )
    try:
        network.load_state_dict(weights)
    except RuntimeError:
        raise EvaluationError(f"{path}: its weights do not fit its settings; train again") from None
    network = network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return TrainedClassifier(
        network=network.eval().requires_grad_(False),
        digest=weights_digest(weights),
        class_names=images.class_names,
        path=path,
        device=device,
    )


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
