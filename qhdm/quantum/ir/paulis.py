"""Pauli strings as bit masks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from qiskit.quantum_info import SparsePauliOp

#: A Pauli string as bit masks over qubits (x, z); Y has both bits.
Pauli = tuple[int, int]

_MATRICES = np.array([[[1, 0], [0, 1]], [[0, 1], [1, 0]], [[0, -1j], [1j, 0]], [[1, 0], [0, -1]]])
#: (x, z) of I, X, Y, Z.
_LETTERS = ((0, 0), (1, 0), (1, 1), (0, 1))


def strings_of(observable: SparsePauliOp) -> list[Pauli]:
    """The Pauli strings of an observable, in its order."""
    paulis = observable.paulis
    return [(_mask(x), _mask(z)) for x, z in zip(paulis.x, paulis.z, strict=True)]


def union_of(observable: SparsePauliOp) -> Pauli:
    """The qubits on which any string of an observable is X or Y, and those with Z or Y."""
    return _mask(observable.paulis.x.any(axis=0)), _mask(observable.paulis.z.any(axis=0))


def _mask(flags: np.ndarray) -> int:
    return sum(1 << qubit for qubit in np.flatnonzero(flags).tolist())


def restricted(pauli: Pauli, qubits: Sequence[int]) -> Pauli:
    """The letters on some qubits as a string of its own, `qubits[i]` becoming qubit i."""
    x, z = (sum((mask >> q & 1) << i for i, q in enumerate(qubits)) for mask in pauli)
    return x, z


def qubits_of(pauli: Pauli) -> list[int]:
    """The qubits on which a Pauli string is not the identity."""
    x, z = pauli
    return [q for q in range((x | z).bit_length()) if (x | z) >> q & 1]


def letters_on(pauli: Pauli, qubits: Sequence[int]) -> tuple[int, ...]:
    """The letters 0..3 (I, X, Y, Z) of a Pauli string on `qubits`."""
    x, z = pauli
    return tuple(_LETTERS.index((x >> q & 1, z >> q & 1)) for q in qubits)


def with_letters(letters: Sequence[int], qubits: Sequence[int]) -> Pauli:
    """The Pauli string with letters 0..3 (I, X, Y, Z) on `qubits`."""
    x, z = (sum(_LETTERS[a][i] << q for a, q in zip(letters, qubits, strict=True)) for i in (0, 1))
    return x, z


def string_matrix(letters: Sequence[int]) -> np.ndarray:
    """The matrix of a string of letters 0..3 (I, X, Y, Z), least significant qubit first."""
    matrix = np.eye(1, dtype=complex)
    for letter in letters:
        matrix = np.kron(_MATRICES[letter], matrix)
    return matrix
