"""Images to features: by the user's own classifier, or a pretrained network."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from qhdm.data import Dataset, cache_folder
from qhdm.files import atomic_path
from qhdm.metrics.classifier import ClassifierSettings
from qhdm.metrics.records import ExtractorRecord
from qhdm.metrics.settings import EvaluationSettings
from qhdm.metrics.trained import load_classifier, trained_classifier


class Network(Protocol):
    """What extracts features."""

    @property
    def dim(self) -> int:
        """Features per image."""

    @property
    def digest(self) -> str:
        """Of the weights."""

    def features(self, images: np.ndarray) -> np.ndarray:
        """uint8 (N, H, W, C) to float64 (N, dim)."""


class Extractor:
    """A network that extracts features, and its name.

    Args:
        name: `classifier`, `inception` or `dinov2`.
        network: does the work.
    """

    def __init__(self, name: str, network: Network) -> None:
        self.network = network
        self.record = ExtractorRecord(name=name, digest=network.digest, dim=network.dim)

    def features(self, images: np.ndarray) -> np.ndarray:
        """uint8 (N, H, W, C) to float64 (N, dim)."""
        return self.network.features(images)

    def reference(self, dataset: Dataset) -> np.ndarray:
        """Features of real images, (N, dim); kept in the cache folder by digests of both."""
        name = f"{dataset.digest()}-{self.record.name}-{self.record.digest}.safetensors"
        path = cache_folder() / "features" / name
        try:
            found: np.ndarray = load_file(path)["features"]
        except (FileNotFoundError, SafetensorError, KeyError):  # absent, or damaged: made anew
            found = self.features(dataset.images)
            with atomic_path(path) as temporary:
                save_file({"features": found}, temporary)
        return found


def make_extractor(
    settings: EvaluationSettings,
    training: Dataset,
    *,
    device: torch.device,
    progress: bool = False,
) -> Extractor:
    """The extractor that `settings` names.

    Args:
        settings: `extractor` and `extractor_weights`.
        training: the training split, for the classifier.
        device: where to compute.
        progress: show a bar on stderr while a classifier is trained.

    Raises:
        EvaluationError: the weights cannot be used, or a library is absent.
    """
    weights = Path(settings.extractor_weights) if settings.extractor_weights else None
    if settings.extractor == "classifier":
        if weights:
            return Extractor("classifier", load_classifier(weights, training, device=device))
        trained = trained_classifier(
            training, ClassifierSettings(), device=device, progress=progress
        )
        return Extractor("classifier", trained)
    from qhdm.metrics.pretrained import load_dinov2, load_inception

    assert weights is not None  # of EvaluationSettings
    load = load_inception if settings.extractor == "inception" else load_dinov2
    return Extractor(settings.extractor, load(weights, device))
