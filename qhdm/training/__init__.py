"""Training: the loop, the averaged weights, the run directory."""

from qhdm.training.loop import train

__all__ = ["train"]
