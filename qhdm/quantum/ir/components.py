"""A filter as its connected components: what every engine simulates or runs apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qhdm.errors import CircuitError
from qhdm.quantum.filter import Filter
from qhdm.quantum.ir.light_cones import Pauli, connected
from qhdm.quantum.ir.lowering import Op, Program, lower

#: A coefficient, and the positions of the measured values that it multiplies.
Term = tuple[float, tuple[int, ...]]


@dataclass(frozen=True)
class Component:
    """One connected component, on local qubits and local angles.

    Attributes:
        index: its number, by its first qubit.
        qubits: its qubits in the circuit, sorted; local qubit i is qubits[i].
        ops: its gates in order.
        places: where they stand among the program's gates.
        angles: for each local angle, its row of the program's angles.
        reads_inputs: for each local angle, whether it depends on the inputs.
        paulis: measured Pauli strings over local qubits.
    """

    index: int
    qubits: tuple[int, ...]
    ops: tuple[Op, ...]
    places: tuple[int, ...]
    angles: tuple[int, ...]
    reads_inputs: tuple[bool, ...]
    paulis: tuple[Pauli, ...]

    @property
    def size(self) -> int:
        """Its number of qubits."""
        return len(self.qubits)

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


def split(filter: Filter) -> Split:
    """Take `filter` apart.

    Raises:
        CircuitError: a gate cannot be lowered, or an observable is not Hermitian or of other size.
    """
    program = lower(filter)
    parts = connected(program.qubits, [op.qubits for op in program.ops])
    terms = _terms(filter, parts)
    measured: list[dict[Pauli, None]] = [{} for _ in parts]
    for term in terms:
        for component, pauli in term.touched.items():
            measured[component][pauli] = None

    alike: dict[object, list[Component]] = {}
    for index, part in enumerate(parts):
        if measured[index]:
            local = _localise(program, index, part, tuple(measured[index]))
            alike.setdefault(local.signature, []).append(local)

    order = [(m.index, pauli) for members in alike.values() for m in members for pauli in m.paulis]
    position = {item: i for i, item in enumerate(order)}
    outputs: list[list[Term]] = [[] for _ in filter.observables]
    for term in terms:
        factors = tuple(position[item] for item in term.touched.items())
        outputs[term.observable].append((term.coefficient, factors))
    return Split(program, tuple(map(tuple, alike.values())), tuple(map(tuple, outputs)))


def angle_rows(members: Sequence[Component]) -> np.ndarray:
    """Rows of the program's angles, (G, number of local angles), of G equal components."""
    angles = np.array([member.angles for member in members], dtype=np.int64)
    return angles.reshape(len(members), -1)


def _localise(
    program: Program, index: int, part: tuple[int, ...], paulis: tuple[Pauli, ...]
) -> Component:
    local = {qubit: i for i, qubit in enumerate(part)}
    ops: list[Op] = []
    angles: list[int] = []
    places: list[int] = []
    for place, op in enumerate(program.ops):
        if op.qubits[0] in local:
            places.append(place)
            angle = -1
            if op.angle >= 0:
                angle = len(angles)
                angles.append(op.angle)
            ops.append(Op(tuple(local[q] for q in op.qubits), op.gate, angle))
    reads = tuple(bool(np.any(program.from_inputs[row])) for row in angles)
    return Component(index, part, tuple(ops), tuple(places), tuple(angles), reads, paulis)


@dataclass(frozen=True)
class _String:
    """A Pauli string of an observable: for each component it touches, local (x, z) masks."""

    observable: int
    coefficient: float
    touched: dict[int, Pauli]


def _terms(filter: Filter, parts: Sequence[tuple[int, ...]]) -> list[_String]:
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
            touched: dict[int, Pauli] = {}
            for letter, qubit in zip(string, qubits, strict=True):
                component, bit = home[qubit]
                x, z = touched.get(component, (0, 0))
                touched[component] = (
                    x | (letter in "XY") << bit,
                    z | (letter in "YZ") << bit,
                )
            terms.append(_String(m, float(complex(coefficient).real), touched))
    return terms
