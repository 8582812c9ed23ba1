"""Training: the loop, the averaged weights, the run directory."""

from qhdm.training.loop import resolve_device, train
from qhdm.training.run import Run

__all__ = ["Run", "resolve_device", "train"]
