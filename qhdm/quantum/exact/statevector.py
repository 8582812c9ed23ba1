"""State vectors in torch, for components without a cheap network.

The state is a product of islands that are joined only where a gate acts across them; small ones are
made for all samples at once, what follows for as many as a core's cache holds. Once all are joined,
the remaining gates run under an adjoint method: the backward pass undoes the unitaries, so that
memory does not grow with depth.

Shapes: F filters with the same circuit and different weights, G equal components, B samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor

from qhdm.errors import EngineError
from qhdm.quantum.exact.constants import Constant
from qhdm.quantum.exact.plan import StatevectorPlan
from qhdm.quantum.ir.fusion import FUSE_QUBITS, FusedGate

#: States below this size are allocated without a memory check.
_SMALL = 2**30
#: Amplitudes of the samples that are simulated at a time: they stay in a core's cache.
_CACHE = 2**18
_ZERO = Constant(np.array([[1], [0]], dtype=complex))
#: The qubits of a gate, the least significant first, and its matrix.
_Gate = tuple[tuple[int, ...], Tensor]


@dataclass(frozen=True, eq=False)
class Register:
    """Amplitudes over k qubits for many columns: samples of a batch, or columns of a matrix.

    Attributes:
        qubits: the most significant first.
        state: (F, G, 2^k, columns).
        spare: as much memory again; operations then make the next state there and free this one's.
    """

    qubits: tuple[int, ...]
    state: Tensor
    spare: Tensor | None = None

    def times(self, other: Register) -> Register:
        """The tensor product, column by column; an island of one column meets all."""
        state = self.state.unsqueeze(3) * other.state.unsqueeze(2)
        return Register(self.qubits + other.qubits, state.flatten(2, 3))

    def apply(self, qubits: Sequence[int], matrix: Tensor) -> Register:
        """Apply a gate (F, G, 1 or columns, d, d) on `qubits`, the least significant first."""
        near = self.gathered(qubits)
        rows = near.rows(qubits)
        if matrix.shape[2] != 1:
            rows = rows.unflatten(4, (-1, self.state.shape[3])).expand(*[-1] * 5, matrix.shape[2])
            state = torch.einsum("fgbij,fgljrb->fglirb", matrix, rows).flatten(2, 4)
            return Register(near.qubits, state)
        matrices = matrix.expand(-1, -1, rows.shape[2], -1, -1).flatten(0, 2)
        rows = rows.flatten(0, 2)
        out = None if near.spare is None else near.spare.view(rows.shape)
        state = torch.bmm(matrices, rows, out=out).view(near.state.shape)
        return Register(near.qubits, state, None if out is None else near.state)

    def gathered(self, qubits: Sequence[int]) -> Register:
        """The same with `qubits`, the least significant first, side by side."""
        natural, place = tuple(sorted(self.qubits, reverse=True)), tuple(reversed(qubits))
        least = 4 * 2 ** len(place) // self.state.shape[3]  # products of narrower matrices are slow
        for order in (self.qubits, natural):
            end = order.index(place[-1]) + 1
            if order[end - len(place) : end] == place and 2 ** (len(order) - end) >= least:
                return self.ordered(order)
        return self.ordered((*place, *(q for q in natural if q not in place)))

    def ordered(self, qubits: Sequence[int]) -> Register:
        """The same with its qubits in another order, the most significant first."""
        if tuple(qubits) == self.qubits:
            return self
        F, G, _, B = self.state.shape
        axes = [2 + self.qubits.index(q) for q in qubits]
        tensor = self.state.reshape(F, G, *[2] * len(axes), B).permute(0, 1, *axes, 2 + len(axes))
        if self.spare is None:
            return Register(tuple(qubits), tensor.reshape(self.state.shape))
        self.spare.view(tensor.shape).copy_(tensor)
        return Register(tuple(qubits), self.spare, self.state)

    def rows(self, qubits: Sequence[int]) -> Tensor:
        """(F, G, before, 2^q, after columns) for q qubits that are side by side."""
        before = 2 ** self.qubits.index(qubits[-1])
        return self.state.reshape(*self.state.shape[:2], before, 2 ** len(qubits), -1)


class BoundStatevector:
    """Components simulated as state vectors, with their weights (F, P) bound."""

    def __init__(self, plan: StatevectorPlan, w: Tensor) -> None:
        self._plan, self._shared = plan, plan.angles.shared(w)
        self._unitaries = _unitaries(plan, w)

    def values(self, x: Tensor) -> Tensor:
        """Values of the components' Paulis, (F, G, K, B or 1), at inputs (F, n, B)."""
        plan, F, G, B = self._plan, len(x), self._plan.components, x.shape[2]
        per_sample, width = F * G << plan.size, max(B, 1)
        if x.device.type == "cpu":
            needed = per_sample * B * 2 * x.element_size()
            if needed > _SMALL:
                words = f"state vectors of {plan.size} connected qubits ({F * G * B} at once)"
                require_memory(needed, words, "fewer samples at once")
            width = max(_CACHE // per_sample, 1)
        angles = plan.angles.at(x, self._shared).view(F, len(plan.reading), G, B)
        matrices = self._unitaries | {
            unit: _of_unit(angle, unit, parts)
            for (unit, parts), angle in zip(plan.reading, angles.unbind(1), strict=True)
        }
        ket = _ZERO.like(x).expand(F, G, 2, 1)
        islands = [Register((qubit,), ket) for qubit in range(plan.size)]
        gates = [(unit.qubits, matrices[unit]) for unit in plan.units]
        islands, gates = _joined(islands, gates, FUSE_QUBITS)
        states = [island.state.split(width, dim=3) for island in islands]
        factors = [matrix.split(width, dim=2) for _, matrix in gates]
        values = []
        for k in range(max(map(len, states + factors))):  # what all samples share is one piece
            own = [Register(i.qubits, s[k % len(s)]) for i, s in zip(islands, states, strict=True)]
            rest = [(place, m[k % len(m)]) for (place, _), m in zip(gates, factors, strict=True)]
            values.append(_measure(_evolved(*_joined(own, rest, plan.size)), plan))
        return values[0] if len(values) == 1 else torch.cat(values, dim=3)


def _unitaries(plan: StatevectorPlan, w: Tensor) -> dict[FusedGate, Tensor]:
    """The matrix of each unit that does not read inputs, (F, G, 1, d, d)."""
    phases = torch.addmm(plan.offsets.like(w), w, plan.from_weights.like(w))
    forms = torch.stack([torch.ones_like(phases), phases.cos(), phases.sin()], dim=2)
    counts = [len(k.array) * plan.components * len(units) for units, k in plan.kinds]
    unitaries: dict[FusedGate, Tensor] = {}
    for (units, parts), form in zip(plan.kinds, forms.split(counts, dim=1), strict=True):
        # (gates, units F G, 3): all gates in one matrix product each, real and imaginary parts.
        d = 2 ** len(units[0].qubits)
        form = form.unflatten(1, (len(parts.array), -1, plan.components))
        form = form.permute(1, 2, 0, 3, 4).flatten(1, 3)
        gates = torch.bmm(form, parts.like(w)).view(*form.shape[:2], d, d, 2)
        product = reduce(lambda one, two: torch.bmm(two, one), torch.view_as_complex(gates))
        product = product.view(len(units), len(w), plan.components, 1, d, d)
        unitaries |= zip(units, product.unbind(0), strict=True)
    return unitaries


def _of_unit(angle: Tensor, unit: FusedGate, parts: Constant) -> Tensor:
    """The matrix (F, G, B, d, d) of a unit of one gate at an input's angle (F, G, B)."""
    phase = unit.ops[0].gate.scale * angle
    form = torch.stack([torch.ones_like(phase), phase.cos(), phase.sin()], dim=3)
    d = 2 ** len(unit.qubits)
    return torch.view_as_complex((form @ parts.like(angle)[0]).unflatten(3, (d, d, 2)))


def _joined(
    islands: list[Register], gates: list[_Gate], most: int
) -> tuple[list[Register], list[_Gate]]:
    """Apply gates until all are joined, or one would join more than `most` qubits; what is left."""
    while gates and len(islands) > 1:
        place, matrix = gates[0]
        apart = [i for i in islands if set(i.qubits).isdisjoint(place)]
        joined = [i for i in islands if i not in apart]
        if sum(len(i.qubits) for i in joined) > most:
            break
        islands = [*apart, reduce(Register.times, joined).apply(place, matrix)]
        gates = gates[1:]
    return islands, gates


def _evolved(islands: list[Register], gates: list[_Gate]) -> Tensor:
    """The state (F, G, 2^n, B) of all qubits after the gates."""
    # Gates that no observable sees may have been all that joined the islands.
    register = reduce(Register.times, islands)
    state = register.ordered(range(len(register.qubits))[::-1]).state
    places, matrices = [place for place, _ in gates], [matrix for _, matrix in gates]
    columns = max([state.shape[3], *(matrix.shape[2] for matrix in matrices)])
    return _Evolve.apply(places, state.expand(-1, -1, -1, columns), *matrices)


class _Evolve(torch.autograd.Function):
    """Apply unitaries in order; the backward pass recomputes the states by undoing them.

    Args of `apply`: qubits of each (least significant first), state (F, G, 2^n, B), and unitaries.
    """

    @staticmethod
    def forward(
        ctx: Any, places: Sequence[tuple[int, ...]], state: Tensor, *matrices: Tensor
    ) -> Tensor:
        register = first = _register(state.clone(memory_format=torch.contiguous_format))
        for place, matrix in zip(places, matrices, strict=True):
            register = register.apply(place, matrix)
        state = register.ordered(first.qubits).state
        ctx.places = places
        ctx.save_for_backward(state, *matrices)
        return state

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        state, *matrices = ctx.saved_tensors
        after = last = _register(state.clone())
        # The conjugate of the adjoint, so that of two states and two gradients none is conjugated.
        dual = _register(gradient.contiguous().conj_physical())
        gradients: list[Tensor | None] = []
        for place, matrix in zip(reversed(ctx.places), reversed(matrices), strict=True):
            after = after.apply(place, matrix.mH.resolve_conj())
            dual = dual.gathered(place)
            bra, ket = dual.rows(place), after.rows(place)
            if matrix.shape[2] != 1:
                bra, ket = (rows.unflatten(4, (-1, state.shape[3])) for rows in (bra, ket))
                gradients.append(torch.einsum("fglirb,fgljrb->fgbij", bra, ket).conj())
            else:
                gradients.append((bra @ ket.mT).sum(2, keepdim=True).conj())
            dual = dual.apply(place, matrix.mT)
        return None, dual.ordered(last.qubits).state.conj(), *reversed(gradients)


def _register(state: Tensor) -> Register:
    """All qubits, with spare memory unless the operations on them are differentiated."""
    spare = None if torch.is_grad_enabled() else torch.empty_like(state)
    return Register(tuple(range(state.shape[2].bit_length() - 1))[::-1], state, spare)


def _measure(state: Tensor, plan: StatevectorPlan) -> Tensor:
    """<P> of each Pauli string: (F, G, K, B)."""
    # Squares of real and imaginary parts are columns that are added last: half the time.
    parts = torch.view_as_real(state).flatten(3)
    values = (plan.signs.like(parts) @ parts.square()).unflatten(3, (-1, 2)).sum(4)
    if not plan.images:
        return values
    rows = list(values.unbind(2))
    for k, (entries, phases) in plan.images.items():
        image = state.index_select(2, entries.like(parts))
        rows[k] = (state.conj() * (image * phases.like(parts))).real.sum(2)
    return torch.stack(rows, dim=2)


def require_memory(needed: int, what: str, remedy: str) -> None:
    """Raise EngineError, with a remedy, if more bytes of memory are needed than are available."""
    available = psutil.virtual_memory().available
    if needed > available:
        raise EngineError(
            f"{what}: needs {needed / 2**30:,.0f} GiB of memory, {available / 2**30:,.1f} GiB are "
            f"available; use fewer qubits, or {remedy}"
        )
