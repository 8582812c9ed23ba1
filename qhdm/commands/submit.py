"""`qhdm submit`: sample with quantum filters on a backend, after saying what it costs."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

from qhdm.commands.arguments import add_set
from qhdm.errors import BudgetError


def add(commands: argparse._SubParsersAction) -> None:
    """Make the parser of `submit`."""
    parser = commands.add_parser("submit", help="sample with quantum filters on an IBM backend")
    parser.add_argument(
        "spec",
        type=Path,
        metavar="SPEC",
        help="a job specification (YAML file), or the name of a shipped one: rehearsal",
    )
    add_set(parser)
    parser.add_argument(
        "--dry-run", action="store_true", help="print circuits, cost and limits; needs no network"
    )
    parser.add_argument(
        "--device", metavar="FAKE", help="with --dry-run: estimate for this device (fake_torino)"
    )
    parser.add_argument("--yes", action="store_true", help="do not ask before submitting")
    parser.set_defaults(command=_submit)


def _submit(arguments: argparse.Namespace) -> None:
    from qhdm.hardware.spec import load_spec

    spec = load_spec(arguments.spec, arguments.set)
    if arguments.device and not arguments.dry_run:
        raise BudgetError("--device: only with --dry-run; the specification names the backend")

    # Only now the heavy imports: bad input is refused at once.
    from qhdm.hardware import job_runner
    from qhdm.hardware.estimate import describe
    from qhdm.hardware.job_dir import JobDirectory
    from qhdm.hardware.report import describe_report
    from qhdm.hardware.sampling import Task
    from qhdm.runs.directory import RunDirectory

    # The job is of this run for good, also when there is a newer one.
    spec = dataclasses.replace(spec, run=str(RunDirectory.newest(spec.run)))
    print(f"run: {spec.run}")
    task = Task.load(spec)
    if arguments.dry_run:
        device = job_runner.dry_device(spec, arguments.device)
        print(describe(task.estimate(device, job_runner.isa_cache(spec, device))))
        return
    service = job_runner.connect(spec)
    cache = job_runner.isa_cache(spec, service.device)
    estimate = task.estimate(service.device, cache)
    print(describe(estimate))
    job_runner.check(estimate)
    if not spec.local and not arguments.yes:
        _ask(f"submit {estimate.jobs} jobs, about {estimate.paid_seconds:,.1f} QPU seconds?")
    folder = JobDirectory.create(spec, arguments.spec.stem)
    print(f"\njob: {folder.name} ({folder.path})", flush=True)
    cache.keep_in(folder.isa)
    report = job_runner.run_job(folder, task, service, cache, progress=True)
    print(describe_report(report))
    print(f"samples: {folder.path / 'samples.png'}")
    print(f"report: {folder.path / 'report.json'}, {folder.path / 'report.png'}")


def _ask(question: str) -> None:
    if not sys.stdin.isatty():
        raise BudgetError("stdin is not a terminal; pass --yes to submit")
    if input(f"{question} [y/N] ").strip().lower() not in ("y", "yes"):
        raise BudgetError("not submitted")
