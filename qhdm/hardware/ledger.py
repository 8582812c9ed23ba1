"""The ledger of a sampling job: one SQLite file, written before and after each request.

A request is first an *intent*: before anything is sent, its tag, which no other request has, and
its inputs are on disk. Its job id follows when the service has answered, then its result. Whoever
opens the file after a crash knows of each request whether it was never sent, may have been sent
(its tag tells), is pending, or is done.

The file has no write-ahead log beside it: a copy of this one file holds all that was written.
"""

from __future__ import annotations

import io
import json
import sqlite3
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from qhdm.errors import HardwareError, first_line
from qhdm.hardware.request import Position, Shape

_SCHEMA = (
    "CREATE TABLE facts (key TEXT PRIMARY KEY, value TEXT NOT NULL)",
    """
    CREATE TABLE requests (
        tag TEXT PRIMARY KEY,
        step INTEGER NOT NULL, stage INTEGER NOT NULL, part INTEGER NOT NULL,
        place TEXT NOT NULL,
        executions INTEGER NOT NULL,
        state TEXT NOT NULL CHECK (state IN ('intent', 'submitted', 'done', 'failed')),
        job_id TEXT,
        created REAL NOT NULL, submitted REAL, finished REAL,
        qpu_seconds REAL,
        inputs BLOB NOT NULL,
        result BLOB,
        expected_seconds REAL,
        shapes TEXT
    )
    """,
    """
    CREATE TABLE comparisons (
        step INTEGER NOT NULL, stage INTEGER NOT NULL, place TEXT NOT NULL, arrays BLOB NOT NULL,
        PRIMARY KEY (step, stage)
    )
    """,
    "CREATE TABLE states (step INTEGER PRIMARY KEY, state BLOB NOT NULL)",
    """
    CREATE TABLE surplus (
        job_id TEXT PRIMARY KEY, tag TEXT NOT NULL, expected_seconds REAL, qpu_seconds REAL
    )
    """,
)
#: What ledgers of earlier versions lack. The expected seconds were not kept: IBM's short formula
#: gives them (see `qhdm.hardware.estimate`).
_UPGRADE = (
    "ALTER TABLE requests ADD COLUMN expected_seconds REAL",
    "ALTER TABLE requests ADD COLUMN shapes TEXT",
    "UPDATE requests SET expected_seconds = 2 + 0.00035 * executions",
    _SCHEMA[-1],
)


@dataclass(frozen=True)
class RequestRecord:
    """One request, as the ledger knows it.

    Attributes:
        tag: unique, sent with the runtime job.
        step, stage, part: its position.
        place: name of the filter place.
        executions: shots of all circuits.
        state: `intent`, `submitted`, `done` or `failed`.
        job_id: of the runtime job, once known.
        created, submitted, finished: seconds since 1970; `created` is when it was last sent.
        qpu_seconds: as the service reports them; None until it does.
        expected_seconds: the estimate.
        shapes: of the outcomes of each circuit; None if an earlier version sent the request.
    """

    tag: str
    step: int
    stage: int
    part: int
    place: str
    executions: int
    state: str
    job_id: str | None
    created: float
    submitted: float | None
    finished: float | None
    qpu_seconds: float | None
    expected_seconds: float
    shapes: tuple[Shape, ...] | None

    @property
    def position(self) -> Position:
        """Network evaluation, filter place in it, and request for it."""
        return self.step, self.stage, self.part


class Surplus(NamedTuple):
    """A runtime job of a request (`tag`) that has another one; seconds as in `RequestRecord`."""

    job_id: str
    tag: str
    expected_seconds: float
    qpu_seconds: float | None


_COLUMNS = ", ".join(RequestRecord.__dataclass_fields__)


class Ledger:
    """The ledger of one sampling job.

    Args:
        path: of the SQLite file.
        create: make it. Only this does: an empty ledger in place of a lost one would send every
            request again.

    Raises:
        HardwareError: the file is missing, damaged, or cannot be written; so does every method.
    """

    def __init__(self, path: Path, *, create: bool = False) -> None:
        self.path = path
        if not create and not path.is_file():
            raise self._damaged("missing")
        try:
            # Autocommit: each statement below is durable when it returns. An estimator's job runs
            # in a thread of its own, while the thread that made it waits.
            self._db = sqlite3.connect(
                path, isolation_level=None, timeout=30, check_same_thread=False
            )
        except sqlite3.DatabaseError as error:
            raise self._damaged(str(error)) from None
        try:
            self._open(create=create)
        except HardwareError:
            self._db.close()
            raise

    def _open(self, *, create: bool) -> None:
        # Earlier versions wrote a log beside the file, which this takes in. A copy of the file
        # alone lacked it, and whoever resumed one sent all of that again.
        self._execute("PRAGMA journal_mode=DELETE")
        self._execute("PRAGMA synchronous=EXTRA")
        if create:
            self._together(_SCHEMA)
            # Job ids repeat between machines; this does not.
            self.set_fact("tag", f"qhdm-{uuid.uuid4().hex[:12]}")
            self.set_fact("state", "new")
        elif self._execute("PRAGMA quick_check") != [("ok",)]:
            raise self._damaged("inconsistent")
        elif not self._execute("SELECT 1 FROM sqlite_master WHERE name = 'facts'"):
            raise self._damaged("empty")
        elif not (self.fact("tag") and self.fact("state")):
            raise self._damaged("it does not say whose it is")
        if not self._execute("SELECT 1 FROM sqlite_master WHERE name = 'surplus'"):
            self._together(_UPGRADE)

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def fact(self, key: str) -> Any:
        """The value of a fact, or None."""
        rows = self._execute("SELECT value FROM facts WHERE key = ?", (key,))
        try:
            return json.loads(rows[0][0]) if rows else None
        except ValueError as error:
            raise self._damaged(f"{key}: {error}") from None

    def set_fact(self, key: str, value: Any) -> None:
        """Write a fact down, as JSON."""
        self._execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (key, json.dumps(value)))

    def requests(self, state: str | None = None) -> list[RequestRecord]:
        """All requests, in the order of their positions, or those in one state."""
        return self._requests("state = ?", state) if state else self._requests("1")

    def request(self, tag: str) -> RequestRecord | None:
        """The request with a tag, or None."""
        return next(iter(self._requests("tag = ?", tag)), None)

    def request_at(self, position: Position) -> RequestRecord | None:
        """The request at a position that has not failed, or None."""
        where = "step = ? AND stage = ? AND part = ? AND state != 'failed'"
        return next(iter(self._requests(where, *position)), None)

    def add(
        self,
        tag: str,
        position: Position,
        *,
        place: str,
        shapes: Sequence[Shape],
        seconds: float,
        inputs: Mapping[str, np.ndarray],
    ) -> None:
        """Write down a request before it is sent.

        Args:
            tag: that no other request has.
            position: of the request.
            place: name of the filter place.
            shapes: of the outcomes of each circuit.
            seconds: expected on the QPU.
            inputs: parameter values of each circuit.
        """
        executions = sum(rows * shots for rows, shots, _ in shapes)
        self._execute(
            "INSERT INTO requests (tag, step, stage, part, place, executions, state, created, "
            "inputs, expected_seconds, shapes) VALUES (?, ?, ?, ?, ?, ?, 'intent', ?, ?, ?, ?)",
            (tag, *position, place, executions, time.time(), _packed(inputs), seconds,
             json.dumps(shapes)),
        )  # fmt: skip

    def sending(self, tag: str) -> None:
        """Write down that a request is sent from now on."""
        self._update(tag, created=time.time())

    def submitted(self, tag: str, job_id: str) -> None:
        """Write down the job id that the service answered."""
        self._update(tag, state="submitted", job_id=job_id, submitted=time.time())

    def done(
        self, tag: str, result: Mapping[str, np.ndarray], *, qpu_seconds: float | None = None
    ) -> None:
        """Write down a result."""
        self._update(
            tag,
            state="done",
            finished=time.time(),
            qpu_seconds=qpu_seconds,
            result=_packed(result),
        )

    def failed(self, tag: str, *, qpu_seconds: float | None = None) -> None:
        """Write down that a request gave no result and never will."""
        self._update(tag, state="failed", finished=time.time(), qpu_seconds=qpu_seconds)

    def used(self, job_id: str, qpu_seconds: float) -> None:
        """Write down what the service reports of a runtime job."""
        for table in ("requests", "surplus"):
            self._execute(
                f"UPDATE {table} SET qpu_seconds = ? WHERE job_id = ?", (qpu_seconds, job_id)
            )

    def add_surplus(self, job_id: str, tag: str, *, expected_seconds: float) -> None:
        """Write down that a runtime job is surplus."""
        self._execute(
            "INSERT OR IGNORE INTO surplus VALUES (?, ?, ?, NULL)", (job_id, tag, expected_seconds)
        )

    def surplus(self) -> list[Surplus]:
        """All surplus jobs, in the order they were found."""
        rows = self._execute(
            "SELECT job_id, tag, expected_seconds, qpu_seconds FROM surplus ORDER BY rowid"
        )
        return [Surplus(*row) for row in rows]

    def inputs(self, tag: str) -> dict[str, np.ndarray]:
        """The inputs of a request."""
        return self._arrays("SELECT inputs FROM requests WHERE tag = ?", tag)

    def result(self, tag: str) -> dict[str, np.ndarray]:
        """The result of a request that is done."""
        return self._arrays("SELECT result FROM requests WHERE tag = ?", tag)

    def save_state(self, step: int, state: Mapping[str, np.ndarray]) -> None:
        """Keep the sampler's state before evaluation `step`."""
        self._execute("INSERT OR REPLACE INTO states VALUES (?, ?)", (step, _packed(state)))

    def last_state(self) -> tuple[int, dict[str, np.ndarray]] | None:
        """The latest state and its step, or None."""
        rows = self._execute("SELECT step, state FROM states ORDER BY step DESC LIMIT 1")
        return (rows[0][0], self._unpacked(rows[0][1])) if rows else None

    def compare(self, step: int, stage: int, place: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Keep the measured values of a filter place beside the exact ones."""
        self._execute(
            "INSERT OR REPLACE INTO comparisons VALUES (?, ?, ?, ?)",
            (step, stage, place, _packed(arrays)),
        )

    def comparisons(self) -> list[tuple[int, str, dict[str, np.ndarray]]]:
        """Step, place and arrays of each, in order."""
        rows = self._execute("SELECT step, place, arrays FROM comparisons ORDER BY step, stage")
        return [(step, place, self._unpacked(blob)) for step, place, blob in rows]

    def qpu_seconds(self) -> float:
        """What the service has reported so far, of surplus jobs too."""
        return self._total("SUM(qpu_seconds)")

    def unreported_seconds(self) -> float:
        """What is expected of the jobs of which the service has reported nothing, which is not 0.

        They are pending, have ended without a report, or are about to be sent.
        """
        return self._total("SUM(expected_seconds)", "qpu_seconds IS NULL")

    def _total(self, what: str, where: str = "1") -> float:
        """A sum over the requests and the surplus jobs."""
        query = f"SELECT {what} FROM {{}} WHERE {where}"
        totals = [self._execute(query.format(table)) for table in ("requests", "surplus")]
        return sum(rows[0][0] or 0.0 for rows in totals)

    def submissions_since(self, moment: float) -> list[float]:
        """When requests were submitted after `moment`, oldest first."""
        rows = self._execute(
            "SELECT submitted FROM requests WHERE submitted > ? ORDER BY submitted", (moment,)
        )
        return [row[0] for row in rows]

    def _requests(self, where: str, *values: object) -> list[RequestRecord]:
        query = f"SELECT {_COLUMNS} FROM requests WHERE {where} ORDER BY step, stage, part, created"
        records = []
        for row in self._execute(query, values):
            columns = dict(zip(RequestRecord.__dataclass_fields__, row, strict=True))
            try:
                if columns["shapes"] is not None:
                    columns["shapes"] = tuple(
                        (int(rows), int(shots), int(bits))
                        for rows, shots, bits in json.loads(columns["shapes"])
                    )
                records.append(RequestRecord(**columns))
            except (TypeError, ValueError) as error:
                raise self._damaged(first_line(error)) from None
        return records

    def _update(self, tag: str, **columns: object) -> None:
        changes = ", ".join(f"{name} = ?" for name in columns)
        self._execute(f"UPDATE requests SET {changes} WHERE tag = ?", (*columns.values(), tag))

    def _arrays(self, query: str, tag: str) -> dict[str, np.ndarray]:
        rows = self._execute(query, (tag,))
        if not rows or rows[0][0] is None:
            raise HardwareError(f"{self.path}: nothing is kept of request {tag}")
        return self._unpacked(rows[0][0])

    def _execute(self, statement: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        try:
            return self._db.execute(statement, values).fetchall()
        except sqlite3.OperationalError as error:
            if str(error).startswith(("no such", "duplicate")):
                raise self._damaged(str(error)) from None
            raise HardwareError(  # full, locked, or read-only
                f"{self.path}: {error}; nothing is lost: make room, or fix it, then: "
                f"qhdm jobs resume {self.path.parent}"
            ) from None
        except sqlite3.DatabaseError as error:
            raise self._damaged(str(error)) from None

    def _together(self, statements: Sequence[str]) -> None:
        """Execute all statements, or none."""
        for statement in ("BEGIN IMMEDIATE", *statements, "COMMIT"):
            self._execute(statement)

    def _unpacked(self, blob: bytes) -> dict[str, np.ndarray]:
        try:
            with np.load(io.BytesIO(blob), allow_pickle=False) as arrays:
                return dict(arrays)
        except Exception as error:  # numpy raises many kinds for a damaged file
            raise self._damaged(first_line(error)) from None

    def _damaged(self, what: str) -> HardwareError:
        return HardwareError(
            f"{self.path}: missing, damaged, or not the ledger of a job ({what}); put back a copy "
            "(what it does not hold is looked up at the service), or submit a new job"
        )


def _packed(arrays: Mapping[str, np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()
