"""ISA circuits of a filter: transpiled component by component, packed, and stored as QPY."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from qiskit import qpy
from qiskit.circuit import ClassicalRegister, Parameter, ParameterVector, QuantumCircuit
from qiskit.transpiler import Target, TranspilerError, generate_preset_pass_manager

from qhdm.errors import HardwareError
from qhdm.files import atomic_path
from qhdm.hardware.packing import Rating, pack, rate
from qhdm.quantum.devices.calibration import left_out, working_part
from qhdm.quantum.ir.connectivity import Compact, compact, components, on_qubits

_OPTIMIZATION_LEVEL = 3
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

    def values(self, rows: np.ndarray) -> np.ndarray:
        """Parameter values (ceil(R / C), parameters) of input rows (R, n_x), the last repeated."""
        count = -(-len(rows) // self.copies)
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


def transpiled(bound: QuantumCircuit, target: Target, *, seed: int) -> list[Compact]:
    """The components of a circuit of gates, in order, each transpiled separately.

    Raises:
        HardwareError: the working part of the device is too small.
    """
    n = bound.num_qubits
    if n > target.num_qubits:
        raise HardwareError(
            f"layout: the device has {target.num_qubits} qubits, too few for a filter of {n}"
        )
    try:
        manager = generate_preset_pass_manager(
            _OPTIMIZATION_LEVEL, target=working_part(target), seed_transpiler=seed
        )
        return [compact(manager.run(_measured(bound, part))) for part in components(bound)]
    except TranspilerError as error:
        missing = left_out(target)
        raise HardwareError(
            f"layout: the device cannot run a circuit of the filter: {error.message.split('. ')[0]}"
            f"{f' ({missing})' if missing else ''}; use another backend"
        ) from None


def make_isa(
    bound: QuantumCircuit,
    inputs: Sequence[Parameter],
    target: Target,
    *,
    packing: int | Literal["auto"],
    most: int,
    seed: int,
    compacts: Sequence[Compact] | None = None,
) -> PackedCircuit:
    """Transpile a circuit, component by component, and pack copies of it.

    Args:
        bound: free in `inputs` alone.
        inputs: n_x parameters.
        target: of the device.
        packing: copies, or `auto`.
        most: copies that are of use.
        seed: of the transpiler.
        compacts: its transpiled components, if they are known.

    Raises:
        HardwareError: the working part of the device is too small.
    """
    n, parts = bound.num_qubits, components(bound)
    compacts = transpiled(bound, target, seed=seed) if compacts is None else compacts
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
    gates = [_two_qubit(one.circuit) for one in compacts]
    return PackedCircuit(
        circuit=circuit,
        copies=copies,
        inputs=len(inputs),
        qubits=n,
        regions=tuple(tuple(map(int, row)) for row in ends),
        two_qubit_gates=sum(count for count, _ in gates),
        two_qubit_depth=max(depth for _, depth in gates),
        duration=_duration(circuit, target),
        cost=tuple(sum(region.cost for region in regions) for regions in chosen),
    )


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
    """

    def __init__(
        self,
        folder: Path | None,
        target: Target,
        *,
        device: str,
        packing: int | Literal["auto"],
        seed: int,
    ) -> None:
        self._folder, self._target, self._device = folder, target, device
        self._packing, self._seed = packing, seed
        self._kept: dict[str, PackedCircuit] = {}
        self._laid: dict[str, list[Compact]] = {}

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
                    compacts=self._components(bound),
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
        other = IsaCache(None, self._target, device=self._device, packing=packing, seed=self._seed)
        other._laid = self._laid
        return other

    def _components(self, bound: QuantumCircuit) -> list[Compact]:
        key = json.dumps(_gates(bound))
        if key not in self._laid:
            self._laid[key] = transpiled(bound, self._target, seed=self._seed)
        return self._laid[key]

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
            _gates(bound),
            *([layout] if layout else []),
        ]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]


def _gates(bound: QuantumCircuit) -> list[tuple[str, list[int], list[str]]]:
    """The gates of a circuit, as JSON can hold them."""
    return [
        (
            entry.operation.name,
            [bound.find_bit(q).index for q in entry.qubits],
            [_fact(p) for p in entry.operation.params],
        )
        for entry in bound.data
    ]


def _fact(parameter: object) -> str:
    """A gate's parameter as unique text: numpy would abbreviate a large matrix."""
    if isinstance(parameter, np.ndarray):
        return f"{parameter.shape}{parameter.dtype}{parameter.tobytes().hex()}"
    return str(parameter)


def _save(isa: PackedCircuit, path: Path) -> None:
    circuit = isa.circuit.copy()
    circuit.metadata = {
        name: getattr(isa, name) for name in PackedCircuit.__dataclass_fields__ if name != "circuit"
    }
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
        return PackedCircuit(circuit=circuit, **facts)
    except Exception as error:  # QPY raises many kinds for a damaged file
        raise HardwareError(f"{path}: damaged ({type(error).__name__}); delete it") from None


def _measured(bound: QuantumCircuit, part: tuple[int, ...]) -> QuantumCircuit:
    """A component on its own qubits, all of them measured."""
    circuit = on_qubits(bound, part)
    circuit.add_register(ClassicalRegister(len(part)))
    circuit.measure(range(len(part)), range(len(part)))
    return circuit


def _two_qubit(circuit: QuantumCircuit) -> tuple[int, int]:
    count = sum(len(entry.qubits) == 2 for entry in circuit.data)
    return count, circuit.depth(lambda entry: len(entry.qubits) == 2)


def _duration(circuit: QuantumCircuit, target: Target) -> float:
    """Seconds of the longest chain of gates; a gate without a time takes its kind's longest."""
    times = {
        name: {qubits: getattr(p, "duration", None) for qubits, p in target[name].items()}
        for name in {entry.operation.name for entry in circuit.data} & set(target.operation_names)
    }
    longest = {
        name: max((t or 0.0 for t in of.values()), default=0.0) for name, of in times.items()
    }
    ends = [0.0] * circuit.num_qubits
    index = {bit: i for i, bit in enumerate(circuit.qubits)}
    for entry in circuit.data:
        qubits, name = tuple(index[q] for q in entry.qubits), entry.operation.name
        time = times.get(name, {}).get(qubits)
        after = max(ends[q] for q in qubits) + (longest.get(name, 0.0) if time is None else time)
        for q in qubits:
            ends[q] = after
    return max(ends, default=0.0)
