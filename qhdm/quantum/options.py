"""What configurations say about filters and engines, as plain data: no engine is imported here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

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
        """For people, by itself."""
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
            (*.json).
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
        """For people, by itself: `aer, 64 shots`."""
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


#: A complete engine: what is not given is its default.
EngineOptions = Exact | Aer

#: The engines by name, with their defaults.
ENGINES: dict[str, EngineOptions] = {
    options.name: options for options in (Exact(), Exact("network"), Exact("statevector"), Aer())
}
