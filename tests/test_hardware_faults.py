"""Faults of the service, the account, the disk and the user: one line, an exit code, nothing lost.

Through the real client over HTTP, as in test_hardware_service.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hardware_jobs import (
    CODES,
    JOBS,
    Chain,
    Submit,
    images,
    jobs,
    one_line,
    opened,
    refused,
    states,
)
from runtime_jobs import WRONG
from runtime_server import CRN, TOKEN, RuntimeServer

from qhdm import errors
from qhdm.cli import main
from qhdm.hardware import job_runner
from qhdm.hardware.job_dir import JobDirectory
from qhdm.hardware.ledger import Ledger

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("fate", "code"), [("failed", 17), ("cancelled", 18), ("too long", 19), ("lost", 21)]
)
def test_a_job_without_result_is_told_and_sent_again_on_resuming(
    fate: str,
    code: int,
    server: RuntimeServer,
    submit: Submit,
    tiny_run: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    server.fates = [None, fate]
    folder = submit(code=code)
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
        {"POST /jobs": ["empty", "garbled"]},
        {"POST /jobs": ["refuse"]},  # the job was never made
        {"POST /jobs": [429, 429]},  # the client does not repeat these
        {"POST /jobs": [401]},  # the token was revoked on the way
        {"GET /jobs": ["empty", "garbled", 429, 401]},
        {"GET /jobs/job0000": ["empty", "garbled", 404, 401]},
        {"GET /jobs/job0001": ["drop", "drop"]},
        {"GET /jobs/job0000/results": ["drop"]},
        {"GET /jobs/job0000/results": [404], "GET /jobs/job0001/results": [204]},
        {"GET /jobs/job0000/results": ["empty"], "GET /jobs/job0001/results": ["garbled"]},
        {"GET /jobs/job0000/results": [503, 401]},
        {"GET /jobs/job0000/metrics": [429, 404, "garbled", 401]},
        {"GET /instances/usage": [401]},
    ],
)
def test_faults_that_pass_are_survived(
    faults: dict[str, list], server: RuntimeServer, chain: Chain
) -> None:
    server.faults = faults
    chain.run()
    assert len(server.jobs) == chain.length
    assert not any(server.faults.values())
    assert chain.told == []


@pytest.mark.parametrize("fault", [500, 503, 429, "drop", "empty", "garbled"])
def test_a_login_that_fails_once_is_tried_again(
    fault: int | str, server: RuntimeServer, chain: Chain
) -> None:
    for what, before in (("POST /identity/token", 0), ("GET /plan", 0), ("GET /backends", 1)):
        server.faults = {what: [None] * before + [fault]}
        chain.service().check()
        assert not any(server.faults.values())


def test_a_token_that_is_revoked_is_asked_for_again(server: RuntimeServer, chain: Chain) -> None:
    original = server.make_job

    def revoking(payload: dict) -> object:
        job = original(payload)
        server.revoke()
        return job

    server.make_job = revoking
    chain.run()
    assert len(server.jobs) == chain.length
    assert server.requests.count("POST /identity/token") > chain.length
    server.faults = {"POST /jobs": [401] * 9}
    chain.length += 1
    with refused(errors.AccessError, "account", match="refused"):
        chain.run()
    assert len(server.jobs) == chain.length - 1
    server.faults.clear()
    chain.run()
    assert len(server.jobs) == chain.length


@pytest.mark.parametrize("wrong", [*WRONG, "nonsense"])
def test_a_result_that_is_not_what_was_asked_for_is_not_taken(
    wrong: str, server: RuntimeServer, chain: Chain
) -> None:
    server.fates = [None, wrong]
    with refused(errors.RuntimeJobError, "lost", match=r"job0001: .*resume"):
        chain.run()
    assert [entry.state for entry in chain.entries()] == ["done", "failed"]
    assert server.requests.count("GET /jobs/job0001/results") > 1
    chain.run()
    assert len(server.jobs) == chain.length + 1


def test_a_wrong_result_is_not_fetched_and_does_not_keep_others_back(
    server: RuntimeServer, chain: Chain
) -> None:
    with chain.submitter() as submitter:
        server.fates = ["half the shots", None]
        for part in range(2):
            submitter.send((0, 0, part), "encoder", chain.request(np.zeros((2, 2))))
    for job in server.jobs.values():
        assert job.done.wait(10)
    with refused(errors.RuntimeJobError, "lost", match=r"job0000: .*32 shots.*not 2 of 64"):
        job_runner.fetch(chain.folder, chain.service())
    assert [entry.state for entry in chain.entries()] == ["failed", "done"]


def test_a_result_of_an_earlier_version_is_checked_as_it_is_read(
    server: RuntimeServer, chain: Chain
) -> None:
    """Which stored whatever came, knew no shapes, and left it to the client to take more shots."""
    whole = chain.run()
    with opened(chain.folder) as ledger:
        ledger._execute("UPDATE requests SET shapes = NULL")
        tag = ledger.requests()[0].tag
        own = ledger.result(tag)
        for key, change in (("0", lambda a: a[:, 1:]), ("shots 0", lambda a: a // 2)):
            ledger.done(tag, {**own, key: change(own[key])}, qpu_seconds=1.5)
            with refused(errors.RuntimeJobError, "lost", match=r"circuit 0 has .* not 2 of 64"):
                chain.run()
            assert [entry.state for entry in chain.entries()] == ["failed", "done", "done"]
        ledger.done(tag, {**own, "shots 0": own["shots 0"] * 2}, qpu_seconds=1.5)
    assert np.array_equal(chain.run(), whole)
    assert len(server.jobs) == chain.length


@pytest.mark.parametrize("verb", [None, job_runner.fetch, job_runner.cancel])
def test_a_pending_job_that_is_gone_is_sent_again(
    verb: Callable | None,
    server: RuntimeServer,
    chain: Chain,
    capsys: pytest.CaptureFixture[str],
) -> None:
    server.held = True
    chain.change("limits.max_wait_seconds=0.01")
    with refused(errors.BudgetError, "queue"):
        chain.run()
    server.held = False
    (job,) = server.jobs.values()
    server.forget(job)
    assert jobs(chain.folder.path.parents[1], "status", chain.folder.path) == 0
    assert "submitted (the service does not have it)" in capsys.readouterr().out
    if verb is job_runner.cancel:
        assert job_runner.cancel(chain.folder, chain.service()) == (1, 0)
    else:
        with refused(errors.RuntimeJobError, "lost", match=r"job0000.*resume"):
            chain.run() if verb is None else verb(chain.folder, chain.service())
    assert [entry.state for entry in chain.entries()] == ["failed"]
    chain.run()
    assert len(server.jobs) == 1 + chain.length


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
    folder = submit(code=CODES["usage"])
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
    assert main(["submit", str(spec), "--yes"]) == CODES["account"]
    line = one_line(capsys)
    assert "token is refused" in line
    assert "another-token-0815" not in line

    monkeypatch.setenv("QISKIT_IBM_TOKEN", TOKEN)
    for instance in (CRN.replace("instance", "other"), "no-such-name"):
        monkeypatch.setenv("QISKIT_IBM_INSTANCE", instance)
        assert main(["submit", str(spec), "--yes"]) == CODES["instance"]
        assert "no such instance" in one_line(capsys)


def test_an_unreachable_service_is_not_a_bad_token(
    server: RuntimeServer, spec: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.shutdown()
    server.server_close()
    assert main(["submit", str(spec), "--yes"]) == CODES["network"]
    assert "cannot be reached" in one_line(capsys)


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
    folder = submit("mode=session", code=CODES["session"])
    assert "session" in one_line(capsys)
    assert jobs(tiny_run, "resume", folder.name) == 0
    assert len(server.sessions) == 2
    assert len(server.jobs) == JOBS


def test_a_second_process_is_kept_out(
    server: RuntimeServer, submit: Submit, tiny_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = submit()
    with folder.locked():
        assert jobs(tiny_run, "resume", folder.name) == CODES["other"]
    assert "another process" in one_line(capsys)


def test_a_refused_process_changes_nothing(submit: Submit, tiny_run: Path) -> None:
    folder = submit()
    before = (folder.path / "job.yaml").read_bytes()
    with folder.locked():
        assert jobs(tiny_run, "resume", folder.name, "--set", "limits.max_jobs=7") == 3
    assert (folder.path / "job.yaml").read_bytes() == before
    assert jobs(tiny_run, "resume", folder.name, "--set", "limits.max_jobs=7") == 0
    assert folder.spec().limits.max_jobs == 7


@pytest.mark.parametrize("mode", ["session", "batch"])
def test_a_session_is_closed_after_an_error(
    mode: str, server: RuntimeServer, submit: Submit, tiny_run: Path
) -> None:
    server.fates = [None, "failed"]
    folder = submit(f"mode={mode}", code=CODES["failed"])
    assert [session["state"] for session in server.sessions.values()] == ["closed"]
    assert jobs(tiny_run, "resume", folder.name) == 0
    assert [session["state"] for session in server.sessions.values()] == ["closed"] * 2


def test_a_session_that_cannot_be_closed_is_told(
    server: RuntimeServer, submit: Submit, tiny_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.faults = {"PATCH /sessions/session0": [500]}
    server.fates = ["failed"]
    folder = submit("mode=session", code=CODES["failed"])
    told, error = capsys.readouterr().err.split("qhdm: ")[-2:]
    assert "session session0 is open, and may be paid for, until 20" in told
    assert f"qhdm jobs cancel {folder.name}" in told
    assert "a qubit is broken" in error
    assert jobs(tiny_run, "status", folder.name) == 0
    assert "session session0 is open" in capsys.readouterr().out
    assert jobs(tiny_run, "cancel", folder.name) == 0
    assert server.sessions["session0"]["state"] == "closed"
    assert jobs(tiny_run, "status", folder.name) == 0
    assert "is open" not in capsys.readouterr().out


@pytest.mark.parametrize("made", [(), ("ledger.sqlite",), ("empty",)])
def test_a_folder_that_was_stopped_before_its_specification_is_shown(
    made: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run" / "jobs" / "left-20260101-000000"
    path.mkdir(parents=True)
    if made == ("ledger.sqlite",):
        Ledger(path / "ledger.sqlite", create=True).close()
    elif made:
        (path / "ledger.sqlite").touch()
    assert jobs(tmp_path, "list") == 0
    assert [line.split()[:4] for line in capsys.readouterr().out.splitlines()[1:]] == [
        [path.name, "-", "never", "sent"]
    ]
    for verb in ("status", "resume", "cancel", "fetch"):
        assert jobs(tmp_path, verb, path.name) == CODES["other"]
        assert "before anything was sent; remove it" in one_line(capsys)


@pytest.fixture
def small_disk(tmp_path: Path, tiny_run: Path) -> Iterator[Path]:
    """A run on a file system that holds little more."""
    disk = tmp_path / "disk"
    disk.mkdir()
    size = sum(file.stat().st_size for file in tiny_run.rglob("*")) + 4_000_000
    try:
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)]
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("a tmpfs cannot be mounted here")
    shutil.copytree(tiny_run, disk / "run", ignore=shutil.ignore_patterns("jobs"))
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_names_the_way_on(
    server: RuntimeServer, spec: Path, small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Full in the middle of a submission, which is then found; and full for the images."""
    ballast, original = small_disk / "ballast", server.make_job

    def filling(payload: dict) -> object:
        ballast.write_bytes(bytes(shutil.disk_usage(small_disk).free))
        return original(payload)

    server.make_job = filling
    run = small_disk / "run"
    assert main(["submit", str(spec), "--yes", "--set", f"run={run}"]) == 3
    (folder,) = JobDirectory.all(run)
    line = one_line(capsys)
    assert "is full" in line
    assert f"qhdm jobs resume {folder.path}" in line
    ballast.unlink()
    server.make_job = original
    # Nothing can be written there, either.
    (folder.path / "images").touch()
    assert jobs(run, "resume", folder.name) == 3
    line = one_line(capsys)
    assert "images/Forest: Not a directory" in line
    assert f"qhdm jobs resume {folder.name}" in line
    (folder.path / "images").unlink()
    assert jobs(run, "resume", folder.name) == 0
    assert len(images(folder)) == 1
    assert len(server.jobs) == JOBS
