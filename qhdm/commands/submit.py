"""`qhdm submit`: sample with quantum filters on a backend, after an estimate of the cost."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

from qhdm.commands.arguments import add_set
from qhdm.errors import BudgetError, ConfigError


def add(commands: argparse._SubParsersAction) -> None:
    """Make the parser of `submit`."""
    parser = commands.add_parser("submit", help="sample with quantum filters on an IBM backend")
    parser.add_argument(
        "spec",
        type=Path,
        metavar="SPEC",
        help="a job specification (YAML file), or the name of a shipped one, as rehearsal",
    )
    add_set(parser)
    parser.add_argument(
        "--dry-run", action="store_true", help="print circuits, cost and limits; needs no network"
    )
    parser.add_argument(
        "--device", metavar="FAKE", help="with --dry-run: estimate for this device, as fake_torino"
    )
    parser.add_argument(
        "--compare", nargs="+", metavar="DEVICE",
        help="print gates, expected error, QPU seconds and cost on several devices; needs no "
        "network (fake_boston fake_fez)",
    )  # fmt: skip
    parser.add_argument("--yes", action="store_true", help="submit without asking")
    parser.set_defaults(command=_submit)


def _submit(arguments: argparse.Namespace) -> None:
    from qhdm.hardware.spec import load_spec

    spec = load_spec(arguments.spec, arguments.set)
    if arguments.device and not arguments.dry_run:
        raise ConfigError("--device: only with --dry-run; the specification names the backend")

    # Only now the heavy imports: bad input is refused at once.
    from qhdm.hardware import job_runner
    from qhdm.hardware.estimate import describe, describe_devices
    from qhdm.hardware.job_dir import JobDirectory
    from qhdm.hardware.report import describe_report
    from qhdm.hardware.runtime import snapshot
    from qhdm.run import Run
    from qhdm.runs.directory import RunDirectory

    # The job is of this run for good, also when there is a newer one.
    spec = dataclasses.replace(spec, run=str(RunDirectory.newest(spec.run)))
    print(f"run: {spec.run}")
    run = Run.open(spec.run, device="cpu")
    spec = spec.resolved(run.config)  # the run's sample section may change before it is resumed
    job = run.job(spec)
    if arguments.compare:
        devices = [snapshot(name, spec.fractional) for name in arguments.compare]
        estimates = [job.estimate(one, job_runner.isa_cache(spec, one)) for one in devices]
        print(describe_devices(estimates))
        return
    if arguments.dry_run:
        device = snapshot(arguments.device or spec.backend, spec.fractional)
        print(describe(job.estimate(device, job_runner.isa_cache(spec, device))))
        return
    service = job_runner.connect(spec)
    cache = job_runner.isa_cache(spec, service.device)
    estimate = job.estimate(service.device, cache)
    print(describe(estimate))
    estimate.check()
    if not spec.local and not arguments.yes:
        _ask(
            f"submit {estimate.runtime_jobs} runtime jobs, "
            f"about {estimate.paid_seconds:,.1f} QPU seconds?"
        )
    directory = JobDirectory.create(spec, arguments.spec.stem)
    print(f"\njob: {directory.name} ({directory.path})", flush=True)
    cache.keep_in(directory.isa)
    report = job_runner.run_job(directory, job, service, cache, progress=True)
    print(describe_report(report, directory.path))


def _ask(question: str) -> None:
    if not sys.stdin.isatty():
        raise BudgetError("stdin is not a terminal; pass --yes to submit")
    if input(f"{question} [y/N] ").strip().lower() not in ("y", "yes"):
        raise BudgetError("not submitted")
