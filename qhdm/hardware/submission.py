"""Submission of requests, each at most once, whatever fails or is killed in between."""

from __future__ import annotations

import math
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial

import numpy as np

from qhdm.errors import BudgetError, HardwareError, RuntimeJobError, ServiceError
from qhdm.hardware.ledger import Ledger, RequestRecord
from qhdm.hardware.patience import ATTEMPTS, Patience, pause_after
from qhdm.hardware.reconcile import Reconciler
from qhdm.hardware.request import Position, Request, mismatch
from qhdm.hardware.runtime import Service, Status
from qhdm.quantum.options import Limits

#: Seconds between looks at a pending job.
_FIRST_POLL, _LONGEST_POLL = 0.1, 10.0
#: Seconds over which the service counts jobs.
_MINUTE = 60.0
#: Inputs of a request that is done are those of the same position in the chain up to rounding.
_SAME_INPUTS = 1e-3

_PENDING = ("queued", "running")
#: How jobs end without a result.
_ENDS = {
    "failed": "failed",
    "cancelled": "was cancelled",
    "too long": "ran longer than it may",
    "lost": "the service does not have it any more",
}
_AGAIN = "to send it again: qhdm jobs resume"


class Submitter:
    """Executes the requests of a sampling job, each as one runtime job.

    Args:
        ledger: requests and results so far.
        service: where runtime jobs are executed.
        name: a tag of all of them.
        limits: of all together.
        notify: told what is being waited for.
        warn: called with each warning for the user.
    """

    def __init__(
        self,
        ledger: Ledger,
        service: Service,
        *,
        name: str,
        limits: Limits,
        notify: Callable[[str], object] = lambda text: None,
        warn: Callable[[str], object] = lambda text: print(f"qhdm: {text}", file=sys.stderr),
    ) -> None:
        self._ledger, self._service, self._name = ledger, service, name
        self._limits, self._notify, self._warn = limits, notify, warn
        self._patience = Patience(limits.settle_seconds, notify)
        self._reconciler = Reconciler(ledger, service, self._patience, name=name, warn=warn)
        self._submissions = _recent_submissions(ledger)

    def start(self) -> None:
        """Compare the ledger with the service's jobs, before anything is sent."""
        if self._service.remembers:
            self._reconciler.compare()

    def run(
        self, position: tuple[int, int], place: str, requests: Sequence[Request]
    ) -> list[dict[str, np.ndarray]]:
        """Execute the requests of a stage.

        Args:
            position: network evaluation and filter place.
            place: name of the filter place.
            requests: in order.

        Returns:
            For each request and circuit how often each clbit was 1, (R, clbits), and the shots.

        Raises:
            HardwareError: a job gave no result, or a limit is reached; what is known stays known.
        """
        tags = [
            self.send((*position, part), place, request) for part, request in enumerate(requests)
        ]
        return [self._result(tag, request) for tag, request in zip(tags, requests, strict=True)]

    def finish(self) -> None:
        """Look once more for surplus jobs, and for what all jobs have used."""
        if not self._service.remembers:
            return
        try:
            self._reconciler.finish()
            self._fetch_usage()
        except HardwareError as error:  # all results are here: no reason to fail
            self._warn(f"not looked for surplus jobs: {error}")

    def fetch(self) -> tuple[int, int]:
        """Fetch the results of jobs that are done; returns how many, and how many are pending.

        Raises:
            HardwareError: a job gave no result; those of the others are fetched all the same.
        """
        problems, fetched, pending = [], 0, 0
        for record in self._unfinished():
            status = self._status(record)
            if status.state in _PENDING:
                pending += 1
            elif (problem := self._conclude(record, status)) is None:
                fetched += 1
            else:
                problems.append(problem)
        if problems:
            raise problems[0]
        return fetched, pending

    def cancel(self) -> tuple[int, int]:
        """Cancel pending jobs; returns how many, and how many had a result by then.

        A result is paid for: it is kept.
        """
        records = self._unfinished()
        self._reconciler.cancel_unknown()
        for record in records:
            # What the service does not have (any more) is written down below.
            with suppress(RuntimeJobError):
                self._patience.ask(partial(self._service.cancel, _job_of(record)))
        cancelled, collected, since = 0, 0, time.monotonic()
        for record in records:
            while (status := self._status(record)).state in _PENDING:
                if self._patience.settled(since):
                    break  # the next look writes down how it ended
                self._patience.rest(since)
            if status.state not in _PENDING and self._conclude(record, status) is None:
                collected += 1
            else:
                cancelled += 1
        return cancelled, collected

    def sent_positions(self) -> set[Position]:
        """Positions whose request the service has, or has answered."""
        sent = [*self._ledger.requests("submitted"), *self._ledger.requests("done")]
        return {record.position for record in sent} | self._reconciler.unknown_positions()

    def drop_unsent(self) -> None:
        """Give up the requests that the service does not have, so that they are made anew."""
        self._unfinished()
        for record in self._ledger.requests("intent"):
            self._ledger.failed(record.tag, qpu_seconds=0.0)

    def send(self, position: Position, place: str, request: Request) -> str:
        """Make sure that the service has a request, or has answered it; returns its tag."""
        record = self._ledger.request_at(position)
        if record is None and self._reconciler.adopt(position, place, request):
            record = self._ledger.request_at(position)
        if record is None:
            self._check_budget(request)
            tag = f"{self._name}-{'-'.join(map(str, position))}-{uuid.uuid4().hex[:8]}"
            self._ledger.add(
                tag, position, place=place, shapes=request.shapes, seconds=request.seconds,
                inputs=request.inputs,
            )  # fmt: skip
            self._submit(tag, request)
            return tag
        self._check_inputs(record, request)
        if record.state == "done":
            return record.tag
        if self._service.remembers:
            if record.state == "submitted":
                return record.tag
            self._notify(f"looking for {record.tag}")
            if self._reconciler.locate(record.tag):
                return record.tag
        # It never existed: what is sent is what was written down, to the last bit.
        kept = self._ledger.inputs(record.tag)
        circuits = [(c, kept[str(i)]) for i, (c, _) in enumerate(request.circuits)]
        self._submit(record.tag, replace(request, circuits=circuits))
        return record.tag

    def _submit(self, tag: str, request: Request) -> None:
        own = self._record(tag).expected_seconds
        left = self._limits.max_qpu_seconds - (self._used() - own)
        tags, seconds = (tag, self._name), max(1, math.ceil(left))
        for attempt in range(ATTEMPTS):
            self._wait_for_turn()
            self._notify("submitting")
            self._ledger.sending(tag)
            try:
                job_id = self._service.submit(request, tags, max_seconds=seconds)
                self._ledger.submitted(tag, job_id)
                break
            except ServiceError as error:
                # Too many requests: no job was made. Otherwise the answer is lost, and the job may
                # exist, made just now by the client's last try.
                maybe = error.reason != "rate" and self._service.remembers
                if maybe and self._reconciler.locate(tag, time.monotonic()):
                    break
                if attempt == ATTEMPTS - 1:
                    raise
                pause = pause_after(attempt, error)
            self._notify(f"trying again in {pause:.0f} s")
            time.sleep(pause)
        self._submissions.append(time.monotonic())
        if self._service.remembers:
            self._reconciler.watch(tag)

    def _unfinished(self) -> list[RequestRecord]:
        """Requests that the service has and whose result is not here."""
        if not self._service.remembers:
            return []
        self._reconciler.compare()
        for record in self._ledger.requests("intent"):
            self._reconciler.locate(record.tag)
        return self._ledger.requests("submitted")

    def _result(self, tag: str, request: Request) -> dict[str, np.ndarray]:
        record = self._record(tag)
        if record.state != "done":
            status = self._wait(record)
            problem = self._conclude(self._record(tag), status)
            if problem is not None:
                raise problem
        result = self._ledger.result(tag)
        wrong = mismatch(result, request.shapes, more_shots=record.shapes is None)
        if wrong is not None:  # stored by a version that did not check
            self._ledger.failed(tag, qpu_seconds=record.qpu_seconds)
            raise RuntimeJobError(f"result of job {record.job_id}: {wrong}; {_AGAIN}", "lost")
        return result

    def _wait(self, record: RequestRecord) -> Status:
        """Wait until the job of a request has ended; returns its status."""
        started, poll = time.monotonic(), _FIRST_POLL
        allowed = self._limits.max_wait_seconds
        while (status := self._status(self._record(record.tag))).state in _PENDING:
            self._notify(f"{record.place}: {status.state}")
            waited = time.monotonic() - started
            if status.state == "queued" and allowed is not None and waited > allowed:
                raise BudgetError(
                    f"job {record.job_id}: still in the queue after {allowed:g} s "
                    "(limits.max_wait_seconds); it stays there; continue later: qhdm jobs resume",
                    "queue",
                )
            if self._service.remembers:
                self._reconciler.recheck()
            time.sleep(poll)
            poll = min(1.5 * poll, _LONGEST_POLL)
        return status

    def _status(self, record: RequestRecord) -> Status:
        try:
            return self._patience.insist(partial(self._service.status, _job_of(record)))
        except RuntimeJobError:
            return Status("lost")

    def _conclude(self, record: RequestRecord, status: Status) -> HardwareError | None:
        """Write down how a job ended; returns the error of one without a result."""
        job_id = _job_of(record)
        if status.state in _ENDS:
            reason = f" ({status.reason[:200]})" if status.reason else ""
            message = f"job {job_id}: {_ENDS[status.state]}{reason}; {_AGAIN}"
            problem = RuntimeJobError(message, status.state)
        else:
            try:
                result = self._patience.insist(partial(self._fetched, record))
            except RuntimeJobError as error:
                problem = RuntimeJobError(f"{error}; {_AGAIN}", error.reason)
            else:
                self._ledger.done(record.tag, result)
                self._reconciler.fetch_usage(job_id)
                return None
        self._ledger.failed(record.tag)
        self._reconciler.fetch_usage(job_id)
        return problem

    def _fetched(self, record: RequestRecord) -> dict[str, np.ndarray]:
        """A result that has the requested shapes: see `run`."""
        bits = self._service.outcomes(_job_of(record))
        result = {str(i): b.sum(axis=1) for i, b in enumerate(bits)}
        result |= {f"shots {i}": np.array(b.shape[1]) for i, b in enumerate(bits)}
        wrong = None if record.shapes is None else mismatch(result, record.shapes)
        if wrong is not None:
            raise RuntimeJobError(f"result of job {record.job_id}: {wrong}", "lost")
        return result

    def _record(self, tag: str) -> RequestRecord:
        record = self._ledger.request(tag)
        assert record is not None
        return record

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

    def _used(self) -> float:
        """QPU seconds: reported, or expected until they are."""
        return self._ledger.qpu_seconds() + self._ledger.unreported_seconds()

    def _fetch_usage(self) -> None:
        """Ask what ended jobs have used, where the service did not report it before."""
        for record in self._ledger.requests():
            if record.state in ("done", "failed") and record.qpu_seconds is None and record.job_id:
                self._reconciler.fetch_usage(record.job_id)

    def _check_budget(self, request: Request) -> None:
        most = self._limits.max_jobs
        if len(self._ledger.requests()) + len(self._ledger.surplus()) >= most:
            raise BudgetError(
                f"limits.max_jobs: {most} jobs are sent; to continue: qhdm jobs "
                "resume --set limits.max_jobs=..."
            )
        limit = self._limits.max_qpu_seconds
        if self._used() + request.seconds > limit and self._service.remembers:
            self._fetch_usage()
        if self._used() + request.seconds > limit:
            unreported = self._ledger.unreported_seconds()
            more = f", {unreported:.1f} s are expected of jobs not reported yet" * (unreported > 0)
            raise BudgetError(
                f"limits.max_qpu_seconds: {self._ledger.qpu_seconds():.1f} s are used{more}, and "
                f"the next job is expected to take {request.seconds:.1f} s, beyond {limit:g} s; to "
                "continue: qhdm jobs resume --set limits.max_qpu_seconds=..."
            )

    def _check_inputs(self, record: RequestRecord, request: Request) -> None:
        kept: Mapping[str, np.ndarray] = self._ledger.inputs(record.tag)
        new = request.inputs
        same = kept.keys() == new.keys() and all(
            kept[key].shape == new[key].shape
            and np.allclose(kept[key], new[key], atol=_SAME_INPUTS, rtol=0)
            for key in new
        )
        if not same:
            raise HardwareError(
                f"{self._ledger.path}: request {record.tag} had other inputs; the run or the "
                "package has changed since: submit a new job"
            )


def _job_of(record: RequestRecord) -> str:
    assert record.job_id is not None
    return record.job_id


def _recent_submissions(ledger: Ledger) -> list[float]:
    """When the requests of the last minute were submitted, on the monotonic clock.

    Other processes wrote them by the calendar. A time in the future is now: the clock was set back.
    """
    now, here = time.time(), time.monotonic()
    return [here - max(0.0, now - moment) for moment in ledger.submissions_since(now - _MINUTE)]
