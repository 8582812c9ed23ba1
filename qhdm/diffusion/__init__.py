"""Noise levels, the loss, and the samplers."""

from qhdm.diffusion.generate import NULL_LABEL, Chain, Trajectory, generate, trace
from qhdm.diffusion.preconditioning import Preconditioning, make_preconditioning

__all__ = [
    "NULL_LABEL",
    "Chain",
    "Preconditioning",
    "Trajectory",
    "generate",
    "make_preconditioning",
    "trace",
]
