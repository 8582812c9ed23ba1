"""What a sampling job has asked for and got: one SQLite file, written before and after requests.

A request is first an *intent*: its tag, which no other request has, and its inputs, are on disk
before anything is sent. Its job id follows when the service has answered, its result when that is
fetched. Whoever opens the file after a crash knows of each request whether it was never sent, may
have been sent (its tag tells), is pending, or is done.

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
from typing import Any

import numpy as np

from qhdm.errors import HardwareError, first_line

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
#: Ledgers of earlier versions lack these. What their requests were expected to take was not kept;
#: IBM's short formula tells (see `qhdm.hardware.estimate`).
_UPGRADE = (
    "ALTER TABLE requests ADD COLUMN expected_seconds REAL",
    "ALTER TABLE requests ADD COLUMN shapes TEXT",
    "UPDATE requests SET expected_seconds = 2 + 0.00035 * executions",
    _SCHEMA[-1],
)
#: Rows, shots and bits of the outcomes of a circuit.
Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Entry:
    """One request.

    Attributes:
        tag: unique, sent with the job.
        step, stage, part: network evaluation, filter place in it, and piece of its rows.
        place: name of the filter place.
        executions: shots of all circuits.
        state: `intent`, `submitted`, `done` or `failed`.
        job_id: of the service, once known.
        created, submitted, finished: seconds since 1970; `created` is when it was last sent.
        qpu_seconds: as the service reports them; None as long as it does not.
        expected_seconds: that it was expected to take.
        shapes: of the outcomes of each of its circuits; None where an earlier version sent it.
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


@dataclass(frozen=True)
class Surplus:
    """A job that the service made although the request has another one.

    Attributes:
        job_id: of the service.
        tag: of the request.
        expected_seconds: of the request.
        qpu_seconds: as the service reports them; None as long as it does not.
    """

    job_id: str
    tag: str
    expected_seconds: float
    qpu_seconds: float | None


_COLUMNS = ", ".join(Entry.__dataclass_fields__)


class Ledger:
    """The ledger of one sampling job.

    Args:
        path: of the SQLite file.
        create: make it. Nothing else does: an empty ledger in the place of a lost one would send
            every request again.

    Raises:
        HardwareError: here and in every method, the file is missing, damaged, or cannot be written.
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
        # Earlier versions wrote a log beside the file, which this takes in. Copies of the file
        # alone lacked it, and whoever went on with one sent all that again.
        self._execute("PRAGMA journal_mode=DELETE")
        self._execute("PRAGMA synchronous=EXTRA")
        if create:
            self._together(_SCHEMA)
            # Job ids repeat between machines; this does not.
            self.record("tag", f"qhdm-{uuid.uuid4().hex[:12]}")
            self.record("state", "new")
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
        """What was recorded under `key`, or None."""
        rows = self._execute("SELECT value FROM facts WHERE key = ?", (key,))
        try:
            return json.loads(rows[0][0]) if rows else None
        except ValueError as error:
            raise self._damaged(f"{key}: {error}") from None

    def record(self, key: str, value: Any) -> None:
        """Record a fact as JSON."""
        self._execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (key, json.dumps(value)))

    def entries(self, state: str | None = None) -> list[Entry]:
        """All requests, in the order they were made, or those in one state."""
        where, values = ("WHERE state = ?", (state,)) if state else ("", ())
        rows = self._execute(
            f"SELECT {_COLUMNS} FROM requests {where} ORDER BY step, stage, part, created", values
        )
        return [self._entry(row) for row in rows]

    def request(self, tag: str) -> Entry | None:
        """The request with a tag, or None."""
        rows = self._execute(f"SELECT {_COLUMNS} FROM requests WHERE tag = ?", (tag,))
        return self._entry(rows[0]) if rows else None

    def find(self, step: int, stage: int, part: int) -> Entry | None:
        """The request of a place in the chain that has not failed, or None."""
        rows = self._execute(
            f"SELECT {_COLUMNS} FROM requests WHERE step = ? AND stage = ? AND part = ? "
            "AND state != 'failed'",
            (step, stage, part),
        )
        return self._entry(rows[0]) if rows else None

    def intend(
        self,
        tag: str,
        position: tuple[int, int, int],
        *,
        place: str,
        shapes: Sequence[Shape],
        seconds: float,
        inputs: Mapping[str, np.ndarray],
    ) -> None:
        """Write down a request before it is sent.

        Args:
            tag: that no other request has.
            position: step, stage and part.
            place: name of the filter place.
            shapes: of the outcomes of each circuit.
            seconds: that it is expected to take on the QPU.
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
        self._execute("UPDATE requests SET created = ? WHERE tag = ?", (time.time(), tag))

    def submitted(self, tag: str, job_id: str) -> None:
        """Write down the job id that the service answered."""
        self._execute(
            "UPDATE requests SET state = 'submitted', job_id = ?, submitted = ? WHERE tag = ?",
            (job_id, time.time(), tag),
        )

    def done(
        self, tag: str, result: Mapping[str, np.ndarray], *, qpu_seconds: float | None = None
    ) -> None:
        """Write down a result."""
        self._execute(
            "UPDATE requests SET state = 'done', finished = ?, qpu_seconds = ?, result = ? "
            "WHERE tag = ?",
            (time.time(), qpu_seconds, _packed(result), tag),
        )

    def failed(self, tag: str, *, qpu_seconds: float | None) -> None:
        """Write down that a job gave no result and never will."""
        self._execute(
            "UPDATE requests SET state = 'failed', finished = ?, qpu_seconds = ? WHERE tag = ?",
            (time.time(), qpu_seconds, tag),
        )

    def used(self, job_id: str, qpu_seconds: float) -> None:
        """Write down what the service reports of a job."""
        for table in ("requests", "surplus"):
            self._execute(
                f"UPDATE {table} SET qpu_seconds = ? WHERE job_id = ?", (qpu_seconds, job_id)
            )

    def add_surplus(self, job_id: str, tag: str, *, expected_seconds: float) -> None:
        """Write down that a job is one too many."""
        self._execute(
            "INSERT OR IGNORE INTO surplus VALUES (?, ?, ?, NULL)", (job_id, tag, expected_seconds)
        )

    def surplus(self) -> list[Surplus]:
        """All jobs that were one too many, in the order they were found."""
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
        """Keep what a filter place gave beside what it should have given."""
        self._execute(
            "INSERT OR REPLACE INTO comparisons VALUES (?, ?, ?, ?)",
            (step, stage, place, _packed(arrays)),
        )

    def comparisons(self) -> list[tuple[int, str, dict[str, np.ndarray]]]:
        """Step, place and arrays of each, in order."""
        rows = self._execute("SELECT step, place, arrays FROM comparisons ORDER BY step, stage")
        return [(step, place, self._unpacked(blob)) for step, place, blob in rows]

    def qpu_seconds(self) -> float:
        """What the service has reported so far."""
        return self._total("SUM(qpu_seconds)")

    def unreported_seconds(self, *, without: str = "") -> float:
        """What is expected of jobs of which the service has reported nothing, but of one request.

        Of jobs that are pending, of those whose usage it does not tell (which is not 0), and of
        requests that are about to be sent.
        """
        return self._total("SUM(expected_seconds)", "qpu_seconds IS NULL AND tag != ?", without)

    def _total(self, what: str, where: str = "1", *values: object) -> float:
        """A sum over all jobs, the surplus ones included."""
        total = 0.0
        for table in ("requests", "surplus"):
            rows = self._execute(f"SELECT {what} FROM {table} WHERE {where}", values)
            total += rows[0][0] or 0.0
        return total

    def submissions_since(self, moment: float) -> list[float]:
        """When requests were submitted after `moment`, oldest first."""
        rows = self._execute(
            "SELECT submitted FROM requests WHERE submitted > ? ORDER BY submitted", (moment,)
        )
        return [row[0] for row in rows]

    def _entry(self, row: Sequence[Any]) -> Entry:
        values = dict(zip(Entry.__dataclass_fields__, row, strict=True))
        try:
            if values["shapes"] is not None:
                values["shapes"] = _shapes(json.loads(values["shapes"]))
            return Entry(**values)
        except (TypeError, ValueError) as error:
            raise self._damaged(first_line(error)) from None

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
                f"{self.path}: {error}; nothing is lost: make room, or mend what it is, then: "
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


def _shapes(raw: list[list[int]]) -> tuple[Shape, ...]:
    return tuple((int(rows), int(shots), int(bits)) for rows, shots, bits in raw)


def _packed(arrays: Mapping[str, np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()
