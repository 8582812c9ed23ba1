"""Ledgers that are damaged, lost, or not ledgers: refused in one line, and never replaced."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from qhdm import errors
from qhdm.cli import main
from qhdm.hardware.job_dir import JobDirectory
from qhdm.hardware.ledger import Ledger
from qhdm.hardware.spec import JobSpec


def read_all(path: Path) -> None:
    ledger = Ledger(path)
    try:
        ledger.fact("tag")
        for entry in ledger.requests():
            ledger.inputs(entry.tag)
            ledger.result(entry.tag)
        ledger.last_state()
        ledger.comparisons()
    finally:
        ledger.close()


def test_damaged_ledgers_are_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    ledger = Ledger(path, create=True)
    arrays = {"values": np.random.default_rng(0).normal(size=2000)}
    for part in range(3):
        ledger.add(f"tag{part}", (0, 0, part), place="p", shapes=[], seconds=2, inputs=arrays)
        ledger.done(f"tag{part}", arrays, qpu_seconds=1.0)
    ledger.save_state(1, arrays)
    ledger.compare(0, 0, "p", arrays)
    ledger.close()
    read_all(path)
    good = path.read_bytes()
    random = np.random.default_rng(1)
    refused = 0
    for number in range(300):
        bad = bytearray(good)
        if number % 3:
            bad[random.integers(len(bad))] ^= 1 << random.integers(8)
        else:
            del bad[random.integers(len(bad)) :]
        path.write_bytes(bad)
        with suppress(errors.HardwareError):
            read_all(path)
            continue
        refused += 1
        with pytest.raises(errors.HardwareError, match=f"^{path}: .*$"):
            read_all(path)
    # Some bits are of no page in use, or of a number that no check can tell from another.
    assert refused > 250


def test_one_damaged_ledger_does_not_hide_the_other_jobs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").touch()
    names = [
        JobDirectory.create(JobSpec(run=str(tmp_path / "run"), backend="aer"), name).path
        for name in ("first", "second", "third")
    ]
    with sqlite3.connect(names[0] / "ledger.sqlite") as database:
        database.execute("DELETE FROM facts")
    (names[1] / "ledger.sqlite").unlink()
    assert main(["jobs", "--runs", str(tmp_path), "list"]) != 0
    shown, error = capsys.readouterr()
    assert [line.split()[1:3] for line in shown.splitlines()[1:]] == [
        ["-", "unreadable"], ["-", "unreadable"], ["aer", "new"]
    ]  # fmt: skip
    assert error.count("\n") == 1
    assert "does not say whose it is" in error


def test_a_lost_ledger_is_not_replaced_by_an_empty_one(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    for content, words in ((None, "missing"), (b"", "empty"), (b"no database" * 99, "not a data")):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(errors.HardwareError, match=words):
            Ledger(path)
    path.unlink()
    with pytest.raises(errors.HardwareError, match="missing"):
        Ledger(path)
    assert not path.exists()


#: Of the first version, with a write-ahead log.
FIRST_SCHEMA = """
    PRAGMA journal_mode=WAL;
    CREATE TABLE facts (key TEXT PRIMARY KEY, value TEXT NOT NULL);
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
    );
    CREATE TABLE comparisons (
        step INTEGER NOT NULL, stage INTEGER NOT NULL, place TEXT NOT NULL, arrays BLOB NOT NULL,
        PRIMARY KEY (step, stage)
    );
    CREATE TABLE states (step INTEGER PRIMARY KEY, state BLOB NOT NULL);
    INSERT INTO facts VALUES ('tag', '"qhdm-1"'), ('state', '"running"');
    INSERT INTO requests VALUES
        ('qhdm-1-0-0-0-ab', 0, 0, 0, 'p', 10000, 'done', 'job', 1, 2, 3, 4.0, x'00', NULL),
        ('qhdm-1-0-1-0-cd', 0, 1, 0, 'p', 10000, 'submitted', 'job2', 1, 2, 3, NULL, x'00', NULL);
"""


def test_a_ledger_of_the_first_version_is_read_and_becomes_one_file(tmp_path: Path) -> None:
    """Left by a kill: all of it is in the log."""
    living = sqlite3.connect(tmp_path / "living")
    living.executescript(FIRST_SCHEMA)
    path = tmp_path / "ledger.sqlite"
    for end in ("", "-wal"):
        shutil.copy(tmp_path / f"living{end}", f"{path}{end}")
    living.close()
    for _ in range(2):
        ledger = Ledger(path)
        assert [entry.state for entry in ledger.requests()] == ["done", "submitted"]
        assert ledger.qpu_seconds() == 4
        # IBM's formula for what is not known.
        assert ledger.unreported_seconds() == pytest.approx(2 + 0.00035 * 10_000)
        assert ledger.requests()[0].shapes is None
        assert ledger.surplus() == []
        ledger.set_fact("state", "done")
        ledger.close()
        assert [file.name for file in tmp_path.glob("ledger*")] == ["ledger.sqlite"]


def test_a_ledger_is_one_file_at_every_moment(tmp_path: Path) -> None:
    path, copy = tmp_path / "ledger.sqlite", tmp_path / "copy.sqlite"
    ledger = Ledger(path, create=True)
    arrays = {"0": np.zeros((1, 2))}
    for part in range(3):
        tag = f"tag{part}"
        ledger.add(tag, (0, 0, part), place="p", shapes=[(1, 8, 2)], seconds=2, inputs=arrays)
        ledger.submitted(tag, f"job{part}")
        ledger.add_surplus(f"more{part}", tag, expected_seconds=2)
        shutil.copy(path, copy)
        other = Ledger(copy)
        assert other.requests() == ledger.requests()
        assert other.requests()[part].shapes == ((1, 8, 2),)
        assert other.surplus() == ledger.surplus()
        assert other.unreported_seconds() == 4 * (part + 1)
        other.close()
    ledger.close()
