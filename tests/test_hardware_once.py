"""Jobs that are paid once: copies of ledgers, surplus jobs, cancelling, the clock, the budget.

Through the real client over HTTP; most with a chain of requests without a model (hardware_jobs).
"""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hardware_jobs import CODES, JOBS, Chain, Submit, images, jobs, opened, refused, states
from runtime_jobs import Job
from runtime_server import OTHER_CRN, RuntimeServer

from qhdm import errors
from qhdm.hardware import job_runner, submission
from qhdm.hardware.patience import pause_after
from qhdm.hardware.runtime import RuntimeService

pytestmark = pytest.mark.slow


def held(server: RuntimeServer, chain: Chain) -> Job:
    """Leave the chain's next job in the queue; returns it."""
    server.held = True
    chain.change("limits.max_wait_seconds=0.01")
    with refused(errors.BudgetError, "queue"):
        chain.run()
    server.held = False
    chain.change("limits.max_wait_seconds=null")
    return list(server.jobs.values())[-1]


@pytest.mark.parametrize(
    "settings", [("shots=64",), ("shots=100", "twirling.gates=true", "mitigation=trex")]
)
def test_every_copy_of_a_ledger_goes_on_without_sending_again(
    settings: tuple[str, ...], server: RuntimeServer, chain: Chain
) -> None:
    """Copies of the one file, of each moment at which the service has one job more, and of none."""
    chain.change(*settings)
    ledger = chain.folder.path / "ledger.sqlite"
    copies = [ledger.read_bytes()]
    original = server.make_job

    def copying(payload: dict) -> Job:
        job = original(payload)
        copies.append(ledger.read_bytes())
        assert not list(ledger.parent.glob("*-wal"))
        return job

    server.make_job = copying
    whole = chain.run()
    assert len(server.jobs) == chain.length
    assert chain.told == []
    for known, copy in enumerate(copies):
        ledger.write_bytes(copy)
        chain.told.clear()
        assert np.array_equal(chain.run(), whole)
        assert len(server.jobs) == chain.length
        assert len(chain.told) == chain.length - known
        assert all("older than the job" in line for line in chain.told)
        assert [entry.qpu_seconds for entry in chain.entries()] == [1.5] * chain.length


def test_jobs_of_an_older_ledger_that_failed_are_sent_again(
    server: RuntimeServer, chain: Chain
) -> None:
    ledger = chain.folder.path / "ledger.sqlite"
    copy = ledger.read_bytes()
    server.fates = [None, "failed"]
    with refused(errors.RuntimeJobError, "failed"):
        chain.run()
    ledger.write_bytes(copy)
    chain.run()
    assert len(server.jobs) == chain.length + 1
    assert sorted(entry.state for entry in chain.entries()) == ["done"] * 3 + ["failed"]


def test_an_older_ledger_of_other_inputs_is_refused(server: RuntimeServer, chain: Chain) -> None:
    ledger = chain.folder.path / "ledger.sqlite"
    copy = ledger.read_bytes()
    chain.run()
    # The first job gives another result now, of which the second knows nothing.
    first, second, _ = server.jobs.values()
    first.result = second.result
    ledger.write_bytes(copy)
    with pytest.raises(errors.HardwareError, match="other inputs"):
        chain.run()
    assert len(server.jobs) == chain.length


def test_an_older_ledger_makes_the_same_images(
    server: RuntimeServer, submit: Submit, tiny_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copies: dict[Path, bytes] = {}
    original = server.make_job

    def copying(payload: dict) -> Job:
        for path in tiny_run.glob("jobs/*/ledger.sqlite"):
            copies.setdefault(path, path.read_bytes())
        return original(payload)

    server.make_job = copying
    folder = submit()
    whole = images(folder)
    ledger = folder.path / "ledger.sqlite"
    ledger.write_bytes(copies[ledger])
    (folder.path / "samples.png").unlink()
    assert jobs(tiny_run, "resume", folder.name) == 0
    assert "older than the job" in capsys.readouterr().err
    assert images(folder) == whole
    assert (folder.path / "samples.png").exists()
    assert len(server.jobs) == JOBS


@pytest.mark.parametrize("lag", [0.0, 0.15])
def test_a_post_that_is_repeated_is_told_and_counted(
    lag: float, server: RuntimeServer, chain: Chain
) -> None:
    server.lag = lag
    server.faults = {"POST /jobs": [("acts", 502), None, None, ("acts", 500)]}
    chain.run()
    assert len(server.jobs) == chain.length + 2
    assert len(chain.told) == 2
    for line in chain.told:
        assert "surplus" in line
        assert "done, 1.5 QPU seconds" in line
    with opened(chain.folder) as ledger:
        assert len(ledger.surplus()) == 2
        assert ledger.qpu_seconds() == 1.5 * (chain.length + 2)
    chain.run()  # which counts nothing twice
    assert len(chain.told) == 2


def test_surplus_jobs_stand_in_the_report(
    server: RuntimeServer, submit: Submit, tiny_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.faults = {"POST /jobs": [("acts", 502)]}
    folder = submit()
    shown, error = capsys.readouterr()
    assert (
        f"QPU seconds used: {1.5 * (JOBS + 1)} in {JOBS + 1} runtime jobs, 1 of them surplus"
        in shown
    )
    assert "surplus, request" in error
    report = json.loads((folder.path / "report.json").read_text())
    assert len(report["jobs"]) == JOBS
    (surplus,) = report["surplus_jobs"]
    assert {surplus["id"], *(job["id"] for job in report["jobs"])} == set(server.jobs)
    assert jobs(tiny_run, "status", folder.name) == 0
    assert f"surplus: {surplus['id']}" in capsys.readouterr().out


@pytest.mark.parametrize("lag", [0.0, 0.15])
def test_a_surplus_job_that_waits_is_cancelled(
    lag: float, server: RuntimeServer, chain: Chain
) -> None:
    server.lag, server.held = lag, True
    server.faults = {"POST /jobs": [("acts", 502)]}

    def go_on() -> None:
        while not any(job.status == "Cancelled" for job in server.jobs.values()):
            time.sleep(0.01)
        server.held = False
        for job in server.jobs.values():
            if job.status == "Queued":
                server.execute(job)

    threading.Thread(target=go_on, daemon=True).start()
    chain.run()
    assert [job.status for job in server.jobs.values()].count("Cancelled") == 1
    (line,) = chain.told
    assert "cancelled, 0.0 QPU seconds" in line


def test_a_surplus_job_that_has_a_result_is_used_rather_than_another(
    server: RuntimeServer, chain: Chain
) -> None:
    """The answered job fails; the other one of the same request has what is wanted."""
    server.faults = {"POST /jobs": [("acts", 502)]}
    server.lag = 3600
    server.fates = [None, "failed"]
    with refused(errors.RuntimeJobError, "failed"):
        chain.run()
    server.lag = 0
    chain.run()
    assert len(server.jobs) == chain.length + 1


def test_a_lost_answer_is_looked_for_as_long_as_the_list_may_lag(
    server: RuntimeServer, chain: Chain
) -> None:
    server.lag = 0.15
    server.faults = {"POST /jobs": ["drop", "empty", "garbled"]}
    chain.run()
    assert len(server.jobs) == chain.length


@pytest.mark.parametrize("stubborn", [False, True])
def test_cancelling_keeps_what_completes(
    stubborn: bool, server: RuntimeServer, chain: Chain
) -> None:
    server.stubborn = stubborn
    job = held(server, chain)
    assert job_runner.cancel(chain.folder, chain.service()) == ((0, 1) if stubborn else (1, 0))
    assert job.status == ("Completed" if stubborn else "Cancelled")
    assert [entry.state for entry in chain.entries()] == ["done" if stubborn else "failed"]
    chain.run()
    assert len(server.jobs) == chain.length + (not stubborn)


def test_cancelling_keeps_what_has_completed(
    server: RuntimeServer, submit: Submit, tiny_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.held = True
    folder = submit("limits.max_wait_seconds=0.01", code=CODES["queue"])
    server.held = False
    (job,) = server.jobs.values()
    server.execute(job)
    capsys.readouterr()
    assert jobs(tiny_run, "cancel", folder.name) == 0
    assert "cancelled, 0 pending at the service; 1 had a result" in capsys.readouterr().out
    assert states(folder) == ["done"]
    assert jobs(tiny_run, "resume", folder.name) == 0
    assert len(server.jobs) == JOBS


def test_cancelling_cancels_what_an_older_ledger_does_not_know(
    server: RuntimeServer, chain: Chain
) -> None:
    ledger = chain.folder.path / "ledger.sqlite"
    copy = ledger.read_bytes()
    job = held(server, chain)
    ledger.write_bytes(copy)
    assert job_runner.cancel(chain.folder, chain.service()) == (0, 0)
    assert job.status == "Cancelled"


def test_jobs_of_another_instance_are_not_taken_for_lost(
    server: RuntimeServer, chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.crns.append(OTHER_CRN)
    held(server, chain)
    job_runner.fetch(chain.folder, chain.service())
    monkeypatch.setenv("QISKIT_IBM_INSTANCE", OTHER_CRN)
    for verb in (job_runner.fetch, job_runner.cancel):
        with refused(errors.AccessError, "instance", match="another instance"):
            verb(chain.folder, chain.service())
    assert [entry.state for entry in chain.entries()] == ["submitted"]


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Pauses of more than a second, which are not waited for."""
    found: list[float] = []
    real = time.sleep
    monkeypatch.setattr(submission.time, "sleep", lambda s: found.append(s) if s > 1 else real(s))
    return found


def set_clock(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + seconds)


@pytest.mark.parametrize("hours", [-1000, -1, 0, 1])
def test_no_pause_is_longer_than_a_minute_whatever_the_clock_says(
    hours: int,
    server: RuntimeServer,
    chain: Chain,
    pauses: list[float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chain.change("limits.jobs_per_minute=1")
    job = held(server, chain)
    server.execute(job)
    set_clock(monkeypatch, 3600 * hours)
    chain.run()
    assert all(40 < pause <= 60 for pause in pauses)
    # Between the first two as well, unless the clock says that a minute has passed.
    assert len(pauses) == (1 if hours > 0 else 2)


def test_a_clock_that_jumps_changes_nothing(
    server: RuntimeServer, chain: Chain, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, jumps = time.time, np.random.default_rng(0)
    server.faults = {"POST /jobs": ["drop", "refuse"], "GET /jobs/job0001/results": [404]}
    server.lag = 0.15
    monkeypatch.setattr(time, "time", lambda: real() + float(jumps.uniform(-3600, 3600)))
    chain.run()
    assert len(server.jobs) == chain.length
    assert pauses == []


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_request_of_a_killed_process_is_looked_for_whatever_the_clock_says(
    hours: int, server: RuntimeServer, chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = RuntimeService.submit

    def killed(self: RuntimeService, *arguments: Any, **options: Any) -> str:
        real(self, *arguments, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RuntimeService, "submit", killed)
        with pytest.raises(KeyboardInterrupt):
            chain.run()
    assert [entry.state for entry in chain.entries()] == ["intent"]
    (job,) = server.jobs.values()
    # Listed only after the next process has looked for the first time.
    server.lag = time.monotonic() - job.made + 0.15
    set_clock(monkeypatch, 3600 * hours)
    chain.run()
    assert len(server.jobs) == chain.length


def test_the_service_may_not_ask_for_any_pause() -> None:
    error = errors.ServiceError("too many", "rate")
    error.retry_after = 1e9
    assert pause_after(0, error) == 600


def test_a_usage_that_is_not_reported_is_not_nothing(server: RuntimeServer, chain: Chain) -> None:
    server.reports_usage = False
    chain.change("limits.max_qpu_seconds=5.5")  # each job is expected to take 2.01
    with refused(errors.BudgetError, "limit", match=r"0\.0 s .*4\.0 s"):
        chain.run()
    assert len(server.jobs) == 2
    with refused(errors.BudgetError, "limit"):
        chain.run()
    server.reports_usage = True  # 1.5 each
    chain.run()
    assert len(server.jobs) == chain.length
    with opened(chain.folder) as ledger:
        assert (ledger.qpu_seconds(), ledger.unreported_seconds()) == (4.5, 0)
