"""A filter as the circuits that are sent to Aer, one for all of its equal components."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from qiskit.circuit import Parameter, QuantumCircuit

from qhdm.quantum.filter import Filter
from qhdm.quantum.ir.components import Component, Term, angle_rows, split
from qhdm.quantum.ir.lowering import Op, Program
from qhdm.quantum.ir.paulis import Pauli


@dataclass(frozen=True, eq=False)
class Subcircuit:
    """G components with the same gates: one circuit, run with G sets of angles per sample.

    Attributes:
        circuit: free in `parameters`, one for each gate with an angle.
        parameters: local angles, in order.
        rows: (G, local angles), rows of the program's angles.
        ops: the gates with an angle, by local angle.
        live: the local angles that any observable can see.
        paulis: K measured Pauli strings over local qubits.
    """

    circuit: QuantumCircuit
    parameters: tuple[Parameter, ...]
    rows: np.ndarray
    ops: tuple[Op, ...]
    live: tuple[int, ...]
    paulis: tuple[Pauli, ...]

    @property
    def values(self) -> int:
        """How many values are measured: G K."""
        return len(self.rows) * len(self.paulis)


@dataclass(frozen=True, eq=False)
class Subcircuits:
    """The subcircuits of a circuit whose C parameters are the program's weights.

    Attributes:
        program: gives the angles.
        parts: their values (G, K), flattened and concatenated, are the measured values.
        outputs: for each observable, its terms.
    """

    program: Program
    parts: tuple[Subcircuit, ...]
    outputs: tuple[tuple[Term, ...], ...]

    def angles(self, sets: np.ndarray) -> np.ndarray:
        """Angles (R, angles) at parameter sets (R, C), radians."""
        angles: np.ndarray = sets @ self.program.from_weights.T + self.program.offsets
        return angles

    def combine(self, measured: np.ndarray) -> np.ndarray:
        """Observables (R, m) of measured values (R, V)."""
        outputs = np.zeros((len(measured), len(self.outputs)))
        for m, terms in enumerate(self.outputs):
            for coefficient, factors in terms:
                outputs[:, m] += coefficient * measured[:, factors].prod(axis=1)
        return outputs

    def pull_back(self, measured: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        """The gradient of the measured values, (R, V), from that of the observables, (R, m)."""
        back = np.zeros_like(measured)
        for m, terms in enumerate(self.outputs):
            for coefficient, factors in terms:
                for i, factor in enumerate(factors):
                    others = measured[:, factors[:i] + factors[i + 1 :]].prod(axis=1)
                    back[:, factor] += coefficient * others * gradient[:, m]
        return back


def subcircuits_of(circuit_filter: Filter, *, keep_all: bool) -> Subcircuits:
    """The circuits of a filter.

    Args:
        circuit_filter: the circuit and its observables.
        keep_all: keep gates that no observable can see; with noise they may yet be seen.

    Raises:
        CircuitError: a gate or an observable cannot be used.
    """
    parts = split(circuit_filter)
    subcircuits = tuple(_subcircuit(parts.program, group, keep_all) for group in parts.alike)
    return Subcircuits(parts.program, subcircuits, parts.outputs)


def _subcircuit(program: Program, members: Sequence[Component], keep_all: bool) -> Subcircuit:
    first = members[0]
    ops = first.ops if keep_all else [first.ops[i] for i in first.seen]
    circuit = QuantumCircuit(first.size)
    for op in ops:
        circuit.append(op.source, op.qubits)
    return Subcircuit(
        circuit,
        tuple(program.parameters[row] for row in first.angles),
        angle_rows(members),
        tuple(op for op in first.ops if op.angle >= 0),
        tuple(op.angle for op in ops if op.angle >= 0),
        first.paulis,
    )
