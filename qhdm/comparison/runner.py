"""Runs the cells of a comparison."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from contextlib import contextmanager
from pathlib import Path

from qhdm import console
from qhdm.comparison.cells import Cell
from qhdm.comparison.execution import Executor, Job, cores
from qhdm.device import resolve_device
from qhdm.errors import ComparisonError, QhdmError

#: Interval of reading the cells' progress, seconds.
_POLL = 0.5


def jobs_of(cells: Sequence[Cell], folder: Path) -> dict[str, Job]:
    """The jobs of the cells that are not done, by name.

    Raises:
        ComparisonError: a cell's directory holds a run of another configuration, or no run.
    """
    jobs = {}
    for cell in cells:
        try:
            job = cell.job(folder / "logs" / f"{cell.name}.log")
        except ComparisonError:
            raise
        except QhdmError as error:
            raise ComparisonError(f"cell {cell.name}: {error}") from None
        if job is not None:
            jobs[cell.name] = job
    return jobs


def default_jobs(cells: Sequence[Cell]) -> int:
    """How many cells to run at a time: one per core, or one if they share a CUDA device."""
    devices = {resolve_device(cell.config.train.device).type for cell in cells}
    return 1 if "cuda" in devices else cores()


def run_cells(
    cells: Sequence[Cell],
    jobs: Mapping[str, Job],
    executor: Executor,
    *,
    on_end: Callable[[], object],
    progress: bool = True,
) -> tuple[dict[str, str], bool]:
    """Run the jobs of `cells`; one that fails does not stop the others.

    Args:
        cells: all that are asked for; `jobs` has those that are not done.
        on_end: called when a job has ended.
        progress: show a bar on stderr.

    Returns:
        Why each failed cell did, in one line, and whether a signal stopped the work. Cells that it
        stopped have not failed.
    """
    for cell in (own := [cell for cell in cells if cell.name in jobs]):
        cell.create()
    meters = {cell.name: _Meter(cell, len(jobs[cell.name].commands)) for cell in own}
    bar = console.bar(
        total=sum(len(job.commands) for job in jobs.values()),
        bar_format="{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining} {postfix}",
        miniters=0,  # the time shown advances where the count does not
        smoothing=0,  # cells differ: the mean speed of all predicts best
        show=progress and bool(jobs),
    )
    failures: dict[str, str] = {}
    with bar, _signals() as signals, _closing(executor):
        futures = {executor.submit(job): name for name, job in jobs.items()}
        waiting, handled = set(futures), 0
        while waiting:
            wait(waiting, timeout=_POLL, return_when=FIRST_COMPLETED)
            # Not what `wait` returns: it never reports futures that were cancelled.
            ended = {future for future in waiting if future.done()}
            waiting -= ended
            for future in ended:
                name = futures[future]
                failure = _result(future)
                if failure is not None and not signals:
                    failures[name] = failure
                meters[name].finish()
                on_end()
            if len(signals) > handled:
                handled = len(signals)
                executor.stop(kill=handled > 1)
                console.message("stopping: running cells save")
            running = [
                f"{name} {meters[name].update()}"
                for future, name in futures.items()
                if future in waiting and future.running()
            ]
            finished = len(cells) - len(waiting) - len(failures)
            failed = f", {len(failures)} failed" if failures else ""
            bar.set_description_str(f"{finished}/{len(cells)} cells{failed}", False)
            bar.set_postfix_str(", ".join(running), False)
            bar.update(sum(meter.finished for meter in meters.values()) - bar.n)
        return failures, bool(signals)


def _result(future: Future[str | None]) -> str | None:
    try:
        return future.result()
    except CancelledError:
        return "interrupted"
    except OSError as error:  # the process could not be started, or its log not written
        return f"{error.filename or 'process'}: {error.strerror or error}"


class _Meter:
    """How many processes of a cell are finished, read from its files; a training by its steps."""

    def __init__(self, cell: Cell, commands: int) -> None:
        self._cell, self._commands = cell, commands
        self._first_step = cell.step()
        self._steps = cell.config.train.steps - self._first_step
        self._evaluated = self._evaluations()
        self.finished = 0.0

    def update(self) -> str:
        """Read how far the cell is; returns that as text."""
        step, steps = self._cell.logged_step(), self._cell.config.train.steps
        if self._steps and step < steps:
            self.finished = max(0, step - self._first_step) / self._steps
            return f"{step}/{steps}"
        evaluated = self._evaluations() - self._evaluated
        self.finished = min(bool(self._steps) + evaluated, self._commands)
        return "evaluating"

    def finish(self) -> None:
        self.finished = self._commands

    def _evaluations(self) -> int:
        return sum(map(self._cell.is_evaluated, self._cell.requests))


@contextmanager
def _closing(executor: Executor) -> Iterator[None]:
    """Stop the executor's jobs on errors, and wait for them."""
    try:
        yield
    except BaseException:
        executor.stop()
        raise
    finally:
        executor.close()


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect signals that ask to stop, in place of their usual effect."""
    received: list[int] = []
    previous = {
        number: signal.signal(number, lambda number, _: received.append(number))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) is not signal.SIG_IGN  # as under nohup
    }
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
