"""A network as CUDA graphs: one launch for all kernels of a forward pass, one for a backward."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def graphed(network: nn.Module, *example: Tensor) -> Callable[..., Tensor]:
    """`network` captured, filters included, for inputs of the shapes and types of `example`.

    The parameters stay where they are, and may change in place between calls. A result lasts until
    the next call.
    """
    autocast = {
        "dtype": torch.get_autocast_dtype("cuda"),
        "enabled": torch.is_autocast_enabled("cuda"),
    }
    with torch.autocast("cuda", cache_enabled=False, **autocast):
        captured: Callable[..., Tensor] = torch.cuda.make_graphed_callables(
            _Captured(network), example, allow_unused_input=True
        )
    return captured


class _Captured(nn.Module):
    """A network under another name: the capture replaces the `forward` of its module."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Tensor) -> Tensor:
        output: Tensor = self.network(*inputs)
        return output
