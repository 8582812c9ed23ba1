"""Sampling jobs through the real client of IBM's service, over HTTP, against tests/runtime_server.

Nothing of the client is patched: environment variables send it to 127.0.0.1, and the tests refuse
to run unless all of them do.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from runtime_server import (
    BACKEND,
    CRN,
    TOKEN,
    VARIABLES,
    RuntimeServer,
    environment,
    refuse_unless_loopback,
)

from qhdm import errors
from qhdm.cli import main
from qhdm.hardware import submission, work
from qhdm.hardware.folder import JobFolder
from qhdm.hardware.runtime import RuntimeService
from qhdm.hardware.sampling import Task
from qhdm.hardware.spec import JobSpec, load_spec

SPEC = {
    "backend": BACKEND,
    "classes": ["Forest"],
    "steps": 2,
    "hardware_steps": 1,
    "places": ["encoder"],
    "shots": 64,
    "packing": 1,
    "limits": {"jobs_per_minute": 100_000},
}
JOBS = 2


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[RuntimeServer]:
    server = RuntimeServer()
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    for name, value in environment(server.port).items():
        monkeypatch.setenv(name, value)
    refuse_unless_loopback(os.environ)
    factory = logging.getLogRecordFactory()
    yield server
    logging.setLogRecordFactory(factory)
    server.shutdown()
    server.server_close()


@pytest.fixture
def spec(tiny_run: Path, tmp_path: Path) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump({"run": str(tiny_run), **SPEC}))
    return path


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits that are seconds for the real service."""
    monkeypatch.setattr(submission, "_FIRST_WAIT", 0.02)
    monkeypatch.setattr(submission, "SETTLE_SECONDS", 0.2)


Submit = Callable[..., JobFolder]


@pytest.fixture
def submit(server: RuntimeServer, spec: Path, tiny_run: Path) -> Submit:
    """Submit through the command line's functions; the folder of the new job."""

    def run(*settings: str, code: int = 0) -> JobFolder:
        known = set(JobFolder.all(tiny_run))
        sets = [part for setting in settings for part in ("--set", setting)]
        assert main(["submit", str(spec), "--yes", *sets]) == code
        (folder,) = set(JobFolder.all(tiny_run)) - known
        return folder

    return run


def jobs(tiny_run: Path, *words: object) -> int:
    return main(["jobs", "--runs", str(tiny_run), *map(str, words)])


def images(folder: JobFolder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder.path / "images").rglob("*.png")}


def states(folder: JobFolder) -> list[str]:
    ledger = folder.ledger()
    found = [entry.state for entry in ledger.entries()]
    ledger.close()
    return found


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """What was said on stderr: one line of an error, and the progress bar before it."""
    text = capsys.readouterr().err
    assert "Traceback" not in text
    assert TOKEN not in text
    lines = [line for line in text.splitlines() if line.startswith("qhdm:")]
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize("name", VARIABLES)
def test_no_test_talks_to_the_real_service(name: str) -> None:
    variables = environment(1)
    refuse_unless_loopback(variables)
    with pytest.raises(RuntimeError, match=name):
        refuse_unless_loopback({**variables, name: "https://quantum.cloud.ibm.com/api/v1"})
    del variables[name]
    with pytest.raises(RuntimeError, match=name):
        refuse_unless_loopback(variables)


def test_a_job_from_submission_to_report(
    server: RuntimeServer, submit: Submit, tiny_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = submit()
    assert len(server.jobs) == JOBS
    assert states(folder) == ["done"] * JOBS
    for job in server.jobs.values():
        assert len(job.tags) == 2
        assert job.max_seconds is not None
    report = json.loads((folder.path / "report.json").read_text())
    assert report["qpu_seconds"] == 1.5 * JOBS
    assert [job["id"] for job in report["jobs"]] == list(server.jobs)
    # The server has no noise: what is left is that of shots.
    assert 0.5 * report["shot_noise"] < report["error"]["rms"] < 1.5 * report["shot_noise"]
    assert len(report["error_per_qubit"]) == 12
    for name in ("samples.png", "samples_exact.png", "report.png"):
        assert (folder.path / name).stat().st_size > 0
    assert len(images(folder)) == 1
    assert sum(r.endswith("/jobs") and r.startswith("POST") for r in server.requests) == JOBS

    capsys.readouterr()
    assert jobs(tiny_run, "list") == 0
    assert folder.name in capsys.readouterr().out
    assert jobs(tiny_run, "status", folder.name) == 0
    assert "done" in capsys.readouterr().out
    # Resuming what is done sends nothing.
    assert jobs(tiny_run, "resume", folder.name) == 0
    assert len(server.jobs) == JOBS


def test_images_are_the_same_each_time(submit: Submit) -> None:
    assert images(submit()) == images(submit())


@pytest.mark.parametrize(("mode", "kind"), [("session", "dedicated"), ("batch", "batch")])
def test_sessions_are_opened_once_and_closed(
    mode: str, kind: str, server: RuntimeServer, submit: Submit
) -> None:
    submit(f"mode={mode}")
    (session,) = server.sessions.values()
    assert session["mode"] == kind
    assert session["state"] == "closed"
    assert {job.session for job in server.jobs.values()} == {session["id"]}


def test_an_expired_session_is_told_and_resumed_in_a_new_one(
    server: RuntimeServer,
    submit: Submit,
    tiny_run: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    server.faults["GET /jobs/job0000/results"] = [None]
    original = server.make_job

    def expiring(payload: dict) -> object:
        server.sessions[payload["session_id"]] |= {"state": "closed"}
        server.make_job = original
        return original(payload)

    server.make_job = expiring
    folder = submit("mode=session", code=errors.SessionExpiredError.exit_code)
    assert "session" in one_line(capsys)
    assert jobs(tiny_run, "resume", folder.name) == 0
    assert len(server.sessions) == 2
    assert len(server.jobs) == JOBS


def test_results_are_fetched_by_a_second_process(
    server: RuntimeServer, submit: Submit, tiny_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.held = True
    folder = submit("limits.max_wait_seconds=0.3", code=errors.QueueError.exit_code)
    assert "queue" in one_line(capsys)
    assert states(folder) == ["submitted"]
    assert jobs(tiny_run, "status", folder.name) == 0
    assert "queued" in capsys.readouterr().out
    server.held = False
    (job,) = server.jobs.values()
    server.execute(job)
    done = subprocess.run(
        [sys.executable, "-m", "qhdm", "jobs", "fetch", str(folder.path)],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "1 results fetched, 0 pending" in done.stdout
    assert states(folder) == ["done"]
    assert jobs(tiny_run, "resume", folder.name) == 0
    assert len(server.jobs) == JOBS


def test_cancelling(
    server: RuntimeServer, submit: Submit, tiny_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.held = True
    folder = submit("limits.max_wait_seconds=0.3", code=errors.QueueError.exit_code)
    assert jobs(tiny_run, "cancel", folder.name) == 0
    (job,) = server.jobs.values()
    assert job.status == "Cancelled"
    assert states(folder) == ["failed"]
    assert "1 pending" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("fate", "kind"),
    [
        ("failed", errors.JobFailedError),
        ("cancelled", errors.JobCancelledError),
        ("too long", errors.JobTooLongError),
        ("lost", errors.ResultLostError),
    ],
)
def test_a_job_without_result_is_told_and_sent_again_on_resuming(
    fate: str,
    kind: type[errors.HardwareError],
    server: RuntimeServer,
    submit: Submit,
    tiny_run: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    server.fates = [None, fate]
    folder = submit(code=kind.exit_code)
    line = one_line(capsys)
    assert "job0001" in line
    assert "resume" in line
    if fate == "failed":
        assert "a qubit is broken" in line
    assert states(folder) == ["done", "failed"]
    assert jobs(tiny_run, "resume", folder.name) == 0
    assert len(server.jobs) == JOBS + 1  # the one that failed, again


@pytest.mark.parametrize(
    "faults",
    [
        {"POST /jobs": ["drop"]},  # the job exists, its answer is lost
        {"POST /jobs": ["refuse"]},  # the job was never made
        {"POST /jobs": [429, 429]},  # the client does not repeat these
        {"GET /jobs/job0000/results": ["drop"]},
        {"GET /jobs/job0001": ["drop", "drop"]},
        {"GET /jobs/job0000/metrics": [429]},
    ],
)
def test_faults_that_pass_are_survived(
    faults: dict[str, list], server: RuntimeServer, submit: Submit
) -> None:
    server.faults = faults
    submit()
    assert len(server.jobs) == JOBS
    assert not any(server.faults.values())


@pytest.mark.parametrize(
    ("prepare", "code", "words"),
    [
        (lambda s: s.faults.update({"POST /jobs": [429] * 99}), 15, "429"),
        (lambda s: setattr(s, "status", "maintenance"), 14, "maintenance"),
        (lambda s: setattr(s, "status", "off"), 14, "takes no jobs"),
        (lambda s: setattr(s, "backends", ["ibm_other"]), 13, "no such backend"),
        (lambda s: setattr(s, "usage_limit_reached", True), 20, "no QPU time left"),
        (lambda s: s.faults.update({"POST /identity/token": [503] * 99}), 16, "503"),
    ],
)
def test_faults_that_stay_are_one_line(
    prepare: Callable[[RuntimeServer], object],
    code: int,
    words: str,
    server: RuntimeServer,
    spec: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    prepare(server)
    assert main(["submit", str(spec), "--yes"]) == code
    assert words in one_line(capsys)
    assert not server.jobs


def test_usage_that_runs_out_in_between(
    server: RuntimeServer, submit: Submit, tiny_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    original = server.make_job

    def last(payload: dict) -> object:
        server.usage_limit_reached = True
        return original(payload)

    server.make_job = last
    folder = submit(code=errors.UsageLimitError.exit_code)
    assert "QPU time" in one_line(capsys)
    assert states(folder) == ["done", "intent"]
    server.usage_limit_reached = False
    server.make_job = original
    assert jobs(tiny_run, "resume", folder.name) == 0
    assert len(server.jobs) == JOBS


def test_wrong_accounts(
    server: RuntimeServer,
    spec: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("QISKIT_IBM_TOKEN", "another-token-0815")
    assert main(["submit", str(spec), "--yes"]) == errors.AccountError.exit_code
    line = one_line(capsys)
    assert "token is refused" in line
    assert "another-token-0815" not in line

    monkeypatch.setenv("QISKIT_IBM_TOKEN", TOKEN)
    for instance in (CRN.replace("instance", "other"), "no-such-name"):
        monkeypatch.setenv("QISKIT_IBM_INSTANCE", instance)
        assert main(["submit", str(spec), "--yes"]) == errors.InstanceError.exit_code
        assert "no such instance" in one_line(capsys)


def test_an_unreachable_service_is_not_a_bad_token(
    server: RuntimeServer, spec: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.shutdown()
    server.server_close()
    assert main(["submit", str(spec), "--yes"]) == errors.NetworkError.exit_code
    assert "cannot be reached" in one_line(capsys)


def test_the_token_is_nowhere(
    server: RuntimeServer, spec: Path, tiny_run: Path, tmp_path: Path
) -> None:
    """Not in outputs, files or the most talkative logs, of runs that work and that fail."""
    server.fates = [None, "failed"]
    home = tmp_path / "home"
    home.mkdir()
    log = tmp_path / "client.log"
    program = (
        "import logging, sys; logging.basicConfig(level=logging.DEBUG, stream=sys.stderr); "
        "from qhdm.cli import main; sys.exit(main(sys.argv[1:]))"
    )

    def run(*words: object, **variables: str) -> subprocess.CompletedProcess[str]:
        settings = {
            **os.environ,
            "HOME": str(home),
            "QISKIT_IBM_RUNTIME_LOG_LEVEL": "DEBUG",
            "QISKIT_IBM_RUNTIME_LOG_FILE": str(log),
            **variables,
        }
        return subprocess.run(
            [sys.executable, "-c", program, *map(str, words)],
            capture_output=True, text=True, env=settings, timeout=120,
        )  # fmt: skip

    known = set(JobFolder.all(tiny_run))
    failing = run("submit", spec, "--yes")
    assert failing.returncode == errors.JobFailedError.exit_code, failing.stderr[-2000:]
    refused = run("submit", spec, "--yes", QISKIT_IBM_TOKEN="wrong-token-1234")
    missing = run("submit", spec, "--yes", QISKIT_IBM_TOKEN="")
    assert refused.returncode == missing.returncode == errors.AccountError.exit_code
    assert "no IBM Quantum account" in missing.stderr
    (folder,) = set(JobFolder.all(tiny_run)) - known
    files = [path for path in (*folder.path.rglob("*"), log) if path.is_file()]
    texts = [path.read_bytes() for path in files]
    texts += [(r.stdout + r.stderr).encode() for r in (failing, refused, missing)]
    assert len(b"".join(texts)) > 10_000
    for text in texts:
        assert TOKEN.encode() not in text
        assert b"wrong-token-1234" not in text


def test_a_long_list_of_jobs_comes_in_pages(server: RuntimeServer, tiny_run: Path) -> None:
    server.page, server.held = 3, True
    service = RuntimeService(JobSpec(run=str(tiny_run), backend=BACKEND))
    for _ in range(7):
        server.make_job({"params": {}, "tags": ["mine"]})
    server.make_job({"params": {}, "tags": ["other"]})
    assert service.find("mine") == [f"job{i:04d}" for i in range(7)]
    assert service.find("other") == ["job0007"]
    assert service.find("none") == []


def test_budgets_stop_and_resume(
    server: RuntimeServer, submit: Submit, spec: Path, tiny_run: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    code = errors.BudgetError.exit_code
    assert main(["submit", str(spec), "--yes", "--set", "limits.max_qpu_seconds=1"]) == code
    assert "max_qpu_seconds" in one_line(capsys)
    assert main(["submit", str(spec), "--yes", "--set", "limits.max_jobs=1"]) == code
    assert "max_jobs" in one_line(capsys)
    assert not server.jobs
    # Nobody answers the question when there is no --yes.
    assert main(["submit", str(spec)]) == code
    assert "--yes" in one_line(capsys)

    # The estimate was within the limit, what was used is not.
    loaded = load_spec(spec, ["limits.max_jobs=2"])
    folder = JobFolder.create(loaded, "budget")
    ledger = folder.ledger()
    ledger.intend("earlier", (9, 0, 0), place="x", executions=1, inputs={})
    ledger.failed("earlier", qpu_seconds=1.0)
    ledger.close()
    service = work.connect(loaded)
    cache = work.isa_cache(loaded, service.device, folder)
    with pytest.raises(errors.BudgetError, match="max_jobs"):
        work.work(folder, Task.load(loaded), service, cache, progress=False)
    assert len(server.jobs) == 1
    assert jobs(tiny_run, "resume", folder.name, "--set", "limits.max_jobs=9") == 0
    assert len(server.jobs) == JOBS
    assert jobs(tiny_run, "resume", folder.name, "--set", "shots=9") == errors.ConfigError.exit_code


def test_jobs_a_minute_are_kept_to(
    server: RuntimeServer, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    real = submission.time.sleep
    monkeypatch.setattr(submission.time, "sleep", lambda s: pauses.append(s) if s > 20 else real(s))
    submit("limits.jobs_per_minute=1")
    assert len(pauses) == JOBS - 1
    assert 40 < pauses[0] <= 60


def test_a_second_process_is_kept_out(
    server: RuntimeServer, submit: Submit, tiny_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = submit()
    with folder.locked():
        assert jobs(tiny_run, "resume", folder.name) == errors.HardwareError.exit_code
    assert "another process" in one_line(capsys)


def test_twirling_and_readout_mitigation(server: RuntimeServer, submit: Submit) -> None:
    folder = submit("resilience_level=1", "twirling.gates=true", "shots=128")
    report = json.loads((folder.path / "report.json").read_text())
    assert report["error"]["rms"] < 1.5 * report["shot_noise"]
    params = next(iter(server.jobs.values())).params
    assert {item["item_type"] for item in params["quantum_program"]["items"]} == {"samplex"}


def test_dynamical_decoupling(server: RuntimeServer, submit: Submit) -> None:
    folder = submit("dynamical_decoupling=XY4")
    report = json.loads((folder.path / "report.json").read_text())
    assert report["error"]["rms"] < 1.5 * report["shot_noise"]
