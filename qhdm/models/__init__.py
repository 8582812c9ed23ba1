"""Networks of diffusion models, classical and hybrid."""

from qhdm.models.build import build_model
from qhdm.models.network import DiffusionNetwork, frozen
from qhdm.models.unet import UNet

__all__ = ["DiffusionNetwork", "UNet", "build_model", "frozen"]
