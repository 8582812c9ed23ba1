"""The client of IBM's service, and its place-holder on this machine.

All of qhdm.hardware that imports qiskit-ibm-runtime is here. Circuits are sent through the client's
`executor_sampler.Sampler`, the successor of the SamplerV2 that 0.50 deprecates: it measures what
the circuit measures, and nothing else of the chip.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from qiskit.circuit import QuantumCircuit
from qiskit.providers import BackendV2
from qiskit.transpiler import CouplingMap, Target

from qhdm.errors import (
    BackendMissingError,
    BackendUnavailableError,
    HardwareError,
    ResultLostError,
)
from qhdm.hardware.faults import explained, redacted
from qhdm.hardware.isa import REGISTER
from qhdm.hardware.local import LocalDevice
from qhdm.hardware.spec import IDEAL, JobSpec
from qhdm.quantum.aer.calibration import named_devices

if TYPE_CHECKING:
    from qiskit_ibm_runtime import QiskitRuntimeService
    from qiskit_ibm_runtime.options_models import SamplerOptions
    from qiskit_ibm_runtime.quantum_program import QuantumProgram
    from qiskit_ibm_runtime.results import QuantumProgramResult

#: Qubits of the ideal device: one filter.
_IDEAL_QUBITS = 12
#: Where a device does not tell: that of the Heron devices, seconds.
_REP_DELAY = 250e-6
_NO_TOKEN = r"Unable to retrieve IBM Cloud access token"
_NO_TIME = r"(?s).*(usage limit|no more time available)"

State = Literal["queued", "running", "done", "failed", "cancelled", "too long"]


@dataclass(frozen=True, eq=False)
class Device:
    """What circuits are made for.

    Attributes:
        name: of the backend.
        target: gates, couplings, errors and times.
        rep_delay: between shots, seconds; 0 for a simulation.
        max_shots: of a circuit; None is unlimited.
        source: where this is known from.
    """

    name: str
    target: Target
    rep_delay: float
    max_shots: int | None
    source: str


@dataclass(frozen=True, eq=False)
class Request:
    """A job to execute.

    Attributes:
        pubs: circuits, each with parameter values (R, parameters).
        shots: of each row.
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


def snapshot(name: str) -> Device:
    """A device as it is known without a network.

    Args:
        name: `aer`, a fake device, or an IBM backend of which there is a fake one.

    Raises:
        BackendMissingError: nothing is known of it.
    """
    if name == IDEAL:
        gates = ["rz", "sx", "x", "cz", "measure"]
        coupling = CouplingMap.from_full(_IDEAL_QUBITS)
        target = Target.from_configuration(gates, _IDEAL_QUBITS, coupling)
        return Device(name, target, 0.0, None, "ideal")
    fake = name if name.startswith("fake_") else "fake_" + name.removeprefix("ibm_")
    known = named_devices()
    if fake not in known:
        raise BackendMissingError(
            f"backend {name}: qiskit-ibm-runtime ships no snapshot of it; name one that it does, "
            "for example --device fake_torino"
        )
    backend = known[fake]()
    source = f"snapshot {fake} of qiskit-ibm-runtime"
    return _device(name, backend, source)


def _device(name: str, backend: BackendV2, source: str) -> Device:
    facts = backend.configuration()
    delay = getattr(facts, "default_rep_delay", None)
    # Configurations give microseconds, which the client turns into seconds.
    return Device(
        name,
        backend.target,
        _REP_DELAY if delay is None else delay,
        getattr(facts, "max_shots", None),
        source,
    )


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
        self._simulator = LocalDevice(self.device.target, noisy=not ideal)
        self._spec = spec
        self._found: dict[str, list[np.ndarray]] = {}

    def submit(self, request: Request) -> str:
        from qiskit_ibm_runtime.decoders.executor_sampler.decoder import (
            ClientSideSamplerResultDecoder,
        )
        from qiskit_ibm_runtime.executor_sampler.prepare import prepare

        options = _options(self._spec, request)
        program, _ = prepare(_pubs(request), options, request.shots, backend=self._backend)
        result = execute(program, self._simulator)
        decoded = ClientSideSamplerResultDecoder.decode(result)
        self._found[request.tags[0]] = [_bits(pub) for pub in decoded]
        return request.tags[0]

    def find(self, tag: str) -> list[str]:
        return [tag] if tag in self._found else []

    def status(self, job_id: str) -> Status:
        return Status("done")

    def outcomes(self, job_id: str) -> list[np.ndarray]:
        return self._found.pop(job_id)

    def qpu_seconds(self, job_id: str) -> float | None:
        return 0.0

    def cancel(self, job_id: str) -> None:
        self._found.pop(job_id, None)


def execute(program: QuantumProgram, device: LocalDevice) -> QuantumProgramResult:
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


class RuntimeService:
    """IBM's service.

    The token comes from the environment or the account file, through the client; it is taken out
    of every message and log record.

    Args:
        spec: of the job.
        session: id of a session or batch to go on with.

    Raises:
        HardwareError: no account, no network, no such instance or backend, or it takes no jobs.
    """

    remembers = True

    def __init__(self, spec: JobSpec, *, session: str | None = None) -> None:
        from qiskit_ibm_runtime import QiskitRuntimeService

        self._spec = spec
        self._secrets = _secrets()
        _redact_logs(self._secrets)
        with self._calling("account"):
            self._service = QiskitRuntimeService(instance=spec.instance)
        with self._calling(f"backend {spec.backend}"):
            with _heard() as complaints:
                try:
                    self._backend = self._service.backend(spec.backend)
                except Exception:
                    # The client logs why a backend cannot be described, and then has none.
                    if complaints:
                        raise RuntimeError(" ".join(complaints)) from None
                    raise
            self.device = _device(spec.backend, self._backend, "the service")
        self._mode: Any = self._backend
        self._jobs: dict[str, Any] = {}
        self.session = session

    def check(self) -> None:
        """Find out whether the backend takes jobs and the instance has time.

        Raises:
            BackendUnavailableError: it is in maintenance.
            UsageLimitError: there is no time left.
        """
        name = self._spec.backend
        with self._calling(f"backend {name}"):
            status = self._backend.status()
        if not status.operational or status.status_msg != "active":
            raise BackendUnavailableError(
                f"backend {name}: takes no jobs now (status: {status.status_msg}); try later, or "
                "use another"
            )
        with self._calling(f"instance of backend {name}"):
            usage = self._service.usage()
            if usage.get("usage_limit_reached"):
                raise RuntimeError("usage limit reached")

    def open(self) -> None:
        """Open the session or batch that the specification asks for, or go on with its own.

        Raises:
            SessionExpiredError: it is closed.
        """
        from qiskit_ibm_runtime import Batch, Session

        kind = {"session": Session, "batch": Batch}.get(self._spec.mode)
        if kind is None:
            return
        with self._calling(f"{self._spec.mode} on {self._spec.backend}"):
            if self.session is None:
                self._mode = kind(backend=self._backend)
                self.session = self._mode.session_id
                return
            self._mode = kind.from_id(self.session, self._service)
            if (self._mode.status() or "").startswith("Closed"):
                raise RuntimeError(f"session {self.session} is closed")

    def close(self) -> None:
        """Close the session or batch: its device is free, and no longer paid for."""
        if self.session is not None and self._mode is not self._backend:
            with self._calling(f"{self._spec.mode} on {self._spec.backend}"):
                self._mode.close()

    def submit(self, request: Request) -> str:
        from qiskit_ibm_runtime.executor_sampler import Sampler

        with self._calling(f"submitting to {self._spec.backend}"):
            sampler = Sampler(self._mode, _options(self._spec, request))
            job = sampler.run(_pubs(request), shots=request.shots)
        self._jobs[job.job_id()] = job
        return str(job.job_id())

    def find(self, tag: str) -> list[str]:
        with self._calling("list of jobs"):
            jobs = self._service.jobs(limit=None, job_tags=[tag], descending=False)
        self._jobs |= {job.job_id(): job for job in jobs}
        return [str(job.job_id()) for job in jobs]

    def status(self, job_id: str) -> Status:
        job = self._job(job_id)
        with self._calling(f"job {job_id}"):
            state = str(job.status())
            reason = job.error_message() if state == "ERROR" else ""
        lines = [line for line in (reason or "no reason given").splitlines() if line.strip()]
        if "Traceback" in reason:
            lines = [lines[0].split("Traceback")[0], lines[-1].split("Traceback")[-1]]
        text = redacted(" ".join(" ".join(lines).split()), self._secrets)
        if state == "ERROR":
            too_long = "ran longer" in text or "1305" in text
            return Status("too long" if too_long else "failed", text)
        known: dict[str, State] = {"DONE": "done", "CANCELLED": "cancelled", "RUNNING": "running"}
        return Status(known.get(state, "queued"))

    def outcomes(self, job_id: str) -> list[np.ndarray]:
        job = self._job(job_id)
        with self._calling(f"result of job {job_id}"):
            result = job.result()
        if result is None:
            raise ResultLostError(f"result of job {job_id}: the service does not have it any more")
        return [_bits(pub) for pub in result]

    def qpu_seconds(self, job_id: str) -> float | None:
        job = self._job(job_id)
        with self._calling(f"usage of job {job_id}"):
            found = job.usage(partial=True)
        return None if found is None else float(found)

    def cancel(self, job_id: str) -> None:
        from qiskit_ibm_runtime.exceptions import RuntimeInvalidStateError

        job = self._job(job_id)
        with self._calling(f"job {job_id}"):
            try:
                job.cancel()
            except RuntimeInvalidStateError:
                return  # it has ended

    def _job(self, job_id: str) -> Any:
        if job_id not in self._jobs:
            with self._calling(f"job {job_id}"):
                self._jobs[job_id] = self._service.job(job_id)
        return self._jobs[job_id]

    @contextmanager
    def _calling(self, doing: str) -> Iterator[None]:
        """Call the client: its warnings that matter are errors, and its errors are one line."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                # It would go on, and send the token itself instead.
                warnings.filterwarnings("error", message=_NO_TOKEN)
                warnings.filterwarnings("error", message=_NO_TIME)
                yield
        except HardwareError:
            raise
        except Exception as error:  # the client raises dozens of kinds, its own and of libraries
            raise explained(error, doing, self._secrets) from None


@contextmanager
def _heard() -> Iterator[list[str]]:
    """What the client says of backends that it cannot describe."""
    said: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "Unable to create configuration" in record.getMessage():
                said.append(record.getMessage())

    logger, listener = logging.getLogger("qiskit_ibm_runtime"), Listener()
    level, spreads = logger.level, logger.propagate
    logger.addHandler(listener)
    if level > logging.WARNING:
        logger.setLevel(logging.WARNING)
        logger.propagate = False
    try:
        yield said
    finally:
        logger.removeHandler(listener)
        logger.setLevel(level)
        logger.propagate = spreads


def _secrets() -> list[str]:
    """The tokens that the client may use."""
    from qiskit_ibm_runtime import QiskitRuntimeService

    found = [os.environ.get("QISKIT_IBM_TOKEN", "")]
    try:
        found += [account.get("token", "") for account in _saved(QiskitRuntimeService)]
    except Exception as error:  # an account file may hold anything
        if not found[0]:
            raise explained(error, "account file ~/.qiskit/qiskit-ibm.json") from None
    return [secret for secret in found if secret]


def _saved(service: type[QiskitRuntimeService]) -> list[dict[str, Any]]:
    return list(service.saved_accounts().values())


def _redact_logs(secrets: Sequence[str]) -> None:
    """Let no log record of any library hold a secret; warnings of the client are not shown."""
    if "QISKIT_IBM_RUNTIME_LOG_LEVEL" not in os.environ:
        logging.getLogger("qiskit_ibm_runtime").setLevel(logging.ERROR)
    make = logging.getLogRecordFactory()

    def clean(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(*args, **kwargs)
        text = record.getMessage()
        if any(secret in text for secret in secrets):
            record.msg, record.args = redacted(text, secrets), ()
        return record

    logging.setLogRecordFactory(clean)


def _options(spec: JobSpec, request: Request) -> SamplerOptions:
    from qiskit_ibm_runtime.options_models import SamplerOptions

    options = SamplerOptions(default_shots=request.shots, max_execution_time=request.max_seconds)
    options.environment.job_tags = list(request.tags)
    if spec.dynamical_decoupling is not None:
        options.dynamical_decoupling.enable = True
        options.dynamical_decoupling.sequence_type = spec.dynamical_decoupling
    options.twirling.enable_gates = spec.twirling.gates
    options.twirling.enable_measure = spec.twirling.measure or spec.resilience_level == 1
    return options


def _pubs(request: Request) -> list[Any]:
    return [
        (circuit, values) if circuit.num_parameters else (circuit,)
        for circuit, values in request.pubs
    ]


def _bits(pub: Any) -> np.ndarray:
    """Outcomes of a PUB's result, bool (R, shots, clbits)."""
    bits: np.ndarray = getattr(pub.data, REGISTER).to_bool_array(order="little")
    return bits.reshape(-1, *bits.shape[-2:])


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
