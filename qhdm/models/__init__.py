"""The U-Net and its quantum hybrids."""

from qhdm.models.build import build_model
from qhdm.models.network import DiffusionNetwork, frozen
from qhdm.models.unet import UNet

__all__ = ["DiffusionNetwork", "UNet", "build_model", "frozen"]
