"""The published network, and weights of the published JAX + Flax code as runs of this package."""
