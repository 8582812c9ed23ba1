"""QPY from anyone: what a file may cost and hold is settled before Qiskit reads it.

QPY is data, but reading it may evaluate text (versions before 13) or call a class of Qiskit's
library, and makes room for as many qubits as the headers declare.
"""

from __future__ import annotations

import io
import struct

from qiskit import qpy
from qiskit.circuit import QuantumCircuit, library
from qiskit.circuit.library import Barrier, Measure, UnitaryGate

from qhdm.errors import CircuitError
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
    """The one circuit of a QPY file; measurements are kept.

    Args:
        content: the file.
        source: its name, for messages.
        max_qubits: of the circuit, and classical bits.

    Raises:
        CircuitError: it is damaged, of a version that is not safe to read, holds no or several
            circuits, too many qubits, or an instruction that reading would construct.
    """
    if len(content) < 7 or not content.startswith(b"QISKIT"):
        raise CircuitError(f"{source}: not a QPY file")
    if content[6] < _QPY_VERSION:
        raise CircuitError(
            f"{source}: QPY version {content[6]}; write it anew with Qiskit 1.3 or newer "
            f"(version {_QPY_VERSION})"
        )
    _check_sizes(content, source, max_qubits)
    _refuse_constructors(content, source)
    try:
        circuits = qpy.load(io.BytesIO(content))
    except Exception as error:  # Qiskit raises many kinds for a damaged or hostile file
        raise damaged(source, error) from None
    circuit: QuantumCircuit = circuits[0]
    return circuit


def damaged(source: str, error: Exception) -> CircuitError:
    """What to say of a file that Qiskit cannot use."""
    return CircuitError(
        f"{source}: damaged, or not a circuit ({type(error).__name__}); write it anew"
    )


def _check_sizes(content: bytes, source: str, max_qubits: int) -> None:
    """Refuse sizes that reading would make room for, as the headers declare them."""
    try:
        *_, circuits, _ = _FILE.unpack_from(content)
        if circuits != 1:
            raise CircuitError(f"{source}: holds {circuits} circuits; a filter is one")
        start = _FILE.size + 1  # the kind of payload is one character
        if content[6] >= _TABLE_VERSION:
            (start,) = struct.unpack_from("!Q", content, start)
        *_, qubits, bits = _CIRCUIT.unpack_from(content, start)
    except (struct.error, OverflowError):  # the place may be any number of 64 bits
        raise CircuitError(f"{source}: damaged, or not a QPY file; write it anew") from None
    if max(qubits, bits) > max_qubits:
        raise CircuitError(
            f"{source}: declares {qubits} qubits and {bits} bits; at most {max_qubits} are read"
        )


def _is_data(kind: type) -> bool:
    """Whether reading makes an object of this class of its parameters alone."""
    return issubclass(kind, UnitaryGate | Measure | Barrier) or str(kind.__module__).startswith(
        STANDARD_GATES
    )


def _refuse_constructors(content: bytes, source: str) -> None:
    """Refuse instructions that reading makes by calling a class of Qiskit's library.

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
