"""Pauli strings measured together, and their values from counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from qiskit.circuit import QuantumCircuit

from qhdm.quantum.ir.paulis import Pauli


@dataclass(frozen=True)
class MeasurementBasis:
    """Pauli strings that commute qubit by qubit: measured in one execution.

    Attributes:
        qubits: number of qubits of the circuit.
        pauli: X or Y on the qubits that are not measured in Z.
        members: the strings' positions in the list that was grouped.
        masks: for each of them, the qubits whose outcomes' parity is its value.
    """

    qubits: int
    pauli: Pauli
    members: tuple[int, ...]
    masks: tuple[int, ...]

    @cached_property
    def signs(self) -> np.ndarray:
        """(2^qubits, members): the parities of all outcomes."""
        outcomes = np.arange(1 << self.qubits)[:, None]
        signs: np.ndarray = 1.0 - 2.0 * (np.bitwise_count(outcomes & np.array(self.masks)) & 1)
        return signs

    def rotate(self, circuit: QuantumCircuit) -> None:
        """Append the rotations that turn the letters of the basis into Z."""
        x, z = self.pauli
        for qubit in range(self.qubits):
            if x & z & 1 << qubit:
                circuit.sdg(qubit)
            if x & 1 << qubit:
                circuit.h(qubit)


def bases_of(paulis: Sequence[Pauli], qubits: int) -> tuple[MeasurementBasis, ...]:
    """Group Pauli strings, each into the first group that it commutes with qubit by qubit."""
    groups: list[tuple[Pauli, list[int]]] = []
    for index, (x, z) in enumerate(paulis):
        for number, ((X, Z), members) in enumerate(groups):
            if not ((x ^ X) | (z ^ Z)) & (x | z) & (X | Z):
                groups[number] = ((x | X, z | Z), [*members, index])
                break
        else:
            groups.append(((x, z), [index]))
    return tuple(
        MeasurementBasis(
            qubits, basis, tuple(members), tuple(paulis[i][0] | paulis[i][1] for i in members)
        )
        for basis, members in groups
    )


def parities(counts: Mapping[str, int], masks: Sequence[int]) -> list[float]:
    """Mean parities of counts keyed by hexadecimal outcomes, for each mask."""
    outcomes = [int(outcome, 16) for outcome in counts]  # whole numbers of any size
    shots = sum(counts.values())
    return [
        sum(
            count if (outcome & mask).bit_count() % 2 == 0 else -count
            for outcome, count in zip(outcomes, counts.values(), strict=True)
        )
        / shots
        for mask in masks
    ]
