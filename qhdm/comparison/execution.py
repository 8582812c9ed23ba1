"""Where the processes of cells run: an executor takes jobs, plain data, and gives futures.

A cell's progress is read from its directory, never from its process: any executor whose machines
share the file system will do.
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

#: Why a job is not started that is at work already.
BUSY = "another process is working on it; wait for it, or end it"


@dataclass(frozen=True)
class Job:
    """The processes of one cell, one after the other until one fails.

    Attributes:
        name: of the cell.
        commands: argument lists.
        log: receives what they write to stderr, and is locked while one of them lives.
    """

    name: str
    commands: tuple[tuple[str, ...], ...]
    log: Path


class Executor(Protocol):
    """Runs jobs somewhere. Its `str` says how many at a time, and where."""

    def submit(self, job: Job) -> Future[str | None]:
        """Start `job` when there is room; the result is None, or why it failed, in one line."""

    def stop(self, *, kill: bool = False) -> None:
        """Start nothing more, and ask what runs to save and end; or end it at once."""

    def close(self) -> None:
        """Wait for what runs."""


def cores() -> int:
    """Those this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class LocalExecutor:
    """Processes on this machine, which share its cores.

    Args:
        jobs: cells at a time.
    """

    def __init__(self, jobs: int) -> None:
        self._jobs = jobs
        self._pool = ThreadPoolExecutor(jobs)
        # What the user set stays.
        threads = os.environ.get("OMP_NUM_THREADS", str(max(1, cores() // jobs)))
        self._children = Children({"OMP_NUM_THREADS": threads})

    def __str__(self) -> str:
        return f"{self._jobs} at a time on this machine's cores"

    def submit(self, job: Job) -> Future[str | None]:
        return self._pool.submit(run_job, job, self._children)

    def stop(self, *, kill: bool = False) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._children.stop(signal.SIGKILL if kill else signal.SIGTERM)

    def close(self) -> None:
        self._pool.shutdown()


class Children:
    """Running processes that can be stopped from another thread.

    Args:
        environment: variables to add to that of this process.
        directory: where they work; that of this process, if None.
    """

    def __init__(self, environment: Mapping[str, str], directory: Path | None = None) -> None:
        self._environment = dict(environment)
        self._directory = directory
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopped = False

    @property
    def stopped(self) -> bool:
        """Whether no more are started."""
        return self._stopped

    def run(self, command: Sequence[str], log: BinaryIO) -> int | None:
        """The exit code of a process; None if it was not started because of `stop`."""
        with self._lock:
            if self._stopped:
                return None
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                env={**os.environ, **self._environment},
                cwd=self._directory,
                # Ctrl-C reaches whoever is in the terminal's group: children get it from `stop`,
                # once, because a second one means not to save.
                start_new_session=True,
            )
            self._running.add(child)
        try:
            return child.wait()
        finally:
            with self._lock:
                self._running.discard(child)

    def stop(self, number: signal.Signals) -> None:
        """Send a signal to all, and start no more."""
        with self._lock:
            self._stopped = True
            for child in self._running:
                with suppress(ProcessLookupError):
                    child.send_signal(number)


def run_job(job: Job, children: Children) -> str | None:
    """Run the processes of a job here.

    Returns:
        None, or why it failed, in one line.
    """
    job.log.parent.mkdir(parents=True, exist_ok=True)
    with job.log.open("ab") as log:
        try:
            # Inherited: it stays locked while a child lives, even if this process is killed.
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return BUSY
        log.truncate(0)
        for command in job.commands:
            before = log.seek(0, os.SEEK_END)
            code = children.run(command, log)
            if code is None:
                return "interrupted"
            if code:
                return _last_line(job.log, before) or _ending(code)
    return None


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
