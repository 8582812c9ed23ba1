"""Classical baselines in the place of quantum filters (`quantum.filter`).

`cosine` is what a circuit without entanglement computes, `linear` a classical map with as many
weights, `identity` no filter at all. A fourth, `frozen`, is the circuit with untrained weights.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from qhdm.errors import CircuitError
from qhdm.quantum.filter import Filter
from qhdm.quantum.layer import PATCH_VALUES, PatchTiling


class ElementwiseCosine(nn.Module):
    """cos x: <Z> of a qubit after RX(x), which is all that an unentangled filter computes."""

    def forward(self, x: Tensor) -> Tensor:
        return x.cos()


class SparseLinear(nn.Module):
    """A linear map of the twelve values of a patch, with as many weights as a circuit has.

    y_i = sum_k W_ik x_j with j = (i + k) mod 12: the matrix is filled diagonal by diagonal,
    cyclically, until P weights are placed.

    Args:
        weights: P, from 1 to 144.
        count: F maps side by side, each with its own weights.
    """

    def __init__(self, weights: int, *, count: int) -> None:
        super().__init__()
        n = PATCH_VALUES
        place = torch.arange(weights)
        self.rows: Tensor
        self.columns: Tensor
        self.register_buffer("rows", place % n, persistent=False)
        self.register_buffer("columns", (place + place // n) % n, persistent=False)
        # LeCun, as the convolutions: unit variance in, unit variance out.
        self.weight = nn.Parameter(torch.randn(count, weights) * (n / weights) ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        """(F, B, 12) to the same shape."""
        n = x.shape[-1]
        matrix = self.weight.new_zeros(len(self.weight), n, n)
        matrix[:, self.rows, self.columns] = self.weight
        return torch.einsum("fbj,fij->fbi", x, matrix.to(x.dtype))


def check_linear(circuit_filter: Filter) -> None:
    """Raise `CircuitError` unless a linear map of a patch can have as many weights as a filter."""
    weights, most = len(circuit_filter.weights), PATCH_VALUES**2
    if not 1 <= weights <= most:
        raise CircuitError(
            f"quantum.filter: linear cannot have the {weights} weights of {circuit_filter.name}, a "
            f"map of {PATCH_VALUES} values has 1 to {most}; use fewer layers or another ansatz"
        )


def baseline(
    kind: Literal["cosine", "linear", "identity"], circuit_filter: Filter, *, count: int
) -> nn.Module:
    """The module that replaces `count` filters of a circuit, (B, 3 count, H, W) to the same."""
    if kind == "cosine":
        return ElementwiseCosine()
    if kind == "identity":
        return nn.Identity()
    return PatchTiling(SparseLinear(len(circuit_filter.weights), count=count), count=count)
