"""The parts of a network that depend only on the weights, in torch.

Initial states go forward in time through the gates before a block's first cut, operators backward
through all others; then the traces of their products are taken. All this is small: the number of
torch operations costs, hence whole stacks of unitaries at once, and layouts that need no copies.

Shapes: N = F G circuits (F filters with the same circuit and different weights, G equal
components); a block of k qubits has d = 2^k amplitudes; n Hermitian matrices are (N, d, n, d).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from qhdm.quantum.exact.gate_matrices import GateMatrices
from qhdm.quantum.exact.tree import BondEnd, Network, NetworkBlock, Readout
from qhdm.quantum.ir.fusion import FusedGate


class Coefficients:
    """The coefficients of a network's blocks, and those of its conjugated observables.

    Args:
        network: the component.
        rows: (G, local angles), rows of the program's angles.
        angles: of this call.
    """

    def __init__(self, network: Network, rows: np.ndarray, angles: GateMatrices) -> None:
        self._network = network
        self._angles = angles
        self._count = angles.filters * len(rows)
        cuts = [[network.cuts[i].unit for i in numbers] for numbers in network.alike_cuts]
        stacks = angles.stacked([*network.units, *cuts], rows)
        #: Of each unit, its matrix and the adjoint.
        self._unitaries: dict[FusedGate, tuple[Tensor, Tensor]] = {}
        for units, stack in zip(network.units, stacks[: len(network.units)], strict=True):
            adjoint = stack.mH.resolve_conj()
            both = zip(stack.unbind(1), adjoint.unbind(1), strict=True)
            self._unitaries |= zip(units, both, strict=True)
        self._runs = self._run_maps(self._side_maps(stacks[len(network.units) :]))

    def of_block(self, index: int) -> Tensor:
        """Traces of the block's operators with its states, (N, rows, features).

        The rows are the values of its cuts in order, then the operators.
        """
        block = self._network.blocks[index]
        states = self._constant(block.states)
        if block.before is not None:
            matrix, adjoint = self._unitaries[block.before]
            states = _conjugated(matrix, states, adjoint)
        operators = self._constant(block.operators)
        for step in reversed(block.steps[1:]):
            if isinstance(step, FusedGate):
                matrix, adjoint = self._unitaries[step]
                operators = _conjugated(adjoint, operators, matrix)
            else:
                operators = self._cut(block, operators, step)
        if not block.steps:
            return torch.bmm(_real(operators), _real(states).mT)
        first = block.steps[0]
        assert not isinstance(first, FusedGate)  # gates before the first cut are in `before`
        return self._first_cut(block, operators, states, first)

    def of_terms(self) -> Tensor:
        """The factors of the terms of all conjugated observables, then 1 and 0: (N, terms + 2)."""
        late = [self._of_measured(m) for m in self._network.measured if m.late]
        ends = self._angles.real(_ONE_AND_ZERO).expand(self._count, 2)
        return torch.cat([*late, ends], dim=1)

    def _of_measured(self, measured: Readout) -> Tensor:
        """Of the Pauli strings that a conjugated observable consists of, (N, strings)."""
        assert measured.late is not None
        matrix, adjoint = self._unitaries[measured.late]
        conjugated = _conjugated(adjoint, self._constant(measured.pauli), matrix)
        return (_real(conjugated) @ self._angles.real(measured.strings).T).squeeze(1)

    def _constant(self, array: np.ndarray) -> Tensor:
        return self._angles.constant(array).expand(self._count, *array.shape)

    def _cut(self, block: NetworkBlock, operators: Tensor, run: tuple[BondEnd, ...]) -> Tensor:
        """Operators (N, d, n, d) taken backward through a run of cuts: n becomes bonds n."""
        N, d, n, _ = operators.shape
        high, low = block.around(run[0].qubit)
        bits = operators.reshape(N, high, 2, low, n, high, 2, low).permute(0, 2, 6, 1, 3, 4, 5, 7)
        made = torch.bmm(self._runs[run].flatten(1, 2), bits.reshape(N, 4, -1))
        made = made.view(N, -1, 2, 2, high, low, n, high, low).permute(0, 4, 2, 5, 1, 6, 7, 3, 8)
        return made.reshape(N, d, -1, d)

    def _first_cut(
        self, block: NetworkBlock, operators: Tensor, states: Tensor, run: tuple[BondEnd, ...]
    ) -> Tensor:
        """Traces of states with operators, these taken through the block's first cuts in time.

        This holds the largest tensors of a call. With the qubit of the cuts expanded in Pauli
        matrices, both sides and the maps between them are real, and the maps meet the traces
        instead of the operators.

        Returns:
            (N, bonds n, features).
        """
        around = block.around(run[0].qubit)
        n, features = operators.shape[2], states.shape[2]
        left, right = self._expanded(operators, around), self._expanded(states, around)
        traces = torch.bmm(left.flatten(1, 2), right.flatten(1, 2).mT)  # (N, 4 n, 4 features)
        traces = traces.unflatten(2, (4, -1)).unflatten(1, (4, -1)).transpose(2, 3)
        basis = self._angles.constant(_PAULI_BASIS)
        maps = (basis @ self._runs[run] @ basis.mH).real  # (N, bonds, 4, 4)
        met = torch.bmm(maps.transpose(2, 3).flatten(2), traces.reshape(-1, 16, n * features))
        return met.view(len(met), -1, features)

    def _expanded(self, matrices: Tensor, around: tuple[int, int]) -> Tensor:
        """Hermitian matrices (N, d, n, d) as sums of a qubit's Pauli matrices times others.

        Returns:
            The others in real form, (N, 4, n, d d / 4).
        """
        N, _, n, _ = matrices.shape
        high, low = around
        parts = torch.view_as_real(matrices).reshape(N, high, 2, low, n, high, 2, low, 2)
        bits = parts.permute(0, 2, 6, 8, 4, 1, 3, 5, 7).reshape(N, 8, -1)
        made = self._angles.real(_PAULI_PARTS).expand(N, 4, 8) @ bits
        return made.view(N, 4, n, -1)

    def _run_maps(
        self, sides: dict[BondEnd, tuple[Tensor, int]]
    ) -> dict[tuple[BondEnd, ...], Tensor]:
        """Runs of cuts on one qubit as maps of operators, (N, bonds, 4, 4).

        They act on the (row, column) bits of the qubit; the bond of the first cut in time is the
        most significant.
        """
        runs: dict[tuple[int, ...], list[tuple[BondEnd, ...]]] = {}
        for block in self._network.blocks:
            for step in block.steps:
                if not isinstance(step, FusedGate):
                    sizes = tuple(sides[side][0].shape[2] for side in step)
                    runs.setdefault(sizes, []).append(step)
        found: dict[tuple[BondEnd, ...], Tensor] = {}
        for alike in runs.values():
            maps = _gathered([sides[run[0]] for run in alike])
            for i in range(1, len(alike[0])):
                later = _gathered([sides[run[i]] for run in alike])
                maps = (maps.unsqueeze(3) @ later.unsqueeze(2)).flatten(2, 3)
            found |= zip(alike, maps.unbind(1), strict=True)
        return found

    def _side_maps(self, stacks: Sequence[Tensor]) -> dict[BondEnd, tuple[Tensor, int]]:
        """Each side of each cut as maps of operators, over the (row, column) bits of its qubit.

        O becomes sum_sr T[s, r] a_s^H O a_r for each T of a Hermitian basis, which keeps operators
        Hermitian, hence bonds real; the other side carries the dual basis, T conjugated. The side
        of constant a_r is known beforehand; those that the weights determine are made together.

        Args:
            stacks: for each kind of cut, the matrices of its units, (N, cuts, 4, 4).

        Returns:
            For each side, maps (N, sides, r^2, 4, 4) and the place of its own among them.
        """
        network = self._network
        maps: dict[BondEnd, tuple[Tensor, int]] = {}
        for numbers, matrices in zip(network.alike_cuts, stacks, strict=True):
            cut = network.cuts[numbers[0]]
            # b_r is the part of the unit that belongs to a_r; as (N, cuts, r, 2, 2).
            projector = self._angles.constant(cut.projector)  # (16, r 4)
            b = (matrices.flatten(2) @ projector).unflatten(2, (-1, 2, 2))
            # b_s^H O b_r on the bits (row, column) is the Kronecker product of b_s^H and b_r^T.
            left = b.mH[:, :, :, None, :, None, :, None]
            right = b.mT[:, :, None, :, None, :, None, :]
            pairs = (left * right).flatten(4).flatten(2, 3)  # (N, cuts, s r, 16)
            weights = self._angles.constant(cut.basis_dual)  # (r^2, s r)
            varying = (weights @ pairs).unflatten(3, (4, 4))
            fixed = self._angles.constant(cut.maps).expand(self._count, 1, -1, -1, -1)
            both = torch.cat([varying, fixed], dim=1)
            for i, number in enumerate(numbers):
                maps[network.varying_sides[number]] = both, i
                maps[network.constant_sides[number]] = both, len(numbers)
        return maps


_ONE_AND_ZERO = np.array([1.0, 0.0])
#: From (row, column) bits to coefficients of I, X, Y, Z over sqrt 2.
_PAULI_BASIS = np.array([[1, 0, 0, 1], [0, 1, 1, 0], [0, 1j, -1j, 0], [1, 0, 0, -1]]) / 2**0.5
#: The same, from (bits, real and imaginary part) to the sum of both parts.
_PAULI_PARTS = np.stack(
    [_PAULI_BASIS.real + _PAULI_BASIS.imag, _PAULI_BASIS.real - _PAULI_BASIS.imag], axis=2
).reshape(4, 8)


def _conjugated(matrix: Tensor, matrices: Tensor, adjoint: Tensor) -> Tensor:
    """M X M^H for M (N, d, d) and every X of (N, d, n, d)."""
    N, d, n, _ = matrices.shape
    rows = torch.bmm(matrix, matrices.reshape(N, d, n * d))
    return torch.bmm(rows.view(N, d * n, d), adjoint).view(N, d, n, d)


def _real(matrices: Tensor) -> Tensor:
    """Hermitian matrices (N, d, n, d) as real numbers (N, n, d d).

    With S + iA as S + A for symmetric S and antisymmetric A, the trace of a product becomes a
    scalar product.
    """
    N, d, n, _ = matrices.shape
    return torch.view_as_real(matrices.resolve_conj()).sum(4).transpose(1, 2).reshape(N, n, d * d)


def _gathered(members: Sequence[tuple[Tensor, int]]) -> Tensor:
    """Maps (N, members, ...) out of the stacks that hold them."""
    return torch.stack([tensor[:, place] for tensor, place in members], dim=1)
