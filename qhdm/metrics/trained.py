"""Classifiers that are trained once for a data set and kept, in the cache folder or in a file."""

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
    on_device,
    predicted,
    train_network,
    weights_digest,
)

_KEY = "qhdm.classifier"


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

    Args:
        training: the training split.
        settings: network and training.
        device: where to compute.
        path: the file; by default in the cache folder.
        progress: show a bar on stderr while training.

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
