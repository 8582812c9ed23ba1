"""Filters by name or from files: OpenQASM 3 (`.qasm`) or QPY (`.qpy`).

A file is a circuit whose free parameters are inputs x0, x1, ... and weights w0, w1, ..., found by
their names, never by position: leading zeros (x00), and the names that Qiskit gives the elements of
a `ParameterVector` (x[0], in OpenQASM _x_0_), are the same.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from qiskit.circuit import Gate, Measure, Parameter, QuantumCircuit
from qiskit.quantum_info import SparsePauliOp

from qhdm.errors import CircuitError, shortened
from qhdm.quantum.ansatz import ANSATZE
from qhdm.quantum.files.qpy import damaged, read_qpy
from qhdm.quantum.filter import Filter, build_filter
from qhdm.quantum.ir.lowering import IGNORED, lower
from qhdm.quantum.unroll import unroll
from qhdm.shipped import find_shipped

#: Bounds of a file, far above what a filter needs and far below what a computer cannot hold.
MAX_BYTES = 256 * 1024
MAX_QUBITS = 32
MAX_GATES = 10_000
MAX_PARAMETERS = 2_000

SUFFIXES = (".qasm", ".qpy")

_NAME = re.compile(r"_?([xw])(?:\[(\d{1,6})\]|_(\d{1,6})_|(\d{1,6}))")


def find_filter(name: str, *, qubits: int | None = None, layers: int | None = None) -> Filter:
    """The filter of a built-in family or of a circuit file.

    Args:
        name: `hqconv`, `fqconv`, `basic`, `product`, `hqconv_released`, the path of a `.qasm` or
            `.qpy` file, relative to the current folder, or the name of a shipped one.
        qubits, layers: of a family (12 and 3 where not given); a file has its own.

    Raises:
        CircuitError: there is no such family or file, it is not a filter, or a file is given a
            size.

    Example:
        >>> find_filter("fqconv", layers=1).name
        'fqconv_12x1'
        >>> find_filter("reuploading").name
        'reuploading'
    """
    if name in ANSATZE:
        return build_filter(
            name, qubits=12 if qubits is None else qubits, layers=3 if layers is None else layers
        )
    path = find_shipped("circuits", name, CircuitError, others=ANSATZE)
    if qubits is not None or layers is not None:
        raise CircuitError(f"{name}: a circuit file fixes its qubits and layers; give neither")
    return load_filter(path)


def load_filter(path: str | Path) -> Filter:
    """Read a filter from an OpenQASM 3 or QPY file.

    The file holds gates alone, and measurements at most at the end, which are dropped: a filter's
    outputs are <Z_i> of the first n qubits, n being the number of inputs (of all qubits, where
    there are fewer). Nothing in it is executed.

    Args:
        path: ends in `.qasm` or `.qpy`; at most 256 KiB, 32 qubits, 10,000 gates with definitions
            written out, 2,000 parameters.

    Returns:
        The filter, named after the file; inputs and weights in the order of their numbers.

    Raises:
        CircuitError: naming the file, and the line where the parser gives it.

    Example:
        >>> filter = qhdm.load_filter("circuits/reuploading.qasm")
        >>> filter.name, len(filter.inputs)
        ('reuploading', 12)
    """
    path = Path(path)
    content = _read(path)
    if path.suffix == ".qasm":
        # Imported here: the parser takes a tenth of a second that built-in filters do not need.
        from qhdm.quantum.files.openqasm import read_openqasm3

        try:
            text = content.decode("utf-8-sig")  # editors on Windows write a byte-order mark
        except UnicodeDecodeError:
            raise CircuitError(f"{path}: not a UTF-8 text file") from None
        circuit, lines = read_openqasm3(text, str(path), max_qubits=MAX_QUBITS)
    elif path.suffix == ".qpy":
        circuit, lines = read_qpy(content, str(path), max_qubits=MAX_QUBITS), {}
    else:
        raise CircuitError(f"{path}: not a circuit file; it must end in {' or '.join(SUFFIXES)}")
    try:
        return _filter_of(circuit, path, lines)
    except CircuitError:
        raise
    except Exception as error:
        if path.suffix != ".qpy":
            raise
        # Qiskit reads gates of QPY that it would not make: on one qubit twice, without angles.
        raise damaged(str(path), error) from None


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise CircuitError(f"{path}: no such file") from None
    except OSError as error:
        raise CircuitError(f"{path}: cannot be read ({error.strerror})") from None
    if len(content) > MAX_BYTES:
        raise CircuitError(f"{path}: larger than {MAX_BYTES:,} bytes, which no filter needs")
    return content


def _filter_of(circuit: QuantumCircuit, path: Path, lines: Mapping[str, int]) -> Filter:
    """`circuit` as a filter, if it is one."""

    def refuse(message: str, name: str = "") -> CircuitError:
        where = f"{path}:{lines[name]}" if name in lines else str(path)
        return CircuitError(f"{where}: {shortened(message)}")

    if circuit.num_qubits > MAX_QUBITS:
        raise refuse(f"{circuit.num_qubits} qubits; at most {MAX_QUBITS} are read")
    if not circuit.num_qubits:
        raise refuse("has no qubits")
    if circuit.num_parameters > MAX_PARAMETERS:
        raise refuse(f"{circuit.num_parameters} parameters; at most {MAX_PARAMETERS} are read")
    gates = unroll(_gates_alone(circuit, path), most=MAX_GATES)

    found: dict[str, dict[int, Parameter]] = {"x": {}, "w": {}}
    for parameter in circuit.parameters:
        match = _NAME.fullmatch(parameter.name)
        if not match:
            raise refuse(
                f"parameter {parameter.name} is neither an input x0, x1, ... nor a weight w0, w1, "
                "...; rename it",
                parameter.name,
            )
        numbers, index = found[match[1]], int(match[2] or match[3] or match[4])
        if index in numbers:
            raise refuse(
                f"parameters {numbers[index].name} and {parameter.name} have the same number",
                parameter.name,
            )
        numbers[index] = parameter
    used = set(gates.parameters)
    for name in (*lines, *(p.name for p in circuit.parameters)):
        if name not in {p.name for p in used}:
            raise refuse(f"parameter {name} is used by no gate; remove it", name)
    inputs = found["x"]
    if not inputs:
        raise refuse("has no inputs; name the parameters that read data x0, x1, ...")
    missing = next((i for i in range(len(inputs)) if i not in inputs), None)
    if missing is not None:
        others = "there is one input" if len(inputs) == 1 else f"there are {len(inputs)} inputs"
        raise refuse(f"there is no input x{missing}, though {others}; number them from x0 up")
    n = len(inputs)
    observables = tuple(
        SparsePauliOp.from_sparse_list([("Z", [i], 1.0)], num_qubits=circuit.num_qubits)
        for i in range(min(n, circuit.num_qubits))
    )
    gates.name = path.stem
    filter = Filter(
        path.stem,
        gates,
        tuple(inputs[i] for i in range(n)),
        tuple(parameter for _, parameter in sorted(found["w"].items())),
        observables,
    )
    try:
        lower(filter)  # angles that are not affine are refused here, not in training
    except CircuitError as error:
        raise refuse(str(error).removeprefix(f"{path.stem}: ")) from None
    return filter


def _gates_alone(circuit: QuantumCircuit, path: Path) -> QuantumCircuit:
    """`circuit` without its final measurements and classical bits.

    A transpiled circuit has a layout, which says where each qubit of the original circuit is at the
    end: qubit i of the result is the one that holds qubit i there, and ancillas follow.

    Raises:
        CircuitError: something else than a gate, a gate after a measurement, or a layout that does
            not fit.
    """
    gates = QuantumCircuit(circuit.num_qubits, global_phase=circuit.global_phase, name=str(path))
    place = _places(circuit, path)
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
                f"{path}: {operation.name} on qubits {qubits} follows a measurement; "
                "measurements may stand at the end alone"
            )
        if not isinstance(operation, Gate):
            remedy = "a filter is gates alone"
            if operation.definition is not None:
                remedy = "write it out in gates (circuit.decompose())"
            raise CircuitError(
                f"{path}: {operation.name} on qubits {qubits} is not a unitary gate; {remedy}"
            )
        gates.append(operation, qubits)
    # A free phase changes no expectation value, and must not count as the use of a parameter.
    gates.global_phase = 0
    return gates


def _places(circuit: QuantumCircuit, path: Path) -> list[int]:
    """For each qubit of `circuit`, its index in the order of the circuit before its layout."""
    size = circuit.num_qubits
    if circuit.layout is None:
        return list(range(size))
    ends = circuit.layout.final_index_layout()
    if len(set(ends)) < len(ends) or not set(ends) <= set(range(size)):
        raise CircuitError(f"{path}: the layout does not fit the circuit; write it anew")
    order = [*ends, *sorted(set(range(size)) - set(ends))]
    return [order.index(qubit) for qubit in range(size)]
