"""Fusion of consecutive gates into small matrices, in NumPy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from qhdm.quantum.ir.lowering import Op, Trig

#: Gates that do not read inputs fuse into unitaries of at most this many qubits.
FUSE_QUBITS = 4


@dataclass(frozen=True, eq=False)
class FusedGate:
    """Consecutive gates applied as one matrix.

    Attributes:
        qubits: on which it acts; `qubits[0]` is the least significant bit of the matrix index.
        ops: the gates, in order, on some or all of these qubits.
    """

    qubits: tuple[int, ...]
    ops: tuple[Op, ...]

    @cached_property
    def gates(self) -> tuple[Trig, ...]:
        """The gates as matrices on all qubits of the unit; constant ones have A = B = 0."""
        gates = []
        for op in self.ops:
            gate = op.gate
            K, A, B = (embed(part, op.qubits, self.qubits) for part in (gate.K, gate.A, gate.B))
            gates.append(Trig(K, A, B, gate.scale))
        return tuple(gates)

    @cached_property
    def parts(self) -> np.ndarray:
        """K, A and B of all gates as real numbers, (gates, 3, d d 2)."""
        matrices = np.array([[gate.K, gate.A, gate.B] for gate in self.gates], dtype=complex)
        parts = np.stack([matrices.real, matrices.imag], axis=-1)
        return parts.reshape(len(self.gates), 3, -1)

    @cached_property
    def kind(self) -> object:
        """Equal for units that differ in their qubits and angles alone."""
        # Trigonometric forms are shared within a program: identity is equality.
        return len(self.qubits), tuple(
            (tuple(self.qubits.index(q) for q in op.qubits), id(op.gate)) for op in self.ops
        )

    def at(self, angles: Mapping[int, float]) -> np.ndarray:
        """The matrix, (d, d), at given angles (radians)."""
        matrix = np.eye(2 ** len(self.qubits), dtype=complex)
        for op, gate in zip(self.ops, self.gates, strict=True):
            matrix = (gate.K if op.angle < 0 else gate.at(angles[op.angle])) @ matrix
        return matrix


def by_kind(items: Iterable[Any], kind: Callable[[Any], object]) -> list[tuple[Any, ...]]:
    """Items gathered by kind, in the order in which kinds first occur."""
    kinds: dict[object, list[Any]] = {}
    for item in items:
        kinds.setdefault(kind(item), []).append(item)
    return [tuple(members) for members in kinds.values()]


def fuse(
    ops: Sequence[Op], reads_inputs: Sequence[bool]
) -> tuple[tuple[FusedGate, ...], tuple[bool, ...]]:
    """Gather gates into units of at most `FUSE_QUBITS` qubits without changing the circuit.

    Gates that read the inputs are not fused, since their matrix differs from sample to sample.

    Args:
        ops: gates in order.
        reads_inputs: for each angle of `ops`, whether it depends on the inputs.

    Returns:
        The units, and for each whether it reads inputs.
    """
    units = [(FusedGate(op.qubits, (op,)), op.angle >= 0 and reads_inputs[op.angle]) for op in ops]
    while len(shorter := _merge(units)) < len(units):
        units = shorter
    return tuple(unit for unit, _ in units), tuple(reads for _, reads in units)


def _merge(units: Sequence[tuple[FusedGate, bool]]) -> list[tuple[FusedGate, bool]]:
    """Join each unit to the last one before it that shares a qubit, where they may fuse."""
    merged: list[tuple[FusedGate, bool]] = []
    for unit, reads in units:
        mine = set(unit.qubits)
        # Units after `last` act on other qubits: this one commutes past them.
        last = max((i for i, (u, _) in enumerate(merged) if set(u.qubits) & mine), default=-1)
        if last >= 0 and not reads and not merged[last][1]:
            before = merged[last][0]
            union = mine.union(before.qubits)
            if len(union) <= FUSE_QUBITS:
                merged[last] = (FusedGate(tuple(sorted(union)), before.ops + unit.ops), False)
                continue
        merged.append((unit, reads))
    return merged


def embed(matrix: np.ndarray, qubits: Sequence[int], among: Sequence[int]) -> np.ndarray:
    """An operator on `qubits` as one on `among`, (2^n, 2^n); first qubits least significant."""
    k, n = len(qubits), len(among)
    tensor = np.eye(2**n, dtype=complex).reshape([2] * n + [2**n])
    axes = [n - 1 - among.index(q) for q in reversed(qubits)]
    tensor = np.tensordot(matrix.reshape([2] * (2 * k)), tensor, axes=(range(k, 2 * k), axes))
    return np.moveaxis(tensor, range(k), axes).reshape(2**n, 2**n)


def random_angles(units: Sequence[FusedGate], draw: int) -> dict[int, float]:
    """Generic angles for all gates of `units`; equal draws are equal."""
    random = np.random.default_rng((20, draw))
    rows = sorted({op.angle for unit in units for op in unit.ops if op.angle >= 0})
    return dict(zip(rows, random.uniform(0, 2 * np.pi, len(rows)), strict=True))
