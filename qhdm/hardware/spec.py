"""Job specifications: jobs/*.yaml to frozen dataclasses, validated like configurations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import field
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import ConfigDict, Field, TypeAdapter, model_validator
from pydantic.dataclasses import dataclass

from qhdm.config import FilePath, SamplerOptions
from qhdm.errors import ConfigError
from qhdm.schema import read_document, validate, with_overrides
from qhdm.shipped import find_shipped

_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)

Positive = Annotated[int, Field(ge=1)]
Place = Literal["vertex", "encoder"]

#: The backend of ideal circuits: every gate on every pair of qubits, without noise.
IDEAL = "aer"
#: As the client chooses them: shots of one random circuit at least, and random circuits at most.
_SHOTS_OF_ONE, _MOST_RANDOM = 64, 32


def randomizations(shots: int) -> int:
    """Random circuits that twirled shots are spread over, in equal parts.

    It is the number that the client would choose. The parts are its other choice, and are left to
    it: by itself it would take at least 64 shots for each, and execute up to 97 % more than asked.
    """
    return math.ceil(shots / max(_SHOTS_OF_ONE, math.ceil(shots / _MOST_RANDOM)))


@dataclass(frozen=True, config=_STRICT)
class TwirlingConfig:
    """Pauli twirling: noise that averages to a Pauli channel, at the price of random circuits.

    Attributes:
        gates: of two-qubit gates.
        measure: of measurements.
    """

    gates: bool = False
    measure: bool = False


@dataclass(frozen=True, config=_STRICT)
class LimitsConfig:
    """What a job may take. These may be changed on resuming.

    Attributes:
        max_qpu_seconds: of all its jobs together, on the QPU.
        max_jobs: of the service.
        jobs_per_minute: submitted at most; the service refuses more than 5 of one user.
        max_wait_seconds: of one job in the queue; null waits for ever.
        max_error_growth: on resuming, circuits may have become so many times as error-prone as when
            they were laid out; null sends them whatever the device's calibration says.
        settle_seconds: in which a job shows up in the service's list, and a result can be had: so
            long is looked for what should be there before it is sent, and paid for, again.
    """

    max_qpu_seconds: Annotated[float, Field(gt=0)] = 600.0
    max_jobs: Positive = 1000
    jobs_per_minute: Annotated[int, Field(ge=1, le=100_000)] = 5
    max_wait_seconds: Annotated[float, Field(gt=0)] | None = None
    max_error_growth: Annotated[float, Field(ge=1)] | None = 2.0
    settle_seconds: Annotated[float, Field(ge=0, le=3600)] = 60.0


@dataclass(frozen=True, config=_STRICT)
class EstimateConfig:
    """What the cost estimate cannot know.

    Attributes:
        price_per_second: of QPU time on your plan; null prints no cost.
        currency: of the price.
        queue_seconds: that a job waits in the queue; the dry run cannot see the queue.
        between_seconds: from one job to the next: the rest of the network, transfers, polling.
    """

    price_per_second: Annotated[float, Field(ge=0)] | None = None
    currency: Annotated[str, Field(min_length=1, max_length=8)] = "USD"
    queue_seconds: Annotated[float, Field(ge=0)] = 0.0
    between_seconds: Annotated[float, Field(ge=0)] = 5.0


@dataclass(frozen=True, config=_STRICT, kw_only=True)
class JobSpec(SamplerOptions):
    """A sampling job with quantum filters on a backend.

    Attributes:
        run: the run directory of a trained model; `runs/quickstart` also means the newest of
            `runs/quickstart-<time>`.
        backend: `aer` (ideal, local), `fake_...` (local, with the noise of that device), or the
            name of an IBM backend (`ibm_fez`).
        classes: to generate; null takes all.
        images: of each class.
        sampler, steps, guidance, eta, seed, weights: see `qhdm.Sampling`.
        hardware_steps: the last so many network evaluations, or `all`; the others are exact.
        places: whose filters run on the backend; the others stay on the exact engine.
        instance: CRN or name; null takes QISKIT_IBM_INSTANCE, or the account's.
        mode: `job`; `batch`; or `session`, which keeps the device and pays for the time between.
        shots: of each circuit; see `executed_shots`.
        resilience_level: 0, or 1: readout errors are divided out (TREX, van den Berg et al. 2022).
        dynamical_decoupling: sequence of pulses on idle qubits; null is none.
        twirling: Pauli twirling.
        packing: copies of a filter side by side on the chip; `auto` takes as many as fit on good
            qubits.
        layout_seed: of the transpiler.
        limits, estimate: see there.
    """

    run: FilePath
    backend: Annotated[str, Field(pattern=r"^[a-z0-9_]+$", max_length=64)]
    classes: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    images: Annotated[int, Field(ge=1, le=10_000)] = 1
    hardware_steps: Positive | Literal["all"] = "all"
    places: Annotated[tuple[Place, ...], Field(min_length=1)] = ("vertex",)
    instance: Annotated[str, Field(min_length=1)] | None = None
    mode: Literal["job", "batch", "session"] = "job"
    shots: Annotated[int, Field(ge=1, le=100_000)] = 1024
    resilience_level: Annotated[int, Field(ge=0, le=2)] = 0
    dynamical_decoupling: Literal["XX", "XpXm", "XY4"] | None = None
    twirling: TwirlingConfig = field(default_factory=TwirlingConfig)
    packing: Annotated[int, Field(ge=1, le=1000)] | Literal["auto"] = "auto"
    layout_seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    estimate: EstimateConfig = field(default_factory=EstimateConfig)

    @property
    def local(self) -> bool:
        """Whether it runs on this machine, without an account."""
        return self.backend == IDEAL or self.backend.startswith("fake_")

    @property
    def twirled(self) -> bool:
        """Whether circuits are sent as random ones of the same effect."""
        return self.twirling.gates or self.twirling.measure or self.resilience_level == 1

    @property
    def executed_shots(self) -> int:
        """Shots of each circuit that are executed: twirled ones fill all random circuits alike."""
        parts = randomizations(self.shots) if self.twirled else 1
        return parts * math.ceil(self.shots / parts)

    @model_validator(mode="after")
    def _check(self) -> JobSpec:
        if len(set(self.places)) != len(self.places):
            raise ValueError(f"places: one is given twice in {list(self.places)}")
        if self.classes is not None and len(set(self.classes)) != len(self.classes):
            raise ValueError("classes: one is given twice")
        if self.local and self.mode != "job":
            raise ValueError(
                f"mode: {self.mode} is of the service; {self.backend} runs on this machine: use job"
            )
        if self.resilience_level == 2:
            raise ValueError(
                "resilience_level: 2 (zero-noise extrapolation) is of the Estimator primitive; "
                "filters are sampled, all qubits from the same shots: use 0, or 1, which divides "
                "readout errors out"
            )
        if self.dynamical_decoupling is not None and self.backend == IDEAL:
            raise ValueError("dynamical_decoupling: the ideal backend aer has no idle noise")
        if self.dynamical_decoupling is not None and self.twirled:
            # Boxes of twirled gates have no schedule to pad.
            raise ValueError(
                "dynamical_decoupling: not together with twirling or resilience_level 1, whose "
                "random circuits the client does not schedule; use one of them"
            )
        return self


def load_spec(path: str | Path, overrides: Sequence[str] = ()) -> JobSpec:
    """Read a job specification.

    Args:
        path: the file, or the name of a shipped one: `rehearsal`.
        overrides: `key=value` settings applied on top, for example `["shots=4096"]`.

    Raises:
        ConfigError: with the file, line, key and remedy.
    """
    document = read_document(find_shipped("jobs", path, ConfigError))
    return validate(JobSpec, with_overrides(document, overrides))


def spec_to_yaml(spec: JobSpec) -> str:
    """`spec` as YAML that `load_spec` reads back to an equal specification."""
    data = TypeAdapter(JobSpec).dump_python(spec, mode="json")
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
