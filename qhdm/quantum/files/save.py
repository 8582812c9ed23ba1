"""Write filters as OpenQASM 3, OpenQASM 2 and QPY that any Qiskit reads.

Free parameters get padded names, x00, x01, ... and w000, w001, ..., so that readers that sort them
by name keep their numerical order. Bind them by name nevertheless.
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


def input_names(circuit_filter: Filter) -> list[str]:
    """Names of the inputs: x00, x01, ..."""
    return _names("x", len(circuit_filter.inputs), 2)


def weight_names(circuit_filter: Filter) -> list[str]:
    """Names of the weights: w000, w001, ..., including those absent from the circuit."""
    return _names("w", len(circuit_filter.weights), 3)


def _names(letter: str, count: int, digits: int) -> list[str]:
    digits = max(digits, len(str(count - 1)))
    return [f"{letter}{i:0{digits}d}" for i in range(count)]


def named_circuit(circuit_filter: Filter) -> QuantumCircuit:
    """The circuit of a filter, its parameters under padded names."""
    names = [*input_names(circuit_filter), *weight_names(circuit_filter)]
    return circuit_filter.assign(map(Parameter, names))


def to_openqasm3(circuit: QuantumCircuit) -> str:
    """The circuit as OpenQASM 3; free parameters become `input float` declarations."""
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
    """Write QPY, which is lossless."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        qpy.dump(circuit, file)


def write_filter(circuit_filter: Filter, path: Path) -> None:
    """Write a filter, inputs and weights free, as OpenQASM 3 or QPY, by the name of the file.

    `qhdm.quantum.files.load.load_filter` reads it back as the same filter.
    """
    circuit = named_circuit(circuit_filter)
    if path.suffix == ".qpy":
        write_qpy(circuit, path)
    else:
        write_text(path, to_openqasm3(circuit))


def values_by_name(names: Sequence[str], values: Iterable[float]) -> dict[str, float]:
    """One value, radians, for each name."""
    return {name: float(value) for name, value in zip(names, values, strict=True)}
