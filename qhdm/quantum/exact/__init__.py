"""The exact engine: analytic, differentiable values by block networks and state vectors."""
