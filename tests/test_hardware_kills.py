"""kill -9 at random moments of a sampling job, and a fault of any request: nothing is sent twice.

Three kills by default; more with, for example, QHDM_KILLS=30 pytest tests/test_hardware_kills.py -s
Five faults by default; all with, for example, QHDM_FAULTS=1000.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from hardware_jobs import Chain
from runtime_server import BACKEND, RuntimeServer, environment, refuse_unless_loopback

from qhdm.hardware.job_dir import JobDirectory

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("QHDM_KILLS", "3"))
FAULTS = int(os.environ.get("QHDM_FAULTS", "5"))
SPEC = {
    "backend": BACKEND,
    "classes": ["Forest"],
    "steps": 4,
    "hardware_steps": 3,
    "places": ["encoder"],
    "shots": 64,
    "packing": 1,
    "limits": {"jobs_per_minute": 100_000, "settle_seconds": 1},
}
STAGES = 2


def start(server: RuntimeServer, home: Path, *arguments: object) -> subprocess.Popen[str]:
    variables = {**os.environ, **environment(server.port), "HOME": str(home)}
    refuse_unless_loopback(variables)
    return subprocess.Popen(
        [sys.executable, "-m", "qhdm", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=home,
        env=variables,
    )


def finish(process: subprocess.Popen[str]) -> None:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output


def images(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "images").rglob("*.png")}


def killed(process: subprocess.Popen[str], server: RuntimeServer, moment: random.Random) -> bool:
    """Kill the process at a random moment; False if it had ended before."""
    # From the first request to the last; now and then while it is still importing.
    wanted = len(server.requests) + moment.choice([0, *range(1, 60)])
    while len(server.requests) < wanted and process.poll() is None:
        time.sleep(0.002)
    time.sleep(moment.uniform(0, 0.2))
    if process.poll() is not None:
        return False
    process.send_signal(signal.SIGKILL)
    process.wait()
    return True


def test_killed_clients_lose_nothing_and_send_nothing_twice(
    server: RuntimeServer, tiny_run: Path, tmp_path: Path
) -> None:
    spec = tmp_path / "killed.yaml"
    spec.write_text(yaml.safe_dump({"run": str(tiny_run), **SPEC}))
    jobs = tiny_run / "jobs"

    finish(start(server, tmp_path, "submit", spec, "--yes"))
    (whole,) = jobs.glob("killed-*")
    without_kills = len(server.jobs)
    assert without_kills == SPEC["hardware_steps"] * STAGES

    moment = random.Random(0)
    kills = made = 0
    while kills < KILLS:
        known = set(jobs.iterdir())
        before = len(server.jobs)
        process = start(server, tmp_path, "submit", spec, "--yes")
        while kills < KILLS and killed(process, server, moment):
            kills += 1
            new = [f for f in set(jobs.iterdir()) - known if (f / "job.yaml").exists()]
            again = ("jobs", "resume", new[0]) if new else ("submit", spec, "--yes")
            process = start(server, tmp_path, *again)
        finish(process)
        (folder,) = [f for f in set(jobs.iterdir()) - known if (f / "job.yaml").exists()]
        made += 1
        assert images(folder) == images(whole)
        assert len(server.jobs) - before == without_kills
        print(f"{kills} kills, {made} sampling jobs: the same images, {without_kills} jobs each")
    tags = [job.tags[0] for job in server.jobs.values()]
    assert len(set(tags)) == len(tags)


def test_any_request_may_fail_once(server: RuntimeServer, chain: Chain) -> None:
    """Of a login, and of a chain of jobs."""
    spec, whole = chain.spec, chain.run()
    requests = [request for request in server.requests if request != "POST /identity/token"]
    login = requests.index("GET /jobs")
    cases = [
        (number, fault)
        for number in range(len(requests))
        for fault in (429, 500, 503, "refuse", "drop", "empty", "garbled", 401)
        # There it is what it says.
        if fault != 401 or number >= login
    ]
    cases = random.Random(0).sample(cases, min(FAULTS, len(cases)))
    for number, fault in cases:
        chain.folder = JobDirectory.create(spec, "fault")
        before = len(server.jobs)
        server.faults = {"*": [None] * number + [fault]}
        assert np.array_equal(chain.run(), whole), (requests[number], fault)
        assert len(server.jobs) - before == chain.length, (requests[number], fault)
        assert not server.faults["*"]
    print(f"{len(cases)} faults of {len(requests)} requests: the same results, 3 jobs each")
