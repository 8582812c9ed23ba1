"""A network as CUDA graphs: one launch for all kernels of a forward pass, one for a backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Graphed:
    """`network` on CUDA, filters included, captured for the shapes and types of its first inputs.

    Its parameters stay where they are, and may change in place between calls. A result lasts until
    the next call.
    """

    def __init__(self, network: Callable[..., Tensor]) -> None:
        self._network = network
        self._captured: Any = None

    def __call__(self, *inputs: Tensor) -> Tensor:
        if self._captured is None:
            self._captured = self._capture(tuple(value.clone() for value in inputs))
        output: Tensor = self._captured(*inputs)
        return output

    def _capture(self, inputs: tuple[Tensor, ...]) -> Any:
        on, dtype = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
        # Casts of parameters that autocast keeps would be those of the capture.
        with torch.autocast("cuda", dtype=dtype, enabled=on, cache_enabled=False):
            return torch.cuda.make_graphed_callables(
                _Inner(self._network), inputs, allow_unused_input=True
            )


class _Inner(nn.Module):
    """The network under another name: a capture replaces the `forward` of its module."""

    def __init__(self, network: Callable[..., Tensor]) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Tensor) -> Tensor:
        output: Tensor = self.network(*inputs)
        return output
