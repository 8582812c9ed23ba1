"""Functions of a batch computed a few rows at a time, to keep intermediate arrays small."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

#: Bytes of an intermediate array that a core's cache holds, others beside it.
CACHE = 2**20

Function = Callable[..., Tensor]


def chunked(function: Function, row_bytes: int, x: Tensor, *parameters: Tensor) -> Tensor:
    """function(x, *parameters), computed for a few rows of `x` at a time.

    On the CPU the intermediate arrays of a chunk stay in the cache; none are saved for the backward
    pass, which recomputes them. Elsewhere, and under torch.compile, this is a plain call.

    Args:
        function: takes only tensors; no row of its result may depend on another row of `x`.
        row_bytes: of the largest intermediate array, for one row.
        x: (B, ...).
        parameters: shared by all rows.

    Returns:
        (B, ...), differentiable once with respect to `x` and `parameters`.
    """
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return function(x, *parameters)
    return _Chunked.apply(function, max(CACHE // row_bytes, 1), x, *parameters)


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, function: Function, width: int, x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.function, ctx.width = function, width
        ctx.autocast = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")
        ctx.save_for_backward(x, *parameters)
        return torch.cat([function(rows, *parameters) for rows in x.split(width)])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, *saved = ctx.saved_tensors
        parameters = [parameter.detach().requires_grad_() for parameter in saved]
        by_x: list[Tensor] = []
        totals: list[Tensor] = []
        enabled, dtype = ctx.autocast
        for rows, upstream in zip(x.split(ctx.width), gradient.split(ctx.width), strict=True):
            chunk = rows.detach().requires_grad_()
            with torch.enable_grad(), torch.autocast("cpu", enabled=enabled, dtype=dtype):
                value = ctx.function(chunk, *parameters)
            by_rows, *by_own = torch.autograd.grad(value, [chunk, *parameters], upstream)
            by_x.append(by_rows)
            totals = [t + b for t, b in zip(totals, by_own, strict=True)] if totals else by_own
        return None, None, torch.cat(by_x), *totals
