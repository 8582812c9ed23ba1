"""Features of images, by a network trained on the real ones or a pretrained network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Union

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from qhdm.data import Dataset, cache_folder
from qhdm.errors import EvaluationError
from qhdm.files import atomic_path
from qhdm.metrics.distances import check_counts
from qhdm.metrics.records import ExtractorRecord
from qhdm.metrics.settings import EvaluationSettings
from qhdm.metrics.trained import SETTINGS, TrainedClassifier, load_classifier, trained_classifier

if TYPE_CHECKING:
    from qhdm.metrics.pretrained import Pretrained


#: Has `dim`, the features per image, `digest`, of its weights, and `features`.
Network = Union[TrainedClassifier, "Pretrained"]


class Extractor:
    """A network that extracts features, and its record."""

    def __init__(self, name: str, network: Network) -> None:
        self.network = network
        self.features = network.features
        self.record = ExtractorRecord(name=name, digest=network.digest, dim=network.dim)

    def reference(self, dataset: Dataset) -> np.ndarray:
        """Features of real images, (N, dim); kept in the cache folder by digests of both."""
        name = f"{dataset.digest()}-{self.record.name}-{self.record.digest}.safetensors"
        path = cache_folder() / "features" / name
        try:
            features: np.ndarray = load_file(path)["features"]
        except (FileNotFoundError, SafetensorError, KeyError):  # absent or damaged: computed
            features = self.features(dataset.images)
            with atomic_path(path) as temporary:
                save_file({"features": features}, temporary)
        return features


def make_extractor(
    settings: EvaluationSettings,
    real: Dataset,
    *,
    num: int,
    more: str,
    device: torch.device,
    progress: bool = False,
) -> Extractor:
    """The extractor that `settings` names, if there are enough images for its features.

    Args:
        settings: `extractor`, `extractor_weights` and `metrics`.
        real: the real images; a `resnet` or `classifier` is trained on their training split.
        num: how many generated images there will be.
        more: how to have more of them, with {} for a number.
        device: where to compute.
        progress: show a bar on stderr while a classifier is trained.

    Raises:
        EvaluationError: the weights cannot be used, a library is absent, or there are too few
            images for distances.
    """
    training, test = real.split("train"), real.split("test")

    def check(dim: int) -> None:
        if "distances" in settings.metrics:
            others = [group for group in settings.metrics if group != "distances"]
            counts = {"generated": num, "test": len(test), "training": len(training)}
            check_counts(dim, **counts, more=more, others=others)

    weights = Path(settings.extractor_weights) if settings.extractor_weights else None
    network: Network
    if settings.extractor in ("resnet", "classifier"):
        if weights is None:
            own = SETTINGS[settings.extractor]()
            check(own.dim)  # before it is trained
            network = trained_classifier(training, own, device=device, progress=progress)
        else:
            network = load_classifier(weights, training, settings.extractor, device=device)
    else:
        from qhdm.metrics.pretrained import load_dinov2, load_inception

        if real.bands is not None:
            raise EvaluationError(
                f"extractor: {settings.extractor} takes pictures, not bands; use resnet or "
                "classifier, which are trained on the bands"
            )
        assert weights is not None  # of EvaluationSettings
        load = load_inception if settings.extractor == "inception" else load_dinov2
        network = load(weights, device)
    check(network.dim)
    return Extractor(settings.extractor, network)
