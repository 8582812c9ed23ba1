"""The folders of sampling jobs: RUN/jobs/ID/, see `qhdm.hardware.sampling`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from qhdm.errors import HardwareError
from qhdm.files import locked, timed_path, write_text
from qhdm.hardware.ledger import Ledger
from qhdm.hardware.spec import JobSpec, load_spec, spec_to_yaml
from qhdm.runs.config import config_path

_SPEC, _LEDGER = "job.yaml", "ledger.sqlite"


@dataclass(frozen=True)
class JobDirectory:
    """A job on disk."""

    path: Path

    @classmethod
    def create(cls, spec: JobSpec, name: str) -> JobDirectory:
        """Make the folder of a new job.

        Args:
            spec: what is asked for.
            name: first part of the job's id.
        """
        jobs = config_path(Path(spec.run)).parent / "jobs"
        path = timed_path(jobs, name)
        path.mkdir(parents=True)
        folder = cls(path)
        Ledger(path / _LEDGER, create=True).close()
        # Last: a folder without it is not a job.
        folder.write_spec(spec)
        return folder

    @classmethod
    def find(cls, name: str, runs: Path) -> JobDirectory:
        """A job by its id, or by its folder.

        Raises:
            HardwareError: there is none, or several.
        """
        own = cls(Path(name))
        found = [folder for folder in cls.all(runs) if folder.name == name]
        if any((own.path / file).is_file() for file in (_SPEC, _LEDGER)):
            found = [own]
        if len(found) == 1:
            if found[0].never_sent():
                raise HardwareError(
                    f"{found[0].path}: was stopped before anything was sent; remove it, and submit "
                    "the job again"
                )
            return found[0]
        if found:
            places = ", ".join(str(folder.path) for folder in found)
            raise HardwareError(f"job {name}: is in several runs; give its folder: {places}")
        raise HardwareError(
            f"job {name}: not found in {runs}; `qhdm jobs list` shows those that are there "
            "(--runs for another folder)"
        )

    @classmethod
    def all(cls, runs: Path) -> list[JobDirectory]:
        """All jobs of the runs in a folder, or of the run that it is, oldest first.

        Also those that were killed before their specification was written.
        """
        found = [f for f in (*runs.glob("jobs/*"), *runs.glob("*/jobs/*")) if f.is_dir()]
        return [cls(f) for f in sorted(found, key=lambda f: (f.name, str(f)))]

    @property
    def name(self) -> str:
        """The job's id."""
        return self.path.name

    @property
    def isa(self) -> Path:
        """Where ISA circuits are kept."""
        return self.path / "isa"

    def never_sent(self) -> bool:
        """Whether it was stopped while it was made: nothing was sent before the specification."""
        if (self.path / _SPEC).exists():
            return False
        file = self.path / _LEDGER
        if not file.exists() or not file.stat().st_size:
            return True
        ledger = self.ledger()
        try:
            return not ledger.entries()
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
        return load_spec(self.path / _SPEC, overrides)

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
