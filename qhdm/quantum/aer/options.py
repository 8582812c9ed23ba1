"""How circuits run on Aer, as plain data: nothing of Aer is imported here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Method = Literal["auto", "statevector", "density_matrix", "matrix_product_state"]
Device = Literal["CPU", "GPU"]
Gradient = Literal["exact", "shift", "spsa"]

#: More shots than this say nothing that `shots: null`, the exact values, does not.
MAX_SHOTS = 1_000_000


@dataclass(frozen=True)
class SpsaOptions:
    """Simultaneous perturbation (Spall 1992).

    Attributes:
        averages: random directions per gradient; each costs two circuits per component.
        perturbation: how far inputs and weights are moved, radians.
    """

    averages: int = 4
    perturbation: float = 0.2


@dataclass(frozen=True)
class AerOptions:
    """How circuits run on Aer.

    Attributes:
        method: `statevector`; `density_matrix`; `matrix_product_state`; or `auto`: without noise
            the state vector where memory holds it and the matrix product state elsewhere, with
            noise the density matrix of small circuits and the trajectories of large ones.
        shots: samples per circuit; None gives expectation values without sampling noise.
        noise: None, the name of a device (`fake_torino`), or the path of a calibration file.
        device: `GPU` needs qiskit-aer-gpu.
        gradient: `exact` (the exact engine's), `shift` (parameter shift) or `spsa`.
        spsa: of the gradient `spsa`.
        threads: most threads of Aer; 0 is all cores.
    """

    method: Method = "auto"
    shots: int | None = None
    noise: str | None = None
    device: Device = "CPU"
    gradient: Gradient = "exact"
    spsa: SpsaOptions = SpsaOptions()
    threads: int = 0

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
