"""The angles of one call, and the gate matrices that follow from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qhdm.quantum.program import Program
from qhdm.quantum.units import Unit

#: Constant tensors by (what, type, device): they are converted once per plan.
Cache = dict[Any, Tensor]


class Angles:
    """Angles of all gates for inputs x (F, B, n) and weights w (F, P).

    Args:
        program: the lowered filter.
        x, w: radians, of one real type and device.
        cache: of the plan that `program` and all arrays given to the methods belong to.
    """

    def __init__(self, program: Program, x: Tensor, w: Tensor, cache: Cache) -> None:
        self.filters, self.batch = x.shape[0], x.shape[1]
        self._cache = cache
        self._dtype, self._device = x.dtype, x.device
        self._complex = torch.complex128 if x.dtype == torch.float64 else torch.complex64
        shared = w @ self.real(program.from_weights).T + self.real(program.offsets)
        # Constant gates read a column of zeros at the end.
        self._shared = torch.nn.functional.pad(shared, (0, 1))
        self._own = self.real(program.reading_inputs) @ x.mT  # (F, angles that read inputs, B)
        if program.reading_shared:
            reading = self.index("reading", lambda: program.reading)
            self._own = self._own + shared[:, reading, None]
        self._own_row = program.reading_row

    def constant(self, array: np.ndarray) -> Tensor:
        """An array of the plan as a complex tensor of the call's precision and device."""
        return self._kept(id(array), self._complex, lambda: array)

    def real(self, array: np.ndarray) -> Tensor:
        """An array of the plan as a real tensor of the call's precision and device."""
        return self._kept(id(array), self._dtype, lambda: array)

    def index(self, key: object, make: Callable[[], np.ndarray]) -> Tensor:
        """Indices, made once for `key`."""
        return self._kept(key, torch.int64, make)

    def _kept(self, key: object, dtype: torch.dtype, make: Callable[[], np.ndarray]) -> Tensor:
        whole = (key, dtype, self._device)
        if whole not in self._cache:
            # An inference tensor in the cache could not be used by a later training step.
            with torch.inference_mode(False):
                self._cache[whole] = torch.as_tensor(make(), dtype=dtype, device=self._device)
        return self._cache[whole]

    def own(self, rows: np.ndarray, local: tuple[int, ...]) -> Tensor:
        """Angles that read inputs: local angles n of components with `rows` (G, local angles).

        Returns:
            (F, G, n, B).
        """

        def make() -> np.ndarray:
            return self._own_row[rows[:, list(local)].astype(int)].reshape(-1)

        found = self._own[:, self.index(("own", id(rows), local), make)]
        return found.unflatten(1, (len(rows), len(local)))

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
            while gates.shape[3] > 1:
                first, second = gates.unflatten(3, (-1, 2)).unbind(4)
                gates = second @ first
            matrices |= zip(alike, gates.squeeze(3).unbind(2), strict=True)
        return matrices

    def reading(self, unit: Unit, rows: np.ndarray) -> Tensor:
        """The matrix (F, G, B, d, d) of a unit of one gate that reads inputs."""
        K, A, B, scale = unit.stacks
        angle = self.own(rows, (unit.ops[0].angle,)).squeeze(2)
        phase = (float(scale[0]) * angle)[..., None, None]
        return self.constant(K) + phase.cos() * self.constant(A) + phase.sin() * self.constant(B)

    def _gates(self, alike: Sequence[Unit], rows: np.ndarray) -> Tensor:
        """All gates of units of one kind, (F, G, units, gates, d, d)."""

        def make() -> np.ndarray:
            local = np.full((len(alike), len(scale)), -1)
            for i, unit in enumerate(alike):
                local[i, : len(unit.ops)] = [op.angle for op in unit.ops]
            padded = np.pad(rows, ((0, 0), (0, 1)), constant_values=self._shared.shape[1] - 1)
            return padded[:, local].reshape(-1)

        K, A, B, scale = alike[0].stacks
        key = ("gates", id(rows), tuple(id(unit) for unit in alike))
        angles = self._shared[:, self.index(key, make)]
        angles = angles.unflatten(1, (len(rows), len(alike), len(scale)))
        phase = (angles * self.real(scale))[..., None, None]
        return self.constant(K) + phase.cos() * self.constant(A) + phase.sin() * self.constant(B)
