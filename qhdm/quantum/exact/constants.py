"""Arrays of a plan as tensors, one for each type and device, each converted once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from qhdm.quantum.ir.lowering import Program


class Constant:
    """An array of a plan: integers, real or complex numbers.

    Only the first call of a precision and device converts it; no later call waits for the host.
    """

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        self._tensors: dict[tuple[torch.dtype, torch.device], Tensor] = {}

    def like(self, tensor: Tensor) -> Tensor:
        """On the device of `tensor`, and unless of integers, of its precision."""
        key = tensor.dtype, tensor.device
        if key not in self._tensors:
            dtype = {"i": torch.int64, "f": tensor.dtype, "c": tensor.dtype.to_complex()}
            # An inference tensor kept here could not be used by a later training step.
            with torch.inference_mode(False):
                self._tensors[key] = torch.as_tensor(
                    self.array, dtype=dtype[self.array.dtype.kind], device=tensor.device
                )
        return self._tensors[key]


class InputAngles:
    """The angles of a program in `rows`, which depend on inputs: A x + C w + d."""

    def __init__(self, program: Program, rows: Sequence[int] | np.ndarray) -> None:
        chosen = np.asarray(rows, dtype=np.int64)
        C, d = program.from_weights[chosen], program.offsets[chosen]
        self._from_inputs = Constant(program.from_inputs[chosen])
        self._shared = (Constant(C.T), Constant(d)) if C.any() or d.any() else None

    def shared(self, w: Tensor) -> Tensor | None:
        """C w + d at weights (F, P), (F, angles, 1); None if it is 0."""
        if self._shared is None:
            return None
        from_weights, offsets = self._shared
        return torch.addmm(offsets.like(w), w, from_weights.like(w)).unsqueeze(2)

    def at(self, x: Tensor, shared: Tensor | None) -> Tensor:
        """The angles (F, angles, B) at inputs (F, n, B), radians."""
        angles = self._from_inputs.like(x) @ x
        return angles if shared is None else angles + shared
