"""The cost of a sampling job, before it is sent. docs/hardware.md explains the formulas.

    executions = rows of a PUB x executed shots               (rows: after packing)
    QPU seconds of a runtime job = 2 + (rep_delay + duration) x executions

The second is IBM's own baseline for jobs without error mitigation ("Workload usage", IBM Quantum
documentation): 2 s for each job, and the repetition delay and the circuit for each execution.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qhdm.console import duration
from qhdm.errors import BudgetError
from qhdm.hardware.compilation import Figures
from qhdm.hardware.isa import PackedCircuit, before_and_after
from qhdm.hardware.mitigation import calibration_rows
from qhdm.hardware.runtime import Device
from qhdm.hardware.spec import JobSpec
from qhdm.quantum.devices.calibration import left_out

#: QPU seconds of each runtime job, in IBM's formula.
JOB_OVERHEAD = 2.0
#: Limits of the service for one runtime job.
MAX_EXECUTIONS, MAX_BYTES, MAX_JOB_SECONDS = 10_000_000, 50_000_000, 3 * 3600
#: Runtime jobs of one user in a minute; QPU seconds of the free plan in 28 days.
MAX_JOBS_PER_MINUTE, FREE_SECONDS = 5, 600


def qpu_seconds(executions: int, duration: float, rep_delay: float) -> float:
    """QPU seconds of one runtime job."""
    return JOB_OVERHEAD + (rep_delay + duration) * executions


@dataclass(frozen=True, eq=False)
class StageCost:
    """The cost of one filter place in a network evaluation.

    Attributes:
        place: its name.
        evaluations: how many have this cost; guided ones have more rows than others.
        filters: circuits, one for each filter.
        rows: patches of all images and passes, for each filter.
        circuits: their ISA circuits.
        executions: shots of all of them together, packed.
        runtime_jobs: that they are sent as.
        bytes: of parameter values.
        seconds: on the QPU.
    """

    place: str
    evaluations: int
    filters: int
    rows: int
    circuits: Sequence[PackedCircuit]
    executions: int
    runtime_jobs: int
    bytes: int
    seconds: float


@dataclass(frozen=True, eq=False)
class JobEstimate:
    """The cost of a sampling job.

    Attributes:
        spec, device: of the job.
        steps: network evaluations on the device.
        stages: of each of them; twice each place, if some evaluations are guided and others not.
        unpacked_seconds: on the QPU, with one copy of each filter.
    """

    spec: JobSpec
    device: Device
    steps: int
    stages: Sequence[StageCost]
    unpacked_seconds: float

    @property
    def runtime_jobs(self) -> int:
        """Runtime jobs of all evaluations."""
        return sum(stage.evaluations * stage.runtime_jobs for stage in self.stages)

    @property
    def executions(self) -> int:
        """Shots of all circuits."""
        return sum(stage.evaluations * stage.executions for stage in self.stages)

    @property
    def seconds(self) -> float:
        """QPU seconds in job or batch mode."""
        return sum(stage.evaluations * stage.seconds for stage in self.stages)

    @property
    def session_seconds(self) -> float:
        """QPU seconds in session mode, which pays for the time between jobs too."""
        return self.seconds + max(0, self.runtime_jobs - 1) * self.spec.estimate.between_seconds

    @property
    def paid_seconds(self) -> float:
        """QPU seconds in the mode of the specification."""
        return self.session_seconds if self.spec.mode == "session" else self.seconds

    def wall_seconds(self, mode: str) -> float:
        """Time from the first job to the last image."""
        given, jobs = self.spec.estimate, self.runtime_jobs
        queues = 1 if mode == "session" else jobs
        busy = self.seconds + jobs * given.between_seconds + queues * given.queue_seconds
        return max(busy, (jobs - 1) * 60 / self.spec.limits.jobs_per_minute)

    def problems(self) -> list[str]:
        """What exceeds a limit, a line each."""
        spec, problems = self.spec, []
        executed = spec.executed_shots
        if self.device.max_shots is not None and executed > self.device.max_shots:
            problems.append(f"shots: {executed:,} exceed the device's {self.device.max_shots:,}")
        if self.paid_seconds > spec.limits.max_qpu_seconds:
            problems.append(
                f"limits.max_qpu_seconds: {self.paid_seconds:,.1f} s are expected, beyond "
                f"{spec.limits.max_qpu_seconds:,g} s; take fewer shots, images or hardware_steps, "
                "or raise the limit"
            )
        jobs, most = self.runtime_jobs, spec.limits.max_jobs
        if jobs > most:
            problems.append(f"limits.max_jobs: {jobs:,} runtime jobs exceed {most:,}")
        for stage in self.stages:
            if stage.seconds / stage.runtime_jobs > MAX_JOB_SECONDS:
                problems.append(
                    f"{stage.place}: a runtime job would take more than {MAX_JOB_SECONDS:,} s"
                )
        return problems

    def check(self) -> None:
        """Raise `BudgetError` if a limit is exceeded."""
        if problems := self.problems():
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            raise BudgetError(problems[0] + more)


def describe(estimate: JobEstimate) -> str:
    """The dry run: circuits, cost and limits."""
    parts = [_circuits(estimate), _costs(estimate), ["limits", *_limits(estimate)]]
    return "\n\n".join("\n".join(lines) for lines in parts)


def describe_devices(estimates: Sequence[JobEstimate]) -> str:
    """The same job on several devices, a line each."""
    lines = [
        f"{'device':<18}{'2q gates':>9}{'error':>9}{'with shots':>12}{'copies':>8}{'jobs':>6}"
        f"{'QPU s':>9}{'cost':>12}"
    ]
    for estimate in estimates:
        circuits = [isa for stage in estimate.stages for isa in stage.circuits]
        figures = before_and_after(circuits)[1]
        error, both = "-", "-"
        if figures.error is not None:
            error = f"{figures.error:.4f}"
            # Values of filters are far from +-1 most of the time: at most 1 / shots.
            both = f"{math.hypot(figures.error, estimate.spec.executed_shots**-0.5):.4f}"
        price = estimate.spec.estimate.price_per_second
        cost = "-" if price is None else f"{price * estimate.paid_seconds:,.2f}"
        lines.append(
            f"{estimate.device.name:<18}{figures.gates:>9}{error:>9}{both:>12}"
            f"{min(isa.copies for isa in circuits):>8}{estimate.runtime_jobs:>6}"
            f"{estimate.paid_seconds:>9,.1f}{cost:>12}"
        )
    lines += [
        "(2q gates: of a filter; error: rms of <Z> that gates are expected to cause on the best",
        "qubits; with shots: at <Z> = 0; readout errors are in neither)",
    ]
    return "\n".join(lines)


def _circuits(estimate: JobEstimate) -> list[str]:
    """The device, and a table of the stages."""
    spec, device = estimate.spec, estimate.device
    executed = spec.executed_shots
    lines = [
        f"device {device.name}: {device.target.num_qubits} qubits ({device.source}), "
        f"repetition delay {1e6 * device.rep_delay:g} us",
        *filter(None, [left_out(device.target)]),
        f"images per class: {spec.images}; {estimate.steps} network evaluations on the device, "
        f"{spec.shots:,} shots"
        + (f" (executed: {executed:,}, in equal parts)" if executed != spec.shots else ""),
        "",
        f"{'place':<28}{'times':>6}{'filters':>8}{'rows':>8}{'copies':>7}{'packed':>8}"
        f"{'2q gates':>11}{'2q depth':>11}{'us':>14}{'error':>17}{'jobs':>6}{'QPU s':>8}",
    ]
    for stage in estimate.stages:
        isa = stage.circuits
        copies = min(circuit.copies for circuit in isa)
        before, after = before_and_after(isa)
        before = None if spec.compile == "off" else before
        gates, depth, us, error = (
            _change(*pair) for pair in zip(_figures(before or after), _figures(after), strict=True)
        )
        lines.append(
            f"{stage.place:<28}{stage.evaluations:>6}{stage.filters:>8}{stage.rows:>8}{copies:>7}"
            f"{max(circuit.packed(stage.rows) for circuit in isa):>8}"
            f"{gates:>11}{depth:>11}{us:>14}{error:>17}{stage.runtime_jobs:>6}{stage.seconds:>8.1f}"
        )
    bias = math.sqrt(np.mean([c.bias**2 for stage in estimate.stages for c in stage.circuits]))
    lines += [
        "(times: network evaluations; rows: patches of all images and passes, for each filter; 2q:",
        "of one copy; error: rms of <Z> by gates on the best qubits, without readout and shots)",
        f"compile: {spec.compile}" + (" (before > after)" if spec.compile != "off" else ""),
    ]
    if spec.mitigation != "none":
        lines.append(f"mitigation: {spec.mitigation}{_calibration(estimate)}")
    if spec.compile == "approximate":
        lines.append(f"of the error, by approximation alone: {bias:.4f}")
    return lines


def _calibration(estimate: JobEstimate) -> str:
    """The calibration rows of each filter, in words."""
    if estimate.spec.mitigation != "affine":
        return ""
    packed = [c.packed(stage.rows) for stage in estimate.stages for c in stage.circuits]
    few, many = calibration_rows(min(packed)), calibration_rows(max(packed))
    return f", {few}{f' to {many}' if many > few else ''} calibration rows beside the packed ones"


def _figures(figures: Figures) -> tuple[str, str, str, str]:
    error = "-" if figures.error is None else f"{figures.error:.4f}"
    return str(figures.gates), str(figures.depth), f"{1e6 * figures.duration:.1f}", error


def _change(before: str, after: str) -> str:
    return after if before == after else f"{before} > {after}"


def _costs(estimate: JobEstimate) -> list[str]:
    spec, given = estimate.spec, estimate.spec.estimate
    circuits = sum(s.evaluations * s.filters * s.rows for s in estimate.stages)
    places = len({stage.place for stage in estimate.stages})
    share = estimate.paid_seconds / FREE_SECONDS
    cost = "unknown; set estimate.price_per_second to what your plan charges"
    if given.price_per_second is not None:
        price, currency = given.price_per_second, given.currency
        cost = f"{price * estimate.paid_seconds:,.2f} {currency} at {price:g} {currency}/s"
    return [
        f"circuits: {circuits:,}",
        f"runtime jobs: {estimate.runtime_jobs:,} "
        f"({places} stages of {estimate.steps} evaluations)",
        f"executions: {estimate.executions:,}",
        f"QPU seconds: {estimate.seconds:,.1f} in job or batch mode, "
        f"{estimate.session_seconds:,.1f} in a session",
        f"QPU seconds without packing: {estimate.unpacked_seconds:,.1f}",
        f"wall time: {duration(estimate.wall_seconds('job'))} in job mode, "
        f"{duration(estimate.wall_seconds('session'))} in a session, "
        f"with {given.queue_seconds:g} s of queue and {given.between_seconds:g} s between jobs "
        "(settings)",
        f"share of the free plan's {FREE_SECONDS} s: {100 * share:,.1f} % ({spec.mode} mode)",
        f"cost: {cost}",
    ]


def _limits(estimate: JobEstimate) -> list[str]:
    spec = estimate.spec
    largest = max(estimate.stages, key=lambda s: s.executions / s.runtime_jobs)
    executions = largest.executions // largest.runtime_jobs
    megabytes = largest.bytes // largest.runtime_jobs / 1e6
    per_minute = spec.limits.jobs_per_minute
    too_many = " (more than the service takes)"
    lines = [
        f"executions of a runtime job: {executions:,} of {MAX_EXECUTIONS:,}",
        f"parameter values of a runtime job: {megabytes:.2f} MB of {MAX_BYTES / 1e6:.0f} MB",
        f"runtime jobs a minute: {per_minute} of {MAX_JOBS_PER_MINUTE}"
        + too_many * (per_minute > MAX_JOBS_PER_MINUTE and not spec.local),
        f"shots: {spec.executed_shots:,} of {estimate.device.max_shots or 'any number'}",
        *(estimate.problems() or ["all kept"]),
    ]
    return [f"  {line}" for line in lines]
