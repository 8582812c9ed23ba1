"""Pretrained extractors, Inception v3 and DINOv2, from the user's files of weights.

Both libraries are in the extra `extractors`. Nothing is downloaded, and nothing in the files is
executed: they are safetensors, or read with torch's restricted loader.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from qhdm.data import Images
from qhdm.errors import EvaluationError

_BATCH = 32  # these networks see 224 or 299 pixels

#: Mean and standard deviation of ImageNet's colours in [0, 1], which DINOv2 was trained with.
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Pretrained:
    """A pretrained network: a `function` of uint8 (B, 3, H, W) that returns (B, dim).

    `digest` is of the file of weights.
    """

    function: Callable[[Tensor], Tensor]
    dim: int
    digest: str
    device: torch.device

    @torch.inference_mode()
    def features(self, images: Images) -> np.ndarray:
        """uint8 (N, H, W, C), C being 1 or 3, to float64 (N, dim)."""
        features = []
        for start in range(0, len(images), _BATCH):
            pixels = torch.as_tensor(images[start : start + _BATCH]).permute(0, 3, 1, 2)
            pixels = pixels.expand(-1, 3, -1, -1).to(self.device)
            features.append(self.function(pixels).double().cpu())
        return torch.cat(features).numpy()


def load_inception(path: Path, device: torch.device) -> Pretrained:
    """The Inception v3 of the published FID, its 2048 pooled features (Heusel et al. 2017).

    The weights are `weights-inception-2015-12-05-6726825d.pth` of torch-fidelity, or the same as
    safetensors.

    Raises:
        EvaluationError: torch-fidelity is not installed, or the file is not of this network.
    """
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError:
        raise _missing("inception", "torch-fidelity") from None
    weights = _read(path)
    # The library's own loader would execute what is in a file, so it gets a clean copy.
    clean = io.BytesIO()
    torch.save(weights, clean)
    clean.seek(0)
    try:
        network = FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048"], feature_extractor_weights_path=clean
        ).to(device)
    except RuntimeError:
        raise EvaluationError(
            f"{path}: not weights of the Inception v3 of FID; torch-fidelity publishes them as "
            "weights-inception-2015-12-05-6726825d.pth"
        ) from None
    return Pretrained(lambda pixels: network(pixels)[0], 2048, _digest(path), device)


def load_dinov2(path: Path, device: torch.device) -> Pretrained:
    """DINOv2 (Oquab et al. 2024), its class token: 384, 768, 1024 or 1536 features.

    The weights are the `model.safetensors` of a model of transformers, facebook/dinov2-small say.
    Images are resized to 224 pixels.

    Raises:
        EvaluationError: transformers is not installed, or the file is not of this network.
    """
    try:
        from transformers import Dinov2Config, Dinov2Model
        from transformers.utils import logging
    except ImportError:
        raise _missing("dinov2", "transformers") from None
    weights = {name.removeprefix("dinov2."): tensor for name, tensor in _read(path).items()}
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        config = Dinov2Config(**_dinov2_sizes(weights))
        # Maps the published names of weights to those of the library's version.
        loaded: Any = Dinov2Model.from_pretrained(
            None, config=config, state_dict=weights, output_loading_info=True
        )
        network, report = loaded
        fits = not any(report.values())
    except (KeyError, RuntimeError, ValueError, IndexError, ZeroDivisionError):
        fits = False
    if not fits:
        raise EvaluationError(
            f"{path}: not weights of DINOv2 as transformers publishes them; take the "
            "model.safetensors of facebook/dinov2-small, -base, -large or -giant"
        )
    network = network.to(device).eval().requires_grad_(False)
    mean, deviation = (
        torch.tensor(colour, device=device).view(3, 1, 1) for colour in (_MEAN, _DEVIATION)
    )

    def class_token(pixels: Tensor) -> Tensor:
        x = F.interpolate(
            pixels.float() / 255, size=(224, 224), mode="bicubic", antialias=True
        ).clamp(0, 1)
        token: Tensor = network((x - mean) / deviation).pooler_output
        return token

    return Pretrained(class_token, network.config.hidden_size, _digest(path), device)


def _dinov2_sizes(weights: dict[str, Tensor]) -> dict[str, Any]:
    """The configuration of the network whose weights these are; its heads have 64 channels."""
    patches = weights["embeddings.patch_embeddings.projection.weight"]  # (hidden, 3, P, P)
    positions = weights["embeddings.position_embeddings"].shape[1] - 1
    layers = {name.split(".")[2] for name in weights if name.startswith("encoder.layer.")}
    hidden, patch = patches.shape[0], patches.shape[-1]
    return {
        "hidden_size": hidden,
        "num_hidden_layers": len(layers),
        "num_attention_heads": hidden // 64,
        "patch_size": patch,
        "image_size": round(positions**0.5) * patch,
        "use_swiglu_ffn": "encoder.layer.0.mlp.weights_in.weight" in weights,
    }


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise EvaluationError(f"--extractor-weights: {path}: no such file") from None
    except (SafetensorError, OSError) as error:
        raise EvaluationError(f"--extractor-weights: {path}: cannot be read ({error})") from None
    except Exception:  # torch raises many kinds for a damaged or hostile file
        raise EvaluationError(
            f"--extractor-weights: {path}: not weights that can be read without executing them; "
            "give a state dictionary (.pth) or safetensors"
        ) from None
    if not isinstance(weights, dict) or not all(isinstance(t, Tensor) for t in weights.values()):
        raise EvaluationError(f"--extractor-weights: {path}: not a state dictionary of weights")
    return weights


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:8]


def _missing(extractor: str, library: str) -> EvaluationError:
    return EvaluationError(
        f"--extractor {extractor}: {library} is not installed; pip install 'qhdm[extractors]'"
    )
