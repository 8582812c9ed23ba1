"""Gates as real matrices: Pauli transfer matrices in Heisenberg's picture.

An operator on k qubits is a sum of Pauli strings with 4^k real coefficients o. A gate G takes it
to G^H O G, and its coefficients to R o with R[P, Q] = tr(P G^H Q G) / 2^k; the transposed R takes
the expectation values of all strings from before the gate to after it. For a gate
K + cos(p) A + sin(p) B, R is a trigonometric polynomial in its phase p:

    R(p) = R_0 + cos(p) R_1 + cos(2p) R_2 + sin(p) R_3 + sin(2p) R_4.

Strings are ordered by their letters I, X, Y, Z; the letter of the first qubit is most significant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np

from qhdm.quantum.ir.fusion import FusedGate, random_angles
from qhdm.quantum.ir.lowering import Trig
from qhdm.quantum.ir.paulis import Pauli, letters_on, string_matrix

#: Entries below this, of some that are about 1, are rounding.
ZERO = 1e-12
_PHASES = 2 * np.pi * np.arange(5) / 5
_WAVES = np.stack(
    [np.ones(5), *(wave(n * _PHASES) for wave in (np.cos, np.sin) for n in (1, 2))], axis=1
)


@cache
def _pauli_strings(qubits: int) -> np.ndarray:
    """All strings as matrices, (4^k, 2^k, 2^k)."""
    return np.array([string_matrix(letters) for letters in product(range(4), repeat=qubits)])


def transfer(matrix: np.ndarray) -> np.ndarray:
    """R of a gate's matrix (2^k, 2^k), the first qubit least significant: (4^k, 4^k)."""
    strings = _pauli_strings(len(matrix).bit_length() - 1)
    evolved = matrix.conj().T @ strings @ matrix
    size = len(strings)
    # tr(P X) = sum_ij conj(P_ij) X_ij, as P is Hermitian.
    return (strings.conj().reshape(size, -1) @ evolved.reshape(size, -1).T).real / len(matrix)


def harmonics(gate: Trig) -> np.ndarray:
    """R_0 to R_4 of a gate, (5, 4^k, 4^k)."""
    samples = np.array([transfer(gate.at(phase / gate.scale)) for phase in _PHASES])
    parts = np.tensordot(np.linalg.inv(_WAVES), samples, axes=1)
    parts[np.abs(parts) < ZERO] = 0
    return parts


def nonzero(array: np.ndarray) -> np.ndarray:
    """1 where an array differs from 0, and 0 elsewhere."""
    return (np.abs(array) > ZERO).astype(np.float32)


def possible_strings(pauli: Pauli, support: Sequence[int], late: Sequence[FusedGate]) -> np.ndarray:
    """Strings on `support` that gates can make of one, by number, at any angles."""
    mask = np.zeros([4] * len(support), dtype=np.float32)
    mask[letters_on(pauli, support)] = 1
    for op in reversed([op for unit in late for op in unit.ops]):
        k, axes = len(op.qubits), [support.index(q) for q in op.qubits]
        matrix = nonzero(harmonics(op.gate)).max(axis=0).reshape([4] * 2 * k)
        mask = np.tensordot(matrix, mask, axes=(range(k, 2 * k), axes))
        mask = nonzero(np.moveaxis(mask, range(k), axes))
    return np.flatnonzero(mask)


@dataclass(frozen=True, eq=False)
class Bond:
    """A two-qubit gate across two blocks, R = sum_r A_r (x) B_r; the A_r constant and orthonormal.

    Attributes:
        unit: the gate.
        constant: position in its qubits of the one on which the A_r act.
        maps: (r, 4, 4), the A_r, sparse.
    """

    unit: FusedGate
    constant: int
    maps: np.ndarray

    @property
    def size(self) -> int:
        """r, the values of the bond."""
        return len(self.maps)


def decompose(unit: FusedGate) -> Bond:
    """Decompose a two-qubit gate with the constant maps on the side where fewer suffice.

    The maps are those that occur at generic angles. A control that is traced out only passes on I
    and Z, so that one of its four maps survives: as sparse as they are, others vanish entirely.
    """
    draws = [transfer(unit.at(random_angles([unit], draw))) for draw in range(8)]
    tensors = np.array(draws).reshape(8, 4, 4, 4, 4)  # (draw, out 0, out 1, in 0, in 1)
    bases = [
        _sparse_basis(tensors.transpose(0, *axes).reshape(-1, 16))
        for axes in ((2, 4, 1, 3), (1, 3, 2, 4))
    ]
    side = int(len(bases[1]) < len(bases[0]))
    return Bond(unit, side, bases[side].reshape(-1, 4, 4))


def _sparse_basis(rows: np.ndarray) -> np.ndarray:
    """An orthonormal basis of the space of `rows`, as sparse as Gaussian elimination leaves it."""
    _, values, vectors = np.linalg.svd(rows, full_matrices=False)
    basis = vectors[: int((values > 1e-9).sum())]
    pivot = 0
    for column in range(rows.shape[1]):
        sizes = np.abs(basis[pivot:, column])
        if sizes.max(initial=0) < 1e-9:
            continue
        largest = pivot + int(sizes.argmax())
        basis[[pivot, largest]] = basis[[largest, pivot]]
        basis[pivot] /= basis[pivot, column]
        others = np.arange(len(basis)) != pivot
        basis[others] -= np.outer(basis[others, column], basis[pivot])
        pivot += 1
    basis[np.abs(basis) < ZERO] = 0
    orthogonal, triangle = np.linalg.qr(basis.T)
    orthogonal[np.abs(orthogonal) < ZERO] = 0
    return np.asarray((orthogonal * np.sign(np.diag(triangle))).T)
