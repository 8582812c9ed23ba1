"""Run circuits on Aer: one run for a whole batch, all observables from one execution."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
from qiskit.circuit import ClassicalRegister
from qiskit.quantum_info import Pauli
from qiskit_aer import AerSimulator
from qiskit_aer.noise import NoiseModel

from qhdm.errors import EngineError
from qhdm.quantum.aer.bases import MeasurementBasis, bases_of, parities
from qhdm.quantum.aer.rebase import Bindable, make_bindable, rebased
from qhdm.quantum.aer.subcircuits import Subcircuit
from qhdm.quantum.devices.calibration import find_calibration
from qhdm.quantum.devices.noise import place
from qhdm.quantum.options import Aer
from qhdm.seeds import Stream, derive_seed

#: Parameter sets, and numbers that come back, per run: Aer keeps the results of all in memory.
ROWS_PER_RUN, NUMBERS_PER_RUN = 16_384, 1 << 26
#: Up to so many qubits all outcome probabilities are asked for; sampling them costs 2^qubits.
_LISTED_QUBITS = 12
_BYTES_PER_AMPLITUDE = 16


class Reading(Enum):
    """The kind of result that is requested from Aer.

    PROBABILITIES: of all outcomes, exactly; shots are drawn from them (a multinomial sample, which
        is what Aer's own sampler draws, shot by shot and several times slower).
    VALUES: expectation values, where there are too many outcomes to list.
    OUTCOMES: shots, where probabilities are not known: trajectories, and wide circuits.
    """

    PROBABILITIES = 0
    VALUES = 1
    OUTCOMES = 2


@dataclass(frozen=True, eq=False)
class Execution:
    """One circuit to run: a subcircuit, measured in one basis.

    Attributes:
        basis: which of the part's Pauli strings it gives, and how.
        reading: what Aer is asked for.
        bindable: the circuit, with what saves or measures it.
        simulator: of the chosen method and noise.
        readout: for each measured qubit with readout errors, the probabilities (2, 2) of reading
            the row when the column is there.
    """

    basis: MeasurementBasis
    reading: Reading
    bindable: Bindable
    simulator: AerSimulator
    readout: dict[int, np.ndarray]


class Runner:
    """Prepares subcircuits and runs them.

    Args:
        options: how.

    Raises:
        EngineError: an option is out of range, the device is absent, or the noise unknown.
    """

    def __init__(self, options: Aer) -> None:
        problem = options.problem()
        if problem:
            raise EngineError(f"aer {problem[0]}: {problem[1]}")
        if options.device == "GPU" and "GPU" not in AerSimulator().available_devices():
            raise EngineError(
                "aer device: GPU asked for, but this qiskit-aer has none; install qiskit-aer-gpu "
                "on a machine with CUDA, or use CPU"
            )
        self.options = options
        self.device = find_calibration(options.noise) if options.noise is not None else None

    def prepare(self, part: Subcircuit, name: str) -> tuple[Execution, ...]:
        """The circuits to run for `part`, one for each measurement basis.

        Args:
            part: what to run.
            name: of the filter, for messages.

        Raises:
            EngineError: the method cannot hold the circuit, or the device is too small.
            CircuitError: a gate cannot be bound.
        """
        bases = bases_of(part.paulis, part.circuit.num_qubits)
        return tuple(self._execution(part, basis, name) for basis in bases)

    def run(
        self,
        executions: Sequence[Execution],
        angles: np.ndarray,
        *,
        shots: int | None,
        seeds: Sequence[int],
        groups: np.ndarray,
    ) -> np.ndarray:
        """Values of a part's Pauli strings.

        Args:
            executions: of the part.
            angles: (R, local angles), radians.
            shots: per row; None is without sampling.
            seeds: the seeds of the draws; equal rows with equal seeds draw the same.
            groups: (R,), which of the seeds each row draws from.

        Returns:
            (R, K).
        """
        values = np.empty((len(angles), sum(len(e.basis.members) for e in executions)))
        for number, execution in enumerate(executions):
            own = [derive_seed(seed, Stream.CIRCUIT, number) for seed in seeds]
            values[:, execution.basis.members] = _run(execution, angles, shots, own, groups)
        return values

    def _execution(self, part: Subcircuit, basis: MeasurementBasis, name: str) -> Execution:
        circuit = part.circuit.copy()
        basis.rotate(circuit)
        noise: NoiseModel | None = None
        ends = tuple(range(circuit.num_qubits))
        if self.device is None:
            circuit = rebased(circuit)
        else:
            placed, noise = place(circuit, self.device)
            circuit, ends = placed.circuit, placed.ends
        bindable = make_bindable(circuit, part.parameters)
        method = self._method(bindable.circuit.num_qubits, name)
        size = part.circuit.num_qubits
        shots = self.options.shots
        if method == "density_matrix" or (
            method == "statevector" and noise is None and size <= _LISTED_QUBITS
        ):
            reading = Reading.PROBABILITIES
            bindable.circuit.save_probabilities(list(ends))
        elif shots is None:
            reading = Reading.VALUES
            for index, mask in enumerate(basis.masks):
                qubits = [ends[q] for q in range(size) if mask >> q & 1]
                operator = Pauli("Z" * len(qubits))
                bindable.circuit.save_expectation_value(operator, qubits, label=str(index))
        else:
            reading = Reading.OUTCOMES
            bindable.circuit.add_register(ClassicalRegister(size))
            bindable.circuit.measure(ends, range(size))
        simulator = AerSimulator(
            method=method,
            device=self.options.device,
            noise_model=noise,
            max_parallel_threads=self.options.threads,
            # Aer's own loop over the parameter sets, on all cores, instead of a copy of the
            # circuit for each: about three times faster (docs/aer.md).
            runtime_parameter_bind_enable=True,
        )
        readout = readout_of(noise) if noise is not None else {}
        read = {i: readout[q] for i, q in enumerate(ends) if q in readout}
        return Execution(basis, reading, bindable, simulator, read)

    def _method(self, qubits: int, name: str) -> str:
        method, shots = self.options.method, self.options.shots
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if method == "auto" and self.device is None:
            fits = _BYTES_PER_AMPLITUDE << qubits <= memory
            return "statevector" if fits else "matrix_product_state"
        if method == "auto":
            small = shots is None or 1 << qubits <= shots
            method = "density_matrix" if small else "statevector"
        if method != "matrix_product_state":
            exponent = 2 * qubits if method == "density_matrix" else qubits
            needed = _BYTES_PER_AMPLITUDE << exponent
            if needed > memory:
                other = "matrix_product_state" if self.device is None else "statevector and shots"
                raise EngineError(
                    f"{name}: method {method} needs {needed / 2**30:,.0f} GiB for {qubits} "
                    f"connected qubits, this machine has {memory / 2**30:,.0f} GiB; "
                    + (f"use {other}" if method != other.split()[0] else "use fewer qubits")
                )
        return method


def _run(
    execution: Execution,
    angles: np.ndarray,
    shots: int | None,
    seeds: Sequence[int],
    groups: np.ndarray,
) -> np.ndarray:
    """Values (R, members) of an execution."""
    values = np.empty((len(angles), len(execution.basis.masks)))
    if execution.reading is Reading.OUTCOMES:
        # Aer takes one seed per run: rows that draw from seeds of their own are run apart.
        for group, seed in enumerate(seeds):
            rows = np.flatnonzero(groups == group)
            for start in range(0, len(rows), ROWS_PER_RUN):
                chosen = rows[start : start + ROWS_PER_RUN]
                options = {"shots": shots, "seed_simulator": derive_seed(seed, Stream.CALL, start)}
                results = results_of(
                    execution.simulator, execution.bindable, angles[chosen], options
                )
                counts = [result.data.counts for result in results]
                values[chosen] = [parities(c, execution.basis.masks) for c in counts]
        return values
    randoms = [np.random.default_rng(seed) for seed in seeds]
    numbers = 1 << execution.basis.qubits if execution.reading is Reading.PROBABILITIES else 1
    step = max(1, min(ROWS_PER_RUN, NUMBERS_PER_RUN // numbers))
    for start in range(0, len(angles), step):
        rows = np.arange(start, min(start + step, len(angles)))
        results = results_of(execution.simulator, execution.bindable, angles[rows], {})
        if execution.reading is Reading.VALUES:
            labels = [str(i) for i in range(values.shape[1])]
            values[rows] = [[getattr(r.data, label) for label in labels] for r in results]
            continue
        chances = as_read(np.array([r.data.probabilities for r in results]), execution.readout)
        if shots is not None:
            for group, random in enumerate(randoms):
                own = groups[rows] == group
                chances[own] = random.multinomial(shots, chances[own]) / shots
        values[rows] = chances @ execution.basis.signs
    return values


def results_of(
    simulator: AerSimulator, bindable: Bindable, angles: np.ndarray, options: dict[str, Any]
) -> list[Any]:
    """One result of Aer for each row of angles (R, local angles), in one run."""
    R = len(angles)
    circuits: Any = bindable.circuit
    if bindable.slots:
        slots = angles @ bindable.matrix.T + bindable.offsets
        binds = dict(zip(bindable.slots, slots.T.tolist(), strict=True))
        options = {**options, "parameter_binds": [binds]}
    else:
        circuits = [bindable.circuit] * R
    result = simulator.run(circuits, **options).result()
    if not result.success or len(result.results) != R:
        raise EngineError(f"Aer failed: {result.status} ({len(result.results)} of {R} results)")
    results: list[Any] = result.results
    return results


def readout_of(noise: NoiseModel) -> dict[int, np.ndarray]:
    """For each qubit with readout errors, the probabilities of reading the row at the column."""
    return {
        qubit: np.array(error["probabilities"]).T
        for error in noise.to_dict()["errors"]
        if error["type"] == "roerror"
        for (qubit,) in error["gate_qubits"]
    }


def as_read(chances: np.ndarray, readout: dict[int, np.ndarray]) -> np.ndarray:
    """Outcome probabilities (R, 2^n) as they are read, and exactly normalised."""
    shape = chances.shape
    for qubit, matrix in readout.items():
        # The least significant qubit is the last axis.
        split = chances.reshape(shape[0], -1, 2, 1 << qubit)
        chances = np.einsum("ij,rajb->raib", matrix, split)
    chances = chances.reshape(shape).clip(0)
    return chances / chances.sum(axis=1, keepdims=True)
