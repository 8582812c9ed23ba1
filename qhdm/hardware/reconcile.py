"""The ledger against the service's list of jobs: none is paid twice, and none is forgotten.

All jobs of a sampling job share a tag, and each request has one of its own, which holds its place
in the chain. So the list of jobs with a tag shows

* the job of a request whose answer was lost;
* surplus jobs: the client repeats a POST that was answered with 5xx, also where it took effect;
* jobs that the ledger does not know: it is a copy of an earlier time.

The list may lag behind. What is not in it is certain only after `limits.settle_seconds`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable

import numpy as np

from qhdm.errors import HardwareError, ResultLostError, ServiceError
from qhdm.hardware.ledger import Entry, Ledger, Shape
from qhdm.hardware.patience import Patience
from qhdm.hardware.runtime import Service

Position = tuple[int, int, int]

#: Which of several jobs of one request is kept: what has cost most gives most.
_ORDER = {"done": 0, "running": 1, "queued": 2}
_NOT_KEPT = len(_ORDER)


class Reconciler:
    """Brings the ledger into line with the jobs that the service has.

    Args:
        ledger: what was asked for and got so far.
        service: where jobs are executed.
        patience: asks it.
        name: a tag of all jobs.
        tell: told what the user should know, a line each time.
    """

    def __init__(
        self,
        ledger: Ledger,
        service: Service,
        patience: Patience,
        *,
        name: str,
        tell: Callable[[str], object],
    ) -> None:
        self._ledger, self._service, self._patience = ledger, service, patience
        self._name, self._tell = name, tell
        self._tag = re.compile(rf"{re.escape(name)}-(\d+)-(\d+)-(\d+)-[0-9a-f]+")
        # Jobs of requests that the ledger does not know; whether there were any.
        self._strangers: dict[str, list[str]] = {}
        self._behind = False
        # When requests were sent whose surplus jobs, if any, may not be in the list yet.
        self._fresh: dict[str, float] = {}
        self._began = time.monotonic()

    def look(self, tag: str | None = None) -> None:
        """Compare the ledger with the jobs of one request, or with all."""
        jobs = self._patience.ask(lambda: self._service.find(tag or self._name))
        by_request: dict[str, list[str]] = {}
        for job_id, tags in jobs.items():
            for request in filter(self._tag.fullmatch, tags):
                by_request.setdefault(request, []).append(job_id)
        dropped = {surplus.job_id for surplus in self._ledger.surplus()}
        for request, listed in by_request.items():
            ids = [job_id for job_id in listed if job_id not in dropped]
            entry = self._ledger.request(request)
            if entry is not None:
                self._keep_one(entry, ids)
            elif ids:
                if request not in self._strangers:
                    self._tell(f"job {ids[0]}: is not in the ledger, which is older than the job")
                self._strangers[request], self._behind = ids, True

    def found(self, tag: str, since: float | None = None) -> bool:
        """Whether the service has a job of a request whose answer was lost; now in the ledger.

        Args:
            tag: of the request.
            since: when the answer was missed, on the monotonic clock; None: by another process.
                What the calendar says about that is not to be relied on.
        """
        since = self._began if since is None else since
        while True:
            late = self._patience.settled(since)
            self.look(tag)
            entry = self._ledger.request(tag)
            if entry is not None and entry.job_id is not None:
                return True
            if late:
                return False
            self._patience.rest(since)

    def sent(self, tag: str) -> None:
        """Look for surplus jobs of a request that was sent just now."""
        self._fresh[tag] = time.monotonic()
        self.look(tag)

    def look_again(self) -> None:
        """Look for surplus jobs of those requests that the service has had time to list."""
        for tag, since in list(self._fresh.items()):
            if self._patience.settled(since):
                del self._fresh[tag]
                self.look(tag)

    def finish(self) -> None:
        """Look for surplus jobs of all requests, once the service has had time to list them."""
        if not self._ledger.fact("settled"):
            self._wait(max(self._fresh.values(), default=self._began), "looking for surplus jobs")
        self.look()
        self.drop_strangers()
        self._ledger.record("settled", True)
        for surplus in self._ledger.surplus():
            if surplus.qpu_seconds is None:
                self.ask_usage(surplus.job_id)

    def adopt(self, position: Position, place: str, shapes: list[Shape], seconds: float) -> bool:
        """Take over the job that the service has for a place in the chain, with its inputs.

        Args:
            position: step, stage and part, of which the ledger has no request.
            place: name of the filter place.
            shapes: of the outcomes of each circuit.
            seconds: that such a job is expected to take.

        Returns:
            Whether there is one that may give a result; it is in the ledger now.
        """
        if self._behind and not self._patience.settled(self._began):
            # Where there is one, the next may only not be listed yet.
            self._wait(self._began, "looking for jobs that the ledger does not know")
            self.look()
        for tag in list(self._strangers):
            if self._position(tag) != position:
                continue
            ids = self._strangers.pop(tag)
            usable = any(self._state(job_id) != _NOT_KEPT for job_id in ids)
            self._ledger.intend(
                tag, position, place=place, shapes=shapes, seconds=seconds,
                inputs=self._inputs(ids[0]) if usable else {},
            )  # fmt: skip
            self.look(tag)
            if usable:
                return True
            self._ledger.failed(tag, qpu_seconds=None)
            self.ask_usage(ids[0])
        return False

    def strange_positions(self) -> set[Position]:
        """Places in the chain of the jobs that the ledger does not know."""
        return {self._position(tag) for tag in self._strangers}

    def drop_strangers(self) -> None:
        """Cancel the jobs that the ledger does not know and that nobody needs."""
        for tag, ids in self._strangers.items():
            known = self._ledger.find(*self._position(tag))
            for job_id in ids:
                self._drop(job_id, tag, 0.0 if known is None else known.expected_seconds)
        self._strangers.clear()

    def ask_usage(self, job_id: str) -> float | None:
        """Write down what a job has used, and return it; None, which is not 0, if nobody knows."""
        try:
            used = self._patience.ask(lambda: self._service.qpu_seconds(job_id))
        except HardwareError:
            return None
        if used is not None:
            self._ledger.used(job_id, used)
        return used

    def _keep_one(self, entry: Entry, ids: list[str]) -> None:
        """Keep one of the jobs of a request, the one that costs least from here; cancel others."""
        others = [job_id for job_id in ids if job_id != entry.job_id]
        if not others:
            return
        kept = entry.job_id
        if entry.state == "failed":
            # Its own job gives nothing any more, and another one only where it is still wanted.
            best = min(others, key=self._state)
            wanted = self._ledger.find(entry.step, entry.stage, entry.part) is None
            kept = best if wanted and self._state(best) != _NOT_KEPT else kept
        elif entry.state != "done":
            own = [] if entry.job_id is None or entry.job_id in ids else [entry.job_id]
            kept = min([*ids, *own], key=self._state) if own or len(ids) > 1 else ids[0]
        if kept is not None and kept != entry.job_id:
            self._ledger.submitted(entry.tag, kept)
            others += [] if entry.job_id is None else [entry.job_id]
        for job_id in others:
            if job_id != kept:
                self._drop(job_id, entry.tag, entry.expected_seconds)

    def _drop(self, job_id: str, tag: str, expected_seconds: float) -> None:
        """Cancel a surplus job, if it can be, and count what it has used."""
        try:
            self._patience.ask(lambda: self._service.cancel(job_id))
            state = self._patience.ask(lambda: self._service.status(job_id)).state
        except ResultLostError:
            state = "lost"
        # Not before: whoever is killed in between looks for it again.
        self._ledger.add_surplus(job_id, tag, expected_seconds=expected_seconds)
        used = self.ask_usage(job_id)
        seconds = "QPU seconds not reported yet" if used is None else f"{used:.1f} QPU seconds"
        self._tell(f"job {job_id}: one too many for request {tag}; {state}, {seconds}")

    def _inputs(self, job_id: str) -> dict[str, np.ndarray]:
        try:
            values = self._patience.ask(lambda: self._service.inputs(job_id))
        except (ResultLostError, ServiceError) as error:
            raise HardwareError(
                f"job {job_id}: cannot be taken over ({error}); put back a newer copy of the "
                "ledger, or submit a new job"
            ) from None
        return {str(i): rows for i, rows in enumerate(values)}

    def _state(self, job_id: str) -> int:
        """How far a job is, best first."""
        try:
            state = self._patience.ask(lambda: self._service.status(job_id)).state
        except ResultLostError:
            return _NOT_KEPT
        return _ORDER.get(state, _NOT_KEPT)

    def _position(self, tag: str) -> Position:
        match = self._tag.fullmatch(tag)
        assert match is not None
        step, stage, part = map(int, match.groups())
        return step, stage, part

    def _wait(self, since: float, why: str) -> None:
        while not self._patience.settled(since):
            self._patience.notify(why)
            self._patience.rest(since)
