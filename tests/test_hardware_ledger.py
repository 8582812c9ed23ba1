"""Ledgers that are damaged, lost, or not ledgers: refused in one line, and never replaced."""

from __future__ import annotations

import sqlite3
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from qhdm import errors
from qhdm.cli import main
from qhdm.hardware.folder import JobFolder
from qhdm.hardware.ledger import Ledger
from qhdm.hardware.spec import JobSpec


def read_all(path: Path) -> None:
    ledger = Ledger(path)
    try:
        ledger.fact("tag")
        for entry in ledger.entries():
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
        ledger.intend(f"tag{part}", (0, 0, part), place="p", executions=1, inputs=arrays)
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
        JobFolder.create(JobSpec(run=str(tmp_path / "run"), backend="aer"), name).path
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
