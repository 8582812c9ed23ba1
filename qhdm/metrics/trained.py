"""Trained networks of evaluations, and their files: in the cache folder, or where the user says."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from qhdm.data import Dataset, Images, cache_folder
from qhdm.errors import EvaluationError
from qhdm.files import atomic_path
from qhdm.metrics.classifier import ClassifierSettings
from qhdm.metrics.resnet import ResNetSettings
from qhdm.metrics.settings import OwnExtractor
from qhdm.metrics.training import (
    Network,
    Settings,
    in_batches,
    make_network,
    on_device,
    predicted,
    train_network,
    weights_digest,
)

SETTINGS: dict[OwnExtractor, type[Settings]] = {
    "resnet": ResNetSettings,
    "classifier": ClassifierSettings,
}


@dataclass(frozen=True)
class TrainedClassifier:
    """A network that was trained to classify the images of a data set.

    Attributes:
        name: of the kind of network.
        network: in evaluation mode.
        digest: of the weights.
        path: its file.
    """

    name: OwnExtractor
    network: Network
    digest: str
    path: Path
    device: torch.device

    @property
    def dim(self) -> int:
        """Features per image."""
        return self.network.head.in_features

    def features(self, images: Images) -> np.ndarray:
        """Levels (N, H, W, C) to float64 (N, dim)."""
        return in_batches(self.network.features, images, self.device)

    def predict(self, images: Images) -> np.ndarray:
        """Levels (N, H, W, C) to class numbers (N,); of C classes, a ResNet's class C is none."""
        return predicted(self.network, images, self.device)


def name_of(settings: Settings) -> OwnExtractor:
    """The name of the extractor with these settings."""
    return next(name for name, kind in SETTINGS.items() if isinstance(settings, kind))


def classifier_path(training: Dataset, settings: Settings) -> Path:
    """The file in the cache folder for the network of these images and settings."""
    request = {"data": training.digest(), **dataclasses.asdict(settings)}
    key = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:16]
    return cache_folder() / "classifiers" / f"{training.name}-{key}.safetensors"


def trained_classifier(
    training: Dataset,
    settings: Settings,
    *,
    device: torch.device,
    path: Path | None = None,
    progress: bool = False,
) -> TrainedClassifier:
    """Read the network of these images and settings from its file, or train and save it.

    The file is in the cache folder by default; `progress` shows a bar on stderr while training.

    Raises:
        DataError: there are no images.
        EvaluationError: the file exists, but cannot be read or is of another data set.
    """
    path = path or classifier_path(training, settings)
    name = name_of(settings)
    if not path.exists():
        title = f"training a {name} on {len(training)} images" if progress else None
        network = train_network([training], settings, device=device, progress=title)
        _save(network, training, settings, path)
    return load_classifier(path, training, name, device=device)


@dataclass(frozen=True)
class _Header:
    """The metadata of a file: the network, and the images it was trained on."""

    settings: dict[str, Any]
    class_names: tuple[str, ...]
    channels: int
    image_size: int
    data: str


def load_classifier(
    path: Path, images: Dataset, name: OwnExtractor, *, device: torch.device
) -> TrainedClassifier:
    """Read a network of the classes, size and channels of `images`.

    Raises:
        EvaluationError: the file is missing, damaged, or of another kind of network, other classes
            or another size.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise EvaluationError(
            f"{path}: no such file; `qhdm train-classifier --out` makes one"
        ) from None
    except (SafetensorError, OSError) as error:
        raise EvaluationError(
            f"{path}: damaged, or not safetensors ({error}); train another with "
            "`qhdm train-classifier --out` (a file of the cache folder may be deleted)"
        ) from None
    for other in SETTINGS:
        if _key(other) in metadata and other != name:
            raise EvaluationError(f"{path}: is a {other}, not a {name}; use the extractor {other}")
    try:
        header = TypeAdapter(_Header).validate_json(metadata.get(_key(name), ""))
        settings = TypeAdapter(SETTINGS[name]).validate_python(header.settings)
    except ValidationError:
        raise EvaluationError(f"{path}: not a network of `qhdm train-classifier`") from None
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
    network = make_network(settings, images)
    try:
        network.load_state_dict(weights)
    except RuntimeError:
        raise EvaluationError(f"{path}: its weights do not fit its settings; train again") from None
    network = on_device(network.eval().requires_grad_(False), device)
    return TrainedClassifier(name, network, weights_digest(weights), path, device)


def _save(network: Network, training: Dataset, settings: Settings, path: Path) -> None:
    header = _Header(
        settings=dataclasses.asdict(settings),
        class_names=training.class_names,
        channels=training.images.shape[3],
        image_size=training.images.shape[1],
        data=training.digest(),
    )
    weights = {name: tensor.cpu().contiguous() for name, tensor in network.state_dict().items()}
    metadata = {_key(name_of(settings)): json.dumps(dataclasses.asdict(header))}
    with atomic_path(path) as temporary:
        save_file(weights, temporary, metadata=metadata)


def _key(name: OwnExtractor) -> str:
    """The key of the metadata, which tells kinds of networks apart."""
    return f"qhdm.{name}"
