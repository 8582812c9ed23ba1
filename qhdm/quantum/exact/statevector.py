"""State vectors in torch, for components without a cheap network.

The state is a product of islands that are joined only where a gate acts across them. Once all are
joined, the remaining gates run under an adjoint method: the backward pass undoes the unitaries, so
that memory does not grow with depth.

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
from qhdm.quantum.ir.fusion import FusedGate

#: States below this size are allocated without a memory check.
_SMALL = 2**30
#: Amplitudes of the samples that are simulated at a time: they stay in a core's cache.
_CACHE = 2**18
_ZERO = Constant(np.array([[1], [0]], dtype=complex))


@dataclass(frozen=True, eq=False)
class Register:
    """Amplitudes over k qubits for many columns: samples of a batch, or columns of a matrix.

    Attributes:
        qubits: the most significant first.
        state: (F, G, 2^k, columns).
    """

    qubits: tuple[int, ...]
    state: Tensor

    def times(self, other: Register) -> Register:
        """The tensor product, column by column; an island of one column meets all."""
        state = self.state.unsqueeze(3) * other.state.unsqueeze(2)
        return Register(self.qubits + other.qubits, state.flatten(2, 3))

    def apply(self, qubits: Sequence[int], matrix: Tensor) -> Register:
        """Apply a gate on `qubits`, the least significant first; see `applied` for its matrix."""
        first = self.leading(qubits)
        return Register(first.qubits, applied(matrix, first.state))

    def leading(self, qubits: Sequence[int]) -> Register:
        """The same with `qubits`, the least significant first, before the others in their order."""
        order = (*reversed(qubits), *(q for q in self.qubits if q not in qubits))
        F, G, _, B = self.state.shape
        axes = [2 + self.qubits.index(q) for q in order]
        tensor = self.state.reshape(F, G, *[2] * len(order), B)
        tensor = tensor.permute(0, 1, *axes, 2 + len(order))
        return Register(order, tensor.reshape(self.state.shape))


def applied(matrix: Tensor, state: Tensor) -> Tensor:
    """A matrix on the leading qubits of states: (F, G, d, d), or (F, G, columns, d, d)."""
    rows = _rows(state, matrix)
    if matrix.dim() == 4:
        return (matrix @ rows.flatten(3)).view(state.shape)
    rows = rows.expand(-1, -1, -1, -1, matrix.shape[2])
    return torch.einsum("fgbij,fgjrb->fgirb", matrix, rows).flatten(2, 3)


def _rows(state: Tensor, matrix: Tensor) -> Tensor:
    """A state as (F, G, d, others, columns), for a matrix on its leading qubits."""
    return state.unflatten(2, (matrix.shape[-1], -1))


class BoundStatevector:
    """Components simulated as state vectors, with their weights (F, P) bound."""

    def __init__(self, plan: StatevectorPlan, w: Tensor) -> None:
        self._plan, self._shared = plan, plan.angles.shared(w)
        self._unitaries = _unitaries(plan, w)

    def values(self, x: Tensor) -> Tensor:
        """Values of the components' Paulis, (F, G, K, B), at inputs (F, n, B)."""
        size, B = self._plan.size, x.shape[2]
        per_sample = len(x) * self._plan.components << size
        needed = per_sample * B * 2 * x.element_size()
        if needed > _SMALL and x.device.type == "cpu":
            words = f"state vectors of {size} connected qubits ({per_sample * B >> size} at once)"
            require_memory(needed, words, "fewer samples at once")
        width = B if x.device.type != "cpu" else max(_CACHE // per_sample, 1)
        pieces = [self._piece(piece) for piece in x.split(width, dim=2)]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=3)

    def _piece(self, x: Tensor) -> Tensor:
        plan, F, G = self._plan, len(x), self._plan.components
        angles = plan.angles.at(x, self._shared).view(F, len(plan.reading), G, x.shape[2])
        matrices = self._unitaries | {
            unit: _of_unit(angle, unit, parts)
            for (unit, parts), angle in zip(plan.reading, angles.unbind(1), strict=True)
        }
        values = _simulate(plan, [matrices[unit] for unit in plan.units], x)
        return values.expand(-1, -1, -1, x.shape[2])


def _unitaries(plan: StatevectorPlan, w: Tensor) -> dict[FusedGate, Tensor]:
    """The matrix of each unit that does not read inputs, (F, G, d, d)."""
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
        product = torch.view_as_complex(gates)
        while len(product) > 1:
            last = product[2 * (len(product) // 2) :]
            first, second = product[: len(product) - len(last)].unflatten(0, (-1, 2)).unbind(1)
            joined = torch.bmm(second.flatten(0, 1), first.flatten(0, 1)).view(first.shape)
            product = torch.cat([joined, last]) if len(last) else joined
        product = product.view(len(units), len(w), plan.components, d, d)
        unitaries |= zip(units, product.unbind(0), strict=True)
    return unitaries


def _of_unit(angle: Tensor, unit: FusedGate, parts: Constant) -> Tensor:
    """The matrix (F, G, B, d, d) of a unit of one gate at an input's angle (F, G, B)."""
    phase = unit.ops[0].gate.scale * angle
    form = torch.stack([torch.ones_like(phase), phase.cos(), phase.sin()], dim=3)
    d = 2 ** len(unit.qubits)
    return torch.view_as_complex((form @ parts.like(angle)[0]).unflatten(3, (d, d, 2)))


def _simulate(plan: StatevectorPlan, matrices: Sequence[Tensor], reading: Tensor) -> Tensor:
    ket = _ZERO.like(reading).expand(len(reading), plan.components, 2, 1)
    islands = [Register((qubit,), ket) for qubit in range(plan.size)]
    places = [unit.qubits for unit in plan.units]
    done = 0
    while len(islands) > 1 and done < len(places):
        apart = [i for i in islands if set(i.qubits).isdisjoint(places[done])]
        joined = reduce(Register.times, (i for i in islands if i not in apart))
        islands = [*apart, joined.apply(places[done], matrices[done])]
        done += 1
    # Gates that no observable sees may have been all that joined them.
    state = reduce(Register.times, islands).leading(range(plan.size)).state
    if done < len(places):
        columns = max([state.shape[3], *(m.shape[2] for m in matrices[done:] if m.dim() == 5)])
        state = state.expand(-1, -1, -1, columns)
        state = _Evolve.apply(plan.size, places[done:], state, *matrices[done:])
    return _measure(state, plan, reading)


class _Evolve(torch.autograd.Function):
    """Apply unitaries in order; the backward pass recomputes the states by undoing them.

    Args of `apply`: number of qubits, the qubits of each unitary (least significant first), the
    state (F, G, 2^n, B), and the unitaries, (F, G, d, d) or (F, G, B, d, d).
    """

    @staticmethod
    def forward(
        ctx: Any, size: int, places: Sequence[tuple[int, ...]], state: Tensor, *matrices: Tensor
    ) -> Tensor:
        register = Register(tuple(reversed(range(size))), state)
        for place, matrix in zip(places, matrices, strict=True):
            register = register.apply(place, matrix)
        state = register.leading(range(size)).state
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
            after = after.apply(place, matrix.mH.resolve_conj())
            dual = dual.leading(place)
            bra, ket = (_rows(register.state, matrix) for register in (dual, after))
            if matrix.dim() == 5:
                gradients.append(torch.einsum("fgirb,fgjrb->fgbij", bra, ket).conj())
            else:
                gradients.append((bra.flatten(3) @ ket.flatten(3).mT).conj())
            dual = Register(dual.qubits, applied(matrix.mT, dual.state))
        first = dual.leading(range(ctx.size)).state.conj()
        return None, None, first, *reversed(gradients)


def _measure(state: Tensor, plan: StatevectorPlan, like: Tensor) -> Tensor:
    """<P> of each Pauli string: (F, G, K, B)."""
    probabilities = state.real.square() + state.imag.square()
    values = plan.signs.like(like) @ probabilities
    if not plan.images:
        return values
    rows = list(values.unbind(2))
    for k, (entries, phases) in plan.images.items():
        image = state.index_select(2, entries.like(like))
        rows[k] = (state.conj() * (image * phases.like(like))).real.sum(2)
    return torch.stack(rows, dim=2)


def require_memory(needed: int, what: str, remedy: str) -> None:
    """Refuse what needs more bytes of memory than are available, and suggest a remedy.

    Raises:
        EngineError: it does not fit.
    """
    available = psutil.virtual_memory().available
    if needed > available:
        raise EngineError(
            f"{what}: needs {needed / 2**30:,.0f} GiB of memory, {available / 2**30:,.1f} GiB are "
            f"available; use fewer qubits, or {remedy}"
        )
