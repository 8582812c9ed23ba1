"""Sampling jobs through the real client of IBM's service, over HTTP, against tests/runtime_server.

Nothing of the client is patched: environment variables send it to 127.0.0.1, and the tests refuse
to run unless all of them do.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hardware_jobs import CODES, JOBS, Submit, images, jobs, one_line, refused, states
from runtime_server import (
    BACKEND,
    TOKEN,
    VARIABLES,
    RuntimeServer,
    environment,
    refuse_unless_loopback,
)

from qhdm import errors
from qhdm.cli import main
from qhdm.hardware import job_runner, submission
from qhdm.hardware.job_dir import JobDirectory
from qhdm.hardware.runtime import RuntimeService
from qhdm.hardware.spec import JobSpec, load_spec
from qhdm.run import Run

pytestmark = pytest.mark.slow


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


def test_results_are_fetched_by_a_second_process(
    server: RuntimeServer, submit: Submit, tiny_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.held = True
    folder = submit("limits.max_wait_seconds=0.3", code=CODES["queue"])
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
    folder = submit("limits.max_wait_seconds=0.3", code=CODES["queue"])
    assert jobs(tiny_run, "cancel", folder.name) == 0
    (job,) = server.jobs.values()
    assert job.status == "Cancelled"
    assert states(folder) == ["failed"]
    assert "1 pending" in capsys.readouterr().out


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

    known = set(JobDirectory.all(tiny_run))
    failing = run("submit", spec, "--yes")
    assert failing.returncode == CODES["failed"], failing.stderr[-2000:]
    refused = run("submit", spec, "--yes", QISKIT_IBM_TOKEN="wrong-token-1234")
    missing = run("submit", spec, "--yes", QISKIT_IBM_TOKEN="")
    assert refused.returncode == missing.returncode == CODES["account"]
    assert "no IBM Quantum account" in missing.stderr
    (folder,) = set(JobDirectory.all(tiny_run)) - known
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
    assert list(service.find("mine")) == [f"job{i:04d}" for i in range(7)]
    assert service.find("other") == {"job0007": ("other",)}
    assert service.find("none") == {}


def test_budgets_stop_and_resume(
    server: RuntimeServer, submit: Submit, spec: Path, tiny_run: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    code = CODES["limit"]
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
    folder = JobDirectory.create(loaded, "budget")
    ledger = folder.ledger()
    ledger.add("earlier", (9, 0, 0), place="x", shapes=[], seconds=2.0, inputs={})
    ledger.failed("earlier", qpu_seconds=1.0)
    ledger.close()
    service = job_runner.connect(loaded)
    cache = job_runner.isa_cache(loaded, service.device, folder)
    with refused(errors.BudgetError, "limit", match="max_jobs"):
        job_runner.run_job(
            folder, Run.open(loaded.run, device="cpu").job(loaded), service, cache, progress=False
        )
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


def test_twirling_and_readout_mitigation(server: RuntimeServer, submit: Submit) -> None:
    folder = submit("mitigation=trex", "twirling.gates=true", "shots=128")
    report = json.loads((folder.path / "report.json").read_text())
    assert report["error"]["rms"] < 1.5 * report["shot_noise"]
    params = next(iter(server.jobs.values())).params
    assert {item["item_type"] for item in params["quantum_program"]["items"]} == {"samplex"}


def test_dynamical_decoupling(server: RuntimeServer, submit: Submit) -> None:
    folder = submit("dynamical_decoupling=XY4")
    report = json.loads((folder.path / "report.json").read_text())
    assert report["error"]["rms"] < 1.5 * report["shot_noise"]
