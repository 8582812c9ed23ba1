"""Lay circuits out on a device, with the noise model of the qubits in use.

A circuit is transpiled for the working gates and couplings of the device: swaps are inserted where
qubits are not coupled, and a layout of low error is chosen. The noise model is Aer's
`NoiseModel.from_backend` for those qubits: after each gate, the thermal relaxation of its duration
and as much depolarisation as gives the reported error, and readout errors. Idle qubits are not
noisy, and there is no crosstalk.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

from qiskit import transpile
from qiskit.circuit import QuantumCircuit
from qiskit.exceptions import QiskitError
from qiskit.transpiler import Target
from qiskit_aer.noise import NoiseModel

from qhdm.errors import EngineError
from qhdm.quantum.devices.calibration import Calibration, left_out, working_part
from qhdm.quantum.ir.connectivity import Compact, compact

_OPTIMIZATION_LEVEL = 2
#: The layout is part of what a run means: it must be the same each time.
_SEED = 0


def place(circuit: QuantumCircuit, device: Calibration) -> tuple[Compact, NoiseModel]:
    """Lay a circuit of gates out on a device.

    Returns:
        The circuit in the device's gates, and the noise of its qubits under the same numbers.

    Raises:
        EngineError: the device has too few qubits, or not the gates and couplings it takes.
    """
    target, size = device.target, circuit.num_qubits
    if size > target.num_qubits:
        raise EngineError(
            f"noise: {device} has {target.num_qubits} qubits, too few for a circuit of {size}"
        )
    measured = QuantumCircuit(size, size)
    measured.compose(circuit, inplace=True)
    measured.measure(range(size), range(size))
    try:
        laid_out = transpile(
            measured,
            target=working_part(target),
            optimization_level=_OPTIMIZATION_LEVEL,
            seed_transpiler=_SEED,
        )
    except QiskitError as error:
        reason = error.message.split(". ")[0]
        facts = [f"gates {', '.join(sorted(target.operation_names))}", left_out(target)]
        raise EngineError(
            f"noise: {device} ({'; '.join(filter(None, facts))}) cannot run a circuit of {size} "
            f"connected qubits: {reason}; name another device, or complete its file"
        ) from None
    placed = compact(laid_out)
    return placed, noise_of(target, placed.physical)


def part_of(target: Target, physical: Sequence[int]) -> Target:
    """The gates and errors of some qubits, renumbered."""
    local = {qubit: i for i, qubit in enumerate(physical)}
    of_qubits = target.qubit_properties
    part = Target(
        num_qubits=len(physical),
        dt=target.dt,
        qubit_properties=[of_qubits[q] for q in physical] if of_qubits else None,
    )
    for name in target.operation_names:
        places = {
            tuple(local[q] for q in qubits): properties
            for qubits, properties in target[name].items()
            if set(qubits) <= local.keys()
        }
        if places:
            part.add_instruction(target.operation_from_name(name), places)
    return part


def noise_of(target: Target, physical: Sequence[int]) -> NoiseModel:
    """The noise of some qubits, renumbered (Aer takes seconds to load a whole device)."""
    part = part_of(target, physical)
    # All that `from_backend` reads of a BackendV2.
    backend = SimpleNamespace(
        version=2, target=part, operation_names=list(part.operation_names), dt=part.dt
    )
    return NoiseModel.from_backend(backend)
