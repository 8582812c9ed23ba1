"""Working through the cells of a comparison."""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from qhdm import console
from qhdm.comparison.cells import Cell
from qhdm.comparison.execution import Executor, Job, cores
from qhdm.device import resolve_device
from qhdm.errors import ComparisonError, QhdmError

#: Between looks at the cells' directories, seconds.
_POLL = 0.5


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of the cells that had something left to do.

    Attributes:
        failures: of each cell that failed, why, in one line.
        interrupted: whether a signal stopped the work; cells that it stopped have not failed.
    """

    failures: Mapping[str, str]
    interrupted: bool


def jobs_of(cells: Sequence[Cell], folder: Path) -> dict[str, Job]:
    """What is left to do, for each cell that is not done.

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
    """Cells at a time: one per core, but one where they share a CUDA device."""
    devices = {resolve_device(cell.config.train.device).type for cell in cells}
    return 1 if "cuda" in devices else cores()


def work(
    cells: Sequence[Cell],
    jobs: Mapping[str, Job],
    executor: Executor,
    *,
    done: Callable[[], object],
    progress: bool = True,
) -> Outcome:
    """Run the jobs of `cells`. One that fails does not stop the others.

    Args:
        cells: all that are asked for.
        jobs: of those that are not done.
        executor: where they run.
        done: called when one has ended.
        progress: show a bar on stderr.
    """
    begun = {cell.name: cell for cell in cells if cell.name in jobs}
    for cell in begun.values():
        cell.begin()
    parts = {name: _Parts(cell, len(jobs[name].commands)) for name, cell in begun.items()}
    bar = console.bar(
        total=sum(len(job.commands) for job in jobs.values()),
        bar_format="{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining} {postfix}",
        miniters=0,  # time goes on where nothing is counted
        smoothing=0,  # cells differ: the mean speed of all tells most
        show=progress and bool(jobs),
    )
    failures: dict[str, str] = {}
    with bar, _signals() as signals, _closing(executor):
        futures = {executor.submit(job): name for name, job in jobs.items()}
        waiting, handled = set(futures), 0
        while waiting:
            wait(waiting, timeout=_POLL, return_when=FIRST_COMPLETED)
            # Asked themselves: `wait` is never told of futures that were cancelled.
            ended = {future for future in waiting if future.done()}
            waiting -= ended
            for future in ended:
                name = futures[future]
                failure = _result(future)
                if failure is not None and not signals:
                    failures[name] = failure
                parts[name].end()
                done()
            if len(signals) > handled:
                handled = len(signals)
                executor.stop(kill=handled > 1)
                console.message("stopping: running cells save")
            shown = [
                f"{name} {parts[name].look()}"
                for future, name in futures.items()
                if future in waiting and future.running()
            ]
            finished = len(cells) - len(waiting) - len(failures)
            failed = f", {len(failures)} failed" if failures else ""
            bar.set_description_str(f"{finished}/{len(cells)} cells{failed}", False)
            bar.set_postfix_str(", ".join(shown), False)
            bar.update(sum(part.finished for part in parts.values()) - bar.n)
        return Outcome(failures, interrupted=bool(signals))


def _result(future: Future[str | None]) -> str | None:
    try:
        return future.result()
    except CancelledError:
        return "interrupted"
    except OSError as error:  # the process could not be started, or its log not written
        return f"{error.filename or 'process'}: {error.strerror or error}"


class _Parts:
    """Progress of a cell in processes, a training counting by its steps, read from its files."""

    def __init__(self, cell: Cell, commands: int) -> None:
        self._cell, self._commands = cell, commands
        self._first_step = cell.step()
        self._steps = cell.config.train.steps - self._first_step
        self._evaluated = self._evaluations()
        self.finished = 0.0

    def look(self) -> str:
        """Find out how far it is, and say so."""
        step, steps = self._cell.progress(), self._cell.config.train.steps
        if self._steps and step < steps:
            self.finished = max(0, step - self._first_step) / self._steps
            return f"{step}/{steps}"
        evaluated = self._evaluations() - self._evaluated
        self.finished = min(bool(self._steps) + evaluated, self._commands)
        return "evaluating"

    def end(self) -> None:
        self.finished = self._commands

    def _evaluations(self) -> int:
        return sum(map(self._cell.is_evaluated, self._cell.requests))


@contextmanager
def _closing(executor: Executor) -> Iterator[None]:
    """Leave nothing running behind."""
    try:
        yield
    except BaseException:
        executor.stop()
        raise
    finally:
        executor.close()


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect the signals that ask to stop, instead of ending at once."""
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        received.append(number)

    previous = {
        number: signal.signal(number, handle)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) is not signal.SIG_IGN  # as under nohup
    }
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
