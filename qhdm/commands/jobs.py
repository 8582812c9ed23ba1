"""`qhdm jobs`: list, resume, fetch and cancel sampling jobs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from qhdm.commands.arguments import add_set
from qhdm.errors import ConfigError, QhdmError, RuntimeJobError

if TYPE_CHECKING:
    from qhdm.hardware.job_dir import JobDirectory


def add(commands: argparse._SubParsersAction) -> None:
    """Make the parsers of `jobs`."""
    parser = commands.add_parser("jobs", help="sampling jobs on backends")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs"), metavar="DIR",
        help="folder of runs, or one run (default: %(default)s)",
    )  # fmt: skip
    verbs = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    listed = verbs.add_parser("list", help="all jobs and their states")
    listed.set_defaults(command=_list)
    for name, command, text in (
        ("status", _status, "requests of a job and their states; asks the service"),
        ("resume", _resume, "continue a job until its images are there"),
        ("cancel", _cancel, "cancel pending requests at the service"),
        ("fetch", _fetch, "fetch results without sending anything"),
    ):
        verb = verbs.add_parser(name, help=text)
        verb.add_argument("id", metavar="ID", help="job ID or job directory")
        if name == "resume":
            add_set(verb, "change a limit", metavar="limits.KEY=VALUE")
            verb.add_argument(
                "--relayout", action="store_true",
                help="lay out unsent circuits again for the current calibration",
            )  # fmt: skip
        verb.set_defaults(command=command)


def _list(arguments: argparse.Namespace) -> None:
    from qhdm.hardware.job_dir import JobDirectory

    directories = JobDirectory.all(arguments.runs)
    if not directories:
        print(f"no jobs in {arguments.runs}; make one with: qhdm submit jobs/rehearsal.yaml")
        return
    width = max(len(directory.name) for directory in directories)
    print(f"{'id':<{width}}  {'backend':<14}{'state':<11}{'requests':>9}{'done':>6}{'QPU s':>8}")
    broken = []
    for directory in directories:
        try:
            print(f"{directory.name:<{width}}  {_row(directory)}")
        except QhdmError as error:  # of one job: the others are listed all the same
            print(f"{directory.name:<{width}}  {'-':<14}unreadable")
            broken.append(error)
    if broken:
        raise broken[0]


def _row(directory: JobDirectory) -> str:
    if directory.never_sent():
        return f"{'-':<14}never sent{0:>10}{0:>6}{0:>8.1f}"
    spec, ledger = directory.spec(), directory.ledger()
    try:
        requests = ledger.requests()
        done = sum(request.state == "done" for request in requests)
        return (
            f"{spec.backend:<14}{ledger.fact('state'):<11}"
            f"{len(requests):>9}{done:>6}{ledger.qpu_seconds():>8.1f}"
        )
    finally:
        ledger.close()


def _status(arguments: argparse.Namespace) -> None:
    from qhdm.hardware.job_dir import JobDirectory, open_session

    directory = JobDirectory.find(arguments.id, arguments.runs)
    spec, ledger = directory.spec(), directory.ledger()
    requests = ledger.requests()
    last = ledger.last_state()
    print(f"job {directory.name}: {ledger.fact('state')}, on {spec.backend}")
    print(f"network evaluations done: {0 if last is None else last[0]}")
    print(
        f"QPU seconds reported: {ledger.qpu_seconds():.1f} of {spec.limits.max_qpu_seconds:g}; "
        f"expected of jobs that are not reported yet: {ledger.unreported_seconds():.1f}"
    )
    if session := open_session(ledger):
        print(session)
    service = None
    if not spec.local and any(request.state == "submitted" for request in requests):
        from qhdm.hardware.runtime import RuntimeService

        service = RuntimeService(spec)
    for request in requests:
        state, job_id = request.state, request.job_id
        if service is not None and state == "submitted" and job_id is not None:
            try:
                state = f"{state} ({service.status(job_id).state})"
            except RuntimeJobError:
                state = f"{state} (the service does not have it)"
        print(f"  step {request.step} {request.place}: {state}  {job_id or '-'}  {request.tag}")
    for surplus in ledger.surplus():
        used = surplus.qpu_seconds
        seconds = "not reported yet" if used is None else f"{used:.1f}"
        print(f"  surplus: {surplus.job_id}  {surplus.tag}  QPU seconds: {seconds}")
    ledger.close()


def _resume(arguments: argparse.Namespace) -> None:
    from qhdm.hardware.job_dir import JobDirectory

    directory = JobDirectory.find(arguments.id, arguments.runs)
    directory.ledger().close()  # a damaged one is refused at once, not after the heavy imports
    for setting in arguments.set:
        if not setting.startswith("limits."):
            raise ConfigError(f"--set {setting}: only limits.* may change; submit a new job")
    spec = directory.spec(arguments.set)

    from qhdm.hardware import job_runner
    from qhdm.hardware.report import describe_report
    from qhdm.run import Run

    job = Run.open(spec.run, device="cpu").job(spec)
    service = job_runner.connect(spec)
    cache = job_runner.isa_cache(spec, service.device, directory)
    if arguments.relayout:
        job_runner.relayout(directory, service)
    report = job_runner.run_job(directory, job, service, cache, progress=True)
    print(describe_report(report, directory.path))


def _cancel(arguments: argparse.Namespace) -> None:
    from qhdm.hardware import job_runner
    from qhdm.hardware.job_dir import JobDirectory

    directory = JobDirectory.find(arguments.id, arguments.runs)
    if _is_done(directory):
        return
    count, kept = job_runner.cancel(directory, job_runner.connect(directory.spec(), new_jobs=False))
    more = f"; {kept} had a result by then, which is kept" if kept else ""
    print(f"job {directory.name}: cancelled, {count} pending at the service{more}")


def _fetch(arguments: argparse.Namespace) -> None:
    from qhdm.hardware import job_runner
    from qhdm.hardware.job_dir import JobDirectory

    directory = JobDirectory.find(arguments.id, arguments.runs)
    if _is_done(directory):
        return
    fetched, pending = job_runner.fetch(
        directory, job_runner.connect(directory.spec(), new_jobs=False)
    )
    print(f"job {directory.name}: {fetched} results fetched, {pending} pending")
    if not pending:
        print(f"to continue: qhdm jobs resume {directory.name}")


def _is_done(directory: JobDirectory) -> bool:
    """Whether a job has its images; if so, prints where."""
    if directory.is_done():
        print(f"job {directory.name}: is done; samples: {directory.path / 'samples.png'}")
        return True
    return False
