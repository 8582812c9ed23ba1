"""The angles of one call, and the gate matrices that follow from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qhdm.quantum.ir.fusion import FusedGate, by_kind
from qhdm.quantum.ir.lowering import Program

#: Constant tensors by (what, type, device): they are converted once per plan.
Cache = dict[Any, Tensor]


class GateMatrices:
    """Angles of all gates for weights w (F, P), and of those that read inputs for given inputs.

    Args:
        program: the lowered filter.
        w: radians.
        cache: of the plan that `program` and all arrays given to the methods belong to.
    """

    def __init__(self, program: Program, w: Tensor, cache: Cache) -> None:
        self.filters = len(w)
        self._program = program
        self._cache = cache
        self._dtype, self._device = w.dtype, w.device
        self._complex = torch.complex128 if w.dtype == torch.float64 else torch.complex64
        self.amplitude_bytes = self._complex.itemsize
        shared = w @ self.real(program.from_weights).T + self.real(program.offsets)
        # Constant gates read a column of zeros at the end.
        self._shared = torch.nn.functional.pad(shared, (0, 1))

    def reading_inputs(self, x: Tensor) -> Tensor:
        """The angles that read inputs, (F, angles, B), at inputs x (F, B, n)."""
        found = self.real(self._program.reading_inputs) @ x.mT
        if self._program.reading_shared:
            reading = self.index("reading", lambda: self._program.reading)
            found = found + self._shared.index_select(1, reading).unsqueeze(2)
        return found

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

    def own(self, reading: Tensor, rows: np.ndarray, local: tuple[int, ...]) -> Tensor:
        """Of the angles that read inputs, local ones n of components with `rows` (G, local angles).

        Returns:
            (F, G, n, B).
        """

        def make() -> np.ndarray:
            return self._program.reading_row[rows[:, list(local)].astype(int)].reshape(-1)

        found = reading.index_select(1, self.index(("own", id(rows), local), make))
        return found.unflatten(1, (len(rows), len(local)))

    def units(self, units: Sequence[FusedGate], rows: np.ndarray) -> dict[FusedGate, Tensor]:
        """The matrix of each of `units`, (F, G, d, d); see `stacked`."""
        groups = by_kind(units)
        return {
            unit: matrix.unflatten(0, (self.filters, len(rows)))
            for group, stack in zip(groups, self.stacked(groups, rows), strict=True)
            for unit, matrix in zip(group, stack.unbind(1), strict=True)
        }

    def stacked(self, groups: Sequence[Sequence[FusedGate]], rows: np.ndarray) -> list[Tensor]:
        """Matrices of units that do not read inputs.

        Args:
            groups: units of one kind each, on local qubits and local angles.
            rows: (G, local angles), rows of the program's angles.

        Returns:
            For each group, (F G, units, d, d).
        """
        if not groups:
            return []
        forms = self._forms(groups, rows)
        sizes = [len(group[0].stacks[1]) * len(rows) * len(group) for group in groups]
        found = []
        for group, form in zip(groups, forms.split(sizes, dim=1), strict=True):
            # (gates, F G units, 3): all gates in one matrix product each, real and imaginary parts.
            form = form.unflatten(1, (len(group[0].stacks[1]), -1)).transpose(0, 1).flatten(1, 2)
            parts, _ = group[0].stacks
            d = 2 ** len(group[0].qubits)
            gates = torch.bmm(form, self.real(parts)).view(len(parts), -1, d, d, 2)
            product = torch.view_as_complex(gates)
            while len(product) > 1:
                first, second = product.view(-1, 2, *product.shape[1:]).unbind(1)
                product = torch.bmm(second.flatten(0, 1), first.flatten(0, 1))
                product = product.view(first.shape)
            found.append(product.view(self.filters * len(rows), len(group), d, d))
        return found

    def of_unit(self, reading: Tensor, unit: FusedGate, rows: np.ndarray) -> Tensor:
        """The matrix (F, G, B, d, d) of a unit of one gate that reads inputs."""
        parts, scale = unit.stacks
        phase = float(scale[0]) * self.own(reading, rows, (unit.ops[0].angle,)).squeeze(2)
        form = torch.stack([torch.ones_like(phase), phase.cos(), phase.sin()], dim=3)
        d = 2 ** len(unit.qubits)
        return torch.view_as_complex((form @ self.real(parts)[0]).unflatten(3, (d, d, 2)))

    def _forms(self, groups: Sequence[Sequence[FusedGate]], rows: np.ndarray) -> Tensor:
        """(1, cos, sin) of the phase of every gate: (F, gates of all groups, 3).

        Within a group the order is (gates of a unit, G, units).
        """
        key = ("gates", id(rows), tuple(id(unit) for group in groups for unit in group))

        def places() -> np.ndarray:
            padded = np.pad(rows, ((0, 0), (0, 1)), constant_values=self._shared.shape[1] - 1)
            found = []
            for group in groups:
                local = np.full((len(group[0].stacks[1]), len(group)), -1)
                for i, unit in enumerate(group):
                    local[: len(unit.ops), i] = [op.angle for op in unit.ops]
                found.append(padded[:, local].swapaxes(0, 1).reshape(-1))
            return np.concatenate(found)

        def scales() -> np.ndarray:
            return np.concatenate(
                [np.repeat(group[0].stacks[1], len(rows) * len(group)) for group in groups]
            )

        angles = self._shared.index_select(1, self.index(key, places))
        phase = angles * self._kept(("scales", key), self._dtype, scales)
        return torch.stack([torch.ones_like(phase), phase.cos(), phase.sin()], dim=2)
