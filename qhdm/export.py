"""Export trained filters to files, for any tool that reads OpenQASM or QPY.

DIR/
    <place>.qasm            OpenQASM 3, inputs free, weights bound
    <place>_openqasm2.qasm  OpenQASM 2, everything bound (with inputs)
    <place>.qpy             QPY, as the OpenQASM 3 file
    <place>_isa.qasm, .qpy  the same as a backend runs it (with a backend)
    <place>.json            the sidecar: what the circuits do not contain
    <circuit>.png           drawings, one for each circuit that differs in more than its weights
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from qiskit.circuit import QuantumCircuit
from qiskit.providers import BackendV2
from qiskit.quantum_info import SparsePauliOp

from qhdm.errors import ExportError
from qhdm.files import atomic_path
from qhdm.models.named_filters import NamedFilter
from qhdm.quantum.analysis.transpile import IsaCircuit, to_isa
from qhdm.quantum.compile.component import compiled
from qhdm.quantum.files.save import (
    input_names,
    named_circuit,
    to_openqasm2,
    to_openqasm3,
    values_by_name,
    weight_names,
    write_qpy,
)
from qhdm.quantum.filter import Filter

_ORDER = (
    "value (h, w, c) of a 2x2 patch of three channels is the angle, in radians, of input "
    "3 (2 h + w) + c; output i is <Z> of qubit i and takes the place of input i; qubit 0 is the "
    "least significant (the last letter of a Qiskit Pauli label)"
)

#: Readers of the headers of NumPy files by version; later ones are of arrays with named fields.
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


@dataclass(frozen=True, eq=False)
class Export:
    """What to write of each filter.

    Attributes:
        source: what the filters come from, for the sidecar: run, step, kind of weights, versions.
        free_weights: leave the weights free in OpenQASM 3 and QPY.
        inputs: (n,), radians: also write OpenQASM 2, bound to them.
        backend: also write the ISA form for it.
        compile: in the ISA form, replace components of up to three qubits by circuits of fewer
            gates with the same <Z> for the bound weights.
        draw: draws a circuit to a PNG file.
    """

    source: dict[str, Any]
    free_weights: bool = False
    inputs: np.ndarray | None = None
    backend: BackendV2 | None = None
    compile: bool = False
    draw: Callable[[QuantumCircuit, Path], None] | None = None


def check_target(folder: Path) -> None:
    """Raise `ExportError` unless `folder` is absent or empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ExportError(f"{folder}: exists already and is not empty; give another --out")


def read_inputs(source: str, count: int) -> np.ndarray:
    """The inputs to bind: `zeros`, or a NumPy file of `count` angles (radians).

    Raises:
        ExportError: the file is missing, is no array, or of another shape; nothing in it is
            executed.
    """
    if source == "zeros":
        return np.zeros(count)
    try:
        with open(source, "rb") as file:
            # The header alone, before room is made for what it claims.
            version = np.lib.format.read_magic(file)
            shape, _, kind = _HEADERS[version](file)
            content = file.read(16 * count)  # no kind of real number takes more
    except FileNotFoundError:
        raise ExportError(f"--inputs: {source}: no such file; give zeros or a .npy file") from None
    except Exception:  # NumPy raises many kinds for a damaged header
        raise ExportError(f"--inputs: {source}: not a NumPy array file (.npy)") from None
    if shape != (count,):
        raise ExportError(f"--inputs: {source}: must hold ({count},) angles, holds {shape}")
    if kind.kind not in "fiu":
        raise ExportError(f"--inputs: {source}: must hold finite real numbers (radians)")
    if len(content) < kind.itemsize * count:
        raise ExportError(f"--inputs: {source}: cut short; write it again with numpy.save")
    values = np.frombuffer(content, kind).astype(float)
    if not np.isfinite(values).all():
        raise ExportError(f"--inputs: {source}: must hold finite real numbers (radians)")
    return values


def export(placed: Sequence[NamedFilter], folder: Path, what: Export) -> list[str]:
    """Write filters to `folder`, completely or not at all.

    Args:
        placed: the filters of a network.
        folder: absent or empty.
        what: which files to write.

    Returns:
        The names of the files.

    Raises:
        ExportError: there is nothing to write, or `folder` is not empty.
    """
    if not placed:
        raise ExportError("the model has no quantum filters; there is nothing to export")
    check_target(folder)
    circuits: dict[Filter, _Circuit] = {}
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        for item in placed:
            if item.filter not in circuits:
                circuits[item.filter] = _Circuit.make(item.filter, temporary, what)
            _write(item, circuits[item.filter], temporary, what)
        names = sorted(path.name for path in temporary.iterdir())
    return names


@dataclass(frozen=True, eq=False)
class _Circuit:
    """The common part of filters with the same circuit."""

    free: QuantumCircuit
    isa: IsaCircuit | None
    drawing: str | None

    @classmethod
    def make(cls, circuit_filter: Filter, folder: Path, what: Export) -> _Circuit:
        free = named_circuit(circuit_filter)
        isa = None if what.backend is None else to_isa(free, what.backend)
        drawing = None
        if what.draw:
            drawing = f"{circuit_filter.name}.png"
            what.draw(free, folder / drawing)
        return cls(free, isa, drawing)


def _write(item: NamedFilter, shared: _Circuit, folder: Path, what: Export) -> None:
    circuit_filter, name = item.filter, item.name
    weights = values_by_name(weight_names(circuit_filter), item.weights)
    bound = {} if what.free_weights else weights
    circuit = shared.free.assign_parameters(bound, strict=False)
    texts = {f"{name}.qasm": ("OpenQASM 3", to_openqasm3(circuit))}
    packed = {f"{name}.qpy": circuit}
    inputs = None
    if what.inputs is not None:
        inputs = values_by_name(input_names(circuit_filter), what.inputs)
        both = shared.free.assign_parameters(weights | inputs, strict=False)
        text = to_openqasm2(both)
        texts[f"{name}_openqasm2.qasm"] = ("OpenQASM 2", text)
    isa = _isa_circuit(circuit, shared, bound, what)
    if isa is not None:
        texts[f"{name}_isa.qasm"] = ("OpenQASM 3", to_openqasm3(isa.circuit))
        packed[f"{name}_isa.qpy"] = isa.circuit
    for file, (_, text) in texts.items():
        (folder / file).write_text(text, encoding="utf-8")
    for file, content in packed.items():
        write_qpy(content, folder / file)

    formats = {file: kind for file, (kind, _) in texts.items()} | dict.fromkeys(packed, "QPY")
    sidecar = {
        "format": "qhdm-filter/1",
        "place": item.place,
        "filter": item.index,
        "circuit": circuit_filter.name,
        "qubits": circuit_filter.circuit.num_qubits,
        "qubit_order": _ORDER,
        "observables": [_terms(observable) for observable in circuit_filter.observables],
        "inputs": input_names(circuit_filter),
        "weights": weights,
        "angle_scale": 2 * math.pi,
        "angle_unit": "radians; the network holds weights / angle_scale",
        "free_weights": what.free_weights,
        "bound_inputs": inputs,
        "files": {
            file: {
                "format": formats[file],
                "sha256": hashlib.sha256((folder / file).read_bytes()).hexdigest(),
            }
            for file in sorted(formats)
        },
        "isa": _isa(isa),
        "drawing": shared.drawing,
        "source": what.source,
    }
    (folder / f"{name}.json").write_text(json.dumps(sidecar, indent=2) + "\n", encoding="utf-8")


def _isa_circuit(
    circuit: QuantumCircuit, shared: _Circuit, bound: dict[str, float], what: Export
) -> IsaCircuit | None:
    """The ISA circuit of a filter; compiled if that is asked for and takes fewer gates."""
    if shared.isa is None or what.backend is None:
        return None
    plain = replace(shared.isa, circuit=shared.isa.circuit.assign_parameters(bound, strict=False))
    if not what.compile:
        return plain
    shorter, outputs = compiled(circuit)
    isa = to_isa(shorter, what.backend)
    isa = replace(isa, physical_qubits=tuple(isa.physical_qubits[q] for q in outputs))
    return isa if isa.two_qubit_gates < plain.two_qubit_gates else plain


def _terms(observable: SparsePauliOp) -> dict[str, float]:
    """Coefficients by Pauli string, with the qubit after each letter: {"Z5": 1.0}."""
    return {
        " ".join(f"{letter}{qubit}" for letter, qubit in zip(letters, qubits, strict=True)): float(
            np.real(coefficient)
        )
        for letters, qubits, coefficient in observable.to_sparse_list()
    }


def _isa(isa: IsaCircuit | None) -> dict[str, Any] | None:
    if isa is None:
        return None
    return {
        "backend": isa.backend,
        "device_qubits": isa.circuit.num_qubits,
        "physical_qubits": list(isa.physical_qubits),
        "meaning": "<Z_i> is <Z> of physical qubit physical_qubits[i]",
        "two_qubit_gates": isa.two_qubit_gates,
        "two_qubit_depth": isa.two_qubit_depth,
        "depth": isa.depth,
    }
