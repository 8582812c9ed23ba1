"""Reconciliation of the ledger with the service's list of runtime jobs.

All runtime jobs of a sampling job share a tag, and each request has one of its own, which contains
its position in the chain. So the list of jobs with a tag shows

* the job of a request whose answer was lost;
* surplus jobs: the client repeats a POST that was answered with 5xx, also where it took effect;
* jobs that the ledger does not know: it is an older copy.

The list may lag behind. What is not in it is certain only after `limits.settle_seconds`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable

import numpy as np

from qhdm.errors import HardwareError, RuntimeJobError, ServiceError
from qhdm.hardware.ledger import Ledger, RequestRecord
from qhdm.hardware.patience import Patience
from qhdm.hardware.request import Position, Request
from qhdm.hardware.runtime import Service

#: Of several jobs of one request, the one that is furthest is kept: it has cost most.
_ORDER = {"done": 0, "running": 1, "queued": 2}
_USELESS = len(_ORDER)


class Reconciler:
    """Brings the ledger into line with the runtime jobs that the service has.

    Args:
        ledger: requests and results so far.
        service: where runtime jobs are executed.
        patience: asks the service.
        name: a tag of all runtime jobs.
        warn: called with each warning for the user.
    """

    def __init__(
        self,
        ledger: Ledger,
        service: Service,
        patience: Patience,
        *,
        name: str,
        warn: Callable[[str], object],
    ) -> None:
        self._ledger, self._service, self._patience = ledger, service, patience
        self._name, self._warn = name, warn
        self._tag = re.compile(rf"{re.escape(name)}-(\d+)-(\d+)-(\d+)-[0-9a-f]+")
        # Jobs of requests that the ledger does not know; whether there were any.
        self._unknown: dict[str, list[str]] = {}
        self._behind = False
        # When requests were sent whose surplus jobs, if any, may not be in the list yet.
        self._fresh: dict[str, float] = {}
        self._began = time.monotonic()

    def compare(self, tag: str | None = None) -> None:
        """Compare the ledger with the jobs of one request, or with all."""
        jobs = self._patience.ask(lambda: self._service.find(tag or self._name))
        by_request: dict[str, list[str]] = {}
        for job_id, tags in jobs.items():
            for request in filter(self._tag.fullmatch, tags):
                by_request.setdefault(request, []).append(job_id)
        dropped = {surplus.job_id for surplus in self._ledger.surplus()}
        for request, listed in by_request.items():
            ids = [job_id for job_id in listed if job_id not in dropped]
            record = self._ledger.request(request)
            if record is not None:
                self._keep_one(record, ids)
            elif ids:
                if request not in self._unknown:
                    self._warn(f"job {ids[0]}: is not in the ledger, which is older than the job")
                self._unknown[request], self._behind = ids, True

    def locate(self, tag: str, since: float | None = None) -> bool:
        """Look for the job of a request whose answer was lost; returns whether there is one.

        Args:
            tag: of the request.
            since: when the answer was missed, on the monotonic clock; None if that was in another
                process: the calendar is not relied on.
        """
        since = self._began if since is None else since
        while True:
            late = self._patience.settled(since)
            self.compare(tag)
            record = self._ledger.request(tag)
            if record is not None and record.job_id is not None:
                return True
            if late:
                return False
            self._patience.rest(since)

    def watch(self, tag: str) -> None:
        """Look for surplus jobs of a request that was sent just now."""
        self._fresh[tag] = time.monotonic()
        self.compare(tag)

    def recheck(self) -> None:
        """Look for surplus jobs of those requests that the service has had time to list."""
        for tag, since in list(self._fresh.items()):
            if self._patience.settled(since):
                del self._fresh[tag]
                self.compare(tag)

    def finish(self) -> None:
        """Look for surplus jobs of all requests, once the service has had time to list them."""
        if not self._ledger.fact("settled"):
            self._wait(max(self._fresh.values(), default=self._began), "looking for surplus jobs")
        self.compare()
        self.cancel_unknown()
        self._ledger.set_fact("settled", True)
        for surplus in self._ledger.surplus():
            if surplus.qpu_seconds is None:
                self.fetch_usage(surplus.job_id)

    def adopt(self, position: Position, place: str, request: Request) -> bool:
        """Take over the job that the service has for a position, with its inputs.

        Args:
            position: one of which the ledger has no request.
            place: name of the filter place.
            request: that would be sent there.

        Returns:
            Whether there is one that may give a result; it is in the ledger now.
        """
        if self._behind and not self._patience.settled(self._began):
            # One job is missing in the ledger: the next may only not be listed yet.
            self._wait(self._began, "looking for jobs that the ledger does not know")
            self.compare()
        for tag in list(self._unknown):
            if self._position(tag) != position:
                continue
            ids = self._unknown.pop(tag)
            usable = any(self._rank(job_id) != _USELESS for job_id in ids)
            self._ledger.add(
                tag, position, place=place, shapes=request.shapes, seconds=request.seconds,
                inputs=self._inputs(ids[0]) if usable else {},
            )  # fmt: skip
            self.compare(tag)
            if usable:
                return True
            self._ledger.failed(tag)
            self.fetch_usage(ids[0])
        return False

    def unknown_positions(self) -> set[Position]:
        """Positions of the jobs that the ledger does not know."""
        return {self._position(tag) for tag in self._unknown}

    def cancel_unknown(self) -> None:
        """Cancel the jobs that the ledger does not know and that are not needed."""
        for tag, ids in self._unknown.items():
            known = self._ledger.request_at(self._position(tag))
            for job_id in ids:
                self._cancel_surplus(job_id, tag, 0.0 if known is None else known.expected_seconds)
        self._unknown.clear()

    def fetch_usage(self, job_id: str) -> float | None:
        """Write down what a job has used, and return it; None, which is not 0, if it is unknown."""
        try:
            used = self._patience.ask(lambda: self._service.qpu_seconds(job_id))
        except HardwareError:
            return None
        if used is not None:
            self._ledger.used(job_id, used)
        return used

    def _keep_one(self, record: RequestRecord, ids: list[str]) -> None:
        """Keep the job of a request that costs least from here, and cancel the others."""
        others = [job_id for job_id in ids if job_id != record.job_id]
        if not others:
            return
        kept = record.job_id
        if record.state == "failed":
            # Its own job has no result; another one is of use only if none was sent since.
            best = min(others, key=self._rank)
            wanted = self._ledger.request_at(record.position) is None
            kept = best if wanted and self._rank(best) != _USELESS else kept
        elif record.state != "done":
            own = [] if record.job_id is None or record.job_id in ids else [record.job_id]
            kept = min([*ids, *own], key=self._rank) if own or len(ids) > 1 else ids[0]
        if kept is not None and kept != record.job_id:
            self._ledger.submitted(record.tag, kept)
            others += [] if record.job_id is None else [record.job_id]
        for job_id in others:
            if job_id != kept:
                self._cancel_surplus(job_id, record.tag, record.expected_seconds)

    def _cancel_surplus(self, job_id: str, tag: str, expected_seconds: float) -> None:
        """Cancel a surplus job, if it can be, and count what it has used."""
        try:
            self._patience.ask(lambda: self._service.cancel(job_id))
            state = self._patience.ask(lambda: self._service.status(job_id)).state
        except RuntimeJobError:
            state = "lost"
        # Only now: a process that is killed before looks for it again.
        self._ledger.add_surplus(job_id, tag, expected_seconds=expected_seconds)
        used = self.fetch_usage(job_id)
        seconds = "QPU seconds not reported yet" if used is None else f"{used:.1f} QPU seconds"
        self._warn(f"job {job_id}: surplus, request {tag} has another; {state}, {seconds}")

    def _inputs(self, job_id: str) -> dict[str, np.ndarray]:
        try:
            values = self._patience.ask(lambda: self._service.inputs(job_id))
        except (RuntimeJobError, ServiceError) as error:
            if error.reason in ("network", "rate"):
                raise
            raise HardwareError(
                f"job {job_id}: cannot be taken over ({error}); put back a newer copy of the "
                "ledger, or submit a new job"
            ) from None
        return {str(i): rows for i, rows in enumerate(values)}

    def _rank(self, job_id: str) -> int:
        """How far a job has come, the furthest first."""
        try:
            state = self._patience.ask(lambda: self._service.status(job_id)).state
        except RuntimeJobError:
            return _USELESS
        return _ORDER.get(state, _USELESS)

    def _position(self, tag: str) -> Position:
        match = self._tag.fullmatch(tag)
        assert match is not None
        step, stage, part = map(int, match.groups())
        return step, stage, part

    def _wait(self, since: float, why: str) -> None:
        while not self._patience.settled(since):
            self._patience.notify(why)
            self._patience.rest(since)
