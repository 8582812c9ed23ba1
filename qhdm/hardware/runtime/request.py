"""What is asked of a service, and what every service can do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from qiskit.circuit import QuantumCircuit

from qhdm.hardware.isa import REGISTER
from qhdm.hardware.runtime.device import Device
from qhdm.hardware.spec import JobSpec, randomizations

if TYPE_CHECKING:
    from qiskit_ibm_runtime.options_models import SamplerOptions
    from qiskit_ibm_runtime.quantum_program import QuantumProgram

State = Literal["queued", "running", "done", "failed", "cancelled", "too long", "lost"]


@dataclass(frozen=True, eq=False)
class Request:
    """A job to execute.

    Attributes:
        pubs: circuits, each with parameter values (R, parameters).
        shots: of each row, as they are executed.
        tags: of the job; the first one no other job has.
        max_seconds: on the QPU, after which the service stops it.
    """

    pubs: Sequence[tuple[QuantumCircuit, np.ndarray]]
    shots: int
    tags: tuple[str, ...]
    max_seconds: int


@dataclass(frozen=True)
class Status:
    """How a job stands; `reason` is of one that gives no result.

    `lost` is what nobody has any more.
    """

    state: State
    reason: str = ""


class Service(Protocol):
    """Where jobs are executed.

    Attributes:
        device: the backend.
        remembers: whether its jobs outlive this process.
    """

    device: Device
    remembers: bool

    def submit(self, request: Request) -> str:
        """Send a job; returns its id."""

    def find(self, tag: str) -> dict[str, tuple[str, ...]]:
        """Ids of the jobs with a tag, oldest first, and all their tags."""

    def status(self, job_id: str) -> Status:
        """How a job stands.

        Raises:
            ResultLostError: the service does not have it, or does not say so yet.
        """

    def outcomes(self, job_id: str) -> list[np.ndarray]:
        """For each PUB of a job that is done, the outcomes, bool (R, shots, clbits).

        Raises:
            ResultLostError: it has none, or none that can be read.
        """

    def inputs(self, job_id: str) -> list[np.ndarray]:
        """For each PUB of a job, the parameter values (R, parameters) that it was sent with.

        Raises:
            HardwareError: the service does not tell.
        """

    def qpu_seconds(self, job_id: str) -> float | None:
        """What a job has used; None if that is not known, or not yet."""

    def cancel(self, job_id: str) -> None:
        """Cancel a job; one that has ended stays as it is."""


def options_of(spec: JobSpec, request: Request) -> SamplerOptions:
    from qiskit_ibm_runtime.options_models import SamplerOptions

    options = SamplerOptions(default_shots=request.shots, max_execution_time=request.max_seconds)
    options.environment.job_tags = list(request.tags)
    if spec.dynamical_decoupling is not None:
        options.dynamical_decoupling.enable = True
        options.dynamical_decoupling.sequence_type = spec.dynamical_decoupling
    options.twirling.enable_gates = spec.twirling.gates
    options.twirling.enable_measure = spec.twirling.measure or spec.resilience_level == 1
    options.twirling.num_randomizations = randomizations(request.shots)
    return options


def pubs_of(request: Request) -> list[Any]:
    return [
        (circuit, values) if circuit.num_parameters else (circuit,)
        for circuit, values in request.pubs
    ]


def values_of(program: QuantumProgram) -> list[np.ndarray]:
    """Parameter values (R, parameters) of each PUB of what was sent."""
    from qiskit_ibm_runtime.quantum_program import SamplexItem

    found = []
    for item in program.items:
        if isinstance(item, SamplexItem):
            values = item.samplex_arguments.get("parameter_values")
        else:
            values = item.circuit_arguments
        array = np.empty((1, 0)) if values is None else np.asarray(values)
        found.append(array if array.size else np.empty((1, 0)))
    return found


def outcomes_of(raw: str) -> list[np.ndarray]:
    """For each PUB of a result as the service gives it, the outcomes, bool (R, shots, clbits)."""
    from qiskit_ibm_runtime.decoders.executor.decoder import ExecutorResultDecoder
    from qiskit_ibm_runtime.decoders.executor_sampler.decoder import ClientSideSamplerResultDecoder

    return [
        bits_of(pub)
        for pub in ClientSideSamplerResultDecoder.decode(ExecutorResultDecoder.decode(raw))
    ]


def bits_of(pub: Any) -> np.ndarray:
    """Outcomes of a PUB's result, bool (R, shots, clbits)."""
    bits: np.ndarray = getattr(pub.data, REGISTER).to_bool_array(order="little")
    return bits.reshape(-1, *bits.shape[-2:])
