"""Running a sampling job from its folder, from the first request to the report."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from qhdm.errors import (
    BudgetError,
    HardwareError,
    InstanceError,
    Interrupted,
    SessionExpiredError,
)
from qhdm.hardware.estimate import Estimate
from qhdm.hardware.isa import IsaCache
from qhdm.hardware.job_dir import JobDirectory, open_session
from qhdm.hardware.ledger import Ledger
from qhdm.hardware.report import write_images, write_report
from qhdm.hardware.runtime import Device, LocalService, RuntimeService, Service, snapshot
from qhdm.hardware.sampling import Task
from qhdm.hardware.spec import JobSpec
from qhdm.hardware.submission import Submitter


def isa_cache(spec: JobSpec, device: Device, folder: JobDirectory | None = None) -> IsaCache:
    """The ISA circuits of a job; without a folder they are kept in memory."""
    return IsaCache(
        None if folder is None else folder.isa,
        device.target,
        device=device.name,
        packing=spec.packing,
        seed=spec.layout_seed,
    )


def check(estimate: Estimate) -> None:
    """Refuse what the limits do not allow.

    Raises:
        BudgetError: with the first limit that is exceeded.
    """
    problems = estimate.problems()
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise BudgetError(problems[0] + more)


def connect(spec: JobSpec) -> Service:
    """The service that a specification names, found able to take jobs.

    Raises:
        HardwareError: no account, network, instance or backend, or it takes no jobs now.
    """
    if spec.local:
        return LocalService(spec)
    service = RuntimeService(spec)
    service.check()
    return service


def dry_device(spec: JobSpec, name: str | None) -> Device:
    """The device of a dry run, known without a network."""
    return snapshot(name or spec.backend)


def run_job(
    folder: JobDirectory, task: Task, service: Service, cache: IsaCache, *, progress: bool
) -> dict[str, Any]:
    """Go on with a job until its images are there; returns the report.

    Raises:
        HardwareError: a job gave no result, a limit is reached, or a file cannot be written; what
            is known stays known.
        Interrupted: the user stopped it.
    """
    with folder.locked(), _opened(folder, service) as ledger:
        # Limits may have changed. Not before the lock: another process would lose its own.
        folder.write_spec(task.spec)
        try:
            with _session(folder, ledger, service):
                ledger.record("state", "running")
                images = task.sample(
                    ledger,
                    service,
                    cache,
                    name=ledger.fact("tag"),
                    progress=progress,
                )
            write_images(task, images, task.exact_images(), folder.path)
            # Not before the session is closed, which would be paid for meanwhile.
            if service.remembers and not ledger.fact("settled"):
                seconds = task.spec.limits.settle_seconds
                print(f"images are written; {seconds:g} s for a last look for surplus jobs")
            _submitter(folder, ledger, service).finish()
            report = write_report(task, ledger, folder.path)
        except KeyboardInterrupt:
            raise Interrupted(
                f"interrupted; nothing is lost; to go on: qhdm jobs resume {folder.name}"
            ) from None
        except OSError as error:
            raise HardwareError(
                f"{error.filename or folder.path}: {error.strerror or error}; nothing is lost: "
                f"make room, or mend what it is, then: qhdm jobs resume {folder.name}"
            ) from None
        ledger.record("state", "done")
        return report


def fetch(folder: JobDirectory, service: Service) -> tuple[int, int]:
    """Fetch results without sending anything; returns how many, and how many are pending."""
    with folder.locked(), _opened(folder, service) as ledger:
        return _submitter(folder, ledger, service).fetch()


def relayout(folder: JobDirectory, service: Service) -> None:
    """Lay circuits out anew, by the present calibration, for what the service does not have yet."""
    with folder.locked(), _opened(folder, service) as ledger:
        submitter = _submitter(folder, ledger, service)
        submitter.drop_unsent()
        step, stage, _ = max(submitter.known(), default=(0, -1, 0))
        # What lies in between in the chain is on the circuits that it was sent with.
        ledger.record("relaid", [*(ledger.fact("relaid") or []), (step, stage + 1)])


def cancel(folder: JobDirectory, service: Service) -> tuple[int, int]:
    """Cancel what is pending, and close the session.

    A job that is done stays so.

    Returns:
        How many jobs were cancelled, and how many had a result by then, which is kept.
    """
    with folder.locked(), _opened(folder, service) as ledger:
        if ledger.fact("state") == "done":
            return 0, 0
        try:
            found = _submitter(folder, ledger, service).cancel()
        finally:
            if isinstance(service, RuntimeService):
                service.session = ledger.fact("session")
                _close_session(folder, ledger, service)
        ledger.record("state", "cancelled")
        return found


@contextmanager
def _session(folder: JobDirectory, ledger: Ledger, service: Service) -> Iterator[None]:
    """Open the session or batch that the job asks for, if any, and close it whatever happens."""
    if not isinstance(service, RuntimeService):
        yield
        return
    service.session = ledger.fact("session")
    try:
        lasts = service.open()
    except SessionExpiredError:
        service.session = None
        lasts = service.open()
    try:
        if service.session != ledger.fact("session"):
            ledger.record("session_until", None if lasts is None else time.time() + lasts)
            ledger.record("session", service.session)
        yield
    finally:
        _close_session(folder, ledger, service)


def _close_session(folder: JobDirectory, ledger: Ledger, service: RuntimeService) -> None:
    """Close the session or batch; jobs that are in it run to their end."""
    if service.session is None:
        return
    try:
        service.close()
    except SessionExpiredError:
        pass  # which is what was wanted
    except HardwareError as error:
        print(
            f"qhdm: {error}; {open_session(ledger)}: qhdm jobs cancel {folder.name}",
            file=sys.stderr,
        )
        return
    ledger.record("session", None)


def _submitter(folder: JobDirectory, ledger: Ledger, service: Service) -> Submitter:
    spec = folder.spec()
    return Submitter(
        ledger, service, name=ledger.fact("tag"), shots=spec.executed_shots, limits=spec.limits
    )


@contextmanager
def _opened(folder: JobDirectory, service: Service) -> Iterator[Ledger]:
    """The ledger of a job, whose jobs are of the instance that the service is asked for."""
    ledger = folder.ledger()
    try:
        if isinstance(service, RuntimeService):
            known = ledger.fact("instance")
            if known is None:
                ledger.record("instance", service.instance)
            elif known != service.instance:
                # There the jobs would seem to be lost, and would be sent again.
                raise InstanceError(
                    f"{folder.name}: its jobs are of another instance: set QISKIT_IBM_INSTANCE to "
                    f"{known}"
                )
        yield ledger
    finally:
        ledger.close()
