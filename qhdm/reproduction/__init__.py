"""Weights of the published JAX + Flax code as runs of this package."""

from qhdm.reproduction.convert import Imported, import_checkpoint

__all__ = ["Imported", "import_checkpoint"]
