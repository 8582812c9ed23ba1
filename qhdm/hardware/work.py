"""Running a sampling job from its folder, from the first request to the report."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from qhdm.errors import BudgetError, Interrupted, SessionExpiredError
from qhdm.hardware.estimate import Estimate
from qhdm.hardware.folder import JobFolder
from qhdm.hardware.isa import IsaCache
from qhdm.hardware.ledger import Ledger
from qhdm.hardware.report import write_images, write_report
from qhdm.hardware.runtime import Device, LocalService, RuntimeService, Service, snapshot
from qhdm.hardware.sampling import Task
from qhdm.hardware.spec import JobSpec
from qhdm.hardware.submission import Submitter


def isa_cache(spec: JobSpec, device: Device, folder: JobFolder | None = None) -> IsaCache:
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


def work(
    folder: JobFolder, task: Task, service: Service, cache: IsaCache, *, progress: bool
) -> dict[str, Any]:
    """Go on with a job until its images are there; returns the report.

    Raises:
        HardwareError: a job gave no result, or a limit is reached; what is known stays known.
        Interrupted: the user stopped it.
    """
    with folder.locked(), _opened(folder) as ledger:
        _open_session(ledger, service)
        ledger.record("state", "running")
        try:
            images = task.sample(
                ledger,
                service,
                cache,
                name=ledger.fact("tag"),
                progress=progress,
            )
        except KeyboardInterrupt:
            raise Interrupted(
                f"interrupted; nothing is lost; to go on: qhdm jobs resume {folder.name}"
            ) from None
        if isinstance(service, RuntimeService):
            service.close()
        write_images(task, images, task.exact_images(), folder.path)
        report = write_report(task, ledger, folder.path)
        ledger.record("state", "done")
        return report


def fetch(folder: JobFolder, service: Service) -> tuple[int, int]:
    """Fetch results without sending anything; returns how many, and how many are pending."""
    with folder.locked(), _opened(folder) as ledger:
        return _submitter(folder, ledger, service).fetch()


def relayout(folder: JobFolder, service: Service) -> None:
    """Lay circuits out anew, by the present calibration, for what the service does not have yet."""
    with folder.locked(), _opened(folder) as ledger:
        _submitter(folder, ledger, service).drop_unsent()
        live = [(e.step, e.stage) for e in ledger.entries() if e.state != "failed"]
        step, stage = max(live, default=(0, -1))
        # What lies in between in the chain is on the circuits that it was sent with.
        ledger.record("relaid", [*(ledger.fact("relaid") or []), (step, stage + 1)])


def cancel(folder: JobFolder, service: Service) -> int:
    """Cancel what is pending, and close the session; returns how many jobs.

    A job that is done stays so.
    """
    with folder.locked(), _opened(folder) as ledger:
        if ledger.fact("state") == "done":
            return 0
        count = _submitter(folder, ledger, service).cancel()
        if isinstance(service, RuntimeService) and ledger.fact("session"):
            service.session = ledger.fact("session")
            try:
                service.open()
                service.close()
            except SessionExpiredError:
                pass  # which is what was wanted
            ledger.record("session", None)
        ledger.record("state", "cancelled")
        return count


def _open_session(ledger: Ledger, service: Service) -> None:
    if not isinstance(service, RuntimeService):
        return
    service.session = ledger.fact("session")
    try:
        service.open()
    except SessionExpiredError:
        service.session = None
        service.open()
    ledger.record("session", service.session)


def _submitter(folder: JobFolder, ledger: Ledger, service: Service) -> Submitter:
    spec = folder.spec()
    return Submitter(
        ledger, service, name=ledger.fact("tag"), shots=spec.executed_shots, limits=spec.limits
    )


@contextmanager
def _opened(folder: JobFolder) -> Iterator[Ledger]:
    ledger = folder.ledger()
    try:
        yield ledger
    finally:
        ledger.close()
