"""Work on a batch piece by piece, so that what is large within a function stays small."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

#: Bytes of an intermediate array that a core's cache holds, others beside it.
CACHE = 2**20

Function = Callable[..., Tensor]


def chunked(function: Function, row_bytes: int, x: Tensor, *parameters: Tensor) -> Tensor:
    """function(x, *parameters), computed for a few rows of `x` at a time and not kept.

    On the CPU the intermediate arrays of a piece stay in the cache; none are saved for the backward
    pass, which computes them again. Elsewhere, and under torch.compile, this is a plain call.

    Args:
        function: of tensors alone, row by row of `x`: no row's result may depend on another row.
        row_bytes: of the largest intermediate array, for one row.
        x: (B, ...).
        parameters: shared by all rows.

    Returns:
        (B, ...), differentiable once with respect to `x` and `parameters`.
    """
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return function(x, *parameters)
    return _InPieces.apply(function, max(CACHE // row_bytes, 1), x, *parameters)


class _InPieces(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, function: Function, width: int, x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.function, ctx.width = function, width
        ctx.autocast = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")
        ctx.save_for_backward(x, *parameters)
        return torch.cat([function(piece, *parameters) for piece in x.split(width)])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, *saved = ctx.saved_tensors
        parameters = [parameter.detach().requires_grad_() for parameter in saved]
        by_x: list[Tensor] = []
        totals: list[Tensor] = []
        enabled, dtype = ctx.autocast
        for rows, upstream in zip(x.split(ctx.width), gradient.split(ctx.width), strict=True):
            piece = rows.detach().requires_grad_()
            with torch.enable_grad(), torch.autocast("cpu", enabled=enabled, dtype=dtype):
                value = ctx.function(piece, *parameters)
            by_piece, *found = torch.autograd.grad(value, [piece, *parameters], upstream)
            by_x.append(by_piece)
            totals = [t + f for t, f in zip(totals, found, strict=True)] if totals else found
        return None, None, torch.cat(by_x), *totals
