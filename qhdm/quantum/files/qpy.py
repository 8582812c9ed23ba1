"""QPY from untrusted sources: size and content are checked before Qiskit reads a file.

QPY is data, but reading it may evaluate text (versions before 13) or call a class of Qiskit's
library, and allocates as many qubits as the headers declare.
"""

from __future__ import annotations

import io
import struct

from qiskit import qpy
from qiskit.circuit import Gate, QuantumCircuit, library
from qiskit.circuit.library import Barrier, Measure, UnitaryGate

from qhdm.errors import CircuitError
from qhdm.quantum.ir.lowering import IGNORED
from qhdm.quantum.unroll import STANDARD_GATES

#: Before this version, QPY held expressions as text that reading evaluates.
_QPY_VERSION = 13
#: From this one on, the file header is followed by the place of each circuit.
_TABLE_VERSION = 16

# The layout is documented at https://quantum.cloud.ibm.com/docs/api/qiskit/qpy.
#: "QISKIT", QPY version, Qiskit's version, number of circuits, encoding of expressions.
_FILE = struct.Struct("!6sBBBBQc")
#: Name size, type and size of the global phase, qubits, bits, and more.
_CIRCUIT = struct.Struct("!HcHII")
#: Name size first; the name follows.
_INSTRUCTION = struct.Struct("!HHHIIBHqII")


def read_qpy(content: bytes, source: str, *, max_qubits: int) -> QuantumCircuit:
    """The gates of the one circuit of a QPY file; final measurements are dropped.

    Args:
        content: the file.
        source: its name, for messages.
        max_qubits: of the circuit, and classical bits.

    Raises:
        CircuitError: its headers are damaged, it is of a version that is not safe to read, holds
            no or several circuits, too many qubits, or an instruction that is not a gate.
        Exception: many kinds, of Qiskit: the rest of the file is damaged.
    """
    if len(content) < 7 or not content.startswith(b"QISKIT"):
        raise CircuitError(f"{source}: not a QPY file")
    if content[6] < _QPY_VERSION:
        raise CircuitError(
            f"{source}: QPY version {content[6]}; write it again with Qiskit 1.3 or newer "
            f"(version {_QPY_VERSION})"
        )
    _check_sizes(content, source, max_qubits)
    _refuse_constructors(content, source)
    (circuit,) = qpy.load(io.BytesIO(content))
    return _gates_alone(circuit, source)


def _check_sizes(content: bytes, source: str, max_qubits: int) -> None:
    """Refuse headers that declare too large sizes, which reading would allocate."""
    try:
        *_, circuits, _ = _FILE.unpack_from(content)
        if circuits != 1:
            raise CircuitError(f"{source}: holds {circuits} circuits; a filter is one")
        start = _FILE.size + 1  # the kind of payload is one character
        if content[6] >= _TABLE_VERSION:
            (start,) = struct.unpack_from("!Q", content, start)
        *_, qubits, bits = _CIRCUIT.unpack_from(content, start)
    except (struct.error, OverflowError):  # the place may be any number of 64 bits
        raise CircuitError(f"{source}: damaged, or not a QPY file; write it again") from None
    if max(qubits, bits) > max_qubits:
        raise CircuitError(
            f"{source}: declares {qubits} qubits and {bits} bits; at most {max_qubits} are read"
        )


def _is_data(kind: type) -> bool:
    """Whether reading constructs an object of this class from its parameters only."""
    return issubclass(kind, UnitaryGate | Measure | Barrier) or str(kind.__module__).startswith(
        STANDARD_GATES
    )


def _refuse_constructors(content: bytes, source: str) -> None:
    """Refuse instructions that reading constructs by calling a class of Qiskit's library.

    Any class of the library may be named, with any arguments: some would build circuits of any
    size. Gates are safe: they are data.
    """
    for name, value in vars(library).items():
        if not callable(value) or (isinstance(value, type) and _is_data(value)):
            continue
        at = content.find(name.encode())
        while at >= 0:
            start = at - _INSTRUCTION.size
            if start >= 0 and _INSTRUCTION.unpack_from(content, start)[0] == len(name):
                raise CircuitError(
                    f"{source}: holds a {name}; write it out in gates (circuit.decompose())"
                )
            at = content.find(name.encode(), at + 1)


def _gates_alone(circuit: QuantumCircuit, source: str) -> QuantumCircuit:
    """`circuit` without its final measurements and classical bits.

    A transpiled circuit has a layout, which says where each qubit of the original circuit is at the
    end: qubit i of the result is the one that holds qubit i there, and ancillas follow.

    Raises:
        CircuitError: something else than a gate, a gate after a measurement, or a layout that does
            not fit.
    """
    # A free phase changes no expectation value, and must not count as the use of a parameter.
    gates = QuantumCircuit(circuit.num_qubits, name=source)
    place = _places(circuit, source)
    measured: set[int] = set()
    for entry in circuit.data:
        qubits = [place[circuit.find_bit(qubit).index] for qubit in entry.qubits]
        operation = entry.operation
        if isinstance(operation, Measure):
            measured.update(qubits)
            continue
        if isinstance(operation, IGNORED):
            continue
        if measured.intersection(qubits):
            raise CircuitError(
                f"{source}: {operation.name} on qubits {qubits} follows a measurement; "
                "measurements are only allowed at the end"
            )
        if not isinstance(operation, Gate):
            remedy = "a filter consists of gates only"
            if operation.definition is not None:
                remedy = "write it out in gates (circuit.decompose())"
            raise CircuitError(
                f"{source}: {operation.name} on qubits {qubits} is not a unitary gate; {remedy}"
            )
        gates.append(operation, qubits)
    return gates


def _places(circuit: QuantumCircuit, source: str) -> list[int]:
    """For each qubit of `circuit`, its index before the layout."""
    size = circuit.num_qubits
    if circuit.layout is None:
        return list(range(size))
    ends = circuit.layout.final_index_layout()
    if len(set(ends)) < len(ends) or not set(ends) <= set(range(size)):
        raise CircuitError(f"{source}: the layout does not fit the circuit; write it again")
    order = [*ends, *sorted(set(range(size)) - set(ends))]
    return [order.index(qubit) for qubit in range(size)]
