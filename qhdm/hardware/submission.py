"""Requests that are sent once: through the ledger, in every order of crashes."""

from __future__ import annotations

import math
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial

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
from qhdm.hardware.batch import Batch, misfit_of
from qhdm.hardware.ledger import Entry, Ledger, Shape
from qhdm.hardware.patience import ATTEMPTS, Patience, pause_after
from qhdm.hardware.reconcile import Position, Reconciler
from qhdm.hardware.runtime import Request, Service, Status
from qhdm.hardware.spec import LimitsConfig

#: Between looks at a pending job, seconds.
_FIRST_POLL, _LONGEST_POLL = 0.1, 10.0
#: The service counts the jobs of so many seconds.
_MINUTE = 60.0
#: Inputs of a request that is done are those of the same place in the chain up to rounding.
_SAME_INPUTS = 1e-3

_REMEDIES = {
    "failed": (JobFailedError, "failed"),
    "cancelled": (JobCancelledError, "was cancelled"),
    "too long": (JobTooLongError, "ran longer than it may"),
    "lost": (ResultLostError, "the service does not have it any more"),
}
_PENDING = ("queued", "running")
_AGAIN = "to send it again: qhdm jobs resume"


class Submitter:
    """Executes batches, each once, whatever happens in between.

    Args:
        ledger: what was asked for and got so far.
        service: where jobs are executed.
        name: a tag of all its jobs.
        shots: of each row, as they are executed.
        limits: of all jobs together.
        notify: told what is being waited for.
        tell: told what the user should know, a line each time.
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
        tell: Callable[[str], object] = lambda text: print(f"qhdm: {text}", file=sys.stderr),
    ) -> None:
        self._ledger, self._service, self._name = ledger, service, name
        self._shots, self._limits, self._notify, self._tell = shots, limits, notify, tell
        self._patience = Patience(limits.settle_seconds, notify)
        self._books = Reconciler(ledger, service, self._patience, name=name, tell=tell)
        self._submissions = _moments(ledger)

    def start(self) -> None:
        """Compare the ledger with what the service has, before anything is sent."""
        if self._service.remembers:
            self._books.look()

    def run(
        self, step: int, stage: int, place: str, batches: Sequence[Batch]
    ) -> list[dict[str, np.ndarray]]:
        """For each batch, how often each clbit was 1: (R, clbits) by the number of the circuit.

        Raises:
            HardwareError: a job gave no result, or a limit is reached; what is known stays known.
        """
        tags = [self._sent((step, stage, part), place, batch) for part, batch in enumerate(batches)]
        return [
            self._result(tag, batch.shapes(self._shots))
            for tag, batch in zip(tags, batches, strict=True)
        ]

    def finish(self) -> None:
        """Look once more for jobs that nobody needs, and for what all have used."""
        if not self._service.remembers:
            return
        try:
            self._books.finish()
            self._ask_usage()
        except HardwareError as error:  # all results are here: no reason to fail
            self._tell(f"not looked for surplus jobs: {error}")

    def fetch(self) -> tuple[int, int]:
        """Fetch the results of jobs that are done; returns how many, and how many are pending.

        Raises:
            HardwareError: a job gave no result; those of the others are fetched all the same.
        """
        problems, fetched, pending = [], 0, 0
        for entry in self._unfinished():
            status = self._status(entry)
            if status.state in _PENDING:
                pending += 1
            elif (problem := self._concluded(entry, status)) is None:
                fetched += 1
            else:
                problems.append(problem)
        if problems:
            raise problems[0]
        return fetched, pending

    def cancel(self) -> tuple[int, int]:
        """Cancel what is pending; returns how many jobs, and how many had a result by then.

        What has a result is paid for: it is kept.
        """
        entries = self._unfinished()
        self._books.drop_strangers()
        for entry in entries:
            # What the service does not have (any more) is written down below.
            with suppress(ResultLostError):
                self._patience.ask(partial(self._service.cancel, _job_of(entry)))
        cancelled, collected, since = 0, 0, time.monotonic()
        for entry in entries:
            while (status := self._status(entry)).state in _PENDING:
                if self._patience.settled(since):
                    break  # the next look writes down how it ended
                self._patience.rest(since)
            if status.state not in _PENDING and self._concluded(entry, status) is None:
                collected += 1
            else:
                cancelled += 1
        return cancelled, collected

    def known(self) -> set[Position]:
        """Places in the chain whose request the service has, or has answered."""
        sent = [*self._ledger.entries("submitted"), *self._ledger.entries("done")]
        return {(e.step, e.stage, e.part) for e in sent} | self._books.strange_positions()

    def drop_unsent(self) -> None:
        """Give requests up that the service does not have, so that they are made anew."""
        self._unfinished()
        for entry in self._ledger.entries("intent"):
            self._ledger.failed(entry.tag, qpu_seconds=0.0)

    def _unfinished(self) -> list[Entry]:
        """Requests that the service has and whose result is not here."""
        if not self._service.remembers:
            return []
        self._books.look()
        for entry in self._ledger.entries("intent"):
            self._books.found(entry.tag)
        return self._ledger.entries("submitted")

    def _sent(self, position: Position, place: str, batch: Batch) -> str:
        """The tag of a request that the service has, or that is done."""
        shapes = batch.shapes(self._shots)
        entry = self._ledger.find(*position)
        if entry is None and self._books.adopt(position, place, shapes, batch.seconds):
            # The ledger did not know of it, but the service.
            entry = self._ledger.find(*position)
        if entry is None:
            self._check_budget(batch)
            tag = f"{self._name}-{'-'.join(map(str, position))}-{uuid.uuid4().hex[:8]}"
            self._ledger.intend(
                tag, position, place=place, shapes=shapes, seconds=batch.seconds,
                inputs=batch.inputs(),
            )  # fmt: skip
            self._send(tag, batch.circuits)
            return tag
        self._check_inputs(entry, batch)
        if entry.state == "done":
            return entry.tag
        if entry.state == "submitted" and self._service.remembers:
            return entry.tag
        if entry.state == "intent" and self._service.remembers:
            self._notify(f"looking for {entry.tag}")
            if self._books.found(entry.tag):
                return entry.tag
        # It never existed: what is sent is what was written down, to the last bit.
        kept = self._ledger.inputs(entry.tag)
        circuits = [(c, kept[str(i)]) for i, (c, _) in enumerate(batch.circuits)]
        self._send(entry.tag, circuits)
        return entry.tag

    def _send(self, tag: str, circuits: Sequence[tuple[QuantumCircuit, np.ndarray]]) -> None:
        left = self._limits.max_qpu_seconds - self._used(without=tag)
        request = Request(circuits, self._shots, (tag, self._name), max(1, math.ceil(left)))
        for attempt in range(ATTEMPTS):
            self._wait_for_turn()
            self._notify("submitting")
            self._ledger.sending(tag)
            try:
                self._ledger.submitted(tag, self._service.submit(request))
                break
            except RateLimitError as error:
                # Refused: no job was made.
                if attempt == ATTEMPTS - 1:
                    raise
                pause = pause_after(attempt, error)
            except (NetworkError, ServiceError) as error:
                # The answer is lost: the job may exist, made just now by the client's last try.
                if self._service.remembers and self._books.found(tag, time.monotonic()):
                    break
                if attempt == ATTEMPTS - 1:
                    raise
                pause = pause_after(attempt, error)
            self._notify(f"trying again in {pause:.0f} s")
            time.sleep(pause)
        self._submissions.append(time.monotonic())
        if self._service.remembers:
            self._books.sent(tag)

    def _result(self, tag: str, shapes: Sequence[Shape]) -> dict[str, np.ndarray]:
        entry = self._request(tag)
        if entry.state != "done":
            status = self._ended(entry)
            problem = self._concluded(self._request(tag), status)
            if problem is not None:
                raise problem
        result = self._ledger.result(tag)
        misfit = misfit_of(result, shapes, more=entry.shapes is None)
        if misfit is not None:  # from a version that did not look
            self._ledger.failed(tag, qpu_seconds=entry.qpu_seconds)
            raise ResultLostError(f"result of job {entry.job_id}: {misfit}; {_AGAIN}")
        return result

    def _ended(self, entry: Entry) -> Status:
        """Wait until a job has ended; returns how."""
        started, poll = time.monotonic(), _FIRST_POLL
        allowed = self._limits.max_wait_seconds
        while (status := self._status(self._request(entry.tag))).state in _PENDING:
            self._notify(f"{entry.place}: {status.state}")
            waited = time.monotonic() - started
            if status.state == "queued" and allowed is not None and waited > allowed:
                raise QueueError(
                    f"job {entry.job_id}: still in the queue after {allowed:g} s "
                    "(limits.max_wait_seconds); it stays there; go on later: qhdm jobs resume"
                )
            if self._service.remembers:
                self._books.look_again()
            time.sleep(poll)
            poll = min(1.5 * poll, _LONGEST_POLL)
        return status

    def _status(self, entry: Entry) -> Status:
        """How the job of a request stands."""
        try:
            return self._patience.insist(partial(self._service.status, _job_of(entry)))
        except ResultLostError:
            return Status("lost")

    def _concluded(self, entry: Entry, status: Status) -> HardwareError | None:
        """Write down how a job ended; returns what there is to say of one without a result."""
        job_id = _job_of(entry)
        if status.state in _REMEDIES:
            kind, words = _REMEDIES[status.state]
            reason = f" ({status.reason[:200]})" if status.reason else ""
            problem: HardwareError = kind(f"job {job_id}: {words}{reason}; {_AGAIN}")
        else:
            try:
                result = self._patience.insist(partial(self._outcomes, entry))
            except ResultLostError as error:
                problem = ResultLostError(f"{error}; {_AGAIN}")
            else:
                self._ledger.done(entry.tag, result)
                self._books.ask_usage(job_id)
                return None
        self._ledger.failed(entry.tag, qpu_seconds=None)
        self._books.ask_usage(job_id)
        return problem

    def _outcomes(self, entry: Entry) -> dict[str, np.ndarray]:
        """How often each clbit was 1, and the shots, of a result that is what was asked for."""
        bits = self._service.outcomes(_job_of(entry))
        ones = {str(i): b.sum(axis=1) for i, b in enumerate(bits)}
        shots = {f"shots {i}": np.array(b.shape[1]) for i, b in enumerate(bits)}
        result = {**ones, **shots}
        misfit = None if entry.shapes is None else misfit_of(result, entry.shapes)
        if misfit is not None:
            raise ResultLostError(f"result of job {entry.job_id}: {misfit}")
        return result

    def _request(self, tag: str) -> Entry:
        entry = self._ledger.request(tag)
        assert entry is not None
        return entry

    def _wait_for_turn(self) -> None:
        """Keep to the jobs that the service takes in a minute."""
        if not self._service.remembers:
            return
        now, most = time.monotonic(), self._limits.jobs_per_minute
        self._submissions = [moment for moment in self._submissions if now - moment < _MINUTE]
        if len(self._submissions) >= most:
            pause = self._submissions[-most] + _MINUTE - now
            self._notify(f"{most} jobs a minute: {pause:.0f} s")
            time.sleep(pause)

    def _used(self, *, without: str = "") -> float:
        """QPU seconds: reported, or expected as long as they are not."""
        return self._ledger.qpu_seconds() + self._ledger.unreported_seconds(without=without)

    def _ask_usage(self) -> None:
        """Ask for what ended jobs have used and the service did not report before."""
        for entry in self._ledger.entries():
            if entry.state in ("done", "failed") and entry.qpu_seconds is None and entry.job_id:
                self._books.ask_usage(entry.job_id)

    def _check_budget(self, batch: Batch) -> None:
        most = self._limits.max_jobs
        if len(self._ledger.entries()) + len(self._ledger.surplus()) >= most:
            raise BudgetError(
                f"limits.max_jobs: {most} jobs are sent; to go on: qhdm jobs "
                "resume --set limits.max_jobs=..."
            )
        limit = self._limits.max_qpu_seconds
        if self._used() + batch.seconds > limit and self._service.remembers:
            self._ask_usage()
        if self._used() + batch.seconds > limit:
            unreported = self._ledger.unreported_seconds()
            more = f", {unreported:.1f} s are expected of jobs not reported yet" * (unreported > 0)
            raise BudgetError(
                f"limits.max_qpu_seconds: {self._ledger.qpu_seconds():.1f} s are used{more}, and "
                f"the next job is expected to take {batch.seconds:.1f} s, beyond {limit:g} s; to "
                "go on: qhdm jobs resume --set limits.max_qpu_seconds=..."
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


def _job_of(entry: Entry) -> str:
    assert entry.job_id is not None
    return entry.job_id


def _moments(ledger: Ledger) -> list[float]:
    """When the requests of the last minute were submitted, on the monotonic clock.

    Other processes wrote them by the calendar. What lies in the future there is now: the clock was
    set back.
    """
    now, here = time.time(), time.monotonic()
    return [here - max(0.0, now - moment) for moment in ledger.submissions_since(now - _MINUTE)]
