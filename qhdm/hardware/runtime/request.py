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

State = Literal["queued", "running", "done", "failed", "cancelled", "too long"]


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
    """How a job stands; `reason` is of one that gives no result."""

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

    def find(self, tag: str) -> list[str]:
        """Ids of the jobs with a tag, oldest first."""

    def status(self, job_id: str) -> Status:
        """How a job stands."""

    def outcomes(self, job_id: str) -> list[np.ndarray]:
        """For each PUB of a job that is done, the outcomes, bool (R, shots, clbits)."""

    def qpu_seconds(self, job_id: str) -> float | None:
        """What a job has used, as far as it is known."""

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


def bits_of(pub: Any) -> np.ndarray:
    """Outcomes of a PUB's result, bool (R, shots, clbits)."""
    bits: np.ndarray = getattr(pub.data, REGISTER).to_bool_array(order="little")
    return bits.reshape(-1, *bits.shape[-2:])
