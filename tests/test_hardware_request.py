"""`Run.sample` with `qhdm.Hardware`: a job in the run directory that no second call pays for."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hardware_jobs import JOBS, SPEC, refused
from runtime_server import BACKEND, RuntimeServer

import qhdm
from qhdm import errors
from qhdm.hardware import job_runner
from qhdm.hardware.job_dir import JobDirectory
from qhdm.hardware.report import describe_report

LOCAL = qhdm.Hardware("aer", shots=1024, places=("encoder",))
REQUEST = qhdm.Sampling(classes=["River", 0], num=1, steps=2, engine_steps=1, engine=LOCAL)


@pytest.fixture
def run(tiny_run: Path) -> qhdm.Run:
    return qhdm.Run.open(tiny_run, device="cpu")


def remote(limits: qhdm.Limits | None) -> qhdm.Sampling:
    engine = qhdm.Hardware(
        BACKEND, shots=64, places=("encoder",), packing=1, compile="off", limits=limits
    )
    return replace(REQUEST, engine=engine)


def jobs_of(run: qhdm.Run) -> set[JobDirectory]:
    assert run.path is not None
    return set(JobDirectory.all(run.path))


def test_images_come_in_the_order_of_other_engines_and_are_kept(run: qhdm.Run) -> None:
    known = jobs_of(run)
    images = run.sample(REQUEST)
    exact = run.sample(replace(REQUEST, engine=qhdm.Exact())).astype(int)
    assert images.shape == exact.shape
    assert images.dtype == np.uint8
    same, other = (np.abs(images - e).mean() for e in (exact, exact[::-1]))
    assert 0 < same < other / 2  # shots, but not another image
    (directory,) = jobs_of(run) - known
    before = directory.ledger().path.stat().st_mtime_ns
    assert np.array_equal(run.sample(REQUEST), images)
    # Limits are no part of the request; all else is.
    richer = replace(REQUEST, engine=replace(LOCAL, limits=qhdm.Limits(max_jobs=7)))
    assert np.array_equal(run.sample(richer), images)
    assert directory.ledger().path.stat().st_mtime_ns == before
    for changed in (
        replace(REQUEST, weights="model"),
        replace(REQUEST, engine=replace(LOCAL, shots=512)),
    ):
        known = jobs_of(run)
        run.sample(changed)
        assert len(jobs_of(run) - known) == 1


def test_other_weights_are_refused_and_an_older_job_is_not_compared(run: qhdm.Run) -> None:
    known = jobs_of(run)
    images = run.sample(REQUEST)
    (directory,) = jobs_of(run) - known
    spec = directory.spec()
    service = job_runner.connect(spec)
    cache = job_runner.isa_cache(spec, service.device, directory)

    job = run.job(spec)
    original = next(job.model.parameters()).detach().clone()
    with torch.no_grad():
        next(job.model.parameters()).mul_(1.1)
    with pytest.raises(errors.HardwareError, match="other weights than this job began with"):
        job_runner.run_job(directory, job, service, cache, progress=False)
    with torch.no_grad():
        next(job.model.parameters()).copy_(original)
    report = job_runner.run_job(directory, job, service, cache, progress=False)
    assert report["image_change"] > 0

    # Earlier versions did not keep what a job began with, and started sampling elsewhere.
    with sqlite3.connect(directory.path / "ledger.sqlite") as ledger:
        ledger.execute("DELETE FROM facts WHERE key = 'model'")
    (directory.path / "samples_exact.png").unlink()
    report = job_runner.run_job(directory, job, service, cache, progress=False)
    assert report["image_change"] is None
    assert "begun by an older version" in describe_report(report, directory.path)
    assert not (directory.path / "samples_exact.png").exists()
    assert np.array_equal(run.sample(REQUEST), images)


def test_all_steps_are_the_default(run: qhdm.Run) -> None:
    """And the same request as naming their number."""
    images = run.sample(replace(REQUEST, engine_steps=None))
    known = jobs_of(run)
    assert np.array_equal(run.sample(replace(REQUEST, engine_steps=2)), images)
    assert jobs_of(run) == known


def test_requests_that_no_backend_can_have_are_refused(run: qhdm.Run) -> None:
    known = jobs_of(run)
    with pytest.raises(errors.SamplingError, match="labels"):
        run.sample(REQUEST, labels=[0, 1])
    with pytest.raises(errors.SamplingError, match="hardware_steps"):
        run.sample(replace(REQUEST, engine_steps=3))
    with pytest.raises(errors.ConfigError, match="shots"):
        run.sample(replace(REQUEST, engine=replace(LOCAL, shots=0)))
    with pytest.raises(errors.SamplingError, match="engine"):
        qhdm.Run(run.model, run.config, device=run.device).sample(REQUEST)
    with pytest.raises(errors.EngineError, match="aer, 1024 shots"):
        run.with_engine(LOCAL)
    with refused(errors.BudgetError, "limit", match="max_qpu_seconds"):
        tight = qhdm.Limits(max_qpu_seconds=1)
        run.sample(replace(REQUEST, seed=5, engine=replace(LOCAL, limits=tight)))
    assert jobs_of(run) == known


@pytest.mark.slow
def test_nothing_is_sent_without_limits_nor_twice(server: RuntimeServer, run: qhdm.Run) -> None:
    known = jobs_of(run)
    with refused(errors.BudgetError, "limit", match="max_qpu_seconds"):
        run.sample(remote(None))
    assert not server.requests
    assert jobs_of(run) == known

    limits = qhdm.Limits(**{"max_qpu_seconds": 60, **SPEC["limits"]})
    server.fates = [None, "failed"]
    with refused(errors.RuntimeJobError, "failed"):
        run.sample(remote(limits))
    (directory,) = jobs_of(run) - known
    assert not directory.is_done()
    server.held = True
    with refused(errors.BudgetError, "queue"):
        run.sample(remote(replace(limits, max_wait_seconds=0.01)))
    server.held = False
    assert len(server.jobs) == JOBS + 1  # the one that failed, again
    server.execute(list(server.jobs.values())[-1])
    images = run.sample(remote(limits))
    requests = len(server.requests)
    assert np.array_equal(run.sample(remote(None)), images)  # it is there: no limits are needed
    assert (len(server.jobs), len(server.requests)) == (JOBS + 1, requests)
    assert jobs_of(run) - known == {directory}
