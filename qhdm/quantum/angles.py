"""The angles of one call, and the gate matrices that follow from them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from qhdm.quantum.program import Program
from qhdm.quantum.units import Unit


class Angles:
    """Angles of all gates for inputs x (F, B, n) and weights w (F, P).

    Args:
        program: the lowered filter.
        x, w: radians, of one real type and device.
    """

    def __init__(self, program: Program, x: Tensor, w: Tensor) -> None:
        self.filters, self.batch = x.shape[0], x.shape[1]
        self.dtype, self.device = x.dtype, x.device
        self.complex_dtype = torch.complex128 if x.dtype == torch.float64 else torch.complex64
        reading = np.flatnonzero(program.from_inputs.any(axis=1))
        shared = w @ self._real(program.from_weights).T + self._real(program.offsets)
        self._shared = torch.nn.functional.pad(shared, (0, 1))
        self._own = self._real(program.from_inputs[reading]) @ x.mT
        if program.from_weights[reading].any() or program.offsets[reading].any():
            self._own = self._own + self._shared[:, self._index(reading), None]
        self._own_row = np.full(len(program.offsets), -1)
        self._own_row[reading] = np.arange(len(reading))

    def constant(self, array: np.ndarray) -> Tensor:
        """`array` as a complex tensor of the call's precision and device."""
        return torch.as_tensor(array, dtype=self.complex_dtype, device=self.device)

    def eye(self, size: int) -> Tensor:
        """The identity matrix, complex."""
        return torch.eye(size, dtype=self.complex_dtype, device=self.device)

    def own(self, rows: np.ndarray) -> Tensor:
        """Angles that read inputs, at rows (G, n): (F, G, n, B)."""
        found = self._own_row[rows]
        return self._own[:, self._index(found.reshape(-1))].unflatten(1, found.shape)

    def units(self, units: Sequence[Unit], rows: np.ndarray) -> dict[Unit, Tensor]:
        """The matrices (F, G, d, d) of units that do not read inputs, equal kinds as one batch.

        Args:
            units: on local qubits and local angles.
            rows: (G, local angles), rows of the program's angles.
        """
        kinds: dict[object, list[Unit]] = {}
        for unit in units:
            kinds.setdefault(unit.kind, []).append(unit)
        matrices: dict[Unit, Tensor] = {}
        for alike in kinds.values():
            gates = self._gates(alike, rows)  # (F, G, units, gates, d, d)
            while (count := gates.shape[3]) > 1:
                # Products of neighbours, later gate on the left; an odd one waits.
                even = count - count % 2
                pairs = gates[:, :, :, 1:even:2] @ gates[:, :, :, 0:even:2]
                gates = pairs if even == count else torch.cat([pairs, gates[:, :, :, even:]], 3)
            for unit, matrix in zip(alike, gates.squeeze(3).unbind(2), strict=True):
                matrices[unit] = matrix
        return matrices

    def _gates(self, alike: Sequence[Unit], rows: np.ndarray) -> Tensor:
        """All gates of units of one kind, (F, G, units, gates, d, d)."""
        gates = alike[0].gates
        local = np.array([[op.angle for op in unit.ops] for unit in alike])
        # Constant gates (angle -1) read the column of zeros at the end.
        chosen = np.where(
            local < 0,
            self._shared.shape[1] - 1,
            rows[:, np.maximum(local, 0)] if rows.shape[1] else -1,
        )
        angles = self._shared[:, self._index(chosen.reshape(-1))].unflatten(1, chosen.shape)
        phase = (angles * self._real(np.array([gate.scale for gate in gates])))[..., None, None]
        K, A, B = (
            self.constant(np.array([getattr(gate, name) for gate in gates])) for name in "KAB"
        )
        return K + phase.cos() * A + phase.sin() * B

    def reading(self, unit: Unit, rows: np.ndarray) -> Tensor:
        """The matrix (F, G, B, d, d) of a unit of one gate that reads inputs."""
        (op,), (gate,) = unit.ops, unit.gates
        phase = gate.scale * self.own(rows[:, [op.angle]]).squeeze(2)[..., None, None]
        K, A, B = (self.constant(part) for part in (gate.K, gate.A, gate.B))
        return K + phase.cos() * A + phase.sin() * B

    def _real(self, array: np.ndarray) -> Tensor:
        return torch.as_tensor(array, dtype=self.dtype, device=self.device)

    def _index(self, array: np.ndarray) -> Tensor:
        return torch.as_tensor(array, device=self.device)
