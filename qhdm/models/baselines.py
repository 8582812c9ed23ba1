"""Classical baselines in the place of quantum filters (`quantum.filter`).

`cosine` is what a circuit without entanglement computes, `linear` a classical map with as many
weights, `perceptron` a nonlinear one with the circuit's connectivity too, `identity` no filter at
all. A fifth, `frozen`, is the circuit with untrained weights.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qhdm.errors import CircuitError
from qhdm.quantum.connector import FilterConnector
from qhdm.quantum.filter import Filter
from qhdm.quantum.ir.components import split
from qhdm.quantum.layer import PATCH_VALUES, PatchTiling


class ElementwiseCosine(nn.Module):
    """cos x: <Z> of a qubit after RX(x), which is all that an unentangled filter computes."""

    def forward(self, x: Tensor) -> Tensor:
        return x.cos()


class SparseLinear(nn.Module):
    """F linear maps side by side, whose matrices have weights at some places alone.

    Args:
        shape: (m, n) of the matrices.
        places: (row, column) of each of the P weights.
        ones: those of `places` where the map nearest to the identity has 1.
        count: F maps, each with its own weights.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        places: Sequence[tuple[int, int]],
        ones: Sequence[tuple[int, int]],
        *,
        count: int,
    ) -> None:
        super().__init__()
        self.shape = shape
        self.rows: Tensor
        self.columns: Tensor
        rows, columns = torch.tensor(places).T
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("columns", columns, persistent=False)
        # LeCun, as the convolutions: unit variance in, unit variance out.
        self._scale = (shape[0] / len(places)) ** 0.5
        self.weight = nn.Parameter(torch.randn(count, len(places)) * self._scale)
        self._ones = [place in ones for place in places]

    @torch.no_grad()
    def start_near_identity(self, spread: float) -> None:
        """Draw the weights anew: the identity plus a map of variance spread**2."""
        nn.init.normal_(self.weight, std=spread * self._scale)
        self.weight[:, self._ones] += 1

    def forward(self, x: Tensor) -> Tensor:
        """(F, B, n) to (F, B, m)."""
        matrix = self.weight.new_zeros(len(self.weight), *self.shape)
        matrix[:, self.rows, self.columns] = self.weight
        return torch.einsum("fbj,fij->fbi", x, matrix.to(x.dtype))


def cyclic_diagonals(weights: int) -> list[tuple[int, int]]:
    """The first places of a matrix of a patch's values, diagonal by diagonal, cyclically."""
    n = PATCH_VALUES
    return [(k % n, (k + k // n) % n) for k in range(weights)]


class Perceptron(nn.Module):
    """A perceptron k - h - k, W_2 SiLU(W_1 x), on the k inputs of each component of a filter.

    It joins what the circuit joins. As everywhere in the network there are no biases; the shift of
    the angles stands in for them.

    Args:
        circuit_filter: a filter with `hidden_units` of one or more.
        count: F perceptrons of every component side by side.
    """

    def __init__(self, circuit_filter: Filter, *, count: int) -> None:
        super().__init__()
        n, m = len(circuit_filter.inputs), len(circuit_filter.observables)
        h, parts = hidden_units(circuit_filter), connectivity(circuit_filter)
        units = list(enumerate(part for part in parts for _ in range(h)))
        first = [(u, i) for u, (inputs, _) in units for i in inputs]
        second = [(o, u) for u, (_, outputs) in units for o in outputs]
        # Near the identity, unit j of a component passes on its input j.
        passed = [(u, inputs[u % h]) for u, (inputs, _) in units if u % h < len(inputs)]
        self.hidden = SparseLinear((len(units), n), first, passed, count=count)
        self.output = SparseLinear(
            (m, len(units)), second, [(i, u) for u, i in passed], count=count
        )

    def start_near_identity(self, spread: float) -> None:
        """As `SparseLinear.start_near_identity`, in two maps."""
        for part in (self.hidden, self.output):
            part.start_near_identity(spread / math.sqrt(2))

    def forward(self, x: Tensor) -> Tensor:
        """(F, B, n) to (F, B, m)."""
        # The root mean square of SiLU(x) is 0.596 for standard normal x.
        return self.output(F.silu(self.hidden(x)) / 0.596)


def connectivity(circuit_filter: Filter) -> list[tuple[list[int], list[int]]]:
    """For each connected component of a filter, the inputs it reads and the outputs it changes."""
    parts = split(circuit_filter)
    members = list(itertools.chain(*parts.alike))
    owner = [index for index, member in enumerate(members) for _ in member.paulis]
    touched = [{owner[p] for _, term in terms for p in term} for terms in parts.outputs]
    from_inputs = [parts.program.from_inputs[list(member.angles)] for member in members]
    return [
        (np.flatnonzero(rows.any(axis=0)).tolist(), [o for o, by in enumerate(touched) if i in by])
        for i, rows in enumerate(from_inputs)
        if rows.any()
    ]


def hidden_units(circuit_filter: Filter) -> int:
    """h with which the weights of the perceptrons come nearest to the circuit's; the larger of two.

    For `fqconv` with three layers, that is 4 x (3 - 3 - 3), with exactly its 72 weights.
    """
    per_unit = sum(len(i) + len(o) for i, o in connectivity(circuit_filter))
    return (2 * len(circuit_filter.weights) + per_unit) // (2 * per_unit) if per_unit else 0


def start_near_identity(layer: nn.Module, spread: float) -> None:
    """Draw weights anew near those with which each value depends on its own input alone.

    Args:
        layer: quantum filters, or a baseline in their place.
        spread: standard deviation of the circuits' angles, radians, or of what classical maps add
            to the identity, for inputs of unit variance.
    """
    tiled = layer.connector if isinstance(layer, PatchTiling) else None
    if isinstance(tiled, FilterConnector):
        nn.init.normal_(tiled.theta, std=spread / (2 * math.pi))
    elif isinstance(tiled, SparseLinear | Perceptron):
        tiled.start_near_identity(spread)


def check_baseline(kind: str, circuit_filter: Filter) -> None:
    """Raise `CircuitError` unless a baseline can have about as many weights as a filter."""
    weights, most = len(circuit_filter.weights), PATCH_VALUES**2
    if kind == "linear" and not 1 <= weights <= most:
        raise CircuitError(
            f"quantum.filter: linear cannot have the {weights} weights of {circuit_filter.name}, a "
            f"map of {PATCH_VALUES} values has 1 to {most}; use fewer layers or another ansatz"
        )
    if kind == "perceptron" and not hidden_units(circuit_filter):
        raise CircuitError(
            f"quantum.filter: a perceptron cannot have as few weights as the {weights} of "
            f"{circuit_filter.name}; use more layers or another ansatz"
        )


def baseline(
    kind: Literal["cosine", "linear", "perceptron", "identity"],
    circuit_filter: Filter,
    *,
    count: int,
) -> nn.Module:
    """The module that replaces `count` filters of a circuit, (B, 3 count, H, W) to the same."""
    if kind == "cosine":
        return ElementwiseCosine()
    if kind == "identity":
        return nn.Identity()
    if kind == "perceptron":
        return PatchTiling(Perceptron(circuit_filter, count=count), count=count)
    shape, places = (PATCH_VALUES, PATCH_VALUES), cyclic_diagonals(len(circuit_filter.weights))
    ones = [(k, k) for k in range(PATCH_VALUES)]
    return PatchTiling(SparseLinear(shape, places, ones, count=count), count=count)
