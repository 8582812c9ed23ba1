"""What a sampling job has asked for and got: one SQLite file, written before and after requests.

A request is first an *intent*: its tag, which no other request has, and its inputs, are on disk
before anything is sent. Its job id follows when the service has answered, its result when that is
fetched. Whoever opens the file after a crash knows of each request whether it was never sent, may
have been sent (its tag tells), is pending, or is done.
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
        result BLOB
    )
    """,
    """
    CREATE TABLE comparisons (
        step INTEGER NOT NULL, stage INTEGER NOT NULL, place TEXT NOT NULL, arrays BLOB NOT NULL,
        PRIMARY KEY (step, stage)
    )
    """,
    "CREATE TABLE states (step INTEGER PRIMARY KEY, state BLOB NOT NULL)",
)


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
        qpu_seconds: as the service reports them.
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
        self._execute("PRAGMA journal_mode=WAL")
        self._execute("PRAGMA synchronous=FULL")
        if create:
            for statement in _SCHEMA:
                self._execute(statement)
            # Job ids repeat between machines; this does not.
            self.record("tag", f"qhdm-{uuid.uuid4().hex[:12]}")
            self.record("state", "new")
        elif self._execute("PRAGMA quick_check") != [("ok",)]:
            raise self._damaged("inconsistent")
        elif not self._execute("SELECT 1 FROM sqlite_master WHERE name = 'facts'"):
            raise self._damaged("empty")
        elif not (self.fact("tag") and self.fact("state")):
            raise self._damaged("it does not say whose it is")

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
        return [Entry(*row) for row in rows]

    def find(self, step: int, stage: int, part: int) -> Entry | None:
        """The request of a place in the chain that has not failed, or None."""
        rows = self._execute(
            f"SELECT {_COLUMNS} FROM requests WHERE step = ? AND stage = ? AND part = ? "
            "AND state != 'failed'",
            (step, stage, part),
        )
        return Entry(*rows[0]) if rows else None

    def intend(
        self,
        tag: str,
        position: tuple[int, int, int],
        *,
        place: str,
        executions: int,
        inputs: Mapping[str, np.ndarray],
    ) -> None:
        """Write down a request before it is sent."""
        self._execute(
            "INSERT INTO requests (tag, step, stage, part, place, executions, state, created, "
            "inputs) VALUES (?, ?, ?, ?, ?, ?, 'intent', ?, ?)",
            (tag, *position, place, executions, time.time(), _packed(inputs)),
        )

    def sending(self, tag: str) -> float:
        """Write down that a request is sent from now on; returns the moment."""
        now = time.time()
        self._execute("UPDATE requests SET created = ? WHERE tag = ?", (now, tag))
        return now

    def submitted(self, tag: str, job_id: str) -> None:
        """Write down the job id that the service answered."""
        self._execute(
            "UPDATE requests SET state = 'submitted', job_id = ?, submitted = ? WHERE tag = ?",
            (job_id, time.time(), tag),
        )

    def done(
        self, tag: str, result: Mapping[str, np.ndarray], *, qpu_seconds: float | None
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
        ((seconds,),) = self._execute("SELECT COALESCE(SUM(qpu_seconds), 0) FROM requests")
        return float(seconds)

    def submissions_since(self, moment: float) -> list[float]:
        """When requests were submitted after `moment`, oldest first."""
        rows = self._execute(
            "SELECT submitted FROM requests WHERE submitted > ? ORDER BY submitted", (moment,)
        )
        return [row[0] for row in rows]

    def _arrays(self, query: str, tag: str) -> dict[str, np.ndarray]:
        rows = self._execute(query, (tag,))
        if not rows or rows[0][0] is None:
            raise HardwareError(f"{self.path}: nothing is kept of request {tag}")
        return self._unpacked(rows[0][0])

    def _execute(self, statement: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        try:
            return self._db.execute(statement, values).fetchall()
        except sqlite3.OperationalError as error:
            if str(error).startswith("no such"):
                raise self._damaged(str(error)) from None
            raise HardwareError(  # full, locked, or read-only
                f"{self.path}: {error}; nothing is lost: mend that, and go on with the job"
            ) from None
        except sqlite3.DatabaseError as error:
            raise self._damaged(str(error)) from None

    def _unpacked(self, blob: bytes) -> dict[str, np.ndarray]:
        try:
            with np.load(io.BytesIO(blob), allow_pickle=False) as arrays:
                return dict(arrays)
        except Exception as error:  # numpy raises many kinds for a damaged file
            raise self._damaged(first_line(error)) from None

    def _damaged(self, what: str) -> HardwareError:
        return HardwareError(
            f"{self.path}: missing, damaged, or not the ledger of a job ({what}); put back a copy "
            "(what it does not hold is sent again), or submit a new job"
        )


def _packed(arrays: Mapping[str, np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()
