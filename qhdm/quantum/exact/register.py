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
        F, G, _, B = self.state.shape
        target = tuple(reversed(qubits))
        tensor, rest = self.leading(target), self._without(target)
        if matrix.dim() == 5:
            tensor = tensor.reshape(F, G, 2 ** len(target), -1, B).expand(
                -1, -1, -1, -1, matrix.shape[2]
            )
            tensor = torch.einsum("fgbij,fgjrb->fgirb", matrix, tensor)
        else:
            tensor = matrix @ tensor.reshape(F, G, 2 ** len(target), -1)
        return Register(target + rest, tensor.reshape(F, G, 2 ** len(self.qubits), -1))

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
