"""The forward process, the loss, and the samplers."""

from qhdm.diffusion.generate import NULL_LABEL, SamplerSettings, generate
from qhdm.diffusion.loss import per_sample_loss
from qhdm.diffusion.schedule import Schedule

__all__ = ["NULL_LABEL", "SamplerSettings", "Schedule", "generate", "per_sample_loss"]
