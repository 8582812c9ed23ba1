"""IBM's service: jobs on real devices."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from qhdm.errors import AccessError, RuntimeJobError, ServiceError, first_line
from qhdm.hardware.faults import redacted
from qhdm.hardware.request import Request
from qhdm.hardware.runtime.client import Client
from qhdm.hardware.runtime.device import Device, device_of
from qhdm.hardware.runtime.protocol import (
    State,
    Status,
    bits_of,
    options_of,
    pubs_of,
    values_of,
)
from qhdm.quantum.options import Hardware

T = TypeVar("T")

#: Seconds before the login is tried once more.
_LOGIN_PAUSE = 1.0


class RuntimeService:
    """IBM's service.

    A token that is refused later has expired or was revoked: it is asked for again, once per call.

    Args:
        engine: the backend, and how its jobs are executed.

    Attributes:
        session: id of the open session or batch.
        instance: CRN of the instance that the jobs belong to.

    Raises:
        HardwareError: no account, no network, no such instance or backend, or it takes no jobs.
    """

    remembers = True

    def __init__(self, engine: Hardware) -> None:
        self._engine = engine
        self.session: str | None = None
        self._jobs: dict[str, Any] = {}
        self.device = self._log_in()
        self.instance = str(self._service.active_instance())

    def _log_in(self) -> Device:
        name = self._engine.backend
        for last in (False, True):
            try:
                self._client = Client(self._engine.instance)
                fractional = self._engine.fractional
                self._backend = self._client.backend(name, fractional=fractional is not False)
                with self._client.calling(f"backend {name}"):
                    device = device_of(name, self._backend, "the service", fractional)
                break
            except (ServiceError, AccessError) as error:
                # The client tries this once, and takes a failed list of backends for an empty one.
                if last or error.reason not in ("service", "network", "rate", "backend"):
                    raise
                time.sleep(_LOGIN_PAUSE)
        self._service = self._client.service
        # What belongs to the old token is fetched anew.
        self._mode: Any = None
        self._jobs.clear()
        return device

    def _ask(self, doing: str, call: Callable[[], T]) -> T:
        try:
            with self._client.calling(doing):
                return call()
        except AccessError as error:
            # A missing backend is also what the client reports when it cannot list the backends.
            if error.reason not in ("account", "backend"):
                raise
            self._log_in()
        with self._client.calling(doing):
            return call()

    def check(self) -> None:
        """Check that the backend takes jobs and the instance has QPU time left.

        Raises:
            AccessError: the backend is in maintenance, or there is no time left.
        """
        name = self._engine.backend
        status = self._ask(f"backend {name}", lambda: self._backend.status())
        if not status.operational or status.status_msg != "active":
            raise AccessError(
                f"backend {name}: takes no jobs now (status: {status.status_msg}); try later, or "
                "use another",
                "maintenance",
            )

        def usage() -> None:
            if self._service.usage().get("usage_limit_reached"):
                raise RuntimeError("usage limit reached")

        self._ask(f"instance of backend {name}", usage)

    def open(self) -> float | None:
        """Open the session or batch of the mode, if any, or continue `session`.

        Returns:
            Seconds after which the service closes a new one by itself, if it reports them.

        Raises:
            HardwareError: `session` is closed (reason `session`).
        """
        if self._engine.mode == "job":
            return None

        def open_or_continue() -> float | None:
            if self.session is not None:
                state = str(self._mode_of_session().status() or "")
                if state.startswith("Closed") or "not accepting" in state:
                    raise RuntimeError(f"session {self.session} is closed")
                return None
            self._mode = self._kind()(backend=self._backend)
            self.session = self._mode.session_id
            return (self._mode.details() or {}).get("max_time")

        return self._ask(f"{self._engine.mode} on {self._engine.backend}", open_or_continue)

    def close(self) -> None:
        """Close the session or batch: its device is free, and no longer paid for.

        Jobs that are in it run to their end.
        """
        if self.session is not None:
            self._ask(
                f"{self._engine.mode} {self.session}", lambda: self._mode_of_session().close()
            )
            self.session = self._mode = None

    def _kind(self) -> Any:
        from qiskit_ibm_runtime import Batch, Session

        return Session if self._engine.mode == "session" else Batch

    def _mode_of_session(self) -> Any:
        if self._mode is None:
            self._mode = self._kind().from_id(self.session, self._service)
        return self._mode

    def submit(self, request: Request, tags: tuple[str, ...], *, max_seconds: int) -> str:
        from qiskit_ibm_runtime.executor_sampler import Sampler

        def submit() -> Any:
            mode = self._backend if self.session is None else self._mode_of_session()
            options = options_of(self._engine, request.shots, tags, max_seconds=max_seconds)
            return Sampler(mode, options).run(pubs_of(request), shots=request.shots)

        job = self._ask(f"submitting to {self._engine.backend}", submit)
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
        def state_and_reason() -> tuple[str, str]:
            job = self._job(job_id)
            state = str(job.status())
            return state, (job.error_message() or "") if state == "ERROR" else ""

        state, reason = self._ask(f"job {job_id}", state_and_reason)
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
        from qiskit_ibm_runtime.decoders.executor.decoder import ExecutorResultDecoder
        from qiskit_ibm_runtime.decoders.executor_sampler.decoder import (
            ClientSideSamplerResultDecoder,
        )
        from qiskit_ibm_runtime.decoders.result_decoder import ResultDecoder

        class Raw(ResultDecoder):
            """The text as it comes: an error in it is no fault of the connection."""

            @classmethod
            def decode(cls, data: Any) -> Any:
                return data

        doing = f"result of job {job_id}"
        raw = self._ask(doing, lambda: self._job(job_id).result(decoder=Raw))
        if not raw:
            raise RuntimeJobError(f"{doing}: is empty", "lost")
        try:
            pubs = ClientSideSamplerResultDecoder.decode(ExecutorResultDecoder.decode(raw))
            return [bits_of(pub) for pub in pubs]
        except Exception as error:  # the decoders raise many kinds
            words = redacted(first_line(error), self._client.secrets)[:100]
            raise RuntimeJobError(f"{doing}: cannot be read ({words})", "lost") from None

    def inputs(self, job_id: str) -> list[np.ndarray]:
        return self._ask(
            f"inputs of job {job_id}",
            lambda: values_of(self._job(job_id).inputs["quantum_program"]),
        )

    def qpu_seconds(self, job_id: str) -> float | None:
        usage = self._ask(
            f"usage of job {job_id}", lambda: self._job(job_id).metrics().get("usage") or {}
        )
        used = usage.get("qpu_charge_time_seconds")
        # While it is pending the client reports 0.
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
        # The client would report it as cancelled from now on, whatever becomes of it.
        self._jobs.pop(job_id, None)

    def _job(self, job_id: str) -> Any:
        if job_id not in self._jobs:
            self._jobs[job_id] = self._service.job(job_id)
        return self._jobs[job_id]
