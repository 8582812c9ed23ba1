"""The error of <Z> that a device's calibration predicts: of gates, without readout and shots.

Gate errors are those of Aer's `NoiseModel.from_backend`. They act on the 4^n Pauli coefficients of
a state, which takes milliseconds for a component.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from qiskit.circuit import CircuitInstruction, Gate, ParameterExpression, QuantumCircuit
from qiskit.quantum_info import PTM, Operator
from qiskit.transpiler import Target
from qiskit_aer.noise.device import basic_device_gate_errors

from qhdm.quantum.compile.component import THIRDS, InputForm
from qhdm.quantum.devices.calibration import working_part
from qhdm.quantum.devices.noise import part_of
from qhdm.quantum.ir.connectivity import Compact

#: Error channels by gate and local qubits, on Pauli coefficients.
_Channels = dict[tuple[str, tuple[int, ...]], np.ndarray]


class ErrorModel:
    """Predicts the errors of transpiled components on a device.

    Args:
        target: gates, couplings, errors and times.
    """

    def __init__(self, target: Target) -> None:
        self._target = working_part(target)
        self._known: dict[tuple[int, ...], _Channels] = {}

    def squared_error(
        self, component: Compact, physical: tuple[int, ...], form: InputForm
    ) -> float:
        """The mean squared error of <Z>, over outputs and uniform inputs.

        Args:
            component: transpiled.
            physical: the device's qubits that it runs on.
            form: what it should compute.
        """
        channels = self._channels(physical)
        values = _values(component.circuit, component.ends, form, channels)
        return float(np.mean((values - form.values()) ** 2))

    def _channels(self, physical: tuple[int, ...]) -> _Channels:
        if physical not in self._known:
            part = part_of(self._target, physical)
            self._known[physical] = {
                (name, tuple(qubits)): PTM(error).data.real
                for name, qubits, error in basic_device_gate_errors(target=part)
            }
        return self._known[physical]


def _values(
    circuit: QuantumCircuit, ends: Sequence[int], form: InputForm, channels: _Channels
) -> np.ndarray:
    """<Z> of `ends` at the grid of a form, (3^n, n)."""
    n, R = circuit.num_qubits, len(form.grid)
    # Axis n - q is of qubit q. A qubit in |0> is (I + Z) / 2.
    state = np.zeros((R, *[4] * n))
    state[np.ix_(range(R), *[[0, 3]] * n)] = 1
    for entry in circuit.data:
        qubits = tuple(circuit.find_bit(qubit).index for qubit in entry.qubits)
        if entry.operation.name == "delay":
            continue
        matrix = _transfer(entry, form)
        noise = channels.get((entry.operation.name, qubits))
        matrix = matrix if noise is None else noise @ matrix
        axes = [n - q for q in reversed(qubits)]
        last = range(-len(qubits), 0)
        moved = np.moveaxis(state, axes, last)
        flat = moved.reshape(R, -1, matrix.shape[-1]) @ matrix.swapaxes(-1, -2)
        state = np.moveaxis(flat.reshape(moved.shape), last, axes)
    flat = state.reshape(R, -1)
    return flat[:, [3 * 4**end for end in ends]]


def _transfer(entry: CircuitInstruction, form: InputForm) -> np.ndarray:
    """The Pauli transfer matrix of a gate, or (R, 4, 4), one for each row of the grid."""
    gate = entry.operation
    if not any(isinstance(p, ParameterExpression) for p in gate.params):
        return _transfer_matrix(gate)
    (angle,) = gate.params
    (parameter,) = angle.parameters
    angles = [float(angle.bind({parameter: x})) for x in THIRDS]
    matrices = np.array([_transfer_matrix(gate.base_class(one)) for one in angles])
    rows: np.ndarray = matrices[np.searchsorted(THIRDS, form.grid[:, form.inputs.index(parameter)])]
    return rows


def _transfer_matrix(gate: Gate) -> np.ndarray:
    matrix: np.ndarray = PTM(Operator(gate)).data.real
    return matrix
