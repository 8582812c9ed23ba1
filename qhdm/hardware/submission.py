"""Requests that are sent once: through the ledger, in every order of crashes."""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from qiskit.circuit import QuantumCircuit

from qhdm.errors import (
    BudgetError,
    HardwareError,
    JobCancelledError,
    JobFailedError,
    JobTooLongError,
    NetworkError,
    QueueError,
    RateLimitError,
    ResultLostError,
    ServiceError,
)
from qhdm.hardware.ledger import Entry, Ledger
from qhdm.hardware.runtime import Request, Service
from qhdm.hardware.spec import LimitsConfig

T = TypeVar("T")

#: How often, and from how many seconds on, a request is tried again; each time twice as long.
_ATTEMPTS, _FIRST_WAIT, _LONGEST_WAIT = 6, 2.0, 60.0
#: A request that was sent may come up in the service's list so many seconds later.
SETTLE_SECONDS = 10.0
#: Between looks at a pending job, seconds.
_FIRST_POLL, _LONGEST_POLL = 0.1, 10.0
#: Inputs of a request that is done are those of the same place in the chain up to rounding.
_SAME_INPUTS = 1e-3

_REMEDIES = {
    "failed": (JobFailedError, "failed"),
    "cancelled": (JobCancelledError, "was cancelled"),
    "too long": (JobTooLongError, "ran longer than it may"),
}


@dataclass(frozen=True, eq=False)
class Batch:
    """Circuits of one filter place, to be executed as one job.

    Attributes:
        circuits: ISA circuits, each with parameter values (R, parameters).
        owners: for each, the number of the circuit that its rows are a piece of.
        seconds: expected on the QPU.
    """

    circuits: Sequence[tuple[QuantumCircuit, np.ndarray]]
    owners: tuple[int, ...]
    seconds: float

    def inputs(self) -> dict[str, np.ndarray]:
        """Parameter values by the number of their circuit."""
        return {str(i): values for i, (_, values) in enumerate(self.circuits)}


class Submitter:
    """Executes batches, each once, whatever happens in between.

    Args:
        ledger: what was asked for and got so far.
        service: where jobs are executed.
        name: a tag of all its jobs.
        shots: of each row.
        limits: of all jobs together.
        notify: told what is being waited for.
    """

    def __init__(
        self,
        ledger: Ledger,
        service: Service,
        *,
        name: str,
        shots: int,
        limits: LimitsConfig,
        notify: Callable[[str], object] = lambda text: None,
    ) -> None:
        self._ledger, self._service, self._name = ledger, service, name
        self._shots, self._limits, self._notify = shots, limits, notify

    def run(
        self, step: int, stage: int, place: str, batches: Sequence[Batch]
    ) -> list[dict[str, np.ndarray]]:
        """For each batch, how often each clbit was 1: (R, clbits) by the number of the circuit.

        Raises:
            HardwareError: a job gave no result, or a limit is reached; what is known stays known.
        """
        tags = [self._sent((step, stage, part), place, batch) for part, batch in enumerate(batches)]
        return [self._result(tag) for tag in tags]

    def fetch(self) -> tuple[int, int]:
        """Fetch the results of jobs that are done; returns how many, and how many are pending."""
        fetched = pending = 0
        for entry in self._unfinished():
            assert entry.job_id is not None
            if self._service.status(entry.job_id).state in ("queued", "running"):
                pending += 1
            else:
                self._collect(entry.tag, entry.job_id)
                fetched += 1
        return fetched, pending

    def cancel(self) -> int:
        """Cancel what is pending; returns how many jobs."""
        entries = self._unfinished()
        for entry in entries:
            assert entry.job_id is not None
            self._service.cancel(entry.job_id)
            self._ledger.failed(entry.tag, qpu_seconds=self._usage(entry.job_id))
        return len(entries)

    def drop_unsent(self) -> None:
        """Give requests up that the service does not have, so that they are made anew."""
        self._unfinished()
        for entry in self._ledger.entries("intent"):
            self._ledger.failed(entry.tag, qpu_seconds=0.0)

    def _unfinished(self) -> list[Entry]:
        """Requests that the service has and whose result is not here."""
        if not self._service.remembers:
            return []
        for entry in self._ledger.entries("intent"):
            found = self._look_up(entry.tag, entry.created)
            if found is not None:
                self._ledger.submitted(entry.tag, found)
        return self._ledger.entries("submitted")

    def _sent(self, position: tuple[int, int, int], place: str, batch: Batch) -> str:
        """The tag of a request that the service has, or that is done."""
        entry = self._ledger.find(*position)
        if entry is None:
            self._check_budget(batch)
            tag = f"{self._name}-{'-'.join(map(str, position))}-{uuid.uuid4().hex[:8]}"
            rows = sum(len(values) for _, values in batch.circuits)
            self._ledger.intend(
                tag, position, place=place, executions=rows * self._shots, inputs=batch.inputs()
            )
            self._send(tag, batch.circuits)
            return tag
        self._check_inputs(entry, batch)
        if entry.state == "done":
            return entry.tag
        if entry.state == "submitted" and self._service.remembers:
            return entry.tag
        if entry.state == "intent" and self._service.remembers:
            self._notify(f"looking for {entry.tag}")
            found = self._look_up(entry.tag, entry.created)
            if found is not None:
                self._ledger.submitted(entry.tag, found)
                return entry.tag
        # It never existed: what is sent is what was written down, to the last bit.
        kept = self._ledger.inputs(entry.tag)
        circuits = [(c, kept[str(i)]) for i, (c, _) in enumerate(batch.circuits)]
        self._send(entry.tag, circuits)
        return entry.tag

    def _send(self, tag: str, circuits: Sequence[tuple[QuantumCircuit, np.ndarray]]) -> None:
        left = self._limits.max_qpu_seconds - self._ledger.qpu_seconds()
        request = Request(circuits, self._shots, (tag, self._name), max(1, math.ceil(left)))
        for attempt in range(_ATTEMPTS):
            self._wait_for_turn()
            self._notify("submitting")
            pause = min(_FIRST_WAIT * 2**attempt, _LONGEST_WAIT)
            since = self._ledger.sending(tag)
            try:
                self._ledger.submitted(tag, self._service.submit(request))
                return
            except RateLimitError as error:
                # Refused: no job was made.
                if attempt == _ATTEMPTS - 1:
                    raise
                pause = pause if error.retry_after is None else error.retry_after
            except (NetworkError, ServiceError):
                # The answer is lost: the job may exist.
                found = self._look_up(tag, since)
                if found is not None:
                    self._ledger.submitted(tag, found)
                    return
                if attempt == _ATTEMPTS - 1:
                    raise
            self._notify(f"trying again in {pause:.0f} s")
            time.sleep(pause)

    def _look_up(self, tag: str, since: float) -> str | None:
        """The id of the job with a tag; None once it is certain that there is none."""
        while True:
            late = time.time() - since >= SETTLE_SECONDS
            found = self._patiently(lambda: self._service.find(tag))
            if found:
                # The client itself repeats a POST that failed with 5xx: one is enough.
                for surplus in found[1:]:
                    self._service.cancel(surplus)
                return found[0]
            if late:
                return None
            time.sleep(1.0)

    def _result(self, tag: str) -> dict[str, np.ndarray]:
        entry = next(e for e in self._ledger.entries() if e.tag == tag)
        if entry.state != "done":
            assert entry.job_id is not None
            self._wait(entry)
            self._collect(tag, entry.job_id)
        return self._ledger.result(tag)

    def _wait(self, entry: Entry) -> None:
        assert entry.job_id is not None
        job_id, started, poll = entry.job_id, time.time(), _FIRST_POLL
        allowed = self._limits.max_wait_seconds
        while (state := self._patiently(lambda: self._service.status(job_id)).state) in (
            "queued",
            "running",
        ):
            self._notify(f"{entry.place}: {state}")
            if state == "queued" and allowed is not None and time.time() - started > allowed:
                raise QueueError(
                    f"job {job_id}: still in the queue after {allowed:g} s "
                    "(limits.max_wait_seconds); it stays there; go on later: qhdm jobs resume"
                )
            time.sleep(poll)
            poll = min(1.5 * poll, _LONGEST_POLL)

    def _collect(self, tag: str, job_id: str) -> None:
        """Write down how a job that has ended ended."""
        status = self._patiently(lambda: self._service.status(job_id))
        if status.state in _REMEDIES:
            kind, words = _REMEDIES[status.state]
            self._ledger.failed(tag, qpu_seconds=self._usage(job_id))
            reason = f" ({status.reason[:200]})" if status.reason else ""
            raise kind(f"job {job_id}: {words}{reason}; to send it again: qhdm jobs resume")
        inputs = self._ledger.inputs(tag)
        try:
            bits = self._patiently(lambda: self._service.outcomes(job_id))
            if [len(b) for b in bits] != [len(inputs[str(i)]) for i in range(len(inputs))]:
                raise ResultLostError(f"result of job {job_id}: is not what was asked for")
        except ResultLostError as error:
            self._ledger.failed(tag, qpu_seconds=self._usage(job_id))
            raise ResultLostError(f"{error}; to send the job again: qhdm jobs resume") from None
        ones = {str(i): b.sum(axis=1) for i, b in enumerate(bits)}
        shots = {f"shots {i}": np.array(b.shape[1]) for i, b in enumerate(bits)}
        self._ledger.done(tag, {**ones, **shots}, qpu_seconds=self._usage(job_id))

    def _usage(self, job_id: str) -> float | None:
        try:
            return self._patiently(lambda: self._service.qpu_seconds(job_id))
        except ResultLostError:
            return None

    def _patiently(self, call: Callable[[], T]) -> T:
        """Call again when the connection breaks or the service falters."""
        for attempt in range(_ATTEMPTS - 1):
            try:
                return call()
            except (NetworkError, ServiceError, RateLimitError) as error:
                pause = min(_FIRST_WAIT * 2**attempt, _LONGEST_WAIT)
                asked = getattr(error, "retry_after", None)
                self._notify("waiting for the service")
                time.sleep(pause if asked is None else asked)
        return call()

    def _wait_for_turn(self) -> None:
        """Keep to the jobs that the service takes in a minute."""
        if not self._service.remembers:
            return
        recent = self._ledger.submissions_since(time.time() - 60)
        if len(recent) >= self._limits.jobs_per_minute:
            pause = recent[-self._limits.jobs_per_minute] + 60 - time.time()
            self._notify(f"{self._limits.jobs_per_minute} jobs a minute: {pause:.0f} s")
            time.sleep(max(0.0, pause))

    def _check_budget(self, batch: Batch) -> None:
        entries = self._ledger.entries()
        if len(entries) >= self._limits.max_jobs:
            raise BudgetError(
                f"limits.max_jobs: {self._limits.max_jobs} jobs are sent; to go on: qhdm jobs "
                "resume --set limits.max_jobs=..."
            )
        used, limit = self._ledger.qpu_seconds(), self._limits.max_qpu_seconds
        if used + batch.seconds > limit:
            raise BudgetError(
                f"limits.max_qpu_seconds: {used:.1f} s are used and the next job is expected to "
                f"take {batch.seconds:.1f} s, beyond {limit:g} s; to go on: qhdm jobs resume "
                "--set limits.max_qpu_seconds=..."
            )

    def _check_inputs(self, entry: Entry, batch: Batch) -> None:
        kept: Mapping[str, np.ndarray] = self._ledger.inputs(entry.tag)
        fresh = batch.inputs()
        same = kept.keys() == fresh.keys() and all(
            kept[key].shape == fresh[key].shape
            and np.allclose(kept[key], fresh[key], atol=_SAME_INPUTS, rtol=0)
            for key in fresh
        )
        if not same:
            raise HardwareError(
                f"{self._ledger.path}: request {entry.tag} had other inputs; the run or the "
                "package has changed since: submit a new job"
            )
