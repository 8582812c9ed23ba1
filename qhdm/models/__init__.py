"""The U-Net and its quantum hybrids."""

from qhdm.models.build import build_model, frozen
from qhdm.models.unet import UNet

__all__ = ["UNet", "build_model", "frozen"]
