"""A network as CUDA graphs: one launch for all kernels of a forward pass, one for a backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def graphed(network: nn.Module, *example: Tensor) -> Callable[..., Any]:
    """`network` captured, filters included, for inputs of the shapes and types of `example`.

    The parameters stay where they are, and may change in place between calls. A result lasts until
    the next call.
    """
    on, dtype = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    # Casts of parameters that autocast keeps would be those of the capture.
    with torch.autocast("cuda", dtype=dtype, enabled=on, cache_enabled=False):
        captured = torch.cuda.make_graphed_callables(
            _Captured(network), example, allow_unused_input=True
        )
    assert callable(captured)
    return captured


class _Captured(nn.Module):
    """A network under another name: the capture replaces the `forward` of its module."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Tensor) -> Tensor:
        output: Tensor = self.network(*inputs)
        return output
