"""Cells on a Ray cluster (https://docs.ray.io) that is running already.

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

from qhdm.comparison.execution import BUSY, Children, Job, run_job
from qhdm.errors import ComparisonError, first_line

#: Of this process, for those of the cells: where data and trained classifiers are kept.
_PASSED_ON = ("QHDM_DATA", "XDG_CACHE_HOME")

#: How often a cell goes on from its last checkpoint, elsewhere, after its machine was lost.
_RESTARTS = 3

#: For a cluster to answer, seconds.
_PATIENCE = 30

#: For machines that are there to end their processes at once, seconds.
_GRACE_SECONDS = 5

#: Between looks whether a waiting cell has found room, or is not wanted any more; seconds.
_POLL = 0.5


class RayExecutor:
    """Processes on the machines of a Ray cluster.

    A cell takes OMP_NUM_THREADS cores (1, unless it is set here) and one GPU, where it asks for
    one and the cluster has any.

    Args:
        jobs: cells at a time; None leaves it to the cluster.
        gpu: whether cells can use a GPU.

    Raises:
        ComparisonError: Ray is not installed, no cluster answers, or it has no room for a cell.
    """

    def __init__(self, jobs: int | None, *, gpu: bool) -> None:
        threads = _threads()
        self._ray = _connected()
        room = self._ray.cluster_resources()
        needs = {"CPU": threads} | ({"GPU": 1} if gpu and room.get("GPU") else {})
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
        # Where the cluster may grow, waiting cells are what makes it.
        self._pool = ThreadPoolExecutor(jobs or 1000, thread_name_prefix="cell")
        self._lock = threading.Lock()
        self._workers: dict[str, Any] = {}
        self._stopped = self._killed = False
        environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        self._environment = {**environment, "OMP_NUM_THREADS": str(threads)}
        self._directory = Path.cwd()
        self._worker = self._ray.remote(_Worker).options(
            num_cpus=needs["CPU"],
            num_gpus=needs.get("GPU", 0),
            max_concurrency=2,  # `stop` comes while `run` is at work
            max_restarts=_RESTARTS,
            # Until the cluster has found out that a machine is lost, every call to it fails.
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
            workers = list(self._workers.values())
        answers = [
            worker.stop.remote(signal.SIGKILL if kill else signal.SIGTERM) for worker in workers
        ]
        if kill:
            self._ray.wait(answers, num_returns=len(answers), timeout=_GRACE_SECONDS)
            self._killed = True

    def close(self) -> None:
        self._pool.shutdown()
        self._ray.shutdown()

    def _follow(self, job: Job, future: Future[str | None]) -> None:
        """See a job through, from the wait for room to its result."""
        try:
            with self._lock:
                if not self._stopped:
                    self._workers[job.name] = self._worker.remote(
                        self._environment, self._directory
                    )
            worker = self._workers.get(job.name)
            if worker is None or not self._placed(worker):
                future.cancel()
                future.set_running_or_notify_cancel()
                return
            future.set_running_or_notify_cancel()
            ended = worker.run.remote(job)
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
                worker = self._workers.pop(job.name, None)
            if worker is not None:
                self._ray.kill(worker)  # makes room

    def _placed(self, worker: Any) -> bool:
        """Wait until a worker has its place; False if it is not wanted any more."""
        ready = worker.ready.remote()
        while not self._ray.wait([ready], timeout=_POLL)[0]:
            if self._stopped:
                return False
        self._ray.get(ready)
        return True


class _Worker:
    """What is at work on one machine for one cell: an actor.

    Args:
        environment, directory: as of `Children`.
    """

    def __init__(self, environment: dict[str, str], directory: Path) -> None:
        self._children = Children(environment, directory)

    def ready(self) -> None:
        """Answered when the actor has its place."""

    def run(self, job: Job) -> str | None:
        import ray

        again = ray.get_runtime_context().was_current_actor_reconstructed
        failure = run_job(job, self._children)
        # An actor that was killed alone has left its process at work.
        while failure == BUSY and again and not self._children.stopped:
            time.sleep(_POLL)
            failure = run_job(job, self._children)
        return failure

    def stop(self, number: signal.Signals) -> None:
        self._children.stop(number)


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
        # Tried first in another process: where nothing listens at the address (of a cluster that
        # has ended, say), this tries for many minutes, and fills stderr.
        probe = [sys.executable, "-c", "import ray; ray.init(address='auto')"]
        subprocess.run(probe, capture_output=True, check=True, timeout=_PATIENCE)
        # Cells tell their progress by their files; what workers print would break the bar.
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
    said = error.stderr.decode(errors="replace") if hasattr(error, "stderr") else str(error)
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _threads() -> int:
    text = os.environ.get("OMP_NUM_THREADS", "1").split(",")[0]  # the others: of nested regions
    if not text.isdecimal() or int(text) < 1:
        raise ComparisonError(f"OMP_NUM_THREADS: {text!r} is not a number from 1 up")
    return int(text)
