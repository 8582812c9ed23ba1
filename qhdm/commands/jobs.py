"""`qhdm jobs`: sampling jobs on backends, listed, resumed, cancelled, fetched."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from qhdm.commands.arguments import add_set
from qhdm.errors import ConfigError, QhdmError, ResultLostError

if TYPE_CHECKING:
    from qhdm.hardware.job_dir import JobDirectory


def add(commands: argparse._SubParsersAction) -> None:
    """Make the parsers of `jobs`."""
    parser = commands.add_parser("jobs", help="sampling jobs on backends")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs"), metavar="DIR",
        help="where runs are, or one run (%(default)s)",
    )  # fmt: skip
    verbs = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    listed = verbs.add_parser("list", help="all jobs and how they stand")
    listed.set_defaults(command=_list)
    for name, command, text in (
        ("status", _status, "how a job stands; asks the service"),
        ("resume", _resume, "go on with a job until its images are there"),
        ("cancel", _cancel, "cancel what is pending at the service"),
        ("fetch", _fetch, "fetch results, without sending anything"),
    ):
        verb = verbs.add_parser(name, help=text)
        verb.add_argument("id", metavar="ID", help="of a job, or its folder")
        if name == "resume":
            add_set(verb, "change a limit", metavar="limits.KEY=VALUE")
            verb.add_argument(
                "--relayout", action="store_true",
                help="lay out anew what is not sent yet, by the device's present calibration",
            )  # fmt: skip
        verb.set_defaults(command=command)


def _list(arguments: argparse.Namespace) -> None:
    from qhdm.hardware.job_dir import JobDirectory

    folders = JobDirectory.all(arguments.runs)
    if not folders:
        print(f"no jobs in {arguments.runs}; make one with: qhdm submit jobs/rehearsal.yaml")
        return
    width = max(len(folder.name) for folder in folders)
    print(f"{'id':<{width}}  {'backend':<14}{'state':<11}{'requests':>9}{'done':>6}{'QPU s':>8}")
    broken = []
    for folder in folders:
        try:
            print(f"{folder.name:<{width}}  {_row(folder)}")
        except QhdmError as error:  # of one job: the others are shown all the same
            print(f"{folder.name:<{width}}  {'-':<14}unreadable")
            broken.append(error)
    if broken:
        raise broken[0]


def _row(folder: JobDirectory) -> str:
    if folder.never_sent():
        return f"{'-':<14}never sent{0:>10}{0:>6}{0:>8.1f}"
    spec, ledger = folder.spec(), folder.ledger()
    try:
        entries = ledger.entries()
        done = sum(entry.state == "done" for entry in entries)
        return (
            f"{spec.backend:<14}{ledger.fact('state'):<11}"
            f"{len(entries):>9}{done:>6}{ledger.qpu_seconds():>8.1f}"
        )
    finally:
        ledger.close()


def _status(arguments: argparse.Namespace) -> None:
    from qhdm.hardware.job_dir import JobDirectory, open_session

    folder = JobDirectory.find(arguments.id, arguments.runs)
    spec, ledger = folder.spec(), folder.ledger()
    entries = ledger.entries()
    last = ledger.last_state()
    print(f"job {folder.name}: {ledger.fact('state')}, on {spec.backend}")
    print(f"network evaluations done: {0 if last is None else last[0]}")
    print(
        f"QPU seconds reported: {ledger.qpu_seconds():.1f} of {spec.limits.max_qpu_seconds:g}; "
        f"expected of jobs that are not reported yet: {ledger.unreported_seconds():.1f}"
    )
    if session := open_session(ledger):
        print(session)
    pending = [entry for entry in entries if entry.state == "submitted"]
    service = None
    if pending and not spec.local:
        from qhdm.hardware.runtime import RuntimeService

        service = RuntimeService(spec)
    for entry in entries:
        state = entry.state
        if service is not None and entry in pending and entry.job_id is not None:
            try:
                state = f"{state} ({service.status(entry.job_id).state})"
            except ResultLostError:
                state = f"{state} (the service does not have it)"
        print(f"  step {entry.step} {entry.place}: {state}  {entry.job_id or '-'}  {entry.tag}")
    for surplus in ledger.surplus():
        used = surplus.qpu_seconds
        seconds = "not reported yet" if used is None else f"{used:.1f}"
        print(f"  one too many: {surplus.job_id}  {surplus.tag}  QPU seconds: {seconds}")
    ledger.close()


def _resume(arguments: argparse.Namespace) -> None:
    from qhdm.hardware.job_dir import JobDirectory

    folder = JobDirectory.find(arguments.id, arguments.runs)
    folder.ledger().close()  # a damaged one is refused at once, not after the heavy imports
    for setting in arguments.set:
        if not setting.startswith("limits."):
            raise ConfigError(f"--set {setting}: only limits.* may change; submit a new job")
    spec = folder.spec(arguments.set)

    from qhdm.hardware import job_runner
    from qhdm.hardware.report import describe_report
    from qhdm.hardware.sampling import Task

    task = Task.load(spec)
    service = job_runner.connect(spec)
    cache = job_runner.isa_cache(spec, service.device, folder)
    if arguments.relayout:
        job_runner.relayout(folder, service)
    report = job_runner.run_job(folder, task, service, cache, progress=True)
    print(describe_report(report))
    print(f"samples: {folder.path / 'samples.png'}")
    print(f"report: {folder.path / 'report.json'}, {folder.path / 'report.png'}")


def _cancel(arguments: argparse.Namespace) -> None:
    from qhdm.hardware import job_runner
    from qhdm.hardware.job_dir import JobDirectory

    folder = JobDirectory.find(arguments.id, arguments.runs)
    if _told_done(folder):
        return
    count, kept = job_runner.cancel(folder, _service(folder))
    more = f"; {kept} had a result by then, which is kept" if kept else ""
    print(f"job {folder.name}: cancelled, {count} pending at the service{more}")


def _fetch(arguments: argparse.Namespace) -> None:
    from qhdm.hardware import job_runner
    from qhdm.hardware.job_dir import JobDirectory

    folder = JobDirectory.find(arguments.id, arguments.runs)
    if _told_done(folder):
        return
    fetched, pending = job_runner.fetch(folder, _service(folder))
    print(f"job {folder.name}: {fetched} results fetched, {pending} pending")
    if not pending:
        print(f"to go on: qhdm jobs resume {folder.name}")


def _told_done(folder: JobDirectory) -> bool:
    """Whether a job has its images; then says where."""
    if folder.is_done():
        print(f"job {folder.name}: is done; samples: {folder.path / 'samples.png'}")
        return True
    return False


def _service(folder):  # type: ignore[no-untyped-def]
    """The service of a job, also when the backend takes no new jobs."""
    from qhdm.hardware.runtime import LocalService, RuntimeService

    spec = folder.spec()
    return LocalService(spec) if spec.local else RuntimeService(spec)
