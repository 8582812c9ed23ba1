"""IBM's service: jobs on real devices."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from qhdm.errors import (
    AccountError,
    BackendMissingError,
    BackendUnavailableError,
    NetworkError,
    RateLimitError,
    ResultLostError,
    ServiceError,
    first_line,
)
from qhdm.hardware.faults import redacted
from qhdm.hardware.runtime.client import Client
from qhdm.hardware.runtime.device import Device, device_of
from qhdm.hardware.runtime.request import (
    Request,
    State,
    Status,
    options_of,
    outcomes_of,
    pubs_of,
    values_of,
)
from qhdm.hardware.spec import JobSpec

T = TypeVar("T")

#: Before the login is tried once more, seconds.
_LOGIN_PAUSE = 1.0


class RuntimeService:
    """IBM's service.

    A token that is refused on the way is asked for again, once for each call: it has expired, or
    was revoked.

    Args:
        spec: of the job.

    Attributes:
        session: id of the session or batch that is open.
        instance: CRN of the instance that the jobs are of.

    Raises:
        HardwareError: no account, no network, no such instance or backend, or it takes no jobs.
    """

    remembers = True

    def __init__(self, spec: JobSpec) -> None:
        self._spec = spec
        self.session: str | None = None
        self._jobs: dict[str, Any] = {}
        self.device = self._log_in()
        self.instance = str(self._service.active_instance())

    def _log_in(self) -> Device:
        name = self._spec.backend
        for last in (False, True):
            try:
                self._client = Client(self._spec.instance)
                self._backend = self._client.backend(name)
                with self._client.calling(f"backend {name}"):
                    device = device_of(name, self._backend, "the service")
                break
            except (NetworkError, ServiceError, RateLimitError, BackendMissingError):
                # The client tries this once, and takes a list of backends that fails for an empty
                # one.
                if last:
                    raise
                time.sleep(_LOGIN_PAUSE)
        self._service = self._client.service
        # What hangs on the old token is fetched anew.
        self._mode: Any = None
        self._jobs.clear()
        return device

    def _ask(self, doing: str, call: Callable[[], T]) -> T:
        try:
            with self._client.calling(doing):
                return call()
        except (AccountError, BackendMissingError):
            # The second is what the client says, too, when it cannot list the backends.
            self._log_in()
        with self._client.calling(doing):
            return call()

    def check(self) -> None:
        """Find out whether the backend takes jobs and the instance has time.

        Raises:
            BackendUnavailableError: it is in maintenance.
            UsageLimitError: there is no time left.
        """
        name = self._spec.backend
        status = self._ask(f"backend {name}", lambda: self._backend.status())
        if not status.operational or status.status_msg != "active":
            raise BackendUnavailableError(
                f"backend {name}: takes no jobs now (status: {status.status_msg}); try later, or "
                "use another"
            )

        def usage() -> None:
            if self._service.usage().get("usage_limit_reached"):
                raise RuntimeError("usage limit reached")

        self._ask(f"instance of backend {name}", usage)

    def open(self) -> float | None:
        """Open the session or batch that the specification asks for, or go on with `session`.

        Returns:
            Seconds after which the service closes a new one by itself, where it tells.

        Raises:
            SessionExpiredError: it is closed.
        """
        if self._spec.mode == "job":
            return None

        def opened() -> float | None:
            if self.session is not None:
                state = str(self._mode_of_session().status() or "")
                if state.startswith("Closed") or "not accepting" in state:
                    raise RuntimeError(f"session {self.session} is closed")
                return None
            self._mode = self._kind()(backend=self._backend)
            self.session = self._mode.session_id
            return (self._mode.details() or {}).get("max_time")

        return self._ask(f"{self._spec.mode} on {self._spec.backend}", opened)

    def close(self) -> None:
        """Close the session or batch: its device is free, and no longer paid for.

        Jobs that are in it run to their end.
        """
        if self.session is not None:
            self._ask(f"{self._spec.mode} {self.session}", lambda: self._mode_of_session().close())
            self.session = self._mode = None

    def _kind(self) -> Any:
        from qiskit_ibm_runtime import Batch, Session

        return Session if self._spec.mode == "session" else Batch

    def _mode_of_session(self) -> Any:
        if self._mode is None:
            self._mode = self._kind().from_id(self.session, self._service)
        return self._mode

    def submit(self, request: Request) -> str:
        from qiskit_ibm_runtime.executor_sampler import Sampler

        def submitted() -> Any:
            mode = self._backend if self.session is None else self._mode_of_session()
            sampler = Sampler(mode, options_of(self._spec, request))
            return sampler.run(pubs_of(request), shots=request.shots)

        job = self._ask(f"submitting to {self._spec.backend}", submitted)
        self._jobs[job.job_id()] = job
        return str(job.job_id())

    def find(self, tag: str) -> dict[str, tuple[str, ...]]:
        jobs = self._ask(
            "list of jobs",
            lambda: self._service.jobs(
                limit=None, job_tags=[tag], descending=False, instance=self.instance
            ),
        )
        for job in jobs:
            self._jobs.setdefault(job.job_id(), job)
        return {str(job.job_id()): tuple(job.tags or ()) for job in jobs}

    def status(self, job_id: str) -> Status:
        def stand() -> tuple[str, str]:
            job = self._job(job_id)
            state = str(job.status())
            return state, (job.error_message() or "") if state == "ERROR" else ""

        state, reason = self._ask(f"job {job_id}", stand)
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
        from qiskit_ibm_runtime.decoders.result_decoder import ResultDecoder

        class Raw(ResultDecoder):
            """The text as it comes: what is wrong with it is no fault of the connection."""

            @classmethod
            def decode(cls, data: Any) -> Any:
                return data

        doing = f"result of job {job_id}"
        raw = self._ask(doing, lambda: self._job(job_id).result(decoder=Raw))
        if not raw:
            raise ResultLostError(f"{doing}: is empty")
        try:
            return outcomes_of(raw)
        except Exception as error:  # the decoders raise many kinds
            words = redacted(first_line(error), self._client.secrets)[:100]
            raise ResultLostError(f"{doing}: cannot be read ({words})") from None

    def inputs(self, job_id: str) -> list[np.ndarray]:
        # The client decodes them.
        return self._ask(
            f"inputs of job {job_id}",
            lambda: values_of(self._job(job_id).inputs["quantum_program"]),
        )

    def qpu_seconds(self, job_id: str) -> float | None:
        usage = self._ask(
            f"usage of job {job_id}", lambda: self._job(job_id).metrics().get("usage") or {}
        )
        used = usage.get("qpu_charge_time_seconds")
        # As long as it is pending the client says 0.
        if usage.get("status") == "pending" or not isinstance(used, int | float):
            return None
        return float(used) if math.isfinite(used) and used >= 0 else None

    def cancel(self, job_id: str) -> None:
        from qiskit_ibm_runtime.exceptions import RuntimeInvalidStateError

        def cancelled() -> None:
            try:
                self._job(job_id).cancel()
            except RuntimeInvalidStateError:
                return  # it has ended

        self._ask(f"job {job_id}", cancelled)
        # The client takes it for cancelled from now on, whatever becomes of it.
        self._jobs.pop(job_id, None)

    def _job(self, job_id: str) -> Any:
        if job_id not in self._jobs:
            self._jobs[job_id] = self._service.job(job_id)
        return self._jobs[job_id]
