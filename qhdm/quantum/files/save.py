"""Filters as text and files that any Qiskit reads: OpenQASM 3, OpenQASM 2, QPY.

Free parameters get padded names, x00, x01, ... and w000, w001, ...: the order of names, by which
readers sort them, is then the order of numbers. Bind them by name all the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from qiskit import qasm2, qasm3, qpy, transpile
from qiskit.circuit import Parameter, QuantumCircuit

from qhdm.files import atomic_path, write_text
from qhdm.quantum.filter import Filter

#: Gates that OpenQASM 2 has in the library of its paper, which every reader knows; qasm2.dumps
#: itself would also write gates that Qiskit alone knows (crx, sx).
_OPENQASM2_GATES = ["rx", "ry", "rz", "h", "x", "cx", "u3"]


def input_names(filter: Filter) -> list[str]:
    """x00, x01, ..., one for each input."""
    return _names("x", len(filter.inputs), 2)


def weight_names(filter: Filter) -> list[str]:
    """w000, w001, ..., one for each weight, be it in the circuit or not."""
    return _names("w", len(filter.weights), 3)


def _names(letter: str, count: int, digits: int) -> list[str]:
    digits = max(digits, len(str(count - 1)))
    return [f"{letter}{i:0{digits}d}" for i in range(count)]


def named_circuit(filter: Filter) -> QuantumCircuit:
    """The circuit of `filter`, its parameters under padded names."""
    names = [*input_names(filter), *weight_names(filter)]
    return filter.assign(map(Parameter, names))


def to_openqasm3(circuit: QuantumCircuit) -> str:
    """OpenQASM 3; free parameters become `input float` declarations."""
    text: str = qasm3.dumps(circuit)
    return text


def to_openqasm2(circuit: QuantumCircuit) -> str:
    """OpenQASM 2 of a circuit without free parameters, which the language cannot hold.

    Gates are rewritten in those that any reader knows; the qubits stay where they are.
    """
    rebased = transpile(circuit, basis_gates=_OPENQASM2_GATES, optimization_level=0)
    text: str = qasm2.dumps(rebased)
    return text


def write_qpy(circuit: QuantumCircuit, path: Path) -> None:
    """QPY, which loses nothing."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        qpy.dump(circuit, file)


def write_filter(filter: Filter, path: Path) -> None:
    """Write a filter, inputs and weights free, as OpenQASM 3 or QPY, by the name of the file.

    `qhdm.quantum.files.load.load_filter` reads it back as the same filter.
    """
    circuit = named_circuit(filter)
    if path.suffix == ".qpy":
        write_qpy(circuit, path)
    else:
        write_text(path, to_openqasm3(circuit))


def values_by_name(names: Sequence[str], values: Iterable[float]) -> dict[str, float]:
    """One value, radians, for each name."""
    return {name: float(value) for name, value in zip(names, values, strict=True)}
