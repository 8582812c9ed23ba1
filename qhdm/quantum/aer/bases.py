"""Pauli strings measured together, and their values from counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from qiskit.circuit import QuantumCircuit

from qhdm.quantum.ir.light_cones import Pauli


@dataclass(frozen=True)
class MeasurementBasis:
    """Pauli strings that commute qubit by qubit: measured in one execution.

    Attributes:
        basis: for each qubit, `X`, `Y` or `Z`.
        members: the strings' positions in the list that was grouped.
        masks: for each of them, the qubits whose outcomes' parity is its value.
    """

    basis: str
    members: tuple[int, ...]
    masks: tuple[int, ...]

    @property
    def qubits(self) -> int:
        """Of the circuit."""
        return len(self.basis)

    @cached_property
    def signs(self) -> np.ndarray:
        """(2^qubits, members): the parities of all outcomes."""
        outcomes = np.arange(1 << self.qubits)[:, None]
        signs: np.ndarray = 1.0 - 2.0 * (np.bitwise_count(outcomes & np.array(self.masks)) & 1)
        return signs


def bases_of(paulis: Sequence[Pauli], qubits: int) -> tuple[MeasurementBasis, ...]:
    """Group Pauli strings, each into the first group that it commutes with qubit by qubit."""
    groups: list[tuple[dict[int, str], list[int]]] = []
    for index, pauli in enumerate(paulis):
        letters = _letters(pauli)
        for basis, members in groups:
            if all(basis.get(q, letter) == letter for q, letter in letters.items()):
                basis.update(letters)
                members.append(index)
                break
        else:
            groups.append((dict(letters), [index]))
    return tuple(
        MeasurementBasis(
            "".join(basis.get(q, "Z") for q in range(qubits)),
            tuple(members),
            tuple(paulis[i][0] | paulis[i][1] for i in members),
        )
        for basis, members in groups
    )


def rotate(circuit: QuantumCircuit, basis: str) -> None:
    """Append the rotations that turn the letters of `basis` into Z."""
    for qubit, letter in enumerate(basis):
        if letter == "Y":
            circuit.sdg(qubit)
        if letter in "XY":
            circuit.h(qubit)


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


def _letters(pauli: Pauli) -> dict[int, str]:
    x, z = pauli
    letters = {}
    for q in range((x | z).bit_length()):
        if (x | z) >> q & 1:
            letters[q] = "XY"[z >> q & 1] if x >> q & 1 else "Z"
    return letters
