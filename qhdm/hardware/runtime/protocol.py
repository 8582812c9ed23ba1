"""What every service can do, and how requests and results look to IBM's client."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import numpy as np

from qhdm.hardware.isa import REGISTER
from qhdm.hardware.request import Request
from qhdm.hardware.runtime.device import Device
from qhdm.quantum.options import Hardware, randomizations

if TYPE_CHECKING:
    from qiskit_ibm_runtime.options_models import SamplerOptions
    from qiskit_ibm_runtime.quantum_program import QuantumProgram

State = Literal["queued", "running", "done", "failed", "cancelled", "too long", "lost"]


class Status(NamedTuple):
    """The state of a runtime job (`lost`: the service no longer has it), and why it failed."""

    state: State
    reason: str = ""


class Service(Protocol):
    """Where runtime jobs are executed.

    Attributes:
        device: the backend.
        remembers: whether its jobs outlive this process.
    """

    device: Device
    remembers: bool

    def submit(self, request: Request, tags: tuple[str, ...], *, max_seconds: int) -> str:
        """Send a request; returns the id of its runtime job.

        Args:
            request: what to execute.
            tags: of the job; no other job has the first.
            max_seconds: on the QPU, after which the service stops it.
        """

    def find(self, tag: str) -> dict[str, tuple[str, ...]]:
        """The tags of all jobs that have `tag`, by job id, oldest first."""

    def status(self, job_id: str) -> Status:
        """The state of a job.

        Raises:
            RuntimeJobError: the service does not have it, or not yet.
        """

    def outcomes(self, job_id: str) -> list[np.ndarray]:
        """The outcomes of each circuit of a job that is done, bool (R, shots, clbits).

        Raises:
            RuntimeJobError: it has none, or none that can be read.
        """

    def inputs(self, job_id: str) -> list[np.ndarray]:
        """The parameter values (R, parameters) of each circuit that a job was sent with.

        Raises:
            HardwareError: the service does not return them.
        """

    def qpu_seconds(self, job_id: str) -> float | None:
        """What a job has used; None if that is not known, or not yet."""

    def cancel(self, job_id: str) -> None:
        """Cancel a job; one that has ended stays as it is."""


def options_of(
    engine: Hardware, shots: int, tags: tuple[str, ...], *, max_seconds: int
) -> SamplerOptions:
    """The client's options of a runtime job."""
    from qiskit_ibm_runtime.options_models import SamplerOptions

    options = SamplerOptions(default_shots=shots, max_execution_time=max_seconds)
    options.environment.job_tags = list(tags)
    if engine.dynamical_decoupling is not None:
        options.dynamical_decoupling.enable = True
        options.dynamical_decoupling.sequence_type = engine.dynamical_decoupling
    options.twirling.enable_gates = engine.twirling.gates
    options.twirling.enable_measure = engine.twirling.measure or engine.mitigation == "trex"
    options.twirling.num_randomizations = randomizations(shots)
    return options


def pubs_of(request: Request) -> list[Any]:
    """A request as PUBs of the Sampler."""
    return [(c, values) if c.num_parameters else (c,) for c, values in request.circuits]


def values_of(program: QuantumProgram) -> list[np.ndarray]:
    """Parameter values (R, parameters) of each circuit that was sent."""
    from qiskit_ibm_runtime.quantum_program import SamplexItem

    values = [
        item.samplex_arguments.get("parameter_values")
        if isinstance(item, SamplexItem)
        else item.circuit_arguments
        for item in program.items
    ]
    arrays = [np.empty((1, 0)) if v is None else np.asarray(v) for v in values]
    return [array if array.size else np.empty((1, 0)) for array in arrays]


def bits_of(pub: Any) -> np.ndarray:
    """Outcomes of a circuit, from a result of the Sampler: bool (R, shots, clbits)."""
    bits: np.ndarray = getattr(pub.data, REGISTER).to_bool_array(order="little")
    return bits.reshape(-1, *bits.shape[-2:])
