"""State vectors in torch, for components without a cheap network.

The state is a product of islands that are joined only where a gate acts across them. Once all are
joined, the remaining gates run under an adjoint method: the backward pass undoes the unitaries, so
that memory does not grow with depth.

Shapes: F filters with the same circuit and different weights, G equal components, B samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qhdm.quantum.exact.gate_matrices import GateMatrices
from qhdm.quantum.exact.memory import require_memory
from qhdm.quantum.exact.plan import Group
from qhdm.quantum.exact.register import Register, applied

#: States below this size are allocated without a memory check.
_SMALL = 2**30
#: Amplitudes of the samples that are simulated at a time: they stay in a core's cache.
_CACHE = 2**18
_ZERO = np.array([[1.0], [0.0]])


class BoundStatevector:
    """Components simulated as state vectors, with their weights bound.

    Args:
        group: the components.
        angles: of the weights.
    """

    def __init__(self, group: Group, angles: GateMatrices) -> None:
        self._group, self._angles = group, angles
        fixed = [u for u, reads in zip(group.units, group.reads_inputs, strict=True) if not reads]
        self._shared = angles.units(fixed, group.angles)

    def values(self, reading: Tensor) -> Tensor:
        """Values of the group's Paulis, (F, G, K, B or 1), at angles that read inputs."""
        group, angles = self._group, self._angles
        states = angles.filters * len(group.angles) * (reading.shape[-1] or 1)
        needed = states * angles.amplitude_bytes << group.size
        if needed > _SMALL and reading.device.type == "cpu":
            words = f"state vectors of {group.size} connected qubits ({states} at once)"
            require_memory(needed, words, "fewer samples at once")
        width = max(_CACHE // (states // (reading.shape[-1] or 1) << group.size), 1)
        if reading.device.type != "cpu":
            width = reading.shape[-1]
        pieces = [self._piece(piece) for piece in reading.split(width, dim=2)]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=3)

    def _piece(self, reading: Tensor) -> Tensor:
        group, angles = self._group, self._angles
        matrices = [
            angles.of_unit(reading, unit, group.angles) if reads else self._shared[unit]
            for unit, reads in zip(group.units, group.reads_inputs, strict=True)
        ]
        values = _simulate(group, matrices, angles)
        return values.expand(-1, -1, -1, reading.shape[2])


def _simulate(group: Group, matrices: Sequence[Tensor], angles: GateMatrices) -> Tensor:
    ket = angles.constant(_ZERO)
    ket = ket.expand(angles.filters, len(group.angles), 2, 1)
    islands = [Register((qubit,), ket) for qubit in range(group.size)]
    done = 0
    for unit, matrix in zip(group.units, matrices, strict=True):
        if len(islands) == 1:
            break
        touched = [i for i in islands if set(i.qubits) & set(unit.qubits)]
        joined = touched[0]
        for island in touched[1:]:
            joined = joined.times(island)
        islands = [i for i in islands if i not in touched] + [joined.apply(unit.qubits, matrix)]
        done += 1
    whole = islands[0]
    for island in islands[1:]:  # gates that no observable sees may have been all that joined them
        whole = whole.times(island)
    rest = [unit.qubits for unit in group.units[done:]]
    state = whole.ordered(range(group.size))
    if rest:
        columns = max([state.shape[3], *(m.shape[2] for m in matrices[done:] if m.dim() == 5)])
        state = state.expand(-1, -1, -1, columns)
        state = _Evolve.apply(group.size, rest, state, *matrices[done:])
    return _measure(state, group, angles)


class _Evolve(torch.autograd.Function):
    """Apply unitaries in order; the backward pass recomputes the states by undoing them.

    Args of `apply`: number of qubits, the qubits of each unitary (least significant first), the
    state (F, G, 2^n, B), and the unitaries, (F, G, d, d) or (F, G, B, d, d).
    """

    @staticmethod
    def forward(
        ctx: Any, size: int, places: Sequence[tuple[int, ...]], state: Tensor, *matrices: Tensor
    ) -> Tensor:
        qubits = tuple(reversed(range(size)))
        for place, matrix in zip(places, matrices, strict=True):
            island = Register(qubits, state).apply(place, matrix)
            qubits, state = island.qubits, island.state
        state = Register(qubits, state).ordered(range(size))
        ctx.places, ctx.size = places, size
        ctx.save_for_backward(state, *matrices)
        return state

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        state, *matrices = ctx.saved_tensors
        after = Register(tuple(reversed(range(ctx.size))), state)
        # The conjugate of the adjoint, so that of two states and two gradients none is conjugated.
        dual = Register(after.qubits, gradient.conj().resolve_conj())
        gradients: list[Tensor | None] = []
        for place, matrix in zip(reversed(ctx.places), reversed(matrices), strict=True):
            target = tuple(reversed(place))
            after = after.apply(place, matrix.mH.resolve_conj())
            bra, ket = (register.rows(target) for register in (dual, after))
            if matrix.dim() == 5:
                gradients.append(torch.einsum("fgirb,fgjrb->fgbij", bra, ket).conj())
            else:
                gradients.append((bra.flatten(3) @ ket.flatten(3).mT).conj())
            dual = Register(after.qubits, applied(matrix.mT, bra).reshape(state.shape))
        first = dual.ordered(range(ctx.size)).conj()
        return None, None, first, *reversed(gradients)


def _measure(state: Tensor, group: Group, angles: GateMatrices) -> Tensor:
    """<P> of each of the group's Pauli strings: (F, G, K, B)."""
    probabilities = state.real.square() + state.imag.square()
    values = angles.real(group.signs) @ probabilities
    if not group.images:
        return values
    rows = list(values.unbind(2))
    for k, (entries, phases) in group.images.items():
        image = state.index_select(
            2, angles.index(("image", id(entries)), partial(np.asarray, entries))
        )
        rows[k] = (state.conj() * (image * angles.constant(phases))).real.sum(2)
    return torch.stack(rows, dim=2)
