"""Runs cells on a Ray cluster (https://docs.ray.io).

Its machines must see this file system and this Python environment under the same paths. Each cell
has an actor, which holds the cell's cores (and GPU) on one machine and runs the cell's processes.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from qhdm.comparison.execution import BUSY, Job, Worker
from qhdm.errors import ComparisonError, first_line

#: Variables of this process that cells get: where data and trained classifiers are kept.
_PASSED_ON = ("QHDM_DATA", "XDG_CACHE_HOME")
#: How often a cell is resumed from its last checkpoint after its machine was lost.
_RESTARTS = 3
#: Time for a cluster to answer, seconds.
_PATIENCE = 30
#: Time for machines to kill their processes, seconds.
_GRACE_SECONDS = 5
#: Interval of checks whether a cell has found room, or has ended, seconds.
_POLL = 0.5


class RayExecutor:
    """Runs processes on the machines of a Ray cluster.

    A cell takes OMP_NUM_THREADS cores (1 by default) and, if it asks for one and the cluster has
    any, a GPU.

    Args:
        jobs: cells at a time; None leaves it to the cluster.
        gpu: whether cells can use a GPU.

    Raises:
        ComparisonError: Ray is not installed, no cluster answers, or it has no room for a cell.
    """

    def __init__(self, jobs: int | None, *, gpu: bool) -> None:
        threads = _threads()
        self._ray = _connected()
        has_gpus = gpu and self._ray.cluster_resources().get("GPU")
        needs = {"CPU": threads, **({"GPU": 1} if has_gpus else {})}
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        fits = sum(
            min(int(node.get(name, 0) // count) for name, count in needs.items()) for node in nodes
        )
        if not fits:
            self._ray.shutdown()
            wanted = " and ".join(f"{count} {name}" for name, count in needs.items())
            raise ComparisonError(
                f"no machine of the Ray cluster has {wanted} for a cell; add one, or set "
                "OMP_NUM_THREADS lower"
            )
        self._jobs, self._machines = min(jobs or fits, fits), len(nodes)
        # Many may wait: waiting cells are what makes a cluster grow.
        self._pool = ThreadPoolExecutor(jobs or 1000, thread_name_prefix="cell")
        self._lock = threading.Lock()
        self._actors: dict[str, Any] = {}
        self._stopped = self._killed = False
        passed_on = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        self._environment = {**passed_on, "OMP_NUM_THREADS": str(threads)}
        self._directory = Path.cwd()
        self._actor = self._ray.remote(_Actor).options(
            num_cpus=threads,
            num_gpus=needs.get("GPU", 0),
            max_concurrency=2,  # `stop` is called while `run` runs
            max_restarts=_RESTARTS,
            # All calls fail until the cluster has noticed that a machine is lost.
            max_task_retries=-1,
        )

    def __str__(self) -> str:
        more = "s" if self._machines > 1 else ""
        return f"{self._jobs} at a time on a Ray cluster of {self._machines} machine{more}"

    def submit(self, job: Job) -> Future[str | None]:
        future: Future[str | None] = Future()
        self._pool.submit(self._follow, replace(job, log=job.log.absolute()), future)
        return future

    def stop(self, *, kill: bool = False) -> None:
        with self._lock:
            self._stopped = True
            actors = list(self._actors.values())
        number = signal.SIGKILL if kill else signal.SIGTERM
        answers = [actor.stop.remote(number) for actor in actors]
        if kill:
            self._ray.wait(answers, num_returns=len(answers), timeout=_GRACE_SECONDS)
            self._killed = True

    def close(self) -> None:
        self._pool.shutdown()
        self._ray.shutdown()

    def _follow(self, job: Job, future: Future[str | None]) -> None:
        """Follow a job from the wait for room to its result."""
        try:
            actor = self._start(job)
            if actor is None:
                future.cancel()
                future.set_running_or_notify_cancel()
                return
            future.set_running_or_notify_cancel()
            ended = actor.run.remote(job)
            while not self._ray.wait([ended], timeout=_POLL)[0]:
                if self._killed:  # its machine may be lost, and never answer
                    future.set_result("interrupted")
                    return
            future.set_result(self._ray.get(ended))
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, OSError):
                future.set_exception(error.cause)
            else:
                future.set_result(f"failed on its machine: {first_line(error.cause)}")
        except self._ray.exceptions.RayError as error:
            future.set_result(f"lost by the Ray cluster: {first_line(error)}")
        except BaseException as error:
            future.set_exception(error)
        finally:
            with self._lock:
                actor = self._actors.pop(job.name, None)
            if actor is not None:
                self._ray.kill(actor)  # makes room

    def _start(self, job: Job) -> Any:
        """An actor that has found room; None if `stop` came first."""
        with self._lock:
            if self._stopped:
                return None
            actor = self._actors[job.name] = self._actor.remote(self._environment, self._directory)
        ready = actor.ready.remote()
        while not self._ray.wait([ready], timeout=_POLL)[0]:
            if self._stopped:
                return None
        self._ray.get(ready)
        return actor


class _Actor(Worker):
    """Runs the job of one cell on a machine of the cluster."""

    def ready(self) -> None:
        """Answered when the actor has found room."""

    def run(self, job: Job) -> str | None:
        import ray

        restarted = ray.get_runtime_context().was_current_actor_reconstructed
        failure = super().run(job)
        # If only the actor was killed, its process is still running.
        while failure == BUSY and restarted and not self._stopped:
            time.sleep(_POLL)
            failure = super().run(job)
        return failure


def _connected() -> Any:
    """The module ray, connected to the cluster of RAY_ADDRESS or, without it, of this machine."""
    try:
        import ray
        import ray.exceptions
    except ModuleNotFoundError:
        raise ComparisonError(
            "--executor ray: Ray is not installed; install it with `pip install 'qhdm[ray]'`"
        ) from None
    try:
        # Tried in another process first: if nothing listens at the address, as when a cluster has
        # ended, this tries for many minutes, and fills stderr.
        probe = [sys.executable, "-c", "import ray; ray.init(address='auto')"]
        subprocess.run(probe, capture_output=True, check=True, timeout=_PATIENCE)
        # What workers print would break the bar; progress is read from files.
        ray.init(address="auto", logging_level=logging.ERROR, log_to_driver=False)
    except (subprocess.SubprocessError, ConnectionError, RuntimeError, ValueError) as error:
        address = os.environ.get("RAY_ADDRESS")
        raise ComparisonError(
            "--executor ray: no Ray cluster answers"
            + (f" at RAY_ADDRESS={address}" if address else " on this machine")
            + f" ({_reason(error)}); start one with `ray start --head`, or name one in RAY_ADDRESS"
        ) from None
    return ray


def _reason(error: Exception) -> str:
    if isinstance(error, subprocess.TimeoutExpired):
        return f"within {_PATIENCE} s"
    text = error.stderr.decode(errors="replace") if hasattr(error, "stderr") else str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _threads() -> int:
    text = os.environ.get("OMP_NUM_THREADS", "1").split(",")[0]  # the others: of nested regions
    if not text.isdecimal() or int(text) < 1:
        raise ComparisonError(f"OMP_NUM_THREADS: {text!r} is not a number from 1 up")
    return int(text)
