"""The forward process, the loss, and the samplers."""

from qhdm.diffusion.generate import NULL_LABEL, Chain, Trajectory, generate, trace
from qhdm.diffusion.schedule import Schedule, per_sample_loss

__all__ = [
    "NULL_LABEL",
    "Chain",
    "Schedule",
    "Trajectory",
    "generate",
    "per_sample_loss",
    "trace",
]
