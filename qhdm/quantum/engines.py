"""One circuit, many engines, one function."""

from __future__ import annotations

from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from qhdm.errors import CircuitError
from qhdm.quantum import exact
from qhdm.quantum.filter import Filter


class Engine(Protocol):
    """Evaluates F filters of one circuit: x (F, B, n), w (F, P) in radians to (F, B, m)."""

    def __call__(self, filter: Filter, x: Tensor, w: Tensor) -> Tensor: ...


#: `exact` chooses the cheaper method for each component; the others prescribe it.
ENGINES: dict[str, Engine] = {
    "exact": exact.expectation,
    "exact:network": partial(exact.expectation, method="network"),
    "exact:statevector": partial(exact.expectation, method="statevector"),
}


@torch.compiler.disable  # inductor neither gains from complex tensors nor handles them all
def expectation(filter: Filter, x: Tensor, w: Tensor, *, engine: str = "exact") -> Tensor:
    """Expectation values of the filter's observables.

    Args:
        filter: the circuit, with n inputs, P weights and m observables.
        x: inputs in radians, (B, n); or (F, B, n) for F filters of the same circuit.
        w: weights in radians, (P,); or (F, P).
        engine: `exact` is analytic, and differentiable with respect to `x` and `w`;
            `exact:network` and `exact:statevector` prescribe its method.

    Returns:
        (B, m), or (F, B, m), in the floating-point type of `x` and on its device. Half-precision
        inputs are computed in float32.

    Raises:
        CircuitError: unknown engine, or shapes, types or devices that do not fit the filter.

    Example:
        >>> filter = build_filter("fqconv", qubits=12, layers=1)
        >>> x, w = torch.rand(5, 12), torch.rand(24)
        >>> expectation(filter, x, w).shape
        torch.Size([5, 12])
    """
    if engine not in ENGINES:
        raise CircuitError(f"engine {engine!r}: unknown; known are {', '.join(ENGINES)}")
    n, P = len(filter.inputs), len(filter.weights)
    banked = x.dim() == 3
    fits = (x.dim(), w.dim()) in ((2, 1), (3, 2)) and x.shape[-1] == n and w.shape[-1] == P
    if not fits or (banked and x.shape[0] != w.shape[0]):
        raise CircuitError(
            f"{filter.name}: takes inputs (B, {n}) with weights ({P},), or (F, B, {n}) with "
            f"(F, {P}); got {tuple(x.shape)} and {tuple(w.shape)}"
        )
    if not (x.is_floating_point() and w.is_floating_point()) or x.device != w.device:
        raise CircuitError(
            f"{filter.name}: inputs and weights must be real floating-point tensors on one device; "
            f"got {x.dtype} on {x.device} and {w.dtype} on {w.device}"
        )
    dtype = torch.promote_types(torch.promote_types(x.dtype, w.dtype), torch.float32)
    xs, ws = x.to(dtype), w.to(dtype)
    with torch.autocast(x.device.type, enabled=False):
        values = (
            ENGINES[engine](filter, xs, ws)
            if banked
            else ENGINES[engine](filter, xs[None], ws[None])[0]
        )
    return values.to(x.dtype)
