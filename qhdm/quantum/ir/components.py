"""A filter as its connected components, which every engine simulates or runs separately."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from qhdm.errors import CircuitError
from qhdm.quantum.filter import Filter
from qhdm.quantum.ir.connectivity import connected
from qhdm.quantum.ir.light_cones import light_cone
from qhdm.quantum.ir.lowering import Op, Program, lower
from qhdm.quantum.ir.paulis import Pauli, restricted, strings_of

#: A coefficient, and the positions of the measured values that it multiplies.
Term = tuple[float, tuple[int, ...]]


@dataclass(frozen=True)
class Component:
    """One connected component, on local qubits and local angles.

    Attributes:
        qubits: its qubits in the circuit, sorted; local qubit i is qubits[i].
        ops: its gates in order.
        angles: for each local angle, its row of the program's angles.
        reads_inputs: for each local angle, whether it depends on the inputs.
        paulis: measured Pauli strings over local qubits.
    """

    qubits: tuple[int, ...]
    ops: tuple[Op, ...]
    angles: tuple[int, ...]
    reads_inputs: tuple[bool, ...]
    paulis: tuple[Pauli, ...]

    @classmethod
    def of(cls, program: Program, qubits: Sequence[int], paulis: Iterable[Pauli] = ()) -> Component:
        """The component of a program on these qubits."""
        local = {qubit: i for i, qubit in enumerate(qubits)}
        ops: list[Op] = []
        angles: list[int] = []
        for op in program.ops:
            if op.qubits[0] in local:
                angle = -1
                if op.angle >= 0:
                    angle = len(angles)
                    angles.append(op.angle)
                ops.append(replace(op, qubits=tuple(local[q] for q in op.qubits), angle=angle))
        reads = tuple(bool(program.from_inputs[row].any()) for row in angles)
        return cls(tuple(qubits), tuple(ops), tuple(angles), reads, tuple(paulis))

    @property
    def size(self) -> int:
        """Its number of qubits."""
        return len(self.qubits)

    @property
    def seen(self) -> list[int]:
        """The indices of the gates that any of its Pauli strings can see, in order."""
        return sorted(set().union(*(light_cone(self.ops, pauli) for pauli in self.paulis)))

    @property
    def signature(self) -> object:
        """Equal for components that differ in nothing but the values of their angles."""
        # Trigonometric forms are shared within a program: identity is equality.
        gates = tuple((op.qubits, id(op.gate), op.angle) for op in self.ops)
        return self.size, gates, self.reads_inputs, self.paulis


@dataclass(frozen=True, eq=False)
class Split:
    """A filter as components.

    Attributes:
        program: the lowered circuit.
        alike: the components that something observes, those that differ in nothing but the values
            of their angles together. The Pauli strings of all of them, in this order, are the
            measured values.
        outputs: for each observable, its terms.
    """

    program: Program
    alike: tuple[tuple[Component, ...], ...]
    outputs: tuple[tuple[Term, ...], ...]


def split(circuit_filter: Filter) -> Split:
    """Split a filter into components.

    Raises:
        CircuitError: a gate cannot be lowered, or an observable is not Hermitian or of other size.
    """
    program = lower(circuit_filter)
    parts = connected(program.qubits, [op.qubits for op in program.ops])
    observables = [_terms(circuit_filter, m, parts) for m in range(len(circuit_filter.observables))]
    measured: list[dict[Pauli, None]] = [{} for _ in parts]
    for _, touched in itertools.chain.from_iterable(observables):
        for number, pauli in touched:
            measured[number][pauli] = None

    alike: dict[object, list[tuple[int, Component]]] = {}
    for number, (qubits, paulis) in enumerate(zip(parts, measured, strict=True)):
        if paulis:
            component = Component.of(program, qubits, paulis)
            alike.setdefault(component.signature, []).append((number, component))

    groups = list(alike.values())
    order = [(n, pauli) for group in groups for n, member in group for pauli in member.paulis]
    position = {item: i for i, item in enumerate(order)}
    return Split(
        program,
        tuple(tuple(member for _, member in group) for group in groups),
        tuple(
            tuple((factor, tuple(position[item] for item in touched)) for factor, touched in terms)
            for terms in observables
        ),
    )


def angle_rows(members: Sequence[Component]) -> np.ndarray:
    """Rows of the program's angles, (G, number of local angles), of G equal components."""
    angles = np.array([member.angles for member in members], dtype=np.int64)
    return angles.reshape(len(members), -1)


def _terms(
    circuit_filter: Filter, m: int, parts: Sequence[tuple[int, ...]]
) -> list[tuple[float, list[tuple[int, Pauli]]]]:
    """Terms of observable m: each with the components that it touches, and its string on them."""
    observable = circuit_filter.observables[m]
    if observable.num_qubits != circuit_filter.circuit.num_qubits:
        raise CircuitError(
            f"{circuit_filter.name}: observable {m} acts on {observable.num_qubits} qubits, the "
            f"circuit has {circuit_filter.circuit.num_qubits}"
        )
    coefficients = observable.coeffs.astype(complex)
    if np.abs(coefficients.imag).max(initial=0) > 1e-12:
        raise CircuitError(f"{circuit_filter.name}: observable {m} is not Hermitian")
    terms = []
    for pauli, coefficient in zip(strings_of(observable), coefficients.real, strict=True):
        local = [(number, restricted(pauli, part)) for number, part in enumerate(parts)]
        terms.append((float(coefficient), [item for item in local if item[1] != (0, 0)]))
    return terms
