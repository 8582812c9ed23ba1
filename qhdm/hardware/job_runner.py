"""Running a sampling job in its directory, from the first request to the report."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from qhdm.diffusion.pixels import to_levels
from qhdm.errors import AccessError, BudgetError, HardwareError, Interrupted
from qhdm.hardware.isa import IsaCache
from qhdm.hardware.job_dir import JobDirectory, open_session
from qhdm.hardware.ledger import Ledger
from qhdm.hardware.report import write_images, write_report
from qhdm.hardware.runtime import Device, LocalService, RuntimeService, Service, snapshot
from qhdm.hardware.sampling import SamplingJob
from qhdm.hardware.spec import JobSpec
from qhdm.hardware.submission import Submitter
from qhdm.quantum.options import IDEAL, Hardware
from qhdm.shipped import results_path


def isa_cache(spec: JobSpec, device: Device, directory: JobDirectory | None = None) -> IsaCache:
    """The ISA circuits of a job, in memory or in its directory."""
    return IsaCache(
        None if directory is None else directory.isa,
        device.target,
        device=device.name,
        packing=spec.packing,
        seed=spec.layout_seed,
        # Fewer gates are of no use where none errs.
        compilation="off" if spec.backend == IDEAL else spec.compile,
        shots=spec.executed_shots,
    )


def connect(engine: Hardware, *, new_jobs: bool = True) -> Service:
    """The service of a backend.

    Args:
        engine: names the backend.
        new_jobs: also check that it takes jobs now.

    Raises:
        HardwareError: no account, network, instance or backend, or it takes no jobs.
    """
    if engine.local:
        return LocalService(engine)
    service = RuntimeService(engine)
    if new_jobs:
        service.check()
    return service


def run_job(
    directory: JobDirectory, job: SamplingJob, service: Service, cache: IsaCache, *, progress: bool
) -> dict[str, Any]:
    """Run or resume a job until its images are there; returns the report.

    Raises:
        HardwareError: a runtime job gave no result, a limit is reached, or a file cannot be
            written; what is known stays known.
        Interrupted: the user stopped it.
    """
    with directory.locked(), _ledger(directory, service) as ledger:
        comparable = _begun_with(job, ledger)
        # Limits may have changed. Only under the lock: another process would lose its own.
        directory.write_spec(job.spec)
        try:
            with _session(directory, ledger, service):
                ledger.set_fact("state", "running")
                images = job.sample(ledger, service, cache, progress=progress)
            exact = job.exact_images() if comparable else None
            write_images(job, images, exact, directory.path)
            # Only after the session is closed, which would be paid for meanwhile.
            if service.remembers and not ledger.fact("settled"):
                seconds = job.spec.limits.settle_seconds
                print(f"images are written; {seconds:g} s for a last look for surplus jobs")
            _submitter(directory, ledger, service).finish()
            report = write_report(job, ledger, cache, images, exact, directory.path)
        except KeyboardInterrupt:
            raise Interrupted(
                f"interrupted; nothing is lost; to continue: qhdm jobs resume {directory.name}"
            ) from None
        except OSError as error:
            raise HardwareError(
                f"{error.filename or directory.path}: {error.strerror or error}; nothing is lost: "
                f"make room, or fix it, then: qhdm jobs resume {directory.name}"
            ) from None
        ledger.set_fact("state", "done")
        return report


def _begun_with(job: SamplingJob, ledger: Ledger) -> bool:
    """Whether a job began with these weights, in this version; False of an older version.

    Raises:
        HardwareError: the job was begun with other weights.
    """
    known, own = ledger.fact("model"), job.model_digest
    if known is None and not ledger.requests() and ledger.last_state() is None:
        ledger.set_fact("model", known := own)
    if known not in (None, own):
        raise HardwareError(
            f"{job.spec.run}: has other weights than this job began with ({known}, now {own}); "
            "restore them, or submit a new job"
        )
    return known is not None


def sample_request(job: SamplingJob, *, agreed: bool, progress: bool) -> np.ndarray:
    """The images of a request, as a sampling job in the run's directory.

    The job's id is a digest of the request: it is made, resumed, or its images are read.

    Args:
        job: the request.
        agreed: whether the user has set its limits.
        progress: show a bar on stderr.

    Returns:
        uint8 (N, H, W, C).

    Raises:
        BudgetError: the limits are exceeded, or the user has set none.
        HardwareError, Interrupted: as `run_job`; asking again resumes the job.
    """
    spec = job.spec
    jobs = results_path(spec.run) / "jobs"
    directory = JobDirectory(jobs / f"{spec.backend}-{job.digest}")
    new = directory.never_sent()
    if not new:  # a job that an earlier version began keeps its circuits
        kept = directory.spec()
        spec = replace(spec, compile=kept.compile, fractional_gates=kept.fractional_gates)
        job = replace(job, spec=spec)
    if new or not directory.is_done():
        if not (agreed or spec.local):
            device = snapshot(spec.backend, spec.fractional)
            estimate = job.estimate(device, isa_cache(spec, device))
            raise BudgetError(
                f"limits: {spec.backend} is expected to take {estimate.paid_seconds:,.1f} QPU "
                f"seconds in {estimate.runtime_jobs} runtime jobs ({device.source}); to agree, "
                "give the engine limits=qhdm.Limits(max_qpu_seconds=...)"
            )
        service = connect(spec)
        if new:
            job.estimate(service.device, isa_cache(spec, service.device)).check()
            directory.make(spec)
        run_job(directory, job, service, isa_cache(spec, service.device, directory),
                progress=progress)  # fmt: skip
    ledger = directory.ledger()
    try:
        state = job.last_state(ledger)
    finally:
        ledger.close()
    assert state is not None
    return to_levels(state.x, job.config.data.dtype)


def fetch(directory: JobDirectory, service: Service) -> tuple[int, int]:
    """Fetch results without sending anything; returns how many, and how many are pending."""
    with directory.locked(), _ledger(directory, service) as ledger:
        return _submitter(directory, ledger, service).fetch()


def relayout(directory: JobDirectory, service: Service) -> None:
    """Redo, by the present calibration, the layout of circuits that were not sent yet."""
    with directory.locked(), _ledger(directory, service) as ledger:
        submitter = _submitter(directory, ledger, service)
        submitter.drop_unsent()
        step, stage, _ = max(submitter.sent_positions(), default=(0, -1, 0))
        # Positions before the last that was sent keep their circuits.
        ledger.set_fact("relaid", [*(ledger.fact("relaid") or []), (step, stage + 1)])


def cancel(directory: JobDirectory, service: Service) -> tuple[int, int]:
    """Cancel pending runtime jobs, and close the session. A job that is done stays so.

    Returns:
        How many were cancelled, and how many had a result by then, which is kept.
    """
    with directory.locked(), _ledger(directory, service) as ledger:
        if ledger.fact("state") == "done":
            return 0, 0
        try:
            counts = _submitter(directory, ledger, service).cancel()
        finally:
            if isinstance(service, RuntimeService):
                service.session = ledger.fact("session")
                _close_session(directory, ledger, service)
        ledger.set_fact("state", "cancelled")
        return counts


@contextmanager
def _session(directory: JobDirectory, ledger: Ledger, service: Service) -> Iterator[None]:
    """Open the session or batch that the job asks for, if any, and close it whatever happens."""
    if not isinstance(service, RuntimeService):
        yield
        return
    service.session = ledger.fact("session")
    try:
        lasts = service.open()
    except HardwareError as error:
        if error.reason != "session":
            raise
        service.session = None
        lasts = service.open()
    try:
        if service.session != ledger.fact("session"):
            ledger.set_fact("session_until", None if lasts is None else time.time() + lasts)
            ledger.set_fact("session", service.session)
        yield
    finally:
        _close_session(directory, ledger, service)


def _close_session(directory: JobDirectory, ledger: Ledger, service: RuntimeService) -> None:
    """Close the session or batch; jobs that are in it run to their end."""
    if service.session is None:
        return
    try:
        service.close()
    except HardwareError as error:
        if error.reason != "session":
            remedy = f"{open_session(ledger)}: qhdm jobs cancel {directory.name}"
            print(f"qhdm: {error}; {remedy}", file=sys.stderr)
            return
    ledger.set_fact("session", None)


def _submitter(directory: JobDirectory, ledger: Ledger, service: Service) -> Submitter:
    return Submitter(ledger, service, name=ledger.fact("tag"), limits=directory.spec().limits)


@contextmanager
def _ledger(directory: JobDirectory, service: Service) -> Iterator[Ledger]:
    """The ledger of a job, which belongs to the instance that the service was asked for."""
    ledger = directory.ledger()
    try:
        if isinstance(service, RuntimeService):
            known = ledger.fact("instance")
            if known is None:
                ledger.set_fact("instance", service.instance)
            elif known != service.instance:
                # There its jobs would seem to be lost, and would be sent again.
                raise AccessError(
                    f"{directory.name}: its jobs belong to another instance: set "
                    f"QISKIT_IBM_INSTANCE to {known}",
                    "instance",
                )
        yield ledger
    finally:
        ledger.close()
