"""The exact engine: analytic expectation values in torch, differentiable in inputs and weights.

A circuit is simulated as its connected components (qhdm.quantum.plan). Within a component the
state is a product of *islands*, tensors over a few qubits each, which are joined only when a gate
acts across them; gates that depend on the weights alone are fused into small unitaries, shared by
the batch. All that depends on a sample runs with the batch as the last dimension, so that a fused
unitary is applied to every sample by one matrix product.

Shapes: F filters with the same circuit and different weights, G equal components, B samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from qhdm.quantum.filter import Filter
from qhdm.quantum.plan import Block, Group, Plan, make_plan
from qhdm.quantum.program import Op, Trig

_plans: WeakKeyDictionary[Filter, Plan] = WeakKeyDictionary()


def plan_of(filter: Filter) -> Plan:
    """The simulation plan of `filter`, made once."""
    if filter not in _plans:
        _plans[filter] = make_plan(filter)
    return _plans[filter]


def expectation(filter: Filter, x: Tensor, w: Tensor) -> Tensor:
    """Expectation values of F filters with one circuit.

    Args:
        filter: the circuit and its observables.
        x: inputs (F, B, n), radians, float32 or float64.
        w: weights (F, P), radians, of the same type and device.

    Returns:
        (F, B, m), differentiable with respect to `x` and `w`.
    """
    plan = plan_of(filter)
    angles = _Angles(plan, x, w)
    values = [_simulate(group, angles).flatten(1, 2) for group in plan.groups]  # (F, G K, B)
    one = x.new_ones(x.shape[0], 1, x.shape[1])
    measured = torch.cat([*(v.expand(-1, -1, x.shape[1]) for v in values), one], dim=1)
    factors = torch.as_tensor(plan.factors, device=x.device)
    terms = measured[:, factors[:, 0]]  # (F, terms, B)
    for column in factors.T[1:]:
        terms = terms * measured[:, column]
    return terms.mT @ torch.as_tensor(plan.mixing, dtype=x.dtype, device=x.device)


class _Angles:
    """The matrices of all gates, from the angles of one call."""

    def __init__(self, plan: Plan, x: Tensor, w: Tensor) -> None:
        def constant(array: np.ndarray) -> Tensor:
            return torch.as_tensor(array, dtype=x.dtype, device=x.device)

        program = plan.program
        self.batch = x.shape[1]
        self.complex_dtype = torch.complex128 if x.dtype == torch.float64 else torch.complex64
        self.device = x.device
        self.leading = x.shape[0]
        shared = w @ constant(program.from_weights).T + constant(program.offsets)  # (F, A)
        reading = np.flatnonzero(program.from_inputs.any(axis=1))
        own = constant(program.from_inputs[reading]) @ x.mT  # (F, A', B)
        self._shared = shared
        self._own = own + shared[:, torch.as_tensor(reading, device=x.device), None]
        self._own_row = {int(row): i for i, row in enumerate(reading)}

    def constant(self, array: np.ndarray) -> Tensor:
        """`array` as a complex tensor of the call's precision and device."""
        return torch.as_tensor(array, dtype=self.complex_dtype, device=self.device)

    def matrices(self, op: Op, rows: np.ndarray, *, on_inputs: bool) -> Tensor:
        """The gate's matrix: (F or 1, G or 1, d, d), or (F, G, B, d, d) if it reads the inputs."""
        if not isinstance(op.gate, Trig):
            return self.constant(op.gate)[None, None]
        column = rows[:, op.angle]
        if on_inputs:
            angle = self._own[:, [self._own_row[int(row)] for row in column]]  # (F, G, B)
        else:
            angle = self._shared[:, torch.as_tensor(column, device=self.device)]  # (F, G)
        phase = (op.gate.scale * angle)[..., None, None]
        K, A, B = (self.constant(part) for part in (op.gate.K, op.gate.A, op.gate.B))
        return K + phase.cos() * A + phase.sin() * B


@dataclass(frozen=True)
class _Island:
    """Part of a product state: `state` (F, G, 2^k, B or 1), `qubits[0]` most significant."""

    qubits: tuple[int, ...]
    state: Tensor

    def times(self, other: _Island) -> _Island:
        """The tensor product of two islands."""
        state = self.state.unsqueeze(3) * other.state.unsqueeze(2)
        return _Island(self.qubits + other.qubits, state.flatten(2, 3))

    def apply(self, qubits: Sequence[int], matrix: Tensor) -> _Island:
        """A gate on `qubits` (least significant first); see `_Angles.matrices` for `matrix`."""
        F, G, _, B = self.state.shape
        target = tuple(reversed(qubits))
        rest = tuple(q for q in self.qubits if q not in target)
        axes = [2 + self.qubits.index(q) for q in target + rest]
        tensor = self.state.reshape(F, G, *[2] * len(self.qubits), B)
        tensor = tensor.permute(0, 1, *axes, tensor.dim() - 1)
        if matrix.dim() == 5:
            tensor = tensor.reshape(F, G, 2 ** len(target), -1, B)
            tensor = torch.einsum(
                "fgbij,fgjrb->fgirb", matrix, tensor.expand(-1, -1, -1, -1, matrix.shape[2])
            )
        else:
            tensor = matrix @ tensor.reshape(F, G, 2 ** len(target), -1)
        return _Island(target + rest, tensor.reshape(F, G, 2 ** len(self.qubits), -1))


def _simulate(group: Group, angles: _Angles) -> Tensor:
    """Values of the group's Paulis, (F, G, K, B or 1)."""
    ket = angles.constant(np.array([1.0, 0.0]))[:, None]
    ket = ket.expand(angles.leading, len(group.angles), 2, 1)
    islands = [_Island((qubit,), ket) for qubit in range(group.size)]
    for block in group.blocks:
        touched = [i for i in islands if set(i.qubits) & set(block.qubits)]
        joined = touched[0]
        for island in touched[1:]:
            joined = joined.times(island)
        matrix = _unitary(block, group, angles)
        islands = [i for i in islands if i not in touched] + [joined.apply(block.qubits, matrix)]
    (whole,) = islands  # a component is connected: its gates have joined all islands
    return _measure(whole, group.paulis)


def _unitary(block: Block, group: Group, angles: _Angles) -> Tensor:
    """The matrix of a block: (F, G, d, d), or (F, G, B, d, d) for a gate that reads the inputs."""
    if len(block.ops) == 1 and block.ops[0].qubits == block.qubits:
        return angles.matrices(block.ops[0], group.angles, on_inputs=block.on_inputs)
    d = 2 ** len(block.qubits)
    columns = torch.eye(d, dtype=angles.complex_dtype, device=angles.device)
    columns = columns.expand(angles.leading, len(group.angles), d, d)
    island = _Island(tuple(reversed(block.qubits)), columns)
    for op in block.ops:
        island = island.apply(op.qubits, angles.matrices(op, group.angles, on_inputs=False))
    return _ordered(island, block.qubits)


def _ordered(island: _Island, qubits: Sequence[int]) -> Tensor:
    """The island's state with its qubits in the order of `qubits`, least significant first."""
    F, G, size, B = island.state.shape
    axes = [2 + island.qubits.index(q) for q in reversed(qubits)]
    tensor = island.state.reshape(F, G, *[2] * len(qubits), B)
    return tensor.permute(0, 1, *axes, tensor.dim() - 1).reshape(F, G, size, B)


def _measure(island: _Island, paulis: Sequence[tuple[int, int]]) -> Tensor:
    """<P> of each Pauli string (x mask, z mask) over local qubits: (F, G, K, B)."""
    state = _ordered(island, range(len(island.qubits)))
    basis = np.arange(state.shape[2])
    probabilities = state.real.square() + state.imag.square()
    signs = np.array([_parity_sign(basis & z) for _, z in paulis])
    diagonal = torch.as_tensor(signs, dtype=probabilities.dtype, device=state.device)
    values = diagonal @ probabilities
    if all(x == 0 for x, _ in paulis):
        return values
    rows = list(values.unbind(2))
    for k, (x, z) in enumerate(paulis):
        if x:
            # P|l> = i^(number of Y) (-1)^(l & z) |l ^ x>
            phase = 1j ** (x & z).bit_count() * _parity_sign((basis ^ x) & z)
            image = state[:, :, torch.as_tensor(basis ^ x, device=state.device)]
            image = image * torch.as_tensor(phase, dtype=state.dtype, device=state.device)[:, None]
            rows[k] = (state.conj() * image).real.sum(2)
    return torch.stack(rows, dim=2)


def _parity_sign(masked: np.ndarray) -> np.ndarray:
    """(-1) to the number of set bits."""
    return 1.0 - 2.0 * (np.bitwise_count(masked) % 2)
