"""Networks whose weights do not change for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from qhdm.models.blocks import WeightStandardizedConv2d
from qhdm.quantum.connector import FilterConnector


@contextmanager
def frozen(*models: nn.Module) -> Iterator[None]:
    """Within, whatever follows from weights alone is computed once, not in every evaluation.

    For sampling: what is computed carries no gradient to the weights, and weights must not change.
    """
    kinds = (FilterConnector, WeightStandardizedConv2d)
    parts = [part for model in models for part in model.modules() if isinstance(part, kinds)]
    try:
        for part in parts:
            part.freeze()
        yield
    finally:
        for part in parts:
            part.thaw()
