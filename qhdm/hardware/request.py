"""Requests: circuits that are executed as one runtime job, and the shape of their results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from qiskit.circuit import QuantumCircuit

#: Rows, shots and bits of the outcomes of a circuit.
Shape = tuple[int, int, int]
#: Network evaluation, filter place in it, and request for it, each counted from 0.
Position = tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class Request:
    """Circuits of one filter place, executed as one runtime job.

    Attributes:
        circuits: ISA circuits, each with parameter values (R, parameters).
        owners: for each, the index of the circuit of the stage whose rows it has a share of.
        shots: executed for each row.
        seconds: expected on the QPU.
    """

    circuits: Sequence[tuple[QuantumCircuit, np.ndarray]]
    owners: tuple[int, ...]
    shots: int
    seconds: float

    @property
    def inputs(self) -> dict[str, np.ndarray]:
        """Parameter values by the index of their circuit."""
        return {str(i): values for i, (_, values) in enumerate(self.circuits)}

    @property
    def shapes(self) -> list[Shape]:
        """Of the outcomes of each circuit."""
        return [(len(values), self.shots, c.num_clbits) for c, values in self.circuits]


def mismatch(
    result: Mapping[str, np.ndarray], shapes: Sequence[Shape], *, more_shots: bool = False
) -> str | None:
    """How a result differs from the shapes that were requested, or None.

    Args:
        result: how often each clbit was 1, (rows, bits), and the shots, by index of the circuit.
        shapes: of each circuit.
        more_shots: are allowed: an earlier version let the client fill up random circuits.
    """
    if len(result) != 2 * len(shapes):
        return f"has {len(result) // 2} circuits of {len(shapes)}"
    for i, (rows, shots, bits) in enumerate(shapes):
        own, taken = result[str(i)].shape, int(result[f"shots {i}"])
        if own != (rows, bits) or taken < shots or (taken > shots and not more_shots):
            return (
                f"circuit {i} has {own[0]} rows of {taken} shots and {own[1]} bits, not {rows} of "
                f"{shots} and {bits}"
            )
    return None
