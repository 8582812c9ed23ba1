"""Engine options and the constants of filters, as plain data without engine imports."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, ConfigDict, Field

#: More shots than this say nothing that `shots: null`, the exact values, does not.
MAX_SHOTS = 1_000_000

#: A filter reads a patch of 2x2 pixels of three channels: one value per qubit.
PATCH_SIZE = 2
PATCH_CHANNELS = 3

#: What a configuration calls the engines.
EngineName = Literal["exact", "exact:network", "exact:statevector", "aer"]
Method = Literal["auto", "statevector", "density_matrix", "matrix_product_state"]
Shots = Annotated[int, Field(ge=1, le=MAX_SHOTS)]
#: The name of a device, or the path of a calibration file.
Noise = Annotated[str, Field(min_length=1, max_length=4096, pattern=r"^[^\x00]*$")]

#: For values that are read from files: unknown keys are refused, and so is what is not a number.
_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True)
class Exact:
    """Analytic values, differentiable in torch.

    Attributes:
        method: `auto` chooses the cheaper one for each component of a circuit; `network` and
            `statevector` prescribe it.

    Example:
        >>> qhdm.Sampling(engine=qhdm.Exact()).engine.name
        'exact'
    """

    method: Literal["auto", "network", "statevector"] = "auto"

    @property
    def name(self) -> str:
        """What a configuration calls it."""
        return "exact" if self.method == "auto" else f"exact:{self.method}"

    @property
    def label(self) -> str:
        """For people, in a table of engines."""
        return self.name

    @property
    def description(self) -> str:
        """Human-readable name, used on its own."""
        return self.name


@dataclass(frozen=True)
class SpsaOptions:
    """Simultaneous perturbation (Spall 1992).

    Attributes:
        averages: random directions per gradient; each costs two circuits per component.
        perturbation: how far inputs and weights are moved, radians.
    """

    __pydantic_config__ = _STRICT

    averages: Annotated[int, Field(ge=1)] = 4
    perturbation: Annotated[float, Field(gt=0, le=1.5)] = 0.2


@dataclass(frozen=True)
class Aer:
    """Circuits on Qiskit Aer (docs/aer.md).

    Attributes:
        method: `statevector`; `density_matrix`; `matrix_product_state`; or `auto`: without noise
            the state vector where memory holds it and the matrix product state elsewhere, with
            noise the density matrix of small circuits and the trajectories of large ones.
        shots: samples per circuit; None gives expectation values without sampling noise.
        noise: None, the name of a device (`fake_torino`), or the path of a calibration file
            (`*.json`).
        device: `GPU` needs qiskit-aer-gpu.
        gradient: `exact` (the exact engine's: straight-through), `shift` (parameter shift) or
            `spsa` (simultaneous perturbation).
        spsa: of the gradient `spsa`.
        threads: most threads of Aer; 0 is all cores.

    Example:
        >>> qhdm.Aer(shots=1024, noise="fake_torino").label
        'fake_torino, 1024 shots'
    """

    __pydantic_config__ = _STRICT

    method: Method = "auto"
    shots: Shots | None = None
    noise: Noise | None = None
    device: Literal["CPU", "GPU"] = "CPU"
    gradient: Literal["exact", "shift", "spsa"] = "exact"
    spsa: SpsaOptions = SpsaOptions()
    threads: Annotated[int, Field(ge=0)] = 0

    @property
    def name(self) -> str:
        """What a configuration calls it."""
        return "aer"

    @property
    def label(self) -> str:
        """For people, in a table of engines: `64 shots`, `fake_torino, without shots`."""
        parts = [Path(self.noise).stem] if self.noise else []
        parts.append(f"{self.shots} shots" if self.shots else "without shots")
        if self.method != "auto":
            parts.append(self.method)
        if self.device != "CPU":
            parts.append(self.device)
        return ", ".join(parts)

    @property
    def description(self) -> str:
        """Human-readable name, used on its own: `aer, 64 shots`."""
        return f"{self.name}, {self.label}"

    def problem(self) -> tuple[str, str] | None:
        """The option that cannot be as it is, and why; None if all can."""
        if self.shots is not None and not 1 <= self.shots <= MAX_SHOTS:
            return "shots", (
                f"{self.shots} is not between 1 and {MAX_SHOTS:,}; null gives expectation values "
                "without sampling"
            )
        if self.noise is not None and self.method == "matrix_product_state":
            return "method", "matrix_product_state has no device noise here; use auto, or no noise"
        if self.noise is not None and self.method == "statevector" and self.shots is None:
            return "shots", (
                "noise on state vectors is sampled, trajectory by trajectory: set a number, or use "
                "method density_matrix"
            )
        if self.spsa.averages < 1:
            return "spsa.averages", f"{self.spsa.averages} is not a number from 1 up"
        if not 0 < self.spsa.perturbation <= 1.5:
            return "spsa.perturbation", (
                f"{self.spsa.perturbation} is not above 0 and at most 1.5 radians"
            )
        if self.threads < 0:
            return "threads", f"{self.threads} is not a number from 0 up; 0 is all cores"
        return None


#: The backend of ideal circuits on this machine: every gate on every pair of qubits, no noise.
IDEAL = "aer"
#: As IBM's client chooses them: most random circuits, and fewest shots of each.
_MAX_RANDOM, _MIN_SHOTS = 32, 64

Place = Literal["vertex", "encoder"]
Mitigation = Literal["none", "trex", "affine"]
#: YAML reads a plain `off` as false.
Compile = Annotated[
    Literal["exact", "approximate", "off"], BeforeValidator(lambda v: "off" if v is False else v)
]


def randomizations(shots: int) -> int:
    """The number of random circuits that twirled shots are spread over, in equal parts.

    It is what the client would choose. Left to choose the parts as well, it would take at least 64
    shots for each, and execute up to 97 % more than were asked for.
    """
    return math.ceil(shots / max(_MIN_SHOTS, math.ceil(shots / _MAX_RANDOM)))


@dataclass(frozen=True)
class Twirling:
    """Pauli twirling: random circuits of the same effect turn noise into a Pauli channel.

    Attributes:
        gates: twirl two-qubit gates.
        measure: twirl measurements.
    """

    __pydantic_config__ = _STRICT

    gates: bool = False
    measure: bool = False


@dataclass(frozen=True)
class Limits:
    """What a sampling job on a backend may use. Limits may change when it is resumed.

    Attributes:
        max_qpu_seconds: of all its runtime jobs together.
        max_jobs: runtime jobs.
        jobs_per_minute: runtime jobs submitted; IBM refuses more than 5 of one user.
        max_wait_seconds: of one runtime job in the queue; None waits for ever.
        max_error_growth: on resuming, circuits may have become this many times as error-prone as
            when they were laid out; None sends them whatever the device's calibration says.
        settle_seconds: time for a runtime job to appear in the service's list, and for its result
            to be readable: what should be there is looked for this long before it is sent, and
            paid for, again.

    Example:
        >>> qhdm.Hardware("ibm_fez", limits=qhdm.Limits(max_qpu_seconds=60)).limits.max_jobs
        1000
    """

    __pydantic_config__ = _STRICT

    max_qpu_seconds: Annotated[float, Field(gt=0)] = 600.0
    max_jobs: Annotated[int, Field(ge=1)] = 1000
    jobs_per_minute: Annotated[int, Field(ge=1, le=100_000)] = 5
    max_wait_seconds: Annotated[float, Field(gt=0)] | None = None
    max_error_growth: Annotated[float, Field(ge=1)] | None = 2.0
    settle_seconds: Annotated[float, Field(ge=0, le=3600)] = 60.0


@dataclass(frozen=True)
class Hardware:
    """Runtime jobs on an IBM backend, or its rehearsal on this machine (docs/hardware.md).

    `Run.sample` keeps such a request as a sampling job, `RUN/jobs/<backend>-<digest of request>`.
    Asking again resumes the job, or reads its images: nothing is paid for twice. On an IBM backend
    nothing is submitted without `limits`; the refusal says what the request is expected to cost.

    Attributes:
        backend: the name of an IBM backend (`ibm_fez`); `fake_...`, local, with the noise of that
            device; or `aer`, local and ideal.
        shots: of each circuit; see `executed_shots`.
        places: whose filters run on the backend; the others stay on the exact engine.
        instance: CRN or name; None takes QISKIT_IBM_INSTANCE, or the account's.
        mode: `job`; `batch`; or `session`, which keeps the device and pays for the time between.
        mitigation: `affine` corrects a scale and an offset for each qubit, fitted to known inputs;
            `trex` divides readout errors out (van den Berg et al. 2022); `none`.
        dynamical_decoupling: sequence of pulses on idle qubits; None is none.
        twirling: Pauli twirling.
        packing: copies of a filter side by side on the chip; `auto` takes as many as fit on good
            qubits.
        layout_seed: of the transpiler.
        compile: `exact` replaces components of up to three qubits by circuits of fewer gates with
            the same <Z>; `approximate` chooses the number of gates with the least expected error;
            `off` transpiles them gate by gate.
        fractional_gates: RZZ and RX of any angle in one pulse: `auto` where the device has them and
            the expected error falls, and never with twirled gates; True takes them instead of its
            other two-qubit gates; False takes none.
        limits: what may be spent; needed on IBM backends.

    Example:
        >>> run = qhdm.train(CONFIG, DATASET, callbacks=[])
        >>> rehearsal = qhdm.Hardware("aer", shots=64, places=("encoder",))
        >>> request = qhdm.Sampling(classes=[0], num=1, steps=1, engine=rehearsal)
        >>> images = run.sample(request)
        >>> np.array_equal(run.sample(request), images)  # read from the job's directory
        True
    """

    __pydantic_config__ = _STRICT

    backend: Annotated[str, Field(pattern=r"^[a-z0-9_]+$", max_length=64)]
    shots: Annotated[int, Field(ge=1, le=100_000)] = 1024
    places: Annotated[tuple[Place, ...], Field(min_length=1)] = ("vertex",)
    instance: Annotated[str, Field(min_length=1)] | None = None
    mode: Literal["job", "batch", "session"] = "job"
    mitigation: Mitigation = "none"
    dynamical_decoupling: Literal["XX", "XpXm", "XY4"] | None = None
    twirling: Twirling = Twirling()
    packing: Annotated[int, Field(ge=1, le=1000)] | Literal["auto"] = "auto"
    layout_seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    compile: Compile = "exact"
    fractional_gates: bool | Literal["auto"] = "auto"
    limits: Limits | None = None

    @property
    def name(self) -> str:
        """What a configuration calls it."""
        return "hardware"

    @property
    def label(self) -> str:
        """For people, in a table of engines."""
        return f"{self.backend}, {self.shots} shots"

    @property
    def description(self) -> str:
        """Human-readable name, used on its own."""
        return f"{self.name}, {self.label}"

    @property
    def local(self) -> bool:
        """Whether it runs on this machine, without an account."""
        return self.backend == IDEAL or self.backend.startswith("fake_")

    @property
    def twirled(self) -> bool:
        """Whether circuits are sent as random ones of the same effect."""
        return self.twirling.gates or self.twirling.measure or self.mitigation == "trex"

    @property
    def fractional(self) -> bool | Literal["auto"]:
        """`fractional_gates`, where the client allows them: it cannot twirl them."""
        return False if self.twirling.gates else self.fractional_gates

    @property
    def executed_shots(self) -> int:
        """Shots of each circuit that are executed: twirled ones fill all random circuits alike."""
        parts = randomizations(self.shots) if self.twirled else 1
        return parts * math.ceil(self.shots / parts)

    def problem(self) -> tuple[str, str] | None:
        """The option that does not go with the others, and why; None if all do."""
        if len(set(self.places)) != len(self.places):
            return "places", f"one is given twice in {list(self.places)}"
        if self.local and self.mode != "job":
            return "mode", f"{self.mode} needs the service, {self.backend} runs here: use job"
        if self.dynamical_decoupling is not None and self.backend == IDEAL:
            return "dynamical_decoupling", "the ideal backend aer has no idle noise"
        if self.dynamical_decoupling is not None and self.twirled:
            # Boxes of twirled gates have no schedule to pad.
            return "dynamical_decoupling", (
                "not together with twirling or mitigation trex, whose random circuits the client "
                "does not schedule; use one of them"
            )
        if self.fractional_gates is True and self.twirling.gates:
            return "fractional_gates", (
                "the client cannot twirl them: set it to auto or false, or twirling.gates to false"
            )
        return None


#: A complete engine: what is not given is its default.
EngineOptions = Exact | Aer | Hardware

#: The engines by name, with their defaults.
ENGINES: dict[str, EngineOptions] = {
    options.name: options for options in (Exact(), Exact("network"), Exact("statevector"), Aer())
}
