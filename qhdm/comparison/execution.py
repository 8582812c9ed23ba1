"""Executors, which run the processes of cells: they take jobs, plain data, and return futures.

The progress of a cell is read from its directory, never from its process, so an executor's machines
only need to share the file system.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

#: Why a job that is running already is not started.
BUSY = "another process is working on it; wait for it, or end it"


@dataclass(frozen=True)
class Job:
    """The processes of one cell, run one after the other until one fails.

    Attributes:
        name: of the cell.
        commands: argument lists.
        log: receives what they write to stderr, and is locked while one of them lives.
    """

    name: str
    commands: tuple[tuple[str, ...], ...]
    log: Path


class Executor(Protocol):
    """Runs jobs somewhere. Its `str` tells how many at a time, and where."""

    def submit(self, job: Job) -> Future[str | None]:
        """Start `job` when there is room; the result is None, or in one line why it failed."""

    def stop(self, *, kill: bool = False) -> None:
        """Start nothing more, and ask running jobs to save and end; or kill them."""

    def close(self) -> None:
        """Wait for running jobs."""


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class LocalExecutor:
    """Runs processes of `jobs` cells at a time on this machine, which share its cores."""

    def __init__(self, jobs: int) -> None:
        self._jobs = jobs
        self._pool = ThreadPoolExecutor(jobs)
        # The user's own setting is kept.
        threads = os.environ.get("OMP_NUM_THREADS", str(max(1, cores() // jobs)))
        self._worker = Worker({"OMP_NUM_THREADS": threads})

    def __str__(self) -> str:
        return f"{self._jobs} at a time on this machine's cores"

    def submit(self, job: Job) -> Future[str | None]:
        return self._pool.submit(self._worker.run, job)

    def stop(self, *, kill: bool = False) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._worker.stop(signal.SIGKILL if kill else signal.SIGTERM)

    def close(self) -> None:
        self._pool.shutdown()


class Worker:
    """Runs the processes of jobs on one machine; other threads can stop it.

    Args:
        environment: variables to add to those of this process.
        directory: where the processes run; None for that of this process.
    """

    def __init__(self, environment: Mapping[str, str], directory: Path | None = None) -> None:
        self._environment = dict(environment)
        self._directory = directory
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopped = False

    def run(self, job: Job) -> str | None:
        """Run the processes of a job; returns None, or in one line why it failed."""
        job.log.parent.mkdir(parents=True, exist_ok=True)
        with job.log.open("ab") as log:
            try:
                # Inherited: it is held while a process lives, even if this one is killed.
                fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return BUSY
            log.truncate(0)
            for command in job.commands:
                before = log.seek(0, os.SEEK_END)
                code = self._call(command, log)
                if code is None:
                    return "interrupted"
                if code:
                    return _last_line(job.log, before) or _ending(code)
        return None

    def stop(self, number: signal.Signals) -> None:
        """Send a signal to all processes, and start no more."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                with suppress(ProcessLookupError):
                    process.send_signal(number)

    def _call(self, command: Sequence[str], log: BinaryIO) -> int | None:
        """The exit code of a process; None if `stop` kept it from starting."""
        with self._lock:
            if self._stopped:
                return None
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                env={**os.environ, **self._environment},
                cwd=self._directory,
                # Ctrl-C goes to the whole group of the terminal. Processes must only get it from
                # `stop`, as a second one tells them not to save.
                start_new_session=True,
            )
            self._running.add(process)
        try:
            return process.wait()
        finally:
            with self._lock:
                self._running.discard(process)


def _last_line(log: Path, start: int) -> str:
    """The last line after byte `start`, without the name of the program."""
    with log.open("rb") as file:
        file.seek(start)
        text = file.read().decode("utf-8", errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]  # also at "\r"
    return lines[-1].removeprefix("qhdm: ").removeprefix("error: ") if lines else ""


def _ending(code: int) -> str:
    if code < 0:
        name = signal.Signals(-code).name
        return f"ended by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    return f"failed with exit code {code}"
