"""Simulation of a device: ISA circuits executed by Aer, with the device's noise.

Connected components are simulated separately, each with the noise of its own qubits. Gate noise is
local in this model, so that this is exact, and a chip full of small circuits costs no more than the
circuits. Idle qubits are not noisy, as in `qhdm.quantum.devices.noise`: delays are left out.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
from qiskit.circuit import ClassicalRegister, Parameter, QuantumCircuit
from qiskit.transpiler import Target
from qiskit_aer import AerSimulator
from qiskit_aer.noise import NoiseModel

from qhdm.errors import HardwareError
from qhdm.quantum.aer.rebase import Bindable, make_bindable
from qhdm.quantum.aer.run import as_read, readout_of, results_of
from qhdm.quantum.devices.calibration import unitary_part
from qhdm.quantum.devices.noise import noise_of
from qhdm.quantum.ir.connectivity import components, on_qubits

#: Most qubits of a noisy component that is a density matrix; larger ones are trajectories.
_DENSITY_QUBITS = 7
#: Parameter sets per run of Aer, which keeps the results of all in memory.
_ROWS = 1024
#: Circuits whose components are kept.
_KEPT = 64


@dataclass(frozen=True, eq=False)
class _Component:
    """A connected component of a circuit.

    Attributes:
        bindable: on local qubits, with what saves or measures them.
        angles: columns of the circuit's parameters.
        clbits: bit j of an outcome is the circuit's clbit clbits[j].
        readout: for each bit with readout errors, the probabilities (2, 2) of reading the row in
            the state of the column.
        sampled: outcomes come from Aer; otherwise from their probabilities.
        simulator: with the noise of these qubits.
    """

    bindable: Bindable
    angles: list[int]
    clbits: list[int]
    readout: dict[int, np.ndarray]
    sampled: bool
    simulator: AerSimulator


class DeviceSimulator:
    """Executes circuits as a device would.

    Args:
        target: gates, couplings, errors and times.
        noisy: with errors; without, circuits are ideal.
    """

    def __init__(self, target: Target, *, noisy: bool) -> None:
        self._target, self._noisy = unitary_part(target), noisy
        self._noise: dict[tuple[int, ...], NoiseModel] = {}
        # By identity, the circuit beside it so that its id stays its own.
        self._known: OrderedDict[int, tuple[QuantumCircuit, list[_Component]]] = OrderedDict()

    def run(
        self, circuit: QuantumCircuit, values: np.ndarray, *, shots: int, seed: int
    ) -> np.ndarray:
        """Outcomes of all shots.

        Args:
            circuit: of gates of the device, measured at the end.
            values: parameter values (R, parameters), radians.
            shots: of each row.
            seed: equal circuits, values and seeds have equal outcomes.

        Returns:
            bool (R, shots, clbits).
        """
        random = np.random.default_rng(seed)
        bits = np.zeros((len(values), shots, circuit.num_clbits), dtype=bool)
        if id(circuit) not in self._known:
            self._known[id(circuit)] = circuit, self._components(circuit)
            if len(self._known) > _KEPT:
                self._known.popitem(last=False)
        for part in self._known[id(circuit)][1]:
            outcomes = _outcomes(part, values[:, part.angles], shots, random)
            for j, clbit in enumerate(part.clbits):
                bits[:, :, clbit] = outcomes >> j & 1
        return bits

    def _components(self, circuit: QuantumCircuit) -> list[_Component]:
        index = {bit: i for i, bit in enumerate(circuit.qubits)}
        read: dict[int, int] = {}
        gates = circuit.copy_empty_like()
        for entry in circuit.data:
            if entry.operation.name == "measure":
                read[index[entry.qubits[0]]] = circuit.find_bit(entry.clbits[0]).index
            elif entry.operation.name not in ("barrier", "delay"):
                if any(index[q] in read for q in entry.qubits):
                    raise HardwareError(f"{circuit.name}: a gate follows a measurement")
                gates.append(entry)
        column = {parameter: i for i, parameter in enumerate(circuit.parameters)}
        parts = []
        for qubits in components(gates):
            measured = {i: read[q] for i, q in enumerate(qubits) if q in read}
            if measured:
                own = on_qubits(gates, qubits)
                ends, clbits = list(measured), list(measured.values())
                parts.append(self._component(own, qubits, ends, clbits, column))
        return parts

    def _component(
        self,
        circuit: QuantumCircuit,
        qubits: tuple[int, ...],
        ends: list[int],
        clbits: list[int],
        column: dict[Parameter, int],
    ) -> _Component:
        """A component on physical `qubits`, of which it reads the local `ends` into `clbits`."""
        parameters = list(circuit.parameters)
        bindable = make_bindable(circuit, parameters)
        noise = self._noise_of(qubits) if self._noisy else None
        sampled = noise is not None and len(qubits) > _DENSITY_QUBITS
        readout: dict[int, np.ndarray] = {}
        if sampled:
            bindable.circuit.add_register(ClassicalRegister(len(ends)))
            bindable.circuit.measure(ends, range(len(ends)))
        else:
            bindable.circuit.save_probabilities(ends)
            errors = {} if noise is None else readout_of(noise)
            readout = {i: errors[q] for i, q in enumerate(ends) if q in errors}
        simulator = AerSimulator(
            method="statevector" if noise is None or sampled else "density_matrix",
            noise_model=noise,
            runtime_parameter_bind_enable=True,
        )
        return _Component(
            bindable, [column[p] for p in parameters], clbits, readout, sampled, simulator
        )

    def _noise_of(self, qubits: tuple[int, ...]) -> NoiseModel:
        if qubits not in self._noise:
            self._noise[qubits] = noise_of(self._target, qubits)
        return self._noise[qubits]


def _outcomes(
    part: _Component, angles: np.ndarray, shots: int, random: np.random.Generator
) -> np.ndarray:
    """Outcomes (R, shots) as integers."""
    outcomes = []
    for start in range(0, len(angles), _ROWS):
        rows = angles[start : start + _ROWS]
        options: dict[str, Any] = {}
        if part.sampled:
            seed = int(random.integers(2**31))
            options = {"shots": shots, "memory": True, "seed_simulator": seed}
        results = results_of(part.simulator, part.bindable, rows, options)
        if part.sampled:
            memory = [[int(outcome, 16) for outcome in r.data.memory] for r in results]
            outcomes.append(np.array(memory))
            continue
        chances = as_read(np.array([r.data.probabilities for r in results]), part.readout)
        # By inversion, in the order of the shots: sorted outcomes would correlate parts.
        edges, draws = chances.cumsum(axis=1), random.random((len(rows), shots))
        drawn = [np.searchsorted(e, d, side="right") for e, d in zip(edges, draws, strict=True)]
        outcomes.append(np.minimum(np.array(drawn), chances.shape[1] - 1))
    return np.concatenate(outcomes)
