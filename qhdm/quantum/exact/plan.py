"""Simulation plans of the exact engine: components, and the method for each.

Pure bookkeeping on qubits and gates, made once per filter; `exact` runs it in torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
import torch

from qhdm.errors import CircuitError
from qhdm.quantum.exact.block_tensors import Coefficients
from qhdm.quantum.exact.contraction import Contraction, plan_contraction
from qhdm.quantum.exact.gate_matrices import Cache, GateMatrices
from qhdm.quantum.exact.partition import NOMINAL_BATCH, plan_network
from qhdm.quantum.exact.tree import Network
from qhdm.quantum.filter import Filter
from qhdm.quantum.ir.components import Component, Term, angle_rows, split
from qhdm.quantum.ir.fusion import FusedGate
from qhdm.quantum.ir.lowering import Op, Program
from qhdm.quantum.ir.paulis import Pauli

Method = Literal["auto", "network", "statevector"]

#: In a state vector, gates that do not read inputs fuse into unitaries of at most this many qubits.
FUSE_QUBITS = 4
#: Real multiply-adds of a matrix product that take as long as one in a state vector's many small
#: steps: what it moves through memory costs it about this factor (benchmarks/filters.py).
STATEVECTOR_PENALTY = 3
#: Coefficients below this, of some that are about 1, are rounding.
_ZERO = 1e-12


@dataclass(frozen=True, eq=False)
class Group:
    """G components with the same gates and observables: simulated as one batch.

    Attributes:
        size: qubits of each component.
        qubits: of the circuit, of each component in turn; local qubit i is the i-th.
        angles: (G, number of local angles): rows of the program's angles.
        paulis: measured Pauli strings over local qubits.
        units: fused gates in order, for a state vector.
        reads_inputs: for each unit, whether its matrix differs from sample to sample.
        network: the component as a tree of blocks, if that is how it is simulated.
        contraction: of the network, if it has more than one block.
        cost: real multiply-adds per sample in a forward pass, of all G.
    """

    size: int
    qubits: tuple[tuple[int, ...], ...]
    angles: np.ndarray
    paulis: tuple[Pauli, ...]
    units: tuple[FusedGate, ...]
    reads_inputs: tuple[bool, ...]
    network: Network | None
    contraction: Contraction | None
    cost: int

    @cached_property
    def signs(self) -> np.ndarray:
        """For each Pauli string, the signs of its Z at each amplitude, (K, 2^n)."""
        basis = np.arange(2**self.size)
        return np.array([_parity_sign(basis & z) for _, z in self.paulis])

    @cached_property
    def images(self) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        """Of strings with X or Y, by number: which amplitude goes where, with which phase."""
        basis = np.arange(2**self.size)
        images = {}
        for k, (x, z) in enumerate(self.paulis):
            if x:
                # P|l> = i^(number of Y) (-1)^(l & z) |l ^ x>
                phases = 1j ** (x & z).bit_count() * _parity_sign((basis ^ x) & z)
                images[k] = basis ^ x, phases[:, None]
        return images


@dataclass(frozen=True, eq=False)
class Plan:
    """A filter, ready to simulate.

    Attributes:
        program: the lowered circuit.
        groups: what to simulate; their values, flattened from (G, number of Paulis) and put end
            to end, are the measured values.
        outputs: for each observable, its terms.
        cache: keeps constant tensors between calls.
    """

    program: Program
    groups: tuple[Group, ...]
    outputs: tuple[tuple[Term, ...], ...]
    cache: Cache = field(default_factory=dict)


def make_plan(filter: Filter, method: Method = "auto") -> Plan:
    """Plan the simulation of `filter`.

    Args:
        filter: the circuit and its observables.
        method: `network`, `statevector`, or `auto` for the cheaper one, component by component.

    Raises:
        CircuitError: a gate cannot be lowered, an observable is not Hermitian or of other size, or
            a network is asked for and there is none.
    """
    parts = split(filter)
    groups = tuple(_group(filter.name, parts.program, members, method) for members in parts.alike)
    return Plan(parts.program, groups, parts.outputs)


def _group(name: str, program: Program, members: Sequence[Component], method: Method) -> Group:
    first = members[0]
    units, reads = fuse([first.ops[i] for i in first.seen], first.reads_inputs)
    cost = 4 * sum(2 ** (first.size + len(unit.qubits)) for unit in units)
    network = None
    if method != "statevector":
        network = plan_network(first.size, first.ops, first.reads_inputs, first.paulis)
    if method == "network" and network is None:
        raise CircuitError(
            f"{name}: has no network of small blocks; use the exact engine's own choice"
        )
    if network is not None:
        total = network.cost + network.cost_once // NOMINAL_BATCH
        if method == "auto" and total > STATEVECTOR_PENALTY * cost:
            network = None
    angles = angle_rows(members)
    contraction = None
    if network is not None:
        cost = network.cost
        if network.tree:
            contraction = plan_contraction(network, _nonzero(program, network, angles))
            cost = contraction.cost
    return Group(
        first.size,
        tuple(member.qubits for member in members),
        angles,
        first.paulis,
        units,
        reads,
        network,
        contraction,
        cost * len(members),
    )


def _nonzero(program: Program, network: Network, rows: np.ndarray) -> list[np.ndarray]:
    """For each block, which rows of its coefficients do not vanish at generic weights.

    They are analytic in the weights: what vanishes at generic ones vanishes at all.
    """
    generator = torch.Generator().manual_seed(20)
    count = program.from_weights.shape[1]
    w = 2 * math.pi * torch.rand(3, count, dtype=torch.float64, generator=generator)
    with torch.no_grad():
        coefficients = Coefficients(network, rows, GateMatrices(program, w, {}))
        blocks = [coefficients.of_block(i) for i in range(len(network.blocks))]
    return [(block.abs().amax((0, 2)) > _ZERO).numpy() for block in blocks]


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


def _parity_sign(masked: np.ndarray) -> np.ndarray:
    """(-1) to the number of set bits."""
    return 1.0 - 2.0 * (np.bitwise_count(masked) % 2)
