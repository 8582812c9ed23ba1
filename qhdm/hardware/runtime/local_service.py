"""The service's place-holder on this machine."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from qiskit.circuit import QuantumCircuit

from qhdm.hardware.runtime.device import snapshot
from qhdm.hardware.runtime.request import (
    Request,
    Status,
    bits_of,
    options_of,
    pubs_of,
)
from qhdm.hardware.simulator import DeviceSimulator
from qhdm.hardware.spec import IDEAL, JobSpec
from qhdm.quantum.devices.calibration import named_devices

if TYPE_CHECKING:
    from qiskit_ibm_runtime.quantum_program import QuantumProgram
    from qiskit_ibm_runtime.results import QuantumProgramResult


class LocalService:
    """Executes jobs on this machine, at once.

    Equal jobs have equal outcomes: they are drawn from the content of the job.

    Args:
        spec: of the job; its backend is `aer` or a fake device.
    """

    remembers = False

    def __init__(self, spec: JobSpec) -> None:
        self.device = snapshot(spec.backend)
        ideal = spec.backend == IDEAL
        self._backend = None if ideal else named_devices()[spec.backend]()
        self._simulator = DeviceSimulator(self.device.target, noisy=not ideal)
        self._spec = spec
        self._found: dict[str, tuple[Request, list[np.ndarray]]] = {}

    def submit(self, request: Request) -> str:
        from qiskit_ibm_runtime.decoders.executor_sampler.decoder import (
            ClientSideSamplerResultDecoder,
        )
        from qiskit_ibm_runtime.executor_sampler.prepare import prepare

        options = options_of(self._spec, request)
        program, _ = prepare(pubs_of(request), options, request.shots, backend=self._backend)
        result = execute(program, self._simulator)
        decoded = ClientSideSamplerResultDecoder.decode(result)
        self._found[request.tags[0]] = request, [bits_of(pub) for pub in decoded]
        return request.tags[0]

    def find(self, tag: str) -> dict[str, tuple[str, ...]]:
        return {i: r.tags for i, (r, _) in self._found.items() if tag in r.tags}

    def status(self, job_id: str) -> Status:
        return Status("done")

    def outcomes(self, job_id: str) -> list[np.ndarray]:
        return self._found.pop(job_id)[1]

    def inputs(self, job_id: str) -> list[np.ndarray]:
        return [values for _, values in self._found[job_id][0].pubs]

    def qpu_seconds(self, job_id: str) -> float | None:
        return 0.0

    def cancel(self, job_id: str) -> None:
        self._found.pop(job_id, None)


def execute(program: QuantumProgram, device: DeviceSimulator) -> QuantumProgramResult:
    """Execute a program of the client's Executor on this machine.

    Draws come from the content of the program: an equal program has an equal result.
    """
    from qiskit_ibm_runtime.fake_provider.executor.broadcast_sample import broadcast_sample
    from qiskit_ibm_runtime.quantum_program import SamplexItem
    from qiskit_ibm_runtime.results import QuantumProgramItemResult, QuantumProgramResult

    items = []
    for number, item in enumerate(program.items):
        circuit = item.circuit
        flips: dict[str, np.ndarray] = {}
        if isinstance(item, SamplexItem):
            arrays = [v for v in item.samplex_arguments.values() if isinstance(v, np.ndarray)]
            random = np.random.default_rng(_digest(circuit, arrays, number))
            flips = broadcast_sample(item.samplex, item.samplex_arguments, item.shape, random)
            values = flips.pop("parameter_values", np.empty((*item.shape, 0)))
        else:
            values = np.asarray(item.circuit_arguments)
        shape = values.shape[:-1]
        rows = values.reshape(math.prod(shape), circuit.num_parameters)
        seed = _digest(circuit, [rows], number)
        bits = device.run(circuit, rows, shots=program.shots, seed=seed)
        bits = bits.reshape(*shape, *bits.shape[1:])
        registers = {
            register.name: bits[..., [circuit.find_bit(bit).index for bit in register]]
            for register in circuit.cregs
        }
        items.append(QuantumProgramItemResult({**flips, **registers}))
    return QuantumProgramResult(items, passthrough_data=program.passthrough_data)


def _digest(circuit: QuantumCircuit, arrays: Sequence[np.ndarray], number: int) -> int:
    """A seed from what is executed."""
    digest = hashlib.sha256(str(number).encode())
    index = {bit: i for i, bit in enumerate((*circuit.qubits, *circuit.clbits))}
    for entry in circuit.data:
        bits = [index[bit] for bit in (*entry.qubits, *entry.clbits)]
        values = [str(value) for value in entry.operation.params]
        digest.update(f"{entry.operation.name}{bits}{values}".encode())
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return int.from_bytes(digest.digest()[:7], "big")
