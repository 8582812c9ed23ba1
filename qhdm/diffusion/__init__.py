"""The forward process, the loss, and the samplers."""

from qhdm.diffusion.generate import NULL_LABEL, Chain, generate
from qhdm.diffusion.loss import per_sample_loss
from qhdm.diffusion.schedule import Schedule
from qhdm.diffusion.trajectory import Trajectory, trace

__all__ = [
    "NULL_LABEL",
    "Chain",
    "Schedule",
    "Trajectory",
    "generate",
    "per_sample_loss",
    "trace",
]
