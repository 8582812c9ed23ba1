"""Runtime jobs executed on this machine.

The client has a local mode too. It simulates the chip's used qubits as one state, with the noise of
all: one copy of a filter takes 45 s where this takes 0.7 s, and three do not fit in memory.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from qiskit.circuit import QuantumCircuit

from qhdm.hardware.request import Request
from qhdm.hardware.runtime.device import snapshot
from qhdm.hardware.runtime.protocol import Status, bits_of, options_of, pubs_of
from qhdm.hardware.simulator import DeviceSimulator
from qhdm.quantum.devices.calibration import named_devices
from qhdm.quantum.options import IDEAL, Hardware

if TYPE_CHECKING:
    from qiskit_ibm_runtime.quantum_program import QuantumProgram
    from qiskit_ibm_runtime.results import QuantumProgramResult


class LocalService:
    """Executes requests on this machine when they are submitted.

    Equal requests have equal outcomes: the seed is a digest of the request.

    Args:
        engine: its backend is `aer` or a fake device.
    """

    remembers = False

    def __init__(self, engine: Hardware) -> None:
        self.device = snapshot(engine.backend, engine.fractional)
        ideal = engine.backend == IDEAL
        self._backend = None if ideal else named_devices()[engine.backend]()
        self._simulator = DeviceSimulator(self.device.target, noisy=not ideal)
        self._engine = engine
        self._outcomes: dict[str, list[np.ndarray]] = {}

    def submit(self, request: Request, tags: tuple[str, ...], *, max_seconds: int) -> str:
        from qiskit_ibm_runtime.decoders.executor_sampler.decoder import (
            ClientSideSamplerResultDecoder,
        )
        from qiskit_ibm_runtime.executor_sampler.prepare import prepare

        options = options_of(self._engine, request.shots, tags, max_seconds=max_seconds)
        program, _ = prepare(pubs_of(request), options, request.shots, backend=self._backend)
        result = ClientSideSamplerResultDecoder.decode(execute(program, self._simulator))
        self._outcomes[tags[0]] = [bits_of(pub) for pub in result]
        return tags[0]

    def find(self, tag: str) -> dict[str, tuple[str, ...]]:
        return {}

    def status(self, job_id: str) -> Status:
        return Status("done")

    def outcomes(self, job_id: str) -> list[np.ndarray]:
        return self._outcomes.pop(job_id)

    def inputs(self, job_id: str) -> list[np.ndarray]:
        return []

    def qpu_seconds(self, job_id: str) -> float | None:
        return 0.0

    def cancel(self, job_id: str) -> None:
        self._outcomes.pop(job_id, None)


def execute(program: QuantumProgram, device: DeviceSimulator) -> QuantumProgramResult:
    """Execute a program of the client's Executor; equal programs have equal results."""
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
