"""ISA circuits of a filter: bound, taken apart, transpiled once, packed, and kept as QPY."""

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
from qiskit.quantum_info import SparsePauliOp
from qiskit.transpiler import Target, TranspilerError, generate_preset_pass_manager

from qhdm.errors import HardwareError
from qhdm.files import atomic_path
from qhdm.hardware.packing import Rating, pack, rate
from qhdm.quantum.devices.calibration import left_out, working_part
from qhdm.quantum.ir.connectivity import Compact, compact, components, on_qubits

_OPTIMIZATION_LEVEL = 3
#: Changes when circuits are made otherwise: kept files of another recipe are not read.
_RECIPE = 1
#: The name of the classical register that holds what is measured.
REGISTER = "outcomes"
#: The vector of the circuit's parameters.
_INPUTS = "x"


@dataclass(frozen=True, eq=False)
class IsaCircuit:
    """A filter as a circuit that a device runs: copies side by side, each on its own inputs.

    Attributes:
        circuit: free in a parameter vector of (copies x inputs); clbit c n + i reads qubit i of
            copy c.
        copies: C.
        inputs: n_x, of one copy.
        qubits: n, of one copy.
        regions: for each copy, the physical qubit that each qubit ends on.
        two_qubit_gates, two_qubit_depth: of one copy.
        duration: of the circuit with its readout, seconds; 0 where the device does not tell.
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
        """Parameter values (ceil(R / C), parameters) of input rows (R, n_x), radians.

        Copies that are left over repeat the last row.
        """
        count = -(-len(rows) // self.copies)
        index = np.minimum(np.arange(count * self.copies), len(rows) - 1)
        flat = rows[index].reshape(count, self.copies * self.inputs)
        places = [parameter.index for parameter in self.circuit.parameters]
        chosen: np.ndarray = flat[:, places]
        return chosen

    def rows(self, packed: np.ndarray, count: int) -> np.ndarray:
        """What is measured, (R', ..., C n), as that of R rows, (R, ..., n)."""
        split = packed.reshape(*packed.shape[:-1], self.copies, self.qubits)
        split = np.moveaxis(split, -2, 1)
        chosen: np.ndarray = split.reshape(-1, *split.shape[2:])[:count]
        return chosen

    def readout(self) -> QuantumCircuit:
        """A circuit that measures the same qubits and does nothing else."""
        circuit = QuantumCircuit(self.circuit.num_qubits, name="readout")
        circuit.add_register(ClassicalRegister(self.copies * self.qubits, REGISTER))
        ends = [qubit for region in self.regions for qubit in region]
        circuit.measure(ends, range(len(ends)))
        return circuit

    def observables(self, observables: Sequence[SparsePauliOp]) -> list[list[SparsePauliOp]]:
        """For each copy, the observables on the device's qubits."""
        size = self.circuit.num_qubits
        return [
            [o.apply_layout(list(r), num_qubits=size) for o in observables] for r in self.regions
        ]


def transpiled(bound: QuantumCircuit, target: Target, *, seed: int) -> list[Compact]:
    """The components of a circuit, each transpiled by itself, in their order.

    Args:
        bound: a circuit of gates.
        target: of the device.
        seed: of the transpiler.

    Raises:
        HardwareError: what works of the device is too small.
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
    laid: Sequence[Compact] | None = None,
) -> IsaCircuit:
    """Transpile a circuit, component by component, and pack copies of it.

    Args:
        bound: free in `inputs` alone.
        inputs: n_x parameters.
        target: of the device.
        packing: copies, or `auto`.
        most: copies beyond which there is nothing to gain.
        seed: of the transpiler.
        laid: its components, where they are transpiled already.

    Raises:
        HardwareError: what works of the device is too small.
    """
    n, parts = bound.num_qubits, components(bound)
    laid = transpiled(bound, target, seed=seed) if laid is None else laid
    chosen = pack(laid, target, packing=packing, most=most)

    copies = len(chosen)
    circuit = QuantumCircuit(target.num_qubits, name="filter")
    circuit.add_register(ClassicalRegister(copies * n, REGISTER))
    vector = ParameterVector(_INPUTS, copies * len(inputs))
    ends = np.zeros((copies, n), dtype=int)
    place = {parameter: i for i, parameter in enumerate(inputs)}
    for c, regions in enumerate(chosen):
        for part, one, region in zip(parts, laid, regions, strict=True):
            own = {p: vector[c * len(inputs) + place[p]] for p in one.circuit.parameters}
            circuit.compose(one.circuit.assign_parameters(own), list(region.qubits), inplace=True)
            ends[c, list(part)] = [region.qubits[end] for end in one.ends]
    # All are read at once: a readout beside running gates disturbs them.
    circuit.barrier(sorted(set(_used(circuit))))
    circuit.measure(ends.ravel().tolist(), range(copies * n))
    gates = [_two_qubit(one.circuit) for one in laid]
    return IsaCircuit(
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
    """ISA circuits by what they are made of, kept as QPY in a folder.

    What is sent is always what was read back from the file, so that a process that goes on with a
    job sends the same circuits. Where a device has changed so much that they no longer serve, they
    are laid out anew under the next number; circuits of another number stay as they are.

    Args:
        folder: of the files; None keeps nothing.
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
        self._kept: dict[str, IsaCircuit] = {}
        self._laid: dict[str, list[Compact]] = {}

    def get(
        self, bound: QuantumCircuit, inputs: Sequence[Parameter], *, rows: int, layout: int = 0
    ) -> IsaCircuit:
        """The ISA circuit for `rows` rows of inputs, of the layout of a number."""
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
                    laid=self._components(bound),
                )
                if path is None:
                    self._kept[key] = made
                    return made
                _save(made, path)
            self._kept[key] = _load(path)
        return self._kept[key]

    def rate(self, isa: IsaCircuit) -> Rating:
        """What a circuit costs now, where `isa.cost` is what it cost when it was laid out."""
        return rate(isa.circuit, isa.regions, self._target)

    def keep_in(self, folder: Path) -> None:
        """Keep what is made, and what has been, in a folder."""
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
    """What a circuit consists of."""
    return [
        (
            entry.operation.name,
            [bound.find_bit(q).index for q in entry.qubits],
            [_fact(p) for p in entry.operation.params],
        )
        for entry in bound.data
    ]


def _fact(parameter: object) -> str:
    """A gate's parameter as text that no other has; that of a large matrix would be shortened."""
    if isinstance(parameter, np.ndarray):
        return f"{parameter.shape}{parameter.dtype}{parameter.tobytes().hex()}"
    return str(parameter)


def _save(isa: IsaCircuit, path: Path) -> None:
    circuit = isa.circuit.copy()
    circuit.metadata = {
        name: getattr(isa, name) for name in IsaCircuit.__dataclass_fields__ if name != "circuit"
    }
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        qpy.dump(circuit, file)


def _load(path: Path) -> IsaCircuit:
    try:
        with path.open("rb") as file:
            (circuit,) = qpy.load(file)
        facts: dict[str, Any] = dict(circuit.metadata)
        circuit.metadata = {}
        facts["regions"] = tuple(map(tuple, facts["regions"]))
        facts["cost"] = tuple(facts["cost"])
        return IsaCircuit(circuit=circuit, **facts)
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


def _used(circuit: QuantumCircuit) -> list[int]:
    index = {bit: i for i, bit in enumerate(circuit.qubits)}
    return [index[qubit] for entry in circuit.data for qubit in entry.qubits]


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
