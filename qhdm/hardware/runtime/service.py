"""IBM's service: jobs on real devices."""

from __future__ import annotations

from typing import Any

import numpy as np

from qhdm.errors import BackendUnavailableError, ResultLostError
from qhdm.hardware.faults import redacted
from qhdm.hardware.runtime.client import Client
from qhdm.hardware.runtime.device import device_of
from qhdm.hardware.runtime.request import Request, State, Status, bits_of, options_of, pubs_of
from qhdm.hardware.spec import JobSpec


class RuntimeService:
    """IBM's service.

    Args:
        spec: of the job.
        session: id of a session or batch to go on with.

    Raises:
        HardwareError: no account, no network, no such instance or backend, or it takes no jobs.
    """

    remembers = True

    def __init__(self, spec: JobSpec, *, session: str | None = None) -> None:
        self._spec = spec
        self._client = Client(spec.instance)
        self._service = self._client.service
        self._backend = self._client.backend(spec.backend)
        with self._client.calling(f"backend {spec.backend}"):
            self.device = device_of(spec.backend, self._backend, "the service")
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
        with self._client.calling(f"backend {name}"):
            status = self._backend.status()
        if not status.operational or status.status_msg != "active":
            raise BackendUnavailableError(
                f"backend {name}: takes no jobs now (status: {status.status_msg}); try later, or "
                "use another"
            )
        with self._client.calling(f"instance of backend {name}"):
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
        with self._client.calling(f"{self._spec.mode} on {self._spec.backend}"):
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
            with self._client.calling(f"{self._spec.mode} on {self._spec.backend}"):
                self._mode.close()

    def submit(self, request: Request) -> str:
        from qiskit_ibm_runtime.executor_sampler import Sampler

        with self._client.calling(f"submitting to {self._spec.backend}"):
            sampler = Sampler(self._mode, options_of(self._spec, request))
            job = sampler.run(pubs_of(request), shots=request.shots)
        self._jobs[job.job_id()] = job
        return str(job.job_id())

    def find(self, tag: str) -> list[str]:
        with self._client.calling("list of jobs"):
            jobs = self._service.jobs(limit=None, job_tags=[tag], descending=False)
        self._jobs |= {job.job_id(): job for job in jobs}
        return [str(job.job_id()) for job in jobs]

    def status(self, job_id: str) -> Status:
        job = self._job(job_id)
        with self._client.calling(f"job {job_id}"):
            state = str(job.status())
            reason = job.error_message() if state == "ERROR" else ""
        lines = [line for line in (reason or "no reason given").splitlines() if line.strip()]
        if "Traceback" in reason:
            lines = [lines[0].split("Traceback")[0], lines[-1].split("Traceback")[-1]]
        text = redacted(" ".join(" ".join(lines).split()), self._client.secrets)
        if state == "ERROR":
            too_long = "ran longer" in text or "1305" in text
            return Status("too long" if too_long else "failed", text)
        known: dict[str, State] = {"DONE": "done", "CANCELLED": "cancelled", "RUNNING": "running"}
        return Status(known.get(state, "queued"))

    def outcomes(self, job_id: str) -> list[np.ndarray]:
        job = self._job(job_id)
        with self._client.calling(f"result of job {job_id}"):
            result = job.result()
        if result is None:
            raise ResultLostError(f"result of job {job_id}: the service does not have it any more")
        return [bits_of(pub) for pub in result]

    def qpu_seconds(self, job_id: str) -> float | None:
        job = self._job(job_id)
        with self._client.calling(f"usage of job {job_id}"):
            found = job.usage(partial=True)
        return None if found is None else float(found)

    def cancel(self, job_id: str) -> None:
        from qiskit_ibm_runtime.exceptions import RuntimeInvalidStateError

        job = self._job(job_id)
        with self._client.calling(f"job {job_id}"):
            try:
                job.cancel()
            except RuntimeInvalidStateError:
                return  # it has ended

    def _job(self, job_id: str) -> Any:
        if job_id not in self._jobs:
            with self._client.calling(f"job {job_id}"):
                self._jobs[job_id] = self._service.job(job_id)
        return self._jobs[job_id]
