"""How the exact engine will simulate a filter: components, fused blocks, measured Paulis.

Pure bookkeeping on qubits and gates, made once per filter; `exact` runs it in torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qhdm.errors import CircuitError
from qhdm.quantum.filter import Filter
from qhdm.quantum.program import Op, Program, Trig, lower
from qhdm.quantum.structure import connected

#: Gates that do not depend on the inputs fuse into unitaries of at most this many qubits.
FUSE_QUBITS = 4


@dataclass(frozen=True)
class Block:
    """Consecutive gates applied at once: one fused unitary, or one gate that reads the inputs.

    Attributes:
        qubits: local qubits, the least significant first.
        ops: gates on local qubits; their `angle` is a position in the group's `angles`.
        on_inputs: whether the matrix differs from sample to sample.
    """

    qubits: tuple[int, ...]
    ops: tuple[Op, ...]
    on_inputs: bool


@dataclass(frozen=True, eq=False)
class Group:
    """G components with the same gates and observables: simulated as one batch.

    Attributes:
        size: qubits of each component.
        blocks: what to apply, in order, on local qubits.
        angles: (G, number of local angles): rows of the program's angles.
        paulis: measured Pauli strings as (x mask, z mask) over local qubits.
    """

    size: int
    blocks: tuple[Block, ...]
    angles: np.ndarray
    paulis: tuple[tuple[int, int], ...]


@dataclass(frozen=True, eq=False)
class Plan:
    """A filter, ready to simulate.

    The measured values of all groups, each flattened from (G, number of Paulis) and followed by
    a constant 1, form one vector. Observable m is the sum, over terms t, of `mixing[t, m]` times
    the product of the values at `factors[t]`.
    """

    program: Program
    groups: tuple[Group, ...]
    factors: np.ndarray
    mixing: np.ndarray


def make_plan(filter: Filter) -> Plan:
    """Plan the simulation of `filter`.

    Raises:
        CircuitError: a gate cannot be lowered, or an observable is not Hermitian or of other size.
    """
    program = lower(filter)
    parts = connected(program.qubits, (op.qubits for op in program.ops))
    terms = _terms(filter, parts)
    measured: list[dict[tuple[int, int], None]] = [{} for _ in parts]
    for term in terms:
        for component, pauli in term.touched.items():
            measured[component][pauli] = None

    # Components that nothing observes are not simulated; equal ones share a group.
    alike: dict[object, list[_Component]] = {}
    for index, part in enumerate(parts):
        if measured[index]:
            local = _localise(program, index, part, tuple(measured[index]))
            alike.setdefault(local.signature, []).append(local)
    groups = tuple(
        Group(
            members[0].size,
            fuse(members[0].ops, members[0].reads_inputs),
            np.array([member.angles for member in members], dtype=np.int64),
            members[0].paulis,
        )
        for members in alike.values()
    )

    order = [(m.index, pauli) for members in alike.values() for m in members for pauli in m.paulis]
    position = {item: i for i, item in enumerate(order)}
    width = max([1, *(len(term.touched) for term in terms)])
    factors = np.full((len(terms), width), len(order), dtype=np.int64)
    mixing = np.zeros((len(terms), len(filter.observables)))
    for t, term in enumerate(terms):
        mixing[t, term.observable] = term.coefficient
        for k, item in enumerate(term.touched.items()):
            factors[t, k] = position[item]
    return Plan(program, groups, factors, mixing)


def fuse(ops: Sequence[Op], reads_inputs: Sequence[bool]) -> tuple[Block, ...]:
    """Gather gates into blocks of at most `FUSE_QUBITS` qubits without changing the circuit.

    Gates that read the inputs stay alone, since their matrix differs from sample to sample.

    Args:
        ops: gates in order.
        reads_inputs: for each angle of `ops`, whether it depends on the inputs.
    """
    blocks = [
        Block(op.qubits, (op,), on_inputs=op.angle >= 0 and reads_inputs[op.angle]) for op in ops
    ]
    while len(shorter := _merge(blocks)) < len(blocks):
        blocks = shorter
    return tuple(blocks)


def _merge(blocks: Sequence[Block]) -> list[Block]:
    """Join each block to the last one before it that shares a qubit, where they may fuse."""
    merged: list[Block] = []
    for block in blocks:
        # Blocks after `last` act on other qubits: `block` commutes past them.
        last = max(
            (i for i, b in enumerate(merged) if set(b.qubits) & set(block.qubits)), default=-1
        )
        union = set(block.qubits).union(merged[last].qubits) if last >= 0 else set()
        if (
            last >= 0
            and len(union) <= FUSE_QUBITS
            and not (block.on_inputs or merged[last].on_inputs)
        ):
            merged[last] = Block(tuple(sorted(union)), merged[last].ops + block.ops, False)
        else:
            merged.append(block)
    return merged


@dataclass(frozen=True)
class _Component:
    """One connected component, on local qubits and local angles."""

    index: int
    size: int
    ops: tuple[Op, ...]
    angles: tuple[int, ...]
    reads_inputs: tuple[bool, ...]
    paulis: tuple[tuple[int, int], ...]

    @property
    def signature(self) -> object:
        """Equal for components that differ in nothing but the values of their angles."""
        gates = tuple(
            # Trigonometric forms are shared within a program: identity is equality.
            (op.qubits, id(op.gate) if isinstance(op.gate, Trig) else op.gate.tobytes(), op.angle)
            for op in self.ops
        )
        return self.size, gates, self.reads_inputs, self.paulis


def _localise(
    program: Program, index: int, part: tuple[int, ...], paulis: tuple[tuple[int, int], ...]
) -> _Component:
    local = {qubit: i for i, qubit in enumerate(part)}
    ops: list[Op] = []
    angles: list[int] = []
    for op in program.ops:
        if op.qubits[0] in local:
            angle = -1
            if op.angle >= 0:
                angle = len(angles)
                angles.append(op.angle)
            ops.append(Op(tuple(local[q] for q in op.qubits), op.gate, angle))
    reads = tuple(bool(np.any(program.from_inputs[row])) for row in angles)
    return _Component(index, len(part), tuple(ops), tuple(angles), reads, paulis)


@dataclass(frozen=True)
class _Term:
    """A Pauli string of an observable: for each component it touches, local (x, z) masks."""

    observable: int
    coefficient: float
    touched: dict[int, tuple[int, int]]


def _terms(filter: Filter, parts: Sequence[tuple[int, ...]]) -> list[_Term]:
    home = {qubit: (c, i) for c, part in enumerate(parts) for i, qubit in enumerate(part)}
    terms = []
    for m, observable in enumerate(filter.observables):
        if observable.num_qubits != filter.circuit.num_qubits:
            raise CircuitError(
                f"{filter.name}: observable {m} acts on {observable.num_qubits} qubits, the "
                f"circuit has {filter.circuit.num_qubits}"
            )
        for string, qubits, coefficient in observable.to_sparse_list():
            if abs(complex(coefficient).imag) > 1e-12:
                raise CircuitError(f"{filter.name}: observable {m} is not Hermitian")
            touched: dict[int, tuple[int, int]] = {}
            for letter, qubit in zip(string, qubits, strict=True):
                component, bit = home[qubit]
                x, z = touched.get(component, (0, 0))
                touched[component] = (
                    x | (letter in "XY") << bit,
                    z | (letter in "YZ") << bit,
                )
            terms.append(_Term(m, float(complex(coefficient).real), touched))
    return terms
