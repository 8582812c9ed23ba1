"""Directories of sampling jobs.

RUN/jobs/ID/
    job.yaml         the specification
    ledger.sqlite    requests, results, and the sampler's state after each step
    isa/             ISA circuits (QPY)
    samples.png, images/, report.json, report.png     once it is done
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from qhdm.errors import HardwareError
from qhdm.files import locked, timed_path, write_text
from qhdm.hardware.ledger import Ledger
from qhdm.hardware.spec import JobSpec, load_kept_spec, spec_to_yaml
from qhdm.runs.config import config_path
from qhdm.shipped import results_path, run_path

_SPEC, _LEDGER = "job.yaml", "ledger.sqlite"


@dataclass(frozen=True)
class JobDirectory:
    """A job on disk."""

    path: Path

    @classmethod
    def create(cls, spec: JobSpec, name: str) -> JobDirectory:
        """Make the directory of a new job, `RUN/jobs/<name>-<time>`."""
        config_path(run_path(spec.run))  # refuses other folders
        directory = cls(timed_path(results_path(spec.run) / "jobs", name))
        directory.make(spec)
        return directory

    def make(self, spec: JobSpec) -> None:
        """Make the ledger and the specification of a job of which nothing was sent."""
        self.path.mkdir(parents=True, exist_ok=True)
        with self.locked():
            if self.never_sent():
                ledger = self.path / _LEDGER
                ledger.unlink(missing_ok=True)
                Ledger(ledger, create=True).close()
                # Last: a directory without it is not a job.
                self.write_spec(spec)

    @classmethod
    def find(cls, name: str, runs: Path) -> JobDirectory:
        """A job by its id or its directory.

        Raises:
            HardwareError: there is none, or several.
        """
        own = cls(Path(name))
        jobs = [job for job in cls.all(runs) if job.name == name]
        if any((own.path / file).is_file() for file in (_SPEC, _LEDGER)):
            jobs = [own]
        if len(jobs) == 1:
            if jobs[0].never_sent():
                raise HardwareError(
                    f"{jobs[0].path}: was stopped before anything was sent; remove it, and submit "
                    "the job again"
                )
            return jobs[0]
        if jobs:
            places = ", ".join(str(job.path) for job in jobs)
            raise HardwareError(f"job {name}: is in several runs; give its folder: {places}")
        raise HardwareError(
            f"job {name}: not found in {runs}; `qhdm jobs list` shows those that are there "
            "(--runs for another folder)"
        )

    @classmethod
    def all(cls, runs: Path) -> list[JobDirectory]:
        """All jobs of a folder of runs, or of one run, by name.

        Also those that were killed before their specification was written.
        """
        runs = results_path(runs)
        paths = [path for path in (*runs.glob("jobs/*"), *runs.glob("*/jobs/*")) if path.is_dir()]
        return [cls(path) for path in sorted(paths, key=lambda path: (path.name, str(path)))]

    @property
    def name(self) -> str:
        """The job's id."""
        return self.path.name

    @property
    def isa(self) -> Path:
        """Where ISA circuits are kept."""
        return self.path / "isa"

    def never_sent(self) -> bool:
        """Whether there is no job yet: nothing is sent before the specification is written."""
        if (self.path / _SPEC).exists():
            return False
        file = self.path / _LEDGER
        if not file.exists() or not file.stat().st_size:
            return True
        ledger = self.ledger()
        try:
            return not ledger.requests()
        finally:
            ledger.close()

    def ledger(self) -> Ledger:
        """Open the ledger."""
        return Ledger(self.path / _LEDGER)

    def is_done(self) -> bool:
        """Whether the images are there."""
        ledger = self.ledger()
        try:
            return bool(ledger.fact("state") == "done")
        finally:
            ledger.close()

    def locked(self) -> AbstractContextManager[None]:
        """Keep other processes from working on the job.

        Raises:
            HardwareError: another process does.
        """
        return locked(
            self.path,
            HardwareError(
                f"{self.name}: another process is working on this job; wait for it, or end it"
            ),
        )

    def spec(self, overrides: Sequence[str] = ()) -> JobSpec:
        """The specification, with `key=value` settings over it."""
        return load_kept_spec(self.path / _SPEC, overrides)

    def write_spec(self, spec: JobSpec) -> None:
        """Keep the specification."""
        write_text(self.path / _SPEC, spec_to_yaml(spec))


def open_session(ledger: Ledger) -> str | None:
    """The session or batch that is open, and until when, in words; None if there is none."""
    session, until = ledger.fact("session"), ledger.fact("session_until")
    if not session:
        return None
    when = (
        "the service closes it"
        if until is None
        else f"{datetime.fromtimestamp(until):%Y-%m-%d %H:%M} at the latest"
    )
    return f"session {session} is open, and may be paid for, until {when}"
