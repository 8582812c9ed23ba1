"""A few qubits of a simulated register, as one tensor with the batch last."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Register:
    """Amplitudes over k qubits for many columns: samples of a batch, or columns of a matrix.

    Attributes:
        qubits: the most significant first.
        state: (F, G, 2^k, columns).
    """

    qubits: tuple[int, ...]
    state: Tensor

    def times(self, other: Register) -> Register:
        """The tensor product, column by column; an island of one column meets all."""
        state = self.state.unsqueeze(3) * other.state.unsqueeze(2)
        return Register(self.qubits + other.qubits, state.flatten(2, 3))

    def apply(self, qubits: Sequence[int], matrix: Tensor) -> Register:
        """Apply a gate.

        Args:
            qubits: the least significant first.
            matrix: (F, G, d, d), or (F, G, columns, d, d) where it differs by column.
        """
        target = tuple(reversed(qubits))
        state = applied(matrix, self.rows(target)).flatten(2, 3)
        return Register(target + self._without(target), state)

    def rows(self, qubits: tuple[int, ...]) -> Tensor:
        """The state as (F, G, 2^len(qubits), others, columns), the first qubit most significant."""
        F, G, _, B = self.state.shape
        return self.leading(qubits).reshape(F, G, 2 ** len(qubits), -1, B)

    def ordered(self, qubits: Sequence[int]) -> Tensor:
        """The state with its qubits in the order of `qubits`, the least significant first."""
        return self.leading(tuple(reversed(qubits))).reshape(self.state.shape)

    def leading(self, qubits: tuple[int, ...]) -> Tensor:
        """The state as (F, G, 2, ..., 2, columns) with `qubits` first, the others in order."""
        F, G, _, B = self.state.shape
        axes = [2 + self.qubits.index(q) for q in qubits + self._without(qubits)]
        tensor = self.state.reshape(F, G, *[2] * len(self.qubits), B)
        return tensor.permute(0, 1, *axes, tensor.dim() - 1)

    def _without(self, qubits: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(q for q in self.qubits if q not in qubits)


def applied(matrix: Tensor, rows: Tensor) -> Tensor:
    """A matrix times states (F, G, d, others, columns); see `Register.apply`."""
    if matrix.dim() == 4:
        return (matrix @ rows.flatten(3)).view(rows.shape)
    rows = rows.expand(-1, -1, -1, -1, matrix.shape[2])
    return torch.einsum("fgbij,fgjrb->fgirb", matrix, rows)
