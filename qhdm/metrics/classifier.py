"""The older extractor: a small convolutional classifier, whose features see colour and grain.

The classifiers that generated images are to help (utility.py) are such networks, too.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from qhdm.data import Dataset

_SMALLEST_MAP = 4


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

    def steps_for(self, num: int) -> int:
        """Training steps with `num` images."""
        return self.steps


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
