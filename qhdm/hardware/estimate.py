"""What a sampling job costs, before it is sent. docs/hardware.md explains the formulas.

    executions = rows of a PUB x executed shots               (rows: after packing)
    QPU seconds of a job = 2 + (rep_delay + duration) x executions

The second is IBM's own baseline for jobs without error mitigation ("Workload usage", IBM Quantum
documentation): 2 s for each job, and the repetition delay and the circuit for each execution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qhdm.hardware.isa import IsaCircuit
from qhdm.hardware.runtime import Device
from qhdm.hardware.spec import JobSpec
from qhdm.quantum.devices.calibration import left_out

#: Of IBM's formula, seconds on the QPU.
JOB_OVERHEAD = 2.0
#: Limits of the service for one job.
MAX_EXECUTIONS, MAX_BYTES, MAX_JOB_SECONDS = 10_000_000, 50_000_000, 3 * 3600
#: Of one user, a minute; QPU seconds of the free plan in 28 days.
MAX_JOBS_PER_MINUTE, FREE_SECONDS = 5, 600


def qpu_seconds(executions: int, duration: float, rep_delay: float) -> float:
    """Of one job."""
    return JOB_OVERHEAD + (rep_delay + duration) * executions


@dataclass(frozen=True, eq=False)
class StageCost:
    """One evaluation of one filter place.

    Attributes:
        place: its name.
        filters: circuits, one for each filter.
        rows: patches of all images and passes, for each filter.
        circuits: their ISA circuits.
        executions: shots of all of them together, packed.
        jobs: that they are sent as.
        bytes: of parameter values.
        seconds: on the QPU.
    """

    place: str
    filters: int
    rows: int
    circuits: Sequence[IsaCircuit]
    executions: int
    jobs: int
    bytes: int
    seconds: float


@dataclass(frozen=True, eq=False)
class Estimate:
    """A whole sampling job.

    Attributes:
        spec, device: of the job.
        steps: network evaluations on the device.
        stages: of each of them.
        unpacked_seconds: on the QPU, with one copy of each filter.
    """

    spec: JobSpec
    device: Device
    steps: int
    stages: Sequence[StageCost]
    unpacked_seconds: float

    @property
    def jobs(self) -> int:
        """Of the service."""
        return self.steps * sum(stage.jobs for stage in self.stages)

    @property
    def executions(self) -> int:
        """Shots of all circuits."""
        return self.steps * sum(stage.executions for stage in self.stages)

    @property
    def seconds(self) -> float:
        """On the QPU, in job or batch mode."""
        return self.steps * sum(stage.seconds for stage in self.stages)

    @property
    def session_seconds(self) -> float:
        """Paid for in session mode: also the time between jobs."""
        return self.seconds + max(0, self.jobs - 1) * self.spec.estimate.between_seconds

    @property
    def paid_seconds(self) -> float:
        """In the mode of the specification."""
        return self.session_seconds if self.spec.mode == "session" else self.seconds

    def wall_seconds(self, mode: str) -> float:
        """From the first job to the last image."""
        given, jobs = self.spec.estimate, self.jobs
        queues = 1 if mode == "session" else jobs
        busy = self.seconds + jobs * given.between_seconds + queues * given.queue_seconds
        return max(busy, (jobs - 1) * 60 / self.spec.limits.jobs_per_minute)

    def problems(self) -> list[str]:
        """What a limit does not allow, a line each."""
        spec, found = self.spec, []
        executed = spec.executed_shots
        if self.device.max_shots is not None and executed > self.device.max_shots:
            found.append(f"shots: {executed:,} exceed the device's {self.device.max_shots:,}")
        if self.paid_seconds > spec.limits.max_qpu_seconds:
            found.append(
                f"limits.max_qpu_seconds: {self.paid_seconds:,.1f} s are expected, beyond "
                f"{spec.limits.max_qpu_seconds:,g} s; take fewer shots, images or hardware_steps, "
                "or raise the limit"
            )
        if self.jobs > spec.limits.max_jobs:
            found.append(f"limits.max_jobs: {self.jobs:,} jobs exceed {spec.limits.max_jobs:,}")
        for stage in self.stages:
            if stage.seconds / stage.jobs > MAX_JOB_SECONDS:
                found.append(f"{stage.place}: a job would take more than {MAX_JOB_SECONDS:,} s")
        return found


def describe(estimate: Estimate) -> str:
    """The dry run: circuits, cost and limits."""
    spec, device = estimate.spec, estimate.device
    executed = spec.executed_shots
    lines = [
        f"device {device.name}: {device.target.num_qubits} qubits ({device.source}), "
        f"repetition delay {1e6 * device.rep_delay:g} us",
        *filter(None, [left_out(device.target)]),
        f"{spec.images} images of each class, {estimate.steps} network evaluations on the device, "
        f"{spec.shots:,} shots"
        + (f" (executed: {executed:,}, in equal parts)" if executed != spec.shots else ""),
        "",
        f"{'place':<28}{'filters':>8}{'rows':>8}{'copies':>7}{'packed':>8}"
        f"{'2q gates':>9}{'2q depth':>9}{'us':>7}{'jobs':>6}{'QPU s':>8}",
    ]
    for stage in estimate.stages:
        isa = stage.circuits
        copies = min(circuit.copies for circuit in isa)
        lines.append(
            f"{stage.place:<28}{stage.filters:>8}{stage.rows:>8}{copies:>7}"
            f"{max(-(-stage.rows // c.copies) for c in isa):>8}"
            f"{max(c.two_qubit_gates for c in isa):>9}{max(c.two_qubit_depth for c in isa):>9}"
            f"{1e6 * max(c.duration for c in isa):>7.1f}{stage.jobs:>6}{stage.seconds:>8.1f}"
        )
    circuits = sum(s.filters * s.rows for s in estimate.stages)
    share = estimate.paid_seconds / FREE_SECONDS
    lines += [
        "(rows: patches of all images and passes, for each filter; 2q: of one copy)",
        "",
        f"circuits per network evaluation: {circuits:,}",
        f"jobs: {estimate.jobs:,} ({len(estimate.stages)} stages of {estimate.steps} evaluations)",
        f"executions: {estimate.executions:,}",
        f"QPU seconds: {estimate.seconds:,.1f} in job or batch mode, "
        f"{estimate.session_seconds:,.1f} in a session",
        f"QPU seconds without packing: {estimate.unpacked_seconds:,.1f}",
        f"wall time: {_hours(estimate.wall_seconds('job'))} in job mode, "
        f"{_hours(estimate.wall_seconds('session'))} in a session, "
        f"with {spec.estimate.queue_seconds:g} s of queue and "
        f"{spec.estimate.between_seconds:g} s between jobs (settings)",
        f"share of the free plan's {FREE_SECONDS} s: {100 * share:,.1f} % ({spec.mode} mode)",
        _cost(estimate),
        "",
        "limits",
    ]
    largest = max(estimate.stages, key=lambda s: s.executions / s.jobs)
    checks = [
        (f"executions of a job: {largest.executions // largest.jobs:,} of {MAX_EXECUTIONS:,}", ""),
        (
            f"parameter values of a job: {largest.bytes // largest.jobs / 1e6:.2f} MB of "
            f"{MAX_BYTES / 1e6:.0f} MB",
            "",
        ),
        (f"jobs a minute: {spec.limits.jobs_per_minute} of {MAX_JOBS_PER_MINUTE}",
         "more than the service takes" if spec.limits.jobs_per_minute > MAX_JOBS_PER_MINUTE
         and not spec.local else ""),
        (f"shots: {executed:,} of {device.max_shots or 'any number'}", ""),
    ]  # fmt: skip
    lines += [f"  {text}{f' ({warning})' if warning else ''}" for text, warning in checks]
    problems = estimate.problems()
    lines += [f"  {problem}" for problem in problems] or ["  all kept"]
    return "\n".join(lines)


def _cost(estimate: Estimate) -> str:
    price, currency = estimate.spec.estimate.price_per_second, estimate.spec.estimate.currency
    if price is None:
        return "cost: unknown; set estimate.price_per_second to what your plan charges"
    return f"cost: {price * estimate.paid_seconds:,.2f} {currency} at {price:g} {currency}/s"


def _hours(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
