"""Circuits that are executed as one job, and whether a result is one of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from qiskit.circuit import QuantumCircuit

from qhdm.hardware.ledger import Shape


@dataclass(frozen=True, eq=False)
class Batch:
    """Circuits of one filter place, to be executed as one job.

    Attributes:
        circuits: ISA circuits, each with parameter values (R, parameters).
        owners: for each, the number of the circuit that its rows are a piece of.
        seconds: expected on the QPU.
    """

    circuits: Sequence[tuple[QuantumCircuit, np.ndarray]]
    owners: tuple[int, ...]
    seconds: float

    def inputs(self) -> dict[str, np.ndarray]:
        """Parameter values by the number of their circuit."""
        return {str(i): values for i, (_, values) in enumerate(self.circuits)}

    def shapes(self, shots: int) -> list[Shape]:
        """Rows, shots and bits of the outcomes of each circuit, with so many shots of each row."""
        return [(len(values), shots, circuit.num_clbits) for circuit, values in self.circuits]


def misfit_of(
    result: Mapping[str, np.ndarray], shapes: Sequence[Shape], *, more: bool = False
) -> str | None:
    """What is wrong with the shape of a result, or None.

    There may be `more` shots: an earlier version left it to the client to fill random circuits.
    """
    if len(result) != 2 * len(shapes):
        return f"has {len(result) // 2} circuits of {len(shapes)}"
    for i, (rows, shots, bits) in enumerate(shapes):
        own, taken = result[str(i)].shape, int(result[f"shots {i}"])
        if own != (rows, bits) or taken < shots or (taken > shots and not more):
            return (
                f"circuit {i} has {own[0]} rows of {taken} shots and {own[1]} bits, not {rows} of "
                f"{shots} and {bits}"
            )
    return None
