"""What stands where quantum filters would, to find out what they are good for.

Each control answers one question: are trained circuits better than random ones (`frozen`), than
what a circuit without entanglement computes (`cosine`), than a classical map with as many weights
(`linear`), than nothing at all (`identity`)?
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from qhdm.errors import CircuitError
from qhdm.quantum.engines import Engine
from qhdm.quantum.filter import Filter
from qhdm.quantum.layer import PatchTiling, QuantumConv2d


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
        count: F maps side by side, each with weights of its own.
    """

    def __init__(self, weights: int, *, count: int) -> None:
        super().__init__()
        n = PatchTiling.VALUES
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


def check_linear(filter: Filter) -> None:
    """Raise `CircuitError` unless a linear map of a patch can have as many weights as a filter."""
    weights, most = len(filter.weights), PatchTiling.VALUES**2
    if not 1 <= weights <= most:
        raise CircuitError(
            f"quantum.filter: linear cannot have the {weights} weights of {filter.name}, a map of "
            f"{PatchTiling.VALUES} values has 1 to {most}; use fewer layers or another ansatz"
        )


def filter_layer(
    kind: Literal["circuit", "frozen", "cosine", "linear", "identity"],
    filter: Filter,
    *,
    count: int,
    engine: Engine,
) -> PatchTiling:
    """The layer of `quantum.filter: kind` (`qhdm.config.QuantumConfig`)."""
    if kind == "cosine":
        return PatchTiling(ElementwiseCosine(), count=count)
    if kind == "linear":
        return PatchTiling(SparseLinear(len(filter.weights), count=count), count=count)
    if kind == "identity":
        return PatchTiling(nn.Identity(), count=count)
    layer = QuantumConv2d(PatchTiling.CHANNELS * count, filter, engine=engine)
    return layer.requires_grad_(kind == "circuit")
