"""ISA circuits of a filter: transpiled component by component, packed, and stored as QPY."""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from qiskit import qpy
from qiskit.circuit import ClassicalRegister, Parameter, ParameterVector, QuantumCircuit
from qiskit.transpiler import Target

from qhdm.errors import HardwareError
from qhdm.files import atomic_path
from qhdm.hardware.compilation import (
    Compiler,
    Figures,
    LaidOut,
    duration_of,
    gates_of,
)
from qhdm.hardware.packing import Rating, pack, rate
from qhdm.quantum.ir.connectivity import components
from qhdm.quantum.options import Compile

#: Changes with the way circuits are made: files of another recipe are not read.
_RECIPE = 1
#: The classical register of the outcomes.
REGISTER = "outcomes"


@dataclass(frozen=True, eq=False)
class PackedCircuit:
    """A filter as a circuit that a device runs: copies side by side, each on its own inputs.

    Attributes:
        circuit: free in a parameter vector of (copies x inputs); clbit c n + i reads qubit i of
            copy c.
        copies: C.
        inputs: n_x, of one copy.
        qubits: n, of one copy.
        regions: for each copy, the physical qubit that each qubit ends on.
        two_qubit_gates, two_qubit_depth: of one copy.
        duration: of the circuit with its readout, seconds; 0 if the device has no durations.
        cost: minus the logarithm of the probability that nothing errs, for each copy.
        error: expected of <Z>, see `Figures`.
        before: figures of one copy that is not compiled; None if an earlier version made it.
        bias: root of the mean squared error of <Z> without noise.
    """

    circuit: QuantumCircuit
    copies: int
    inputs: int
    qubits: int
    regions: tuple[tuple[int, ...], ...]
    two_qubit_gates: int
    two_qubit_depth: int
    duration: float
    cost: tuple[float, ...]
    error: float | None = None
    before: Figures | None = None
    bias: float = 0.0

    @property
    def figures(self) -> Figures:
        """What it costs; the duration is that of all copies."""
        return Figures(self.two_qubit_gates, self.two_qubit_depth, self.duration, self.error)

    def packed(self, rows: int) -> int:
        """How many times it runs for so many rows of inputs, a row for each copy."""
        return -(-rows // self.copies)

    def values(self, rows: np.ndarray) -> np.ndarray:
        """Parameter values (packed, parameters) of input rows (R, n_x), the last repeated."""
        count = self.packed(len(rows))
        index = np.minimum(np.arange(count * self.copies), len(rows) - 1)
        flat = rows[index].reshape(count, self.copies * self.inputs)
        values: np.ndarray = flat[:, [parameter.index for parameter in self.circuit.parameters]]
        return values

    def rows(self, packed: np.ndarray, count: int) -> np.ndarray:
        """Measured values of packed rows, (R', C n), as those of `count` = R rows, (R, n)."""
        rows: np.ndarray = packed.reshape(-1, self.qubits)[:count]
        return rows

    def readout(self) -> QuantumCircuit:
        """A circuit that measures the same qubits and does nothing else."""
        circuit = QuantumCircuit(self.circuit.num_qubits, name="readout")
        circuit.add_register(ClassicalRegister(self.copies * self.qubits, REGISTER))
        ends = [qubit for region in self.regions for qubit in region]
        circuit.measure(ends, range(len(ends)))
        return circuit


def make_isa(
    bound: QuantumCircuit,
    inputs: Sequence[Parameter],
    target: Target,
    *,
    packing: int | Literal["auto"],
    most: int,
    seed: int,
    laid_out: Sequence[LaidOut] | None = None,
) -> PackedCircuit:
    """Transpile a circuit, component by component, and pack copies of it.

    Args:
        bound: free in `inputs` alone.
        inputs: n_x parameters.
        target: of the device.
        packing: copies, or `auto`.
        most: copies that are of use.
        seed: of the transpiler.
        laid_out: its components, if they are known.

    Raises:
        HardwareError: the working part of the device is too small.
    """
    n, parts = bound.num_qubits, components(bound)
    if laid_out is None:
        laid_out = Compiler(target, seed=seed).lay_out(bound)
    compacts = [one.circuit for one in laid_out]
    chosen = pack(compacts, target, packing=packing, most=most)
    copies = len(chosen)
    circuit = QuantumCircuit(target.num_qubits, name="filter")
    circuit.add_register(ClassicalRegister(copies * n, REGISTER))
    vector = ParameterVector("x", copies * len(inputs))
    ends = np.zeros((copies, n), dtype=int)
    place = {parameter: i for i, parameter in enumerate(inputs)}
    for c, regions in enumerate(chosen):
        for part, one, region in zip(parts, compacts, regions, strict=True):
            own = {p: vector[c * len(inputs) + place[p]] for p in one.circuit.parameters}
            circuit.compose(one.circuit.assign_parameters(own), list(region.qubits), inplace=True)
            ends[c, list(part)] = [region.qubits[end] for end in one.ends]
    # All are read out at once: a readout next to running gates disturbs them.
    circuit.barrier(sorted(q for regions in chosen for region in regions for q in region.qubits))
    circuit.measure(ends.ravel().tolist(), range(copies * n))
    qubits = [len(part) for part in parts]
    figures = Figures.of_all([one.figures for one in laid_out], qubits)
    return PackedCircuit(
        circuit=circuit,
        copies=copies,
        inputs=len(inputs),
        qubits=n,
        regions=tuple(tuple(map(int, row)) for row in ends),
        two_qubit_gates=figures.gates,
        two_qubit_depth=figures.depth,
        duration=duration_of(circuit, target),
        cost=tuple(sum(region.cost for region in regions) for regions in chosen),
        error=figures.error,
        before=Figures.of_all([one.before for one in laid_out], qubits),
        bias=math.sqrt(np.average([one.bias**2 for one in laid_out], weights=qubits)),
    )


def before_and_after(circuits: Sequence[PackedCircuit]) -> tuple[Figures | None, Figures]:
    """Figures of the filters of a place before they were compiled, if they are known, and now."""
    before = [isa.before for isa in circuits if isa.before is not None]
    after = Figures.largest([isa.figures for isa in circuits])
    return (Figures.largest(before) if len(before) == len(circuits) else None), after


class IsaCache:
    """ISA circuits by their content, stored as QPY in a folder.

    What is sent is always read back from the file, so that a process that resumes a job sends the
    same circuits. When the device has changed too much for them, circuits are laid out anew under
    the next layout number; those of other numbers stay as they are.

    Args:
        folder: of the files; None stores nothing.
        target: of the device.
        device: its name.
        packing, seed: see `make_isa`.
        compilation, shots: see `Compiler`.
    """

    def __init__(
        self,
        folder: Path | None,
        target: Target,
        *,
        device: str,
        packing: int | Literal["auto"],
        seed: int,
        compilation: Compile = "off",
        shots: int = 1024,
    ) -> None:
        self._folder, self._target, self._device = folder, target, device
        self._packing, self._seed, self._compilation, self._shots = (
            packing,
            seed,
            compilation,
            shots,
        )
        self._compiler = Compiler(target, seed=seed, compilation=compilation, shots=shots)
        self._kept: dict[str, PackedCircuit] = {}

    def get(
        self, bound: QuantumCircuit, inputs: Sequence[Parameter], *, rows: int, layout: int = 0
    ) -> PackedCircuit:
        """The ISA circuit for `rows` rows of inputs, in the layout of a number."""
        key = self._key(bound, inputs, rows, layout)
        if key not in self._kept:
            path = None if self._folder is None else self._folder / f"{key}.qpy"
            if path is None or not path.exists():
                made = make_isa(
                    bound,
                    inputs,
                    self._target,
                    packing=self._packing,
                    most=rows,
                    seed=self._seed,
                    laid_out=self._compiler.lay_out(bound),
                )
                if path is None:
                    self._kept[key] = made
                    return made
                _save(made, path)
            self._kept[key] = _load(path)
        return self._kept[key]

    def rate(self, isa: PackedCircuit) -> Rating:
        """The present cost of a circuit; `isa.cost` is the one when it was laid out."""
        return rate(isa.circuit, isa.regions, self._target)

    def keep_in(self, folder: Path) -> None:
        """Store all circuits in a folder from now on, with those that were made before."""
        self._folder = folder
        for key, isa in self._kept.items():
            _save(isa, folder / f"{key}.qpy")
        self._kept = {}

    def with_packing(self, packing: int | Literal["auto"]) -> IsaCache:
        """The same with other packing, in memory."""
        other = copy.copy(self)
        other._folder, other._packing, other._kept = None, packing, {}
        return other

    def _key(
        self, bound: QuantumCircuit, inputs: Sequence[Parameter], rows: int, layout: int
    ) -> str:
        most = rows if self._packing == "auto" else self._packing
        facts = [
            _RECIPE,
            self._device,
            self._packing,
            most,
            self._seed,
            bound.num_qubits,
            [p.name for p in inputs],
            gates_of(bound),
            *([layout] if layout else []),
            *(["fractional", *self._compiler.bases] if True in self._compiler.bases else []),
            *([self._compilation] if self._compilation != "off" else []),
            *([self._shots] if self._compilation == "approximate" else []),
        ]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]


def _save(isa: PackedCircuit, path: Path) -> None:
    circuit = isa.circuit.copy()
    circuit.metadata = {
        name: getattr(isa, name) for name in PackedCircuit.__dataclass_fields__ if name != "circuit"
    }
    if isa.before is not None:
        circuit.metadata["before"] = asdict(isa.before)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        qpy.dump(circuit, file)


def _load(path: Path) -> PackedCircuit:
    try:
        with path.open("rb") as file:
            (circuit,) = qpy.load(file)
        facts: dict[str, Any] = dict(circuit.metadata)
        circuit.metadata = {}
        facts["regions"] = tuple(map(tuple, facts["regions"]))
        facts["cost"] = tuple(facts["cost"])
        if facts.get("before") is not None:
            facts["before"] = Figures(**facts["before"])
        return PackedCircuit(circuit=circuit, **facts)
    except Exception as error:  # QPY raises many kinds for a damaged file
        raise HardwareError(f"{path}: damaged ({type(error).__name__}); delete it") from None
