"""Filters by name or from files: OpenQASM 3 (`.qasm`) or QPY (`.qpy`).

A file is a circuit whose free parameters are inputs x0, x1, ... and weights w0, w1, ..., found by
their names, never by position: leading zeros (x00), and the names that Qiskit gives the elements of
a `ParameterVector` (x[0], in OpenQASM _x_0_), are the same.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from qiskit.circuit import Parameter, QuantumCircuit

from qhdm.errors import CircuitError, shortened
from qhdm.quantum.ansatz import ANSATZE
from qhdm.quantum.files.qpy import read_qpy
from qhdm.quantum.filter import Filter, build_filter, z_of_each
from qhdm.quantum.ir.lowering import lower
from qhdm.quantum.unroll import unroll
from qhdm.shipped import find_shipped

#: Limits of a file, far above what a filter needs.
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

    The file contains only gates, and measurements at the end, which are dropped: a filter's
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
        return _filter_of(*read_openqasm3(text, str(path), max_qubits=MAX_QUBITS), path)
    if path.suffix == ".qpy":
        try:
            return _filter_of(read_qpy(content, str(path), max_qubits=MAX_QUBITS), {}, path)
        except CircuitError:
            raise
        except Exception as error:
            # Of a damaged file Qiskit raises many kinds, or makes gates that it would refuse: on
            # one qubit twice, without angles.
            raise CircuitError(
                f"{path}: damaged, or not a circuit ({type(error).__name__}); write it again"
            ) from None
    raise CircuitError(f"{path}: not a circuit file; it must end in {' or '.join(SUFFIXES)}")


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


def _filter_of(circuit: QuantumCircuit, lines: Mapping[str, int], path: Path) -> Filter:
    """`circuit` as a filter, if it is one.

    Args:
        circuit: of gates.
        lines: of the declarations of its parameters, where they are known.
        path: of the file.
    """

    def refuse(message: str, name: str = "") -> CircuitError:
        where = f"{path}:{lines[name]}" if name in lines else str(path)
        return CircuitError(f"{where}: {shortened(message)}")

    if circuit.num_qubits > MAX_QUBITS:
        raise refuse(f"{circuit.num_qubits} qubits; at most {MAX_QUBITS} are read")
    if not circuit.num_qubits:
        raise refuse("has no qubits")
    names = dict.fromkeys((*lines, *(p.name for p in circuit.parameters)))
    if len(names) > MAX_PARAMETERS:
        raise refuse(f"{len(names)} parameters; at most {MAX_PARAMETERS} are read")
    gates = unroll(circuit, most=MAX_GATES)
    used = {parameter.name: parameter for parameter in gates.parameters}
    numbered: dict[str, dict[int, Parameter]] = {"x": {}, "w": {}}
    for name in names:
        match = _NAME.fullmatch(name)
        if not match:
            raise refuse(
                f"parameter {name} is neither an input x0, x1, ... nor a weight w0, w1, ...; "
                "rename it",
                name,
            )
        if name not in used:
            raise refuse(f"parameter {name} is used by no gate; remove it", name)
        same, number = numbered[match[1]], int(match[2] or match[3] or match[4])
        if number in same:
            raise refuse(f"parameters {same[number].name} and {name} have the same number", name)
        same[number] = used[name]
    n = len(numbered["x"])
    if not n:
        raise refuse("has no inputs; name the parameters that read data x0, x1, ...")
    missing = min(set(range(n)) - set(numbered["x"]), default=None)
    if missing is not None:
        others = "there is one input" if n == 1 else f"there are {n} inputs"
        raise refuse(f"there is no input x{missing}, though {others}; number them from x0 up")
    gates.name = path.stem
    inputs, weights = (tuple(p for _, p in sorted(numbered[kind].items())) for kind in "xw")
    observables = z_of_each(circuit.num_qubits)[:n]
    circuit_filter = Filter(path.stem, gates, inputs, weights, observables)
    try:
        lower(circuit_filter)  # angles that are not affine are refused here, not in training
    except CircuitError as error:
        raise refuse(str(error).removeprefix(f"{path.stem}: ")) from None
    return circuit_filter
