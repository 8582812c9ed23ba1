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
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qhdm.errors import HardwareError

_SCHEMA = """
CREATE TABLE IF NOT EXISTS facts (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS requests (
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
);
CREATE TABLE IF NOT EXISTS comparisons (
    step INTEGER NOT NULL, stage INTEGER NOT NULL, place TEXT NOT NULL, arrays BLOB NOT NULL,
    PRIMARY KEY (step, stage)
);
CREATE TABLE IF NOT EXISTS states (step INTEGER PRIMARY KEY, state BLOB NOT NULL);
"""


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
        path: of the SQLite file; made if it is absent.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            # Autocommit: each statement below is durable when it returns. An estimator's job runs
            # in a thread of its own, while the thread that made it waits.
            self._db = sqlite3.connect(
                path, isolation_level=None, timeout=30, check_same_thread=False
            )
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.executescript(_SCHEMA)
        except sqlite3.DatabaseError as error:
            raise HardwareError(f"{path}: not a readable ledger ({error})") from None

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def fact(self, key: str) -> Any:
        """What was recorded under `key`, or None."""
        row = self._db.execute("SELECT value FROM facts WHERE key = ?", (key,)).fetchone()
        return None if row is None else json.loads(row[0])

    def record(self, key: str, value: Any) -> None:
        """Record a fact as JSON."""
        self._db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (key, json.dumps(value)))

    def entries(self, state: str | None = None) -> list[Entry]:
        """All requests, in the order they were made, or those in one state."""
        where, values = ("WHERE state = ?", (state,)) if state else ("", ())
        rows = self._db.execute(
            f"SELECT {_COLUMNS} FROM requests {where} ORDER BY step, stage, part, created", values
        )
        return [Entry(*row) for row in rows]

    def find(self, step: int, stage: int, part: int) -> Entry | None:
        """The request of a place in the chain that has not failed, or None."""
        row = self._db.execute(
            f"SELECT {_COLUMNS} FROM requests WHERE step = ? AND stage = ? AND part = ? "
            "AND state != 'failed'",
            (step, stage, part),
        ).fetchone()
        return None if row is None else Entry(*row)

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
        self._db.execute(
            "INSERT INTO requests (tag, step, stage, part, place, executions, state, created, "
            "inputs) VALUES (?, ?, ?, ?, ?, ?, 'intent', ?, ?)",
            (tag, *position, place, executions, time.time(), _packed(inputs)),
        )

    def sending(self, tag: str) -> float:
        """Write down that a request is sent from now on; returns the moment."""
        now = time.time()
        self._db.execute("UPDATE requests SET created = ? WHERE tag = ?", (now, tag))
        return now

    def submitted(self, tag: str, job_id: str) -> None:
        """Write down the job id that the service answered."""
        self._db.execute(
            "UPDATE requests SET state = 'submitted', job_id = ?, submitted = ? WHERE tag = ?",
            (job_id, time.time(), tag),
        )

    def done(
        self, tag: str, result: Mapping[str, np.ndarray], *, qpu_seconds: float | None
    ) -> None:
        """Write down a result."""
        self._db.execute(
            "UPDATE requests SET state = 'done', finished = ?, qpu_seconds = ?, result = ? "
            "WHERE tag = ?",
            (time.time(), qpu_seconds, _packed(result), tag),
        )

    def failed(self, tag: str, *, qpu_seconds: float | None) -> None:
        """Write down that a job gave no result and never will."""
        self._db.execute(
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
        self._db.execute("INSERT OR REPLACE INTO states VALUES (?, ?)", (step, _packed(state)))

    def last_state(self) -> tuple[int, dict[str, np.ndarray]] | None:
        """The latest state and its step, or None."""
        row = self._db.execute(
            "SELECT step, state FROM states ORDER BY step DESC LIMIT 1"
        ).fetchone()
        return None if row is None else (row[0], _unpacked(row[1]))

    def compare(self, step: int, stage: int, place: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Keep what a filter place gave beside what it should have given."""
        self._db.execute(
            "INSERT OR REPLACE INTO comparisons VALUES (?, ?, ?, ?)",
            (step, stage, place, _packed(arrays)),
        )

    def comparisons(self) -> list[tuple[int, str, dict[str, np.ndarray]]]:
        """Step, place and arrays of each, in order."""
        rows = self._db.execute("SELECT step, place, arrays FROM comparisons ORDER BY step, stage")
        return [(step, place, _unpacked(blob)) for step, place, blob in rows]

    def qpu_seconds(self) -> float:
        """What the service has reported so far."""
        row = self._db.execute("SELECT COALESCE(SUM(qpu_seconds), 0) FROM requests").fetchone()
        return float(row[0])

    def submissions_since(self, moment: float) -> list[float]:
        """When requests were submitted after `moment`, oldest first."""
        rows = self._db.execute(
            "SELECT submitted FROM requests WHERE submitted > ? ORDER BY submitted", (moment,)
        )
        return [row[0] for row in rows]

    def _arrays(self, query: str, tag: str) -> dict[str, np.ndarray]:
        row = self._db.execute(query, (tag,)).fetchone()
        if row is None or row[0] is None:
            raise HardwareError(f"{self.path}: nothing is kept of request {tag}")
        return _unpacked(row[0])


def _packed(arrays: Mapping[str, np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def _unpacked(blob: bytes) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(blob), allow_pickle=False) as arrays:
        return dict(arrays)
