"""Arrays of a plan as tensors, one for each type and device, each converted once."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


class Constant:
    """An array of a plan.

    A call converts it only if none of its precision and device did before; no later call waits for
    the host.

    Args:
        array: of integers, real or complex numbers.
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
